//! Nodes of ours beside nodes of the C++ ChatServer, on one MySQL and one Redis: the latter are
//! stand-ins that ask the same of both, and die of the same.

mod support;

use std::time::Duration;

use mysql::Conn;
use mysql::prelude::{FromRow, Queryable};
use serde_json::{Value, json};
use support::{
    Account, COPY, Client, CppClient, CppNode, Launch, MariaDb, REFERENCE, Redis, Server, eventually,
    eventually_within, listed, login, text_of,
};

/// Tables that C++ nodes have, with the charset that is the database's default.
const REFERENCE_LATIN1: (&str, &str) = ("latin1", REFERENCE);
const COPY_GBK: (&str, &str) = ("gbk", COPY);

/// What a C++ node needs of the text it is to store: whole characters of gbk, and nothing that means
/// something to MySQL inside quotes.
const CPP_STORES: [&str; 3] = ["hello", "你好", "我们的好友很好：张三，李四！"];
/// What it passes on all the same; and what we store.
const ANY: [&str; 8] =
    ["hello", "你好", "李", "一", "😀 \u{2764}\u{fe0f}", "it's \"quoted\"", "C:\\new\\'; drop", "two\nlines\t\u{1}"];

struct Cluster {
    /// The address of its database.
    url: String,
    redis: Redis,
}

impl Cluster {
    fn new((charset, tables): (&str, &str)) -> Cluster {
        let server = MariaDb::shared();
        let database = server.new_database();
        let mut conn = Conn::new(server.url("").as_str()).unwrap();
        conn.query_drop(format!("CREATE DATABASE {database} CHARACTER SET {charset}")).unwrap();
        conn.query_drop(format!("USE {database}")).unwrap();
        tables.split(';').for_each(|sql| conn.query_drop(sql).unwrap());
        // Channels are numbers of users, so no two databases can share a Redis.
        Cluster { url: server.url(&database), redis: Redis::start() }
    }

    fn cpp(&self) -> CppNode {
        CppNode::start(&self.url, &self.redis.url())
    }

    fn ours(&self) -> Server {
        self.ours_with(&["--mixed"])
    }

    fn ours_with(&self, flags: &[&str]) -> Server {
        Server::start(&self.launch(flags))
    }

    fn launch(&self, flags: &[&str]) -> Launch {
        let redis = self.redis.url();
        let flags = ["--redis", &redis].iter().chain(flags).map(|flag| (*flag).to_owned()).collect();
        Launch { store: self.url.clone(), reactors: 2, workers: 2, flags, setup: String::new(), port: 0 }
    }

    fn query<T: FromRow>(&self, sql: &str) -> Vec<T> {
        Conn::new(self.url.as_str()).unwrap().query(sql).unwrap()
    }

    /// The users who are online, as C++ nodes see it.
    fn online(&self) -> Vec<u32> {
        self.query("SELECT id FROM User WHERE state = 'online' ORDER BY id")
    }

    fn kept_for(&self, user: u32) -> usize {
        self.query::<usize>(&format!("SELECT COUNT(*) FROM OfflineMessage WHERE userid = {user}"))[0]
    }

    fn password_of(&self, user: u32) -> String {
        self.query::<String>(&format!("SELECT password FROM User WHERE id = {user}")).remove(0)
    }

    /// The last group that was made.
    fn last_group(&self) -> u32 {
        self.query::<u32>("SELECT MAX(id) FROM AllGroup")[0]
    }

    /// Waits for the end of a logout: no C++ node accepts a login of the user before it.
    #[track_caller]
    fn logged_out(&self, user: u32) {
        eventually("the user is offline", || !self.online().contains(&user));
    }

    /// Logs in on a C++ node. The node does not wait for its subscription; this does.
    #[track_caller]
    fn cpp_login(&self, node: &CppNode, account: &Account) -> (CppClient, Value) {
        let mut client = node.client();
        let reply = client.login(account);
        let mut redis = self.redis.connect();
        eventually("the C++ node listens", || {
            let numsub = redis::cmd("PUBSUB").arg("NUMSUB").arg(account.id).query(&mut redis);
            let (_, listeners): (String, u32) = numsub.expect("Redis answers");
            listeners > 0
        });
        (client, reply)
    }

