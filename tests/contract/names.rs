//! Which names are the same, which are none, and what passwords are the same, on every store:
//! `docs/PROTOCOL.md#names`, `docs/PROTOCOL.md#passwords`.

use std::sync::Barrier;
use std::thread;

use serde_json::{Value, json};

use crate::support::{Account, Client, Config, World};

in_every_configuration! {
    a_name_is_taken_in_every_case_encoding_and_spacing,
    a_name_that_reads_otherwise_is_free,
    what_cannot_be_seen_or_controls_is_no_name,
    names_in_any_script_and_emoji_come_back_as_they_were_given,
    a_name_that_is_refused_costs_no_id,
    of_many_who_want_names_that_are_the_same_one_gets_it,
    a_password_is_the_same_in_every_encoding_and_with_every_blank,
}

/// Asks for an account and a group of that name; what was said of each: errno, and the id or why not.
fn ask_for(client: &mut Client, name: &str) -> [(i64, Value); 2] {
    let register = json!({"msgid": 4, "name": name, "password": "p"});
    let create = json!({"msgid": 8, "id": client.id(), "groupname": name, "groupdesc": ""});
    [(register, "id"), (create, "groupid")].map(|(request, id)| {
        let reply = client.request(request);
        let what = reply.get("errmsg").unwrap_or(&reply[id]).clone();
        (reply["errno"].as_i64().expect("errno"), what)
    })
}

#[track_caller]
fn assert_free(client: &mut Client, name: &str) {
    let [user, group] = ask_for(client, name);
    assert_eq!((user.0, group.0), (0, 0), "{name:?}: {user:?}, {group:?}");
}

#[track_caller]
fn assert_taken(client: &mut Client, name: &str) {
    let [user, group] = ask_for(client, name);
    assert_eq!((user.0, group.0), (1, 18), "{name:?}: {user:?}, {group:?}");
}

/// A part of a name that no other name has, and that has no case.
fn tag(world: &World) -> String {
    world.name("").chars().filter(char::is_ascii_digit).collect()
}

fn a_name_is_taken_in_every_case_encoding_and_spacing(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("namer");
    for same in [
        &["ΒΣ", "βσ", "βς", "Βς"][..],
        &["Straße", "STRASSE", "strasse", "STRAẞE"],
        &["josé", "JOSÉ", "jose\u{301}", "Jose\u{301}"],
        &["Ёлка", "ёлка", "Е\u{308}ЛКА"],
        &["ば", "は\u{3099}"],
        &["ＢＯＢ", "bob", "Bob"],
        &["a b", "a  b", "A\u{3000}B", "a\u{A0} b"],
        &["ﬃ", "ffi", "FFI"],
        &["각", "\u{1100}\u{1161}\u{11A8}"],
        &["K", "\u{212A}"],
        &["İ", "i\u{307}"],
    ] {
        let tag = tag(&world);
        for (index, name) in same.iter().enumerate() {
            let names =
                [format!("{name} {tag}"), format!("{name} {tag} "), format!("\u{3000}{name}\u{2009}{tag}\u{A0}")];
            for (spaced, name) in names.iter().enumerate() {
                match index + spaced {
                    0 => assert_free(&mut client, name),
                    _ => assert_taken(&mut client, name),
                }
            }
        }
    }
}

fn a_name_that_reads_otherwise_is_free(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("namer");
    let tag = tag(&world);
    for name in [
        "jose",
        "josé",
        "は",
        "ば",
        "ぱ",
        "ハ",
        "Е",
        "Ё",
        "И",
        "Й",
        "i",
        "ı",
        "o",
        "ø",
        "ö",
        "n",
        "ñ",
        "😀",
        "😁",
        "❤",
        "❤\u{FE0F}",
        "👩\u{200D}💻",
        "👩💻",
        "می\u{200C}خواهم",
        "میخواهم",
        "李",
        "张三",
        "张三丰",
        "\u{378}",
        "\u{10FFFF}",
        "ss",
        "s",
        "a b",
        "ab",
    ] {
        assert_free(&mut client, &format!("{name}{tag}"));
    }
}

