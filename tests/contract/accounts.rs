//! REG_MSG, LOGIN_MSG, LOGINOUT_MSG and ADD_FRIEND_MSG, as `docs/PROTOCOL.md#3-requests` has them; and one session for
//! each account, promise 4 of `docs/PROTOCOL.md#8-order-and-other-promises`.

use serde_json::json;

use crate::support::{Account, Client, Config, eventually, listed, login, strings};

in_every_configuration! {
    a_register_ack_bears_errno_error_and_id,
    a_taken_name_is_errno_1_whatever_its_case,
    register_is_possible_while_logged_in,
    a_login_ack_says_who_is_online_and_leaves_empty_lists_out,
    login_of_nobody_or_with_a_wrong_password_is_errno_1,
    login_of_an_account_in_use_is_errno_2,
    login_as_oneself_again_is_errno_2_and_the_session_stays,
    login_as_another_logs_the_first_out,
    a_failed_login_as_another_leaves_nobody_logged_in,
    of_many_simultaneous_logins_one_succeeds,
    logout_has_no_reply_and_the_connection_stays,
    logout_holds_at_once_for_the_next_login_on_the_connection,
    logout_frees_the_account_for_other_connections,
    a_connection_that_ends_frees_its_account,
    a_connection_that_is_reset_frees_its_account,
    the_password_may_be_called_passwd_or_pwd,
    an_id_may_come_as_a_numeric_string,
    names_of_50_and_passwords_of_128_are_taken,
    a_password_is_stored_as_argon2id,
    a_friend_is_listed_with_name_and_state_and_only_on_one_side,
    a_friend_twice_is_error_18_and_a_stranger_error_15,
    list_bears_friends_and_groups_as_the_login_reply_does,
    ping_is_answered_before_and_after_login,
    a_pong_has_no_reply,
}

fn a_register_ack_bears_errno_error_and_id(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    client.post(&json!({"msgid": 4, "name": world.name("reg"), "password": "p"}));
    let ack = client.recv();
    let id = ack["id"].as_u64().expect("an id");
    assert!(id >= 1);
    assert_eq!(ack, json!({"msgid": 5, "errno": 0, "error": 0, "id": id}));
}

fn a_taken_name_is_errno_1_whatever_its_case(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    let name = world.name("Émile");
    client.register(&name, "p");
    for taken in [name.clone(), name.to_uppercase(), name.to_lowercase()] {
        client.post(&json!({"msgid": 4, "name": taken, "password": "q"}));
        let ack = client.recv();
        assert_eq!((&ack["msgid"], &ack["errno"], &ack["error"]), (&json!(5), &json!(1), &json!(1)), "{taken}");
        assert!(ack.get("id").is_none(), "{ack}");
    }
}

fn register_is_possible_while_logged_in(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("host");
    let guest = client.register(&world.name("guest"), "p");
    world.login(&guest);
    assert_eq!(client.request(json!({"msgid": 206}))["errno"], 0, "still logged in");
}

fn a_login_ack_says_who_is_online_and_leaves_empty_lists_out(config: &'static Config) {
    let world = config.shared();
    let account = world.account("login");
    let mut client = world.client();
    client.post(&login(&account));
    let expected = json!({"msgid": 2, "errno": 0, "id": account.id, "name": account.name, "state": "online"});
    assert_eq!(client.recv(), expected);
}

fn login_of_nobody_or_with_a_wrong_password_is_errno_1(config: &'static Config) {
    let world = config.shared();
    let account = world.account("login");
    let mut client = world.client();
    for (id, password) in [(account.id, "Secret"), (account.id, "secret "), (2_000_000_000, "secret")] {
        client.post(&json!({"msgid": 1, "id": id, "password": password}));
        assert_eq!(client.recv(), json!({"msgid": 2, "errno": 1, "errmsg": "id or password is invalid!"}));
    }
    client.login(&account);
}

