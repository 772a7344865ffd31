//! What clients may not exceed: the attack on each limit, the error that the attacker gets, and that others do
//! not feel it. The limits are in `docs/PROTOCOL.md#7-limits`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Account, Client, Config, World, eventually, login, strings};

// Limits of a connection or an address do not know the store.
in_configurations! {
    sqlite_1: [
        a_full_offline_store_keeps_what_it_has_and_tells_every_other_sender,
        in_a_group_a_full_offline_store_counts_as_failed,
        friends_groups_and_members_have_their_quotas,
        a_slow_reader_gets_what_was_acked_and_nothing_that_was_refused,
    ],
    mysql: [
        a_database_that_is_away_makes_no_failed_login,
        a_full_offline_store_keeps_what_it_has_and_tells_every_other_sender,
        in_a_group_a_full_offline_store_counts_as_failed,
        friends_groups_and_members_have_their_quotas,
        a_slow_reader_gets_what_was_acked_and_nothing_that_was_refused,
    ],
    cluster: [
        a_full_offline_store_keeps_what_it_has_and_tells_every_other_sender,
        in_a_group_a_full_offline_store_counts_as_failed,
        friends_groups_and_members_have_their_quotas,
        a_slow_reader_gets_what_was_acked_and_nothing_that_was_refused,
    ],
    sqlite_4: [
        who_answers_pings_is_never_idle_and_who_knows_none_is_sent_none,
        a_flood_of_messages_is_read_at_its_rate_and_each_refused_one_is_told,
        large_messages_have_their_rate_in_bytes,
        a_stranger_who_guesses_a_password_locks_himself_out_and_not_the_owner,
        registrations_from_one_address_are_limited,
        a_crowd_from_one_address_is_refused_and_keeps_nobody_else_out,
        behind_a_proxy_a_crowd_is_known_by_the_address_that_the_proxy_tells,
    ],
}

const STRANGER: [u8; 4] = [127, 0, 0, 66];
const OWNER: [u8; 4] = [127, 0, 0, 7];

/// Error 20, which says after how many seconds it is worth another try.
#[track_caller]
fn expect_error_20(reply: &Value) {
    assert_eq!(reply["errno"], 20, "{reply}");
    assert!(reply["errmsg"].is_string() && reply["retry_after"].as_u64().is_some_and(|time| time > 0), "{reply}");
}

fn a_crowd_from_one_address_is_refused_and_keeps_nobody_else_out(config: &'static Config) {
    let world = config.own(&["--max-connections-per-address", "8", "--max-connections", "40"]);
    let mut crowd: Vec<Client> = (0..8).map(|_| world.client_from(STRANGER)).collect();
    crowd.iter_mut().for_each(Client::sync);
    // More than all places there are.
    for _ in 0..200 {
        let mut refused = world.client_from(STRANGER);
        expect_error_20(&refused.recv());
        refused.expect_end();
    }
    let mut others: Vec<Client> = (0..8).map(|_| world.client_from(OWNER)).collect();
    others.iter_mut().chain(&mut crowd).for_each(Client::sync);
    crowd.pop();
    eventually("a place for one more", || is_let_in(&mut world.client_from(STRANGER)));
    others.iter_mut().for_each(Client::sync);
}

/// Whether it is served; one that is refused may be answered by an RST as well, if it has sent
/// something.
fn is_let_in(client: &mut Client) -> bool {
    use std::io::Write;
    let _ = client.stream.write_all(b"{\"msgid\":202}\n");
    client.next_text().is_ok_and(|text| text.contains("203"))
}

fn behind_a_proxy_a_crowd_is_known_by_the_address_that_the_proxy_tells(config: &'static Config) {
    let world = config.own(&["--max-connections-per-address", "2", "--proxy-protocol", "127.0.0.1"]);
    let mut stranger: Vec<Client> = (0..2).map(|_| through_proxy(&world, "192.0.2.66")).collect();
    stranger.iter_mut().for_each(Client::sync);
    let mut refused = through_proxy(&world, "192.0.2.66");
    expect_error_20(&refused.recv());
    refused.expect_end();
    // Nor do connections count together for which the proxy names no client.
    for n in 0..8 {
        through_proxy(&world, &format!("192.0.2.{n}")).sync();
        let mut proxy = world.client();
        proxy.send_raw("PROXY UNKNOWN\r\n");
        proxy.sync();
        stranger.push(proxy);
    }
    stranger.remove(0);
    eventually("a place for one more", || is_let_in(&mut through_proxy(&world, "192.0.2.66")));
}

