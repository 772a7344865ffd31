//! The MySQL store, against a real MariaDB: what it stores and returns, what it does when the
//! database is away or does not answer, and the tables of old servers.

mod support;

use std::collections::HashMap;
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use chat_server::store::mysql::{MySqlStore, OpenError, Options};
use chat_server::store::{
    Account, Claim, Connection, Entry, Friend, Group, GroupId, Holder, Kept, Member, Membership, NodeId, Outcome,
    Parcel, Quota, Quotas, RowId, Store, StoreError, UserId, Write,
};
use mysql::Conn;
use mysql::prelude::Queryable;
use serde_json::json;
use support::{COPY, Client, Launch, MariaDb, REFERENCE, Redis, Rng, Server, eventually, listed, refused_start};

/// The server that tests share while any of them runs; each has a database of its own.
fn shared() -> Arc<MariaDb> {
    static SHARED: Mutex<Weak<MariaDb>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(MariaDb::start());
        *shared = Arc::downgrade(&server);
        server
    })
}

fn options(url: String, node: u64) -> Options {
    Options {
        url,
        node: NodeId(node),
        charset: "utf8mb4".into(),
        mixed: false,
        single_node: false,
        quotas: Quotas::default(),
    }
}

/// One node's store, with a connection.
struct Node {
    id: NodeId,
    store: MySqlStore,
    connection: Box<dyn Connection>,
}

impl Node {
    fn open(options: Options) -> Node {
        let node = Node::not_enlisted(options);
        if let Some(mut membership) = node.store.membership() {
            membership.enlist().unwrap();
        }
        node
    }

    fn not_enlisted(options: Options) -> Node {
        let id = options.node;
        let store = MySqlStore::open(options).unwrap_or_else(|error| panic!("{error}"));
        Node { id, connection: store.connection(), store }
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

    fn users<const N: usize>(&mut self, names: [&str; N]) -> [UserId; N] {
        names.map(|name| self.user(name))
    }

    fn group(&mut self, creator: UserId, name: &str) -> GroupId {
        match self.one(create_group(creator, name)) {
            Outcome::Id(id) => id,
            other => panic!("{name}: {other:?}"),
        }
    }

    fn keep(&mut self, to: &[UserId], message: &str) -> Vec<Kept> {
        kept(self.one(keep(to, message)))
    }

    fn page(&mut self, user: UserId, max_bytes: usize) -> (Vec<String>, bool) {
        let page = self.connection.page(user, max_bytes).unwrap();
        let text = |(_, message): &(RowId, Box<[u8]>)| String::from_utf8(message.to_vec()).unwrap();
        (page.messages.iter().map(text).collect(), page.more)
    }

    fn texts(&mut self, user: UserId) -> Vec<String> {
        let (texts, more) = self.page(user, usize::MAX);
        assert!(!more);
        texts
    }

    fn membership(&self) -> Box<dyn Membership> {
        self.store.membership().expect("it shares its database")
    }

    /// Whether it was marked, and its users set offline, by another one.
    fn end_by(&self, other: &Node) -> u64 {
        let mut membership = other.membership();
        let looks = looks(&mut *membership, self.id);
        assert!(membership.mark(self.id, looks).unwrap());
        membership.free(self.id).unwrap()
    }

    fn claimed_as(&self, epoch: u64) -> Holder {
        Holder::Node(Claim { node: self.id, epoch })
    }
}

/// What others see of a node.
fn entry(membership: &mut dyn Membership, node: NodeId) -> Option<Entry> {
    membership.nodes().unwrap().into_iter().find(|entry| entry.node == node)
}

fn looks(membership: &mut dyn Membership, node: NodeId) -> u64 {
    entry(membership, node).map_or(0, |entry| entry.looks)
}

fn joined(already: bool, nodes: &[u64]) -> Outcome {
    Outcome::Joined { already, nodes: nodes.iter().copied().map(NodeId).collect() }
}

/// A database of its own, and a node on it.
struct Fixture {
    node: Node,
    database: String,
    server: Arc<MariaDb>,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::on(shared())
    }

    fn on(server: Arc<MariaDb>) -> Fixture {
        let database = server.new_database();
        Fixture { node: Node::open(options(server.url(&database), 1)), database, server }
    }

    /// A further node on the same database.
    fn node(&self, id: u64) -> Node {
        Node::open(options(self.server.url(&self.database), id))
    }

    /// A connection like those of C++ servers.
    fn foreign(&self) -> Conn {
        Conn::new(self.server.url(&self.database).as_str()).unwrap()
    }
}

fn register(name: &str) -> Write {
    Write::Register { name: name.into(), password: format!("secret of {name}") }
}

fn create_group(creator: UserId, name: &str) -> Write {
    Write::CreateGroup { creator, name: name.into(), description: format!("about {name}") }
}

fn claim(user: UserId, epoch: u64) -> Write {
    Write::Claim { user, epoch, past: None }
}

fn parcel(to: UserId, messages: &[&str]) -> Parcel {
    Parcel { to, messages: messages.iter().map(|message| message.as_bytes().into()).collect(), past: None }
}

fn keep(to: &[UserId], message: &str) -> Write {
    Write::Keep(to.iter().map(|&to| parcel(to, &[message])).collect())
}

