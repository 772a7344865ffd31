//! Order, and nothing lost in the gaps: promises 1 and 2 of `docs/PROTOCOL.md#8-order-and-other-promises`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::{Account, Client, Config, World, eventually, parse, text_of};

in_every_configuration! {
    chats_of_one_sender_arrive_in_the_order_they_were_sent,
    group_chats_of_one_sender_arrive_in_the_order_they_were_sent_at_every_member,
    a_login_racing_with_messages_loses_repeats_and_reorders_none,
    a_login_racing_with_group_messages_loses_repeats_and_reorders_none,
    what_was_acked_around_a_reset_was_delivered_or_is_found_later,
    a_slow_reader_gets_everything_in_order_and_disturbs_nobody,
    a_slow_member_gets_everything_in_order_and_the_others_at_once,
    a_slow_reader_that_asks_for_more_is_settled_with_once,
    a_logout_amid_a_stream_loses_none,
}

/// Sends numbered chats, each with a `seq`, and keeps a few unanswered.
struct Stream<'a> {
    sender: &'a mut Client,
    chat: Value,
    unanswered: VecDeque<i64>,
    sent: usize,
    /// The acks' answers, by number: `delivered`, or of a group how many were.
    delivered: Vec<Value>,
}

/// How many chats of a [`Stream`] are under way at a time.
const WINDOW: usize = 16;

impl<'a> Stream<'a> {
    fn new(sender: &'a mut Client, chat: Value) -> Self {
        Stream { sender, chat, unanswered: VecDeque::new(), sent: 0, delivered: Vec::new() }
    }

    #[track_caller]
    fn send(&mut self, pad: usize) {
        if self.unanswered.len() == WINDOW {
            self.await_ack();
        }
        self.chat["msg"] = format!("{} {}", self.sent, "x".repeat(pad)).into();
        self.unanswered.push_back(self.sender.start(self.chat.clone()));
        self.sent += 1;
    }

    #[track_caller]
    fn await_ack(&mut self) {
        let seq = self.unanswered.pop_front().expect("something is unanswered");
        let ack = self.sender.reply(seq);
        assert_eq!(ack["errno"], 0, "{ack}");
        assert!(ack.get("failed").is_none(), "{ack}");
        self.delivered.push(ack["delivered"].clone());
    }

    #[track_caller]
    fn finish(&mut self) {
        while !self.unanswered.is_empty() {
            self.await_ack();
        }
    }
}

fn number_of(chat: &Value) -> usize {
    let text = text_of(chat);
    text.split(' ').next().unwrap().parse().expect("a numbered chat")
}

/// Checks that the chats come as 0, 1, 2, …
#[derive(Default)]
struct Sequence {
    next: usize,
}

impl Sequence {
    #[track_caller]
    fn take(&mut self, chat: &Value) {
        assert_eq!(number_of(chat), self.next, "lost, repeated or out of order");
        self.next += 1;
    }
}

fn chats_of_one_sender_arrive_in_the_order_they_were_sent(config: &'static Config) {
    let world = config.shared();
    let mut recipient = world.online_on(1, "recipient");
    let mut senders: Vec<Client> = (0..4).map(|node| world.online_on(node, "sender")).collect();
    for number in 0..500 {
        for sender in &mut senders {
            let chat = sender.chat_to(recipient.id(), &number.to_string());
            sender.post(&chat);
        }
    }
    let mut next = vec![0; senders.len()];
    for _ in 0..500 * senders.len() {
        let chat = recipient.push();
        let from = senders.iter().position(|sender| chat["id"] == sender.id()).expect("one of the senders");
        assert_eq!(number_of(&chat), next[from]);
        next[from] += 1;
    }
}

fn group_chats_of_one_sender_arrive_in_the_order_they_were_sent_at_every_member(config: &'static Config) {
    let world = config.shared();
    let mut sender = world.online("sender");
    let group = sender.create_group(&world.name("group"));
    let mut members: Vec<Client> = (0..8).map(|node| world.online_on(node, "member")).collect();
    members.iter_mut().for_each(|member| member.join(group));
    for number in 0..300 {
        let chat = sender.group_chat_to(group, &number.to_string());
        sender.post(&chat);
    }
    for member in &mut members {
        let mut sequence = Sequence::default();
        (0..300).for_each(|_| sequence.take(&member.push()));
    }
}