fn what_cannot_be_seen_or_controls_is_no_name(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("namer");
    for name in [
        "\0",
        "a\tb",
        "bob\n",
        "\r\nbob",
        "\u{1B}[31mbob",
        "bob\u{7F}",
        "\u{9B}bob",
        "b\u{85}ob",
        " ",
        "   ",
        "\u{3000}",
        "\u{A0}\u{2003}",
        "\u{2028}",
        "\u{200B}",
        "\u{200D}",
        "\u{FEFF}\u{2060}",
        "\u{AD}",
        "\u{3164}",
        "\u{115F}",
        "\u{FFA0}\u{1160}",
        "\u{2800}",
        "\u{FE0F}",
        "\u{E0001}",
        "\u{202E}",
        "\u{2066}\u{2069}",
        "\u{180E}",
        "\u{34F}",
        "\u{61C}",
    ] {
        let [user, group] = ask_for(&mut client, name);
        assert_eq!((user.0, group.0), (1, 12), "{name:?}: {user:?}, {group:?}");
        let says = |what: &Value, field: &str| {
            let problem = what.as_str().and_then(|text| text.strip_prefix(field));
            matches!(problem, Some(" contains a control character" | " has no visible character"))
        };
        assert!(says(&user.1, "name") && says(&group.1, "groupname"), "{name:?}: {user:?}, {group:?}");
    }
    // The error as clients that send no seq get it.
    client.post(&json!({"msgid": 4, "name": "\u{200B}", "password": "p"}));
    let ack = client.recv();
    assert_eq!((&ack["msgid"], &ack["errno"], &ack["error"]), (&json!(5), &json!(1), &json!(1)), "{ack}");
    client.post(&json!({"msgid": 8, "id": client.id(), "groupname": "\u{7}", "groupdesc": ""}));
    let error = client.recv();
    assert_eq!((&error["msgid"], &error["errno"], &error["request"]), (&json!(201), &json!(12), &json!(8)), "{error}");
}

fn names_in_any_script_and_emoji_come_back_as_they_were_given(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("namer");
    for name in [
        "ẞß Σς",
        "jose\u{301}",
        " two  blanks\u{3000}",
        "👨\u{200D}👩\u{200D}👧",
        "🏴\u{E0067}\u{E007F}",
        "ﷺ",
        "ＦＵＬＬ",
        "\u{2028}x",
        "\u{202E}x",
    ] {
        let name = format!("{}{name}", tag(&world));
        let account = client.register(&name, "p");
        assert_eq!(world.login(&account).greeting["name"], name);
    }
}

fn a_name_that_is_refused_costs_no_id(config: &'static Config) {
    let world = config.own(&["--max-groups", "1"]);
    let mut client = world.online("first");
    let id = |client: &mut Client, name: &str| {
        let account = client.register(name, "p");
        let mut own = world.login(&account);
        (account.id, own.create_group(name))
    };
    let (user, group) = id(&mut client, "taken");
    client.create_group("of the first");
    for n in 0..50 {
        assert_taken(&mut client, ["taken", "TAKEN", " ｔaken"][n % 3]);
        let create = json!({"msgid": 8, "id": client.id(), "groupname": format!("free {n}"), "groupdesc": ""});
        assert_eq!(client.refused(create), 20, "no more groups than one");
        let none = json!({"msgid": 4, "name": "\u{200B}", "password": "p"});
        assert_eq!(client.refused(none), 1);
    }
    assert_eq!(id(&mut client, "next"), (user + 1, group + 2));
}

fn of_many_who_want_names_that_are_the_same_one_gets_it(config: &'static Config) {
    let world = config.shared();
    for round in 0..10 {
        let tag = tag(&world);
        let start = Barrier::new(6);
        let outcomes: Vec<[i64; 2]> = thread::scope(|scope| {
            let threads = ["Straße", "STRASSE", "strasse", "STRAẞE", "ſtrasse", "straſſe"].into_iter().enumerate().map(
                |(node, name)| {
                    let (world, start, name) = (&world, &start, format!("{name} {tag}"));
                    scope.spawn(move || {
                        let mut client = world.online_on(node, "rival");
                        start.wait();
                        ask_for(&mut client, &name).map(|(errno, _)| errno)
                    })
                },
            );
            threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        for (kind, taken) in [1, 18].into_iter().enumerate() {
            let mut errnos: Vec<i64> = outcomes.iter().map(|outcome| outcome[kind]).collect();
            errnos.sort();
            assert_eq!(errnos, [0, taken, taken, taken, taken, taken], "round {round}");
        }
    }
}

fn a_password_is_the_same_in_every_encoding_and_with_every_blank(config: &'static Config) {
    let world = config.shared();
    for same in [
        &["café", "cafe\u{301}"][..],
        &["pass word", "pass\u{A0}word", "pass\u{3000}word", "pass\tword"],
        &["Å", "\u{212B}", "A\u{30A}"],
        &["\u{3164}\0", "\u{3164}\0"],
    ] {
        for registered in same {
            let account = world.client().register(&world.name("pass"), registered);
            for typed in same {
                let mut client = world.client();
                client.login(&Account { password: (*typed).into(), ..account.clone() });
                client.logout();
            }
            for other in ["cafe", "CAFÉ", "password", "pass  word", " pass word", "A", "å"] {
                let wrong = Account { password: other.into(), ..account.clone() };
                assert_eq!(world.client().try_login(&wrong)["errno"], 1, "{other:?} for {registered:?}");
            }
        }
    }
}
