use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{TryRecvError, bounded};

use super::file::{READER_CACHE, open, sidecar};
use super::read::{DIALECT, FRIENDS, GROUPS, LISTED, MEMBERS, PAGE};
use super::round::{Job, ROUND_ROWS};
use super::writer::{CHECKPOINT_BUSY, WAL_LIMIT};
use super::*;
use crate::store::{Account, Claim, Friend, Group, Holder, Kept, Loaded, Member, Outcome, Parcel, Quota, RowId, Write};

const NODE: NodeId = NodeId(7);

fn open_at(path: &Path) -> Result<SqliteStore, OpenError> {
    SqliteStore::open(path, NODE, Quotas::default())
}

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
        let store = open_at(&directory.path().join("chat.db")).unwrap();
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
                    Kept::Stored(row) => Some(row),
                    _ => None,
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

#[test]
fn what_a_client_speaks_is_remembered_replaced_and_forgotten() {
    let mut fixture = Fixture::new();
    let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
    let set = |user, dialect: Option<&str>| Write::SetDialect { user, dialect: dialect.map(Into::into) };
    let spoken = |fixture: &mut Fixture, user| fixture.connection.load(user, 100).unwrap().dialect;
    assert_eq!(spoken(&mut fixture, ann), None);
    let longest = "x".repeat(255);
    for dialect in [None, Some("qt"), Some("qt"), Some("own 1 2 -"), Some(""), Some(&*longest), None, None] {
        assert_eq!(fixture.one(set(ann, dialect)), Outcome::Done);
        assert_eq!((spoken(&mut fixture, ann).as_deref(), spoken(&mut fixture, bob)), (dialect, None));
    }
    let batch = [set(ann, Some("1")), set(bob, Some("2")), set(ann, None), set(bob + 1, Some("3"))];
    assert_eq!(fixture.write(&batch), [const { Outcome::Done }; 4]);
    let mut fixture = fixture.reopen();
    assert_eq!((spoken(&mut fixture, ann), spoken(&mut fixture, bob).as_deref()), (None, Some("2")));
    // Where there is no account, there is nothing to remember it with.
    assert_eq!(spoken(&mut fixture, bob + 1), None);
    assert_eq!(fixture.connection.account(bob + 1).unwrap(), None);
}

#[test]
fn everything_that_a_login_tells_comes_by_one_call() {
    let mut fixture = Fixture::new();
    let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
    fixture.group(ann, "readers");
    fixture.write(&[
        Write::AddFriend { user: ann, friend: bob },
        Write::SetDialect { user: ann, dialect: Some("qt".into()) },
        keep(&[ann], "one"),
        keep(&[ann], "two"),
    ]);
    let connection = &mut fixture.connection;
    let loaded = connection.load(ann, 3).unwrap();
    assert!((loaded.friends.len(), loaded.groups.len(), loaded.page.more) == (1, 1, true), "{loaded:?}");
    let (friends, groups) = (connection.friends(ann).unwrap(), connection.groups(ann).unwrap());
    let one_by_one = Loaded { friends, groups, page: connection.page(ann, 3).unwrap(), dialect: Some("qt".into()) };
    assert_eq!(loaded, one_by_one);
    assert_eq!(connection.load(bob + 1, 3).unwrap(), Loaded::default());
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
         INSERT INTO GroupUser (groupid, userid, grouprole) VALUES (7, 1, 'creator'), (8, 1, 'normal');
         CREATE VIEW Everybody AS SELECT id, name FROM User;",
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
    let store = SqliteStore::open(&directory.path().join("chat.db"), NODE, quotas).unwrap();
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
fn an_account_is_one_claims_until_it_is_given_back_or_past() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    let claim = |epoch, past| Write::Claim { user: ann, epoch, past };
    let held = |epoch| Holder::Node(Claim { node: NODE, epoch });
    let release = |epoch| Write::Release { user: ann, epoch };
    assert_eq!(fixture.one(claim(1, None)), Outcome::Done);
    assert_eq!(fixture.one(claim(1, None)), Outcome::Done, "twice by one epoch is once");
    assert_eq!(fixture.one(Write::Show { user: ann, epoch: 1 }), Outcome::Done);
    assert_eq!(fixture.one(claim(2, None)), Outcome::InUse(held(1)));
    // A user who comes back while his former session ends.
    assert_eq!(fixture.one(claim(2, Some(held(9)))), Outcome::InUse(held(1)));
    assert_eq!(fixture.one(claim(2, Some(held(1)))), Outcome::Done);
    // A release that is late, or is repeated, ends no other claim.
    assert_eq!(fixture.write(&[release(1), claim(3, None)]), [Outcome::Done, Outcome::InUse(held(2))]);
    assert_eq!(fixture.write(&[release(2), release(2), claim(u64::MAX, None)]), [const { Outcome::Done }; 3]);
    assert_eq!(fixture.write(&[release(2), claim(4, None)])[1], Outcome::InUse(held(u64::MAX)));
    assert_eq!(fixture.one(Write::Claim { user: ann + 1, epoch: 1, past: None }), Outcome::NoUser);
    fixture.store.release_all().unwrap();
    assert_eq!(fixture.one(claim(5, None)), Outcome::Done);
}

