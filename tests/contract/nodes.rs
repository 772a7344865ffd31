//! What only several nodes can show: one session in the whole cluster, which users are online as the others
//! see it, groups across nodes, and users who move. The promises are those of
//! `docs/PROTOCOL.md#8-order-and-other-promises`, which hold between nodes as on one.

use std::collections::VecDeque;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::support::{
    Account, Client, Config, REAPED, World, eventually, eventually_within, listed, login, parse, text_of,
};

in_configurations! {
    cluster: [
        of_two_logins_on_two_nodes_in_the_same_instant_one_succeeds,
        a_friend_and_a_member_are_shown_online_and_offline_on_the_other_node,
        a_logout_acked_on_one_node_holds_at_once_for_a_login_on_the_other,
        a_join_acked_on_one_node_counts_for_a_sender_on_the_other_at_once,
        a_user_who_moves_between_nodes_amid_streams_from_both_loses_repeats_and_reorders_none,
        a_member_who_moves_between_nodes_amid_group_streams_from_both_loses_repeats_and_reorders_none,
        a_node_that_is_stopped_in_order_loses_and_repeats_nothing_and_its_users_log_in_elsewhere_at_once,
        users_of_a_killed_node_are_offline_for_the_others_and_can_log_in_there,
        a_node_that_stood_still_serves_nobody_whom_another_has_taken_over,
        what_was_acked_around_a_kill_9_of_the_recipients_node_was_delivered_or_is_found_later,
    ],
}

fn of_two_logins_on_two_nodes_in_the_same_instant_one_succeeds(config: &'static Config) {
    const ROUNDS: usize = 400;
    let world = config.shared();
    let accounts = world.accounts("wanted", ROUNDS);
    let start = Barrier::new(2);
    let attempts: Vec<Vec<i64>> = thread::scope(|scope| {
        let rivals: Vec<_> = (0..2)
            .map(|node| {
                let (world, accounts, start) = (&world, &accounts, &start);
                scope.spawn(move || {
                    let mut errnos = Vec::new();
                    let mut client = world.client_on(node);
                    for account in accounts {
                        start.wait();
                        let seq = client.start(login(account));
                        errnos.push(client.reply(seq)["errno"].as_i64().unwrap_or(-1));
                        // Neither client leaves before both have their answer.
                        start.wait();
                        if errnos.last() == Some(&0) {
                            client.post(&json!({"msgid": 3, "id": account.id}));
                        }
                    }
                    errnos
                })
            })
            .collect();
        rivals.into_iter().map(|rival| rival.join().expect("a reply to each login")).collect()
    });
    for (round, (one, other)) in attempts[0].iter().zip(&attempts[1]).enumerate() {
        assert_eq!((*one.min(other), *one.max(other)), (0, 2), "round {round}");
    }
    let won = |node: usize| attempts[node].iter().filter(|errno| **errno == 0).count();
    assert!(won(0) > 0 && won(1) > 0, "no race: node 0 won {} times, node 1 {}", won(0), won(1));
}

/// The `state` of the only friend, and of the second member of the only group.
fn states(client: &mut Client) -> (Value, Value) {
    let list = client.must(json!({"msgid": 206}));
    let users = listed(&listed(&list["groups"])[0]["users"]);
    (listed(&list["friends"])[0]["state"].clone(), users[1]["state"].clone())
}

/// A user on one node, and a friend on another, who is in a group with him.
fn friends(world: &World, node: usize, of_friend: usize) -> (Client, Client) {
    let (mut owner, mut friend) = (world.online_on(node, "owner"), world.online_on(of_friend, "friend"));
    owner.befriend(friend.id());
    let group = owner.create_group(&world.name("group"));
    friend.join(group);
    (owner, friend)
}

fn a_friend_and_a_member_are_shown_online_and_offline_on_the_other_node(config: &'static Config) {
    let world = config.shared();
    let (mut owner, mut friend) = friends(&world, 0, 1);
    let account = friend.me().clone();
    let (online, offline) = ((json!("online"), json!("online")), (json!("offline"), json!("offline")));
    for round in 0..20 {
        // From its login reply on.
        assert_eq!(states(&mut owner), online, "round {round}");
        if round % 2 == 0 {
            friend.logout()
        } else {
            friend.reset()
        }
        eventually("the friend to be shown offline", || states(&mut owner) == offline);
        friend = world.login_on(round, &account);
    }
    // And in a login reply.
    let me = owner.me().clone();
    owner.logout();
    eventually("the owner to be free", || world.client_on(1).try_login(&me)["errno"] == 0);
    eventually("the owner to be free again", || owner.try_login(&me)["errno"] == 0);
    assert_eq!(listed(&owner.greeting["friends"])[0]["state"], "online");
}

