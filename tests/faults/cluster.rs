use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use crate::history::{Harm, Target};
use crate::support::{Launch, MariaDb, Redis, Server};

pub const NODES: usize = 3;
/// How long a stopped process is stopped.
const STOPPED: Duration = Duration::from_secs(10);

/// Three nodes, their MariaDB and their Redis.
pub struct Cluster {
    nodes: Vec<(Launch, Server)>,
    redis: Redis,
    mariadb: MariaDb,
    /// What killed nodes have logged last.
    last_words: Vec<String>,
}

impl Cluster {
    pub fn start() -> Cluster {
        let (mariadb, redis) = (MariaDb::start(), Redis::start());
        let nodes = (0..NODES).map(|_| {
            let mut launch = Launch {
                store: mariadb.url("chat"),
                reactors: 2,
                workers: 2,
                flags: vec!["--redis".to_owned(), redis.url()],
                setup: String::new(),
                port: 0,
            };
            let server = Server::start(&launch);
            launch.port = server.address.port();
            (launch, server)
        });
        Cluster { nodes: nodes.collect(), redis, mariadb, last_words: Vec::new() }
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|(_, server)| server.address).collect()
    }

    /// Does harm, and makes it good: what is killed is started again after `pause`.
    pub fn harm(&mut self, target: Target, harm: Harm, pause: Duration) {
        match harm {
            Harm::Kill => {
                match target {
                    Target::Node(node) => {
                        let server = &mut self.nodes[node].1;
                        server.kill();
                        self.last_words.push(format!("node {node}, killed:\n{}", server.log_tail()));
                    }
                    Target::Redis => self.redis.kill(),
                    Target::MariaDb => self.mariadb.kill(),
                }
                sleep(pause);
                match target {
                    Target::Node(node) => {
                        let (launch, server) = &mut self.nodes[node];
                        *server = Server::start(launch);
                    }
                    Target::Redis => self.redis.restart(),
                    Target::MariaDb => self.mariadb.restart(),
                }
            }
            Harm::Stop => {
                self.signal(target, "STOP");
                sleep(STOPPED);
                self.signal(target, "CONT");
            }
        }
        for (node, (_, server)) in self.nodes.iter_mut().enumerate() {
            assert!(server.is_alive(), "node {node} has died of itself:\n{}", server.log_tail());
        }
    }

    fn signal(&self, target: Target, signal: &str) {
        match target {
            Target::Node(node) => self.nodes[node].1.signal(signal),
            Target::Redis => self.redis.signal(signal),
            Target::MariaDb => self.mariadb.signal(signal),
        }
    }

    pub fn redis(&mut self) -> &mut Redis {
        &mut self.redis
    }

    /// What the nodes have logged.
    pub fn logs(&self) -> String {
        let living = self.nodes.iter().enumerate();
        let living = living.map(|(node, (_, server))| format!("node {node}:\n{}", server.log_tail()));
        self.last_words.iter().cloned().chain(living).collect()
    }
}
