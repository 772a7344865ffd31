//! Accounts and sessions, before anything is measured: blocking, a few dozen at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use chat_server::wire::{Split, Splitter};

use crate::bytes::{msgid, number_after};

/// How many log in side by side. Below the listen backlog of any server.
const SIDE_BY_SIDE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(30);
pub const PASSWORD: &str = "correct horse";
/// Larger than any reply.
pub const MAX_OBJECT: usize = 16 << 20;

/// Someone with an account and a connection.
pub struct User {
    pub id: u64,
    pub name: String,
    pub stream: TcpStream,
    input: Vec<u8>,
    splitter: Splitter,
}

impl User {
    fn connect(address: SocketAddr, name: String) -> anyhow::Result<User> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(User { id: 0, name, stream, input: Vec::new(), splitter: Splitter::default() })
    }

    fn send(&mut self, object: &str) -> anyhow::Result<()> {
        Ok(self.stream.write_all(format!("{object}\n").as_bytes())?)
    }

    /// The next object that bears `wanted` as its msgid and reports success.
    fn expect(&mut self, wanted: u64) -> anyhow::Result<Vec<u8>> {
        loop {
            match self.splitter.next(&self.input, MAX_OBJECT)? {
                Split::Object { start, end } => {
                    let object = self.input[start..end].to_vec();
                    self.input.drain(..end);
                    if msgid(&object) == Some(wanted) && number_after(&object, b"\"errno\":") == Some(0) {
                        return Ok(object);
                    }
                    bail!("{} got {}", self.name, String::from_utf8_lossy(&object));
                }
                Split::Partial { skip } => drop(self.input.drain(..skip)),
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer)? {
                0 => bail!("the server has closed the connection of {}", self.name),
                length => self.input.extend_from_slice(&buffer[..length]),
            }
        }
    }

    pub fn login_request(&self) -> String {
        format!("{{\"msgid\":1,\"id\":{},\"password\":\"{PASSWORD}\"}}", self.id)
    }

    /// A request that asks for an ack.
    fn ask(&mut self, request: &str) -> anyhow::Result<Vec<u8>> {
        self.send(request)?;
        self.expect(200)
    }
}

/// Registers `count` new users, each on a connection of its own, and logs them in if `login`.
/// Addresses are taken in turn.
pub fn arrive(addresses: &[SocketAddr], count: usize, login: bool) -> anyhow::Result<Vec<User>> {
    // A server that runs already may know the users of an earlier run.
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let mut users = Vec::with_capacity(count);
    while users.len() < count {
        let first = users.len();
        for n in first..count.min(first + SIDE_BY_SIDE) {
            let mut user = User::connect(addresses[n % addresses.len()], format!("u{run}-{n}"))?;
            user.send(&format!("{{\"msgid\":4,\"name\":\"{}\",\"password\":\"{PASSWORD}\"}}", user.name))?;
            users.push(user);
        }
        for user in &mut users[first..] {
            user.id = number_after(&user.expect(5)?, b"\"id\":").context("an account has an id")?;
            if login {
                user.send(&user.login_request())?;
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
    let (id, name) = (creator.id, &creator.name);
    let request = format!("{{\"msgid\":8,\"id\":{id},\"groupname\":\"g-{name}\",\"groupdesc\":\"load\",\"seq\":1}}");
    let group = number_after(&creator.ask(&request)?, b"\"groupid\":").context("a group has an id")?;
    for member in others {
        member.ask(&format!("{{\"msgid\":9,\"id\":{},\"groupid\":{group},\"seq\":1}}", member.id))?;
    }
    Ok(group)
}