fn a_join_acked_on_one_node_counts_for_a_sender_on_the_other_at_once(config: &'static Config) {
    let world = config.shared();
    let mut clients = [world.online("one"), world.online_on(1, "other")];
    for round in 0..300 {
        let [one, other] = &mut clients;
        let (creator, member) = if round % 2 == 0 { (one, other) } else { (other, one) };
        let group = creator.create_group(&world.name("group"));
        // The sender's node knows the members already; is just reading them; or will when asked.
        match round % 3 {
            0 => drop(creator.group_chat(group, "before")),
            1 => creator.post(&creator.group_chat_to(group, "before")),
            _ => {}
        }
        member.join(group);
        let ack = creator.group_chat(group, "after");
        assert_eq!((&ack["delivered"], &ack["stored"]), (&json!(1), &json!(0)), "round {round}");
        while member.texts(1) != ["after"] {}
        // And the new member may send at once.
        assert_eq!(member.group_chat(group, "hello")["delivered"], 1, "round {round}");
        while creator.texts(1) != ["hello"] {}
    }
}

fn a_logout_acked_on_one_node_holds_at_once_for_a_login_on_the_other(config: &'static Config) {
    let world = config.shared();
    let (mut clients, account) = ([world.client(), world.client_on(1)], world.account("mover"));
    for round in 0..300 {
        let client = &mut clients[round % 2];
        assert_eq!(client.try_login(&account)["errno"], 0, "round {round}");
        client.logout();
    }
}

/// Sends numbered chats until `stop` is set, some unanswered at a time; returns how many there were.
fn stream(sender: &mut Client, mut chat: Value, stop: &AtomicBool) -> usize {
    const WINDOW: usize = 16;
    let mut seqs = VecDeque::new();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        if seqs.len() == WINDOW {
            expect_served(sender, seqs.pop_front().expect("a window"));
        }
        chat["msg"] = sent.to_string().into();
        seqs.push_back(sender.start(chat.clone()));
        sent += 1;
    }
    seqs.into_iter().for_each(|seq| expect_served(sender, seq));
    sent
}

#[track_caller]
fn expect_served(sender: &mut Client, seq: i64) {
    let ack = sender.reply(seq);
    assert!(ack["errno"] == 0 && ack.get("failed").is_none(), "{ack}");
}

/// Stops the streams, also when an assertion fails: else they would be waited for.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Checks that the chats of each sender come as 0, 1, 2, …
struct Sequences {
    ids: [u32; 2],
    next: [usize; 2],
}

impl Sequences {
    #[track_caller]
    fn take(&mut self, chat: &Value) {
        let from = self.ids.iter().position(|id| chat["id"] == *id).expect("one of the senders");
        assert_eq!(text_of(chat), self.next[from].to_string(), "lost, repeated or out of order, from {from}");
        self.next[from] += 1;
    }
}

/// Lets an account move between the nodes while two senders, one on each, stream to it; `chat` makes
/// their messages.
fn move_amid_streams(world: &World, account: &Account, mut senders: [Client; 2], chat: impl Fn(&Client) -> Value) {
    const ROUNDS: usize = 150;
    let mut sequences = Sequences { ids: [senders[0].id(), senders[1].id()], next: [0, 0] };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let streams = senders.each_mut().map(|sender| {
            let (stop, chat) = (&stop, chat(sender));
            scope.spawn(move || stream(sender, chat, stop))
        });
        let stopper = Stop(&stop);
        let mut clients = [world.client(), world.client_on(1)];
        for round in 0..ROUNDS {
            let client = &mut clients[round % 2];
            client.login(account);
            // Now and then it stays until something has come.
            for _ in 0..round % 3 * 20 {
                sequences.take(&client.push());
            }
            client.logout();
            client.pushed().iter().for_each(|chat| sequences.take(chat));
        }
        drop(stopper);
        let sent = streams.map(|stream| stream.join().expect("acks"));
        clients[0].login(account);
        while sequences.next != sent {
            sequences.take(&clients[0].push());
        }
        assert_eq!(clients[0].pushed(), [] as [Value; 0]);
        assert!(sent.iter().all(|sent| *sent > ROUNDS), "streams that were none: {sent:?}");
    });
}

fn a_user_who_moves_between_nodes_amid_streams_from_both_loses_repeats_and_reorders_none(config: &'static Config) {
    let world = config.shared();
    let account = world.account("mover");
    let senders = [world.online("sender"), world.online_on(1, "sender")];
    move_amid_streams(&world, &account, senders, |sender| sender.chat_to(account.id, ""));
}

fn a_member_who_moves_between_nodes_amid_group_streams_from_both_loses_repeats_and_reorders_none(
    config: &'static Config,
) {
    let world = config.shared();
    let account = world.account("mover");
    let mut senders = [world.online("sender"), world.online_on(1, "sender")];
    let group = senders[0].create_group(&world.name("group"));
    senders[1].join(group);
    let mut mover = world.login(&account);
    mover.join(group);
    mover.logout();
    // Each sender is a member, and is sent the other's.
    move_amid_streams(&world, &account, senders, |sender| sender.group_chat_to(group, ""));
}

