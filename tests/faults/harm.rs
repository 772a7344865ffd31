//! What is done to a cluster.

use std::thread::sleep;
use std::time::Duration;

use crate::history::{Harm, Target};
use crate::support::{Cluster, MariaDb};

/// How long a stopped process is stopped.
const STOPPED: Duration = Duration::from_secs(10);

/// Does harm, and makes it good: what is killed is started again after `pause`.
pub fn harm(cluster: &mut Cluster, target: Target, harm: Harm, pause: Duration) {
    match harm {
        Harm::Kill => {
            match target {
                Target::Node(node) => cluster.kill(node),
                Target::Redis => cluster.redis.kill(),
                Target::MariaDb => mariadb(cluster).kill(),
            }
            sleep(pause);
            match target {
                Target::Node(node) => cluster.start_again(node),
                Target::Redis => cluster.redis.restart(),
                Target::MariaDb => mariadb(cluster).restart(),
            }
        }
        Harm::Stop => {
            signal(cluster, target, "STOP");
            sleep(STOPPED);
            signal(cluster, target, "CONT");
        }
    }
    for (node, server) in cluster.nodes.iter_mut().enumerate() {
        assert!(server.is_alive(), "node {node} has died of itself");
    }
}

fn signal(cluster: &mut Cluster, target: Target, signal: &str) {
    match target {
        Target::Node(node) => cluster.nodes[node].signal(signal),
        Target::Redis => cluster.redis.signal(signal),
        Target::MariaDb => mariadb(cluster).signal(signal),
    }
}

fn mariadb(cluster: &mut Cluster) -> &mut MariaDb {
    cluster.mariadb.as_mut().expect("it is this cluster's own")
}