fn login_of_an_account_in_use_is_errno_2(config: &'static Config) {
    let world = config.shared();
    let mut first = world.online("busy");
    let mut second = world.client_on(1);
    second.post(&login(first.me()));
    let expected = json!({"msgid": 2, "errno": 2, "errmsg": "this account is using, input another!"});
    assert_eq!(second.recv(), expected);
    first.sync();
    assert_eq!(second.refused(json!({"msgid": 206})), 13);
}

fn login_as_oneself_again_is_errno_2_and_the_session_stays(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("again");
    let account = client.me().clone();
    assert_eq!(client.try_login(&account)["errno"], 2);
    assert_eq!(client.request(json!({"msgid": 206}))["errno"], 0);
}

fn login_as_another_logs_the_first_out(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("first");
    let (first, second) = (client.me().clone(), world.account("second"));
    assert_eq!(client.login(&second)["id"], second.id);
    world.login_on(1, &first);
    assert_eq!(client.refused(json!({"msgid": 7, "id": first.id, "friendid": second.id})), 14);
    client.befriend(first.id);
}

fn a_failed_login_as_another_leaves_nobody_logged_in(config: &'static Config) {
    let world = config.shared();
    let second = world.online("second");
    let wrong = Account { password: "wrong".into(), ..second.me().clone() };
    for (attempt, errno) in [(&wrong, 1), (second.me(), 2)] {
        let mut client = world.online("first");
        let first = client.me().clone();
        assert_eq!(client.try_login(attempt)["errno"], errno);
        assert_eq!(client.refused(json!({"msgid": 206})), 13);
        world.login_on(1, &first);
    }
}

fn of_many_simultaneous_logins_one_succeeds(config: &'static Config) {
    let world = config.shared();
    for _ in 0..20 {
        let account = world.account("wanted");
        let mut rivals: Vec<Client> = (0..8).map(|node| world.client_on(node)).collect();
        rivals.iter_mut().for_each(|rival| rival.post(&login(&account)));
        let mut errnos: Vec<i64> = rivals.iter_mut().map(|rival| rival.recv()["errno"].as_i64().unwrap()).collect();
        errnos.sort();
        assert_eq!(errnos, [0, 2, 2, 2, 2, 2, 2, 2]);
    }
}

fn logout_has_no_reply_and_the_connection_stays(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("leaver");
    client.post(&json!({"msgid": 3, "id": client.id()}));
    assert_eq!(client.pushed(), [] as [serde_json::Value; 0]);
    assert_eq!(client.refused(json!({"msgid": 206})), 13);
    let other = world.account("other");
    assert_eq!(client.login(&other)["id"], other.id);
}

fn logout_holds_at_once_for_the_next_login_on_the_connection(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("quick");
    let account = client.me().clone();
    for round in 0..200 {
        let logout = json!({"msgid": 3, "id": account.id});
        client.send_raw(format!("{logout}\n{}\n", login(&account)));
        let ack = client.recv();
        assert_eq!((&ack["msgid"], &ack["errno"]), (&json!(2), &json!(0)), "round {round}");
    }
}

fn logout_frees_the_account_for_other_connections(config: &'static Config) {
    let world = config.shared();
    let account = world.account("mover");
    for node in 0..20 {
        let mut client = world.login_on(node, &account);
        client.logout();
    }
}

fn a_connection_that_ends_frees_its_account(config: &'static Config) {
    let world = config.shared();
    let account = world.online("leaver").me().clone();
    eventually("the account to be free", || world.client_on(1).try_login(&account)["errno"] == 0);
}

fn a_connection_that_is_reset_frees_its_account(config: &'static Config) {
    let world = config.shared();
    let client = world.online("leaver");
    let account = client.me().clone();
    client.reset();
    eventually("the account to be free", || world.client_on(1).try_login(&account)["errno"] == 0);
}

fn the_password_may_be_called_passwd_or_pwd(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    for field in ["password", "passwd", "pwd"] {
        let id = client.must(json!({"msgid": 4, "name": world.name(field), field: "p"}))["id"].clone();
        for other in ["password", "passwd", "pwd"] {
            let mut client = world.client();
            client.must(json!({"msgid": 1, "id": id, other: "p"}));
            client.must(json!({"msgid": 3, "id": id}));
        }
    }
}