    /// A new account, which a C++ node has registered and has online.
    #[track_caller]
    fn cpp_online(&self, node: &CppNode, name: &str) -> (CppClient, Account) {
        let account = node.client().register(name, "secret");
        (self.cpp_login(node, &account).0, account)
    }
}

/// A new account, online on our node.
#[track_caller]
fn online(server: &Server, name: &str) -> Client {
    let mut client = Client::connect(server.address);
    let account = client.register(name, "secret");
    client.login(&account);
    client
}

#[track_caller]
fn logged_in(server: &Server, account: &Account) -> Client {
    let mut client = Client::connect(server.address);
    client.login(account);
    client
}

/// The texts of the offline messages of a login reply.
#[track_caller]
fn offline(reply: &Value) -> Vec<String> {
    listed(&reply["offlinemsg"]).iter().map(text_of).collect()
}

fn for_each_kind_of_tables(test: impl Fn(&Cluster)) {
    for tables in [REFERENCE_LATIN1, COPY_GBK] {
        test(&Cluster::new(tables));
    }
}

#[test]
fn chats_reach_users_of_the_other_kind_of_node_as_they_were_written() {
    for_each_kind_of_tables(|cluster| {
        let (ours, cpp) = (cluster.ours(), cluster.cpp());
        let (mut zhang, _) = cluster.cpp_online(&cpp, "张三");
        let mut ann = online(&ours, "小红");
        for text in ANY {
            assert!(ann.chat(zhang.id(), text), "Redis had a subscriber");
            let chat = zhang.push();
            assert_eq!((text_of(&chat).as_str(), &chat["name"]), (text, &json!("小红")));
            zhang.chat(ann.id(), text);
            let chat = ann.push();
            assert_eq!((text_of(&chat).as_str(), &chat["name"]), (text, &json!("张三")));
        }
        let long = "长".repeat(10_000);
        assert!(ann.chat(zhang.id(), &long));
        assert_eq!(text_of(&zhang.push()), long);
    });
}

#[test]
fn what_either_stores_either_delivers() {
    for_each_kind_of_tables(|cluster| {
        let (ours, cpp) = (cluster.ours(), cluster.cpp());
        let [mut zhang, mut ann] = ["张三", "小红"].map(|name| cpp.client().register(name, "secret"));
        // Each sends from one kind of node, the other is offline, then logs in on each.
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        for _ in 0..2 {
            let mut sender = logged_in(&ours, &zhang);
            ANY.iter().for_each(|text| assert!(!sender.chat(ann.id, text)));
            let (mut reader, reply) = cluster.cpp_login(&cpp, &ann);
            assert_eq!(offline(&reply), texts(&ANY), "ours stores, a C++ node delivers");
            reader.logout();
            ANY.iter().for_each(|text| assert!(!sender.chat(ann.id, text)));
            let mut reader = logged_in(&ours, &ann);
            assert_eq!(reader.texts(ANY.len()), texts(&ANY), "ours stores, ours delivers");
            reader.logout();
            cluster.logged_out(ann.id);
            sender.logout();
            cluster.logged_out(zhang.id);

            let (mut sender, _) = cluster.cpp_login(&cpp, &zhang);
            CPP_STORES.iter().for_each(|text| sender.chat(ann.id, text));
            let mut reader = logged_in(&ours, &ann);
            assert_eq!(reader.texts(CPP_STORES.len()), texts(&CPP_STORES), "a C++ node stores, ours delivers");
            reader.logout();
            sender.logout();
            cluster.logged_out(ann.id);
            assert_eq!(cluster.kept_for(ann.id), 0);
            std::mem::swap(&mut zhang, &mut ann);
        }
    });
}

