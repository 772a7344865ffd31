use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{TryRecvError, bounded};

use super::file::{READER_CACHE, sidecar};
use super::read::{FRIENDS, GROUPS, LISTED, MEMBERS, PAGE};
use super::write::HERE;
use super::writer::{CHECKPOINT_BUSY, Job, ROUND_ROWS};
use super::*;
use crate::store::{Account, Friend, Group, Kept, Member, Outcome, Parcel, Quota, RowId, Write};

/// A store in a directory of its own, with one connection.
struct Fixture {
    connection: Box<dyn Connection>,
    store: SqliteStore,
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(directory: tempfile::TempDir) -> Self {
        let store = SqliteStore::open(&directory.path().join("chat.db"), Quotas::default()).unwrap();
        Fixture { connection: store.connection(), store, directory }
    }

    /// As after a restart of the server.
    fn reopen(self) -> Self {
        let Fixture { connection, store, directory } = self;
        drop((connection, store));
        Self::at(directory)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("chat.db")
    }

    fn write(&mut self, batch: &[Write]) -> Vec<Outcome> {
        self.connection.write(batch).unwrap()
    }

    fn one(&mut self, write: Write) -> Outcome {
        let mut outcomes = self.write(&[write]);
        assert_eq!(outcomes.len(), 1);
        outcomes.remove(0)
    }

    fn user(&mut self, name: &str) -> UserId {
        match self.one(register(name)) {
            Outcome::Id(id) => id,
            other => panic!("{name}: {other:?}"),
        }
    }

    fn group(&mut self, creator: UserId, name: &str) -> GroupId {
        match self.one(create_group(creator, name)) {
            Outcome::Id(id) => id,
            other => panic!("{name}: {other:?}"),
        }
    }

    fn keep(&mut self, to: &[UserId], message: &str) -> Vec<Option<RowId>> {
        match self.one(keep(to, message)) {
            Outcome::Kept(kept) => kept
                .into_iter()
                .map(|kept| match kept {
                    Kept::Full(_) => None,
                    Kept::Stored(row) => Some(row),
                    Kept::NoUser | Kept::Elsewhere(_) | Kept::Refused(_) => None,
                })
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    fn page(&mut self, user: UserId, max_bytes: usize) -> (Vec<String>, bool) {
        let page = self.connection.page(user, max_bytes).unwrap();
        let text = |(_, message): &(RowId, Box<[u8]>)| String::from_utf8(message.to_vec()).unwrap();
        (page.messages.iter().map(text).collect(), page.more)
    }
}

fn register(name: &str) -> Write {
    Write::Register { name: name.into(), password: format!("secret of {name}") }
}

fn create_group(creator: UserId, name: &str) -> Write {
    Write::CreateGroup { creator, name: name.into(), description: format!("about {name}") }
}

fn claim_of(user: UserId) -> Write {
    Write::Claim { user, epoch: 1, past: None }
}

fn keep(to: &[UserId], message: &str) -> Write {
    let message: Arc<[u8]> = message.as_bytes().into();
    Write::Keep(to.iter().map(|&to| Parcel { to, messages: vec![message.clone()], past: None }).collect())
}

#[test]
fn an_account_is_registered_once_and_its_password_replaced() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("Ann");
    let account = fixture.connection.account(ann).unwrap();
    assert_eq!(account, Some(Account { name: "Ann".into(), password: "secret of Ann".into() }));
    assert_eq!(fixture.one(register("Ann")), Outcome::Already);
    assert_eq!(fixture.one(Write::SetPassword { user: ann, password: "new".into() }), Outcome::Done);
    assert_eq!(fixture.connection.account(ann).unwrap().unwrap().password, "new");
    assert_eq!(fixture.connection.account(ann + 1).unwrap(), None);
    assert_eq!(fixture.write(&[]), []);
}

#[test]
fn the_key_of_a_name_is_unique_and_the_name_stays_as_it_was_given() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("Ünïcødé Жора ΣΑΣ");
    assert_eq!(fixture.one(register("u\u{308}NÏCØDÉ  жОРА σας\u{3000}")), Outcome::Already);
    fixture.user("Unicødé Жора ΣΑΣ");
    fixture.group(ann, "Élan");
    assert_eq!(fixture.one(create_group(ann, "éLAN")), Outcome::Already);
    // Groups and users do not share theirs.
    assert_eq!(fixture.connection.account(ann).unwrap().unwrap().name, "Ünïcødé Жора ΣΑΣ");
    fixture.group(ann, "Ünïcødé Жора ΣΑΣ");
}