#[test]
fn a_parcel_is_stored_for_whoever_is_online_here_and_without_messages_it_is_a_question() {
    let mut fixture = Fixture::new();
    let [ann, bob, eve] = ["ann", "bob", "eve"].map(|name| fixture.user(name));
    fixture.one(claim_of(ann));
    // A row that another process has left would be freed at the next start.
    let outside = rusqlite::Connection::open(fixture.path()).unwrap();
    outside.execute("UPDATE User SET state = 'online', node = 8, epoch = 2 WHERE id = ?1", [eve]).unwrap();
    let other = Holder::Node(Claim { node: NodeId(8), epoch: 2 });
    let parcel = |to, past, count| Parcel { to, messages: vec![b"{}"[..].into(); count], past };
    let mut keep = |parcel| match fixture.one(Write::Keep(vec![parcel])) {
        Outcome::Kept(kept) => kept[0],
        outcome => panic!("{outcome:?}"),
    };
    for user in [ann, bob] {
        assert_eq!(keep(parcel(user, None, 0)), Kept::Stored(0));
        assert_eq!(keep(parcel(user, Some(other), 0)), Kept::Stored(0));
        assert!(matches!(keep(parcel(user, Some(other), 2)), Kept::Stored(1..)));
    }
    for count in [0, 2] {
        assert_eq!(keep(parcel(eve, None, count)), Kept::Elsewhere(other));
        assert_eq!(keep(parcel(eve + 1, None, count)), Kept::NoUser);
    }
    assert_eq!(keep(parcel(eve, Some(other), 0)), Kept::Past(0));
    assert!(matches!(keep(parcel(eve, Some(other), 2)), Kept::Past(1..)));
    for (user, count) in [(ann, 2), (bob, 2), (eve, 2)] {
        assert_eq!(fixture.page(user, 100).0.len(), count);
    }
}

#[test]
fn only_whoever_has_a_user_removes_its_messages() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    let rows: Vec<_> = ["1", "2", "3"].iter().map(|message| fixture.keep(&[ann], message)[0].unwrap()).collect();
    let remove = |epoch, index: usize| Write::Remove { user: ann, epoch, rows: vec![rows[index]] };
    assert_eq!(fixture.one(remove(1, 0)), Outcome::Lost);
    let batch = [claim_of(ann), remove(2, 0), remove(1, 1), Write::Release { user: ann, epoch: 1 }, remove(1, 2)];
    let [done, lost] = [Outcome::Done, Outcome::Lost];
    assert_eq!(fixture.write(&batch), [done.clone(), lost.clone(), done.clone(), done, lost]);
    assert_eq!(fixture.page(ann, 100).0, ["1", "3"]);
}

#[test]
fn a_file_of_version_2_or_3_gets_what_it_lacks_and_loses_nothing() {
    for version in [2, 3] {
        gets_what_it_lacks(version);
    }
}