#[test]
fn what_mysql_has_spoilt_for_a_cpp_node_arrives_as_json_and_hides_nothing_behind_it() {
    for_each_kind_of_tables(|cluster| {
        let (ours, cpp) = (cluster.ours(), cluster.cpp());
        let ann = cpp.client().register("ann", "secret");
        let (mut zhang, _) = cluster.cpp_online(&cpp, "张三");
        // In quotes of SQL a backslash is none of JSON's.
        zhang.chat(ann.id, "say \"hi\" 你好");
        zhang.chat(ann.id, "two\nlines");
        zhang.chat(ann.id, "whole");
        let mut ann = logged_in(&ours, &ann);
        let [quoted, lines, whole] = [(); 3].map(|()| ann.push());
        for (damaged, text) in [(&quoted, "say \"hi\" 你好"), (&lines, "two\nlines")] {
            assert!(text_of(damaged).contains(text) && text_of(damaged).contains("张三"), "{damaged}");
            // What a C++ client reads of a chat.
            assert!(damaged["id"].is_i64() && damaged["name"].is_string() && damaged["time"].is_string(), "{damaged}");
        }
        assert_eq!(text_of(&whole), "whole");
        eventually("they are removed", || cluster.kept_for(ann.id()) == 0);
    });
}

#[test]
fn group_chats_reach_the_members_on_both_kinds_of_node() {
    for_each_kind_of_tables(|cluster| {
        let (ours, cpp) = (cluster.ours(), cluster.cpp());
        let (mut zhang, _) = cluster.cpp_online(&cpp, "张三");
        let (mut li, li_account) = cluster.cpp_online(&cpp, "李四");
        let mut ann = online(&ours, "小红");
        let mut bob = online(&ours, "bob");

        zhang.create_group("C++ 好友", "小明");
        let theirs = cluster.last_group();
        ann.join(theirs);
        for text in ANY {
            zhang.group_chat(theirs, text);
            assert_eq!(text_of(&ann.push()), text);
            assert_eq!(ann.group_chat(theirs, text)["delivered"], 1);
            let chat = zhang.push();
            assert_eq!((text_of(&chat).as_str(), &chat["groupid"]), (text, &json!(theirs)));
        }
        // The next message from here reaches a user who joins there.
        li.join(theirs);
        let ack = ann.group_chat(theirs, "welcome 李");
        assert_eq!((&ack["delivered"], &ack["stored"]), (&json!(2), &json!(0)));
        assert_eq!([text_of(&li.push()), text_of(&zhang.push())], ["welcome 李", "welcome 李"]);

        let group = ann.create_group("我们的群");
        zhang.join(group);
        li.join(group);
        bob.join(group);
        zhang.group_chat(group, "你好 all");
        assert_eq!([text_of(&ann.push()), text_of(&bob.push()), text_of(&li.push())], ["你好 all"; 3]);
        li.logout();
        let ack = ann.group_chat(group, "😀");
        assert_eq!((&ack["delivered"], &ack["stored"]), (&json!(2), &json!(1)));
        assert_eq!([text_of(&zhang.push()), text_of(&bob.push())], ["😀"; 2]);
        let account = bob.me().clone();
        bob.logout();
        cluster.logged_out(account.id);
        zhang.group_chat(group, "你好");
        assert_eq!(text_of(&ann.push()), "你好");
        let mut li = logged_in(&ours, &li_account);
        assert_eq!(li.texts(2), ["😀", "你好"]);
        bob.login(&account);
        assert_eq!(bob.texts(1), ["你好"]);
    });
}