fn a_node_that_is_stopped_in_order_loses_and_repeats_nothing_and_its_users_log_in_elsewhere_at_once(
    config: &'static Config,
) {
    let world = config.own(&[]);
    let (mut sender, mut recipient) = (world.online_on(1, "sender"), world.online("recipient"));
    let account = recipient.me().clone();
    let stop = AtomicBool::new(false);
    let mut sequences = Sequences { ids: [sender.id(), 0], next: [0, 0] };
    thread::scope(|scope| {
        let (stop, chat) = (&stop, sender.chat_to(account.id, ""));
        let stopper = Stop(stop);
        let streaming = scope.spawn(|| stream(&mut sender, chat, stop));
        for round in 0..4 {
            let node = round % 2;
            for _ in 0..200 {
                sequences.take(&recipient.push());
            }
            if node == 0 {
                world.server().signal("TERM");
                while let Ok(text) = recipient.next_push() {
                    sequences.take(&parse(&text));
                }
                assert!(world.wait().success());
                recipient = world.login_on(1, &account);
            } else {
                world.start_again();
                recipient.logout();
                recipient.pushed().iter().for_each(|chat| sequences.take(chat));
                recipient = world.login(&account);
            }
        }
        drop(stopper);
        let sent = streaming.join().expect("acks");
        while sequences.next[0] < sent {
            sequences.take(&recipient.push());
        }
        assert_eq!(recipient.pushed(), [] as [Value; 0]);
    });
}

fn users_of_a_killed_node_are_offline_for_the_others_and_can_log_in_there(config: &'static Config) {
    let world = config.own(&[]);
    let (mut owner, friend) = friends(&world, 1, 0);
    world.kill();
    let mut client = world.client_on(1);
    eventually_within(REAPED, "a login on the other node", || {
        let reply = client.try_login(friend.me());
        assert!(reply["errno"] == 0 || reply["errno"] == 2, "{reply}");
        reply["errno"] == 0
    });
    client.logout();
    eventually("the friend to be shown offline", || states(&mut owner) == (json!("offline"), json!("offline")));
    // No other client has noticed anything; and the node can come back.
    world.start_again();
    let back = world.login(friend.me());
    assert!(owner.chat(back.id(), "welcome back"));
}

fn a_node_that_stood_still_serves_nobody_whom_another_has_taken_over(config: &'static Config) {
    let world = config.own(&[]);
    let (mut sender, mut zombie) = (world.online_on(1, "sender"), world.online("taken over"));
    let mut bystander = world.client();
    bystander.sync();
    let account = zombie.me().clone();
    assert!(sender.chat(account.id, "before"));
    world.server().signal("STOP");
    assert!(!sender.chat(account.id, "meanwhile"), "after 2 s it is stored");
    let mut successor = world.client_on(1);
    eventually_within(REAPED, "a login on the other node", || successor.try_login(&account)["errno"] == 0);
    assert_eq!(successor.texts(1), ["meanwhile"]);
    assert!(sender.chat(account.id, "to the successor"));
    assert_eq!(successor.texts(1), ["to the successor"]);
    // The node finds this in its socket when it wakes.
    let chat = zombie.chat_to(sender.id(), "from the grave");
    zombie.post(&chat);
    world.server().signal("CONT");
    assert_eq!(zombie.texts(1), ["before"]);
    // It closes everything, without a word, and begins anew on the same port.
    assert!(zombie.next_push().is_err());
    assert!(bystander.next_push().is_err());
    assert!(sender.chat(account.id, "still with the successor"));
    assert_eq!(successor.texts(1), ["still with the successor"]);
    assert_eq!(sender.pushed(), [] as [Value; 0]);
    world.assert_alive();
    let mut there = world.online("somebody else");
    assert!(there.chat(account.id, "from the node that was dead"));
    assert_eq!(successor.texts(1), ["from the node that was dead"]);
}

fn what_was_acked_around_a_kill_9_of_the_recipients_node_was_delivered_or_is_found_later(config: &'static Config) {
    const SENT: usize = 400;
    const WINDOW: usize = 16;
    let world = config.own(&[]);
    let (mut sender, mut recipient) = (world.online_on(1, "sender"), world.online("recipient"));
    let mut seqs = VecDeque::new();
    for number in 0..SENT {
        if seqs.len() == WINDOW {
            let seq = seqs.pop_front().expect("a window");
            assert_eq!(sender.reply(seq)["errno"], 0);
        }
        let chat = sender.chat_to(recipient.id(), &number.to_string());
        seqs.push_back(sender.start(chat));
        if number == SENT / 2 {
            world.kill();
        }
    }
    seqs.into_iter().for_each(|seq| assert_eq!(sender.reply(seq)["errno"], 0));
    let mut next = 0;
    let mut take = |text: &str| {
        let number: usize = text_of(&parse(text)).parse().expect("a number");
        // What was under way may be repeated.
        assert!(number <= next && number + WINDOW >= next, "{number} instead of {next}");
        next = next.max(number + 1);
        next
    };
    while let Ok(text) = recipient.next_push() {
        take(&text);
    }
    let mut back = world.client_on(1);
    eventually_within(REAPED, "a login on the other node", || back.try_login(recipient.me())["errno"] == 0);
    while take(&back.push_text()) < SENT {}
    assert_eq!(back.pushed(), [] as [Value; 0]);
}
