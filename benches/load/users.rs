//! Accounts and sessions, before anything is measured: blocking, a few dozen at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use chat_server::wire::Splitter;

use crate::bytes::{msgid, number_after};
use crate::dialect::{Cutter, Dialect, Piece};
use crate::target::Target;

/// How many log in side by side. Below the listen backlog of any server.
const SIDE_BY_SIDE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(30);
pub const PASSWORD: &str = "correct horse";
/// Larger than any reply.
pub const MAX_OBJECT: usize = 16 << 20;

#[derive(Debug, Clone)]
pub struct Account {
    pub id: u64,
    pub name: String,
}

impl Account {
    pub fn login_request(&self) -> String {
        format!("{{\"msgid\":1,\"id\":{},\"password\":\"{PASSWORD}\"}}", self.id)
    }
}

/// Someone with an account and a connection.
pub struct User {
    pub account: Account,
    pub stream: TcpStream,
    pub dialect: Dialect,
    /// The server ends its objects with LF.
    has_lines: bool,
    input: Vec<u8>,
    cutter: Cutter,
}

impl User {
    fn connect(address: SocketAddr, dialect: Dialect, name: String) -> anyhow::Result<User> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let cutter = if dialect == Dialect::Chat { Cutter::Objects(Splitter::default()) } else { Cutter::Lines };
        let account = Account { id: 0, name };
        Ok(User { account, stream, dialect, has_lines: true, input: Vec::new(), cutter })
    }

    /// How the rest of the stream is best cut.
    pub fn cutter(&self) -> Cutter {
        if self.has_lines { Cutter::Lines } else { Cutter::Objects(Splitter::default()) }
    }

    fn send(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.stream.write_all(format!("{text}\n").as_bytes())?)
    }

    fn next(&mut self) -> anyhow::Result<Vec<u8>> {
        loop {
            match self.cutter.next(&self.input)? {
                Piece::Whole { start, end } => {
                    let piece = self.input[start..end].to_vec();
                    self.input.drain(..end);
                    return Ok(piece);
                }
                Piece::Partial { skip } => drop(self.input.drain(..skip)),
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer).with_context(|| format!("{} waits for an answer", self.account.name))? {
                0 => bail!("the server has closed the connection of {}", self.account.name),
                length => {
                    self.input.extend_from_slice(&buffer[..length]);
                    self.has_lines = buffer[length - 1] == b'\n';
                }
            }
        }
    }

    /// The next object; it must bear `wanted` as its msgid and report success.
    fn expect(&mut self, wanted: u64) -> anyhow::Result<Vec<u8>> {
        let object = self.next()?;
        if msgid(&object) == Some(wanted) && number_after(&object, b"\"errno\":") == Some(0) {
            return Ok(object);
        }
        bail!("{} got {}", self.account.name, String::from_utf8_lossy(&object));
    }

    /// Reads up to the line that has one of these in it.
    fn await_line(&mut self, signs: &[&str]) -> anyhow::Result<()> {
        loop {
            let line = String::from_utf8_lossy(&self.next()?).into_owned();
            if signs.iter().any(|sign| line.contains(sign)) {
                return Ok(());
            }
            if line.starts_with("ERROR") || line.starts_with("-ERR") {
                bail!("{} got {}", self.account.name, line.trim());
            }
        }
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let name = &self.account.name;
        let greeting = match self.dialect {
            Dialect::Chat => register_request(name),
            Dialect::Irc => format!("NICK {name}\r\nUSER {name} 0 * :{name}\r"),
            Dialect::Nats => format!("CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\nSUB {name} 1\r\nPING\r"),
        };
        self.send(&greeting)
    }

    fn welcome(&mut self) -> anyhow::Result<()> {
        match self.dialect {
            Dialect::Chat => {
                self.account.id = number_after(&self.expect(5)?, b"\"id\":").context("an account has an id")?;
                Ok(())
            }
            // The end of the message of the day, or that there is none.
            Dialect::Irc => self.await_line(&[" 376 ", " 422 "]),
            Dialect::Nats => self.await_line(&["PONG"]),
        }
    }
}