#[track_caller]
fn kept(outcome: Outcome) -> Vec<Kept> {
    match outcome {
        Outcome::Kept(kept) => kept,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn row(kept: Kept) -> RowId {
    match kept {
        Kept::Stored(row) => row,
        other => panic!("{other:?}"),
    }
}

// ---- What it stores and returns

#[test]
fn an_account_is_registered_once_and_its_password_replaced() {
    let mut fixture = Fixture::new();
    let node = &mut fixture.node;
    let ann = node.user("Ann");
    let account = node.connection.account(ann).unwrap();
    assert_eq!(account, Some(Account { name: "Ann".into(), password: "secret of Ann".into() }));
    assert_eq!(node.one(register("Ann")), Outcome::Already);
    assert_eq!(node.one(Write::SetPassword { user: ann, password: "new".into() }), Outcome::Done);
    assert_eq!(node.connection.account(ann).unwrap().unwrap().password, "new");
    assert_eq!(node.connection.account(ann + 1000).unwrap(), None);
    assert_eq!(node.write(&[]), []);
}

#[test]
fn what_a_client_speaks_is_remembered_replaced_and_forgotten() {
    let mut fixture = Fixture::new();
    let [ann, bob] = fixture.node.users(["ann", "bob"]);
    let mut other = fixture.node(2);
    let node = &mut fixture.node;
    let set = |user, dialect: Option<&str>| Write::SetDialect { user, dialect: dialect.map(Into::into) };
    let spoken = |node: &mut Node, user| node.connection.load(user, 100).unwrap().dialect;
    assert_eq!(spoken(node, ann), None);
    let longest = "x".repeat(255);
    for dialect in [None, Some("qt"), Some("qt"), Some("own 1 2 -"), Some(""), Some(&*longest), None, None] {
        assert_eq!(node.one(set(ann, dialect)), Outcome::Done);
        assert_eq!((spoken(node, ann).as_deref(), spoken(node, bob)), (dialect, None));
        assert_eq!(spoken(&mut other, ann).as_deref(), dialect);
    }
    assert_eq!(node.write(&[set(ann, Some("1")), set(bob, Some("2")), set(ann, None)]), [const { Outcome::Done }; 3]);
    assert_eq!((spoken(node, ann), spoken(node, bob).as_deref()), (None, Some("2")));
    // Whoever has the user, it is remembered; and where there is no account, there is nothing to remember it with.
    assert_eq!(other.write(&[claim(bob, 1), set(bob, Some("3"))]), [const { Outcome::Done }; 2]);
    assert_eq!(node.write(&[set(bob, Some("4")), set(bob + 1, Some("5"))]), [const { Outcome::Done }; 2]);
    assert_eq!((spoken(&mut other, bob).as_deref(), spoken(node, bob + 1)), (Some("4"), None));
    assert_eq!(node.connection.account(bob + 1).unwrap(), None);
    assert_eq!(node.one(claim(bob, 1)), Outcome::InUse(other.claimed_as(1)));
}

#[test]
fn names_are_unique_without_regard_to_case_and_kept_as_they_were_given() {
    let mut fixture = Fixture::new();
    let node = &mut fixture.node;
    let ann = node.user("Ünïcødé Жора ΣΑΣ");
    assert_eq!(node.one(register("üNÏCØDÉ жОРА σας")), Outcome::Already);
    // Spaces at the end make no other name; emoji and accents do, each its own.
    assert_eq!(node.one(register("ünïcødé жора σας ")), Outcome::Already);
    node.users(["😀", "😁", "张三", "张三丰", "李", "unïcødé Жора ΣΑΣ"]);
    node.group(ann, "Élan");
    assert_eq!(node.one(create_group(ann, "éLAN")), Outcome::Already);
    assert_eq!(node.connection.account(ann).unwrap().unwrap().name, "Ünïcødé Жора ΣΑΣ");
    node.group(ann, "张三");
}

#[test]
fn a_claim_is_one_nodes_until_it_is_given_back_or_past() {
    let fixture = Fixture::new();
    let [mut one, mut two] = [fixture.node(11), fixture.node(12)];
    let ann = one.user("ann");
    assert_eq!(one.one(claim(ann, 5)), Outcome::Done);
    assert_eq!(one.one(claim(ann, 5)), Outcome::Done, "twice by one epoch is once");
    assert_eq!(one.one(claim(ann, 6)), Outcome::InUse(one.claimed_as(5)));
    assert_eq!(two.one(claim(ann, 5)), Outcome::InUse(one.claimed_as(5)));
    // Giving back another's claim, or an old one, gives nothing back.
    assert_eq!(two.one(Write::Release { user: ann, epoch: 5 }), Outcome::Done);
    assert_eq!(one.one(Write::Release { user: ann, epoch: 4 }), Outcome::Done);
    let past = |epoch, past| Write::Claim { user: ann, epoch, past: Some(past) };
    assert_eq!(two.one(past(1, one.claimed_as(4))), Outcome::InUse(one.claimed_as(5)));
    assert_eq!(two.one(past(1, one.claimed_as(5))), Outcome::Done);
    assert_eq!(one.one(Write::Release { user: ann, epoch: 5 }), Outcome::Done);
    assert_eq!(one.one(claim(ann, 7)), Outcome::InUse(two.claimed_as(1)));
    assert_eq!(two.one(Write::Release { user: ann, epoch: 1 }), Outcome::Done);
    assert_eq!(one.one(claim(ann, 8)), Outcome::Done);
    assert_eq!(one.one(claim(ann + 1000, 9)), Outcome::NoUser);
}

#[test]
fn a_cpp_servers_user_is_foreign_and_state_stays_true_for_it() {
    let Fixture { mut node, database, server } = Fixture::new();
    let mut foreign = Conn::new(server.url(&database).as_str()).unwrap();
    let ann = node.user("ann");
    let mut state = || foreign.query_first::<String, _>("SELECT state FROM User WHERE name = 'ann'").unwrap().unwrap();
    assert_eq!(state(), "offline");
    node.one(claim(ann, 1));
    assert_eq!(state(), "online");
    node.one(Write::Release { user: ann, epoch: 1 });
    assert_eq!(state(), "offline");
    foreign.query_drop("UPDATE User SET state = 'online' WHERE name = 'ann'").unwrap();
    assert_eq!(node.one(claim(ann, 2)), Outcome::InUse(Holder::Foreign));
    assert_eq!(node.keep(&[ann], "{}"), [Kept::Elsewhere(Holder::Foreign)]);
    let past = Some(Holder::Foreign);
    let parcels = vec![Parcel { past, ..parcel(ann, &["{}"]) }];
    let kept = kept(node.one(Write::Keep(parcels)));
    assert!(matches!(kept[..], [Kept::Past(1..)]), "{kept:?}");
    assert_eq!(node.one(Write::Claim { user: ann, epoch: 2, past }), Outcome::Done);
    // A C++ server's end sets all users offline. The claim holds, and is made visible again.
    foreign.query_drop("UPDATE User SET state = 'offline'").unwrap();
    assert_eq!(node.one(claim(ann, 3)), Outcome::InUse(node.claimed_as(2)));
    let bob = node.user("bob");
    node.one(Write::AddFriend { user: bob, friend: ann });
    assert_eq!(node.connection.friends(bob).unwrap()[0].state, "online");
    let mut membership = node.membership();
    assert_eq!((membership.reassert().unwrap(), membership.reassert().unwrap()), (1, 0));
    assert_eq!(
        foreign.query_first::<String, _>("SELECT state FROM User WHERE name = 'ann'").unwrap().unwrap(),
        "online"
    );
}

#[test]
fn the_roll_tells_who_has_users_and_sets_a_dead_nodes_users_offline() {
    let fixture = Fixture::new();
    let [mut one, mut two] = [fixture.node(u64::MAX >> 1), fixture.node(12)];
    let names: Vec<_> = (0..1203).map(|n| register(&format!("user {n}"))).collect();
    let users: Vec<UserId> = one.write(&names).iter().map(|o| if let Outcome::Id(id) = o { *id } else { 0 }).collect();
    let (of_one, of_two) = users.split_at(1201);
    one.write(&of_one.iter().map(|&user| claim(user, u64::from(user) << 32)).collect::<Vec<_>>());
    two.write(&of_two.iter().map(|&user| claim(user, 3)).collect::<Vec<_>>());
    let (mut of_one, mut of_two) = (one.membership(), two.membership());
    let seen = |node, looks, marked, has_claims| Entry { node, looks, marked, has_claims };
    let mut nodes = of_two.nodes().unwrap();
    nodes.sort_unstable_by_key(|entry| entry.node);
    assert_eq!(nodes, [seen(NodeId(1), 0, false, false), seen(one.id, 0, false, true)]);
    assert_eq!(of_two.free(one.id).unwrap(), 0, "nobody has marked it");
    assert!(of_two.mark(one.id, 0).unwrap());
    assert_eq!(entry(&mut *of_two, one.id), Some(seen(one.id, 0, true, true)));
    assert_eq!((of_two.free(one.id).unwrap(), of_two.free(one.id).unwrap()), (1201, 0));
    assert_eq!(entry(&mut *of_two, one.id), None, "it is struck off");
    assert!(matches!(of_one.look(), Err(StoreError::Marked)), "and still marked");
    assert_eq!(two.one(claim(users[0], 4)), Outcome::Done);
    two.store.release_all().unwrap();
    assert_eq!(fixture.node.membership().nodes().unwrap(), []);
    let mut three = fixture.node(13);
    assert_eq!(three.one(claim(users[1202], 1)), Outcome::Done);
}

#[test]
fn a_node_that_is_alone_begins_with_nobody_online_and_others_leave_claims_alone() {
    let fixture = Fixture::new();
    let mut one = fixture.node(11);
    let [ann, bob] = one.users(["ann", "bob"]);
    one.one(claim(ann, 1));
    fixture.foreign().query_drop("UPDATE User SET state = 'online' WHERE name = 'bob'").unwrap();
    let mut two = fixture.node(12);
    assert_eq!(two.one(claim(ann, 1)), Outcome::InUse(one.claimed_as(1)));
    assert_eq!(two.one(claim(bob, 1)), Outcome::InUse(Holder::Foreign));
    let mut three = Node::open(Options { single_node: true, ..options(fixture.server.url(&fixture.database), 13) });
    assert_eq!(three.write(&[claim(ann, 1), claim(bob, 1)]), [Outcome::Done, Outcome::Done]);
}

#[test]
fn friends_go_one_way_and_are_listed_by_id() {
    let mut fixture = Fixture::new();
    let node = &mut fixture.node;
    let [ann, bob, eve] = node.users(["ann", "bob", "eve"]);
    let add = |friend| Write::AddFriend { user: ann, friend };
    assert_eq!(
        node.write(&[add(eve), add(bob), add(bob), add(eve + 1000), claim(bob, 1)]),
        [Outcome::Done, Outcome::Done, Outcome::Already, Outcome::NoUser, Outcome::Done]
    );
    let friends = node.connection.friends(ann).unwrap();
    let friend = |id, name: &str, state| Friend { id, name: name.into(), state };
    assert_eq!(friends, [friend(bob, "bob", "online"), friend(eve, "eve", "offline")]);
    assert_eq!(node.connection.friends(bob).unwrap(), []);
}

#[test]
fn a_group_has_its_creator_and_those_who_join() {
    let mut fixture = Fixture::new();
    let node = &mut fixture.node;
    let [ann, bob] = node.users(["ann", "bob"]);
    let group = node.group(bob, "readers");
    let join = |group| Write::JoinGroup { user: ann, group };
    assert_eq!(
        node.write(&[join(group), join(group), join(group + 1000), create_group(ann, "Readers")]),
        [joined(false, &[]), joined(true, &[]), Outcome::NoGroup, Outcome::Already]
    );
    assert_eq!(node.connection.members(group).unwrap(), Some(vec![ann, bob]));
    assert_eq!(node.connection.members(group + 1000).unwrap(), None);
    let member = |id, name: &str, role| Member { id, name: name.into(), state: "offline", role };
    let listed = Group {
        id: group,
        groupname: "readers".into(),
        groupdesc: "about readers".into(),
        users: vec![member(ann, "ann", "normal"), member(bob, "bob", "creator")],
        members: 2,
    };
    let second = node.group(ann, "writers");
    let groups = node.connection.groups(ann).unwrap();
    assert_eq!(groups[0], listed);
    assert_eq!((groups.len(), groups[1].id), (2, second));
    assert_eq!(node.connection.groups(bob).unwrap(), [listed]);
}

#[test]
fn a_large_group_lists_its_first_500_members_and_the_count_of_all() {
    let mut fixture = Fixture::new();
    let node = &mut fixture.node;
    let names: Vec<_> = (0..503).map(|n| register(&format!("user {n}"))).collect();
    let users: Vec<UserId> = node.write(&names).iter().map(|o| if let Outcome::Id(id) = o { *id } else { 0 }).collect();
    let group = node.group(users[0], "all");
    let joins: Vec<_> = users[1..].iter().rev().map(|&user| Write::JoinGroup { user, group }).collect();
    node.write(&joins[3..]);
    let listed = |node: &mut Node| node.connection.groups(users[0]).unwrap().remove(0);
    assert_eq!((listed(node).users.len(), listed(node).members), (500, 500));
    node.write(&joins);
    let all = listed(node);
    assert_eq!(all.members, 503);
    assert_eq!(all.users.iter().map(|user| user.id).collect::<Vec<_>>(), users[..500]);
    assert_eq!(node.connection.members(group).unwrap(), Some(users));
}

#[test]
fn messages_are_paged_in_order_within_the_bytes_allowed() {
    let mut fixture = Fixture::new();
    let node = &mut fixture.node;
    let [ann, bob] = node.users(["ann", "bob"]);
    for message in ["één", "two", "three"] {
        node.keep(&[ann, bob], message);
    }
    let all = ["één", "two", "three"].map(String::from).to_vec();
    assert_eq!(node.page(ann, usize::MAX), (all.clone(), false));
    assert_eq!(node.page(ann, 13), (all.clone(), false));
    assert_eq!(node.page(ann, 12), (all[..2].to_vec(), true));
    assert_eq!(node.page(ann, 7), (all[..1].to_vec(), true));
    // One at least, or a message larger than a page would never be delivered.
    assert_eq!(node.page(ann, 0), (all[..1].to_vec(), true));
    assert_eq!(node.page(bob + 1000, 100), (vec![], false));
}

#[test]
fn a_page_ends_rightly_wherever_the_rows_that_were_asked_for_end() {
    let mut fixture = Fixture::new();
    let node = &mut fixture.node;
    let ann = node.user("ann");
    let texts: Vec<String> = (100..400).map(|n| n.to_string()).collect();
    for upto in [0, 1, 31, 32, 33, 96, 97, 300] {
        let already = node.texts(ann).len();
        let more: Vec<&str> = texts[already..upto].iter().map(String::as_str).collect();
        node.one(Write::Keep(vec![parcel(ann, &more)]));
        assert_eq!(node.texts(ann), texts[..upto]);
        for bytes in [3, 3 * 31, 3 * 32, 3 * 95 + 2, 3 * 96, 3 * 97, 3 * 300] {
            let fitting = upto.min(bytes / 3);
            assert_eq!(node.page(ann, bytes), (texts[..fitting].to_vec(), fitting < upto), "{upto}, {bytes}");
        }
    }
}

#[test]
fn a_page_is_of_as_many_messages_as_fit_be_they_large_or_small() {
    let server = MariaDb::start();
    let mut node = Node::open(options(server.url("chat"), 1));
    let mut conn = Conn::new(server.url("chat").as_str()).unwrap();
    let users = node.users(["small", "large", "mixed", "empty", "a few"]);
    let fill = "INSERT INTO OfflineMessage (userid, message)";
    for sql in [
        format!("{fill} SELECT {}, LPAD(seq, 100, '0') FROM seq_1_to_5000", users[0]),
        format!("{fill} SELECT {}, LPAD(seq, 60000, '0') FROM seq_1_to_200", users[1]),
        // The first ones are small, those behind them are large.
        format!("{fill} SELECT {}, LPAD(seq, IF(seq < 600, 10, 60000), '0') FROM seq_1_to_1000", users[2]),
        format!("{fill} SELECT {}, LPAD(seq, 100, '0') FROM seq_1_to_4", users[4]),
    ] {
        conn.query_drop(sql).unwrap();
    }
    const LIMIT: usize = 256 * 1024;
    let mut sent = || -> u64 {
        conn.query_first(
            "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'BYTES_SENT'",
        )
        .unwrap()
        .unwrap()
    };
    for (user, rows, size) in
        [(users[0], 2621, 100), (users[1], 4, 60_000), (users[2], 599 + 4, 10), (users[3], 0, 0), (users[4], 4, 100)]
    {
        let before = sent();
        let loaded = node.connection.load(user, LIMIT).unwrap();
        let travelled = sent() - before;
        assert_eq!(loaded.page, node.connection.page(user, LIMIT).unwrap());
        assert_eq!((loaded.page.messages.len(), loaded.page.more), (rows, user <= users[2]), "{user}");
        assert!(loaded.page.messages.first().is_none_or(|(_, text)| text.len() == size && text.ends_with(b"01")));
        assert!(loaded.page.messages.is_sorted_by_key(|(row, _)| *row));
        // The limit, a message more, and a few bytes for each row.
        assert!(travelled <= (LIMIT + 60_000 + 40 * rows + 4000) as u64, "{travelled} bytes came for user {user}");
    }
    // All of them come, page by page.
    for (user, count) in [(users[0], 5000), (users[1], 200), (users[2], 1000)] {
        node.one(claim(user, 1));
        let mut seen = 0;
        loop {
            let page = node.connection.page(user, LIMIT).unwrap();
            seen += page.messages.len();
            let rows = page.messages.iter().map(|(row, _)| *row).collect();
            assert_eq!(node.one(Write::Remove { user, epoch: 1, rows }), Outcome::Done);
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, count);
    }
}

#[test]
fn a_login_takes_four_round_trips_at_most_however_many_groups_the_user_is_in() {
    let server = MariaDb::start();
    let mut conn = Conn::new(server.url("").as_str()).unwrap();
    // Kept to the end, for the log shows late that one has gone.
    let (mut nodes, mut connections) = (Vec::new(), Vec::new());
    for (database, charset, mixed) in [("chat", "utf8mb4", false), ("with_gbk", "gbk", false), ("mixed", "gbk", true)] {
        let mut node = Node::open(Options { charset: charset.into(), mixed, ..options(server.url(database), 1) });
        let [none, one, many, friend] = node.users(["none", "one", "many", "friend"]);
        let waiting = node.user("to whom much was written");
        for n in 0..100 {
            let group = node.group(many, &format!("group {n}"));
            let members: Vec<_> = [friend, one].map(|user| Write::JoinGroup { user, group }).into();
            node.write(&members[..if n == 0 { 2 } else { 1 }]);
        }
        node.one(Write::AddFriend { user: many, friend });
        node.keep(&[none, one, many], "{\"msg\":\"hello\"}");
        node.one(Write::Keep(vec![parcel(waiting, &["{}"; 100])]));
        for user in [one, waiting] {
            node.one(Write::SetDialect { user, dialect: Some("qt".into()) });
        }
        for (user, groups, messages) in [(none, 0, 1), (one, 1, 1), (many, 100, 1), (friend, 100, 0), (waiting, 0, 100)]
        {
            // A connection that has done nothing yet: whatever it prepares would count as well.
            let mut connection = node.store.connection();
            connection.members(1).unwrap();
            conn.query_drop("SET GLOBAL log_output = 'TABLE', general_log = 1").unwrap();
            assert!(connection.account(user).unwrap().is_some());
            assert_eq!(connection.write(&[claim(user, 1)]).unwrap(), [Outcome::Done]);
            if mixed {
                assert_eq!(connection.write(&[Write::Show { user, epoch: 1 }]).unwrap(), [Outcome::Done]);
            }
            let loaded = connection.load(user, 1 << 18).unwrap();
            conn.query_drop("SET GLOBAL general_log = 0").unwrap();
            assert_eq!((loaded.groups.len(), loaded.page.messages.len()), (groups, messages));
            assert_eq!(loaded.dialect.as_deref(), [one, waiting].contains(&user).then_some("qt"));
            // Every line of it, of whatever kind, but for this connection's own.
            let lines: Vec<(String, String)> = conn
                .query("SELECT command_type, argument FROM mysql.general_log WHERE thread_id <> CONNECTION_ID()")
                .unwrap();
            conn.query_drop("TRUNCATE mysql.general_log").unwrap();
            // A long page is read by itself.
            assert_eq!(lines.len(), 3 + usize::from(mixed) + usize::from(messages > 4), "{lines:#?}");
            assert!(lines.iter().all(|(kind, _)| kind == "Query"), "{lines:#?}");
            // What a claim is refused by is looked at only then.
            connection.write(&[claim(user, 2)]).unwrap();
            // One call, one snapshot: the same as one by one.
            assert_eq!(loaded.friends, connection.friends(user).unwrap());
            assert_eq!(loaded.groups, connection.groups(user).unwrap());
            connections.push(connection);
        }
        nodes.push(node);
    }
}

#[test]
fn a_login_over_the_wire_takes_four_round_trips_at_most_too() {
    let server = MariaDb::start();
    let redis = Redis::start();
    let mut conn = Conn::new(server.url("").as_str()).unwrap();
    for (flags, most) in [
        (vec![], 4),
        (vec!["--redis".to_owned(), redis.url()], 4),
        (vec!["--redis".to_owned(), redis.url(), "--mixed".to_owned()], 5),
    ] {
        let store = server.url(if flags.is_empty() { "alone" } else { "chat" });
        let node = Server::start(&launch(store, &flags.iter().map(String::as_str).collect::<Vec<_>>()));
        let mut client = Client::connect(node.address);
        let account = client.register(&format!("user {most} {}", flags.len()), "secret");
        client.login(&account);
        for group in 0..30 {
            client.create_group(&format!("group {most} {} {group}", flags.len()));
        }
        // Both workers are connected by now, and have said all that they say once.
        for _ in 0..4 {
            client.logout();
            client.login(&account);
        }
        client.logout();
        let mut free = || conn.query_first::<u32, _>("SELECT COUNT(*) FROM chat.User WHERE state = 'online'");
        eventually("the logout", || flags.is_empty() || free().unwrap() == Some(0));
        conn.query_drop("SET GLOBAL log_output = 'TABLE', general_log = 1").unwrap();
        let reply = client.login(&account);
        conn.query_drop("SET GLOBAL general_log = 0").unwrap();
        assert_eq!(listed(&reply["groups"]).len(), 30);
        // The keeper's rounds and the watch over a lock belong to no login.
        let lines: Vec<(String, String)> = conn
            .query(
                "SELECT command_type, argument FROM mysql.general_log
                 WHERE thread_id <> CONNECTION_ID() AND command_type <> 'Ping' AND argument NOT LIKE '%_LOCK(%'
                 AND argument NOT LIKE '%NodeLooks%' AND argument NOT LIKE 'SELECT marked%'
                 AND argument NOT LIKE 'SELECT id% FROM `User` WHERE node%'",
            )
            .unwrap();
        conn.query_drop("TRUNCATE mysql.general_log").unwrap();
        assert!((3..=most).contains(&lines.len()), "{lines:#?}");
    }
}

#[test]
fn a_claim_that_comes_alone_is_the_same_as_one_of_a_batch() {
    let mut fixture = Fixture::new();
    let mut other = fixture.node(2);
    let mut foreign = fixture.foreign();
    let node = &mut fixture.node;
    let [ann, bob] = node.users(["ann", "bob"]);
    let states = [
        ("'offline'", "NULL", "NULL"),
        ("NULL", "NULL", "NULL"),
        ("'online'", "NULL", "NULL"),
        ("'online'", "1", "5"),
        ("'offline'", "1", "5"),
        ("'online'", "1", "6"),
        ("'online'", "2", "5"),
        ("'online'", "2", "NULL"),
        ("'offline'", "NULL", "5"),
    ];
    let holder = |node, epoch| Some(Holder::Node(Claim { node: NodeId(node), epoch }));
    let pasts = [None, Some(Holder::Foreign), holder(1, 5), holder(2, 5), holder(2, 0), holder(3, 5)];
    for (state, node_id, epoch) in states {
        for past in pasts {
            let mut outcomes = Vec::new();
            for alone in [true, false] {
                let sql =
                    format!("UPDATE User SET state = {state}, node = {node_id}, epoch = {epoch} WHERE id = {ann}");
                foreign.query_drop(sql).unwrap();
                let claim = Write::Claim { user: ann, epoch: 5, past };
                let outcome = match alone {
                    true => node.one(claim),
                    false => node.write(&[claim, Write::Release { user: bob, epoch: 1 }]).remove(0),
                };
                let row: (Option<String>, Option<u64>, Option<u64>) = foreign
                    .query_first(format!("SELECT state, node, epoch FROM User WHERE id = {ann}"))
                    .unwrap()
                    .unwrap();
                outcomes.push((outcome, row));
            }
            assert_eq!(outcomes[0], outcomes[1], "{state}, {node_id}, {epoch}; past {past:?}");
        }
    }
    assert_eq!(other.one(claim(ann + 1000, 1)), Outcome::NoUser);
}

#[test]
fn a_parcel_is_stored_where_nobody_has_the_user_or_this_node_or_the_past() {
    let fixture = Fixture::new();
    let [mut one, mut two] = [fixture.node(11), fixture.node(12)];
    let [nobodys, ours, theirs] = two.users(["nobody's", "ours", "theirs"]);
    one.one(claim(ours, 1));
    two.one(claim(theirs, 2));
    let outcome = one.keep(&[theirs, nobodys, theirs + 1000, ours, nobodys], "{}");
    let (elsewhere, first, second, third) = (outcome[0], row(outcome[1]), row(outcome[3]), row(outcome[4]));
    assert_eq!((elsewhere, outcome[2]), (Kept::Elsewhere(two.claimed_as(2)), Kept::NoUser));
    assert!(first < second && second < third);
    let pages = [nobodys, ours].map(|user| one.connection.page(user, 100).unwrap().messages);
    assert_eq!(pages[0].iter().map(|(row, _)| *row).collect::<Vec<_>>(), [first, third]);
    assert_eq!(pages[1].iter().map(|(row, _)| *row).collect::<Vec<_>>(), [second]);
    let past = |past| Write::Keep(vec![Parcel { past: Some(past), ..parcel(theirs, &["a", "b"]) }]);
    assert_eq!(kept(one.one(past(two.claimed_as(1)))), [Kept::Elsewhere(two.claimed_as(2))]);
    assert_eq!(one.texts(theirs), [] as [&str; 0]);
    let past = kept(one.one(past(two.claimed_as(2))));
    assert_eq!(past, [Kept::Past(one.connection.page(theirs, 100).unwrap().messages[0].0)]);
    assert_eq!(one.texts(theirs), ["a", "b"]);
    // Without messages it is a question.
    let ask = |to, past| Write::Keep(vec![Parcel { past, ..parcel(to, &[]) }]);
    let all = [
        (theirs, None, Kept::Elsewhere(two.claimed_as(2))),
        (theirs, Some(two.claimed_as(1)), Kept::Elsewhere(two.claimed_as(2))),
        (theirs, Some(two.claimed_as(2)), Kept::Past(0)),
        (ours, None, Kept::Stored(0)),
        (ours, Some(one.claimed_as(9)), Kept::Stored(0)),
        (nobodys, Some(two.claimed_as(2)), Kept::Stored(0)),
        (theirs + 1000, None, Kept::NoUser),
    ];
    for (to, past, answer) in all {
        assert_eq!(kept(one.one(ask(to, past))), [answer]);
    }
    assert_eq!(one.texts(theirs), ["a", "b"]);
    // Within a batch, too, a claim comes before or after.
    let batch = [keep(&[nobodys], "before"), claim(nobodys, 7), keep(&[nobodys], "after")];
    let outcomes = two.write(&batch);
    assert!(matches!(outcomes[..], [Outcome::Kept(_), Outcome::Done, Outcome::Kept(_)]), "{outcomes:?}");
    assert_eq!(one.keep(&[nobodys], "{}"), [Kept::Elsewhere(two.claimed_as(7))]);
}

#[test]
fn every_row_of_a_large_batch_is_where_its_outcome_says_in_order() {
    let mut fixture = Fixture::new();
    let node = &mut fixture.node;
    let users = node.users(["a", "b", "c", "d", "e"]);
    let mut expected: HashMap<UserId, Vec<(Option<RowId>, String)>> = HashMap::new();
    let mut rng = Rng::new();
    let mut writes = Vec::new();
    for n in 0..300 {
        let parcels = (0..rng.below(4))
            .map(|p| {
                let (to, count) = (users[rng.below(5)], rng.below(3));
                // Some are large, so that a statement ends in the middle.
                let size = if rng.below(20) == 0 { 200_000 } else { 10 };
                let texts: Vec<String> = (0..count).map(|m| format!("{n}.{p}.{m} {}", "x".repeat(size))).collect();
                parcel(to, &texts.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .collect();
        writes.push(Write::Keep(parcels));
    }
    let outcomes = node.write(&writes);
    for (write, outcome) in writes.iter().zip(outcomes) {
        let Write::Keep(parcels) = write else { unreachable!() };
        for (parcel, kept) in parcels.iter().zip(kept(outcome)) {
            for (index, message) in parcel.messages.iter().enumerate() {
                let text = String::from_utf8(message.to_vec()).unwrap();
                let first = (index == 0).then(|| row(kept));
                expected.entry(parcel.to).or_default().push((first, text));
            }
        }
    }
    for (user, expected) in expected {
        let page = node.connection.page(user, usize::MAX).unwrap().messages;
        assert_eq!(page.len(), expected.len());
        for ((row, message), (first, text)) in page.iter().zip(expected) {
            assert_eq!(&**message, text.as_bytes());
            assert!(first.is_none_or(|first| first == *row), "{first:?} is {row}");
        }
    }
}

#[test]
fn removal_is_exact_and_rows_are_never_used_again() {
    let mut fixture = Fixture::new();
    let node = &mut fixture.node;
    let [ann, bob] = node.users(["ann", "bob"]);
    let rows: Vec<_> = ["1", "2", "3"].iter().map(|message| row(node.keep(&[ann], message)[0])).collect();
    node.write(&[claim(ann, 1), claim(bob, 1)]);
    let remove = |user, rows: &[RowId]| Write::Remove { user, epoch: 1, rows: rows.to_vec() };
    assert_eq!(node.one(remove(bob, &rows)), Outcome::Done);
    assert_eq!(node.texts(ann), ["1", "2", "3"]);
    assert_eq!(node.one(remove(ann, &[rows[2], rows[0], rows[2] + 99, u64::MAX])), Outcome::Done);
    assert_eq!(node.texts(ann), ["2"]);
    assert_eq!(node.one(remove(ann, &[])), Outcome::Done);
    assert!(row(node.keep(&[ann], "4")[0]) > rows[2]);
    assert_eq!(node.texts(ann), ["2", "4"]);
}

#[test]
fn only_whoever_has_a_user_removes_its_messages() {
    let mut fixture = Fixture::new();
    let mut other = fixture.node(99);
    let node = &mut fixture.node;
    let [ann] = node.users(["ann"]);
    let rows: Vec<_> = ["1", "2", "3"].iter().map(|message| row(node.keep(&[ann], message)[0])).collect();
    let remove = |epoch, index: usize| Write::Remove { user: ann, epoch, rows: vec![rows[index]] };
    assert_eq!(node.one(remove(7, 0)), Outcome::Lost);
    assert_eq!(node.one(claim(ann, 7)), Outcome::Done);
    assert_eq!((node.one(remove(6, 0)), other.one(remove(7, 0))), (Outcome::Lost, Outcome::Lost));
    assert_eq!(node.texts(ann), ["1", "2", "3"]);
    assert_eq!(node.one(remove(7, 0)), Outcome::Done);
    // Within one batch, too.
    let batch = [remove(7, 1), Write::Release { user: ann, epoch: 7 }, remove(7, 2)];
    assert_eq!(node.write(&batch), [Outcome::Done, Outcome::Done, Outcome::Lost]);
    assert_eq!(node.texts(ann), ["3"]);
}

// ---- The mark

/// A node's transaction that others can only hold up.
type Job = Box<dyn FnOnce() -> Result<(), StoreError> + Send>;

/// Every kind of transaction of a node: all writes, alone and in batches, and the reads of a user's store.
fn every_job(node: &Node, users: [UserId; 3], group: GroupId, rows: &[RowId]) -> Vec<(String, Job)> {
    let [held, free, robbed] = users;
    let past = Some(node.claimed_as(1));
    let writes = [
        register("new"),
        Write::SetPassword { user: free, password: "changed".into() },
        Write::SetDialect { user: free, dialect: Some("changed".into()) },
        claim(free, 2),
        Write::Claim { user: held, epoch: 3, past },
        // None of these can be done; they are answered all the same that the node is marked.
        claim(held, 4),
        claim(held + 1000, 4),
        Write::Show { user: held, epoch: 1 },
        Write::Release { user: held, epoch: 1 },
        Write::AddFriend { user: held, friend: free },
        create_group(held, "new"),
        Write::JoinGroup { user: free, group },
        keep(&[free], "new"),
        Write::Keep(vec![parcel(free, &[])]),
        Write::Remove { user: held, epoch: 1, rows: rows.to_vec() },
    ];
    let mut jobs: Vec<(String, Job)> = Vec::new();
    for write in writes {
        for batch in [vec![write.clone()], vec![write.clone(), register("another")]] {
            let (name, mut connection) = (format!("{batch:?}"), node.store.connection());
            jobs.push((name, Box::new(move || connection.write(&batch).map(drop))));
        }
    }
    let (mut page, mut load) = (node.store.connection(), node.store.connection());
    let (mut reassert, mut mark, mut free) = (node.membership(), node.membership(), node.membership());
    jobs.push(("page".into(), Box::new(move || page.page(robbed, 1 << 18).map(drop))));
    jobs.push(("load".into(), Box::new(move || load.load(robbed, 1 << 18).map(drop))));
    jobs.push(("reassert".into(), Box::new(move || reassert.reassert().map(drop))));
    jobs.push(("mark".into(), Box::new(move || mark.mark(NodeId(1), 0).map(drop))));
    jobs.push(("free".into(), Box::new(move || free.free(NodeId(99)).map(drop))));
    jobs
}

/// A node on a database of its own that C++ nodes use too, with users, a group, and a message.
fn with_everything(server: Arc<MariaDb>) -> (Fixture, Node, [UserId; 3], GroupId, Vec<RowId>) {
    let fixture = Fixture::on(server);
    let url = fixture.server.url(&fixture.database);
    let mut node = Node::open(Options { mixed: true, ..options(url, 5) });
    let users @ [held, _, robbed] = node.users(["held", "free", "robbed"]);
    let group = node.group(held, "readers");
    let rows = ["1", "2"].map(|message| row(node.keep(&[held], message)[0])).to_vec();
    node.write(&[claim(held, 1), claim(robbed, 1), Write::Show { user: robbed, epoch: 1 }]);
    fixture.foreign().query_drop("UPDATE User SET state = 'offline'").unwrap();
    (fixture, node, users, group, rows)
}

/// How many wait for a row, on the whole server.
fn waiting(root: &mut Conn) -> usize {
    let status: Option<(String, usize)> =
        root.query_first("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'").unwrap();
    status.unwrap().1
}

/// All that is in the tables that users are about.
fn content(conn: &mut Conn) -> String {
    let of_table = |table: &&str| {
        let columns = if *table == "User" { "*, node, epoch, dialect" } else { "*" };
        let rows: Vec<mysql::Row> = conn.query(format!("SELECT {columns} FROM {table}")).unwrap();
        format!("{table}: {rows:?}")
    };
    TABLES.iter().map(of_table).collect()
}

#[test]
fn a_mark_holds_up_every_transaction_of_its_node_and_then_fails_it() {
    let (fixture, mut node, users, group, rows) = with_everything(Arc::new(MariaDb::start()));
    let mut root = fixture.foreign();
    let before = content(&mut root);
    let jobs = every_job(&node, users, group, &rows);
    let all = jobs.len();
    // Marked, and not committed yet.
    let mut reaper = fixture.foreign();
    reaper.query_drop("START TRANSACTION; UPDATE NodeMark SET marked = TRUE WHERE node = 5").unwrap();
    let results: Vec<(String, Result<(), StoreError>)> = thread::scope(|scope| {
        let running: Vec<_> = jobs.into_iter().map(|(name, job)| (name, scope.spawn(job))).collect();
        eventually("all to wait", || {
            let done: Vec<_> = running.iter().filter(|(_, job)| job.is_finished()).map(|(name, _)| name).collect();
            assert!(done.is_empty(), "not held up: {done:#?}");
            waiting(&mut root) == all
        });
        // What is no transaction of the node goes on: a look waits for the counter alone.
        let [held, ..] = users;
        assert!(node.connection.account(held).unwrap().is_some());
        node.connection.friends(held).unwrap();
        node.connection.groups(held).unwrap();
        node.connection.members(group).unwrap();
        let mut membership = node.membership();
        membership.look().unwrap();
        membership.glance().unwrap();
        membership.nodes().unwrap();
        reaper.query_drop("COMMIT").unwrap();
        running.into_iter().map(|(name, job)| (name, job.join().unwrap())).collect()
    });
    for (name, result) in results {
        assert!(matches!(result, Err(StoreError::Marked)), "{name}: {result:?}");
    }
    assert_eq!(content(&mut root), before);
    let mut membership = node.membership();
    assert!(matches!(membership.look(), Err(StoreError::Marked)));
    assert!(matches!(membership.glance(), Err(StoreError::Marked)));
    assert!(matches!(membership.enlist(), Err(StoreError::Marked)));
    assert!(matches!(node.store.release_all(), Err(StoreError::Marked)));
    assert_eq!(content(&mut root), before);
}

#[test]
fn a_node_that_is_struck_off_does_nothing_any_more() {
    let (fixture, node, users, group, rows) = with_everything(shared());
    let mut root = fixture.foreign();
    assert_eq!(node.end_by(&fixture.node), 2);
    let before = content(&mut root);
    for (name, job) in every_job(&node, users, group, &rows) {
        // No user is left to be shown.
        let expected = if name == "reassert" { "Ok(())" } else { "Err(Marked)" };
        assert_eq!(format!("{:?}", job()), expected, "{name}");
    }
    let mut membership = node.membership();
    assert!(matches!(membership.look(), Err(StoreError::Marked)));
    assert!(matches!(membership.glance(), Err(StoreError::Marked)));
    assert!(matches!(node.store.release_all(), Err(StoreError::Marked)));
    assert_eq!(content(&mut root), before);
    assert_eq!(fixture.node.membership().nodes().unwrap(), [], "nothing is left of it");
}

#[test]
fn a_look_waits_for_no_transaction_and_a_mark_for_all_that_are_open() {
    let fixture = Fixture::on(Arc::new(MariaDb::start()));
    let (node, mut open) = (fixture.node(5), fixture.foreign());
    let (mut own, mut reaper) = (node.membership(), fixture.node.membership());
    // The node is in the middle of one.
    let lock = "START TRANSACTION; SELECT marked FROM NodeMark WHERE node = 5 LOCK IN SHARE MODE";
    open.query_drop(lock).unwrap();
    assert_eq!(own.look().unwrap(), []);
    assert_eq!(looks(&mut *reaper, node.id), 1);
    let mut root = fixture.foreign();
    thread::scope(|scope| {
        let marking = scope.spawn(|| reaper.mark(node.id, 1));
        eventually("the mark to wait", || waiting(&mut root) == 1);
        // From now on a look waits for what becomes of the mark.
        let looking = scope.spawn(|| own.look());
        eventually("the look to wait, too", || waiting(&mut root) == 2);
        assert!(!marking.is_finished());
        open.query_drop("COMMIT").unwrap();
        assert!(matches!(marking.join().unwrap(), Ok(true)));
        assert!(matches!(looking.join().unwrap(), Err(StoreError::Marked)));
    });
    // A mark that has not come to be leaves no trace.
    let node = fixture.node(6);
    let mut own = node.membership();
    assert_eq!(own.look().unwrap(), [NodeId(5)], "it hears who is marked");
    assert!(matches!(reaper.mark(node.id, 0), Ok(false)), "it has looked since");
    own.look().unwrap();
    own.glance().unwrap();
    assert_eq!(looks(&mut *reaper, node.id), 2, "a glance raises nothing");
    assert!(matches!(reaper.mark(node.id, 2), Ok(true)));
    assert!(matches!(reaper.mark(node.id, 2), Ok(true)), "twice is once");
    assert_eq!(fixture.node(7).membership().look().unwrap().len(), 2);
}

#[test]
fn of_a_look_and_a_mark_that_meet_one_fails() {
    let fixture = Fixture::new();
    let mut reapers = [fixture.node(2), fixture.node(3)];
    for round in 100..130 {
        let mut node = fixture.node(round);
        let user = node.user(&format!("user {round}"));
        node.one(claim(user, 1));
        let (mut own, mut connection, id) = (node.membership(), node.store.connection(), node.id);
        let (looked, written) = (AtomicU64::new(0), AtomicU64::new(0));
        let reaped: Vec<(u64, usize, u64)> = thread::scope(|scope| {
            scope.spawn(|| {
                while own.look().is_ok() {
                    looked.fetch_add(1, Ordering::SeqCst);
                }
                assert!(matches!(own.look(), Err(StoreError::Marked)));
            });
            scope.spawn(|| {
                loop {
                    match connection.write(&[keep(&[user], "{}")]) {
                        Ok(_) => _ = written.fetch_add(1, Ordering::SeqCst),
                        Err(error) => break assert!(matches!(error, StoreError::Marked), "{error}"),
                    }
                }
            });
            let reaping: Vec<_> = reapers
                .iter_mut()
                .map(|reaper| {
                    scope.spawn(move || {
                        let mut membership = reaper.membership();
                        loop {
                            let seen = looks(&mut *membership, id);
                            if membership.mark(id, seen).unwrap() {
                                let kept = reaper.connection.page(user, usize::MAX).unwrap().messages.len();
                                return (seen, kept, membership.free(id).unwrap());
                            }
                        }
                    })
                })
                .collect();
            reaping.into_iter().map(|reaping| reaping.join().unwrap()).collect()
        });
        // Both have marked it, or one has come when it was struck off. No look has succeeded since the counter was
        // read, and nothing was written since the mark.
        let (looked, written) = (looked.into_inner(), written.into_inner());
        assert!(reaped.iter().any(|(seen, ..)| *seen == looked), "{looked}: {reaped:?}");
        assert!(reaped.iter().all(|(_, kept, _)| *kept as u64 == written), "{written}: {reaped:?}");
        assert_eq!(reapers[0].connection.page(user, usize::MAX).unwrap().messages.len() as u64, written);
        assert_eq!(reaped.iter().map(|(.., freed)| freed).sum::<u64>(), 1);
        assert_eq!(reapers[0].membership().nodes().unwrap().iter().filter(|entry| entry.node == id).count(), 0);
    }
}

#[test]
fn a_node_with_claims_but_without_rows_is_marked_and_whoever_is_alone_needs_none() {
    let fixture = Fixture::new();
    let url = fixture.server.url(&fixture.database);
    let mut old = fixture.node(5);
    let [ann, bob] = old.users(["ann", "bob"]);
    old.one(claim(ann, 1));
    // One that is alone, while that stands still: it is struck off, and finds it out.
    let mut alone = Node::open(Options { single_node: true, ..options(url, 6) });
    assert!(alone.store.membership().is_none());
    let rows = |conn: &mut Conn| {
        let rows = "SELECT (SELECT COUNT(*) FROM NodeMark) + (SELECT COUNT(*) FROM NodeLooks)";
        conn.query_first::<u32, _>(rows).unwrap().unwrap()
    };
    let mut root = fixture.foreign();
    assert_eq!(rows(&mut root), 0);
    assert!(matches!(old.connection.write(&[claim(bob, 1)]), Err(StoreError::Marked)));
    assert_eq!(alone.write(&[claim(ann, 1), claim(bob, 1)]), [Outcome::Done, Outcome::Done]);
    assert_eq!(alone.one(claim(ann, 1)), Outcome::Done);
    assert!(alone.keep(&[ann], "{}")[0] != Kept::NoUser && alone.texts(ann) == ["{}"]);
    let group = alone.group(ann, "readers");
    assert_eq!(alone.one(Write::JoinGroup { user: bob, group }), joined(false, &[]));
    assert_eq!(rows(&mut root), 0);
    // It has crashed, and a cluster uses the database.
    let node = fixture.node(7);
    let mut membership = node.membership();
    let left = Entry { node: alone.id, looks: 0, marked: true, has_claims: true };
    assert_eq!(membership.nodes().unwrap(), [left]);
    assert!(membership.mark(alone.id, 0).unwrap());
    assert_eq!(membership.free(alone.id).unwrap(), 2);
    assert_eq!((membership.nodes().unwrap(), rows(&mut root)), (vec![], 2));
    // One row of the two counts as none.
    for table in ["NodeMark", "NodeLooks"] {
        let half = fixture.node(8);
        root.query_drop(format!("DELETE FROM {table} WHERE node = 8")).unwrap();
        assert!(entry(&mut *membership, half.id).unwrap().marked);
        assert!(matches!(half.membership().look(), Err(StoreError::Marked)));
        assert!(membership.mark(half.id, 0).unwrap());
        assert_eq!(membership.free(half.id).unwrap(), 0);
        assert_eq!(membership.nodes().unwrap(), []);
    }
    // At its own end a node leaves nothing.
    node.store.release_all().unwrap();
    assert_eq!(rows(&mut root), 0);
}

#[test]
fn a_join_tells_of_every_node_that_may_have_read_the_members_without_it() {
    let (mut fixture, proxy, node, _, users) = behind_a_proxy();
    let [ann, bob, eve] = users[..] else { unreachable!() };
    let group = fixture.node.group(eve, "readers");
    let marked = fixture.node(50);
    assert!(fixture.node.membership().mark(marked.id, 0).unwrap());
    let join = |user| Write::JoinGroup { user, group };
    let mut connection = node.store.connection();
    assert_eq!(connection.write(&[join(ann)]).unwrap(), [joined(false, &[1])], "no marked one, and not itself");
    // One that begins when the row is written, and not committed yet: it reads the members without it.
    let mut new = Node::not_enlisted(options(fixture.server.url(&fixture.database), 60));
    proxy.cut.stop_at(Stop::Commit);
    let outcomes = thread::scope(|scope| {
        let joining = scope.spawn(|| connection.write(&[join(ann), join(bob), keep(&[eve], "{}")]));
        eventually("the join to be there but for its COMMIT", || proxy.cut.stopped.load(Ordering::SeqCst));
        new.membership().enlist().unwrap();
        assert_eq!(new.connection.members(group).unwrap(), Some(vec![ann, eve]));
        proxy.cut.go_on();
        joining.join().unwrap().unwrap()
    });
    assert_eq!(outcomes[..2], [joined(true, &[1, 60]), joined(false, &[1, 60])]);
}

// ---- When the database does not answer

/// Stands between a store and its database, and cuts connections.
struct Proxy {
    port: u16,
    cut: Arc<Cut>,
}

/// What it cuts.
#[derive(Default)]
struct Cut {
    /// How many COMMITs still reach the database and are done, while the answer does not come back.
    answers: AtomicUsize,
    /// How many COMMITs do not reach it.
    commits: AtomicUsize,
    /// The same for claims that come alone: for how many the answer is lost, and how many are lost themselves.
    claims: AtomicUsize,
    lost_claims: AtomicUsize,
    /// How many connections were made.
    connections: AtomicUsize,
    /// How often something came that its sender waits for an answer to.
    requests: AtomicUsize,
    /// New connections have to wait.
    closed: AtomicBool,
    /// What the node is stopped at, with its line open; see [`Cut::stop_at`].
    stop: Mutex<Option<Stop>>,
    stopped: AtomicBool,
}

/// A point in a node's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Nothing of it is sent.
    Commit,
    /// The first 64 KiB of it are sent.
    Insert,
    /// Nothing more of its rows is read.
    Page,
    /// Nothing of it is sent.
    Claim,
}

impl Cut {
    fn take(counter: &AtomicUsize) -> bool {
        counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
    }

    /// Has the next transaction get no further than that until [`Cut::go_on`]. To the database it is as if the
    /// node had been stopped, or its machine had lost power: nothing is closed, and no new connection is made.
    fn stop_at(&self, stop: Stop) {
        *self.stop.lock().unwrap() = Some(stop);
    }

    fn go_on(&self) {
        self.closed.store(false, Ordering::SeqCst);
        self.stopped.store(false, Ordering::SeqCst);
    }

    /// Stays here for as long as the node is stopped, if it is to be stopped at this.
    fn pass(&self, at: Stop) {
        if self.stop.lock().unwrap().take_if(|stop| *stop == at).is_some() {
            self.closed.store(true, Ordering::SeqCst);
            self.stopped.store(true, Ordering::SeqCst);
            eventually("the node to go on", || !self.stopped.load(Ordering::SeqCst));
        }
    }
}

impl Proxy {
    fn to(server: &MariaDb) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (port, target, cut) = (listener.local_addr().unwrap().port(), server.port(), Arc::new(Cut::default()));
        let proxy = Proxy { port, cut: Arc::clone(&cut) };
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                cut.connections.fetch_add(1, Ordering::SeqCst);
                let cut = Arc::clone(&cut);
                thread::spawn(move || {
                    eventually("the way to be open", || !cut.closed.load(Ordering::SeqCst));
                    relay(client, TcpStream::connect((Ipv4Addr::LOCALHOST, target)).unwrap(), &cut);
                });
            }
        });
        proxy
    }

    fn url(&self, database: &str) -> String {
        format!("mysql://root:123456@127.0.0.1:{}/{database}", self.port)
    }
}

