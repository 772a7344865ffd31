//! The terminal client against the real server, as child processes.

mod support;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use support::{CHAT_CLIENT, ChatClient, Launch, Server, script};
use tempfile::TempDir;

/// A server on the store in `directory`; port 0 takes any that is free.
fn start_server(directory: &Path, port: u16) -> Server {
    Server::start(&Launch {
        store: format!("sqlite:{}", directory.join("chat.db").display()),
        reactors: 2,
        workers: 2,
        flags: Vec::new(),
        setup: String::new(),
        port,
    })
}

/// A server with the users 1 "zhang san" and 2 "li si".
fn server_with_two() -> (TempDir, Server) {
    let directory = tempfile::tempdir().unwrap();
    let server = start_server(directory.path(), 0);
    let text = script(server.address.port(), "2\nzhang san\nsecret\n2\nli si\nsecret\n3\n");
    assert!(text.contains("zhang san register success, userid is 1,"), "{text}");
    assert!(text.contains("li si register success, userid is 2,"), "{text}");
    (directory, server)
}

/// Asserts that the pieces stand in `text`, in this order.
fn assert_in_order(text: &str, pieces: &[&str]) {
    let mut rest = text;
    for piece in pieces {
        let at = rest.find(piece).unwrap_or_else(|| panic!("{piece:?} is not where it should be in:\n{text}"));
        rest = &rest[at + piece.len()..];
    }
}

#[test]
fn two_clients_chat_live_and_in_a_group() {
    let (_directory, server) = server_with_two();
    let mut zhang = ChatClient::login(server.address.port(), 1);
    let mut li = ChatClient::login(server.address.port(), 2);
    zhang.line("addfriend:2\nchat:2:hello: li\ncreategroup:Rust:all of it");
    zhang.wait_for("2 is your friend now\ndelivered to 2\ngroup Rust created, groupid is 1\n");
    li.wait_for("[1]zhang san said: hello: li\n");
    li.line("addgroup:1\ngroupchat:1:hi all");
    li.wait_for("you joined group 1\ngroup 1: delivered to 1, stored for 0\n");
    zhang.wait_for("群消息[1]:");
    zhang.wait_for(" [2]li si said: hi all\n");
    zhang.line("friends\ngroups\nwhoami");
    zhang.wait_for("2 li si online\n");
    zhang.wait_for("1 Rust all of it\n  1 zhang san online creator\n  2 li si online normal\n");
    zhang.wait_for("current login user => id:1 name:zhang san\n");
    zhang.line("loginout");
    zhang.wait_for("logged out\n");
    zhang.wait_for("choice:\n");
    zhang.line("3");
    assert_eq!(zhang.finish().1.code(), Some(0));
}

#[test]
fn a_script_in_a_pipe_gets_its_answers_in_order_and_what_it_sends_is_kept() {
    let (_directory, server) = server_with_two();
    let sender = script(
        server.address.port(),
        "1\n1\nsecret\naddfriend:2\ncreategroup:Rust:all of it\nchat:2:first\nchat:2:second\nloginout\n3\n",
    );
    assert_in_order(
        &sender,
        &[
            "1. login\n",
            "choice:\nuserid:\nuser password:\n",
            "current login user => id:1 name:zhang san\n",
            "2 is your friend now\ngroup Rust created, groupid is 1\n",
            "stored for 2, delivered at the next login\nstored for 2, delivered at the next login\nlogged out\n",
            "choice:\n",
        ],
    );
    let recipient = script(server.address.port(), "1\n2\nsecret\naddgroup:1\ngroupchat:1:hi\n");
    assert_in_order(
        &recipient,
        &[
            "[1]zhang san said: first\n",
            "[1]zhang san said: second\n",
            "you joined group 1\ngroup 1: delivered to 0, stored for 1\nlogged out\n",
        ],
    );
    let back = script(server.address.port(), "1\n1\nsecret\n");
    assert_in_order(&back, &["2 li si offline\n", "1 Rust all of it\n", "  2 li si offline normal\n", "群消息[1]:"]);
    assert!(!script(server.address.port(), "1\n1\nsecret\n").contains("群消息"), "an offline message comes once");
}

