//! A MySQL server that dies, or falls silent, and comes back; and Redis: errno 21, promise 5 of
//! `docs/PROTOCOL.md#8-order-and-other-promises`, and `docs/PROTOCOL.md#9-clusters`.

use serde_json::{Value, json};

use crate::support::{Account, Client, Config, World, eventually, login};

// SQLite has no server that could be away: what fails there is in `storage.rs`. A silent one is waited
// for, 10 s, and Redis is between nodes.
in_configurations! {
    mysql: [a_database_that_was_killed_is_error_21_and_online_chat_goes_on_and_everything_recovers],
    cluster: [
        a_database_that_was_killed_is_error_21_and_online_chat_goes_on_and_everything_recovers,
        a_database_that_is_silent_is_error_21_and_online_chat_goes_on_and_everything_recovers,
        without_redis_nodes_serve_their_own_and_store_for_others_who_get_it_when_it_is_back,
    ],
}

/// Two friends who chat, on different nodes, and what is kept for others.
struct Scene {
    world: World,
    sender: Client,
    recipient: Client,
    group: u32,
    absent: Account,
    /// How many chats are acked as stored for `absent`.
    stored: usize,
}

impl Scene {
    fn new(world: World) -> Scene {
        let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
        let absent = world.account("absent");
        let group = sender.create_group(&world.name("group"));
        recipient.join(group);
        let mut scene = Scene { world, sender, recipient, group, absent, stored: 0 };
        // Where the recipient is, and which users are in the group, is known from now on.
        scene.chat_online();
        for _ in 0..20 {
            assert!(scene.store_one());
        }
        scene
    }

    /// Recipients who are online, and known, need no store.
    #[track_caller]
    fn chat_online(&mut self) {
        for n in 0..20 {
            assert!(self.sender.chat(self.recipient.id(), &n.to_string()));
            assert_eq!(self.recipient.texts(1), [n.to_string()]);
            assert_eq!(self.sender.group_chat(self.group, "to all")["delivered"], 1);
            assert_eq!(self.recipient.texts(1), ["to all"]);
        }
    }

    /// Sends a numbered chat to a user who is offline. False: it was refused because of the store.
    #[track_caller]
    fn store_one(&mut self) -> bool {
        let chat = self.sender.chat_to(self.absent.id, &format!("{}", self.stored));
        let ack = self.sender.request(chat);
        if ack["errno"] == 0 {
            assert_eq!(ack["delivered"], false);
            self.stored += 1;
            return true;
        }
        assert_eq!(ack["errno"], 21, "{ack}");
        false
    }

    /// What needs the store, each on a connection of its own, so that none waits for another.
    fn requests(&self) -> Vec<(Client, Value)> {
        let wrong = Account { password: "wrong".into(), ..self.absent.clone() };
        let nobody = Account { id: 2_000_000_000, ..self.absent.clone() };
        let in_use = self.recipient.me();
        let requests = [
            login(&self.absent),
            login(&wrong),
            login(&nobody),
            login(in_use),
            json!({"msgid": 4, "name": self.world.name("new"), "password": "p"}),
        ];
        requests.into_iter().enumerate().map(|(n, request)| (self.world.client_on(n), request)).collect()
    }

    /// The database is back: everything works again by itself, and what was acked is there.
    #[track_caller]
    fn expect_recovery(mut self, leaver: &Account) {
        eventually("the store to take messages again", || self.store_one());
        let mut client = self.world.client();
        eventually("a login", || {
            let reply = client.try_login(leaver);
            assert!(reply["errno"] == 0 || reply["errno"] == 21, "{reply}");
            reply["errno"] == 0
        });
        self.chat_online();
        // A login that was refused may have been done all the same, and is being taken back.
        let mut absent = self.world.client_on(1);
        eventually("the account to be free", || absent.try_login(&self.absent)["errno"] == 0);
        let texts = absent.pushed();
        let mut numbers: Vec<usize> =
            texts.iter().map(|chat| chat["msg"].as_str().unwrap().parse().expect("a number")).collect();
        // Those that were refused may be there too: they were sent again under the same number.
        numbers.dedup();
        assert_eq!(numbers, (0..self.stored).collect::<Vec<_>>());
        self.world.assert_alive();
    }
}