/// A file of version 1, with what the SQL puts into it.
fn version_1(sql: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let old = rusqlite::Connection::open(directory.path().join("chat.db")).unwrap();
    old.execute_batch(MIGRATIONS[0]).unwrap();
    old.execute_batch(sql).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    directory
}

#[test]
fn the_names_of_a_file_of_version_1_get_keys_and_the_later_of_two_keeps_its_name() {
    let directory = version_1(
        "INSERT INTO User (id, name, password, namekey) VALUES
             (1, 'ann', 'p1', 'ann'), (3, 'βσ', 'p3', 'βσ'), (4, 'ΒΣ', 'p4', 'ΒΣ'), (5, 'βς', 'p5', 'βς'), (90, 'gone', '', 'x');
         DELETE FROM User WHERE id = 90;
         INSERT INTO AllGroup (id, groupname, groupdesc, namekey) VALUES
             (7, 'Elan ', 'd', 'elan '), (8, 'elan', '', 'elan'), (50, 'gone', '', 'x');
         DELETE FROM AllGroup WHERE id = 50;
         INSERT INTO GroupUser (groupid, userid, grouprole) VALUES (7, 1, 'creator'), (8, 1, 'normal');",
    );
    let mut fixture = Fixture::at(directory);
    for (id, name, password) in [(1, "ann", "p1"), (3, "βσ", "p3"), (4, "ΒΣ", "p4"), (5, "βς", "p5")] {
        let account = Account { name: name.into(), password: password.into() };
        assert_eq!(fixture.connection.account(id).unwrap(), Some(account));
    }
    let groups = fixture.connection.groups(1).unwrap();
    assert_eq!(
        groups.iter().map(|group| (group.id, &*group.groupname)).collect::<Vec<_>>(),
        [(7, "Elan "), (8, "elan")]
    );
    assert_eq!((&*groups[0].groupdesc, groups[0].users[0].role), ("d", "creator"));
    for taken in ["ANN", "βσ", "ΒΣ", "Βς"] {
        assert_eq!(fixture.one(register(taken)), Outcome::Already, "{taken}");
    }
    assert_eq!(fixture.one(create_group(1, "ELAN")), Outcome::Already);
    // Ids that were used once are never used again.
    assert_eq!((fixture.user("new"), fixture.group(1, "new")), (91, 51));
    // The later two are found without a key at each start, and stay as they are; renamed, they get one.
    let mut fixture = fixture.reopen();
    let by_hand = rusqlite::Connection::open(fixture.path()).unwrap();
    let keyless = "SELECT group_concat(id) FROM (SELECT id FROM User WHERE namekey IS NULL ORDER BY id)";
    let keyless = || by_hand.query_one(keyless, [], |row| row.get::<_, Option<String>>(0)).unwrap();
    assert_eq!(keyless().as_deref(), Some("4,5"));
    by_hand.execute_batch("UPDATE User SET name = 'beta' WHERE id = 5; DELETE FROM User WHERE id = 3;").unwrap();
    fixture = fixture.reopen();
    assert_eq!(keyless(), None);
    assert_eq!(fixture.write(&[register("Beta"), register("βσ")]), [Outcome::Already, Outcome::Already]);
}