#[test]
fn refusals_say_why() {
    let (_directory, server) = server_with_two();
    let text = script(
        server.address.port(),
        "5\n2\nZhang San\nother\n1\n1\nwrong\n1\n1\nsecret\nchat:99:hi\naddgroup:9\ngroupchat:9:hi\naddfriend:2\n\
         addfriend:2\ndance\nchat:2\nhelp\n",
    );
    assert_in_order(
        &text,
        &[
            "invalid input!\n",
            "choice:\nusername:\nuserpassword:\n",
            "id or password is invalid!\n",
            "current login user => id:1",
            "(chat:99:hi)\nrefused: ",
            "(addgroup:9)\nrefused: ",
            "(groupchat:9:hi)\n2 is your friend now\nrefused: ",
            "(addfriend:2)\ninvalid input command!\ninvalid input command! it is written chat:ID:TEXT\n",
            "groupchat:GROUPID:TEXT",
        ],
    );
    assert!(!text.contains("userid is"), "a name is taken whatever its case");
    let mut twice = ChatClient::login(server.address.port(), 1);
    let second = script(server.address.port(), "1\n1\nsecret\n");
    assert!(second.contains("this account is using, input another!\n"), "{second}");
    twice.line("whoami");
    twice.wait_for("current login user => id:1 ");
}

#[test]
fn a_server_killed_and_restarted_is_found_again_and_logged_in_to() {
    let (directory, mut server) = server_with_two();
    let mut li = ChatClient::login(server.address.port(), 2);
    server.kill();
    li.wait_for("connection lost");
    li.line("chat:1:meanwhile");
    li.wait_for("not connected, not sent: chat:1:meanwhile\n");
    let server = start_server(directory.path(), server.address.port());
    li.wait_for("connected again\n");
    li.wait_for("logged in again as li si\n");
    let zhang = script(server.address.port(), "1\n1\nsecret\nchat:2:are you back?\n");
    assert!(zhang.contains("delivered to 2\n"), "{zhang}");
    li.wait_for("[1]zhang san said: are you back?\n");
    li.line("chat:1:yes");
    li.wait_for("stored for 1");
}

#[test]
fn a_peer_cannot_drive_the_terminal() {
    let (_directory, server) = server_with_two();
    let mut li = ChatClient::login(server.address.port(), 2);
    script(server.address.port(), "1\n1\nsecret\nchat:2:\x1b[2J\x07owned\rmasked\u{9b}1m\n");
    li.wait_for(r"said: \u{1b}[2J\u{7}owned\rmasked\u{9b}1m");
    let (text, _) = li.finish();
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
}

#[test]
fn the_language_follows_the_flag_and_the_locale() {
    let (_directory, server) = server_with_two();
    let mut li = ChatClient::start(server.address.port(), &["--lang", "zh"]);
    li.line("1\n2\nsecret\nchat:1:你好");
    li.wait_for("登录");
    li.wait_for("已为 1 保存");
    let port = server.address.port().to_string();
    let mut zhang = ChatClient::start(server.address.port(), &[]);
    zhang.line("1\n1\nsecret");
    zhang.wait_for("[2]li si said: 你好\n");
    let locale =
        Command::new(CHAT_CLIENT).args(["127.0.0.1", &port]).env("LC_ALL", "zh_CN.UTF-8").stdin(Stdio::null()).output();
    assert!(String::from_utf8(locale.unwrap().stdout).unwrap().contains("注册"));
}