fn through_proxy(world: &World, source: &str) -> Client {
    let mut client = world.client();
    client.send_raw(format!("PROXY TCP4 {source} 127.0.0.1 1234 8000\r\n"));
    client
}

fn a_full_offline_store_keeps_what_it_has_and_tells_every_other_sender(config: &'static Config) {
    let world = config.own(&["--max-offline", "5"]);
    let (mut sender, mut other) = (world.online("sender"), world.online_on(1, "other"));
    let absent = world.account("absent");
    assert!(!other.chat(absent.id, "of another"));
    let acks: Vec<i64> = (0..300).map(|n| sender.start(sender.chat_to(absent.id, &n.to_string()))).collect();
    let replies: Vec<Value> = acks.into_iter().map(|seq| sender.reply(seq)).collect();
    for reply in &replies[..4] {
        assert_eq!((&reply["errno"], &reply["delivered"]), (&json!(0), &json!(false)), "{reply}");
    }
    replies[4..].iter().for_each(expect_error_20);
    sender.post(&sender.chat_to(absent.id, "without a seq"));
    let error = sender.recv();
    assert_eq!((&error["msgid"], &error["request"]), (&json!(201), &json!(6)));
    expect_error_20(&error);
    expect_error_20(&other.request(other.chat_to(absent.id, "from elsewhere")));
    assert_eq!(world.kept_for(absent.id), 5);
    // A user who reads has room again, and a user who is not full is not concerned.
    let mut recipient = world.login_on(1, &absent);
    assert_eq!(recipient.texts(5), ["of another", "0", "1", "2", "3"]);
    eventually("the rows' removal", || world.kept_for(absent.id) == 0);
    recipient.logout();
    eventually("room", || sender.request(sender.chat_to(absent.id, "again"))["errno"] == 0);
    assert!(!sender.chat(world.account("empty").id, "hello"));
}

fn in_a_group_a_full_offline_store_counts_as_failed(config: &'static Config) {
    let world = config.own(&["--max-offline", "2"]);
    let mut sender = world.online("sender");
    let (mut online, mut absent) = (world.online_on(1, "online"), world.online_on(1, "absent"));
    let group = sender.create_group(&world.name("group"));
    online.join(group);
    absent.join(group);
    let account = absent.me().clone();
    absent.logout();
    let sums: Vec<Value> = (0..4).map(|n| sender.group_chat(group, &n.to_string())).collect();
    for (n, sum) in sums.iter().enumerate() {
        let failed = if n < 2 { Value::Null } else { json!(1) };
        let stored = i32::from(n < 2);
        assert_eq!((&sum["delivered"], &sum["stored"], &sum["failed"]), (&json!(1), &json!(stored), &failed), "{sum}");
    }
    sender.post(&sender.group_chat_to(group, "without a seq"));
    let error = sender.recv();
    assert_eq!((&error["msgid"], &error["request"]), (&json!(201), &json!(10)));
    assert!(error["errmsg"].as_str().is_some_and(|text| text.starts_with("1 ")), "{error}");
    assert_eq!(online.texts(5), ["0", "1", "2", "3", "without a seq"]);
    assert_eq!(world.login(&account).texts(2), ["0", "1"]);
}

fn a_slow_reader_gets_what_was_acked_and_nothing_that_was_refused(config: &'static Config) {
    let world = config.own(&["--max-offline", "30"]);
    let mut sender = world.online("sender");
    let mut reader = world.client_with_receive_buffer(1, 8192);
    let account = reader.register(&world.name("reader"), "secret");
    reader.login(&account);
    let (mut acked, mut refused) = (Vec::new(), 0);
    // Far more than sockets and store have room for.
    for from in (0..600).step_by(100) {
        let texts: Vec<String> = (from..from + 100).map(|n| format!("{n} {}", "x".repeat(4000))).collect();
        let seqs: Vec<i64> = texts.iter().map(|text| sender.start(sender.chat_to(account.id, text))).collect();
        for (text, seq) in texts.into_iter().zip(seqs) {
            let reply = sender.reply(seq);
            if reply["errno"] == 0 {
                acked.push(text);
            } else {
                expect_error_20(&reply);
                refused += 1;
            }
        }
    }
    assert!(refused > 100 && acked.len() > 30, "{refused} refused, {} acked", acked.len());
    assert_eq!(reader.texts(acked.len()), acked);
    assert_eq!(reader.pushed(), [] as [Value; 0]);
}