#[test]
fn what_is_refused_costs_no_id() {
    let quotas = Quotas { groups: Some(1), ..Quotas::default() };
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("chat.db"), quotas).unwrap();
    let mut connection = store.connection();
    let (full, taken) = (Outcome::Full(Quota::Groups), Outcome::Already);
    assert_eq!(connection.write(&[register("ann"), register("bob")]).unwrap(), [Outcome::Id(1), Outcome::Id(2)]);
    assert_eq!(connection.write(&[create_group(1, "one")]).unwrap(), [Outcome::Id(1)]);
    for _ in 0..50 {
        let refused = [register("Ann"), create_group(2, "ONE"), create_group(1, "two"), create_group(1, "one")];
        assert_eq!(connection.write(&refused).unwrap(), [taken.clone(), taken.clone(), full.clone(), taken.clone()]);
    }
    assert_eq!(connection.write(&[register("cem"), create_group(2, "two")]).unwrap(), [Outcome::Id(3), Outcome::Id(2)]);
}

#[test]
fn an_account_is_claimed_by_one_until_it_is_given_back() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    let (claim, release) = (claim_of(ann), Write::Release { user: ann, epoch: 1 });
    assert_eq!(fixture.one(claim.clone()), Outcome::Done);
    assert_eq!(fixture.one(claim.clone()), Outcome::InUse(HERE));
    assert_eq!(fixture.one(release.clone()), Outcome::Done);
    assert_eq!(fixture.one(release), Outcome::Done);
    assert_eq!(fixture.one(claim.clone()), Outcome::Done);
    assert_eq!(fixture.one(claim_of(ann + 1)), Outcome::NoUser);
    fixture.store.release_all().unwrap();
    assert_eq!(fixture.one(claim), Outcome::Done);
}

#[test]
fn friends_go_one_way_and_are_listed_by_id() {
    let mut fixture = Fixture::new();
    let [ann, bob, eve] = ["ann", "bob", "eve"].map(|name| fixture.user(name));
    let add = |friend| Write::AddFriend { user: ann, friend };
    assert_eq!(
        fixture.write(&[add(eve), add(bob), add(bob), add(eve + 1), claim_of(bob)]),
        [Outcome::Done, Outcome::Done, Outcome::Already, Outcome::NoUser, Outcome::Done]
    );
    let friends = fixture.connection.friends(ann).unwrap();
    assert_eq!(
        friends,
        [
            Friend { id: bob, name: "bob".into(), state: "online" },
            Friend { id: eve, name: "eve".into(), state: "offline" }
        ]
    );
    assert_eq!(fixture.connection.friends(bob).unwrap(), []);
}

#[test]
fn a_group_has_its_creator_and_those_who_join() {
    let mut fixture = Fixture::new();
    let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
    let group = fixture.group(bob, "readers");
    let join = |group| Write::JoinGroup { user: ann, group };
    assert_eq!(
        fixture.write(&[join(group), join(group), join(group + 1), create_group(ann, "Readers")]),
        [Outcome::Done, Outcome::Already, Outcome::NoGroup, Outcome::Already]
    );
    assert_eq!(fixture.connection.members(group).unwrap(), Some(vec![ann, bob]));
    assert_eq!(fixture.connection.members(group + 1).unwrap(), None);
    let member = |id, name: &str, role| Member { id, name: name.into(), state: "offline", role };
    let listed = Group {
        id: group,
        groupname: "readers".into(),
        groupdesc: "about readers".into(),
        users: vec![member(ann, "ann", "normal"), member(bob, "bob", "creator")],
        members: 2,
    };
    let second = fixture.group(ann, "writers");
    let groups = fixture.connection.groups(ann).unwrap();
    assert_eq!(groups[0], listed);
    assert_eq!((groups.len(), groups[1].id), (2, second));
    assert_eq!(fixture.connection.groups(bob).unwrap(), [listed]);
}

#[test]
fn a_large_group_lists_its_first_500_members_and_the_count_of_all() {
    let mut fixture = Fixture::new();
    let names: Vec<_> = (0..503).map(|n| register(&format!("user {n}"))).collect();
    let outcomes = fixture.write(&names);
    let users: Vec<_> = outcomes.iter().map(|o| if let Outcome::Id(id) = o { *id } else { 0 }).collect();
    let group = fixture.group(users[0], "all");
    let joins: Vec<_> = users[1..].iter().rev().map(|&user| Write::JoinGroup { user, group }).collect();
    fixture.write(&joins[3..]);
    let listed = |fixture: &mut Fixture| fixture.connection.groups(users[0]).unwrap().remove(0);
    assert_eq!((listed(&mut fixture).users.len(), listed(&mut fixture).members), (500, 500));
    fixture.write(&joins);
    let all = listed(&mut fixture);
    assert_eq!(all.members, 503);
    assert_eq!(all.users.iter().map(|user| user.id).collect::<Vec<_>>(), users[..500]);
    assert_eq!(fixture.connection.members(group).unwrap(), Some(users));
}