#[track_caller]
fn gets_what_it_lacks(version: usize) {
    let directory = tempfile::tempdir().unwrap();
    let old = rusqlite::Connection::open(directory.path().join("chat.db")).unwrap();
    MIGRATIONS[..version].iter().for_each(|migration| old.execute_batch(migration).unwrap());
    old.execute_batch(
        "INSERT INTO User (id, name, password, state) VALUES (1, 'ann', 'p1', 'online'), (3, 'bob', 'p3', 'offline');
         INSERT INTO User (id, name, password) VALUES (90, 'gone', '');
         DELETE FROM User WHERE id = 90;
         INSERT INTO Friend VALUES (1, 3);
         INSERT INTO AllGroup (id, groupname, groupdesc) VALUES (7, 'readers', 'd');
         INSERT INTO GroupUser (groupid, userid, grouprole) VALUES (7, 1, 'creator');
         INSERT INTO OfflineMessage (id, userid, message) VALUES (5, 1, 'hello');
         CREATE VIEW Everybody AS SELECT * FROM User;
         CREATE INDEX by_hand ON User (password);",
    )
    .unwrap();
    old.pragma_update(None, "user_version", version as i64).unwrap();
    drop(old);
    let mut fixture = Fixture::at(directory);
    for (id, name, password) in [(1, "ann", "p1"), (3, "bob", "p3")] {
        let account = Account { name: name.into(), password: password.into() };
        assert_eq!(fixture.connection.account(id).unwrap(), Some(account));
    }
    assert_eq!(fixture.connection.page(1, 100).unwrap().messages, [(5, b"hello"[..].into())]);
    let friend = Friend { id: 3, name: "bob".into(), state: "offline" };
    assert_eq!(fixture.connection.friends(1).unwrap(), [friend]);
    assert_eq!(fixture.connection.groups(1).unwrap()[0].users[0].role, "creator");
    assert_eq!(fixture.write(&[claim_of(1), claim_of(3), register("ANN")])[..2], [Outcome::Done, Outcome::Done]);
    assert_eq!(fixture.user("new"), 91);
    assert_eq!(fixture.connection.load(1, 100).unwrap().dialect, None);
    fixture.one(Write::SetDialect { user: 1, dialect: Some("qt".into()) });
    // The next start changes nothing.
    let mut fixture = fixture.reopen();
    assert_eq!(fixture.connection.load(1, 100).unwrap().dialect.as_deref(), Some("qt"));
    let by_hand = rusqlite::Connection::open(fixture.path()).unwrap();
    let version: i64 = by_hand.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 4);
    let kept = "SELECT count(*) FROM sqlite_master WHERE name IN ('by_hand', 'Everybody')";
    assert_eq!(by_hand.query_row(kept, [], |row| row.get::<_, i64>(0)).unwrap(), 2);
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
        [
            Outcome::Joined { already: false, nodes: vec![] },
            Outcome::Joined { already: true, nodes: vec![] },
            Outcome::NoGroup,
            Outcome::Already
        ]
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
    fixture.write(&[claim_of(ann), claim_of(bob)]);
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
    let reader = open(&fixture.path(), READER_CACHE).unwrap();
    for sql in [FRIENDS, GROUPS, LISTED, MEMBERS, PAGE, DIALECT] {
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
        let error = open_at(&path).err().unwrap();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("chat.db.lock"), "{error}");
    }
    fixture.reopen();
}

/// What is in a folder, in order.
fn names_in(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// What a start at `path` says, which fails and leaves `folder` as it was.
#[track_caller]
fn refused(path: &Path, folder: &Path) -> String {
    let before = names_in(folder);
    let error = open_at(path).err().expect("a start that is refused");
    assert_eq!(names_in(folder), before, "{error}");
    // As the server shows it: with all its causes.
    let said = format!("{:#}", anyhow::Error::from(error));
    assert!(!said.contains(char::is_control), "{said:?}");
    let shown = Shown(path).to_string();
    assert_eq!(said.matches(&format!("sqlite:{shown}:")).count(), 1, "{said}");
    let cause = said.replacen(&shown, "", 1);
    assert!(!cause.contains("os error") || cause.matches("os error").count() == 1, "{said}");
    assert!(cause.contains("; "), "it does not say what to do: {said}");
    said
}

#[test]
fn what_is_not_this_servers_database_is_refused_and_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let path = folder.join("newer.db");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let before = names_in(folder);
    let error = open_at(&path).err().unwrap();
    assert!(matches!(error, OpenError::Newer { found: 7, .. }), "{error}");
    assert_eq!(names_in(folder), before);

    let path = folder.join("other.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE User (x)").unwrap();
    let before = names_in(folder);
    let error = open_at(&path).err().unwrap().to_string();
    assert!(error.contains("other.db") && error.contains("already exists"), "{error}");
    assert_eq!(names_in(folder), before);

    let path = folder.join("text.db");
    fs::write(&path, "not a database at all, but long enough to be taken for one".repeat(99)).unwrap();
    assert!(refused(&path, folder).contains("not a database"));
}

