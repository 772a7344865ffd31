//! The terminal client against the real server, as child processes.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use chat_server::wire::dialect::list;
use rustix::termios::LocalModes;
use serde_json::json;
use support::{Account, CHAT_CLIENT, ChatClient, Client, Launch, Server, eventually, script};
use tempfile::TempDir;
use unicode_width::UnicodeWidthChar;

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
fn a_client_in_a_dialect_is_one_of_that_dialects_clients() {
    let directory = tempfile::tempdir().unwrap();
    let server = start_server(directory.path(), 0);
    let port = server.address.port();
    let start = |dialect: &str, lines: &str| {
        let mut client = ChatClient::start(port, &["--dialect", dialect]);
        client.line(lines);
        client
    };
    // The server finds it out from the requests.
    let mut zhang = start("b", "2\nzhang san\nsecret\n2\nli si\nsecret");
    zhang.wait_for("userid is 1,");
    zhang.wait_for("userid is 2,");
    // By a client that is told when the group is there.
    script(port, "1\n2\nsecret\ncreategroup:Rust:all of it\nloginout\n3\n");
    zhang.line("1\n1\nsecret\naddfriend:2\nchat:2:first\nfriends");
    zhang.wait_for("sent, this server sends no acks: addfriend:2\n");
    zhang.wait_for("sent, this server sends no acks: chat:2:first\n");
    zhang.wait_for("not sent, this dialect has no such request: friends\n");
    let mut li = start("b", "1\n2\nsecret\nchat:1:second");
    li.wait_for("[1]zhang san said: first\n");
    zhang.wait_for("[2]li si said: second\n");
    zhang.line("addgroup:1\ngroupchat:1:hi");
    li.wait_for("群消息[1]:");
    li.wait_for("[1]zhang san said: hi\n");
    zhang.line("loginout");
    zhang.wait_for("logged out\n");
    let at_once = || script(port, "1\n1\nsecret\nloginout\n3\n");
    eventually("the end of the session", || at_once().contains("current login user => id:1 "));
    li.line("chat:1:third");

    // So is one with acks of its own, and neither knows what the other speaks.
    let mut wang = start(
        "zero",
        "2\nwang wu\nsecret\n1\n3\nsecret\naddfriend:2\ncreategroup:C++:none\nfriends\ngroups\nchat:2:hello",
    );
    wang.wait_for("userid is 3,");
    wang.wait_for("2 li si online\n");
    wang.wait_for("2 C++ none\n  3 wang wu online creator\n");
    li.wait_for("[3]wang wu said: hello\n");
    wang.line("loginout");
    wang.wait_for("logged out\n");
    wang.wait_for("choice:\n");
    let mut zhang = ChatClient::login(port, 1);
    zhang.wait_for("[2]li si said: third\n");
}

#[test]
fn a_client_and_a_server_of_every_dialect_understand_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let listeners = list().map(|dialect| format!("127.0.0.1:0,dialect={}", dialect.name()));
    let server = Server::start(&Launch {
        store: format!("sqlite:{}", directory.path().join("chat.db").display()),
        reactors: 2,
        workers: 2,
        flags: listeners.flat_map(|listener| ["--listen".to_owned(), listener]).collect(),
        setup: String::new(),
        port: 0,
    });
    script(server.address.port(), "2\nzhang\nsecret\n3\n");
    let mut zhang = ChatClient::login(server.address.port(), 1);
    for (group, (dialect, at)) in (1..).zip(list().zip(server.further_addresses(list().count()))) {
        let (name, id) = (dialect.name(), group + 1);
        let mut client = ChatClient::start(at.port(), &["--dialect", name]);
        client.line(&format!("2\n{name}\nsecret\n1\n{id}\nsecret\naddfriend:1\nchat:1:from {name}"));
        client.wait_for(&format!("userid is {id},"));
        zhang.wait_for(&format!("[{id}]{name} said: from {name}\n"));
        zhang.line(&format!("creategroup:{name}:all\nchat:{id}:hello"));
        zhang.wait_for(&format!("groupid is {group}\n"));
        client.wait_for("[1]zhang said: hello\n");
        client.line(&format!("addgroup:{group}\ngroupchat:{group}:joined"));
        zhang.wait_for(&format!("群消息[{group}]:"));
        zhang.wait_for(&format!("[{id}]{name} said: joined\n"));
        zhang.line(&format!("groupchat:{group}:welcome"));
        client.wait_for(&format!("群消息[{group}]:"));
        client.wait_for("[1]zhang said: welcome\n");
        client.line("loginout");
        client.wait_for("logged out\n");
        // Where a logout has no reply, the server may not have read it yet.
        eventually("a message to be stored", || {
            zhang.line(&format!("chat:{id}:meanwhile"));
            zhang.wait_for(&format!(" {id}"));
            zhang.text().contains(&format!("stored for {id},"))
        });
        client.line(&format!("1\n{id}\nsecret"));
        client.wait_for(&format!("current login user => id:{id} name:{name}\n"));
        client.wait_for("1 zhang online\n");
        client.wait_for(&format!("{group} {name} all\n  1 zhang online creator\n"));
        client.wait_for("[1]zhang said: meanwhile\n");
        assert!(!client.text().contains("does not have"), "{}", client.text());
    }
}