#[test]
fn messages_are_paged_in_order_within_the_bytes_allowed() {
    let mut fixture = Fixture::new();
    let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
    for message in ["één", "two", "three"] {
        fixture.keep(&[ann, bob], message);
    }
    let all = ["één", "two", "three"].map(String::from).to_vec();
    assert_eq!(fixture.page(ann, usize::MAX), (all.clone(), false));
    assert_eq!(fixture.page(ann, 13), (all.clone(), false));
    assert_eq!(fixture.page(ann, 12), (all[..2].to_vec(), true));
    assert_eq!(fixture.page(ann, 7), (all[..1].to_vec(), true));
    // One at least, or a message larger than a page would never be delivered.
    assert_eq!(fixture.page(ann, 0), (all[..1].to_vec(), true));
    assert_eq!(fixture.page(bob + 1, 100), (vec![], false));
}

#[test]
fn a_kept_message_has_a_row_for_each_recipient_with_an_account() {
    let mut fixture = Fixture::new();
    let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
    let rows = fixture.keep(&[bob, bob + 1, ann, bob], "hello");
    assert!(matches!(rows[..], [Some(first), None, Some(second), Some(third)] if first < second && second < third));
    let page = fixture.connection.page(bob, 100).unwrap();
    assert_eq!(page.messages.iter().map(|(row, _)| Some(*row)).collect::<Vec<_>>(), [rows[0], rows[3]]);
}

#[test]
fn removal_is_exact_and_rows_are_never_used_again() {
    let mut fixture = Fixture::new();
    let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
    let rows: Vec<_> = ["1", "2", "3"].iter().map(|message| fixture.keep(&[ann], message)[0].unwrap()).collect();
    let remove = |user, rows: &[RowId]| Write::Remove { user, epoch: 1, rows: rows.to_vec() };
    assert_eq!(fixture.one(remove(bob, &rows)), Outcome::Done);
    assert_eq!(fixture.page(ann, 100).0, ["1", "2", "3"]);
    assert_eq!(fixture.one(remove(ann, &[rows[0], rows[2], rows[2] + 99, u64::MAX])), Outcome::Done);
    assert_eq!(fixture.page(ann, 100).0, ["2"]);
    let mut fixture = fixture.reopen();
    assert!(fixture.keep(&[ann], "4")[0].unwrap() > rows[2]);
    assert_eq!(fixture.page(ann, 100).0, ["2", "4"]);
}

#[test]
fn the_lists_come_out_of_an_index_in_order() {
    let fixture = Fixture::new();
    let reader = open(&fixture.path(), EXISTING, READER_CACHE).unwrap();
    for sql in [FRIENDS, GROUPS, LISTED, MEMBERS, PAGE] {
        let explain = format!("EXPLAIN QUERY PLAN {sql}");
        let mut statement = reader.prepare(&explain).unwrap();
        // Its parameters are left unbound: the plan does not depend on them.
        let mut rows = statement.raw_query();
        let mut plan = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            plan.push(row.get::<_, String>(3).unwrap());
        }
        // A scan reads the whole table; a sort would be a line of its own.
        assert!(!plan.is_empty() && plan.iter().all(|line| line.starts_with("SEARCH")), "{sql}: {plan:?}");
    }
}

