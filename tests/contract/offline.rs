//! Messages for a user who is offline are stored, drained by `offlinemsg` of the login reply, and removed only afterwards:
//! `docs/PROTOCOL.md#6-offline-messages`, and promise 3 of `docs/PROTOCOL.md#8-order-and-other-promises`.

use serde_json::Value;

use crate::support::{Account, Client, Config, World, eventually, login, parse, strings};

in_every_configuration! {
    offline_messages_stand_in_the_login_reply_with_the_bytes_that_were_sent,
    offline_messages_come_once,
    chats_and_group_chats_are_each_stored_in_the_order_they_were_sent,
    what_exceeds_256_kib_of_the_reply_follows_as_pushes_in_order,
    rows_stay_until_the_reply_was_written_whole,
    fifty_senders_messages_to_offline_users_are_all_there_in_order,
    fifty_senders_messages_survive_a_kill_9_right_after_the_last_ack,
}

fn offline_messages_stand_in_the_login_reply_with_the_bytes_that_were_sent(config: &'static Config) {
    let world = config.shared();
    let (mut sender, absent) = (world.online("sender"), world.account("absent"));
    let (id, name) = (sender.id(), sender.me().name.clone());
    let objects = [
        format!(
            r#"{{"msgid":6,"id":{id},"name":"{name}","toid":{},"msg":"\u4f60 \" \\","time":"t","seq":1}}"#,
            absent.id
        ),
        format!(
            r#"{{ "msgid":6, "id":"{id}","name":"{name}","to":{},"msg":"你","time":"","x":[1.0,{{}}],"seq":2 }}"#,
            absent.id
        ),
    ];
    for (seq, object) in (1..).zip(&objects) {
        sender.send(object);
        assert_eq!(sender.reply(seq)["delivered"], false);
    }
    assert_eq!(strings(&world.login_on(1, &absent).greeting["offlinemsg"]), objects);
}

fn offline_messages_come_once(config: &'static Config) {
    let world = config.shared();
    let (mut sender, absent) = (world.online("sender"), world.account("absent"));
    for n in 0..10 {
        sender.chat(absent.id, &n.to_string());
    }
    assert_eq!(world.kept_for(absent.id), 10);
    let mut recipient = world.login_on(1, &absent);
    assert_eq!(strings(&recipient.greeting["offlinemsg"]).len(), 10);
    eventually("the rows' removal", || world.kept_for(absent.id) == 0);
    recipient.logout();
    assert!(recipient.login(&absent).get("offlinemsg").is_none());
}

fn chats_and_group_chats_are_each_stored_in_the_order_they_were_sent(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut member) = (world.online("sender"), world.online_on(1, "member"));
    let group = sender.create_group(&world.name("group"));
    member.join(group);
    let account = member.me().clone();
    member.logout();
    let mut acks = Vec::new();
    for n in 0..50 {
        let text = n.to_string();
        let chat = if n % 2 == 0 { sender.chat_to(account.id, &text) } else { sender.group_chat_to(group, &text) };
        acks.push(sender.start(chat));
    }
    for seq in acks {
        assert_eq!(sender.reply(seq)["errno"], 0);
    }
    let texts = member.login(&account)["offlinemsg"].clone();
    let of_kind = |msgid: i64| -> Vec<i64> {
        let chats =
            strings(&texts).iter().map(|text| parse(text)).filter(|chat| chat["msgid"] == msgid).collect::<Vec<_>>();
        chats.iter().map(|chat| chat["msg"].as_str().unwrap().parse().unwrap()).collect()
    };
    assert_eq!(of_kind(6), (0..50).step_by(2).collect::<Vec<i64>>());
    assert_eq!(of_kind(10), (1..50).step_by(2).collect::<Vec<i64>>());
}

/// Stores `n` chats of about 1 KiB for `to`, numbered from 0.
fn store_backlog(sender: &mut Client, to: u32, n: usize) {
    for from in (0..n).step_by(50) {
        let acks: Vec<i64> = (from..n.min(from + 50))
            .map(|number| {
                let chat = sender.chat_to(to, &format!("{number} {}", "x".repeat(1000)));
                sender.start(chat)
            })
            .collect();
        for seq in acks {
            assert_eq!(sender.reply(seq)["delivered"], false);
        }
    }
}