#[test]
fn what_cannot_be_reached_is_told_in_one_line() {
    let run = |arguments: &[&str]| {
        let output =
            Command::new(CHAT_CLIENT).args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let other = thread::spawn(move || listener.accept().unwrap().0.write_all(b"SSH-2.0-OpenSSH\r\n"));
    let expected = format!("cannot connect to 127.0.0.1:{port}: what answers there is not a chat server\n");
    assert_eq!(run(&["127.0.0.1", &port]), (Some(2), expected));
    // The listener is gone with its thread.
    other.join().unwrap().unwrap();
    let (code, error) = run(&["127.0.0.1", &port]);
    assert_eq!((code, error.lines().count()), (Some(2), 1), "{error}");
    assert!(error.starts_with(&format!("cannot connect to 127.0.0.1:{port}: Connection refused")), "{error}");
    for arguments in
        [&["127.0.0.1", "0"][..], &["127.0.0.1", "nine"], &["a", "1", "b"], &["--lang", "fr"], &["--tls-ca", "a.pem"]]
    {
        assert_eq!(run(arguments).0, Some(2), "{arguments:?}");
    }
}

#[test]
fn the_help_tells_every_option_in_both_languages() {
    let help = |arguments: &[&str], locale: &str| {
        let output = Command::new(CHAT_CLIENT).args(arguments).arg("--help").env("LC_ALL", locale).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (english, chinese) = (help(&[], "C"), help(&[], "zh_CN.UTF-8"));
    assert_eq!(help(&["--lang", "zh"], "C"), chinese);
    let options = |help: &str| -> Vec<String> {
        help.lines()
            .filter_map(|line| line.trim_start().split_once("  "))
            .map(|(option, _)| option.to_owned())
            .collect()
    };
    assert_eq!(options(&english), options(&chinese));
    for option in ["--tls", "--tls-ca <FILE>", "--tls-name <NAME>", "--lang <LANG>", "[IP]", "[PORT]"] {
        let told = |help: &str| {
            help.lines().find(|line| line.trim_start().starts_with(&format!("{option} "))).unwrap().to_owned()
        };
        assert!(told(&english).is_ascii() && !told(&chinese).is_ascii(), "{option}");
    }
}

/// A client on a pseudo-terminal that echoes, as a person's does.
fn on_a_terminal(port: u16, home: &Path) -> ChatClient {
    let command = format!("{CHAT_CLIENT} 127.0.0.1 {port}");
    ChatClient::spawn(
        Command::new("script")
            .args(["-q", "-e", "-E", "always", "-c", &command, "/dev/null"])
            .env("TERM", "xterm")
            .env("XDG_STATE_HOME", home),
    )
}

/// What a terminal of unlimited width shows after `output`: as much of one as the line editor uses.
fn screen(output: &str) -> Vec<String> {
    let (mut rows, mut row, mut column) = (vec![Vec::new()], 0, 0);
    let mut chars = output.chars();
    while let Some(c) = chars.next() {
        match c {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                rows.resize(rows.len().max(row + 1), Vec::new());
            }
            '\x1b' => {
                assert_eq!(chars.next(), Some('['), "{output:?}");
                let mut argument = String::new();
                let command = chars.by_ref().find(|c| {
                    !matches!(c, '0'..='9' | ';' | '?') || {
                        argument.push(*c);
                        false
                    }
                });
                let count = argument.parse().unwrap_or(1);
                match command.unwrap() {
                    'A' => row -= count,
                    'C' => column += count,
                    'D' => column -= count,
                    'K' => rows[row].truncate(column),
                    'J' => {
                        rows.truncate(row + 1);
                        rows[row].truncate(column);
                    }
                    'h' | 'l' | 'm' => {}
                    other => panic!("the screen does not know {other:?} in {output:?}"),
                }
            }
            c => {
                let length = rows[row].len().max(column + 1);
                rows[row].resize(length, ' ');
                rows[row][column] = c;
                column += 1;
            }
        }
    }
    rows.into_iter().map(|row| row.into_iter().collect()).collect()
}

#[test]
fn on_a_terminal_an_incoming_line_leaves_alone_what_is_being_typed() {
    let (directory, server) = server_with_two();
    let mut li = on_a_terminal(server.address.port(), directory.path());
    li.answer("choice:", "1");
    li.answer("userid:", "2");
    li.answer("user password:", "secret");
    li.wait_for("li si> ");
    li.send("chat:1:half");
    li.wait_for("chat:1:half");
    script(server.address.port(), "1\n1\nsecret\nchat:2:in between\n");
    li.wait_for("said: in between");
    li.wait_for("li si> chat:1:half");
    let shown = screen(&li.text());
    let (last, before) = shown.split_last().unwrap();
    assert_eq!(last, "li si> chat:1:half");
    let incoming = before.last().unwrap();
    assert!(incoming.ends_with(" [1]zhang san said: in between"), "{shown:#?}");
    assert_eq!(incoming.len(), "2026-01-02 03:04:05 [1]zhang san said: in between".len(), "{shown:#?}");
    li.send(" done\r");
    li.wait_for("stored for 1");
    li.send("\x04");
    let (text, status) = li.finish();
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(script(server.address.port(), "1\n1\nsecret\n").contains("[2]li si said: half done\n"));
    assert!(!text.contains("secret"), "the password was echoed: {text:?}");
    let history = fs::read_to_string(directory.path().join("chat-client/history")).unwrap();
    assert!(history.contains("chat:1:half done") && !history.contains("secret"), "{history}");
}

/// With `--nocapture` it prints what both of them see.
#[test]
fn two_people_talk_at_their_terminals() {
    let directory = tempfile::tempdir().unwrap();
    let server = start_server(directory.path(), 0);
    let mut zhang = on_a_terminal(server.address.port(), &directory.path().join("zhang"));
    let mut li = on_a_terminal(server.address.port(), &directory.path().join("li"));
    for (person, id, name) in [(&mut zhang, 1, "zhang san"), (&mut li, 2, "li si")] {
        person.answer("choice:", "2");
        person.answer("username:", name);
        person.answer("userpassword:", "secret");
        person.wait_for(&format!("{name} register success, userid is {id}, do not forget it!"));
        person.answer("choice:", "1");
        person.answer("userid:", &id.to_string());
        person.answer("user password:", "secret");
        person.wait_for(&format!("current login user => id:{id} name:{name}"));
    }
    for (command, outcome) in [
        ("addfriend:2", "2 is your friend now"),
        ("chat:2:hello, li si", "delivered to 2"),
        ("creategroup:Rust:all about Rust", "group Rust created, groupid is 1"),
    ] {
        zhang.answer("zhang san> ", command);
        zhang.wait_for(outcome);
    }
    li.wait_for("[1]zhang san said: hello, li si");
    li.answer("li si> ", "addgroup:1");
    li.wait_for("you joined group 1");
    li.answer("li si> ", "groupchat:1:hello, everybody");
    li.wait_for("group 1: delivered to 1, stored for 0");
    zhang.wait_for("[2]li si said: hello, everybody");
    li.answer("li si> ", "loginout");
    li.answer("choice:", "3");
    let (li, status) = li.finish();
    assert_eq!(status.code(), Some(0), "{li}");
    zhang.answer("zhang san> ", "chat:2:see you tomorrow");
    zhang.wait_for("stored for 2, delivered at the next login");
    zhang.answer("zhang san> ", "groups");
    zhang.wait_for("  2 li si offline normal");
    zhang.answer("zhang san> ", "chat:3:who are you?");
    zhang.wait_for("refused: ");
    zhang.answer("zhang san> ", "quit");
    let (zhang, status) = zhang.finish();
    assert_eq!(status.code(), Some(0), "{zhang}");
    for (name, output) in [("zhang san", zhang), ("li si", li)] {
        let shown = screen(&output).join("\n");
        assert!(!output.contains("secret") && shown.contains("userpassword:******"), "{shown}");
        println!("{name} sees:\n\n{shown}");
    }
}