#[track_caller]
fn expect_error_21(reply: &Value, request: &Value) {
    assert_eq!(reply["errno"], 21, "{request} got {reply}");
}

fn a_database_that_was_killed_is_error_21_and_online_chat_goes_on_and_everything_recovers(config: &'static Config) {
    let mut scene = Scene::new(config.with_own_mariadb(&[]));
    let mut leaver = scene.world.online("leaver");
    let account = leaver.me().clone();
    scene.world.mariadb().kill();
    for (mut client, request) in scene.requests() {
        expect_error_21(&client.request(request.clone()), &request);
    }
    assert!(!scene.store_one());
    let (id, friend) = (scene.sender.id(), scene.absent.id);
    for request in [
        json!({"msgid": 7, "id": id, "friendid": friend}),
        json!({"msgid": 8, "id": id, "groupname": scene.world.name("g"), "groupdesc": ""}),
        json!({"msgid": 9, "id": id, "groupid": scene.group}),
        json!({"msgid": 206}),
    ] {
        expect_error_21(&scene.sender.request(request.clone()), &request);
    }
    leaver.logout();
    scene.chat_online();
    scene.world.mariadb().restart();
    scene.expect_recovery(&account);
}

fn a_database_that_is_silent_is_error_21_and_online_chat_goes_on_and_everything_recovers(config: &'static Config) {
    let mut scene = Scene::new(config.with_own_mariadb(&[]));
    let mut leaver = scene.world.online("leaver");
    let account = leaver.me().clone();
    scene.world.mariadb().signal("STOP");
    let mut waiting: Vec<_> = scene.requests();
    let seqs: Vec<i64> = waiting.iter_mut().map(|(client, request)| client.start(request.clone())).collect();
    leaver.logout();
    // While they wait.
    scene.chat_online();
    for ((client, request), seq) in waiting.iter_mut().zip(seqs) {
        let reply = client.reply(seq);
        // A request that needs a hash may wait for it in vain, where all workers wait for the database.
        let waits_for_a_hash = ["1", "4"].contains(&&*request["msgid"].to_string());
        if !(waits_for_a_hash && reply["errno"] == 20) {
            expect_error_21(&reply, request);
        }
    }
    assert!(!scene.store_one());
    scene.chat_online();
    scene.world.mariadb().signal("CONT");
    scene.expect_recovery(&account);
}

fn without_redis_nodes_serve_their_own_and_store_for_others_who_get_it_when_it_is_back(config: &'static Config) {
    let world = config.own(&[]);
    let (mut sender, mut other) = (world.online("sender"), world.online("other"));
    let mut far = world.online_on(1, "far");
    assert!(sender.chat(far.id(), "live"));
    assert_eq!(far.texts(1), ["live"]);
    world.redis().kill();
    let mut stored = Vec::new();
    for n in 0..20 {
        assert!(sender.chat(other.id(), "same node"));
        assert_eq!(other.texts(1), ["same node"]);
        // What is under way when the bus breaks may still arrive, and is then acked so.
        let text = n.to_string();
        if !sender.chat(far.id(), &text) {
            stored.push(text);
        }
    }
    assert!(!stored.is_empty());
    // Logins are decided by the claim.
    for (node, online) in [(0, &far), (1, &sender)] {
        assert_eq!(world.client_on(node).try_login(online.me())["errno"], 2);
    }
    let mut late = world.online_on(1, "late");
    assert!(far.chat(late.id(), "same node"));
    assert_eq!(late.texts(1), ["same node"]);
    world.redis().restart();
    assert_eq!(far.texts(stored.len()), stored);
    let mut sent = 0;
    eventually("a live delivery", || {
        let live = sender.chat(far.id(), &sent.to_string());
        assert_eq!(far.texts(1), [sent.to_string()]);
        sent += 1;
        live
    });
}