#[test]
fn friends_groups_and_states_are_the_same_from_both_sides() {
    for_each_kind_of_tables(|cluster| {
        let (ours, cpp) = (cluster.ours(), cluster.cpp());
        let (mut zhang, zhang_account) = cluster.cpp_online(&cpp, "张三");
        let mut ann = online(&ours, "小红");
        let off = ann.register("李四", "secret");
        for friend in [ann.id(), off.id] {
            zhang.befriend(friend);
        }
        for friend in [zhang.id(), off.id] {
            ann.befriend(friend);
        }
        zhang.create_group("好友", "小明");
        let group = cluster.last_group();
        ann.join(group);

        let person = |id: u32, name: &str, state: &str| json!({"id": id, "name": name, "state": state});
        let member = |id: u32, name: &str, role: &str| json!({"id": id, "name": name, "state": "online", "role": role});
        let members = [member(zhang.id(), "张三", "creator"), member(ann.id(), "小红", "normal")];
        let check = |lists: &Value, friends: [Value; 2]| {
            assert_eq!(listed(&lists["friends"]), friends);
            let groups = listed(&lists["groups"]);
            assert_eq!(groups.len(), 1);
            assert_eq!((&groups[0]["groupname"], &groups[0]["groupdesc"]), (&json!("好友"), &json!("小明")));
            assert_eq!(listed(&groups[0]["users"]), members);
        };
        let lists = ann.must(json!({"msgid": chat_server::wire::msgid::LIST}));
        check(&lists, [person(zhang.id(), "张三", "online"), person(off.id, "李四", "offline")]);
        zhang.logout();
        let (_zhang, reply) = cluster.cpp_login(&cpp, &zhang_account);
        check(&reply, [person(ann.id(), "小红", "online"), person(off.id, "李四", "offline")]);
    });
}

#[test]
fn an_account_of_either_kind_of_node_logs_in_on_the_other_but_on_one_at_a_time() {
    for_each_kind_of_tables(|cluster| {
        let (ours, cpp) = (cluster.ours(), cluster.cpp());
        let theirs = cpp.client().register("张三", "密码 of zhang");
        let mine = Client::connect(ours.address).register("小红", "密码 of ann");
        for account in [&theirs, &mine] {
            let mut client = logged_in(&ours, account);
            assert_eq!(cpp.client().try_login(account)["errno"], 2);
            client.logout();
            cluster.logged_out(account.id);
            let (mut client, _) = cluster.cpp_login(&cpp, account);
            assert_eq!(Client::connect(ours.address).try_login(account)["errno"], 2);
            client.logout();
            logged_in(&ours, account);
            cluster.logged_out(account.id); // by its connection's end
            cluster.cpp_login(&cpp, account);
            cluster.logged_out(account.id);
            let wrong = Account { password: "wrong".into(), ..account.clone() };
            assert_eq!(cpp.client().try_login(&wrong)["errno"], 1);
            assert_eq!(Client::connect(ours.address).try_login(&wrong)["errno"], 1);
        }
        // A name that is taken is so for both.
        assert_eq!(cpp.client().try_register("小红", "p")["errno"], 1);
        let register = |name: &str, password: &str| {
            let request = json!({"msgid": chat_server::wire::msgid::REGISTER, "name": name, "password": password});
            Client::connect(ours.address).refused(request)
        };
        assert_eq!(register("张三", "p"), 1);
        assert_eq!(register("bob", &"p".repeat(51)), 12, "the C++ nodes' column");
    });
}

#[test]
fn passwords_stay_as_the_cpp_nodes_read_them() {
    let cluster = Cluster::new(REFERENCE_LATIN1);
    let (ours, cpp) = (cluster.ours(), cluster.cpp());
    let accounts = [cpp.client().register("ann", "secret"), Client::connect(ours.address).register("bob", "secret")];
    for account in &accounts {
        logged_in(&ours, account).logout();
        assert_eq!(cluster.password_of(account.id), "secret");
    }
    // As it came, since the C++ nodes compare bytes; to us it is the same with any blank.
    let odd = Client::connect(ours.address).register("cem", "open\tsesame");
    for typed in ["open\tsesame", "open sesame", "open\u{3000}sesame"] {
        logged_in(&ours, &Account { password: typed.into(), ..odd.clone() }).logout();
        assert_eq!(cluster.password_of(odd.id), "open\tsesame");
    }
}

