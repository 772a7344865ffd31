//! Finds out what a server speaks, with two accounts, and without anything that crashes a server of the family.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use memchr::memmem;

use crate::book::{Account, Book, PASSWORD};
use crate::bytes::{errno, msgid};
use crate::dialect::{Capabilities, Dialect, Ending, GroupIds};
use crate::pace;
use crate::tally::sample;
use crate::target::{Endpoint, Target};
use crate::users::{self, User};
use crate::which::say;

const PATIENCE: Duration = Duration::from_secs(10);
/// How long each possible recipient of a message is listened to, in turn.
const GLANCE: Duration = Duration::from_millis(50);

/// Finds out what each server of the target speaks.
pub fn find_out(target: &mut Target, book: &mut Book) -> anyhow::Result<()> {
    for server in &mut target.servers {
        let known = book.known.iter().find(|(address, _)| *address == server.address);
        let capabilities = match known {
            Some(&(_, capabilities)) => capabilities,
            None => {
                let found = ask(server, book);
                let found = found.with_context(|| format!("cannot find out what {} speaks", server.address))?;
                if !book.is_quiet {
                    say(format_args!("{} speaks: {found}", server.address));
                }
                book.known.push((server.address, found));
                book.give_back();
                found
            }
        };
        server.dialect = Dialect::Chat(capabilities);
    }
    target.is_unknown = false;
    Ok(())
}

fn ask(server: &Endpoint, book: &mut Book) -> anyhow::Result<Capabilities> {
    // Until more is known, the server is treated as one that supports nothing.
    let frames = server.dialect.has_frames();
    let mut it = Capabilities { sturdy: false, acks: false, frames, ..Capabilities::OURS };
    let careful = Endpoint { dialect: Dialect::Chat(it), ..*server };
    let name = users::new_name(0);
    let mut users = Vec::new();
    for n in 0..2 {
        let new = || Account { id: 0, name: format!("{name}p{n}"), password: PASSWORD.to_owned() };
        let mut user = User::connect(careful, book.take(|_| true).unwrap_or_else(new), None)?;
        if user.account.id == 0 {
            let reply = user.register()?;
            it.errno = memmem::find(&reply, b"\"errno\":").is_some();
            book.enter(user.account.clone());
            book.take(|_| true);
        }
        users.push(user);
    }
    let [first, second] = &mut users[..] else { bail!("there are two users") };
    let (reply, _) = (login(first)?, login(second)?);
    it.acks = has(&reply, "\"seq\":");
    it.login_msgid = msgid(&reply) == Some(2);
    it.login_errno = has(&reply, "\"errno\":");
    it.errno &= !has(&reply, "\"error\":");
    let (to_second, object) = written_to(first, second, &name)?;
    it.toid = to_second;
    // As it was sent, it begins with its msgid.
    it.sorted = !object.starts_with(b"{\"msgid\"");
    it.ending = match if to_second { second.last_byte } else { first.last_byte } {
        b'\n' => Ending::Lf,
        0 => Ending::Nul,
        _ => Ending::Nothing,
    };
    it.sturdy = it.acks;
    if it.acks {
        return Ok(it);
    }
    // What its next login's reply lists, and whether that needs a new connection.
    let id = first.account.id;
    first.send(&format!("{{\"msgid\":7,\"id\":{id},\"friendid\":{}}}", second.account.id))?;
    first.sync()?;
    let group = format!("g-{name}");
    first.send(&format!("{{\"msgid\":8,\"id\":{id},\"groupname\":\"{group}\",\"groupdesc\":\"load\"}}"))?;
    first.sync()?;
    book.groups += 1;
    first.send(&format!("{{\"msgid\":3,\"id\":{id}}}"))?;
    first.sync()?;
    let mut reply = first.try_login()?;
    it.logout = is_success(&reply, id);
    if !it.logout {
        reply = users::come_again(first)?;
    }
    it.friends = !has(&reply, "\"friend\":");
    it.group_ids = if users::group_in(&reply, &group).is_some() { GroupIds::Login } else { GroupIds::Never };
    Ok(it)
}

/// Logs in, with a `seq`, and returns the reply. An earlier session of this account may not have ended yet.
fn login(user: &mut User) -> anyhow::Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let request = user.account.login_request();
    let request = format!("{},\"seq\":2}}", request.trim_end_matches('}'));
    loop {
        let reply = pace::keep(false, || {
            user.send(&request)?;
            user.reply(2)
        })?;
        if is_success(&reply, user.account.id) {
            return Ok(reply);
        }
        let Account { id, name, .. } = &user.account;
        ensure!(Instant::now() < deadline, "account {id}, {name}, cannot log in: {}", sample(&reply));
    }
}

fn is_success(reply: &[u8], id: u64) -> bool {
    errno(reply) == 0 && users::new_id(reply) == Some(id)
}

/// The first one writes to itself as `to`, and to the second one as `toid`. Was it `toid`, and what has arrived?
fn written_to(first: &mut User, second: &mut User, text: &str) -> anyhow::Result<(bool, Vec<u8>)> {
    let (Account { id, name, .. }, toid) = (&first.account, second.account.id);
    let chat = format!(
        "{{\"msgid\":6,\"id\":{id},\"name\":\"{name}\",\"toid\":{toid},\"to\":{id},\"msg\":\"{text}\",\
         \"time\":\"2026-01-02 03:04:05\"}}"
    );
    first.send(&chat)?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        for (is_second, user) in [(true, &mut *second), (false, &mut *first)] {
            // Messages that were stored for an earlier owner of this account do not count.
            if let Some(object) = user.next_within(GLANCE)?
                && has(&object, text)
            {
                return Ok((is_second, object));
            }
        }
    }
    bail!("a chat with both `toid` and `to` has reached neither")
}

fn has(object: &[u8], part: &str) -> bool {
    memmem::find(object, part.as_bytes()).is_some()
}