fn friends_groups_and_members_have_their_quotas(config: &'static Config) {
    let world = config.own(&["--max-friends", "3", "--max-groups", "4", "--max-group-size", "2"]);
    let (mut user, mut other) = (world.online("user"), world.online_on(1, "other"));
    let (id, friends) = (user.id(), world.accounts("friend", 5));
    let add = |friend: u32| json!({"msgid": 7, "id": id, "friendid": friend});
    friends[..3].iter().for_each(|friend| _ = user.must(add(friend.id)));
    expect_error_20(&user.request(add(friends[3].id)));
    // Each refusal says what it is about, as before.
    assert_eq!(user.refused(add(friends[0].id)), 18);
    assert_eq!(user.refused(add(2_000_000_000)), 15);
    let create =
        |client: &Client, name: &str| json!({"msgid": 8, "id": client.id(), "groupname": name, "groupdesc": ""});
    let groups: Vec<u32> = (0..4).map(|_| user.create_group(&world.name("group"))).collect();
    let refused = world.name("refused");
    expect_error_20(&user.request(create(&user, &refused)));
    let late = other.create_group(&refused);
    let join = |client: &Client, group: u32| json!({"msgid": 9, "id": client.id(), "groupid": group});
    expect_error_20(&user.request(join(&user, late)));
    other.must(join(&other, groups[0]));
    let mut third = world.online_on(1, "third");
    // So that its node knows the members.
    assert_eq!(other.group_chat(groups[0], "to two")["delivered"], 1);
    expect_error_20(&third.request(join(&third, groups[0])));
    assert_eq!(third.refused(third.group_chat_to(groups[0], "from outside")), 17);
    assert_eq!(other.group_chat(groups[0], "still to two")["delivered"], 1);
    let lists = user.must(json!({"msgid": 206}));
    assert_eq!((strings(&lists["friends"]).len(), strings(&lists["groups"]).len()), (3, 4));
    assert_eq!(third.pushed(), [] as [Value; 0]);
}

fn wrong(account: &Account) -> Account {
    Account { password: "guess".into(), ..account.clone() }
}

fn a_stranger_who_guesses_a_password_locks_himself_out_and_not_the_owner(config: &'static Config) {
    let world = config.own(&["--max-failed-logins", "3"]);
    let (account, other) = (world.account("owner"), world.account("other"));
    let mut owner = world.client_from(OWNER);
    // Many guesses at once, on as many connections, count as three, too.
    let mut stranger: Vec<Client> = (0..20).map(|_| world.client_from(STRANGER)).collect();
    let guesses: Vec<i64> = stranger.iter_mut().map(|client| client.start(login(&wrong(&account)))).collect();
    let replies: Vec<Value> = stranger.iter_mut().zip(guesses).map(|(client, seq)| client.reply(seq)).collect();
    let (tried, refused): (Vec<&Value>, Vec<&Value>) = replies.iter().partition(|reply| reply["errno"] == 1);
    assert_eq!(tried.len(), 3);
    for reply in refused {
        expect_error_20(reply);
        assert_eq!(reply["msgid"], 2);
        assert!(reply["retry_after"].as_u64().is_some_and(|time| (1100..=1200).contains(&time)), "{reply}");
    }
    let stranger = &mut stranger[0];
    expect_error_20(&stranger.try_login(&account));
    assert_eq!(stranger.try_login(&wrong(&other))["errno"], 1, "another account");
    // The reply does not reveal whether an account exists.
    let nobody = Account { id: 2_000_000_000, ..account.clone() };
    (0..3).for_each(|_| assert_eq!(stranger.try_login(&nobody)["errno"], 1));
    expect_error_20(&stranger.try_login(&nobody));
    // After a login that failed no user is logged in, for whatever reason it was refused.
    let third = world.account("third");
    stranger.login(&third);
    expect_error_20(&stranger.try_login(&nobody));
    assert_eq!(stranger.try_login(&third)["errno"], 0);
    owner.login(&account);
    // A right password clears the wrong ones, and an account in use is no failure.
    let mut again = world.client_from(OWNER);
    for _ in 0..3 {
        (0..2).for_each(|_| assert_eq!(again.try_login(&wrong(&account))["errno"], 1));
        (0..2).for_each(|_| assert_eq!(again.try_login(&account)["errno"], 2));
    }
}

fn a_database_that_is_away_makes_no_failed_login(config: &'static Config) {
    let world = config.with_own_mariadb(&["--max-failed-logins", "3"]);
    let account = world.account("user");
    let mut client = world.client();
    world.mariadb().kill();
    for _ in 0..10 {
        assert_eq!(client.try_login(&wrong(&account))["errno"], 21);
    }
    world.mariadb().restart();
    eventually("the database", || match client.try_login(&wrong(&account))["errno"].as_i64() {
        Some(errno) => {
            assert!(errno == 1 || errno == 21, "{errno}");
            errno == 1
        }
        None => panic!("no errno"),
    });
    assert_eq!(client.try_login(&wrong(&account))["errno"], 1);
    client.login(&account);
}