fn an_id_may_come_as_a_numeric_string(config: &'static Config) {
    let world = config.shared();
    let account = world.account("text");
    let friend = world.account("friend");
    let mut client = world.client();
    let id = account.id.to_string();
    client.must(json!({"msgid": "1", "id": id, "password": "secret"}));
    client.must(json!({"msgid": "7", "id": id, "friendid": friend.id.to_string()}));
    client.send(json!({"msgid": "206", "seq": "12"}).to_string());
    assert_eq!(client.recv()["seq"], 12);
}

fn names_of_50_and_passwords_of_128_are_taken(config: &'static Config) {
    let world = config.shared();
    let mut name = world.name("名");
    name.extend(std::iter::repeat_n('名', 50 - name.chars().count()));
    let account = world.client().register(&name, &"p".repeat(128));
    assert_eq!(world.login(&account).greeting["name"], name);
    let mut client = world.client();
    assert_eq!(client.refused(json!({"msgid": 4, "name": format!("{name}名"), "password": "p"})), 12);
    assert_eq!(client.refused(json!({"msgid": 4, "name": world.name("x"), "password": "p".repeat(129)})), 12);
}

fn a_password_is_stored_as_argon2id(config: &'static Config) {
    let world = config.shared();
    let account = world.account("secretive");
    let stored = world.stored_password(account.id);
    assert!(stored.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{stored}");
}

fn a_friend_is_listed_with_name_and_state_and_only_on_one_side(config: &'static Config) {
    let world = config.shared();
    let (offline, online) = (world.account("offline"), world.online_on(1, "online"));
    let mut owner = world.online("owner");
    let account = owner.me().clone();
    owner.befriend(offline.id);
    owner.befriend(online.id());
    owner.logout();
    let expected = [
        json!({"id": offline.id, "name": offline.name, "state": "offline"}),
        json!({"id": online.id(), "name": online.me().name, "state": "online"}),
    ];
    assert_eq!(listed(&owner.login(&account)["friends"]), expected);
    assert!(world.login(&offline).greeting.get("friends").is_none(), "one row, userid to friendid");
}

fn a_friend_twice_is_error_18_and_a_stranger_error_15(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("owner");
    let friend = world.account("friend");
    let add = |id: i64| json!({"msgid": 7, "id": client.id(), "friendid": id});
    let (add_friend, strangers) = (add(friend.id.into()), [add(2_000_000_000), add(-1), add(0), add(1 << 40)]);
    client.must(add_friend.clone());
    assert_eq!(client.refused(add_friend), 18);
    for stranger in strangers {
        assert_eq!(client.refused(stranger), 15);
    }
}

fn list_bears_friends_and_groups_as_the_login_reply_does(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("lister");
    let account = client.me().clone();
    let empty = client.request(json!({"msgid": 206}));
    assert_eq!(empty, json!({"msgid": 200, "seq": empty["seq"], "errno": 0}));
    client.befriend(world.account("friend").id);
    client.create_group(&world.name("group"));
    let list = client.must(json!({"msgid": 206}));
    assert_eq!((strings(&list["friends"]).len(), strings(&list["groups"]).len()), (1, 1));
    client.logout();
    let greeting = client.login(&account);
    assert_eq!((&list["friends"], &list["groups"]), (&greeting["friends"], &greeting["groups"]));
}

fn ping_is_answered_before_and_after_login(config: &'static Config) {
    let world = config.shared();
    for mut client in [world.client(), world.online("pinger")] {
        client.post(&json!({"msgid": 202}));
        assert_eq!(client.recv(), json!({"msgid": 203}));
        assert_eq!(client.request(json!({"msgid": 202}))["msgid"], 203);
    }
}

fn a_pong_has_no_reply(config: &'static Config) {
    let world = config.shared();
    for mut client in [world.client(), world.online("ponger")] {
        client.post(&json!({"msgid": 203}));
        assert_eq!(client.pushed(), [] as [serde_json::Value; 0]);
    }
}