#[test]
fn a_restart_keeps_everything_and_nobody_online() {
    let mut fixture = Fixture::new();
    let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
    let group = fixture.group(ann, "readers");
    fixture.write(&[claim_of(bob), Write::AddFriend { user: ann, friend: bob }, Write::JoinGroup { user: bob, group }]);
    fixture.keep(&[ann], "hello");
    assert_eq!(fixture.connection.friends(ann).unwrap()[0].state, "online");

    let mut fixture = fixture.reopen();
    assert_eq!(fixture.connection.friends(ann).unwrap()[0].state, "offline");
    assert_eq!(fixture.connection.members(group).unwrap(), Some(vec![ann, bob]));
    assert_eq!(fixture.page(ann, 100), (vec!["hello".into()], false));
    assert_eq!(fixture.one(register("ANN")), Outcome::Already);
    assert_eq!(fixture.one(claim_of(bob)), Outcome::Done);
}

#[test]
fn a_second_server_is_refused_until_the_first_is_gone() {
    let fixture = Fixture::new();
    let link = fixture.directory.path().join("link.db");
    std::os::unix::fs::symlink(fixture.path(), &link).unwrap();
    for path in [fixture.path(), link] {
        let error = SqliteStore::open(&path, Quotas::default()).err().unwrap();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("chat.db.lock"), "{error}");
    }
    fixture.reopen();
}

#[test]
fn what_is_not_this_servers_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("newer.db");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let error = SqliteStore::open(&path, Quotas::default()).err().unwrap();
    assert!(matches!(error, OpenError::Newer { found: 7, .. }), "{error}");

    let path = directory.path().join("other.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE User (x)").unwrap();
    let error = SqliteStore::open(&path, Quotas::default()).err().unwrap().to_string();
    assert!(error.contains("other.db") && error.contains("already exists"), "{error}");

    let path = directory.path().join("text.db");
    fs::write(&path, "not a database at all, but long enough to be taken for one".repeat(99)).unwrap();
    assert!(matches!(SqliteStore::open(&path, Quotas::default()).err().unwrap(), OpenError::Database { .. }));
    let error = SqliteStore::open(&directory.path().join("missing/chat.db"), Quotas::default()).err().unwrap();
    assert!(matches!(error, OpenError::File { .. }), "{error}");
}

#[test]
fn batches_that_come_together_share_a_commit() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    let before = fixture.store.commits();
    let queue = &fixture.store.queue;
    // The writer comes by here with its first round, and has to wait.
    let gate = fixture.store.fault.0.lock().unwrap();
    thread::scope(|scope| {
        let write = || {
            let mut connection = fixture.store.connection();
            scope.spawn(move || connection.write(&[keep(&[ann], "hello")]).unwrap());
        };
        let (answer, _) = bounded(1);
        queue.0.send(Job { work: Work::Batch(vec![keep(&[ann], "hello")]), answer }).unwrap();
        wait_for(|| queue.0.is_empty());
        (0..8).for_each(|_| write());
        wait_for(|| queue.0.len() == 8);
        drop(gate);
    });
    assert_eq!(fixture.store.commits() - before, 2, "the first alone, then eight in one");
    assert_eq!(fixture.page(ann, usize::MAX).0.len(), 9);
}

#[test]
fn every_batch_of_many_threads_is_done_once_and_in_its_order() {
    let mut fixture = Fixture::new();
    let users: Vec<_> = (0..8).map(|n| fixture.user(&n.to_string())).collect();
    thread::scope(|scope| {
        for &user in &users {
            let mut connection = fixture.store.connection();
            scope.spawn(move || {
                for n in 0..50 {
                    connection.write(&[keep(&[user], &n.to_string())]).unwrap();
                    assert_eq!(connection.page(user, usize::MAX).unwrap().messages.len(), n + 1);
                }
            });
        }
    });
    let expected: Vec<_> = (0..50).map(|n| n.to_string()).collect();
    for user in users {
        assert_eq!(fixture.page(user, usize::MAX).0, expected);
    }
}

fn wait_for(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come about");
        thread::yield_now();
    }
}