fn registrations_from_one_address_are_limited(config: &'static Config) {
    let world = config.own(&["--max-registrations", "3"]);
    let register = || json!({"msgid": 4, "name": world.name("new"), "password": "p"});
    let taken = register();
    for n in 0..3 {
        let request = if n == 0 { taken.clone() } else { register() };
        world.client_from(STRANGER).must(request);
    }
    for request in [register(), register(), taken.clone()] {
        let reply = world.client_from(STRANGER).request(request);
        expect_error_20(&reply);
        assert_eq!((&reply["msgid"], &reply["error"]), (&json!(5), &json!(20)));
    }
    let mut other = world.client_from(OWNER);
    other.must(register());
    assert_eq!(other.refused(taken), 1);
}

fn a_flood_of_messages_is_read_at_its_rate_and_each_refused_one_is_told(config: &'static Config) {
    let world = config.own(&["--max-message-rate", "20"]);
    let (mut flooder, mut other) = (world.client(), world.online("other"));
    let began = Instant::now();
    let seqs: Vec<i64> = (0..260).map(|_| flooder.start(json!({"msgid": 202}))).collect();
    // A garbled flood is none the faster for it.
    flooder.send_raw("{}".repeat(500));
    let mut refused = 0;
    for seq in seqs {
        let pong = flooder.reply(seq);
        assert_eq!(pong["msgid"], 203);
        if pong.get("errno").is_some() {
            expect_error_20(&pong);
            refused += 1;
        }
        // Others do not feel it; a ping a second is far below the rate.
        if refused == 1 && pong.get("errno").is_some() {
            other.sync();
        }
    }
    // 200 at once; then 20 and one that is refused, each second.
    let took = began.elapsed();
    assert!((2..=4).contains(&refused), "{refused} refused");
    assert!(took > Duration::from_millis(1900), "260 messages in {took:?}");
    let mut errors = Vec::new();
    while errors.len() < 10 || !errors.contains(&20) {
        let error = flooder.recv();
        errors.push(error["errno"].as_i64().expect("an errno"));
    }
    assert!(began.elapsed() > took, "{errors:?}");
    other.sync();
}

fn large_messages_have_their_rate_in_bytes(config: &'static Config) {
    let world = config.own(&["--max-byte-rate", "10000"]);
    let (mut sender, mut recipient) = (world.online("sender"), world.online("recipient"));
    // Longer than what passes in 2 s.
    let mut send = |n: usize| sender.request(sender.chat_to(recipient.id(), &format!("{n} {}", "x".repeat(30_000))));
    let replies: Vec<Value> = (0..4).map(&mut send).collect();
    replies[..3].iter().for_each(|reply| assert_eq!(reply["errno"], 0, "{reply}"));
    expect_error_20(&replies[3]);
    let wait = Duration::from_secs(replies[3]["retry_after"].as_u64().unwrap());
    assert!((1..=4).contains(&wait.as_secs()), "{wait:?}");
    // It is read again when there is room for what was refused.
    let began = Instant::now();
    assert_eq!(send(4)["errno"], 0);
    assert!(began.elapsed() > wait.saturating_sub(Duration::from_millis(1500)) && began.elapsed() < wait * 2);
    let numbers: Vec<String> = recipient.texts(4).iter().map(|text| text[..1].to_owned()).collect();
    assert_eq!(numbers, ["0", "1", "2", "4"]);
}

fn who_answers_pings_is_never_idle_and_who_knows_none_is_sent_none(config: &'static Config) {
    let world = config.own(&["--idle-timeout", "1s"]);
    let began = Instant::now();
    let (mut answering, mut mute) = (world.online("answering"), world.online("mute"));
    let account = world.account("plain");
    // A client of the original logs in like this.
    let mut plain = world.client();
    plain.post(&login(&account));
    assert_eq!(plain.recv()["errno"], 0);
    for _ in 0..5 {
        assert_eq!(answering.recv(), json!({"msgid": 202}));
        answering.post(&json!({"msgid": 203}));
    }
    assert!(began.elapsed() > Duration::from_millis(2400), "pinged too often: {:?}", began.elapsed());
    answering.sync();
    assert_eq!(mute.recv(), json!({"msgid": 202}));
    for mut silent in [mute, plain] {
        let error = silent.recv();
        assert_eq!(error["msgid"], 201);
        expect_error_20(&error);
        silent.expect_end();
    }
    eventually("the account to be free", || world.client().try_login(&account)["errno"] == 0);
}