#[test]
fn a_path_that_can_be_no_database_is_one_clear_line_and_leaves_nothing() {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let inside = |name: &str| folder.join(name);
    fs::create_dir(inside("folder")).unwrap();
    fs::write(inside("file"), "x").unwrap();
    symlink(inside("nowhere"), inside("dangling")).unwrap();
    symlink(inside("circle"), inside("circle")).unwrap();
    symlink(inside("folder"), inside("to a folder")).unwrap();
    let _socket = UnixListener::bind(inside("socket")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, inside("pipe"), rustix::fs::Mode::RWXU).unwrap();
    fs::write(inside("lost.db-wal"), "the last writes").unwrap();
    fs::create_dir(inside("locked.db.lock")).unwrap();
    for (path, expected) in [
        (inside("folder"), "folder"),
        (inside("to a folder"), "folder"),
        (inside("new.db/"), "folder"),
        (inside("folder/."), "folder"),
        (inside("folder/.."), "folder"),
        (PathBuf::from("/"), "folder"),
        (PathBuf::from("."), "folder"),
        (PathBuf::from(".."), "folder"),
        (inside("missing/chat.db"), "missing does not exist"),
        (inside("missing/and/more/chat.db"), "more does not exist"),
        (inside("file/chat.db"), "os error 20"),
        (inside("dangling"), "nowhere"),
        (inside("dangling/chat.db"), "does not exist"),
        (inside("circle"), "os error 40"),
        (inside("circle/chat.db"), "os error 40"),
        (PathBuf::from("/dev/null"), "device"),
        (PathBuf::from("/dev/full"), "device"),
        (inside("socket"), "socket"),
        (inside("pipe"), "pipe"),
        (inside(&"n".repeat(248)), "at most 247"),
        (inside(&"n".repeat(300)), "at most 247"),
        (inside(&"f/".repeat(300)).join("chat.db"), "does not exist"),
        (inside("new\nline/chat.db"), "new\\nline does not exist"),
        (inside("lost.db"), "lost.db-wal"),
        (inside("locked.db"), "locked.db.lock"),
        (PathBuf::from("/proc/chat.db"), "/proc/chat.db"),
        (PathBuf::from(""), "no file"),
        (PathBuf::from(":memory:"), "memory"),
        (PathBuf::from("file:chat.db?mode=memory"), "URI"),
        (PathBuf::from("//chat.db"), "two slashes"),
        (inside("new.db?mode=rwc"), "options"),
    ] {
        let said = refused(&path, folder);
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(names_in(Path::new(".")).iter().filter(|name| name.contains("chat.db")).count(), 0);
    // Longer than what SQLite takes, although every name in it is short.
    let mut long = folder.join("long");
    while long.as_os_str().len() < 500 {
        long.push("l".repeat(100));
    }
    fs::create_dir_all(&long).unwrap();
    let said = refused(&long.join("chat.db"), &long);
    assert!(said.contains("at most 503"), "{said}");
}

#[test]
fn a_start_that_fails_takes_no_lock_file_from_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("text.db");
    fs::write(&path, "not a database at all, but long enough to be taken for one".repeat(99)).unwrap();
    fs::write(directory.path().join("text.db.lock"), "").unwrap();
    refused(&path, directory.path());
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

fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
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
        let error = fixture.connection.write(&batch).unwrap_err().to_string();
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
fn a_connection_outlives_the_store_without_hanging() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    let Fixture { mut connection, store, directory } = fixture;
    assert!(connection.account(ann).unwrap().is_some());
    drop(store);
    let error = connection.write(&[register("bob")]).unwrap_err().to_string();
    assert!(error.contains("closed"), "{error}");
    let error = connection.account(ann).unwrap_err().to_string();
    assert!(error.contains("closed"), "{error}");
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
    let [one, other] = [(); 2].map(|()| open(&fixture.path(), READER_CACHE).unwrap());
    let begin = |reader: &rusqlite::Connection| reader.execute_batch("BEGIN; SELECT count(*) FROM User").unwrap();
    let end = |reader: &rusqlite::Connection| reader.execute_batch("COMMIT").unwrap();
    begin(&one);
    // A reader that stays keeps the log from being emptied, but does not keep others from writing.
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

/// What is beside the database, but for the lock file, which stays.
fn beside(fixture: &Fixture) -> Vec<String> {
    names_in(fixture.directory.path()).into_iter().filter(|name| name != "chat.db" && name != "chat.db.lock").collect()
}

#[test]
fn the_end_leaves_one_file_with_everything_in_it_whoever_has_read() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    fixture.keep(&[ann], "hello");
    let mut others: Vec<_> = (0..8).map(|_| fixture.store.connection()).collect();
    thread::scope(|scope| {
        for connection in &mut others {
            // Readers that go on for as long as they are let.
            scope.spawn(move || while connection.page(ann, 100).is_ok() {});
        }
        fixture.store.release_all().unwrap();
        fixture.store.close().unwrap();
    });
    assert_eq!(beside(&fixture), [] as [&str; 0]);
    assert!(fixture.store.close().unwrap_err().to_string().contains("closed"));
    let copy = fixture.directory.path().join("copy.db");
    fs::copy(fixture.path(), &copy).unwrap();
    let copied: String = rusqlite::Connection::open(&copy)
        .unwrap()
        .query_row("SELECT message FROM OfflineMessage", [], |row| row.get(0))
        .unwrap();
    assert_eq!(copied, "hello");
}

#[test]
fn the_end_leaves_one_file_also_after_a_failure_and_after_a_crash() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    fixture.store.fault.set("PRAGMA query_only = ON");
    fixture.connection.write(&[keep(&[ann], "lost")]).unwrap_err();
    // As a crash leaves them.
    let crashed = fixture.directory.path().join("crashed.db");
    for suffix in ["", "-wal"] {
        fs::copy(sidecar(&fixture.path(), suffix), sidecar(&crashed, suffix)).unwrap();
    }
    fixture.store.close().unwrap();
    let store = open_at(&crashed).unwrap();
    assert!(store.connection().account(ann).unwrap().is_some());
    store.close().unwrap();
    assert_eq!(beside(&fixture), ["crashed.db", "crashed.db.lock"]);
}