/// The next `n` chats are those of [`store_backlog`], from the first.
#[track_caller]
fn expect_backlog(recipient: &mut Client, n: usize) {
    for (number, text) in recipient.texts(n).iter().enumerate() {
        assert!(text.starts_with(&format!("{number} ")), "{} instead of {number}", &text[..10]);
    }
}

fn what_exceeds_256_kib_of_the_reply_follows_as_pushes_in_order(config: &'static Config) {
    let world = config.shared();
    let (mut sender, absent) = (world.online("sender"), world.account("absent"));
    store_backlog(&mut sender, absent.id, 700);
    let mut recipient = world.login_on(1, &absent);
    let messages = &recipient.greeting["offlinemsg"];
    let (listed, bytes) = (strings(messages).len(), messages.to_string().len());
    assert!(bytes <= 256 * 1024 && bytes > 240 * 1024, "{listed} messages, {bytes} bytes in the reply");
    // Sent while the rest is still being drained, and so behind it.
    sender.chat(absent.id, "live");
    expect_backlog(&mut recipient, 700);
    assert_eq!(recipient.texts(1), ["live"]);
    assert_eq!(recipient.pushed(), [] as [Value; 0]);
    eventually("the rows' removal", || world.kept_for(absent.id) == 0);
}

fn rows_stay_until_the_reply_was_written_whole(config: &'static Config) {
    let world = config.own(&[]);
    let (mut sender, absent) = (world.online("sender"), world.account("absent"));
    store_backlog(&mut sender, absent.id, 700);
    let mut recipient = world.client_with_receive_buffer(0, 4096);
    recipient.post(&login(&absent));
    // The reply has begun, and its end can be in no buffer of the kernel's.
    recipient.expect_bytes(r#"{"msgid":2,"#);
    assert_eq!(world.kept_for(absent.id), 700);
    world.kill();
    world.start_again();
    world.expect_nobody_online_after_kill();
    expect_backlog(&mut world.login(&absent), 700);
}

const SENDERS: usize = 50;
const RECIPIENTS: usize = 10;
const EACH: usize = 200;

/// Every sender sends all its messages to one of the recipients, and waits for the acks.
fn send_from_fifty(world: &World, recipients: &[Account]) {
    let mut senders: Vec<Client> = (0..SENDERS).map(|n| world.online_on(n, "sender")).collect();
    let mut acks = vec![Vec::new(); SENDERS];
    for number in 0..EACH {
        for (n, sender) in senders.iter_mut().enumerate() {
            let chat = sender.chat_to(recipients[n % RECIPIENTS].id, &format!("{n}:{number}"));
            acks[n].push(sender.start(chat));
        }
    }
    for (sender, acks) in senders.iter_mut().zip(acks) {
        for seq in acks {
            assert_eq!(sender.reply(seq)["errno"], 0);
        }
    }
}

/// Each recipient finds every message of each of its senders, once and in order.
fn expect_from_fifty(world: &World, recipients: &[Account]) {
    for (r, account) in recipients.iter().enumerate() {
        let mut recipient = world.login_on(r, account);
        let mut next = [0; SENDERS];
        for text in recipient.texts(EACH * SENDERS / RECIPIENTS) {
            let (sender, number) = text.split_once(':').expect("sender:number");
            let sender: usize = sender.parse().unwrap();
            assert_eq!((sender % RECIPIENTS, number), (r, next[sender].to_string().as_str()));
            next[sender] += 1;
        }
        assert_eq!(recipient.pushed(), [] as [Value; 0]);
    }
}

fn fifty_senders_messages_to_offline_users_are_all_there_in_order(config: &'static Config) {
    let world = config.shared();
    let recipients = world.accounts("recipient", RECIPIENTS);
    send_from_fifty(&world, &recipients);
    expect_from_fifty(&world, &recipients);
}

fn fifty_senders_messages_survive_a_kill_9_right_after_the_last_ack(config: &'static Config) {
    let world = config.own(&[]);
    let recipients = world.accounts("recipient", RECIPIENTS);
    send_from_fifty(&world, &recipients);
    world.kill();
    world.start_again();
    world.expect_nobody_online_after_kill();
    expect_from_fifty(&world, &recipients);
}