#[test]
fn names_that_the_cpp_nodes_could_not_dump_are_refused_and_texts_are_not() {
    let cluster = Cluster::new(COPY_GBK);
    let (ours, cpp) = (cluster.ours(), cluster.cpp());
    for (name, errno) in [("李", 1), ("安娜", 1), ("€", 1), ("é", 0), ("😀", 0), ("丽丽", 0)] {
        let request = json!({"msgid": chat_server::wire::msgid::REGISTER, "name": name, "password": "p"});
        assert_eq!(Client::connect(ours.address).request(request)["errno"], errno, "{name}");
        let of_cpp = format!("{name}2");
        assert_eq!(cpp.client().try_register(&of_cpp, "p")["errno"].as_i64().unwrap().min(1), errno, "{of_cpp}");
    }
    let (mut zhang, _) = cluster.cpp_online(&cpp, "张三");
    let mut ann = online(&ours, "ann");
    ann.must(json!({"msgid": chat_server::wire::msgid::CREATE_GROUP, "id": ann.id(), "groupname": "丽丽",
        "groupdesc": "李 é 聊天室"}));
    zhang.join(cluster.last_group());
    for friend in cluster.query::<u32>("SELECT id FROM User") {
        zhang.befriend(friend);
    }
    // It lists all friends, and does not crash.
    let account = Account { id: zhang.id(), name: "张三".into(), password: "secret".into() };
    zhang.logout();
    let reply = zhang.login(&account);
    assert_eq!(listed(&reply["groups"]).len(), 1);
    assert!(listed(&reply["friends"]).iter().any(|friend| friend["name"] == "😀"));
}

#[test]
fn a_cpp_node_that_has_crashed_locks_nobody_out() {
    let cluster = Cluster::new(COPY_GBK);
    let (ours, cpp, other) = (cluster.ours(), cluster.cpp(), cluster.cpp());
    let (_zhang, zhang) = cluster.cpp_online(&cpp, "张三");
    let (_li, li) = cluster.cpp_online(&cpp, "李四");
    let mut ann = online(&ours, "小红");
    cpp.crash();
    assert_eq!(cluster.online(), [zhang.id, li.id, ann.id()], "it has set nobody offline");
    assert_eq!(other.client().try_login(&li)["errno"], 2, "another of its kind does not let them in");
    assert!(!ann.chat(li.id, "stored 李"), "nobody listens there");
    let mut zhang = logged_in(&ours, &zhang);
    assert!(ann.chat(zhang.id(), "好"));
    assert_eq!(zhang.texts(1), ["好"]);
    assert!(!ann.chat(li.id, "and this"));
    let mut li = logged_in(&ours, &li);
    assert_eq!(li.texts(2), ["stored 李", "and this"]);
}

#[test]
fn a_cpp_nodes_ctrl_c_sets_our_users_offline_for_no_more_than_a_moment() {
    let cluster = Cluster::new(REFERENCE_LATIN1);
    let (ours, cpp, other) = (cluster.ours(), cluster.cpp(), cluster.cpp());
    let (_zhang, zhang) = cluster.cpp_online(&cpp, "zhang");
    let (mut li, li_account) = cluster.cpp_online(&other, "li");
    let ann = online(&ours, "ann");
    let mut bob = online(&ours, "bob");
    li.befriend(ann.id());
    cpp.interrupt();
    let mine = [ann.id(), bob.id()];
    eventually_within(Duration::from_secs(5), "ours are online again", || cluster.online() == mine);
    // Here they were so all the time.
    bob.befriend(ann.id());
    let lists = bob.must(json!({"msgid": chat_server::wire::msgid::LIST}));
    assert_eq!(listed(&lists["friends"])[0]["state"], "online");
    assert!(!bob.chat(zhang.id, "hello"));
    assert!(!bob.chat(li.id(), "hello"), "as all nodes see it, he is offline");
    assert_eq!(other.client().try_login(ann.me())["errno"], 2);
    li.logout();
    let (mut li, reply) = cluster.cpp_login(&other, &li_account);
    assert_eq!(offline(&reply), ["hello"]);
    assert_eq!(listed(&reply["friends"])[0]["state"], "online");
    assert!(bob.chat(li.id(), "there you are"));
    assert_eq!(text_of(&li.push()), "there you are");
}