#[test]
fn the_end_says_who_keeps_the_log_there() {
    for (reads, expected) in [(true, "belong together"), (false, "everything is in it")] {
        let mut fixture = Fixture::new();
        let outside = rusqlite::Connection::open(fixture.path()).unwrap();
        outside.execute_batch("BEGIN; SELECT count(*) FROM User").unwrap();
        fixture.user("ann");
        if !reads {
            outside.execute_batch("COMMIT").unwrap();
        }
        let error = fixture.store.close().unwrap_err().to_string();
        assert!(error.contains("another process") && error.contains("chat.db-wal"), "{error}");
        assert!(error.contains(expected), "{error}");
        drop(outside);
        // Nothing is lost.
        assert!(fixture.reopen().connection.account(1).unwrap().is_some());
    }
}

/// Something happens to the file: every ack that was given holds, no other is, and what comes back is
/// left alone.
#[track_caller]
fn notices(harm: impl Fn(&Fixture), mend: impl Fn(&Fixture), expected: &str) {
    for idle in [false, true] {
        let mut fixture = Fixture::new();
        let ann = fixture.user("ann");
        fixture.keep(&[ann], "before");
        assert_eq!(fixture.page(ann, 100).0, ["before"]);
        harm(&fixture);
        let before = names_in(fixture.directory.path());
        let error = if idle {
            // Nothing is written, and it is noticed all the same.
            let mut error = None;
            wait_for(|| {
                error = fixture.connection.account(ann).err();
                matches!(error, Some(StoreError::Gone(_)))
            });
            error.unwrap()
        } else {
            fixture.connection.write(&[keep(&[ann], "refused")]).unwrap_err()
        };
        assert!(matches!(error, StoreError::Gone(_)) && error.to_string().contains(expected), "{error}");
        mend(&fixture);
        let size = fs::metadata(fixture.path()).unwrap().len();
        fixture.connection.write(&[keep(&[ann], "refused")]).unwrap_err();
        fixture.connection.account(ann).unwrap_err();
        assert!(matches!(fixture.store.release_all().unwrap_err(), StoreError::Gone(_)));
        assert!(matches!(fixture.store.close().unwrap_err(), StoreError::Gone(_)));
        assert_eq!(fs::metadata(fixture.path()).unwrap().len(), size, "it was written to");
        harm_is_all(&fixture, &before);
        let mut fixture = fixture.reopen();
        assert_eq!(fixture.page(ann, 100).0, ["before"]);
        fixture.keep(&[ann], "after");
        assert_eq!(fixture.page(ann, 100).0, ["before", "after"]);
    }
}

/// No file was made that was not there when the harm was done or mended.
fn harm_is_all(fixture: &Fixture, before: &[String]) {
    for name in names_in(fixture.directory.path()) {
        assert!(before.contains(&name) || name.starts_with("chat.db"), "{name}: {before:?}");
    }
}

fn rename(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap();
}

#[test]
fn a_file_that_is_moved_is_noticed_and_not_written_when_it_is_back() {
    let away = |fixture: &Fixture| sidecar(&fixture.path(), ".away");
    notices(|f| rename(&f.path(), &away(f)), |f| rename(&away(f), &f.path()), "moved or deleted");
}

#[test]
fn what_was_acked_goes_along_with_a_file_that_is_moved_also_after_a_failure() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    fixture.keep(&[ann], "before");
    fixture.store.fault.set("PRAGMA query_only = ON");
    fixture.connection.write(&[keep(&[ann], "refused")]).unwrap_err();
    let moved = tempfile::tempdir().unwrap();
    rename(&fixture.path(), &moved.path().join("chat.db"));
    let error = fixture.connection.write(&[keep(&[ann], "refused")]).unwrap_err();
    assert!(matches!(error, StoreError::Gone(_)), "{error}");
    // Without the log, which stayed where it was.
    assert_eq!(Fixture::at(moved).page(ann, 100).0, ["before"]);
}

#[test]
fn a_file_that_is_replaced_is_noticed() {
    let away = |fixture: &Fixture| sidecar(&fixture.path(), ".away");
    let replace = |fixture: &Fixture| {
        fs::copy(fixture.path(), sidecar(&fixture.path(), ".new")).unwrap();
        rename(&fixture.path(), &away(fixture));
        rename(&sidecar(&fixture.path(), ".new"), &fixture.path());
    };
    notices(replace, |f| rename(&away(f), &f.path()), "another file");
}

#[test]
fn a_reader_takes_no_answer_from_another_file() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    let mut fresh = fixture.store.connection();
    let other = tempfile::tempdir().unwrap();
    drop(open_at(&other.path().join("chat.db")).unwrap());
    rename(&other.path().join("chat.db"), &fixture.path());
    let error = fresh.account(ann).expect_err("nobody is an answer, too");
    assert!(error.to_string().contains("another file"), "{error}");
}

