//! The SQLite file of a real server: what is left of it at the end, what happens when it is taken away,
//! where it may be, and how large it stays.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use chat_server::wire::msgid;
use serde_json::json;
use support::{Client, DEADLINE, Launch, Server, eventually, refused_start};

/// A folder, and a server whose database is in it.
struct Place {
    folder: tempfile::TempDir,
    launch: Launch,
}

impl Place {
    fn new(reactors: usize) -> Place {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let store = format!("sqlite:{}", folder.path().join("chat.db").display());
        let flags = ["--metrics", "127.0.0.1:0"].map(str::to_owned).to_vec();
        Place { launch: Launch { store, reactors, workers: 3, flags, setup: String::new(), port: 0 }, folder }
    }

    fn start(&self) -> Server {
        Server::start(&self.launch)
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("chat.db")
    }

    fn names(&self) -> Vec<String> {
        names_in(self.folder.path())
    }

    /// What a copy of the database alone has for a user, of all that is to be delivered.
    fn kept_in_copy(&self, user: u32) -> Vec<String> {
        let copy = tempfile::tempdir().expect("a temporary directory");
        let path = copy.path().join("copy.db");
        fs::copy(self.database(), &path).expect("the database can be copied");
        let database = rusqlite::Connection::open(&path).expect("it can be opened");
        let sql = "SELECT message FROM OfflineMessage WHERE userid = ?1 ORDER BY id";
        let mut statement = database.prepare(sql).expect("it has tables");
        let rows = statement.query_map([user], |row| row.get::<_, String>(0)).unwrap();
        rows.map(|row| support::text_of(&support::parse(&row.unwrap()))).collect()
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The whole answer.
fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

fn online(server: &Server, name: &str) -> Client {
    let mut client = Client::connect(server.address);
    let account = client.register(name, "secret");
    client.login(&account);
    client
}

/// A message to a user who is offline, and whether it is acked as stored; `None`: the end.
fn store(client: &mut Client, to: u32, text: &str) -> Option<Result<(), i64>> {
    let reply = client.try_request(client.chat_to(to, text))?;
    Some(if reply["errno"] == 0 { Ok(()) } else { Err(reply["errno"].as_i64().unwrap()) })
}

const LEFT: [&str; 2] = ["chat.db", "chat.db.lock"];

#[test]
fn a_clean_stop_leaves_one_file_with_all_that_was_acked_whatever_goes_on() {
    for (reactors, signal) in [(1, "TERM"), (4, "INT")] {
        let place = Place::new(reactors);
        let mut server = place.start();
        let absent = Client::connect(server.address).register("absent", "secret");
        let monitor = server.monitor();
        // A user who does not read what comes for him.
        let slow = online(&server, "slow");
        let slow_id = slow.id();
        let over = AtomicBool::new(false);
        let acked = thread::scope(|scope| {
            for path in ["/metrics", "/readyz"] {
                let over = &over;
                scope.spawn(move || while !over.load(Ordering::Relaxed) && get(monitor, path).is_ok() {});
            }
            let address = server.address;
            let senders: Vec<_> = (0..4)
                .map(|n| {
                    let mut client = online(&server, &format!("sender {n}"));
                    scope.spawn(move || {
                        let mut acked = Vec::new();
                        for number in 0.. {
                            let text = format!("{n} {number}");
                            match store(&mut client, absent.id, &text) {
                                Some(Ok(())) => acked.push(text),
                                Some(Err(_)) => {}
                                None => break,
                            }
                            if store(&mut client, slow_id, &"x".repeat(8000)).is_none() {
                                break;
                            }
                        }
                        acked
                    })
                })
                .collect();
            // Logins, which read.
            scope.spawn(move || {
                while let Ok(mut client) = Client::try_connect(address) {
                    client.try_request(json!({"msgid": msgid::LOGIN, "id": absent.id, "password": "wrong"}));
                }
            });
            eventually("a load", || {
                let database = rusqlite::Connection::open(place.database()).unwrap();
                let count = "SELECT count(*) FROM OfflineMessage WHERE userid = ?1";
                database.query_row(count, [absent.id], |row| row.get::<_, i64>(0)).unwrap_or(0) > 100
            });
            let begun = Instant::now();
            let status = server.stop(signal);
            assert!(status.success(), "{status}\n{}", server.log_tail());
            assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
            over.store(true, Ordering::Relaxed);
            senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(place.names(), LEFT, "{}", server.log_tail());
        let kept = place.kept_in_copy(absent.id);
        assert!(acked.len() > 100 && acked.iter().all(|text| kept.contains(text)), "{} of {}", kept.len(), acked.len());
        drop(slow);
    }
}

#[test]
fn a_clean_stop_after_a_crash_leaves_one_file_too() {
    let place = Place::new(2);
    let mut server = place.start();
    let absent = Client::connect(server.address).register("absent", "secret");
    let mut sender = online(&server, "sender");
    assert_eq!(store(&mut sender, absent.id, "before"), Some(Ok(())));
    server.kill();
    assert!(place.names().len() > LEFT.len(), "a crash leaves its log");
    let mut server = place.start();
    assert!(server.stop("TERM").success());
    assert_eq!(place.names(), LEFT);
    assert_eq!(place.kept_in_copy(absent.id), ["before"]);
}

#[test]
fn a_stop_that_cannot_bring_the_log_home_says_so_and_is_no_success() {
    let place = Place::new(1);
    let mut server = place.start();
    let absent = Client::connect(server.address).register("absent", "secret");
    let outside = rusqlite::Connection::open(place.database()).unwrap();
    outside.execute_batch("BEGIN; SELECT count(*) FROM User").unwrap();
    let mut sender = online(&server, "sender");
    assert_eq!(store(&mut sender, absent.id, "hello"), Some(Ok(())));
    let status = server.stop("TERM");
    assert_eq!(status.code(), Some(1), "{status}");
    let log = server.log_tail();
    assert!(log.contains("another process reads it") && log.contains("chat.db-wal"), "{log}");
    drop(outside);
    let mut server = place.start();
    assert!(server.stop("TERM").success());
    assert_eq!(place.names(), LEFT);
    assert_eq!(place.kept_in_copy(absent.id), ["hello"]);
}

/// The server notices what is done to its files, acks nothing more, and leaves alone what comes back.
fn notices(harm: impl Fn(&Path), mend: impl Fn(&Path), reason: &str, comes_back: bool) {
    let place = Place::new(2);
    let mut server = place.start();
    let monitor = server.monitor();
    let absent = Client::connect(server.address).register("absent", "secret");
    let mut sender = online(&server, "sender");
    let mut reader = online(&server, "reader");
    assert_eq!(store(&mut sender, absent.id, "before"), Some(Ok(())));
    assert!(get(monitor, "/readyz").unwrap().starts_with("HTTP/1.1 200"));

    harm(&place.database());
    // A commit that begins now would go nowhere: not one ack.
    assert_eq!(store(&mut sender, absent.id, "refused"), Some(Err(21)));
    eventually("a node that is not ready", || {
        let reply = get(monitor, "/readyz").unwrap();
        reply.starts_with("HTTP/1.1 503") && reply.contains(reason)
    });
    let login = Client::connect(server.address).request(support::login(&absent));
    assert_eq!(login["errno"], 21, "{login}");
    // Users who are online are served.
    assert!(sender.chat(reader.id(), "still here"));
    assert_eq!(reader.texts(1), ["still here"]);

    mend(&place.database());
    let before = fs::read(place.database()).ok();
    for _ in 0..5 {
        assert_eq!(store(&mut sender, absent.id, "refused"), Some(Err(21)));
    }
    assert!(get(monitor, "/readyz").unwrap().starts_with("HTTP/1.1 503"));
    let names = place.names();
    drop((sender, reader));
    let begun = Instant::now();
    let status = server.stop("TERM");
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let log = server.log_tail();
    assert!(log.contains("some users were not set offline"), "{log}");
    let told =
        log.lines().filter(|line| line.contains(reason) && !line.contains("some users were not set offline")).count();
    assert_eq!(told, 1, "{log}");
    assert_eq!(fs::read(place.database()).ok(), before, "it was written to");
    assert_eq!(place.names(), names, "files came or went");
    if comes_back {
        let mut server = place.start();
        let mut client = Client::connect(server.address);
        client.login(&absent);
        assert_eq!(client.texts(1), ["before"]);
        assert!(server.stop("TERM").success());
    }
}

#[test]
fn a_database_that_is_moved_away_is_noticed_at_once_and_left_alone_when_it_is_back() {
    let away = |database: &Path| database.with_extension("away");
    notices(|db| fs::rename(db, away(db)).unwrap(), |db| fs::rename(away(db), db).unwrap(), "moved or deleted", true);
}

#[test]
fn a_database_that_is_deleted_is_noticed_at_once_and_none_is_made() {
    notices(|db| fs::remove_file(db).unwrap(), |_| (), "moved or deleted", false);
}

#[test]
fn a_database_in_whose_place_another_is_put_is_noticed_at_once() {
    let (away, new) = (|db: &Path| db.with_extension("away"), |db: &Path| db.with_extension("new"));
    let replace = |db: &Path| {
        fs::copy(db, new(db)).unwrap();
        fs::hard_link(db, away(db)).unwrap();
        fs::rename(new(db), db).unwrap();
    };
    notices(replace, |db| fs::rename(away(db), db).unwrap(), "another file", true);
}

#[test]
fn a_log_that_is_deleted_is_noticed_at_once() {
    let log = |db: &Path| db.with_extension("db-wal");
    notices(|db| fs::remove_file(log(db)).unwrap(), |_| (), "chat.db-wal", true);
}

/// What a start says that is refused: one line, in which the store is named as it was given.
#[track_caller]
fn said_by_refused(store: &str, folder: &Path) -> String {
    let before = names_in(folder);
    let setup = format!("cd '{}'", folder.display());
    let launch = Launch { store: store.to_owned(), reactors: 1, workers: 1, flags: Vec::new(), setup, port: 0 };
    let output = refused_start(&launch);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code().is_some_and(|code| code != 0), "{store}: {:?}", output.status);
    assert_eq!(said.trim_end().lines().count(), 1, "{store}: {said}");
    assert_eq!(names_in(folder), before, "{store} leaves something behind");
    said
}

#[test]
fn a_store_that_is_no_file_is_refused_in_one_line_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let folder = folder.path();
    fs::create_dir(folder.join("folder")).unwrap();
    fs::write(folder.join("text"), "no database, but a file of some length ".repeat(20)).unwrap();
    symlink("nowhere", folder.join("link")).unwrap();
    for store in ["sqlite:", ""] {
        let said = said_by_refused(store, folder);
        assert!(said.contains("sqlite:PATH") || said.contains("value is required"), "{said}");
    }
    for (store, reason) in [
        ("sqlite:folder", "folder"),
        ("sqlite:folder/", "folder"),
        ("sqlite:.", "folder"),
        ("sqlite:/", "folder"),
        ("sqlite:missing/chat.db", "does not exist"),
        ("sqlite:text/chat.db", "Not a directory"),
        ("sqlite:text", "not a database"),
        ("sqlite:link", "nowhere"),
        ("sqlite:/dev/null", "device"),
        ("sqlite:/dev/full", "device"),
        ("sqlite::memory:", "memory"),
        ("sqlite:file:chat.db?mode=memory", "URI"),
        ("sqlite://chat.db", "slashes"),
        ("sqlite:chat.db?mode=rwc", "options"),
        ("sqlite:new\nline/chat.db", "does not exist"),
    ] {
        let said = said_by_refused(store, folder);
        let shown = store.replace('\n', "\\n");
        assert_eq!(said.matches(&format!("{shown}: ")).count(), 1, "{said}");
        assert_eq!(said.matches(reason).count() - shown.matches(reason).count().min(1), 1, "{said}");
    }
    // A disk that takes nothing: what was begun is removed again.
    let full = Launch {
        store: format!("sqlite:{}", folder.join("new.db").display()),
        reactors: 1,
        workers: 1,
        flags: Vec::new(),
        setup: "trap '' XFSZ; ulimit -f 0".to_owned(),
        port: 0,
    };
    let before = names_in(folder);
    let output = refused_start(&full);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("new.db") && said.contains("disk"), "{said}");
    assert_eq!(names_in(folder), before);
}

#[test]
fn a_path_from_the_root_may_be_written_as_a_url() {
    let place = Place::new(1);
    let launch = Launch { store: format!("sqlite://{}", place.database().display()), ..place.launch.clone() };
    let mut server = Server::start(&launch);
    online(&server, "somebody");
    assert!(server.stop("TERM").success());
    assert_eq!(place.names(), LEFT);
}

#[test]
fn the_file_shrinks_after_a_backlog_was_delivered_while_the_server_runs() {
    let place = Place::new(2);
    let mut server = place.start();
    let absent: Vec<_> =
        (0..10).map(|n| Client::connect(server.address).register(&format!("absent {n}"), "secret")).collect();
    let mut sender = online(&server, "sender");
    let text = "x".repeat(4000);
    for account in &absent {
        for _ in 0..8 {
            let seqs: Vec<_> = (0..64).map(|_| sender.start(sender.chat_to(account.id, &text))).collect();
            seqs.into_iter().for_each(|seq| assert_eq!(sender.reply(seq)["errno"], 0));
        }
    }
    let size = || {
        ["", "-wal"]
            .map(|suffix| fs::metadata(format!("{}{suffix}", place.database().display())).map_or(0, |file| file.len()))
    };
    let full: u64 = size().iter().sum();
    assert!(full > 20 << 20, "{full}");
    for account in &absent {
        let mut client = Client::connect(server.address);
        client.login(account);
        assert_eq!(client.texts(512).len(), 512);
    }
    eventually("a small file and a small log", || {
        // Others write meanwhile.
        assert_eq!(store(&mut sender, absent[0].id, "meanwhile").unwrap().err(), None);
        thread::sleep(Duration::from_millis(25));
        size()[0] < full / 5
    });
    assert!(server.stop("TERM").success());
    assert_eq!(place.names(), LEFT);
}

#[test]
fn ids_that_are_used_up_refuse_nobody_elses_messages() {
    for last in ["2147483647", "9223372036854775807"] {
        let place = Place::new(2);
        let server = place.start();
        let absent = Client::connect(server.address).register("absent", "secret");
        let mut clients: Vec<_> = (0..4).map(|n| online(&server, &format!("client {n}"))).collect();
        clients[0].create_group("first");
        let outside = rusqlite::Connection::open(place.database()).unwrap();
        outside.busy_timeout(DEADLINE).unwrap();
        outside
            .execute("UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'AllGroup'", [last.parse::<i64>().unwrap()])
            .unwrap();
        let mut waiting = Vec::new();
        for number in 0..50 {
            for (index, client) in clients.iter_mut().enumerate() {
                let name = format!("group {index} {number}");
                let create =
                    json!({"msgid": msgid::CREATE_GROUP, "id": client.id(), "groupname": name, "groupdesc": ""});
                let chat = client.chat_to(absent.id, &format!("{index} {number}"));
                waiting.push((index, client.start(create), client.start(chat)));
            }
        }
        for (index, create, chat) in waiting {
            assert_eq!(clients[index].reply(create)["errno"], 21);
            assert_eq!(clients[index].reply(chat)["errno"], 0);
        }
        let mut client = Client::connect(server.address);
        client.login(&absent);
        assert_eq!(client.texts(200).len(), 200);
    }
}
