use std::ops::Deref;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use chat_server::wire::msgid;
use mysql::prelude::{FromValue, Queryable};
use rusqlite::OpenFlags;
use rusqlite::types::FromSql;
use serde_json::json;
use tempfile::TempDir;

use super::{Account, Client, DEADLINE, Launch, MariaDb, Redis, Server, eventually_within};

/// Until when the users of a node that was killed are free, where others have to notice: 10 s by
/// the contract, and half as much again for a noisy machine.
pub const REAPED: Duration = Duration::from_secs(15);

/// One configuration that the suite runs in.
#[derive(Debug)]
pub struct Config {
    pub store: StoreKind,
    /// With more than one, a Redis is between them.
    pub nodes: usize,
    /// The number of reactors of each node.
    pub reactors: usize,
    /// The world that tests share while any of them runs.
    shared: Mutex<Weak<Place>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    Sqlite,
    MySql,
}

impl Config {
    /// One node on SQLite.
    pub const fn new(reactors: usize) -> Config {
        Config { store: StoreKind::Sqlite, nodes: 1, reactors, shared: Mutex::new(Weak::new()) }
    }

    /// One node on MySQL, without Redis.
    pub const fn mysql(reactors: usize) -> Config {
        Config::cluster(1, reactors)
    }

    /// Several nodes on one MySQL and one Redis.
    pub const fn cluster(nodes: usize, reactors: usize) -> Config {
        Config { store: StoreKind::MySql, nodes, reactors, shared: Mutex::new(Weak::new()) }
    }

    pub fn is_cluster(&self) -> bool {
        self.nodes > 1
    }

    /// A world for tests that do not disturb others. It lives as long as any of them.
    pub fn shared(&'static self) -> World {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let place = shared.upgrade().unwrap_or_else(|| {
            let place = Arc::new(Place::start(self, &[], "", None));
            *shared = Arc::downgrade(&place);
            place
        });
        World(place)
    }

    /// A world of its own, for a test that restarts its server, counts, or sets flags.
    pub fn own(&self, flags: &[&str]) -> World {
        self.prepared("", flags)
    }

    /// The same, with shell commands run before each server, such as `ulimit -n 64`.
    pub fn prepared(&self, setup: &str, flags: &[&str]) -> World {
        World(Arc::new(Place::start(self, flags, setup, None)))
    }

    /// The same, with a MariaDB of its own, for a test that kills it.
    pub fn with_own_mariadb(&self, flags: &[&str]) -> World {
        World(Arc::new(Place::start(self, flags, "", Some(MariaDb::start()))))
    }

    /// `--store` for a store that no other server uses, below `dir` if it is a file.
    pub fn new_store(&self, dir: &Path) -> String {
        match self.store {
            StoreKind::Sqlite => format!("sqlite:{}", dir.join("chat.db").display()),
            StoreKind::MySql => MariaDb::shared().url(&MariaDb::shared().new_database()),
        }
    }
}

/// Servers and what they stand on, in the order in which they are to end.
#[derive(Debug)]
struct Place {
    nodes: Vec<Node>,
    redis: Option<Mutex<Redis>>,
    mariadb: Option<Mutex<MariaDb>>,
    /// Removed with the last user of this.
    _dir: TempDir,
}

#[derive(Debug)]
struct Node {
    /// What a restart uses again; the port is fixed by the first start.
    launch: Launch,
    server: Mutex<Server>,
}

impl Place {
    fn start(config: &Config, flags: &[&str], setup: &str, mariadb: Option<MariaDb>) -> Place {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = match &mariadb {
            Some(mariadb) => mariadb.url("chat"),
            None => config.new_store(dir.path()),
        };
        let redis = config.is_cluster().then(Redis::start);
        let mut all_flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        all_flags.extend(redis.iter().flat_map(|redis| ["--redis".to_owned(), redis.url()]));
        let launch =
            Launch { store, reactors: config.reactors, workers: 2, flags: all_flags, setup: setup.to_owned(), port: 0 };
        // Together: the node that finds the store empty creates the tables.
        let nodes = thread::scope(|scope| {
            let starts: Vec<_> = (0..config.nodes).map(|_| scope.spawn(|| Node::start(launch.clone()))).collect();
            starts.into_iter().map(|start| start.join().expect("the node starts")).collect()
        });
        Place { nodes, redis: redis.map(Mutex::new), mariadb: mariadb.map(Mutex::new), _dir: dir }
    }

    fn node(&self, number: usize) -> &Node {
        &self.nodes[number % self.nodes.len()]
    }
}

impl Node {
    fn start(mut launch: Launch) -> Node {
        let server = Server::start(&launch);
        launch.port = server.address.port();
        Node { launch, server: Mutex::new(server) }
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a test gets its clients from. A failing test prints the servers' last log lines.
pub struct World(Arc<Place>);

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (number, node) in self.0.nodes.iter().enumerate() {
                eprintln!("the log of node {number}:\n{}", node.server().log_tail());
            }
        }
    }
}

impl World {
    /// A client of the first node.
    pub fn client(&self) -> Client {
        self.client_on(0)
    }

    /// A client of another node, if the configuration has more than one: they are counted round.
    pub fn client_on(&self, node: usize) -> Client {
        Client::connect(self.server_on(node).address)
    }

    /// The same, bounding what the kernel takes for it while it does not read.
    pub fn client_with_receive_buffer(&self, node: usize, bytes: usize) -> Client {
        Client::connect_with_receive_buffer(self.server_on(node).address, bytes).expect("the server accepts")
    }