/// Relays in both directions until one side ends, or the cut is due.
fn relay(mut client: TcpStream, mut database: TcpStream, cut: &Cut) {
    let (mut from_client, mut from_database) = (client.try_clone().unwrap(), database.try_clone().unwrap());
    let silent = AtomicBool::new(false);
    let muted = &silent;
    thread::scope(|scope| {
        let answers = scope.spawn(move || {
            let mut buffer = [0; 1 << 16];
            while let Ok(count @ 1..) = from_database.read(&mut buffer) {
                if count == buffer.len() {
                    cut.pass(Stop::Page);
                }
                // The answer to the COMMIT is here, so it is done; the client never receives it.
                if muted.load(Ordering::SeqCst) || client.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = client.shutdown(Shutdown::Both);
        });
        let mut buffer = [0; 1 << 16];
        while let Ok(count @ 1..) = from_client.read(&mut buffer) {
            cut.requests.fetch_add(1, Ordering::SeqCst);
            let mut sent = 0;
            if count == buffer.len() && cut.stop.lock().unwrap().is_some() {
                sent = database.write(&buffer).unwrap_or_default();
                cut.pass(Stop::Insert);
            }
            if buffer[4..count.max(4)].starts_with(b"\x03UPDATE ") {
                if Cut::take(&cut.lost_claims) {
                    break;
                }
                if Cut::take(&cut.claims) {
                    silent.store(true, Ordering::SeqCst);
                }
                cut.pass(Stop::Claim);
            }
            if buffer[4..count.max(4)].starts_with(b"\x03COMMIT") {
                if Cut::take(&cut.commits) {
                    break;
                }
                if Cut::take(&cut.answers) {
                    silent.store(true, Ordering::SeqCst);
                }
                cut.pass(Stop::Commit);
            }
            if database.write_all(&buffer[sent..count]).is_err() {
                break;
            }
        }
        let _ = from_client.shutdown(Shutdown::Both);
        let _ = database.shutdown(Shutdown::Both);
        let _ = answers.join();
    });
}

#[test]
fn a_node_that_was_stopped_in_the_middle_of_a_transaction_is_marked_all_the_same() {
    let large = "x".repeat(1 << 20);
    thread::scope(|scope| {
        for stop in [Stop::Commit, Stop::Insert, Stop::Page] {
            let large = &large;
            scope.spawn(move || {
                let (fixture, proxy, mut node, _, users) = behind_a_proxy();
                let ann = users[0];
                let fill =
                    format!("INSERT INTO OfflineMessage (userid, message) SELECT {ann}, '{large}' FROM seq_1_to_16");
                fixture.foreign().query_drop(fill).unwrap();
                node.connection.account(ann).unwrap();
                proxy.cut.stop_at(stop);
                let result = thread::scope(|scope| {
                    let running = scope.spawn(|| match stop {
                        Stop::Page => node.connection.page(ann, usize::MAX).map(drop),
                        _ => node.connection.write(&[keep(&[ann], large)]).map(drop),
                    });
                    eventually("the node to be stopped", || proxy.cut.stopped.load(Ordering::SeqCst));
                    let marked = fixture.node.membership().mark(node.id, 0);
                    assert!(matches!(marked, Ok(true)), "{stop:?}: {marked:?}");
                    proxy.cut.go_on();
                    running.join().unwrap()
                });
                assert!(result.is_err(), "{stop:?}: {result:?}");
                eventually("the node to hear of it", || {
                    matches!(node.connection.page(ann, 1), Err(StoreError::Marked))
                });
                let count = format!("SELECT COUNT(*) FROM OfflineMessage WHERE userid = {ann}");
                assert_eq!(fixture.foreign().query_first::<u32, _>(count).unwrap(), Some(16), "{stop:?}");
                assert_eq!(fixture.node.membership().free(node.id).unwrap(), 1);
            });
        }
    });
}

/// A node behind a proxy, and the outcomes of a batch of every write, with those that it has if
/// nothing fails.
fn behind_a_proxy() -> (Fixture, Proxy, Node, Vec<Write>, Vec<UserId>) {
    let mut fixture = Fixture::new();
    let proxy = Proxy::to(&fixture.server);
    let mut node = Node::open(options(proxy.url(&fixture.database), 7));
    let [ann, bob, eve] = fixture.node.users(["ann", "bob", "eve"]);
    let group = fixture.node.group(bob, "old group");
    let rows: Vec<RowId> = ["1", "2"].iter().map(|message| row(fixture.node.keep(&[eve], message)[0])).collect();
    assert_eq!(node.one(claim(eve, 2)), Outcome::Done);
    let batch = vec![
        register("new"),
        Write::SetPassword { user: ann, password: "changed".into() },
        Write::SetDialect { user: ann, dialect: Some("changed".into()) },
        Write::AddFriend { user: ann, friend: bob },
        create_group(ann, "new group"),
        Write::JoinGroup { user: ann, group },
        Write::Keep(vec![parcel(ann, &["a", "b"]), parcel(9999, &["x"]), parcel(bob, &["c"])]),
        claim(ann, 3),
        keep(&[bob, ann], "d"),
        Write::Remove { user: eve, epoch: 2, rows: rows[..1].to_vec() },
        Write::Release { user: bob, epoch: 1 },
    ];
    (fixture, proxy, node, batch, vec![ann, bob, eve])
}

#[track_caller]
fn assert_done_once(fixture: &mut Fixture, outcomes: &[Outcome], users: &[UserId]) {
    let [
        Outcome::Id(new),
        Outcome::Done,
        Outcome::Done,
        Outcome::Done,
        Outcome::Id(group),
        Outcome::Joined { already: false, nodes },
        Outcome::Kept(first),
        Outcome::Done,
        Outcome::Kept(second),
        Outcome::Done,
        Outcome::Done,
    ] = outcomes
    else {
        panic!("{outcomes:?}");
    };
    let [ann, bob, eve] = users else { unreachable!() };
    let node = &mut fixture.node;
    assert_eq!(nodes[..], [node.id]);
    assert_eq!(node.connection.account(*new).unwrap().unwrap().name, "new");
    assert_eq!(node.connection.account(*ann).unwrap().unwrap().password, "changed");
    assert_eq!(node.connection.load(*ann, 0).unwrap().dialect.as_deref(), Some("changed"));
    assert_eq!(node.connection.members(*group).unwrap(), Some(vec![*ann]));
    assert_eq!(node.connection.friends(*ann).unwrap().len(), 1);
    let page = |node: &mut Node, user| node.connection.page(user, usize::MAX).unwrap().messages;
    let texts = |page: &[(RowId, Box<[u8]>)]| {
        page.iter().map(|(_, text)| String::from_utf8(text.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    let (of_ann, of_bob) = (page(node, *ann), page(node, *bob));
    assert_eq!(
        (texts(&of_ann), texts(&of_bob)),
        (vec!["a".into(), "b".into(), "d".into()], vec!["c".into(), "d".into()])
    );
    assert_eq!(first[..], [Kept::Stored(of_ann[0].0), Kept::NoUser, Kept::Stored(of_bob[0].0)]);
    assert_eq!(second[..], [Kept::Stored(of_bob[1].0), Kept::Stored(of_ann[2].0)]);
    assert_eq!(node.texts(*eve), ["2"]);
    let held = Holder::Node(Claim { node: NodeId(7), epoch: 3 });
    assert_eq!(node.one(claim(*ann, 1)), Outcome::InUse(held));
}

#[test]
fn a_batch_whose_commit_got_no_answer_is_done_once_and_known_to_be() {
    let (mut fixture, proxy, mut node, batch, users) = behind_a_proxy();
    node.connection.account(1).unwrap();
    let connections = proxy.cut.connections.load(Ordering::SeqCst);
    proxy.cut.answers.store(1, Ordering::SeqCst);
    let outcomes = node.write(&batch);
    assert_eq!(proxy.cut.answers.load(Ordering::SeqCst), 0, "nothing was cut");
    assert_eq!(proxy.cut.connections.load(Ordering::SeqCst), connections + 1);
    assert_done_once(&mut fixture, &outcomes, &users);
}

#[test]
fn a_connection_begins_with_two_round_trips_behind_the_handshake() {
    let (fixture, proxy, node, _, users) = behind_a_proxy();
    let mut connection = node.store.connection();
    let mut root = fixture.foreign();
    let made = |count: &AtomicUsize| count.swap(0, Ordering::SeqCst);
    let Cut { connections, requests, .. } = &*proxy.cut;
    for round in ["first", "again, after the database has ended it"] {
        let _ = (made(connections), made(requests));
        assert!(connection.account(users[0]).unwrap().is_some());
        // The handshake, the limit of time, the settings, the account; and perhaps one that found that there is no
        // connection.
        let found_it_lost = made(requests).checked_sub(4);
        assert!(found_it_lost.is_some_and(|times| times <= usize::from(round != "first")), "{round}");
        assert_eq!(made(connections), 1, "{round}");
        cut_connections(&mut root, &format!("DB = '{}'", fixture.database));
    }
}

#[test]
fn a_claim_whose_answer_was_lost_is_made_once() {
    let (mut fixture, proxy, mut node, _, users) = behind_a_proxy();
    node.connection.account(1).unwrap();
    for (epoch, answered) in [(1, true), (2, false)] {
        let cut = if answered { &proxy.cut.claims } else { &proxy.cut.lost_claims };
        cut.store(1, Ordering::SeqCst);
        assert_eq!(node.one(claim(users[0], epoch)), Outcome::Done);
        assert_eq!(cut.load(Ordering::SeqCst), 0, "nothing was cut");
        assert_eq!(fixture.node.one(claim(users[0], 9)), Outcome::InUse(node.claimed_as(epoch)));
        assert_eq!(node.one(Write::Release { user: users[0], epoch }), Outcome::Done);
    }
}

#[test]
fn what_a_lost_connection_was_asked_for_is_not_done_when_its_line_goes_on() {
    for others_connect in [true, false] {
        let (mut fixture, proxy, node, _, users) = behind_a_proxy();
        let ann = users[0];
        let [mut connection, mut other] = [node.store.connection(), node.store.connection()];
        other.account(ann).unwrap();
        let mut root = fixture.foreign();
        let ids = |root: &mut Conn| -> Vec<u64> {
            root.query("SELECT ID FROM information_schema.PROCESSLIST WHERE DB = DATABASE()").unwrap()
        };
        let before = ids(&mut root);
        connection.account(ann).unwrap();
        let [lost] = ids(&mut root).into_iter().filter(|id| !before.contains(id)).collect::<Vec<_>>()[..] else {
            panic!("it has one connection");
        };
        proxy.cut.stop_at(Stop::Claim);
        let claimed = thread::scope(|scope| {
            let claiming = scope.spawn(|| connection.write(&[claim(ann, 1)]));
            eventually("the claim to be on its way", || proxy.cut.stopped.load(Ordering::SeqCst));
            proxy.cut.closed.store(!others_connect, Ordering::SeqCst);
            claiming.join().unwrap()
        });
        match others_connect {
            true => assert_eq!(claimed.unwrap(), [Outcome::Done]),
            false => assert!(matches!(claimed, Err(StoreError::Unavailable(_))), "{claimed:?}"),
        }
        // The login that got no answer gives it back, by whichever worker.
        assert_eq!(other.write(&[Write::Release { user: ann, epoch: 1 }]).unwrap(), [Outcome::Done]);
        proxy.cut.go_on();
        eventually("the claim's connection to end", || !ids(&mut root).contains(&lost));
        assert_eq!(fixture.node.one(claim(ann, 1)), Outcome::Done, "{others_connect}");
    }
}

#[test]
fn a_batch_whose_commit_never_arrived_is_done_again() {
    let (mut fixture, proxy, mut node, batch, users) = behind_a_proxy();
    proxy.cut.commits.store(1, Ordering::SeqCst);
    let outcomes = node.write(&batch);
    assert_eq!(proxy.cut.commits.load(Ordering::SeqCst), 0, "nothing was cut");
    assert_done_once(&mut fixture, &outcomes, &users);
}

#[test]
fn a_name_that_somebody_else_has_is_not_ours_because_an_answer_was_lost() {
    let (mut fixture, proxy, mut node, _, users) = behind_a_proxy();
    fixture.node.one(Write::Register { name: "taken".into(), password: "another".into() });
    proxy.cut.answers.store(1, Ordering::SeqCst);
    // The group is there, but not its creator.
    let outcomes = node.write(&[register("taken"), create_group(users[0], "old group")]);
    assert_eq!(outcomes, [Outcome::Already, Outcome::Already]);
    assert_eq!(proxy.cut.answers.load(Ordering::SeqCst), 0, "nothing was cut");
}

#[test]
fn a_message_that_was_stored_before_a_claim_is_stored_although_the_answer_was_lost() {
    let (mut fixture, proxy, mut node, _, users) = behind_a_proxy();
    let ann = users[0];
    let mut claimer = fixture.node(9);
    node.connection.account(ann).unwrap();
    proxy.cut.answers.store(1, Ordering::SeqCst);
    // The claim comes between the lost answer and the second try.
    proxy.cut.closed.store(true, Ordering::SeqCst);
    let outcome = thread::scope(|scope| {
        let writer = scope.spawn(|| node.one(keep(&[ann], "first")));
        eventually("the message's commit", || fixture.node.texts(ann) == ["first"]);
        assert_eq!(claimer.one(claim(ann, 1)), Outcome::Done);
        proxy.cut.closed.store(false, Ordering::SeqCst);
        writer.join().unwrap()
    });
    row(kept(outcome)[0]);
    assert_eq!(fixture.node.texts(ann), ["first"]);
    assert_eq!(node.keep(&[ann], "second"), [Kept::Elsewhere(claimer.claimed_as(1))]);
}

#[test]
fn a_message_that_was_stored_past_a_node_is_known_to_be_although_the_answer_was_lost() {
    let (mut fixture, proxy, mut node, _, users) = behind_a_proxy();
    let [ann, bob] = [users[0], users[1]];
    let mut claimer = fixture.node(9);
    claimer.write(&[claim(ann, 1), claim(bob, 1)]);
    let past = Some(claimer.claimed_as(1));
    let past = |text| Write::Keep([ann, bob].map(|to| Parcel { past, ..parcel(to, &[text]) }).to_vec());
    proxy.cut.answers.store(1, Ordering::SeqCst);
    let outcome = kept(node.one(past("first")));
    assert!(matches!(outcome[..], [Kept::Past(1..), Kept::Past(1..)]), "{outcome:?}");
    // Between the lost answer and the second try both come free, and another takes one of them, and has read it.
    proxy.cut.answers.store(1, Ordering::SeqCst);
    proxy.cut.closed.store(true, Ordering::SeqCst);
    let outcome = thread::scope(|scope| {
        let writer = scope.spawn(|| node.one(past("second")));
        eventually("the message's commit", || fixture.node.texts(ann) == ["first", "second"]);
        claimer.write(&[ann, bob].map(|user| Write::Release { user, epoch: 1 }));
        assert_eq!(fixture.node.one(claim(ann, 1)), Outcome::Done);
        proxy.cut.closed.store(false, Ordering::SeqCst);
        kept(writer.join().unwrap())
    });
    outcome.into_iter().for_each(|kept| _ = row(kept));
    for user in [ann, bob] {
        assert_eq!(fixture.node.texts(user), ["first", "second"]);
    }
}

#[test]
fn an_answer_lost_twice_is_unavailable_and_nothing_is_stored_twice() {
    let (mut fixture, proxy, mut node, _, users) = behind_a_proxy();
    proxy.cut.answers.store(2, Ordering::SeqCst);
    let text = node.connection.write(&[keep(&users[..1], "once")]).unwrap_err().to_string();
    assert!(text.contains("COMMIT"), "{text}");
    assert_eq!(fixture.node.texts(users[0]), ["once"]);
    row(node.keep(&users[..1], "then")[0]);
    assert_eq!(fixture.node.texts(users[0]), ["once", "then"]);
}

#[test]
fn what_is_in_doubt_is_found_out_later_by_whichever_worker() {
    for arrives in [true, false] {
        let (mut fixture, proxy, mut node, _, users) = behind_a_proxy();
        let [ann, bob, _] = users[..] else { unreachable!() };
        let batch = [
            keep(&[bob], "first"),
            Write::Keep(vec![parcel(ann, &["a", "b"]), parcel(bob, &["x"])]),
            keep(&[ann], "last"),
        ];
        // The answer is lost, or the COMMIT is on its way for long; and there is no other line.
        proxy.cut.closed.store(true, Ordering::SeqCst);
        match arrives {
            true => proxy.cut.answers.store(1, Ordering::SeqCst),
            false => proxy.cut.stop_at(Stop::Commit),
        }
        let result = node.connection.write(&batch);
        let Err(StoreError::InDoubt { key: first, .. }) = result else { panic!("{result:?}") };
        proxy.cut.closed.store(false, Ordering::SeqCst);
        let mut other = node.store.connection();
        eventually("the database can be reached", || other.account(ann).is_ok());
        let (mut again, mut key) = (Vec::new(), first);
        for write in &batch {
            again.push(kept(other.write_again(write, key).unwrap()));
            key += write.messages();
        }
        let pages = [ann, bob].map(|user| fixture.node.connection.page(user, usize::MAX).unwrap().messages);
        let [of_ann, of_bob] = pages.map(|page| page.into_iter().map(|(row, _)| row).collect::<Vec<_>>());
        let stored = |rows: &[RowId]| rows.iter().copied().map(Kept::Stored).collect::<Vec<_>>();
        assert_eq!(again, [stored(&[of_bob[0]]), stored(&[of_ann[0], of_bob[1]]), stored(&[of_ann[2]])], "{arrives}");
        // Too late.
        proxy.cut.go_on();
        assert_eq!(fixture.node.texts(ann), ["a", "b", "last"], "{arrives}");
        assert_eq!(fixture.node.texts(bob), ["first", "x"], "{arrives}");
    }
}

#[test]
fn while_one_worker_waits_for_a_silent_database_the_others_are_told_at_once() {
    let (_fixture, proxy, node, _, users) = behind_a_proxy();
    let [mut first, mut second] = [node.store.connection(), node.store.connection()];
    proxy.cut.closed.store(true, Ordering::SeqCst);
    let at_once = |connection: &mut Box<dyn Connection>| {
        let begun = Instant::now();
        assert!(connection.account(users[0]).is_err());
        begun.elapsed() < Duration::from_secs(2)
    };
    assert!(!at_once(&mut first), "nobody knows yet");
    assert!(at_once(&mut second) && at_once(&mut first));
    let connections = || proxy.cut.connections.load(Ordering::SeqCst);
    let before = connections();
    thread::scope(|scope| {
        scope.spawn(|| {
            eventually("the next try", || {
                let _ = first.account(users[0]);
                connections() > before
            });
        });
        eventually("the next try", || connections() > before);
        assert!(at_once(&mut second));
        assert_eq!(connections(), before + 1);
        proxy.cut.closed.store(false, Ordering::SeqCst);
    });
    eventually("all to work again", || second.account(users[0]).is_ok() && first.account(users[0]).is_ok());
}

#[test]
fn a_database_that_is_killed_is_unavailable_at_once_and_comes_back_with_all_that_was_committed() {
    let mut server = MariaDb::start();
    let mut node = Node::open(options(server.url("chat"), 1));
    let mut other = node.store.connection();
    let ann = node.user("ann");
    node.keep(&[ann], "before");
    other.account(ann).unwrap();
    node.one(claim(ann, 1));
    server.kill();
    let begun = Instant::now();
    for _ in 0..50 {
        assert!(node.connection.write(&[keep(&[ann], "lost"), claim(ann, 1)]).is_err());
        assert!(node.connection.account(ann).is_err());
        assert!(other.page(ann, 100).is_err());
        assert!(node.membership().nodes().is_err());
    }
    assert!(node.store.release_all().is_err());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(matches!(MySqlStore::open(options(server.url("chat"), 1)), Err(OpenError::Unreachable { .. })));
    server.restart();
    eventually("the database to be back", || node.connection.account(ann).is_ok());
    assert_eq!(node.texts(ann), ["before"]);
    assert_eq!(node.one(claim(ann, 1)), Outcome::Done);
    assert_eq!(node.one(claim(ann, 2)), Outcome::InUse(node.claimed_as(1)));
    // A connection that lay idle all the while notices only now, and no other one does.
    assert!(other.account(ann).unwrap().is_some());
    // Killed and back between two uses: no error comes out.
    server.kill();
    server.restart();
    assert!(node.connection.account(ann).unwrap().is_some());
    row(other.write(&[keep(&[ann], "after")]).map(|mut outcomes| kept(outcomes.remove(0))[0]).unwrap());
    assert_eq!(node.texts(ann), ["before", "after"]);
}

#[test]
fn a_message_too_large_for_the_database_is_refused_and_others_go_on() {
    let server = MariaDb::with(&["--max-allowed-packet=64K"]);
    let mut node = Node::open(options(server.url("chat"), 1));
    let [ann, bob] = node.users(["ann", "bob"]);
    let large = "x".repeat(70_000);
    assert_eq!(node.keep(&[ann], &large), [Kept::Refused(0)]);
    // In a batch, among a write's parcels, and among a parcel's messages it is the only one.
    let some = Write::Keep(vec![parcel(ann, &["1"]), parcel(ann, &["2", &large, "3"]), parcel(bob, &["4"])]);
    let outcomes = node.write(&[keep(&[bob], "0"), some, keep(&[ann], &large), keep(&[ann], "5")]);
    let [first, second, third, fourth] = <[Outcome; 4]>::try_from(outcomes).unwrap().map(kept);
    assert!(matches!(first[..], [Kept::Stored(_)]) && matches!(fourth[..], [Kept::Stored(_)]));
    assert!(matches!(second[..], [Kept::Stored(_), Kept::Refused(1), Kept::Stored(_)]), "{second:?}");
    assert_eq!(third, [Kept::Refused(0)]);
    assert_eq!(
        (node.texts(ann), node.texts(bob)),
        (vec!["1".into(), "2".into(), "5".into()], vec!["0".into(), "4".into()])
    );
    // A question beside one that is refused is still answered.
    let mut other = Node::open(options(server.url("chat"), 2));
    assert_eq!(other.one(claim(bob, 1)), Outcome::Done);
    let asked = Parcel { past: Some(other.claimed_as(1)), ..parcel(bob, &[]) };
    let past = Parcel { messages: vec![large.as_bytes().into()], ..asked.clone() };
    let some = Write::Keep(vec![parcel(bob, &[]), past, asked.clone(), parcel(bob + 1000, &[])]);
    let elsewhere = Kept::Elsewhere(other.claimed_as(1));
    assert_eq!(kept(node.one(some)), [elsewhere, Kept::Refused(0), Kept::Past(0), Kept::NoUser]);
    let both = Parcel { messages: vec![b"5"[..].into(), b"6"[..].into()], ..asked };
    let outcome = kept(node.one(Write::Keep(vec![both, parcel(ann, &[&large])])));
    assert!(matches!(outcome[..], [Kept::Past(1..), Kept::Refused(0)]), "{outcome:?}");
    // Many that fit do not have to fit into one packet together.
    let messages = ["y".repeat(20_000), "z".repeat(60_000), "y".repeat(20_000)];
    node.one(Write::Keep(vec![parcel(ann, &[messages[0].as_str(); 40]), parcel(ann, &[&messages[1], &messages[2]])]));
    assert_eq!(node.texts(ann).len(), 45);
}

#[test]
fn a_write_that_the_database_refuses_fails_alone() {
    let mut fixture = Fixture::new();
    let mut foreign = fixture.foreign();
    let node = &mut fixture.node;
    let [ann, bob] = node.users(["ann", "bob"]);
    let group = node.group(ann, "readers");
    let claimed = node.users(["0", "1", "2", "3", "4", "5"]);
    let batch = |round: u32| {
        vec![
            keep(&[ann], &format!("before {round}")),
            create_group(ann, &format!("group {round}")),
            register(&format!("user {round}")),
            Write::AddFriend { user: bob, friend: ann },
            claim(claimed[round as usize], 1),
            Write::Keep(vec![parcel(bob, &[&format!("b{round}")]), parcel(ann, &["no", "more"]), parcel(bob, &["c"])]),
            Write::JoinGroup { user: bob, group },
            keep(&[ann, bob], &format!("after {round}")),
        ]
    };
    let triggers = [
        ("ids", "ALTER TABLE AllGroup AUTO_INCREMENT = 2147483647; INSERT INTO AllGroup (groupname) VALUES ('last')"),
        ("friends", "CREATE TRIGGER f BEFORE INSERT ON Friend FOR EACH ROW SIGNAL SQLSTATE '45000'"),
        ("claims", "CREATE TRIGGER u BEFORE UPDATE ON User FOR EACH ROW SIGNAL SQLSTATE '45000'"),
        ("joins", "CREATE TRIGGER g BEFORE INSERT ON GroupUser FOR EACH ROW SIGNAL SQLSTATE '45000'"),
        ("names", "CREATE TRIGGER n BEFORE INSERT ON User FOR EACH ROW SIGNAL SQLSTATE '45000'"),
        (
            "messages",
            "CREATE TRIGGER m BEFORE INSERT ON OfflineMessage FOR EACH ROW
             IF NEW.message = 'no' THEN SIGNAL SQLSTATE '45000'; END IF",
        ),
    ];
    let is_refused = |outcome: &Outcome| matches!(outcome, Outcome::Refused(why) if why.contains("(error "));
    for (round, (what, sql)) in (0..).zip(triggers) {
        foreign.query_drop(sql).unwrap();
        let outcomes = node.write(&batch(round));
        // All that is refused by now, and nothing else.
        let refused: Vec<usize> = (0..outcomes.len()).filter(|&index| is_refused(&outcomes[index])).collect();
        let expected = [&[1][..], &[1, 3], &[1, 3, 4], &[1, 3, 4, 6], &[1, 2, 3, 4, 6], &[1, 2, 3, 4, 6]];
        assert_eq!(refused, expected[round as usize], "{what}: {outcomes:?}");
        let kept = kept(outcomes[5].clone());
        assert!(matches!(kept[..], [Kept::Stored(_), _, Kept::Stored(_)]), "{what}: {kept:?}");
        assert_eq!(kept[1] == Kept::Refused(0), what == "messages", "{kept:?}");
        let texts = node.texts(ann);
        assert!(texts.ends_with(&[format!("after {round}")]) && texts.contains(&format!("before {round}")));
        // Each once, although it was tried together with the others at first.
        assert_eq!(texts.iter().filter(|text| **text == format!("before {round}")).count(), 1);
    }
    let lines: u32 =
        foreign.query_first("SELECT COUNT(*) FROM AllGroup WHERE groupname LIKE 'group%'").unwrap().unwrap();
    assert_eq!(lines, 0);
}

// ---- Many at once

#[test]
fn many_connections_keep_to_the_same_users_and_nothing_is_lost_or_out_of_order() {
    const ROUNDS: usize = 40;
    let mut fixture = Fixture::new();
    let users = fixture.node.users(["a", "b", "c", "d", "e", "f"]);
    let nodes = [fixture.node(21), fixture.node(22)];
    let start = Barrier::new(8);
    let running = Arc::new(());
    thread::scope(|scope| {
        // A concurrent reader sees rows come at the end only: what it has read it can remove.
        let (mut reader, watch) = (fixture.node.store.connection(), Arc::downgrade(&running));
        scope.spawn(move || {
            let mut seen = Vec::new();
            while watch.strong_count() > 0 {
                let page = reader.page(users[0], usize::MAX).unwrap().messages;
                let rows: Vec<RowId> = page.into_iter().map(|(row, _)| row).collect();
                assert!(rows.starts_with(&seen), "{seen:?}, and then {rows:?}");
                seen = rows;
            }
        });
        for sender in 0..8 {
            let mut connection = nodes[sender % 2].store.connection();
            let (start, running) = (&start, Arc::clone(&running));
            scope.spawn(move || {
                let _running = running;
                let mut rng = Rng::new();
                start.wait();
                for round in 0..ROUNDS {
                    // Writes to all of them, in any order, in two writes.
                    let mut order: Vec<UserId> = users.to_vec();
                    (0..order.len()).for_each(|index| order.swap(index, rng.below(users.len())));
                    let text = format!("{sender} {round}");
                    let (some, rest) = order.split_at(rng.below(users.len()));
                    let outcomes = connection.write(&[keep(some, &text), keep(rest, &text)]).unwrap();
                    outcomes.into_iter().flat_map(kept).for_each(|kept| _ = row(kept));
                }
            });
        }
        drop(running);
    });
    for user in users {
        let mut next = [0; 8];
        for text in fixture.node.texts(user) {
            let (sender, round) = text.split_once(' ').unwrap();
            let next = &mut next[sender.parse::<usize>().unwrap()];
            assert_eq!(round, next.to_string(), "to {user} from {sender}");
            *next += 1;
        }
        assert_eq!(next, [ROUNDS; 8]);
    }
}

#[test]
fn a_keep_waits_for_a_claim_that_is_under_way() {
    let fixture = Fixture::on(Arc::new(MariaDb::start()));
    let [ann] = fixture.node(30).users(["ann"]);
    let (keeper, mut claimer, mut root) = (fixture.node(31), fixture.foreign(), fixture.foreign());
    claimer.query_drop(format!("START TRANSACTION; UPDATE User SET node = 32, epoch = 5 WHERE id = {ann}")).unwrap();
    let mut connection = keeper.store.connection();
    thread::scope(|scope| {
        let keeping = scope.spawn(move || kept(connection.write(&[keep(&[ann], "{}")]).unwrap().remove(0)));
        eventually("it to wait", || {
            assert!(!keeping.is_finished(), "it has looked past the claim");
            waiting(&mut root) == 1
        });
        claimer.query_drop("COMMIT").unwrap();
        let there = Holder::Node(Claim { node: NodeId(32), epoch: 5 });
        assert_eq!(keeping.join().unwrap(), [Kept::Elsewhere(there)]);
    });
}

#[test]
fn a_keep_comes_before_or_after_a_claim_and_the_lower_row_is_never_seen_later() {
    let mut fixture = Fixture::new();
    let [ann, bob] = fixture.node.users(["ann", "bob"]);
    let [keeper, mut claimer, reaper] = [fixture.node(31), fixture.node(32), fixture.node(33)];
    let kept_by = AtomicU64::new(0);
    let claims = 60;
    thread::scope(|scope| {
        // Dropped at the end, or when an assertion fails.
        let running = Arc::new(());
        let ended = |running: &Weak<()>| running.strong_count() == 0;
        for _ in 0..3 {
            let (mut connection, watch, kept_by) = (keeper.store.connection(), Arc::downgrade(&running), &kept_by);
            scope.spawn(move || {
                while !ended(&watch) {
                    for kept in kept(connection.write(&[keep(&[bob, ann], "{}")]).unwrap().remove(0)) {
                        kept_by.fetch_add(u64::from(matches!(kept, Kept::Stored(_))), Ordering::SeqCst);
                    }
                }
            });
        }
        let watch = Arc::downgrade(&running);
        let mut membership = reaper.membership();
        scope.spawn(move || {
            // A node that finds claims of the dead while others claim: no deadlock comes out.
            while !ended(&watch) {
                membership.free(NodeId(99)).unwrap();
                membership.nodes().unwrap();
                membership.look().unwrap();
            }
        });
        let mut last_row = 0;
        for epoch in 1..=claims {
            assert_eq!(claimer.one(claim(ann, epoch)), Outcome::Done);
            let seen = claimer.connection.page(ann, usize::MAX).unwrap().messages;
            // All that came before the claim is there by now, and nothing comes while it holds.
            thread::yield_now();
            let again = claimer.connection.page(ann, usize::MAX).unwrap().messages;
            assert_eq!(seen.len(), again.len());
            assert!(seen.iter().all(|(row, _)| *row > last_row));
            last_row = seen.last().map_or(last_row, |(row, _)| *row);
            let rows = seen.iter().map(|(row, _)| *row).collect();
            claimer.write(&[Write::Remove { user: ann, epoch, rows }, Write::Release { user: ann, epoch }]);
        }
        drop(running);
    });
    assert!(kept_by.load(Ordering::SeqCst) > claims, "{kept_by:?}");
}

#[test]
fn of_many_who_claim_or_register_the_same_at_once_one_has_it() {
    let mut fixture = Fixture::new();
    let ann = fixture.node.user("ann");
    let mut nodes: Vec<Node> = (41..49).map(|id| fixture.node(id)).collect();
    let (start, claimed, registered) = (Barrier::new(8), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for Node { id, connection, .. } in &mut nodes {
            let (start, claimed, registered) = (&start, &claimed, &registered);
            scope.spawn(move || {
                connection.account(ann).unwrap();
                start.wait();
                let outcome = connection.write(&[claim(ann, 1)]).unwrap().remove(0);
                claimed.fetch_add(usize::from(outcome == Outcome::Done), Ordering::SeqCst);
                start.wait();
                // Names in opposite orders wait for each other in a circle.
                let mut names: Vec<_> = (0..20).map(|n| register(&format!("name {n}"))).collect();
                if id.0 % 2 == 0 {
                    names.reverse();
                }
                let outcomes = connection.write(&names).unwrap();
                let ids = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Id(_)));
                registered.fetch_add(ids.count(), Ordering::SeqCst);
            });
        }
    });
    assert_eq!((claimed.into_inner(), registered.into_inner()), (1, 20));
}

// ---- Opening

#[test]
fn schema_sql_is_what_the_server_makes_and_many_nodes_can_make_it_at_once() {
    let server = MariaDb::start();
    let start = Barrier::new(6);
    thread::scope(|scope| {
        for node in 0..6 {
            let (server, start) = (&server, &start);
            scope.spawn(move || {
                start.wait();
                Node::open(options(server.url("made by the server"), node));
            });
        }
    });
    let mut client = Command::new("mariadb")
        .args(["--no-defaults", "-h127.0.0.1", "-uroot", "-p123456", &format!("-P{}", server.port())])
        .stdin(Stdio::piped())
        .spawn()
        .expect("mariadb can be started");
    client.stdin.take().unwrap().write_all(include_bytes!("../schema.sql")).unwrap();
    assert!(client.wait().unwrap().success());
    let schema = |database: &str| {
        let mut conn = Conn::new(server.url(database).as_str()).unwrap();
        let own =
            conn.query_first::<(String, String), _>("SHOW CREATE DATABASE `".to_owned() + database + "`").unwrap();
        let mut text = own.unwrap().1.replace(database, "…");
        for table in ["User", "Friend", "AllGroup", "GroupUser", "OfflineMessage", "NodeMark", "NodeLooks"] {
            let (_, create): (String, String) =
                conn.query_first(format!("SHOW CREATE TABLE {table}")).unwrap().unwrap();
            text += &create;
        }
        text
    };
    let by_hand = schema("chat");
    assert!(by_hand.contains("INVISIBLE") && by_hand.contains("utf8mb4_unicode_520_ci"));
    assert_eq!(schema("made%20by%20the%20server".replace("%20", " ").as_str()), by_hand);
}

#[test]
fn what_cannot_be_opened_says_what_to_do() {
    let server = shared();
    let database = server.new_database();
    Node::open(options(server.url(&database), 1));
    let refused = |options: Options| match MySqlStore::open(options) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it opens"),
    };
    let url = |url: String| refused(options(url, 1));
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let text = url(format!("mysql://root:123456@127.0.0.1:{closed}/chat"));
    assert!(text.contains("cannot reach") && text.contains(&closed.to_string()), "{text}");
    let text = url(server.url(&database).replace("123456", "654321"));
    assert!(text.contains("does not let root in") && text.contains("password") && !text.contains("654321"), "{text}");
    let mut root = Conn::new(server.url(&database).as_str()).unwrap();
    root.query_drop("CREATE USER IF NOT EXISTS guest@'127.0.0.1' IDENTIFIED BY 'g'").unwrap();
    for name in [&database, "no_such_database"] {
        let text = url(format!("mysql://guest:g@127.0.0.1:{}/{name}", server.port()));
        assert!(text.contains("CREATE DATABASE") && text.contains(name), "{text}");
    }
    assert!(url(server.url("")).contains("names no database"));
    assert!(url("http://example".to_owned()).contains("mysql://"));
    for charset in ["klingon", "gbk) --", ""] {
        let text = refused(Options { charset: charset.into(), ..options(server.url(&database), 1) });
        assert!(text.contains("no charset"), "{text}");
    }
    root.query_drop("ALTER TABLE Friend CHANGE friendid other INT NOT NULL").unwrap();
    let text = url(server.url(&database));
    assert!(text.contains("Friend") && text.contains("friendid"), "{text}");
}

