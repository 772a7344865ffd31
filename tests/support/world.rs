use std::ops::Deref;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use chat_server::wire::msgid;
use rusqlite::OpenFlags;
use serde_json::json;
use tempfile::TempDir;

use super::{Account, Client, Launch, Server};

/// One configuration that the suite runs in.
#[derive(Debug)]
pub struct Config {
    pub reactors: usize,
    /// The world that tests share while any of them runs.
    shared: Mutex<Weak<Place>>,
}

impl Config {
    pub const fn new(reactors: usize) -> Config {
        Config { reactors, shared: Mutex::new(Weak::new()) }
    }

    /// A world for tests that disturb nobody. It lives as long as any of them.
    pub fn shared(&'static self) -> World {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let place = shared.upgrade().unwrap_or_else(|| {
            let place = Arc::new(Place::start(self, &[], ""));
            *shared = Arc::downgrade(&place);
            place
        });
        World(place)
    }

    /// A world of its own, for a test that restarts its server, counts, or sets flags.
    pub fn own(&self, flags: &[&str]) -> World {
        self.prepared("", flags)
    }

    /// The same, with shell commands run before the server, such as `ulimit -n 64`.
    pub fn prepared(&self, setup: &str, flags: &[&str]) -> World {
        World(Arc::new(Place::start(self, flags, setup)))
    }
}

/// One server and its store.
#[derive(Debug)]
struct Place {
    /// What a restart uses again; the port is fixed by the first start.
    launch: Launch,
    server: Mutex<Server>,
    database: PathBuf,
    /// Removed with the last user of this.
    _dir: TempDir,
}

impl Place {
    fn start(config: &Config, flags: &[&str], setup: &str) -> Place {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let database = dir.path().join("chat.db");
        let mut launch = Launch {
            store: format!("sqlite:{}", database.display()),
            reactors: config.reactors,
            workers: 2,
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            setup: setup.to_owned(),
            port: 0,
        };
        let server = Server::start(&launch);
        launch.port = server.address.port();
        Place { launch, server: Mutex::new(server), database, _dir: dir }
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a test gets its clients from. A failing test prints the server's last log lines.
pub struct World(Arc<Place>);

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.0.server().log_tail());
        }
    }
}

impl World {
    /// A client of the first node.
    pub fn client(&self) -> Client {
        self.client_on(0)
    }

    /// A client of another node, if the configuration has more than one.
    pub fn client_on(&self, _node: usize) -> Client {
        Client::connect(self.0.server().address)
    }

    /// The same, bounding what the kernel takes for it while it does not read.
    pub fn client_with_receive_buffer(&self, _node: usize, bytes: usize) -> Client {
        Client::connect_with_receive_buffer(self.0.server().address, bytes).expect("the server accepts")
    }

    /// A name that nobody else has.
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

    /// The server still answers, with its connections and its store.
    #[track_caller]
    pub fn assert_alive(&self) {
        assert!(self.0.server().is_alive(), "the server has died");
        self.account("alive");
    }

    // -- the server as a process ------------------------------------------------------------

    pub fn launch(&self) -> &Launch {
        &self.0.launch
    }

    pub fn server(&self) -> impl Deref<Target = Server> + '_ {
        self.0.server()
    }

    /// `kill -9`.
    pub fn kill(&self) {
        self.0.server().kill();
    }

    /// Stops the server with a signal and waits for its exit.
    pub fn stop(&self, signal: &str) -> ExitStatus {
        self.0.server().stop(signal)
    }

    /// Starts the server again, on the same port and the same store.
    pub fn start_again(&self) {
        let mut server = self.0.server();
        server.kill();
        *server = Server::start(&self.0.launch);
    }

    // -- the store, seen from outside -------------------------------------------------------

    fn database(&self) -> rusqlite::Connection {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = rusqlite::Connection::open_with_flags(&self.0.database, flags).expect("the store opens");
        database.busy_timeout(super::DEADLINE).unwrap();
        database
    }

    /// How many accounts the store has as online.
    pub fn online_in_store(&self) -> usize {
        let query = "SELECT COUNT(*) FROM User WHERE state = 'online'";
        self.database().query_row(query, (), |row| row.get::<_, i64>(0)).unwrap() as usize
    }

    /// How many offline messages the store keeps for `user`.
    pub fn kept_for(&self, user: u32) -> usize {
        let query = "SELECT COUNT(*) FROM OfflineMessage WHERE userid = ?";
        self.database().query_row(query, [user], |row| row.get::<_, i64>(0)).unwrap() as usize
    }

    /// What stands in `User.password`.
    pub fn stored_password(&self, user: u32) -> String {
        self.database().query_row("SELECT password FROM User WHERE id = ?", [user], |row| row.get(0)).unwrap()
    }
}