#[test]
fn a_log_or_an_index_that_is_deleted_or_replaced_is_noticed() {
    for suffix in ["-wal", "-shm"] {
        let beside = |fixture: &Fixture| sidecar(&fixture.path(), suffix);
        notices(|f| fs::remove_file(beside(f)).unwrap(), |_| (), suffix);
        let replace = |fixture: &Fixture| {
            fs::write(sidecar(&fixture.path(), ".new"), "").unwrap();
            rename(&sidecar(&fixture.path(), ".new"), &beside(fixture));
        };
        notices(replace, |_| (), suffix);
    }
}

#[test]
fn a_file_that_is_deleted_is_noticed_and_none_is_put_in_its_place() {
    let mut fixture = Fixture::new();
    let ann = fixture.user("ann");
    fs::remove_file(fixture.path()).unwrap();
    let error = fixture.connection.write(&[keep(&[ann], "refused")]).unwrap_err().to_string();
    assert!(error.contains("moved or deleted"), "{error}");
    fixture.connection.account(ann).unwrap_err();
    fixture.store.close().unwrap_err();
    assert!(!fixture.path().exists());
    // And its log is none that could be taken for that of another file.
    assert!(fs::metadata(sidecar(&fixture.path(), "-wal")).map_or(0, |log| log.len()) == 0);
    assert_eq!(fixture.reopen().user("bob"), 1);
}

#[test]
fn a_folder_that_is_moved_or_deleted_is_noticed() {
    for deleted in [false, true] {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("data");
        fs::create_dir(&folder).unwrap();
        let store = open_at(&folder.join("chat.db")).unwrap();
        let mut connection = store.connection();
        connection.write(&[register("ann")]).unwrap();
        let away = outer.path().join("away");
        if deleted {
            fs::remove_dir_all(&folder).unwrap()
        } else {
            rename(&folder, &away)
        }
        let error = connection.write(&[register("bob")]).unwrap_err();
        assert!(matches!(error, StoreError::Gone(_)), "{error}");
        store.close().unwrap_err();
        assert!(!folder.exists());
        drop((connection, store));
        if !deleted {
            // Where it is now, everything is in it.
            let moved = open_at(&away.join("chat.db")).unwrap();
            assert!(moved.connection().account(1).unwrap().is_some());
        }
    }
}

#[test]
fn a_link_that_leads_elsewhere_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let [link, one, other] = ["link.db", "one.db", "other.db"].map(|name| directory.path().join(name));
    drop(open_at(&other).unwrap());
    fs::write(&one, "").unwrap();
    std::os::unix::fs::symlink(&one, &link).unwrap();
    let store = open_at(&link).unwrap();
    let mut connection = store.connection();
    connection.write(&[register("ann")]).unwrap();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&other, &link).unwrap();
    let error = connection.write(&[register("bob")]).unwrap_err();
    assert!(matches!(error, StoreError::Gone(_)), "{error}");
    drop((connection, store));
    let other = open_at(&other).unwrap();
    assert_eq!(other.connection().account(1).unwrap(), None);
}

#[test]
fn a_file_that_is_emptied_is_noticed_and_its_log_is_kept() {
    let mut fixture = Fixture::new();
    fixture.user("ann");
    fs::write(fixture.path(), "").unwrap();
    let error = fixture.connection.write(&[register("bob")]).unwrap_err().to_string();
    assert!(error.contains("emptied"), "{error}");
    let Fixture { connection, store, directory } = fixture;
    drop((connection, store));
    let said = refused(&directory.path().join("chat.db"), directory.path());
    assert!(said.contains("chat.db-wal"), "{said}");
}

/// Stores messages for `users` and removes them again; returns the file's size in between.
fn store_and_deliver(fixture: &mut Fixture, users: &[UserId], each: usize) -> u64 {
    let messages: Vec<Arc<[u8]>> = (0..each).map(|_| "x".repeat(1000).into_bytes().into()).collect();
    for &to in users {
        fixture.write(&[Write::Keep(vec![Parcel { to, messages: messages.clone(), past: None }])]);
    }
    let log = sidecar(&fixture.path(), "-wal");
    let size = fs::metadata(fixture.path()).unwrap().len() + fs::metadata(log).unwrap().len();
    for &user in users {
        fixture.one(claim_of(user));
        loop {
            let page = fixture.connection.page(user, 1 << 18).unwrap();
            let rows: Vec<_> = page.messages.iter().map(|(row, _)| *row).collect();
            if rows.is_empty() {
                break;
            }
            fixture.write(&[Write::Remove { user, epoch: 1, rows }]);
        }
    }
    size
}