#[test]
fn an_address_that_accepts_and_says_nothing_is_an_error_in_time() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let begun = Instant::now();
    let url = format!("mysql://root:123456@127.0.0.1:{}/chat", silent.local_addr().unwrap().port());
    assert!(matches!(MySqlStore::open(options(url, 1)), Err(OpenError::Unreachable { .. })));
    assert!(begun.elapsed() < Duration::from_secs(15));
}

// ---- When the database's own settings are against us

/// A user without SUPER, for whom the database runs its `init_connect`.
fn plain_user(root: &mut Conn, server: &MariaDb) -> String {
    root.query_drop("CREATE USER IF NOT EXISTS plain@'127.0.0.1' IDENTIFIED BY 'p'").unwrap();
    root.query_drop("GRANT ALL ON `chat%`.* TO plain@'127.0.0.1'").unwrap();
    let database = server.new_database();
    server.url(&database).replace("root:123456", "plain:p")
}

fn launch(store: String, flags: &[&str]) -> Launch {
    let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
    Launch { store, reactors: 1, workers: 2, flags, setup: String::new(), port: 0 }
}

/// Registers, logs in, chats with a user who is offline, makes a group and joins it; and all of it once
/// more when every connection to the database was cut.
#[track_caller]
fn go_through_everything(root: &mut Conn, store: String, what: &str) {
    let node = Server::start(&launch(store, &[]));
    for round in ["first", "second"] {
        let mut client = Client::connect(node.address);
        let name = |who: &str| format!("{who} 😀 {round}");
        let [ann, bob] = ["ann", "bob"].map(|who| client.register(&name(who), "geheim 密码 🔑"));
        let twice = client.request(json!({"msgid": 4, "name": name("ANN"), "password": "x"}));
        assert_eq!(twice["errno"], 1, "{what}: {twice}");
        client.login(&ann);
        client.befriend(bob.id);
        let group = client.create_group(&format!("group 🎉 {round}"));
        let texts = ["hello", "你好 😀", "👩‍👩‍👧 ünï \u{0}\\ '\""];
        texts.iter().for_each(|text| assert!(!client.chat(bob.id, text), "{what}"));
        let mut other = Client::connect(node.address);
        let reply = other.login(&bob);
        assert_eq!(other.texts(3), texts, "{what}");
        assert_eq!(reply["name"], name("bob"), "{what}");
        other.join(group);
        other.befriend(ann.id);
        assert!(client.chat(bob.id, "now you are here"), "{what}");
        assert_eq!(other.texts(1), ["now you are here"]);
        other.logout();
        let acked = client.group_chat(group, "to all 🎈");
        assert_eq!((&acked["delivered"], &acked["stored"]), (&json!(0), &json!(1)), "{what}");
        let reply = other.login(&bob);
        assert_eq!(other.texts(1), ["to all 🎈"], "{what}: {reply}");
        let (friends, groups) = (listed(&reply["friends"]), listed(&reply["groups"]));
        assert_eq!((&friends[0]["name"], &friends[0]["state"]), (&json!(name("ann")), &json!("online")), "{what}");
        assert_eq!(groups[0]["groupname"], format!("group 🎉 {round}"), "{what}");
        assert_eq!(listed(&groups[0]["users"]).len(), 2, "{what}");
        drop((client, other));
        cut_connections(root, "USER IN ('root', 'plain')");
    }
}