#[test]
fn a_dialect_is_chosen_by_its_name_or_in_a_file() {
    let run = |dialect: &str| {
        let output = Command::new(CHAT_CLIENT).args(["--dialect", dialect]).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (status, listed, _) = run("list");
    assert_eq!(status, Some(0));
    for line in ["canon         the original\n", "b-userid      b, with userid for id around groups\n"] {
        assert!(listed.contains(line), "{listed}");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("theirs.toml");
    fs::write(&file, "like = 'b'\nnumber = 1\n").unwrap();
    let file = file.to_str().unwrap();
    for (dialect, told) in
        [("klingon", "one of canon, b, "), (file, "theirs.toml: line 2: "), ("./none.toml", "./none.toml: ")]
    {
        let (status, _, error) = run(dialect);
        assert_eq!((status, error.lines().count()), (Some(2), 1), "{error}");
        assert!(error.starts_with("--dialect: ") && error.contains(told), "{error}");
    }
    fs::write(file, "like = 'b'\n[numbers]\nregister = 33\n[acks.register]\nnumber = 34\n").unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = ChatClient::start(server.local_addr().unwrap().port(), &["--dialect", file]);
    client.line("2\nzhang\nsecret");
    let (mut stream, _) = server.accept().unwrap();
    let mut request = [0; 1024];
    let read = stream.read(&mut request).unwrap();
    let request = std::str::from_utf8(&request[..read]).unwrap();
    assert_eq!(request, "{\"msgid\":33,\"name\":\"zhang\",\"password\":\"secret\"}\0");
    stream.write_all(b"{\"msgid\":34,\"errno\":0,\"id\":22}").unwrap();
    client.wait_for("zhang register success, userid is 22,");
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
            "(addfriend:2)\ninvalid input command!\ninvalid input command! the form is chat:ID:TEXT\n",
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
    for option in
        ["--dialect <NAME|FILE>", "--tls", "--tls-ca <FILE>", "--tls-name <NAME>", "--lang <LANG>", "[IP]", "[PORT]"]
    {
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
    screen_of(output, usize::MAX, false)
}

/// The same for a terminal of this number of columns, on which characters of ambiguous width take two if it
/// is `wide`.
fn screen_of(output: &str, columns: usize, wide: bool) -> Vec<String> {
    let (mut rows, mut row, mut column): (Vec<Vec<char>>, _, _) = (vec![Vec::new()], 0, 0);
    let mut wraps = true;
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
                    'h' | 'l' if argument == "?7" => wraps = command == Some('h'),
                    'h' | 'l' | 'm' => {}
                    other => panic!("the screen does not know {other:?} in {output:?}"),
                }
            }
            c => {
                let width = if wide { c.width_cjk() } else { c.width() }.unwrap_or(0);
                if column + width > columns && wraps {
                    (row, column) = (row + 1, 0);
                    rows.resize(rows.len().max(row + 1), Vec::new());
                }
                // Where none is wide, a column is a character.
                column = column.min(columns - width);
                let length = rows[row].len().max(column + 1);
                rows[row].resize(length, ' ');
                rows[row][column] = c;
                column += width;
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

/// A client on a terminal of its own, at its menu.
fn at_its_menu(port: u16, home: &Path, columns: u16) -> ChatClient {
    let mut command = Command::new(CHAT_CLIENT);
    command.args(["127.0.0.1", &port.to_string()]).env("XDG_STATE_HOME", home);
    let mut client = ChatClient::spawn_on_terminal(&mut command, columns);
    client.wait_for("choice:");
    client
}

/// The same, logged in as user 2, "li si".
fn li_at_a_terminal(port: u16, home: &Path, columns: u16) -> ChatClient {
    let mut li = at_its_menu(port, home, columns);
    li.send("1\r2\rsecret\r");
    li.wait_for("li si> ");
    li
}

/// What was said to user 1 while it was away.
fn said_to_zhang(port: u16) -> Vec<String> {
    let text = script(port, "1\n1\nsecret\n");
    let said = text.lines().filter_map(|line| line.split_once("[2]li si said: "));
    said.map(|(_, text)| text.to_owned()).collect()
}

#[test]
fn all_lines_of_a_paste_are_read_in_order_and_once() {
    let (directory, server) = server_with_two();
    let port = server.address.port();
    for (end, before, behind) in [("\r", "", ""), ("\n", "", ""), ("\r\n", "", ""), ("\r", "\x1b[200~", "\x1b[201~")] {
        let mut li = at_its_menu(port, directory.path(), 80);
        let expected: Vec<String> = (0..50).map(|n| format!("n{n}: 你好")).collect();
        let lines: String = expected.iter().map(|text| format!("chat:1:{text}{end}")).collect();
        // From the menu to the end in one write; the last line needs its end like any other.
        li.send(format!("{before}1{end}2{end}secret{end}{lines}quit{end}{behind}"));
        let (text, status) = li.finish();
        assert_eq!(status.code(), Some(0), "{text}");
        assert!(!text.contains("secret") && text.contains("user password:******"), "{text:?}");
        assert_eq!(said_to_zhang(port), expected, "{end:?} {before:?}");
    }
    let history = fs::read_to_string(directory.path().join("chat-client/history")).unwrap();
    assert!(history.contains("chat:1:n49: 你好") && !history.contains("secret"), "{history}");
}

#[test]
fn a_paste_of_a_thousand_lines_is_read_while_replies_come() {
    let (directory, server) = server_with_two();
    let port = server.address.port();
    let mut zhang = ChatClient::login(port, 1);
    let mut li = li_at_a_terminal(port, directory.path(), 80);
    let expected: Vec<String> = (0..1000).map(|n| format!("{n} {}", "x".repeat(90))).collect();
    li.send(expected.iter().map(|text| format!("chat:1:{text}\r")).collect::<String>());
    for text in expected.iter().step_by(100) {
        zhang.wait_for(&format!("[2]li si said: {text}\n"));
    }
    zhang.wait_for(&format!("said: {}\n", expected[999]));
    li.send("quit\r");
    assert_eq!(li.finish().1.code(), Some(0));
    let (text, _) = zhang.finish();
    let said: Vec<_> = text.lines().filter_map(|line| Some(line.split_once("li si said: ")?.1)).collect();
    assert_eq!(said, expected);
}

#[test]
fn what_is_typed_ahead_answers_what_is_asked_later() {
    let (directory, server) = server_with_two();
    let port = server.address.port();
    let mut li = at_its_menu(port, directory.path(), 80);
    // Cut in the midst of a line, a password, a character and a CRLF.
    for piece in
        [&b"1\r"[..], b"\n2\r\nsec", b"ret\r", b"\nchat:1:\xe4\xbd", b"\xa0\xe5\xa5\xbd\r\nwho", b"ami\rloginout\r3\r"]
    {
        li.send(piece);
    }
    let (text, status) = li.finish();
    assert_eq!(status.code(), Some(0), "{text}");
    assert_in_order(&text, &["current login user => id:2", "current login user => id:2", "logged out", "choice:3"]);
    assert_eq!(said_to_zhang(port), ["你好"]);
    // The outcome of each request is reported, also while there is no connection.
    let mut server = server;
    let mut li = li_at_a_terminal(port, directory.path(), 80);
    server.kill();
    li.wait_for("connection lost");
    li.send("chat:1:a\rchat:1:b\rchat:1:c\rquit\r");
    let (text, status) = li.finish();
    assert_eq!(status.code(), Some(0), "{text}");
    assert_in_order(&text, &["not sent: chat:1:a", "not sent: chat:1:b", "not sent: chat:1:c"]);
}

#[test]
fn a_file_is_read_to_its_last_byte() {
    let (directory, server) = server_with_two();
    let port = server.address.port();
    let expected: Vec<String> = (0..1000).map(|n| format!("{n} {}", "好".repeat(30))).collect();
    let lines: Vec<String> = expected.iter().map(|text| format!("chat:1:{text}")).collect();
    let path = directory.path().join("lines");
    fs::write(&path, format!("\u{feff}1\r\n2\r\nsecret\r\n{}", lines.join("\r\n"))).unwrap();
    let mut client = Command::new(CHAT_CLIENT);
    client.args(["127.0.0.1", &port.to_string()]).stdin(fs::File::open(path).unwrap());
    assert!(client.output().unwrap().status.success());
    assert_eq!(said_to_zhang(port), expected);
}

#[test]
fn bytes_that_are_no_text_end_nothing() {
    let (directory, server) = server_with_two();
    let port = server.address.port();
    let mut li = li_at_a_terminal(port, directory.path(), 80);
    // Latin-1, GBK, what is never UTF-8, half a character; and one that comes in two reads.
    for piece in
        [&b"chat:1:caf\xe9\rchat:1:\xc4\xe3\rchat:1:\xff\xfe!\rchat:1:\xf0\x9f\rchat:1:\xe4"[..], b"\xbd\xa0\r"]
    {
        li.send(piece);
    }
    (0..5).for_each(|_| li.wait_for("stored for 1"));
    li.send("quit\r");
    let (text, status) = li.finish();
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(text.contains("chat:1:caf\u{fffd}"), "{text}");
    let expected = ["caf\u{fffd}", "\u{fffd}\u{fffd}", "\u{fffd}\u{fffd}!", "\u{fffd}", "你"];
    assert_eq!(said_to_zhang(port), expected);
    let mut pipe = ChatClient::start(port, &[]);
    pipe.send(b"\xff\n1\n2\nsecret\nchat:1:\x80\xe4\xbd\n\xfe\nchat:1:\xe4");
    let (text, status) = pipe.finish();
    assert_eq!(status.code(), Some(0), "{text}");
    assert_eq!(said_to_zhang(port), ["\u{fffd}\u{fffd}", "\u{fffd}"]);
}

#[test]
fn a_terminal_is_spoken_to_in_the_locales_character_set() {
    let (directory, server) = server_with_two();
    let port = server.address.port();
    let in_locale = |locale: &str| {
        let mut command = Command::new(CHAT_CLIENT);
        command.args(["--lang", "en", "127.0.0.1", &port.to_string()]);
        command.env("XDG_STATE_HOME", directory.path()).env("LC_ALL", locale);
        let mut client = ChatClient::spawn_on_terminal(&mut command, 80);
        client.wait_for("choice:");
        client.send("1\r2\rsecret\r");
        client.wait_for("li si> ");
        client
    };
    for (locale, hello, shown) in [
        ("zh_CN.GBK", &b"\xc4\xe3\xba\xc3"[..], "你好"),
        ("zh_CN.GB18030", b"\xc4\xe3\xba\xc3", "你好"),
        ("zh_TW.BIG5", b"\xa7\x41\xa6\x6e", "你好"),
        ("ja_JP.eucJP", b"\xc6\xfc\xcb\xdc", "日本"),
        ("de_DE.ISO-8859-1", b"caf\xe9", "café"),
    ] {
        let mut li = in_locale(locale);
        // A byte at a time: the second of two may be one that means something alone.
        for byte in [b"chat:1:", hello, b"\r"].concat() {
            li.send([byte]);
        }
        li.wait_for("stored for 1");
        let peer = script(port, &format!("1\n1\nsecret\nchat:2:{shown}👍\n"));
        assert!(peer.contains(&format!("[2]li si said: {shown}\n")), "{locale}: {peer}");
        li.wait_for("said: ");
        li.wait_for("li si> ");
        let emoji = if locale.ends_with("GB18030") { &b"\x94\x39\xd1\x31"[..] } else { br"\u{1f44d}" };
        let line = [b"said: ", hello, emoji].concat();
        assert!(li.bytes().windows(line.len()).any(|bytes| bytes == line), "{locale}: {:?}", li.text());
        li.send("quit\r");
        assert_eq!(li.finish().1.code(), Some(0));
    }
}

#[test]
fn arguments_and_variables_that_are_no_text_are_told() {
    let (_directory, server) = server_with_two();
    let odd = OsStr::from_bytes(b"\xff\xc4\xe3");
    for arguments in [&[odd][..], &[OsStr::new("--lang"), odd], &[OsStr::new("127.0.0.1"), odd]] {
        let output = Command::new(CHAT_CLIENT).args(arguments).stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.starts_with("error: ") && !error.contains("panicked"), "{error}");
    }
    let mut client = Command::new(CHAT_CLIENT);
    client.args(["127.0.0.1", &server.address.port().to_string()]).stdin(Stdio::null());
    for name in ["LC_ALL", "LC_CTYPE", "LANG", "TERM", "HOME", "XDG_STATE_HOME"] {
        client.env(name, odd);
    }
    assert_eq!(client.output().unwrap().status.code(), Some(0));
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap().success());
}

#[test]
fn every_way_out_gives_the_terminal_back() {
    let (directory, mut server) = server_with_two();
    let port = server.address.port();
    // Where it is when it ends: at the menu, at a password, or with half a command.
    let started = |typed: &str, then: &str| {
        let mut command = Command::new(CHAT_CLIENT);
        command.args(["127.0.0.1", &port.to_string()]).env("XDG_STATE_HOME", directory.path());
        let mut client = ChatClient::spawn_on_terminal(&mut command, 80);
        client.wait_for("choice:");
        assert!(!client.modes().local_modes.contains(LocalModes::ECHO));
        client.send(typed);
        client.wait_for(then);
        client
    };
    let places = [("", ""), ("1\r2\rsec", "user password:***"), ("1\r2\rsecret\rchat:1:ha", "li si> chat:1:ha")];
    let is_given_back = |client: &ChatClient, how: &str| {
        eventually(&format!("echo after {how}"), || client.modes().local_modes.contains(LocalModes::ECHO));
        let modes = client.modes();
        assert!(modes.local_modes.contains(LocalModes::ICANON | LocalModes::ISIG | LocalModes::IEXTEN), "{how}");
    };
    for (typed, then) in places {
        for (name, number) in [
            ("HUP", 1),
            ("INT", 2),
            ("QUIT", 3),
            ("USR1", 10),
            ("USR2", 12),
            ("ALRM", 14),
            ("TERM", 15),
            ("VTALRM", 26),
        ] {
            let client = started(typed, then);
            signal(client.pid(), name);
            is_given_back(&client, name);
            let (text, status) = client.finish();
            assert_eq!(status.signal(), Some(number), "{text}");
            assert!(text.ends_with('\n') || text.ends_with("\r\x1b[J"), "the next prompt begins a row: {text:?}");
        }
        // Typed, as signals and as the end of the input.
        for (key, number) in [("\x03", Some(2)), ("\x1c", Some(3)), ("\x15\x04", None)] {
            let mut client = started(typed, then);
            client.send(key);
            is_given_back(&client, key);
            assert_eq!(client.finish().1.signal(), number, "{key:?}");
        }
    }
    // All that end a process and can be caught, crashes and real-time signals among them.
    for number in (1..=64).filter(|number| ![9, 13, 17, 18, 19, 20, 21, 22, 23, 28, 32, 33].contains(number)) {
        let client = started("", "");
        signal(client.pid(), &number.to_string());
        is_given_back(&client, &number.to_string());
        assert_eq!(client.finish().1.signal(), Some(number));
    }
    // It took leave: the account is free at once, and what it had sent has arrived.
    let mut client = started("1\r2\rsecret\rchat:1:last words\r", "stored for 1");
    client.send("\x03");
    assert_eq!(client.finish().1.signal(), Some(2));
    assert!(script(port, "1\n2\nsecret\n").contains("current login user => id:2"));
    assert_eq!(said_to_zhang(port), ["last words"]);
    // A server that has gone, and one that is not there.
    let mut client = started("1\r2\rsecret\r", "li si> ");
    server.kill();
    client.wait_for("connection lost");
    client.send("quit\r");
    is_given_back(&client, "quit");
    assert_eq!(client.finish().1.code(), Some(0));
    let mut command = Command::new(CHAT_CLIENT);
    command.args(["127.0.0.1", &port.to_string()]);
    let mut client = ChatClient::spawn_on_terminal(&mut command, 80);
    client.wait_for("cannot connect");
    is_given_back(&client, "an error");
    assert_eq!(client.finish().1.code(), Some(2));
}

#[test]
fn a_script_that_is_told_to_end_takes_leave() {
    let (_directory, server) = server_with_two();
    let port = server.address.port();
    for (name, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        let client = ChatClient::login(port, 2);
        signal(client.pid(), name);
        // Its input is open still.
        eventually("the account to be free", || script(port, "1\n2\nsecret\n").contains("current login user"));
        let (text, status) = client.finish();
        assert_eq!(status.signal(), Some(number), "{text}");
        assert!(text.contains("logged out\n"), "{text}");
    }
    // What was ignored when it began stays so.
    let mut under_nohup = Command::new("nohup");
    let mut client = ChatClient::spawn(under_nohup.args([CHAT_CLIENT, "127.0.0.1", &port.to_string()]));
    client.wait_for("choice:");
    signal(client.pid(), "HUP");
    client.line("1\n2\nsecret\nwhoami");
    client.wait_for("current login user");
    client.wait_for("current login user");
    assert_eq!(client.finish().1.code(), Some(0));
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let (directory, server) = server_with_two();
    let command = format!("{CHAT_CLIENT} 127.0.0.1 {} | head -n 1; stty -a", server.address.port());
    let mut shell = Command::new("sh");
    shell.args(["-c", &command]).env("XDG_STATE_HOME", directory.path());
    let mut client = ChatClient::spawn_on_terminal(&mut shell, 80);
    client.wait_for(" echo ");
    let (text, _) = client.finish();
    assert!(text.contains(" icanon ") && !text.contains("panicked"), "{text}");
}

#[test]
fn an_output_that_goes_elsewhere_bears_what_is_said_and_nothing_of_what_is_typed() {
    let (directory, server) = server_with_two();
    let log = directory.path().join("log");
    let command = format!("{CHAT_CLIENT} 127.0.0.1 {} > {}; stty -a", server.address.port(), log.display());
    let mut shell = Command::new("sh");
    shell.args(["-c", &command]).env("XDG_STATE_HOME", directory.path());
    let mut client = ChatClient::spawn_on_terminal(&mut shell, 80);
    client.wait_for("choice:");
    client.send("1\r2\rsecret\rchat:1:hello\rwhoami\rquit\r");
    client.wait_for("li si> chat:1:hello");
    client.wait_for(" echo ");
    let (text, _) = client.finish();
    assert!(!text.contains("secret"), "{text}");
    let log = fs::read_to_string(log).unwrap();
    assert_in_order(&log, &["1. login\n", "current login user => id:2", "current login user => id:2", "logged out\n"]);
    assert!(log.contains("stored for 1") && !log.contains(['\x1b', '\r']) && !log.contains("secret"), "{log}");
}

#[test]
fn what_is_typed_before_it_has_begun_is_read() {
    let (directory, server) = server_with_two();
    let command = format!("read -r line; sleep 1; exec {CHAT_CLIENT} 127.0.0.1 {}", server.address.port());
    let mut shell = Command::new("bash");
    shell.args(["-c", &command]).env("XDG_STATE_HOME", directory.path());
    let mut client = ChatClient::spawn_on_terminal(&mut shell, 80);
    // The shell has the terminal still, and takes one line.
    client.send("go\r1\r2\rsecret\rchat:1:early\rquit\r");
    let (text, status) = client.finish();
    assert_eq!(status.code(), Some(0), "{text}");
    assert_eq!(said_to_zhang(server.address.port()), ["early"]);
}

#[test]
fn one_in_the_background_ends_when_it_is_told_to() {
    let (directory, server) = server_with_two();
    let port = server.address.port();
    let command = format!(
        "set -m; {CHAT_CLIENT} 127.0.0.1 {port}; read -r line; bg; read -r line; kill -s $line %1; wait %1; echo status $?"
    );
    for (name, status) in [("TERM", 143), ("HUP", 129)] {
        let mut shell = Command::new("bash");
        shell.args(["-c", &command]).env("XDG_STATE_HOME", directory.path());
        let mut li = ChatClient::spawn_on_terminal(&mut shell, 80);
        li.wait_for("choice:");
        li.send("1\r2\rsecret\r");
        li.wait_for("li si> ");
        li.send("\x1a");
        eventually("the shell to have the terminal", || li.modes().local_modes.contains(LocalModes::ECHO));
        li.send("\n");
        // It goes on showing what is said.
        script(port, "1\n1\nsecret\nchat:2:in the background\n");
        li.wait_for("[1]zhang san said: in the background");
        assert!(li.modes().local_modes.contains(LocalModes::ECHO));
        li.send(format!("{name}\n"));
        li.wait_for(&format!("status {status}"));
        assert!(li.modes().local_modes.contains(LocalModes::ECHO));
        li.finish();
    }
}

#[test]
fn a_stop_lends_the_terminal_to_the_shell() {
    let (directory, server) = server_with_two();
    let command = format!(
        "set -m; {CHAT_CLIENT} 127.0.0.1 {}; stty -a; read -r line; echo \"shell:$line\"; fg; echo status $?",
        server.address.port()
    );
    let mut shell = Command::new("bash");
    shell.args(["-c", &command]).env("XDG_STATE_HOME", directory.path());
    let mut li = ChatClient::spawn_on_terminal(&mut shell, 80);
    li.wait_for("choice:");
    li.send("1\r2\rsecret\rchat:1:be");
    li.wait_for("li si> chat:1:be");
    li.send("\x1a");
    li.wait_for(" echo ");
    assert!(li.modes().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
    li.send("ls\n");
    li.wait_for("shell:ls");
    // It goes on where it was, and no other process echoes.
    li.wait_for("li si> chat:1:be");
    eventually("the client's modes", || !li.modes().local_modes.contains(LocalModes::ECHO));
    li.send("fore\rquit\r");
    li.wait_for("status 0");
    li.finish();
    assert_eq!(said_to_zhang(server.address.port()), ["before"]);
    // A client that leads its session has no process that could continue it: it is not stopped at all.
    let mut li = li_at_a_terminal(server.address.port(), directory.path(), 80);
    li.send("\x1achat:1:on\rquit\r");
    assert_eq!(li.finish().1.code(), Some(0));
    assert_eq!(said_to_zhang(server.address.port()), ["on"]);
}

#[test]
fn what_is_received_passes_for_nothing_else() {
    let (directory, server) = server_with_two();
    let mut li = li_at_a_terminal(server.address.port(), directory.path(), 72);
    let mut zhang = Client::connect(server.address);
    zhang.login(&Account { id: 1, name: "zhang san".into(), password: "secret".into() });
    let forged = "2026-11-28 11:00:00 [9]boss said: pay";
    let prefix = "2026-11-28 11:00:00 [1]zhang san said: ".len();
    let mut say = |text: String, time: String| {
        zhang.must(json!({"msgid": 6, "id": 1, "name": "zhang san", "toid": 2, "msg": text, "time": time}));
    };
    let now = || "2026-11-28 11:00:00".to_owned();
    say("hi".into(), forged.into());
    say("hi".into(), "9".repeat(20_000));
    for pad in [" ", "\u{a0}", "\u{3000}", "α", "中", "👍", "\u{301}"] {
        for columns in (60..80).chain(130..150) {
            say(format!("{}{forged}", pad.repeat(columns - prefix)), now());
        }
    }
    for before in ["\n", "\r", "\r\n", "\u{2028}", "\u{85}", "\u{b}", "\u{c}", "\u{1b}[2J", "\u{9b}2J", "\u{202e}"] {
        say(format!("{before}{forged}"), now());
    }
    say("the end".into(), now());
    li.wait_for("said: the end");
    li.wait_for("li si> ");
    let text = li.text();
    for wide in [false, true] {
        let rows = screen_of(&text, 72, wide);
        assert!(rows.iter().any(|row| row.starts_with("  | 2026-11-28 11:00:00 [9]boss")), "{rows:#?}");
        for row in rows {
            assert!(!row.trim_start().starts_with("2026-11-28 11:00:00 [9]"), "{row:?}");
        }
    }
    assert!(text.contains("????-??-?? ??:??:?? [1]zhang san said: hi\r\n"), "{text}");
    for hidden in ['\u{2028}', '\u{85}', '\u{9b}', '\u{202e}'] {
        assert!(!text.contains(hidden) && text.contains(&hidden.escape_unicode().to_string()), "{hidden:?}");
    }
    li.send("quit\r");
    assert_eq!(li.finish().1.code(), Some(0));
}

/// A relay to a server, on which nothing passes any more once it is cut; neither side notices.
struct Way {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
}

impl Way {
    fn to(server: SocketAddr) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, is_cut) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let cut = Arc::clone(&is_cut);
        // Its threads end with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(server).unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to, cut) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(&cut));
                    thread::spawn(move || pass(from, to, &cut));
                }
            }
        });
        Way { address, is_cut }
    }
}