#[test]
fn space_is_given_back_after_a_backlog_while_others_write_and_read() {
    let mut fixture = Fixture::new();
    let users: Vec<_> = (0..20).map(|n| fixture.user(&n.to_string())).collect();
    let reader = fixture.user("a reader");
    // These stand behind the others in the file, and so have to be moved.
    let full = store_and_deliver(&mut fixture, &users, 1000);
    for n in 0..100 {
        fixture.keep(&[reader], &n.to_string());
    }
    assert!(full > 20 << 20, "{full}");
    let size = || ["", "-wal"].map(|suffix| fs::metadata(sidecar(&fixture.path(), suffix)).unwrap().len());
    let mut connection = fixture.store.connection();
    let mut longest = Duration::ZERO;
    wait_for(|| {
        let began = Instant::now();
        connection.write(&[claim_of(reader), Write::Release { user: reader, epoch: 1 }]).unwrap();
        longest = longest.max(began.elapsed());
        thread::sleep(Duration::from_millis(30));
        size()[0] < 3 << 20
    });
    // A step takes milliseconds; the machine may be busy.
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    wait_for(|| size()[1] == 0);
    let kept: Vec<_> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(fixture.page(reader, usize::MAX).0, kept);
    let check: String = rusqlite::Connection::open(fixture.path())
        .unwrap()
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
}

#[test]
fn space_is_given_back_also_while_the_writer_is_never_idle() {
    let mut fixture = Fixture::new();
    let users: Vec<_> = (0..5).map(|n| fixture.user(&n.to_string())).collect();
    store_and_deliver(&mut fixture, &users, 1000);
    let free = || -> i64 {
        let outside = rusqlite::Connection::open(fixture.path()).unwrap();
        outside.pragma_query_value(None, "freelist_count", |row| row.get(0)).unwrap()
    };
    let before = free();
    let mut connection = fixture.store.connection();
    wait_for(|| {
        for _ in 0..50 {
            connection.write(&[Write::Release { user: 1, epoch: 1 }]).unwrap();
        }
        free() < before - 64
    });
}

#[test]
fn a_file_from_before_is_written_anew_once_and_shrinks_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("chat.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    old.execute_batch(MIGRATIONS[0]).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    old.execute_batch("INSERT INTO User (name, password, namekey) VALUES ('ann', 'x', 'ann')").unwrap();
    old.execute_batch("UPDATE sqlite_sequence SET seq = 41").unwrap();
    drop(old);
    let mut fixture = Fixture::at(directory);
    assert_eq!(fixture.connection.account(1).unwrap().unwrap().name, "ann");
    assert_eq!(fixture.user("bob"), 42, "ids are not used again");
    let full = store_and_deliver(&mut fixture, &[1], 8000);
    let path = fixture.path();
    wait_for(|| fs::metadata(&path).unwrap().len() < full / 2);
}

/// What all refusals have in common: everything else of the same round is done, in its order.
#[track_caller]
fn refused_alone(sql: &str, refused: &[Write], expected: &str) {
    let mut fixture = Fixture::new();
    let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
    fixture.group(ann, "first");
    fixture.keep(&[ann], "first");
    let outside = rusqlite::Connection::open(fixture.path()).unwrap();
    outside.execute_batch(sql).unwrap();
    for write in refused {
        let gate = fixture.store.fault.0.lock().unwrap();
        let queue = &fixture.store.queue;
        let submit = |batch: Vec<Write>| {
            let (answer, answered) = bounded(1);
            queue.0.send(Job { work: Work::Batch(batch), answer }).unwrap();
            answered
        };
        let text = |n: u32| format!("{n}");
        // The writer comes by with the first alone; all others are one round.
        let first = submit(vec![claim_of(bob)]);
        wait_for(|| queue.0.is_empty());
        let before = submit(vec![
            Write::AddFriend { user: ann, friend: bob },
            Write::SetPassword { user: ann, password: "new".into() },
        ]);
        let among = submit(vec![
            Write::Release { user: bob, epoch: 1 },
            write.clone(),
            Write::SetPassword { user: bob, password: text(1) },
            write.clone(),
        ]);
        let behind = submit(vec![Write::SetPassword { user: ann, password: text(2) }]);
        drop(gate);
        let answer = |answered: crossbeam_channel::Receiver<_>| -> Vec<Outcome> {
            let answer: Result<_, StoreError> = answered.recv_timeout(Duration::from_secs(30)).unwrap();
            answer.unwrap()
        };
        assert_eq!(answer(first), [Outcome::Done]);
        assert!(matches!(answer(before)[..], [Outcome::Done | Outcome::Already, Outcome::Done]));
        let among = answer(among);
        assert_eq!((&among[0], &among[2]), (&Outcome::Done, &Outcome::Done));
        for outcome in [&among[1], &among[3]] {
            match outcome {
                Outcome::Refused(why) => assert!(why.contains(expected), "{why}"),
                Outcome::Kept(kept) => assert_eq!(kept[..], [Kept::Refused(0)]),
                other => panic!("{write:?}: {other:?}"),
            }
        }
        assert_eq!(answer(behind), [Outcome::Done]);
        assert_eq!(fixture.connection.account(ann).unwrap().unwrap().password, "2");
        assert_eq!(fixture.connection.account(bob).unwrap().unwrap().password, "1");
        assert_eq!(fixture.page(ann, 1000).0, ["first"]);
        assert_eq!(fixture.connection.groups(ann).unwrap().len(), 1);
    }
}