/// Ends connections to the database, but for the one that does it.
fn cut_connections(root: &mut Conn, which: &str) {
    let ids: Vec<u64> = root
        .query(format!("SELECT ID FROM information_schema.PROCESSLIST WHERE ID <> CONNECTION_ID() AND {which}"))
        .unwrap();
    for id in ids {
        let _ = root.query_drop(format!("KILL CONNECTION {id}")); // it may be gone already
    }
}

/// What a global can be, for harm.
const HOSTILE: &[(&str, &str)] = &[
    ("character_set_server", "'latin1'"),
    ("collation_server", "'latin1_bin'"),
    ("character_set_client", "'utf8mb3'"),
    ("character_set_connection", "'utf8mb3'"),
    ("character_set_results", "'latin1'"),
    ("init_connect", "'SET NAMES utf8mb3'"),
    ("init_connect", "'SET autocommit = 0; SET SESSION TRANSACTION READ ONLY'"),
    ("init_connect", "'USE information_schema'"),
    (
        "sql_mode",
        "'ANSI,NO_BACKSLASH_ESCAPES,NO_ZERO_DATE,IGNORE_SPACE,PAD_CHAR_TO_FULL_LENGTH,SIMULTANEOUS_ASSIGNMENT'",
    ),
    ("sql_mode", "''"),
    ("autocommit", "0"),
    ("completion_type", "'RELEASE'"),
    ("completion_type", "'CHAIN'"),
    ("sql_safe_updates", "1"),
    ("sql_select_limit", "1"),
    ("sql_big_selects", "0"),
    ("max_join_size", "1"),
    ("sql_auto_is_null", "1"),
    ("foreign_key_checks", "0"),
    ("unique_checks", "0"),
    ("tx_isolation", "'SERIALIZABLE'"),
    ("tx_isolation", "'READ-UNCOMMITTED'"),
    ("tx_read_only", "1"),
    ("max_statement_time", "0.000001"),
    ("lock_wait_timeout", "0"),
    ("innodb_lock_wait_timeout", "0"),
    ("auto_increment_increment", "7"),
    ("auto_increment_offset", "3"),
    ("group_concat_max_len", "4"),
    ("max_sort_length", "8"),
    ("wait_timeout", "1"),
    ("interactive_timeout", "1"),
    ("idle_transaction_timeout", "1"),
    ("idle_write_transaction_timeout", "1"),
    ("idle_readonly_transaction_timeout", "1"),
    ("net_read_timeout", "1"),
    ("net_write_timeout", "1"),
    ("max_allowed_packet", "131072"),
    ("default_storage_engine", "'MyISAM'"),
    ("tmp_disk_table_size", "1024"),
    ("tmp_memory_table_size", "1024"),
    ("max_heap_table_size", "16384"),
    ("max_session_mem_used", "65536"), // with 8192 MariaDB 10.11 crashes when a client connects
    ("in_predicate_conversion_threshold", "2"),
    ("optimizer_switch", "'derived_merge=off,semijoin=off,materialization=off,subquery_cache=off,index_merge=off'"),
    ("optimizer_search_depth", "1"),
    ("max_recursive_iterations", "0"),
    ("old_mode", "'NO_DUP_KEY_WARNINGS_WITH_IGNORE,ZERO_DATE_TIME_CAST'"),
    ("alter_algorithm", "'INSTANT'"),
    ("check_constraint_checks", "0"),
    ("explicit_defaults_for_timestamp", "0"),
    ("big_tables", "1"),
    ("sql_buffer_result", "1"),
    ("sql_notes", "0"),
    ("sql_warnings", "1"),
    ("sql_quote_show_create", "0"),
    ("low_priority_updates", "1"),
    ("updatable_views_with_limit", "0"),
    ("time_zone", "'-11:00'"),
    ("div_precision_increment", "0"),
    ("lc_messages", "'de_DE'"),
    ("innodb_strict_mode", "0"),
    ("innodb_default_row_format", "'REDUNDANT'"),
    ("innodb_flush_log_at_trx_commit", "0"),
    ("profiling", "1"),
    ("binlog_format", "'STATEMENT'"), // without a log it has no effect
];