/// Lets `recipient` log in and out, on the same connection and on new ones, while a sender streams
/// to it; `chat` makes the sender's message.
fn race(world: &World, sender: &mut Client, recipient: &Account, chat: Value, rounds: usize) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let streaming = scope.spawn(|| {
            let mut stream = Stream::new(sender, chat);
            while !stop.load(Ordering::Relaxed) {
                stream.send(0);
            }
            stream.finish();
            stream.sent
        });
        // The stream is stopped also when an assertion fails: the scope waits for the sender.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stopper = Stop(&stop);
        let mut sequence = Sequence::default();
        let mut client = world.client_on(1);
        for round in 0..rounds {
            client.login(recipient);
            if round % 4 == 0 {
                // Stays until something has come live, or by the login reply.
                sequence.take(&client.push());
            }
            client.logout();
            client.pushed().iter().for_each(|chat| sequence.take(chat));
            if round % 2 == 0 {
                client = world.client_on(round);
            }
        }
        drop(stopper);
        let sent = streaming.join().expect("the sender's acks");
        client.login(recipient);
        while sequence.next < sent {
            sequence.take(&client.push());
        }
        assert_eq!(client.pushed(), [] as [Value; 0]);
    });
}

/// The race is between threads of the server, so one reactor needs fewer rounds.
fn rounds(config: &Config) -> usize {
    if config.reactors > 1 { 2000 } else { 500 }
}

fn a_login_racing_with_messages_loses_repeats_and_reorders_none(config: &'static Config) {
    let world = config.shared();
    let (mut sender, recipient) = (world.online("sender"), world.account("recipient"));
    let chat = sender.chat_to(recipient.id, "");
    race(&world, &mut sender, &recipient, chat, rounds(config));
}

fn a_login_racing_with_group_messages_loses_repeats_and_reorders_none(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut member) = (world.online("sender"), world.online_on(1, "member"));
    let group = sender.create_group(&world.name("group"));
    member.join(group);
    let account = member.me().clone();
    member.logout();
    let chat = sender.group_chat_to(group, "");
    race(&world, &mut sender, &account, chat, rounds(config) / 4);
}

fn what_was_acked_around_a_reset_was_delivered_or_is_found_later(config: &'static Config) {
    const PAD: usize = 500;
    /// What the kernels may have taken for the dead peer: the server's send buffer (doubled for
    /// its bookkeeping) and the client's receive buffer.
    const IN_FLIGHT: usize = (2 * 64 + 16) * 1024;
    let world = config.shared();
    let mut sender = world.online("sender");
    for round in 0..10 {
        let account = world.account("recipient");
        let mut recipient = world.client_with_receive_buffer(1, 4096);
        recipient.login(&account);
        let chat = sender.chat_to(account.id, "");
        let mut stream = Stream::new(&mut sender, chat);
        let mut sequence = Sequence::default();
        for _ in 0..100 + round * 20 {
            stream.send(PAD);
        }
        for _ in 0..50 {
            sequence.take(&recipient.push());
        }
        let read = sequence.next;
        recipient.reset();
        for _ in 0..100 {
            stream.send(PAD);
        }
        stream.finish();
        let sent = stream.sent;
        let mut back = world.client_on(1);
        eventually("the account to be free", || back.try_login(&account)["errno"] == 0);
        let found: Vec<usize> = back.pushed().iter().map(number_of).collect();
        // One gap, of messages that the kernel took; what follows it is complete and in order.
        let first = found.first().copied().unwrap_or(sent);
        assert_eq!(found, (first..sent).collect::<Vec<_>>(), "after {read} were read");
        // Whether they went there live, or were stored first and pushed when it read again.
        let lost = read..first.max(read);
        assert!(lost.len() * PAD <= IN_FLIGHT, "{lost:?} are more than the kernel can have taken");
    }
}