#[test]
fn what_a_cpp_node_has_for_somebody_who_is_just_logging_in_is_not_published_to_nobody() {
    let cluster = Cluster::new(REFERENCE_LATIN1);
    let (ours, cpp) = (cluster.ours(), cluster.cpp());
    let (mut zhang, _) = cluster.cpp_online(&cpp, "zhang");
    let mut client = Client::connect(ours.address);
    let ann = client.register("ann", "secret");
    // It has the account, and listens when Redis goes on.
    cluster.redis.signal("STOP");
    let seq = client.start(login(&ann));
    let claimed = format!("SELECT id FROM User WHERE id = {} AND node IS NOT NULL", ann.id);
    eventually("she is claimed", || !cluster.query::<u32>(&claimed).is_empty());
    zhang.chat(ann.id, "just in time");
    cluster.redis.signal("CONT");
    assert_eq!(offline(&client.reply(seq)), ["just in time"]);
    eventually("she is online for everybody", || cluster.online().contains(&ann.id));
}

#[test]
#[should_panic(expected = "the C++ node has died")]
fn a_cpp_node_dies_of_a_name_that_was_written_without_the_flag() {
    let cluster = Cluster::new(COPY_GBK);
    let (ours, cpp) = (cluster.ours_with(&[]), cluster.cpp());
    let friend = Client::connect(ours.address).register("张三", "secret");
    let (mut ann, account) = cluster.cpp_online(&cpp, "ann");
    ann.befriend(friend.id);
    ann.logout();
    ann.is_cut_off_by(&login(&account));
}

#[test]
fn a_user_who_moves_from_a_cpp_node_to_one_of_ours_is_reached_there_by_envelope() {
    let cluster = Cluster::new(REFERENCE_LATIN1);
    let (ours, other, cpp) = (cluster.ours(), cluster.ours(), cluster.cpp());
    let (mut zhang, account) = cluster.cpp_online(&cpp, "zhang");
    let mut ann = online(&ours, "ann");
    assert!(ann.chat(account.id, "one"));
    assert_eq!(text_of(&zhang.push()), "one");
    zhang.logout();
    let mut zhang = logged_in(&other, &account);
    let mut redis = cluster.redis.connect();
    let mut channel = redis.as_pubsub();
    channel.subscribe(account.id).unwrap();
    assert!(ann.chat(account.id, "two"));
    assert_eq!(zhang.texts(1), ["two"]);
    // On the user's channel it would be acked whatever became of it.
    let mark = json!({"mark": true}).to_string();
    let _: i64 = redis::cmd("PUBLISH").arg(account.id).arg(&mark).query(&mut cluster.redis.connect()).unwrap();
    assert_eq!(channel.get_message().unwrap().get_payload::<String>().unwrap(), mark);
}

#[test]
fn our_nodes_end_sets_its_own_users_offline_and_nobody_elses() {
    let cluster = Cluster::new(REFERENCE_LATIN1);
    let (mut ours, other, cpp) = (cluster.ours(), cluster.ours(), cluster.cpp());
    let (mut zhang, _) = cluster.cpp_online(&cpp, "zhang");
    let ann = online(&ours, "ann");
    let mut bob = online(&other, "bob");
    assert_eq!(cluster.online(), [zhang.id(), ann.id(), bob.id()]);
    assert!(ours.stop("TERM").success());
    assert_eq!(cluster.online(), [zhang.id(), bob.id()]);
    assert!(bob.chat(zhang.id(), "still there"));
    assert_eq!(text_of(&zhang.push()), "still there");
    zhang.chat(bob.id(), "so am I");
    assert_eq!(text_of(&bob.push()), "so am I");
    zhang.chat(ann.id(), "and you?");
    assert_eq!(logged_in(&other, ann.me()).texts(1), ["and you?"]);
}