#[test]
fn no_global_of_the_database_changes_what_is_stored_or_told() {
    let server = MariaDb::start();
    let mut root = Conn::new(server.url("").as_str()).unwrap();
    for (name, value) in HOSTILE {
        let before: Option<String> =
            root.query_first(format!("SELECT CAST(@@GLOBAL.{name} AS CHAR)")).unwrap().unwrap();
        let store = plain_user(&mut root, &server);
        root.query_drop(format!("SET GLOBAL {name} = {value}")).unwrap_or_else(|error| panic!("{name}: {error}"));
        go_through_everything(&mut root, store, &format!("{name} = {value}"));
        // Numbers are distinguished from text by their form.
        let before = before.unwrap_or_default();
        let before = if before.parse::<f64>().is_ok() { before } else { format!("'{before}'") };
        root.query_drop(format!("SET GLOBAL {name} = {before}")).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn all_of_them_together_change_nothing_either() {
    for further in ["--character-set-server=utf8mb3", "--character-set-server=ucs2"] {
        let server = MariaDb::with(&[
            "--skip-character-set-client-handshake",
            further,
            "--init-connect=SET NAMES utf8mb3, autocommit = 0, sql_safe_updates = 1; SET SESSION TRANSACTION READ ONLY",
            "--lower-case-table-names=1",
            "--sql-mode=ANSI,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH,SIMULTANEOUS_ASSIGNMENT",
            "--sql-safe-updates=1",
            "--max-join-size=1",
            "--transaction-isolation=SERIALIZABLE",
            "--lock-wait-timeout=1",
            "--innodb-lock-wait-timeout=1",
            "--auto-increment-increment=3",
            "--auto-increment-offset=2",
            "--max-sort-length=8",
            "--wait-timeout=1",
            "--idle-transaction-timeout=1",
            "--max-allowed-packet=128K",
            "--default-storage-engine=MyISAM",
            "--tmp-disk-table-size=1024",
            "--in-predicate-conversion-threshold=2",
            "--alter-algorithm=INSTANT",
            "--innodb-default-row-format=COMPACT",
        ]);
        let mut root = Conn::new(server.url("").as_str()).unwrap();
        let store = plain_user(&mut root, &server);
        root.query_drop("SET sql_big_selects = 1, tmp_disk_table_size = 1000000000").unwrap();
        // What would be against this test as well, if it connected again.
        for global in ["tx_read_only = 1", "autocommit = 0", "completion_type = 'CHAIN'", "sql_select_limit = 1"] {
            root.query_drop(format!("SET GLOBAL {global}")).unwrap();
        }
        root.query_drop("SET GLOBAL max_statement_time = 0.000001").unwrap();
        go_through_everything(&mut root, store, further);
    }
}

#[test]
fn what_can_never_work_is_refused_at_the_start_alone_and_with_others() {
    let redis = Redis::start();
    let server = MariaDb::with(&["--log-bin", "--binlog-format=MIXED", "--server-id=1"]);
    let mut root = Conn::new(server.url("").as_str()).unwrap();
    let refused = |store: &str, flags: &[&str]| {
        let output = refused_start(&launch(store.to_owned(), flags));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && !text.contains("123456") && !text.contains(":p@"), "{text}");
        let errors: Vec<&str> = text.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(errors.len(), 1, "{text}");
        errors[0].to_owned()
    };
    let redis_url = redis.url();
    let nodes: [&[&str]; 2] = [&[], &["--redis", &redis_url]];
    let cases = [
        ("SET GLOBAL binlog_format = 'STATEMENT'", "SET GLOBAL binlog_format = 'MIXED'", "binlog_format to ROW"),
        ("SET GLOBAL read_only = 1", "SET GLOBAL read_only = 0", "read_only"),
        ("SET GLOBAL max_prepared_stmt_count = 0", "SET GLOBAL max_prepared_stmt_count = 16382", "16382"),
        ("SET GLOBAL max_prepared_stmt_count = 10", "SET GLOBAL max_prepared_stmt_count = 16382", "16382"),
        ("SET GLOBAL max_allowed_packet = 1024", "SET GLOBAL max_allowed_packet = 16777216", "max_allowed_packet"),
    ];
    for made in [true, false] {
        for (harm, undo, remedy) in cases {
            let store = plain_user(&mut root, &server);
            if made {
                drop(Node::open(options(store.clone(), 1)));
            }
            root.query_drop(harm).unwrap();
            for flags in nodes {
                let text = refused(&store, flags);
                assert!(text.contains(remedy), "{harm}, tables made: {made}: {text}");
                // The cause appears there once.
                let cause = text.split("(error ").count();
                assert!(cause <= 2, "{text}");
            }
            root.query_drop(undo).unwrap();
            drop(Server::start(&launch(store, &[])));
        }
    }
    // A user without the rights for all that is needed.
    let store = plain_user(&mut root, &server);
    drop(Node::open(options(store.clone(), 1)));
    let database = store.rsplit('/').next().unwrap().to_owned();
    root.query_drop("CREATE USER some@'127.0.0.1' IDENTIFIED BY 'p'").unwrap();
    root.query_drop(format!("GRANT SELECT, INSERT, UPDATE ON {database}.* TO some@'127.0.0.1'")).unwrap();
    for flags in nodes {
        assert!(refused(&store.replace("plain:p", "some:p"), flags).contains("GRANT ALL"));
    }
    root.query_drop("SET GLOBAL enforce_storage_engine = 'Aria'").unwrap();
    let text = refused(&plain_user(&mut root, &server), &[]);
    assert!(text.contains("enforce_storage_engine"), "{text}");
}

// ---- Which servers use the database

/// The connection that holds a lock of the server on this database.
fn holder_of(root: &mut Conn, store: &str, what: &str) -> Option<u64> {
    let database = store.rsplit('/').next().unwrap();
    let sql = format!("SELECT IS_USED_LOCK(CONCAT('chat-server {what} ', LEFT(MD5('{database}'), 16)))");
    root.query_first::<Option<u64>, _>(sql).unwrap().flatten()
}

#[track_caller]
fn is_in_use(launch: &Launch, by: &str) {
    let output = refused_start(launch);
    let text = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<&str> = text.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(!output.status.success() && errors.len() == 1, "{text}");
    assert!(errors[0].contains("in use by") && errors[0].contains(by) && errors[0].contains("--redis"), "{text}");
}

#[test]
fn a_server_without_redis_has_its_database_for_itself() {
    let server = MariaDb::start();
    let redis = Redis::start();
    let alone = launch(server.url("chat"), &[]);
    let member = launch(server.url("chat"), &["--redis", &redis.url()]);
    let mut node = Server::start(&alone);
    let mut client = Client::connect(node.address);
    let account = client.register("ann", "secret");
    client.login(&account);
    is_in_use(&alone, "without --redis");
    is_in_use(&member, "without --redis");
    // They set no user offline, and another database is another matter.
    let mut root = Conn::new(server.url("chat").as_str()).unwrap();
    let online =
        |root: &mut Conn| root.query_first::<u32, _>("SELECT COUNT(*) FROM User WHERE state = 'online'").unwrap();
    assert_eq!(online(&mut root), Some(1));
    drop(Server::start(&launch(server.url("another"), &[])));
    // What a crash has left keeps no server out, neither alone nor with others.
    node.kill();
    assert_eq!(online(&mut root), Some(1));
    let mut node = Server::start(&alone);
    assert_eq!(online(&mut root), Some(0));
    Client::connect(node.address).login(&account);
    node.kill();
    let mut member_node = Server::start(&member);
    eventually("the dead one's user is offline", || online(&mut root) == Some(0));
    // Nor does one that is alone come in beside them, whether a user is online there or not.
    is_in_use(&alone, "with --redis");
    let other = Server::start(&member);
    assert!(member_node.stop("TERM").success());
    is_in_use(&alone, "with --redis");
    drop(other);
    assert!(Server::start(&alone).stop("TERM").success());
}

#[test]
fn two_clusters_do_not_share_a_database() {
    let server = MariaDb::start();
    let [ours, theirs] = [Redis::start(), Redis::start()];
    let member = launch(server.url("chat"), &["--redis", &ours.url()]);
    let stranger = launch(server.url("chat"), &["--redis", &theirs.url()]);
    let mut nodes = [Server::start(&member), Server::start(&member)];
    let mut client = Client::connect(nodes[0].address);
    let account = client.register("ann", "secret");
    client.login(&account);
    is_in_use(&stranger, "no lease");
    drop(Server::start(&member));
    // All of them crash, and even Redis has forgotten them.
    nodes.iter_mut().for_each(|node| node.kill());
    redis::cmd("FLUSHALL").exec(&mut ours.connect()).unwrap();
    let node = Server::start(&stranger);
    eventually("her account is free", || Client::connect(node.address).try_login(&account)["errno"] == 0);
}

#[test]
fn a_lock_that_is_lost_is_taken_again_or_ends_the_server() {
    let server = MariaDb::start();
    let redis = Redis::start();
    let mut root = Conn::new(server.url("").as_str()).unwrap();
    for (flags, what) in [(vec![], "alone"), (vec!["--redis".to_owned(), redis.url()], "member 0")] {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let store = server.url(&server.new_database());
        let mut node = Server::start(&launch(store.clone(), &flags));
        let first = holder_of(&mut root, &store, what).expect("it is held");
        root.query_drop(format!("KILL CONNECTION {first}")).unwrap();
        let mut second = None;
        eventually("it is held again", || {
            second = holder_of(&mut root, &store, what).filter(|holder| *holder != first);
            second.is_some()
        });
        assert!(node.is_alive());
        is_in_use(&launch(store.clone(), &[]), if flags.is_empty() { "without --redis" } else { "with --redis" });
        // Another server is quicker.
        let database = store.rsplit('/').next().unwrap();
        let mut other = Conn::new(server.url("").as_str()).unwrap();
        let take = format!("SELECT GET_LOCK(CONCAT('chat-server alone ', LEFT(MD5('{database}'), 16)), 20)");
        let taken: Option<i64> = thread::scope(|scope| {
            let waiting = scope.spawn(|| other.query_first(take).unwrap());
            if flags.is_empty() {
                eventually("the other one waits for it", || {
                    let sql = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE = 'User lock'";
                    root.query_first::<u32, _>(sql).unwrap() == Some(1)
                });
            }
            root.query_drop(format!("KILL CONNECTION {}", second.unwrap())).unwrap();
            waiting.join().unwrap()
        });
        assert_eq!(taken, Some(1));
        eventually("the server ends", || !node.is_alive());
        assert!(!node.wait().success());
        eventually("it says why", || node.log_tail().contains("lock on the database"));
        assert!(node.log_tail().contains("in use by"), "{}", node.log_tail());
    }
}

#[test]
fn a_database_that_was_away_is_kept_by_the_lock_again() {
    let mut server = MariaDb::start();
    let store = server.url("chat");
    let mut node = Server::start(&launch(store.clone(), &[]));
    server.kill();
    server.restart();
    let mut root = Conn::new(server.url("").as_str()).unwrap();
    eventually("it is held again", || holder_of(&mut root, &store, "alone").is_some());
    is_in_use(&launch(store, &[]), "without --redis");
    assert!(node.is_alive());
}

// ---- The tables of old servers

const ROWS: &str = "
    INSERT INTO User (name, password, state) VALUES ('zhang san', '123456', 'online'), ('José', 'pä', 'offline'),
        ('li si', '666666', 'offline');
    INSERT INTO Friend VALUES (1, 3), (1, 2), (2, 1);
    INSERT INTO AllGroup (groupname, groupdesc) VALUES ('C++ chat project', 'café'), ('readers', '');
    INSERT INTO GroupUser VALUES (1, 1, 'creator'), (1, 3, 'normal'), (2, 2, 'creator'), (2, 1, 'normal');
    INSERT INTO OfflineMessage VALUES (2, '{\"msg\":\"é\"}'), (1, '{\"msg\":\"old\"}')";

/// A database that some C++ server has used.
struct Old {
    server: Arc<MariaDb>,
    database: String,
    conn: Conn,
    /// The tables' names, in the order of [`TABLES`].
    tables: [String; 5],
}

const TABLES: [&str; 5] = ["User", "Friend", "AllGroup", "GroupUser", "OfflineMessage"];

impl Old {
    /// Makes one with the server's default charset, tables and rows; `lower`: the tables' names.
    fn new(charset: &str, lower: bool, statements: &[&str]) -> Old {
        let server = shared();
        let database = server.new_database();
        let mut conn = Conn::new(server.url("").as_str()).unwrap();
        conn.query_drop(format!("CREATE DATABASE {database} CHARACTER SET {charset}")).unwrap();
        conn.query_drop(format!("USE {database}")).unwrap();
        let tables = TABLES.map(|table| if lower { table.to_lowercase() } else { table.to_owned() });
        let mut old = Old { server, database, conn, tables };
        for statement in statements.iter().flat_map(|statements| statements.split(';')) {
            old.run(statement);
        }
        old
    }

    /// Does a statement with the tables' names as they are here.
    fn run(&mut self, statement: &str) {
        let sql = self.named(statement);
        self.conn.query_drop(&sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
    }

    fn named(&self, statement: &str) -> String {
        TABLES
            .iter()
            .zip(&self.tables)
            .rev()
            .fold(statement.to_owned(), |sql, (canon, table)| sql.replace(canon, table))
    }

    fn open(&self) -> Node {
        Node::open(options(self.server.url(&self.database), 1))
    }

    /// Everything in it, as `select *` has it.
    fn rows(&mut self) -> Vec<Vec<Vec<String>>> {
        let text = |value: mysql::Value| match value {
            mysql::Value::Bytes(bytes) => String::from_utf8(bytes).unwrap(),
            other => format!("{other:?}"),
        };
        let tables = self.tables.clone();
        let of_table = |table: &String| {
            let rows: Vec<mysql::Row> = self.conn.query(format!("SELECT * FROM {table}")).unwrap();
            let mut rows: Vec<Vec<String>> =
                rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect();
            rows.sort();
            rows
        };
        tables.iter().map(of_table).collect()
    }

    /// What the tables are.
    fn schema(&mut self) -> Vec<String> {
        let mut create = |table: &String| {
            self.conn.query_first::<(String, String), _>(format!("SHOW CREATE TABLE {table}")).unwrap().unwrap().1
        };
        let tables: Vec<String> = self.tables.iter().map(&mut create).collect();
        let names: Vec<String> = self.conn.query("SHOW TABLES").unwrap();
        assert_eq!(names.len(), 7, "{names:?}");
        // The next id is no part of what a table is.
        let next_id = |table: &str| {
            table.split(' ').filter(|word| !word.starts_with("AUTO_INCREMENT=")).collect::<Vec<_>>().join(" ")
        };
        tables.iter().map(|table| next_id(table)).collect()
    }

    /// Opens it twice, and looks whether all is there and works, for C++ servers as for us. The
    /// rows are compared with those of before.
    fn check(&mut self, rows: &[Vec<Vec<String>>]) {
        let mut node = self.open();
        assert_eq!(self.rows(), rows);
        let schema = self.schema();
        self.open();
        assert_eq!((self.rows(), self.schema()), (rows.to_vec(), schema.clone()));
        for table in &schema {
            assert!(!table.contains("latin1 ") || table.contains("enum"), "{table}");
        }
        // What C++ servers do.
        self.run("insert into User(name,password,state) values('cpp', 'p', 'offline')");
        self.run("insert into OfflineMessage values(2, '{\"msg\":\"one\"}')");
        self.run("insert into OfflineMessage values(2, '{\"msg\":\"two\"}')");
        self.run("insert into Friend values(3, 1)");
        self.run("insert into GroupUser values(2, 3, 'normal')");
        self.run("insert into User values(900, 'by position', 'p', 'offline')");
        self.run("delete from User where id = 900");
        let user: mysql::Row = self.conn.query_first(self.named("select * from User where id = 2")).unwrap().unwrap();
        assert_eq!(
            user.columns_ref().iter().map(|column| column.name_str()).collect::<Vec<_>>(),
            ["id", "name", "password", "state"]
        );
        assert_eq!(user.get::<String, _>(1).unwrap(), "José");
        let message = self.named("select message from OfflineMessage where userid = 2");
        assert_eq!(self.conn.query::<String, _>(message).unwrap().len(), 3);
        // What we do.
        assert_eq!(
            node.connection.account(2).unwrap().unwrap(),
            Account { name: "José".into(), password: "pä".into() }
        );
        let long = format!("{{\"msg\":\"{}\"}}", "😀".repeat(50_000));
        row(node.keep(&[2], &long)[0]);
        assert_eq!(node.texts(2)[1..], ["{\"msg\":\"one\"}".to_owned(), "{\"msg\":\"two\"}".to_owned(), long]);
        let password = "x".repeat(150);
        assert_eq!(node.one(Write::SetPassword { user: 2, password: password.clone() }), Outcome::Done);
        assert_eq!(node.connection.account(2).unwrap().unwrap().password, password);
        assert_eq!(node.one(Write::SetDialect { user: 2, dialect: Some("qt".into()) }), Outcome::Done);
        let spoken = |node: &mut Node, user| node.connection.load(user, 0).unwrap().dialect;
        assert_eq!((spoken(&mut node, 1), spoken(&mut node, 2).as_deref()), (None, Some("qt")));
        assert_eq!(node.one(claim(1, 1)), Outcome::InUse(Holder::Foreign));
        assert_eq!(node.one(claim(2, 1)), Outcome::Done);
        assert_eq!(node.write(&[register("JOSÉ"), register("CPP")]), [Outcome::Already, Outcome::Already]);
        assert_eq!(node.one(create_group(1, "READERS")), Outcome::Already);
        node.group(1, "new 😀");
        let friends: Vec<_> = node.connection.friends(1).unwrap().into_iter().map(|friend| friend.id).collect();
        assert_eq!(friends, [2, 3]);
        assert_eq!(node.connection.members(2).unwrap(), Some(vec![1, 2, 3]));
        let add = [Write::AddFriend { user: 1, friend: 2 }, Write::JoinGroup { user: 1, group: 2 }];
        assert_eq!(node.write(&add), [Outcome::Already, joined(true, &[])]);
        let role = &node.connection.groups(1).unwrap()[0];
        assert_eq!((role.groupdesc.as_str(), role.users[0].role), ("café", "creator"));
    }
}

#[test]
fn the_references_tables_are_brought_up_to_date() {
    for charset in ["latin1", "utf8mb3", "utf8mb4"] {
        let mut old = Old::new(charset, false, &[REFERENCE, ROWS]);
        let rows = old.rows();
        old.check(&rows);
    }
}

#[test]
fn a_user_table_of_ours_from_before_dialects_gets_the_column_and_keeps_its_rows() {
    let mut fixture = Fixture::new();
    let [ann, bob] = fixture.node.users(["ann", "bob"]);
    assert_eq!(fixture.node.one(claim(bob, 3)), Outcome::Done);
    let mut root = fixture.foreign();
    let table = |root: &mut Conn| root.query_first::<(String, String), _>("SHOW CREATE TABLE User").unwrap().unwrap().1;
    let rows = |root: &mut Conn| -> Vec<mysql::Row> {
        root.query("SELECT *, node, epoch, namekey, namesake FROM User ORDER BY id").unwrap()
    };
    let (schema, before) = (table(&mut root), rows(&mut root));
    assert!(schema.contains("`dialect` varchar(255) CHARACTER SET ascii"), "{schema}");
    root.query_drop("ALTER TABLE User DROP COLUMN dialect").unwrap();
    // The second one finds nothing to alter.
    for id in 2..4 {
        let mut node = fixture.node(id);
        assert_eq!(table(&mut root), schema);
        assert_eq!(format!("{:?}", rows(&mut root)), format!("{before:?}"));
        let remembered = (id == 3).then_some("qt");
        assert_eq!(node.connection.load(ann, 0).unwrap().dialect.as_deref(), remembered, "{id}");
        node.one(Write::SetDialect { user: ann, dialect: Some("qt".into()) });
        assert_eq!(node.one(claim(bob, 1)), Outcome::InUse(fixture.node.claimed_as(3)));
    }
}

#[test]
fn a_copys_tables_are_brought_up_to_date() {
    let mut old = Old::new("utf8mb3", false, &[COPY, ROWS]);
    // What a table without keys lets in: members twice, and several messages.
    old.run("INSERT INTO OfflineMessage VALUES (3, '1'), (3, '2'), (3, '3')");
    let rows = old.rows();
    old.run("INSERT INTO GroupUser VALUES (1, 1, 'normal'), (1, 1, NULL), (1, 3, 'normal')");
    old.check(&rows);
    assert_eq!(old.open().texts(3), ["1", "2", "3"]);
}

#[test]
fn tables_in_lower_case_are_used_as_they_are_found() {
    let mut old = Old::new("latin1", true, &[COPY, ROWS]);
    let rows = old.rows();
    old.check(&rows);
}

#[test]
fn tables_that_know_no_transactions_are_brought_up_to_date() {
    let mut old = Old::new("latin1", false, &["SET default_storage_engine = MyISAM", REFERENCE, ROWS]);
    let rows = old.rows();
    old.check(&rows);
    assert!(old.schema().iter().all(|table| table.contains("ENGINE=InnoDB")));
}

#[test]
fn a_table_that_is_missing_is_made_in_the_others_case() {
    for lower in [false, true] {
        let mut old = Old::new("latin1", lower, &[REFERENCE, "DROP TABLE OfflineMessage; DROP TABLE GroupUser"]);
        let mut node = old.open();
        old.run("insert into User(name,password,state) values('cpp', 'p', 'offline')");
        row(node.keep(&[1], "{}")[0]);
        old.run("insert into OfflineMessage values(1, '{}')");
        assert_eq!(node.texts(1), ["{}", "{}"]);
        old.schema();
    }
}

#[test]
fn group_names_that_are_there_twice_stay_and_new_ones_are_checked() {
    let mut old = Old::new("latin1", false, &[COPY, ROWS, "INSERT INTO AllGroup (groupname) VALUES ('readers')"]);
    let rows = old.rows();
    old.check(&rows);
    let schema = old.schema();
    assert!(!schema[2].contains("UNIQUE KEY `groupname`"), "{}", schema[2]);
    // Six creations of a group of the same name at once: one succeeds.
    let nodes = [old.open(), old.open()];
    let start = Barrier::new(6);
    let created: usize = thread::scope(|scope| {
        let create = |n: usize| {
            let (mut connection, start) = (nodes[n % 2].store.connection(), &start);
            scope.spawn(move || {
                start.wait();
                usize::from(connection.write(&[create_group(1, "the same")]).unwrap() != [Outcome::Already])
            })
        };
        let threads: Vec<_> = (0..6).map(create).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(created, 1);
    // Once an administrator has renamed one, names are unique for good.
    old.run("UPDATE AllGroup SET groupname = 'writers', namekey = NULL WHERE id = 3");
    old.open();
    assert!(old.schema()[2].contains("UNIQUE KEY `groupname"));
    assert_eq!(old.open().one(create_group(1, "Writers")), Outcome::Already);
}

// ---- Which names are the same

/// What was logged, by whichever test.
fn logged() -> &'static Mutex<Vec<String>> {
    static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());
    struct Logger;
    impl log::Log for Logger {
        fn enabled(&self, metadata: &log::Metadata) -> bool {
            metadata.level() <= log::Level::Warn
        }
        fn log(&self, record: &log::Record) {
            if self.enabled(record.metadata()) {
                LOGGED.lock().unwrap_or_else(PoisonError::into_inner).push(record.args().to_string());
            }
        }
        fn flush(&self) {}
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Logger).expect("the first");
        log::set_max_level(log::LevelFilter::Warn);
    });
    &LOGGED
}