pub fn register_request(name: &str) -> String {
    format!("{{\"msgid\":4,\"name\":\"{name}\",\"password\":\"{PASSWORD}\"}}")
}

/// Registers so many accounts, many over each connection.
pub fn enroll(target: &Target, count: usize) -> anyhow::Result<Vec<Account>> {
    let mut clerks = arrive(target, count.min(SIDE_BY_SIDE), false)?;
    let names: Vec<String> = clerks.iter().map(|clerk| clerk.account.name.clone()).collect();
    let mut accounts: Vec<Account> = clerks.iter().map(|clerk| clerk.account.clone()).collect();
    while accounts.len() < count {
        let round = (count - accounts.len()).min(clerks.len());
        for (clerk, name) in clerks[..round].iter_mut().zip(&names) {
            clerk.account.name = format!("{name}-{}", accounts.len());
            clerk.begin()?;
        }
        for clerk in &mut clerks[..round] {
            clerk.welcome()?;
            accounts.push(clerk.account.clone());
        }
    }
    Ok(accounts)
}

/// Connects and logs in who has an account already.
pub fn log_in(target: &Target, accounts: &[Account]) -> anyhow::Result<Vec<User>> {
    let mut users: Vec<User> = Vec::with_capacity(accounts.len());
    for (round, side_by_side) in accounts.chunks(SIDE_BY_SIDE).enumerate() {
        let first = users.len();
        for (n, account) in side_by_side.iter().enumerate() {
            let address = target.addresses[(round * SIDE_BY_SIDE + n) % target.addresses.len()];
            let mut user = User::connect(address, target.dialect, account.name.clone())?;
            user.account.id = account.id;
            user.send(&account.login_request())?;
            users.push(user);
        }
        users[first..].iter_mut().try_for_each(|user| user.expect(2).map(drop))?;
    }
    Ok(users)
}

/// Connects `count` new users, and logs them in if `login`. Addresses are taken in turn.
pub fn arrive(target: &Target, count: usize, login: bool) -> anyhow::Result<Vec<User>> {
    // A server that runs already may know the users of an earlier run.
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let login = login && target.dialect == Dialect::Chat;
    let mut users = Vec::with_capacity(count);
    while users.len() < count {
        let first = users.len();
        for n in first..count.min(first + SIDE_BY_SIDE) {
            let address = target.addresses[n % target.addresses.len()];
            let mut user = User::connect(address, target.dialect, format!("u{run}-{n}"))?;
            user.begin()?;
            users.push(user);
        }
        for user in &mut users[first..] {
            user.welcome()?;
            if login {
                user.send(&user.account.login_request())?;
            }
        }
        if login {
            for user in &mut users[first..] {
                user.expect(2)?;
            }
        }
    }
    Ok(users)
}

/// The first user creates a group and the others join it. Returns its id.
pub fn make_group(members: &mut [User]) -> anyhow::Result<u64> {
    let (creator, others) = members.split_first_mut().context("a group has a creator")?;
    let Account { id, name } = &creator.account;
    creator
        .send(&format!("{{\"msgid\":8,\"id\":{id},\"groupname\":\"g-{name}\",\"groupdesc\":\"load\",\"seq\":1}}"))?;
    let group = number_after(&creator.expect(200)?, b"\"groupid\":").context("a group has an id")?;
    for side_by_side in others.chunks_mut(SIDE_BY_SIDE) {
        for member in side_by_side.iter_mut() {
            member.send(&format!("{{\"msgid\":9,\"id\":{},\"groupid\":{group},\"seq\":1}}", member.account.id))?;
        }
        for member in side_by_side {
            member.expect(200)?;
        }
    }
    Ok(group)
}
