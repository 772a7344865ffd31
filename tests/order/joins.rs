//! Joins that a node does not hear of: from their acks on every node counts the member, promise 6 of
//! `docs/PROTOCOL.md#8-order-and-other-promises`.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{Client, Cluster, REAPED, Verdict, Way, contains, eventually, eventually_within};
use crate::{ANSWERED, accounts, login, login_within};

/// What a join has come to, that may have to be asked for again while a node does not hear of it.
#[track_caller]
fn has_joined(member: &mut Client, join: &Value, seq: i64) {
    member.set_patience(ANSWERED);
    let mut reply = member.reply(seq);
    eventually_within(REAPED, "a join that is done", || {
        // Error 21: it may be done; 18: it was.
        if reply["errno"] == 21 {
            reply = member.request(join.clone());
        }
        reply["errno"] == 0 || reply["errno"] == 18
    });
}

#[test]
fn members_that_were_read_while_a_node_heard_nothing_are_not_all_when_it_hears_again() {
    /// An id that is recognised where it stands, in either of the database's forms.
    const ID: u32 = 1_234_567_890;
    let mut cluster = Cluster::start(1);
    let (redis, database) = cluster.add_node_behind();
    let [other, deaf] = cluster.addresses()[..] else { unreachable!() };
    let [member] = accounts(other, "member");
    cluster.execute(&format!("ALTER TABLE User AUTO_INCREMENT = {ID}"));
    let [sender] = accounts(other, "sender");
    let (mut sender, mut member) = (login(deaf, &sender), login(other, &member));
    let group = sender.create_group("group");

    redis.deafen();
    eventually("the broken line to be noticed", || redis.lines(|line| line.subscribes) == 0);
    // The only member is read, and the answer is on its way for long.
    database.rule(|line, way, piece| {
        let has_member = contains(piece, &ID.to_le_bytes()) || contains(piece, ID.to_string().as_bytes());
        line.is_marked |= way == Way::Back && has_member;
        if line.is_marked { Verdict::Hold } else { Verdict::Pass }
    });
    sender.post(&sender.group_chat_to(group, "before"));
    eventually("members that are read", || database.held() > 0);
    let join = json!({"msgid": 9, "id": member.id(), "groupid": group});
    let seq = member.start(join.clone());
    let query = format!("SELECT COUNT(*) FROM GroupUser WHERE userid = {}", member.id());
    eventually("the join to be committed", || cluster.count(&query) == 1);
    redis.fix();
    eventually("the line to be back", || cluster.subscribers() == 2);
    // Its answer, too, comes behind that.
    member.chat(sender.id(), "welcome back");
    database.fix();
    has_joined(&mut member, &join, seq);
    // This message may not have reached the member before.
    member.pushed();
    let ack = sender.group_chat(group, "after");
    assert_eq!((&ack["delivered"], &ack["stored"]), (&json!(1), &json!(0)));
    assert_eq!(member.texts(1), ["after"]);
}

#[test]
fn a_node_whose_subscription_redis_has_dropped_counts_who_joins_before_it_has_noticed() {
    let mut cluster = Cluster::start(1);
    let (redis, _database) = cluster.add_node_behind();
    let [other, deaf] = cluster.addresses()[..] else { unreachable!() };
    let [sender, member, first] = accounts(other, "user");
    let (mut sender, mut member) = (login(deaf, &sender), login(other, &member));
    let group = sender.create_group("group");
    let mut first = login(other, &first);
    first.join(group);
    // Its members are known by now.
    assert_eq!(sender.group_chat(group, "before")["delivered"], 1);

    // Redis has ended the line, and the node is not notified yet.
    redis.mark(|line| line.subscribes);
    redis.rule(|line, way, _| if line.is_marked && way == Way::Back { Verdict::Hold } else { Verdict::Pass });
    redis.lose(|line| line.is_marked);
    eventually("Redis to have dropped the subscription", || cluster.subscribers() == 1);
    let join = json!({"msgid": 9, "id": member.id(), "groupid": group});
    let seq = member.start(join.clone());
    has_joined(&mut member, &join, seq);
    let chat = sender.group_chat_to(group, "after");
    let ack = match sender.try_request(chat) {
        Some(ack) if ack["errno"] != 13 => ack,
        // On a busy machine its node may have been taken for dead.
        _ => login_within(REAPED, Instant::now(), deaf, sender.me()).group_chat(group, "after"),
    };
    let count = |what: &str| ack[what].as_u64().unwrap_or_default();
    assert_eq!(count("delivered") + count("stored"), 2, "{ack}");
    assert_eq!(member.texts(1), ["after"]);
    while first.texts(1) != ["after"] {}
}