impl Old {
    /// For each user: its id, whether its name has a key, and the user whose name is the same.
    fn keys(&mut self) -> Vec<(u32, bool, Option<u32>)> {
        let sql = self.named("SELECT id, namekey IS NOT NULL, namesake FROM User ORDER BY id");
        self.conn.query(sql).unwrap()
    }
}

#[test]
fn accounts_that_are_there_and_collide_keep_their_names_and_the_later_has_no_key() {
    for lower in [false, true] {
        let logged = logged();
        let mut old = Old::new("latin1 COLLATE latin1_bin", lower, &[REFERENCE, ROWS]);
        old.run(
            "INSERT INTO User (name, password) VALUES ('jOSÉ', 'p'), ('LI  si ', 'p'), ('Jose', 'p'), ('li sI', 'p')",
        );
        let rows = old.rows();
        old.check(&rows);
        // The last one is check's.
        let mut expected = vec![
            (1, true, None),
            (2, true, None),
            (3, true, None),
            (4, false, Some(2)),
            (5, false, Some(3)),
            (6, true, None),
        ];
        expected.extend([(7, false, Some(3)), (8, true, None)]);
        assert_eq!(old.keys(), expected);
        assert!(old.schema()[0].contains("UNIQUE KEY `name`"));
        assert!(old.schema()[0].contains("`name` varchar(50) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL"));
        {
            let logged = logged.lock().unwrap_or_else(PoisonError::into_inner);
            let says = |name: &str, owner: &str| {
                logged.iter().any(|line| line.contains(&format!("{name:?}")) && line.contains(owner))
            };
            assert!(says("jOSÉ", "2") && says("LI  si ", "3") && says("li sI", "3"), "{logged:?}");
        }
        // Found once, they are not looked at before each insert.
        let mut node = old.open();
        assert_eq!(node.connection.account(5).unwrap().unwrap().name, "LI  si ");
        let user = old.tables[0].clone();
        let unseen = format!("SELECT COUNT(*) FROM {user} WHERE namekey IS NULL AND namesake IS NULL");
        assert_eq!(old.conn.query_first::<u32, _>(unseen).unwrap(), Some(0));
        for taken in ["josé", "li si", "LI SI", "jose"] {
            assert_eq!(node.one(register(taken)), Outcome::Already, "{taken}");
        }
        // One is renamed by hand, and the first of two others goes: the next start gives both their keys.
        old.run("UPDATE User SET name = 'Pepe' WHERE id = 4");
        old.run("DELETE FROM User WHERE id = 3");
        let mut node = old.open();
        assert_eq!(
            old.keys(),
            [
                (1, true, None),
                (2, true, None),
                (4, true, None),
                (5, true, None),
                (6, true, None),
                (7, false, Some(5)),
                (8, true, None)
            ]
        );
        assert_eq!(node.write(&[register("pepe"), register("li si")]), [Outcome::Already, Outcome::Already]);
    }
}

#[test]
fn names_that_cpp_servers_add_are_seen_before_the_next_of_ours_and_cost_no_id() {
    let mut fixture = Fixture::new();
    let mut foreign = fixture.foreign();
    let node = &mut fixture.node;
    let ann = node.user("ann");
    // An exact double is refused to C++ servers by the index over the bytes; any other name is not.
    let add = |foreign: &mut Conn, name: &str| {
        foreign.query_drop(format!("insert into User(name,password,state) values('{name}', 'p', 'offline')"))
    };
    assert!(add(&mut foreign, "ann").is_err());
    add(&mut foreign, "Bob").unwrap();
    add(&mut foreign, "ANN").unwrap();
    foreign.query_drop("insert into AllGroup(groupname,groupdesc) values('Readers', '')").unwrap();
    let next_user = node.user("x") + 1;
    let next_group = node.group(ann, "x") + 1;
    for _ in 0..50 {
        let refused = [register("BOB"), register("Ann"), register("ANN"), create_group(ann, "ｒeaders")];
        assert_eq!(node.write(&refused), [Outcome::Already, Outcome::Already, Outcome::Already, Outcome::Already]);
    }
    assert_eq!((node.user("y"), node.group(ann, "y")), (next_user, next_group));
    let state: Vec<(String, bool, Option<u32>)> =
        foreign.query("SELECT name, namekey IS NOT NULL, namesake FROM User ORDER BY id").unwrap();
    let of = |name: &str| state.iter().find(|(own, ..)| own == name).unwrap().clone();
    assert_eq!(of("Bob"), ("Bob".into(), true, None));
    assert_eq!(of("ANN"), ("ANN".into(), false, Some(ann)));
    // A name that was changed by hand, with its old key: the name in the row counts, too.
    foreign.query_drop("UPDATE User SET name = 'renamed' WHERE name = 'Bob'").unwrap();
    assert_eq!(node.write(&[register("renamed"), register("bob")]), [Outcome::Already, Outcome::Already]);
    assert_eq!(node.user("z"), next_user + 1);
    // Renamed as it should be: the name goes to the one that has waited for it.
    foreign.query_drop("UPDATE User SET name = 'annette', namekey = NULL, namesake = NULL WHERE name = 'ann'").unwrap();
    assert_eq!(node.write(&[register("Ann"), register("Annette")]), [Outcome::Already, Outcome::Already]);
    let keyed =
        "SELECT COUNT(*) FROM User WHERE name IN ('ANN', 'annette') AND namekey IS NOT NULL AND namesake IS NULL";
    assert_eq!(foreign.query_first::<u32, _>(keyed).unwrap(), Some(2));
    // What C++ servers see has not changed.
    let user: mysql::Row = foreign.query_first("select * from User where id = 1").unwrap().unwrap();
    assert_eq!(user.len(), 4);
    foreign.query_drop("insert into User values(900, 'by position', 'p', 'offline')").unwrap();
    assert_eq!(node.connection.load(900, 0).unwrap().dialect, None);
    foreign.query_drop("insert into AllGroup values(900, 'by position', '')").unwrap();
    assert_eq!(node.one(register("By Position")), Outcome::Already);
}

#[test]
fn a_group_that_a_quota_refuses_costs_no_id() {
    let fixture = Fixture::new();
    let quotas = Quotas { groups: Some(2), ..Quotas::default() };
    let mut node = Node::open(Options { quotas, ..options(fixture.server.url(&fixture.database), 2) });
    let [ann, bob] = node.users(["ann", "bob"]);
    node.group(ann, "one");
    let last = node.group(ann, "two");
    for n in 0..50 {
        assert_eq!(node.one(create_group(ann, &n.to_string())), Outcome::Full(Quota::Groups));
    }
    assert_eq!(node.group(bob, "three"), last + 1);
}

#[test]
fn joins_of_one_group_at_once_do_not_pass_its_quota() {
    let fixture = Fixture::new();
    let quotas = Quotas { members: Some(4), ..Quotas::default() };
    let mut node = Node::open(Options { quotas, ..options(fixture.server.url(&fixture.database), 2) });
    let users: Vec<_> = (0..9).map(|n| node.user(&n.to_string())).collect();
    for round in 0..10 {
        let group = node.group(users[0], &format!("group {round}"));
        let outcomes: Vec<Outcome> = thread::scope(|scope| {
            let join = |user: &UserId| {
                let (mut connection, join) = (node.store.connection(), Write::JoinGroup { user: *user, group });
                scope.spawn(move || connection.write(&[join]).unwrap().remove(0))
            };
            let joins: Vec<_> = users[1..].iter().map(join).collect();
            joins.into_iter().map(|join| join.join().unwrap()).collect()
        });
        let of = |outcome: Outcome| outcomes.iter().filter(|other| **other == outcome).count();
        assert_eq!((of(joined(false, &[1])), of(Outcome::Full(Quota::Members))), (3, 5), "{outcomes:?}");
        assert_eq!(node.connection.members(group).unwrap().map(|members| members.len()), Some(4));
    }
}

/// Every name has a key, and each key occurs once; a row without a key names the row that has it.
fn assert_keyed(conn: &mut Conn, table: &str, column: &str) {
    type Row = (u32, String, Option<Vec<u8>>, Option<u32>);
    let rows: Vec<Row> =
        conn.query(format!("SELECT id, {column}, namekey, namesake FROM {table} ORDER BY id")).unwrap();
    let mut owners = HashMap::new();
    for (id, name, key, namesake) in &rows {
        assert_ne!(key.is_some(), namesake.is_some(), "{id} {name}");
        if key.is_some() {
            let same = chat_server::wire::name::key(name);
            assert_eq!(owners.insert(same, *id), None, "two have the key of {name}");
        }
    }
    for (id, name, _, namesake) in rows.iter().filter(|(.., namesake)| namesake.is_some()) {
        assert_eq!(owners.get(&chat_server::wire::name::key(name)), namesake.as_ref(), "{id} {name}");
    }
}

#[test]
fn many_names_get_their_keys_in_batches_by_several_nodes_at_once_and_after_a_crash() {
    let mut old = Old::new("utf8mb4 COLLATE utf8mb4_bin", false, &[REFERENCE]);
    let names = |from: usize, upto: usize| {
        let name = |n: usize| match n % 4 {
            0 => format!("('USER {}', 'p')", n - 1),
            _ => format!("('user {n}', 'p')"),
        };
        let rows: Vec<_> = (from..upto).map(name).collect();
        format!("INSERT INTO User (name, password) VALUES {}", rows.join(", "))
    };
    old.run(&names(1, 2600));
    let open_four = |old: &Old| {
        let start = Barrier::new(4);
        thread::scope(|scope| {
            for node in 0..4 {
                let (url, start) = (old.server.url(&old.database), &start);
                scope.spawn(move || {
                    start.wait();
                    Node::open(options(url, node + 1));
                });
            }
        });
    };
    open_four(&old);
    assert_keyed(&mut old.conn, "User", "name");
    // If two are the same, the first has the key.
    let later: u32 = old.conn.query_first("SELECT COUNT(*) FROM User WHERE namesake = id - 1").unwrap().unwrap();
    assert_eq!(later, 2599 / 4);
    // The state after a crash between two batches, and with more from C++ servers.
    old.run("UPDATE User SET namekey = NULL, namesake = NULL WHERE id > 700 AND id % 3 > 0");
    old.run(&names(3001, 3200));
    open_four(&old);
    assert_keyed(&mut old.conn, "User", "name");
    old.open().user("user 2600");
}

