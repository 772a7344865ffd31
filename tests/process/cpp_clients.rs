//! C++ clients against a server without any flag. What one `recv` returns is one object to them, and they die of two,
//! or of more than 1023 bytes: `docs/PROTOCOL.md#what-a-c-client-does-and-what-follows-from-it`.

use std::io::Read;
use std::net::TcpStream;

use chat_server::wire::Framing;
use serde_json::Value;

use super::Running;
use super::support::{Account, Client, login, parse, strings};

/// How often a test is tried: messages are apart in time, so a machine that stalls may still join two.
const ATTEMPTS: usize = 10;

/// One `recv` of the client; the error: it has died of it.
fn recv(stream: &mut TcpStream) -> Result<Value, String> {
    let mut buffer = [0; 1024];
    let n = stream.read(&mut buffer).map_err(|error| error.to_string())?;
    let (received, text) = (&buffer[..n], String::from_utf8_lossy(&buffer[..n]));
    if n > 1023 {
        return Err(format!("too much: {text}"));
    }
    match received.iter().position(|byte| *byte == 0) {
        Some(end) if end + 1 == n => {
            Ok(parse(std::str::from_utf8(&received[..end]).map_err(|error| error.to_string())?))
        }
        Some(_) => Err(format!("two objects: {text}")),
        None => Err(format!("no whole object: {text}")),
    }
}

/// The number that stands first in the text of a chat.
fn number(chat: &Value) -> usize {
    let text = chat["msg"].as_str().unwrap_or_else(|| panic!("no chat: {chat}"));
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number: {text}"))
}

fn text(number: usize) -> String {
    format!("{number} {}", "x".repeat(100))
}

/// Logs in; the login reply.
fn log_in(server: &Running, account: &Account) -> Result<(TcpStream, Value), String> {
    let mut client = server.client().framed(Framing::Nul);
    client.post(&login(account));
    let mut stream = client.stream;
    let reply = recv(&mut stream)?;
    assert_eq!((&reply["msgid"], &reply["errno"]), (&2.into(), &0.into()), "{reply}");
    Ok((stream, reply))
}

/// What the client does must go well once.
fn survives(name: &str, attempt: impl Fn(&Running, &mut Client, &Account) -> Result<Vec<usize>, String>) {
    let server = Running::start("", &[]);
    let mut sender = server.online("sender");
    let mut deaths = Vec::new();
    for n in 0..ATTEMPTS {
        let account = server.client().register(&format!("{name} {n}"), "secret");
        match attempt(&server, &mut sender, &account) {
            Ok(shown) => return assert!(shown.iter().copied().eq(0..shown.len()), "{shown:?}"),
            Err(death) => deaths.push(death),
        }
    }
    panic!("the client has died each time: {deaths:#?}");
}

#[test]
fn a_burst_of_40_chats_is_shown_by_a_cpp_client() {
    survives("burst", |server, sender, account| {
        let (mut stream, _) = log_in(server, account)?;
        let burst: String = (0..40).map(|n| sender.chat_to(account.id, &text(n)).to_string()).collect();
        sender.send_raw(burst);
        (0..40).map(|_| recv(&mut stream).map(|chat| number(&chat))).collect()
    });
}

#[test]
fn twenty_offline_messages_are_shown_by_a_cpp_client() {
    survives("offline", |server, sender, account| {
        (0..20).for_each(|n| assert!(!sender.chat(account.id, &text(n))));
        let (mut stream, reply) = log_in(server, account)?;
        let mut shown: Vec<usize> = strings(&reply["offlinemsg"]).iter().map(|chat| number(&parse(chat))).collect();
        assert!(!shown.is_empty(), "{reply}");
        while shown.len() < 20 {
            shown.push(number(&recv(&mut stream)?));
        }
        Ok(shown)
    });
}