fn a_slow_reader_gets_everything_in_order_and_disturbs_nobody(config: &'static Config) {
    let world = config.own(&["--high-water", "65536"]);
    let (mut sender, account) = (world.online("sender"), world.account("slow"));
    let (mut one, mut other) = (world.online("one"), world.online_on(1, "other"));
    let mut slow = world.client_with_receive_buffer(1, 4096);
    slow.login(&account);
    let chat = sender.chat_to(account.id, "");
    let mut stream = Stream::new(&mut sender, chat);
    for number in 0..1500 {
        stream.send(1000);
        if number % 15 == 0 {
            assert!(one.chat(other.id(), "undisturbed"));
            assert_eq!(other.texts(1), ["undisturbed"]);
        }
    }
    stream.finish();
    assert!(stream.delivered.contains(&json!(false)), "what exceeds the high-water mark is stored");
    let sent = stream.sent;
    let mut sequence = Sequence::default();
    while sequence.next < sent {
        match slow.next_push() {
            Ok(text) => sequence.take(&parse(&text)),
            // It may have been closed as too slow for too long; then the rest was stored.
            Err(_) => eventually("the account to be free", || {
                slow = world.client_on(1);
                slow.try_login(&account)["errno"] == 0
            }),
        }
    }
    // What is sent from now on comes behind it, and live again as soon as the store is seen empty.
    eventually("a live delivery", || {
        let live = sender.chat(account.id, &sequence.next.to_string());
        sequence.take(&slow.push());
        live
    });
}

fn a_slow_member_gets_everything_in_order_and_the_others_at_once(config: &'static Config) {
    let world = config.own(&["--high-water", "65536"]);
    let mut sender = world.online("sender");
    let group = sender.create_group(&world.name("group"));
    let mut quick = [world.online("quick"), world.online_on(1, "quick")];
    let mut slow = world.client_with_receive_buffer(1, 4096);
    slow.login(&world.account("slow"));
    quick.iter_mut().chain([&mut slow]).for_each(|member| member.join(group));
    let chat = sender.group_chat_to(group, "");
    let mut stream = Stream::new(&mut sender, chat);
    let mut sequences = [Sequence::default(), Sequence::default()];
    for _ in 0..600 {
        stream.send(1000);
        for (member, sequence) in quick.iter_mut().zip(&mut sequences) {
            sequence.take(&member.push());
        }
    }
    stream.finish();
    assert!(stream.delivered.contains(&json!(2)), "what exceeds the high-water mark is stored");
    let mut sequence = Sequence::default();
    while sequence.next < 600 {
        sequence.take(&slow.push());
    }
    assert_eq!(slow.pushed(), [] as [Value; 0]);
}

/// Its queue is recalled when it has stood still for a second, and again when the replies to what it
/// asks for pass the mark: the message that is half written is in it both times.
fn a_slow_reader_that_asks_for_more_is_settled_with_once(config: &'static Config) {
    const PINGS: usize = 4000;
    let world = config.own(&["--high-water", "65536"]);
    let (mut sender, account) = (world.online("sender"), world.account("slow"));
    let mut slow = world.client_with_receive_buffer(1, 4096);
    slow.login(&account);
    let pad = "x".repeat(3000);
    let mut sent = 0;
    let mut send = |sender: &mut Client| {
        sent += 1;
        sender.chat(account.id, &format!("{} {pad}", sent - 1))
    };
    while send(&mut sender) {}
    let pings: Vec<i64> = (0..PINGS).map(|_| slow.start(json!({"msgid": 202}))).collect();
    assert!(!send(&mut sender), "it still does not read");
    let mut sequence = Sequence::default();
    while sequence.next < sent {
        sequence.take(&slow.push());
    }
    for seq in pings {
        assert_eq!(slow.reply(seq)["msgid"], 203);
    }
    // The sender's session can end: nothing is left open.
    let me = sender.me().clone();
    sender.logout();
    world.login_on(1, &me);
}

fn a_logout_amid_a_stream_loses_none(config: &'static Config) {
    let world = config.shared();
    let (mut sender, account) = (world.online("sender"), world.account("recipient"));
    let mut recipient = world.login_on(1, &account);
    let chat = sender.chat_to(account.id, "");
    let mut stream = Stream::new(&mut sender, chat);
    let mut sequence = Sequence::default();
    for _ in 0..100 {
        (0..WINDOW).for_each(|_| stream.send(10));
        recipient.logout();
        recipient.login(&account);
        recipient.pushed().iter().for_each(|chat| sequence.take(chat));
    }
    stream.finish();
    recipient.pushed().iter().for_each(|chat| sequence.take(chat));
    assert_eq!(sequence.next, stream.sent);
}