#[test]
fn nodes_and_cpp_servers_that_add_the_same_names_at_once_leave_each_key_once() {
    let fixture = Fixture::new();
    let nodes: Vec<Node> = (2..4).map(|id| fixture.node(id)).collect();
    let (rounds, start) = (60, Barrier::new(6));
    let registered: Vec<Vec<bool>> = thread::scope(|scope| {
        let start = &start;
        for column in [("User", "name,password"), ("AllGroup", "groupname,groupdesc")] {
            let mut foreign = fixture.foreign();
            scope.spawn(move || {
                start.wait();
                for n in 0..rounds {
                    // One that is there exactly so is refused to it.
                    let _ =
                        foreign.query_drop(format!("insert into {}({}) values('NAME {n}', 'p')", column.0, column.1));
                }
            });
        }
        let threads = ["Name", "name", "nAME", "NAME"].into_iter().enumerate().map(|(thread, name)| {
            let mut connection = nodes[thread % 2].store.connection();
            scope.spawn(move || {
                start.wait();
                let mut one = |write: Write| match &connection.write(&[write]).unwrap()[..] {
                    [Outcome::Id(_)] => true,
                    [Outcome::Already] => false,
                    other => panic!("{other:?}"),
                };
                let round = |n| one(register(&format!("{name} {n}"))) | one(create_group(1, &format!("{name} {n}")));
                (0..rounds).map(round).collect()
            })
        });
        threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for n in 0..rounds {
        assert!(registered.iter().filter(|thread| thread[n]).count() <= 2, "a user and a group of the same name");
    }
    let (mut node, mut foreign) = (fixture.node(4), fixture.foreign());
    assert_keyed(&mut foreign, "User", "name");
    assert_keyed(&mut foreign, "AllGroup", "groupname");
    for n in 0..rounds {
        let again = [register(&format!("namE {n}")), create_group(1, &format!("namE {n}"))];
        assert_eq!(node.write(&again), [Outcome::Already, Outcome::Already]);
    }
}

#[test]
fn the_key_of_a_name_is_made_of_what_its_clients_see() {
    let (_fixture, mut node, mut foreign) = mixed();
    // UTF-8 that a server which says gbk has passed on, as the characters that its bytes are in GBK.
    foreign.query_drop("insert into User(name,password,state) values('ΒΣ', 'p', 'offline')").unwrap();
    foreign.query_drop("insert into AllGroup(groupname,groupdesc) values('ÀÉ', '')").unwrap();
    let user = node.user("plain");
    for (taken, group) in [("ΒΣ", "ÀÉ"), ("βσ", "àé"), ("βς", "àE\u{301}"), ("Βς ", "a\u{300}É")] {
        assert_eq!(node.write(&[register(taken), create_group(user, group)]), [Outcome::Already, Outcome::Already]);
    }
    node.user("ΒΤ");
    assert_eq!(node.one(register("βτ")), Outcome::Already);
}

// ---- Tables as some copies have them

/// Opens a copy's tables after these statements, and does with each table what clients bring about.
#[track_caller]
fn works_with(statements: &[&str]) -> Old {
    logged();
    let mut old = Old::new("utf8mb4", false, &[COPY]);
    statements.iter().for_each(|statement| old.run(statement));
    for round in 0..2 {
        let mut node = Node::open(options(old.server.url(&old.database), 1 + round as u64));
        let [ann, bob] = node.users([["ann", "bob"], ["cem", "dan"]][round]);
        let (befriend, group) = (Write::AddFriend { user: ann, friend: bob }, node.group(ann, &round.to_string()));
        let join = Write::JoinGroup { user: bob, group };
        let others = &[1][..round];
        assert_eq!(
            node.write(&[befriend.clone(), join.clone()]),
            [Outcome::Done, joined(false, others)],
            "{statements:?}"
        );
        assert_eq!(node.write(&[befriend, join]), [Outcome::Already, joined(true, others)], "{statements:?}");
        let names =
            |friends: Vec<Friend>| friends.into_iter().map(|friend| (friend.id, friend.name)).collect::<Vec<_>>();
        let bob_name = ["bob", "dan"][round].to_owned();
        assert_eq!(names(node.connection.friends(ann).unwrap()), [(bob, bob_name)], "{statements:?}");
        let groups = node.connection.groups(bob).unwrap();
        assert_eq!((groups[0].id, groups[0].users.len()), (group, 2), "{statements:?}");
        for message in ["1", "1", "2"] {
            let kept = node.keep(&[bob], message);
            assert!(matches!(kept[..], [Kept::Stored(_)]), "{statements:?}: {kept:?} {:?}", logged());
        }
        assert_eq!(node.texts(bob), ["1", "1", "2"], "{statements:?}");
        assert_eq!(node.one(claim(bob, 1)), Outcome::Done);
        let page = node.connection.page(bob, usize::MAX).unwrap();
        let rows = vec![page.messages[0].0, page.messages[2].0];
        assert_eq!(node.one(Write::Remove { user: bob, epoch: 1, rows }), Outcome::Done);
        assert_eq!(node.texts(bob), ["1"], "{statements:?}");
        assert_eq!(node.one(Write::Release { user: bob, epoch: 1 }), Outcome::Done);
    }
    old
}

#[test]
fn tables_with_columns_of_their_own_are_used_as_they_are_found() {
    let own_id = "ADD COLUMN id INT NOT NULL AUTO_INCREMENT PRIMARY KEY FIRST";
    for definition in [
        own_id.to_owned(),
        own_id.replace("INT", "BIGINT UNSIGNED").replace(" id ", " relation ").replace(" FIRST", ""),
        own_id.replace("PRIMARY KEY FIRST", "UNIQUE, ADD COLUMN name VARCHAR(20) NOT NULL DEFAULT 'x'"),
        "ADD COLUMN state INT NULL, ADD COLUMN last TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
         ADD COLUMN node ENUM('a','b') NOT NULL, ADD COLUMN bytes INT AS (1) VIRTUAL"
            .to_owned(),
    ] {
        let alter = ["Friend", "GroupUser", "OfflineMessage"].map(|table| format!("ALTER TABLE {table} {definition}"));
        let mut old = works_with(&alter.each_ref().map(String::as_str));
        if definition == own_id {
            // It is still what numbers the rows, and C++ servers see it where it was.
            for (index, table) in [1, 3, 4].into_iter().zip(["Friend", "GroupUser", "OfflineMessage"]) {
                assert!(old.schema()[index].contains("PRIMARY KEY (`id`)"), "{}", old.schema()[index]);
                let first = format!("SELECT * FROM {table} LIMIT 1");
                let columns = old.conn.query_first::<mysql::Row, _>(first).unwrap().unwrap();
                assert_eq!(columns.columns_ref()[0].name_str(), "id");
            }
        }
    }
}

#[test]
fn tables_with_keys_numbers_and_engines_of_their_own_are_used_as_they_are_found() {
    for statements in [
        &[
            "ALTER TABLE User MODIFY id BIGINT NOT NULL AUTO_INCREMENT",
            "ALTER TABLE Friend MODIFY userid BIGINT, MODIFY friendid BIGINT UNSIGNED",
            "ALTER TABLE AllGroup MODIFY id SMALLINT UNSIGNED NOT NULL AUTO_INCREMENT",
            "ALTER TABLE OfflineMessage ADD PRIMARY KEY (userid, message(20))",
        ][..],
        &[
            "ALTER TABLE User MODIFY id INT UNSIGNED NOT NULL AUTO_INCREMENT, DROP PRIMARY KEY, ADD UNIQUE (id),
             MODIFY name VARCHAR(50) NOT NULL, ADD PRIMARY KEY (name)",
            "ALTER TABLE AllGroup DROP PRIMARY KEY, ADD UNIQUE number (id)",
            "ALTER TABLE Friend ADD UNIQUE one (userid)",
            "ALTER TABLE OfflineMessage ADD UNIQUE one (userid), ADD UNIQUE text_too (userid, message(9))",
        ],
        &[
            "ALTER TABLE User ADD COLUMN email VARCHAR(50), ADD COLUMN created DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP",
            "ALTER TABLE AllGroup ADD COLUMN owner INT NOT NULL DEFAULT 0, ENGINE = MyISAM",
            "ALTER TABLE OfflineMessage ADD COLUMN n INT NOT NULL AUTO_INCREMENT, ADD PRIMARY KEY (userid, n),
             ENGINE = MyISAM",
            "ALTER TABLE Friend ENGINE = Aria",
        ],
    ] {
        works_with(statements);
    }
}

#[test]
fn a_column_that_we_cannot_fill_is_told_at_the_start() {
    let mut old = Old::new("utf8mb4", false, &[COPY]);
    for (table, alter, says) in [
        ("User", "ADD COLUMN email VARCHAR(50) NOT NULL", "email"),
        ("Friend", "ADD COLUMN since DATETIME NOT NULL", "since"),
        ("AllGroup", "ADD COLUMN owner INT NOT NULL FIRST", "owner"),
        ("GroupUser", "ADD COLUMN nick TEXT NOT NULL", "nick"),
        ("OfflineMessage", "ADD COLUMN sender INT NOT NULL", "sender"),
        ("User", "MODIFY id INT NOT NULL", "id is not AUTO_INCREMENT"),
        ("AllGroup", "MODIFY id INT NOT NULL", "id is not AUTO_INCREMENT"),
        ("OfflineMessage", "ADD COLUMN id INT NOT NULL", "id is not AUTO_INCREMENT"),
    ] {
        old.run(&format!("CREATE TABLE aside LIKE {table}"));
        old.run(&format!("ALTER TABLE {table} {alter}"));
        let error = match MySqlStore::open(options(old.server.url(&old.database), 1)) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{table} {alter}: it opens"),
        };
        assert!(error.contains(table) && error.contains(says), "{error}");
        let create = old.conn.query_first::<(String, String), _>(format!("SHOW CREATE TABLE {table}"));
        assert!(!create.unwrap().unwrap().1.contains("INVISIBLE"), "nothing is altered");
        old.run(&format!("DROP TABLE {table}"));
        old.run(&format!("RENAME TABLE aside TO {table}"));
    }
}

#[test]
fn text_under_a_false_label_stays_what_its_server_reads() {
    // UTF-8 by a server that said nothing, and so latin1, into latin1 columns.
    let mut old = Old::new("latin1", false, &[REFERENCE, "SET NAMES latin1"]);
    old.run("insert into User(name,password,state) values('张三丰', '密码', 'offline')");
    old.run("insert into OfflineMessage values(1, '{\"msg\":\"你好\"}')");
    let url = old.server.url(&old.database);
    let mut node = Node::open(Options { charset: "latin1".into(), ..options(url, 1) });
    let name: Vec<u8> = old.conn.query_first("select name from User").unwrap().unwrap();
    assert_eq!(name, "张三丰".as_bytes());
    assert_eq!(
        node.connection.account(1).unwrap().unwrap(),
        Account { name: "张三丰".into(), password: "密码".into() }
    );
    assert_eq!(node.texts(1), ["{\"msg\":\"你好\"}"]);
    assert_eq!(node.one(register("张三丰")), Outcome::Already);
}

// ---- Beside C++ servers that say gbk

/// A node in a mixed cluster, and a C++ server's connection.
fn mixed() -> (Fixture, Node, Conn) {
    let fixture = Fixture::new();
    let url = fixture.server.url(&fixture.database);
    let node = Node::open(Options { charset: "gbk".into(), mixed: true, ..options(url, 5) });
    let mut foreign = fixture.foreign();
    foreign.query_drop("set names gbk").unwrap();
    (fixture, node, foreign)
}

#[test]
fn what_is_written_here_has_the_same_bytes_for_a_server_that_says_gbk() {
    let (_fixture, mut node, mut foreign) = mixed();
    let mut bytes = |sql: &str| foreign.query_first::<Vec<u8>, _>(sql).unwrap().unwrap();
    let user = node.user("张三 and 你好");
    assert_eq!(bytes("select name from User"), "张三 and 你好".as_bytes());
    assert_eq!(bytes("select password from User"), "secret of 张三 and 你好".as_bytes());
    let group = node.group(user, "你好");
    assert_eq!(bytes("select groupname from AllGroup"), "你好".as_bytes());
    // Half a character of GBK at the end: a description loses it, a name is refused, as there.
    node.one(Write::CreateGroup { creator: user, name: "plain".into(), description: "李 x".into() });
    assert_eq!(bytes("select groupdesc from AllGroup where groupname = 'plain'"), b"? x");
    // So it is with one that GBK has room for, but no character.
    for name in ["李", "安娜"] {
        assert_eq!(node.one(register(name)), Outcome::Already);
        assert_eq!(node.one(create_group(user, name)), Outcome::Already);
        let insert = format!("insert into User(name,password,state) values('{name}', 'p', 'offline')");
        assert!(foreign.query_drop(insert).is_err());
    }
    // Messages are ASCII, and mean the same.
    let message = "{\"msg\":\"李 你好 😀 \\\" \\\\\"}";
    node.keep(&[user], message);
    let stored: Vec<u8> = foreign.query_first("select message from OfflineMessage").unwrap().unwrap();
    assert!(stored.is_ascii(), "{stored:?}");
    let value = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    assert_eq!(value(&stored), value(message.as_bytes()));
    assert_eq!(value(node.texts(user)[0].as_bytes()), value(message.as_bytes()));
    // And all of it comes back here as it was meant.
    assert_eq!(node.connection.account(user).unwrap().unwrap().name, "张三 and 你好");
    let groups = node.connection.groups(user).unwrap();
    assert_eq!((groups[0].id, groups[0].groupname.as_str()), (group, "你好"));
    assert_eq!(groups[0].groupdesc, "about 你好");
    assert_eq!(groups[0].users[0].name, "张三 and 你好");
}

#[test]
fn cpp_servers_see_a_claim_only_when_it_is_shown() {
    let (_fixture, mut node, mut foreign) = mixed();
    let mut state = || foreign.query_first::<String, _>("select state from User").unwrap().unwrap();
    let [ann] = node.users(["ann"]);
    // Alone, and in a batch.
    let nothing = Write::Release { user: ann + 1, epoch: 1 };
    for rest in [&[][..], &[nothing]] {
        let mut write = |write: Write| node.write(&[&[write], rest].concat()).remove(0);
        let show = |epoch| Write::Show { user: ann, epoch };
        assert_eq!(write(claim(ann, 1)), Outcome::Done);
        // The claim is repeated, as after an answer that was lost.
        assert_eq!(write(claim(ann, 1)), Outcome::Done);
        assert_eq!(state(), "offline", "nobody listens for her yet");
        assert_eq!(write(claim(ann, 2)), Outcome::InUse(Holder::Node(Claim { node: NodeId(5), epoch: 1 })));
        assert_eq!((write(show(2)), state()), (Outcome::Done, "offline".to_owned()), "that claim is none");
        assert_eq!((write(show(1)), state()), (Outcome::Done, "online".to_owned()));
        assert_eq!((write(show(1)), state()), (Outcome::Done, "online".to_owned()));
        assert_eq!(write(Write::Release { user: ann, epoch: 1 }), Outcome::Done);
        assert_eq!((write(show(1)), state()), (Outcome::Done, "offline".to_owned()));
        // She comes back while her former session ends: no session listens for this claim yet.
        assert_eq!((write(claim(ann, 3)), write(show(3))), (Outcome::Done, Outcome::Done));
        let past = Some(Holder::Node(Claim { node: NodeId(5), epoch: 3 }));
        assert_eq!(write(Write::Claim { user: ann, epoch: 4, past }), Outcome::Done);
        assert_eq!(state(), "offline");
        assert_eq!(write(Write::Release { user: ann, epoch: 4 }), Outcome::Done);
    }
    // A user whom a server that has crashed has left online.
    foreign.query_drop("update User set state = 'online'").unwrap();
    assert_eq!(node.one(Write::Claim { user: ann, epoch: 5, past: Some(Holder::Foreign) }), Outcome::Done);
    assert_eq!(foreign.query_first::<String, _>("select state from User").unwrap().unwrap(), "offline");
}

#[test]
fn who_was_set_offline_by_a_cpp_server_is_online_again_unless_he_was_not_shown_yet() {
    let (fixture, mut node, mut foreign) = mixed();
    let mut robber = fixture.foreign();
    let names: Vec<_> = (0..1203).map(|n| register(&format!("user {n}"))).collect();
    let users: Vec<UserId> = node.write(&names).iter().map(|o| if let Outcome::Id(id) = o { *id } else { 0 }).collect();
    let write = |write: fn(UserId) -> Write| users.iter().map(|&user| write(user)).collect::<Vec<_>>();
    node.write(&write(|user| claim(user, 1)));
    let mut online = move || foreign.query_first::<u32, _>("select count(*) from User where state = 'online'").unwrap();
    let mut membership = node.membership();
    assert_eq!((membership.reassert().unwrap(), online()), (0, Some(0)), "nobody listens for any of them yet");
    // A login of another user changes nothing, nor does a release of a claim that does not exist.
    node.write(&write(|user| claim(user, 2)));
    node.write(&write(|user| Write::Release { user, epoch: 2 }));
    assert_eq!((membership.reassert().unwrap(), online()), (0, Some(0)));
    let (shown, hidden) = users.split_at(1201);
    node.write(&shown.iter().map(|&user| Write::Show { user, epoch: 1 }).collect::<Vec<_>>());
    assert_eq!((membership.reassert().unwrap(), online()), (0, Some(1201)));
    robber.query_drop("update User set state = 'offline'").unwrap();
    assert_eq!((membership.reassert().unwrap(), online()), (1201, Some(1201)));
    // Alone, too; and a user who comes back while the former session ends is not shown by the former claim.
    assert_eq!(node.one(Write::Show { user: hidden[0], epoch: 1 }), Outcome::Done);
    let past = Some(node.claimed_as(1));
    assert_eq!(node.one(Write::Claim { user: shown[0], epoch: 3, past }), Outcome::Done);
    robber.query_drop("update User set state = 'offline'").unwrap();
    assert_eq!((membership.reassert().unwrap(), online()), (1201, Some(1201)));
    // A claim of which no client has heard is given back, and the next one is another.
    assert_eq!(node.one(Write::Release { user: hidden[1], epoch: 1 }), Outcome::Done);
    assert_eq!(
        node.write(&[claim(hidden[1], 4), Write::Show { user: hidden[1], epoch: 4 }]),
        [Outcome::Done, Outcome::Done]
    );
    robber.query_drop("update User set state = 'offline'").unwrap();
    assert_eq!((membership.reassert().unwrap(), online()), (1202, Some(1202)));
}

#[test]
fn what_a_server_that_says_gbk_writes_is_read_as_its_clients_meant_it() {
    let (_fixture, mut node, mut foreign) = mixed();
    // A client with UTF-8, whose bytes are passed on.
    foreign.query_drop("insert into User(name,password,state) values('张三', '密码', 'offline')").unwrap();
    foreign.query_drop("insert into OfflineMessage values(1, '{\"msg\":\"你好\",\"n\":\"é\"}')").unwrap();
    // One of GBK: the text is what it is called.
    let gbk = "insert into User(name,password,state) values(_gbk x'D6D0B9FA', 'p', 'offline')";
    foreign.query_drop(gbk).unwrap();
    foreign.query_drop("insert into OfflineMessage values(1, _gbk x'7B226D7367223A22C4E3BAC3227D')").unwrap();
    let account = |name: &str, password: &str| Account { name: name.into(), password: password.into() };
    assert_eq!(node.connection.account(1).unwrap().unwrap(), account("张三", "密码"));
    assert_eq!(node.connection.account(2).unwrap().unwrap(), account("中国", "p"));
    assert_eq!(node.texts(1), ["{\"msg\":\"你好\",\"n\":\"é\"}", "{\"msg\":\"你好\"}"]);
    node.write(&[Write::AddFriend { user: 1, friend: 2 }, Write::AddFriend { user: 2, friend: 1 }]);
    assert_eq!(node.connection.friends(1).unwrap()[0].name, "中国");
    assert_eq!(node.connection.friends(2).unwrap()[0].name, "张三");
    assert_eq!(node.one(register("张三")), Outcome::Already);
}

#[test]
fn what_we_stored_as_text_is_never_taken_for_a_cpp_servers_bytes() {
    // The GBK of this character, D2 BB, is UTF-8 of another one.
    let fixture = Fixture::new();
    let url = fixture.server.url(&fixture.database);
    let mut node = Node::open(Options { charset: "gbk".into(), ..options(url, 5) });
    let ann = node.user("ann");
    node.keep(&[ann], "{\"msg\":\"一\"}");
    assert_eq!(node.texts(ann), ["{\"msg\":\"一\"}"]);
}