#[test]
fn what_comes_for_somebody_who_is_just_leaving_a_cpp_node_is_stored_there() {
    let cluster = Cluster::new(COPY_GBK);
    let (ours, cpp) = (cluster.ours(), cluster.cpp());
    let mut ann = online(&ours, "小红");
    let (zhang, account) = cluster.cpp_online(&cpp, "张三");
    cpp.lose(account.id);
    // That Redis had a subscriber is all that can be known.
    for text in CPP_STORES {
        assert!(ann.chat(account.id, text));
    }
    eventually("the C++ node stores them", || cluster.kept_for(account.id) == CPP_STORES.len());
    drop(zhang);
    cpp.crash();
    assert_eq!(logged_in(&ours, &account).texts(CPP_STORES.len()), CPP_STORES);
}

#[test]
fn a_cluster_of_cpp_nodes_is_replaced_node_by_node() {
    for tables in [REFERENCE_LATIN1, COPY_GBK] {
        let cluster = Cluster::new(tables);
        // latin1 has no Chinese until the tables are ours.
        let (name, text) = if tables.0 == "latin1" { ("zhang san", "hello") } else { ("张三", "你好") };
        let (first, second) = (cluster.cpp(), cluster.cpp());
        let (mut ann, ann_account) = cluster.cpp_online(&first, "ann");
        let (mut zhang, zhang_account) = cluster.cpp_online(&second, name);
        let li_account = first.client().register("li", "secret");
        ann.befriend(zhang.id());
        zhang.create_group("readers", "");
        let group = cluster.last_group();
        ann.join(group);
        zhang.group_chat(group, text);
        assert_eq!(text_of(&ann.push()), text);

        // The first one, under the other's users.
        drop(ann);
        first.crash();
        let mut ours = [Some(cluster.ours()), None];
        let launch = cluster.launch(&["--mysql-charset", "gbk"]);
        let mut ann = logged_in(ours[0].as_ref().unwrap(), &ann_account);
        let friends = listed(&ann.greeting["friends"]);
        assert_eq!((&friends[0]["name"], &friends[0]["state"]), (&json!(name), &json!("online")));
        assert!(ann.chat(zhang.id(), "李 😀"));
        assert_eq!(text_of(&zhang.push()), "李 😀");
        zhang.group_chat(group, "and back");
        assert_eq!(text_of(&ann.push()), "and back");
        zhang.chat(li_account.id, text);
        assert!(!ann.chat(li_account.id, "李"));

        // The second one, by Ctrl-C.
        drop(zhang);
        second.interrupt();
        ours[1] = Some(cluster.ours());
        let mut zhang = logged_in(ours[1].as_ref().unwrap(), &zhang_account);
        assert!(zhang.chat(ann.id(), "here"));
        assert_eq!(ann.group_chat(group, "here")["delivered"], 1);
        assert_eq!((ann.texts(1), zhang.texts(1)), (vec!["here".into()], vec!["here".into()]));
        assert_eq!(cluster.password_of(zhang.id()), "secret");

        // No C++ node is left: one after the other goes on without the flag.
        for (node, client) in ours.iter_mut().zip([ann, zhang]) {
            let account = client.me().clone();
            assert!(node.take().unwrap().stop("TERM").success());
            let server = node.insert(Server::start(&launch));
            let client = logged_in(server, &account);
            assert!(cluster.password_of(account.id).starts_with("$argon2id$"), "upgraded");
            assert_eq!(listed(&client.greeting["groups"])[0]["groupname"], "readers");
            drop(client);
            cluster.logged_out(account.id);
        }
        let servers = ours.map(Option::unwrap);
        let mut li = logged_in(&servers[0], &li_account);
        assert_eq!(li.texts(2), [text, "李"]);
        let ann = logged_in(&servers[1], &ann_account);
        assert_eq!(listed(&ann.greeting["friends"])[0]["name"], name);
    }
}