#[test]
fn a_write_for_which_there_is_no_id_is_refused_alone() {
    for last in ["2147483647", "4294967295", "9223372036854775807"] {
        let used_up = format!("UPDATE sqlite_sequence SET seq = {last} WHERE name IN ('User', 'AllGroup')");
        refused_alone(&used_up, &[register("eve"), create_group(1, "second")], "no ids are left");
    }
    let used_up = "UPDATE sqlite_sequence SET seq = 9223372036854775807 WHERE name = 'OfflineMessage'";
    refused_alone(used_up, &[keep(&[1], "second")], "no ids are left");
}

#[test]
fn a_write_that_a_constraint_or_a_trigger_refuses_is_refused_alone() {
    for how in ["ABORT", "FAIL", "ROLLBACK"] {
        let trigger = format!(
            "CREATE TRIGGER no_spam BEFORE INSERT ON OfflineMessage WHEN NEW.message LIKE '%spam%'
             BEGIN SELECT RAISE({how}, 'no spam here'); END"
        );
        refused_alone(&trigger, &[keep(&[1], "spam")], "no spam here");
    }
    let stale = "INSERT INTO GroupUser (groupid, userid) VALUES (2, 1)";
    refused_alone(stale, &[create_group(1, "second")], "UNIQUE");
}

#[test]
fn of_several_messages_in_one_write_the_refused_one_alone_is_missing() {
    let mut fixture = Fixture::new();
    let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
    let outside = rusqlite::Connection::open(fixture.path()).unwrap();
    let trigger = "CREATE TRIGGER quiet BEFORE INSERT ON OfflineMessage WHEN NEW.userid = 1
                   BEGIN SELECT RAISE(ABORT, 'quiet'); END";
    outside.execute_batch(trigger).unwrap();
    let kept = fixture.one(keep(&[bob, ann, bob + 1, bob], "hello"));
    let Outcome::Kept(kept) = kept else { panic!("{kept:?}") };
    assert!(matches!(kept[..], [Kept::Stored(_), Kept::Refused(0), Kept::NoUser, Kept::Stored(_)]), "{kept:?}");
    assert_eq!(fixture.page(bob, 1000).0, ["hello", "hello"]);
    // Many that are refused cost a commit, not one for each.
    let before = fixture.store.commits();
    fixture.write(&vec![keep(&[ann, bob], "more"); 500]);
    assert_eq!(fixture.store.commits() - before, 1);
}

#[test]
fn of_a_parcel_the_messages_before_the_refused_one_are_stored_and_those_behind_it_are_not_tried() {
    for how in ["ABORT", "ROLLBACK"] {
        let mut fixture = Fixture::new();
        let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
        let outside = rusqlite::Connection::open(fixture.path()).unwrap();
        let trigger = format!(
            "CREATE TRIGGER no_spam BEFORE INSERT ON OfflineMessage WHEN NEW.message = 'spam'
             BEGIN SELECT RAISE({how}, 'no spam here'); END"
        );
        outside.execute_batch(&trigger).unwrap();
        let parcel = |to, texts: &[&str]| {
            let messages = texts.iter().map(|text| text.as_bytes().into()).collect();
            Parcel { to, messages, past: None }
        };
        let parcels = [
            parcel(bob, &["1", "2"]),
            parcel(ann, &["3", "4", "spam", "5", "spam"]),
            parcel(bob, &[]),
            parcel(bob + 1, &["6", "7"]),
            parcel(ann, &["spam", "8"]),
            parcel(bob, &["9"]),
        ];
        let Outcome::Kept(kept) = fixture.one(Write::Keep(parcels.to_vec())) else { panic!("{how}") };
        let [
            Kept::Stored(first),
            Kept::Refused(2),
            Kept::Stored(0),
            Kept::NoUser,
            Kept::Refused(0),
            Kept::Stored(last),
        ] = kept[..]
        else {
            panic!("{how}: {kept:?}");
        };
        let page = fixture.connection.page(bob, 100).unwrap();
        assert_eq!((page.messages[0].0, page.messages[2].0), (first, last));
        assert_eq!(fixture.page(bob, 100).0, ["1", "2", "9"]);
        assert_eq!(fixture.page(ann, 100).0, ["3", "4"]);
    }
}
