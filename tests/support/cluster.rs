use std::net::SocketAddr;

use mysql::prelude::Queryable;

use super::{Launch, MariaDb, Redis, Server};

/// Nodes with a Redis and a database of their own, for a test that adds, kills and stops them. A
/// failing test prints the nodes' last log lines.
pub struct Cluster {
    pub nodes: Vec<Server>,
    pub redis: Redis,
    /// The database, if this cluster has one of its own.
    pub mariadb: Option<MariaDb>,
    /// What each node begins with.
    pub launch: Launch,
    /// What restarts use again, by node; the ports are fixed by the first start.
    launches: Vec<Launch>,
    /// What killed nodes have logged last.
    last_words: Vec<String>,
}

impl Cluster {
    pub fn start(nodes: usize) -> Cluster {
        Cluster::prepared(nodes, "", &[])
    }

    /// The same, with a MariaDB of its own, for a test that kills it.
    pub fn with_own_mariadb(nodes: usize) -> Cluster {
        let mariadb = MariaDb::start();
        let mut cluster = Cluster::on(mariadb.url("chat"), nodes, "", &[]);
        cluster.mariadb = Some(mariadb);
        cluster
    }

    /// The same with flags, and shell commands to run before each node.
    pub fn prepared(nodes: usize, setup: &str, flags: &[&str]) -> Cluster {
        let mariadb = MariaDb::shared();
        Cluster::on(mariadb.url(&mariadb.new_database()), nodes, setup, flags)
    }

    /// The same on this database.
    pub fn at(store: String, nodes: usize, flags: &[&str]) -> Cluster {
        Cluster::on(store, nodes, "", flags)
    }

    fn on(store: String, nodes: usize, setup: &str, flags: &[&str]) -> Cluster {
        let redis = Redis::start();
        let launch = Launch {
            store,
            reactors: 2,
            workers: 2,
            flags: ["--redis", &redis.url()].iter().chain(flags).map(|&flag| flag.to_owned()).collect(),
            setup: setup.to_owned(),
            port: 0,
        };
        let (nodes_of, launches, last_words) = (Vec::new(), Vec::new(), Vec::new());
        let mut cluster = Cluster { nodes: nodes_of, redis, mariadb: None, launch, launches, last_words };
        (0..nodes).for_each(|_| cluster.add_node());
        cluster
    }

    /// One more node, like the others.
    pub fn add_node(&mut self) {
        self.add_node_with(|_| {});
    }

    /// The same, but for what `change` does to its launch.
    pub fn add_node_with(&mut self, change: impl FnOnce(&mut Launch)) {
        let mut launch = self.launch.clone();
        change(&mut launch);
        let server = Server::start(&launch);
        launch.port = server.address.port();
        self.launches.push(launch);
        self.nodes.push(server);
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|server| server.address).collect()
    }

    /// `kill -9`.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
        self.last_words.push(format!("node {node}, killed:\n{}", self.nodes[node].log_tail()));
    }

    /// Starts a node again, after its end, on its port.
    pub fn start_again(&mut self, node: usize) {
        self.nodes[node] = Server::start(&self.launches[node]);
    }

    /// The same, with what `change` does to its launch.
    pub fn start_again_with(&mut self, node: usize, change: impl FnOnce(&mut Launch)) {
        change(&mut self.launches[node]);
        self.start_again(node);
    }

    /// The database, seen from outside.
    fn database(&self) -> mysql::Conn {
        mysql::Conn::new(self.launch.store.as_str()).expect("the database answers")
    }

    pub fn execute(&self, sql: &str) {
        self.database().query_drop(sql).expect("the database does it");
    }

    /// The number that the database answers with.
    pub fn count(&self, query: &str) -> usize {
        self.database().query_first(query).expect("the database answers").expect("a row")
    }

    /// How many offline messages the store keeps for `user`.
    pub fn kept_for(&self, user: u32) -> usize {
        self.count(&format!("SELECT COUNT(*) FROM OfflineMessage WHERE userid = {user}"))
    }

    /// What the nodes have logged.
    pub fn logs(&self) -> String {
        let living = self.nodes.iter().enumerate().map(|(node, server)| format!("node {node}:\n{}", server.log_tail()));
        self.last_words.iter().cloned().chain(living).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the nodes' logs:\n{}", self.logs());
        }
    }
}