/// The statements of the `number`th block of SQL of `docs/SWAPPING.md`.
fn documented(number: usize) -> Vec<String> {
    let blocks = |document: &'static str| -> Vec<&'static str> {
        document.split("```sql\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0)).collect()
    };
    let statements = |block: &str| -> Vec<String> {
        let sql: String = block.lines().filter(|line| !line.starts_with("--")).flat_map(|line| [line, "\n"]).collect();
        sql.split(';').map(|sql| sql.trim().to_owned()).filter(|sql| !sql.is_empty()).collect()
    };
    let english = blocks(include_str!("../docs/SWAPPING.md"));
    let chinese = blocks(include_str!("../docs/SWAPPING.zh-CN.md"));
    let both = [english, chinese].map(|blocks| {
        assert_eq!(blocks.len(), 3, "{blocks:?}");
        statements(blocks[number])
    });
    assert_eq!(both[0], both[1], "the translation has the same statements");
    let [statements, _] = both;
    statements
}

impl Cluster {
    /// Makes ready for C++ nodes what nodes of ours have left; the names that would crash them.
    fn go_back(&self) -> Vec<(u32, String)> {
        let mut conn = Conn::new(self.url.as_str()).unwrap();
        documented(0).iter().for_each(|sql| conn.query_drop(sql).unwrap_or_else(|error| panic!("{error}: {sql}")));
        documented(1).iter().flat_map(|sql| conn.query::<(u32, String), _>(sql).unwrap()).collect()
    }
}

#[test]
fn cpp_nodes_go_on_where_ours_have_been_with_new_passwords_for_all_that_were_hashed() {
    for_each_kind_of_tables(|cluster| {
        let old = cluster.cpp();
        let [ann, li] = ["ann", "li"].map(|name| old.client().register(name, "secret"));
        drop(old);
        let mut ours = cluster.ours_with(&["--mysql-charset", "gbk"]);
        let zhang = Client::connect(ours.address).register("张三", "secret");
        let mut client = logged_in(&ours, &ann);
        client.befriend(zhang.id);
        assert!(!client.chat(li.id, "hello") && !client.chat(li.id, "李 😀"), "stored");
        drop(client);
        assert!(ours.stop("TERM").success());

        assert_eq!(cluster.go_back(), []);
        let renewed: Vec<(u32, String)> = cluster.query("SELECT id, password FROM NewPassword ORDER BY id");
        assert_eq!(renewed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [ann.id, zhang.id]);
        assert!(
            renewed[0].1 != renewed[1].1 && renewed.iter().all(|(_, password)| password.len() == 16),
            "{renewed:?}"
        );
        let cpp = cluster.cpp();
        assert_eq!(cpp.client().try_login(&ann)["errno"], 1, "her old password");
        let ann = Account { password: renewed[0].1.clone(), ..ann };
        let (mut client, reply) = cluster.cpp_login(&cpp, &ann);
        assert_eq!(listed(&reply["friends"])[0]["name"], "张三");
        client.chat(li.id, "from a C++ node");
        eventually("the C++ node stores it", || cluster.kept_for(li.id) == 2);
        let (_li, reply) = cluster.cpp_login(&cpp, &li);
        assert_eq!(offline(&reply), ["hello", "from a C++ node"]);
        let new = cpp.client().register("new", "secret");
        assert!(cpp.is_alive());

        // And once more.
        drop((client, _li));
        drop(cpp);
        let ours = cluster.ours_with(&["--mysql-charset", "gbk"]);
        let mut conn = Conn::new(cluster.url.as_str()).unwrap();
        documented(2).iter().for_each(|sql| conn.query_drop(sql).unwrap());
        assert_eq!(logged_in(&ours, &li).texts(1), ["李 😀"]);
        logged_in(&ours, &ann).logout();
        logged_in(&ours, &new).logout();
    });
}

#[test]
fn names_that_would_crash_a_cpp_node_are_found_before_one_starts() {
    let cluster = Cluster::new(COPY_GBK);
    let mut ours = cluster.ours_with(&[]);
    let zhang = Client::connect(ours.address).register("张三", "secret");
    let mut ann = online(&ours, "ann");
    ann.befriend(zhang.id);
    let group = ann.create_group("读者");
    drop(ann);
    assert!(ours.stop("TERM").success());
    assert_eq!(cluster.go_back(), [(zhang.id, "张三".to_owned()), (group, "读者".to_owned())]);
}