/// Passes on what comes, or keeps the connection and passes nothing.
fn pass(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    from.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut chunk = [0; 4096];
    let mut was_cut = false;
    loop {
        was_cut |= cut.load(Ordering::SeqCst);
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) if !was_cut => to.write_all(&chunk[..read]).unwrap(),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    // For a while a server does not notice that the network is cut.
    if was_cut {
        thread::sleep(Duration::from_secs(3));
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_network_that_went_away_is_noticed_and_the_account_is_waited_for() {
    let (_directory, server) = server_with_two();
    let way = Way::to(server.address);
    let mut li = ChatClient::login(way.address.port(), 2);
    way.is_cut.store(true, Ordering::SeqCst);
    let since = Instant::now();
    li.wait_for("connection lost (the server does not answer), reconnecting\n");
    assert!(since.elapsed() < Duration::from_secs(28), "{:?}", since.elapsed());
    way.is_cut.store(false, Ordering::SeqCst);
    li.wait_for("connected again\n");
    li.wait_for("cannot log in yet: this account is using, input another!\n");
    li.wait_for("logged in again as li si\n");
    assert!(script(server.address.port(), "1\n1\nsecret\nchat:2:back?\n").contains("delivered to 2\n"));
    li.wait_for("[1]zhang san said: back?\n");
}

#[test]
fn a_server_that_stands_still_is_noticed_and_found_again() {
    let (_directory, server) = server_with_two();
    let mut li = ChatClient::login(server.address.port(), 2);
    server.signal("STOP");
    li.wait_for("connection lost (the server does not answer), reconnecting\n");
    // Its kernel takes connections still.
    li.wait_for("connected again\n");
    server.signal("CONT");
    li.wait_for("logged in again as li si\n");
    assert!(script(server.address.port(), "1\n1\nsecret\nchat:2:back?\n").contains("delivered to 2\n"));
    li.wait_for("[1]zhang san said: back?\n");
}

#[test]
fn a_server_that_greets_and_closes_gets_few_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let greet = |mut stream: TcpStream| {
        let mut ping = [0; 128];
        assert!(stream.read(&mut ping).unwrap() > 0);
        stream.write_all(b"{\"msgid\":203,\"seq\":0}\n").unwrap();
    };
    let client = ChatClient::start(port, &[]);
    greet(listener.accept().unwrap().0);
    listener.set_nonblocking(true).unwrap();
    let end = Instant::now() + Duration::from_secs(8);
    let mut again = 0;
    while Instant::now() < end {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                greet(stream);
                again += 1;
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
    assert!((2..=5).contains(&again), "{again} connections in 8 s");
    signal(client.pid(), "KILL");
}

#[test]
fn commands_of_a_chinese_input_method_are_read() {
    let (_directory, server) = server_with_two();
    let text = script(
        server.address.port(),
        "１\n１\nsecret\nchat：2：a：b:c\naddfriend：２\ncreategroup：数学：几何：代数\ngroupchat：１：１２：３０\nloginout：\n３\n",
    );
    assert_in_order(
        &text,
        &["stored for 2", "2 is your friend now", "group 数学 created, groupid is 1", "group 1: ", "logged out"],
    );
    let text = script(server.address.port(), "1\n2\nsecret\naddgroup：1\n");
    assert_in_order(&text, &["[1]zhang san said: a：b:c\n", "you joined group 1"]);
}