    /// A client of the first node, at this address of the loopback network.
    pub fn client_from(&self, source: [u8; 4]) -> Client {
        Client::connect_from(self.server().address, source.into()).expect("the server accepts")
    }

    /// A name that no other account or group has.
    pub fn name(&self, tag: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        format!("{tag}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// A new account, offline.
    #[track_caller]
    pub fn account(&self, tag: &str) -> Account {
        self.client().register(&self.name(tag), "secret")
    }

    /// `n` new accounts, offline.
    #[track_caller]
    pub fn accounts(&self, tag: &str, n: usize) -> Vec<Account> {
        let mut client = self.client();
        let mut accounts = Vec::new();
        // In portions, so that neither side's socket buffer fills while it only writes.
        while accounts.len() < n {
            let portion: Vec<_> = (accounts.len()..n.min(accounts.len() + 100))
                .map(|_| {
                    let name = self.name(tag);
                    let seq = client.start(json!({"msgid": msgid::REGISTER, "name": name, "password": "secret"}));
                    (seq, name)
                })
                .collect();
            for (seq, name) in portion {
                let reply = client.reply(seq);
                let id = reply["id"].as_u64().unwrap_or_else(|| panic!("{reply}")) as u32;
                accounts.push(Account { id, name, password: "secret".into() });
            }
        }
        accounts
    }

    /// A new account, logged in.
    #[track_caller]
    pub fn online(&self, tag: &str) -> Client {
        self.online_on(0, tag)
    }

    #[track_caller]
    pub fn online_on(&self, node: usize, tag: &str) -> Client {
        let mut client = self.client_on(node);
        let account = client.register(&self.name(tag), "secret");
        client.login(&account);
        client
    }

    /// A new client for `account`.
    #[track_caller]
    pub fn login(&self, account: &Account) -> Client {
        self.login_on(0, account)
    }

    #[track_caller]
    pub fn login_on(&self, node: usize, account: &Account) -> Client {
        let mut client = self.client_on(node);
        client.login(account);
        client
    }

    /// The servers still answer, with their connections and their store.
    #[track_caller]
    pub fn assert_alive(&self) {
        for (number, node) in self.0.nodes.iter().enumerate() {
            assert!(node.server().is_alive(), "node {number} has died");
            self.client_on(number).register(&self.name("alive"), "secret");
        }
    }

    // -- the servers as processes: the first node, where no other is named -------------------

    pub fn launch(&self) -> &Launch {
        &self.0.node(0).launch
    }

    pub fn server(&self) -> impl Deref<Target = Server> + '_ {
        self.server_on(0)
    }

    pub fn server_on(&self, node: usize) -> impl Deref<Target = Server> + '_ {
        self.0.node(node).server()
    }

    /// `kill -9`.
    pub fn kill(&self) {
        self.0.node(0).server().kill();
    }

    /// Stops the server with a signal and waits for its exit.
    pub fn stop(&self, signal: &str) -> ExitStatus {
        self.0.node(0).server().stop(signal)
    }

    /// Waits for the exit of a server that was sent a signal.
    pub fn wait(&self) -> ExitStatus {
        self.0.node(0).server().wait()
    }

    /// Starts the server again, on the same port and the same store.
    pub fn start_again(&self) {
        let node = self.0.node(0);
        let mut server = node.server();
        server.kill();
        *server = Server::start(&node.launch);
    }

    /// What a `kill -9` left online is free again: at once after the restart of a node that is
    /// alone, and in a cluster within 10 s, by the other nodes.
    #[track_caller]
    pub fn expect_nobody_online_after_kill(&self) {
        if self.0.nodes.len() == 1 {
            assert_eq!(self.online_in_store(), 0);
        } else {
            eventually_within(REAPED, "the dead node's users to be offline", || self.online_in_store() == 0);
        }
    }

    /// What is between the nodes of a cluster.
    pub fn redis(&self) -> MutexGuard<'_, Redis> {
        self.0.redis.as_ref().expect("a cluster").lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A MariaDB that no other world has.
    pub fn mariadb(&self) -> MutexGuard<'_, MariaDb> {
        let mariadb = self.0.mariadb.as_ref().expect("a world with its own MariaDB");
        mariadb.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // -- the store, seen from outside -------------------------------------------------------

    /// The first column of the only row.
    fn ask<T: FromSql + FromValue>(&self, query: &str) -> T {
        let store = &self.launch().store;
        let Some(path) = store.strip_prefix("sqlite:") else {
            let mut database = mysql::Conn::new(store.as_str()).expect("the store opens");
            return database.query_first(query).expect("the store answers").expect("a row");
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = rusqlite::Connection::open_with_flags(path, flags).expect("the store opens");
        database.busy_timeout(DEADLINE).unwrap();
        database.query_row(query, (), |row| row.get(0)).expect("the store answers")
    }

    /// How many accounts the store has as online.
    pub fn online_in_store(&self) -> usize {
        self.ask::<i64>("SELECT COUNT(*) FROM User WHERE state = 'online'") as usize
    }

    /// How many offline messages the store keeps for `user`.
    pub fn kept_for(&self, user: u32) -> usize {
        self.ask::<i64>(&format!("SELECT COUNT(*) FROM OfflineMessage WHERE userid = {user}")) as usize
    }

    /// The number that the store answers with.
    pub fn count(&self, query: &str) -> usize {
        self.ask::<i64>(query) as usize
    }

    /// What stands in `User.password`.
    pub fn stored_password(&self, user: u32) -> String {
        self.ask(&format!("SELECT password FROM User WHERE id = {user}"))
    }
}