/// A fault strikes every round until it is mended; none of what it struck is there.
fn fails_and_recovers(fault: &'static str, text: &str) {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    fixture.keep(&[ann], "before");
    fixture.store.fault.set(fault);
    for _ in 0..3 {
        // The first would fit; but a batch is done whole or not at all.
        let batch = [keep(&[ann], "small"), keep(&[ann; 100], &"x".repeat(4000))];
        let StoreError::Unavailable(error) = fixture.connection.write(&batch).unwrap_err();
        assert!(error.contains(text), "{error}");
        assert_eq!(fixture.page(ann, 100).0, ["before"], "reading goes on");
    }
    assert!(fault.contains("max_page_count") || fixture.store.release_all().is_err());
    fixture.store.fault.set("");
    fixture.keep(&[ann], "after");
    assert_eq!(fixture.page(ann, 100).0, ["before", "after"]);
    assert_eq!(fixture.reopen().page(ann, 100).0, ["before", "after"]);
}

#[test]
fn a_full_disk_is_an_error_until_there_is_room() {
    fails_and_recovers("PRAGMA max_page_count = 20", "full");
}

#[test]
fn a_read_only_disk_is_an_error_until_it_is_writable() {
    fails_and_recovers("PRAGMA query_only = ON", "readonly");
}

#[test]
fn a_reader_that_cannot_open_the_file_tries_again() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    let elsewhere = sidecar(&fixture.path(), ".away");
    fs::rename(fixture.path(), &elsewhere).unwrap();
    let StoreError::Unavailable(error) = fixture.connection.account(ann).unwrap_err();
    assert!(error.contains("unable to open"), "{error}");
    assert!(!fixture.path().exists(), "an empty one was put in its place");
    fs::rename(&elsewhere, fixture.path()).unwrap();
    assert!(fixture.connection.account(ann).unwrap().is_some());
}

#[test]
fn a_connection_outlives_the_store_without_hanging() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    let Fixture { mut connection, store, directory } = fixture;
    assert!(connection.account(ann).unwrap().is_some());
    drop(store);
    let StoreError::Unavailable(error) = connection.write(&[register("bob")]).unwrap_err();
    assert!(error.contains("closed"), "{error}");
    assert!(connection.account(ann).unwrap().is_some());
    drop(directory);
}

#[test]
fn what_was_queued_before_the_end_is_done() {
    let fixture = Fixture::new();
    let (answer, _) = bounded(1);
    for n in 0..2 * ROUND_ROWS {
        let work = Work::Batch(vec![register(&format!("user {n}"))]);
        fixture.store.queue.0.send(Job { work, answer: answer.clone() }).unwrap();
    }
    let mut fixture = fixture.reopen();
    assert!(fixture.connection.account(2 * ROUND_ROWS as u32).unwrap().is_some());
}

#[test]
fn the_log_is_bounded_while_readers_overlap_without_a_gap() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    let log = sidecar(&fixture.path(), "-wal");
    let size = || fs::metadata(&log).unwrap().len();
    let two_megabytes = [keep(&[ann; 32], &"x".repeat(1 << 16))];
    let [one, other] = [(); 2].map(|()| open(&fixture.path(), EXISTING, READER_CACHE).unwrap());
    let begin = |reader: &rusqlite::Connection| reader.execute_batch("BEGIN; SELECT count(*) FROM User").unwrap();
    let end = |reader: &rusqlite::Connection| reader.execute_batch("COMMIT").unwrap();
    begin(&one);
    // A reader that stays keeps the log from being emptied, but nobody from writing.
    while size() < 2 * WAL_LIMIT {
        fixture.write(&two_megabytes);
    }
    let store = &fixture.store;
    let connection = &mut fixture.connection;
    let (stop, stopped) = bounded::<()>(0);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut readers = [one, other];
            while stopped.try_recv() == Err(TryRecvError::Empty) {
                // Each stays past a commit, so that none of them has it all in sight.
                let (commits, begun) = (store.commits(), Instant::now());
                while store.commits() == commits && begun.elapsed() < CHECKPOINT_BUSY / 20 {
                    thread::yield_now();
                }
                begin(&readers[1]);
                end(&readers[0]);
                readers.swap(0, 1);
            }
        });
        let mut sizes = Vec::new();
        for _ in 0..80 {
            connection.write(&two_megabytes).unwrap();
            sizes.push(size());
        }
        drop(stop);
        assert!(sizes[40..].iter().all(|&size| size < 3 * WAL_LIMIT), "{sizes:?}");
    });
}
