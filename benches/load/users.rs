//! Accounts and sessions, before anything is measured: blocking, a few dozen at a time, and one at a time where the
//! server supports no more.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail, ensure};
use chat_server::store::UserId;
use ipnet::IpNet;
use nix::errno::Errno;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::book::{Account, Book, PASSWORD};
use crate::bytes::{Piece, errno, msgid, number_after};
use crate::dialect::{Cutter, Dialect, GroupIds};
use crate::ending;
use crate::frames;
use crate::live;
use crate::pace;
use crate::tally::sample;
use crate::target::{Endpoint, Target};
use crate::tls::Stream;
use crate::which;

/// How many log in side by side. Below the listen backlog of any server.
const SIDE_BY_SIDE: usize = 64;
/// How many accounts each opens at most, for every reactor, until all have one that belongs to the right reactor. It
/// takes a few.
const TRIES: usize = 100;
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a waiting thread looks for a signal.
const GLANCE: Duration = Duration::from_millis(100);
/// Stored messages follow a login's reply without a pause that is longer.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a session that was left may take to end.
const LEAVING: Duration = Duration::from_secs(10);
/// How often the number of arrived users is shown, on a terminal and elsewhere.
const SHOWN_EVERY: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];

/// A user with an account and a connection.
pub struct User {
    pub account: Account,
    pub dialect: Dialect,
    pub server: Endpoint,
    /// `None` once another owner has it.
    stream: Option<Stream<TcpStream>>,
    /// The server ends its objects with LF.
    pub has_lines: bool,
    /// The last byte that came.
    pub last_byte: u8,
    input: Vec<u8>,
    cutter: Cutter,
}

impl User {
    /// `receive_buffer`: how much the kernel takes for a client that does not read. It must be known before the
    /// connection is made: a window that shrinks later has the kernel drop what it then gets.
    pub fn connect(server: Endpoint, account: Account, receive_buffer: Option<usize>) -> anyhow::Result<User> {
        let Endpoint { address, dialect, tls, .. } = server;
        let socket = socket(server)?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket
            .connect_timeout(&address.into(), PATIENCE)
            .with_context(|| format!("cannot connect to {address} for {}", account.name))?;
        let socket = TcpStream::from(socket);
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut stream =
            Stream::open(socket, tls).with_context(|| format!("cannot connect to {address} for {}", account.name))?;
        let input = if dialect.has_frames() { frames::open(&mut stream, address)? } else { Vec::new() };
        stream.socket.set_read_timeout(Some(GLANCE))?;
        let (has_lines, last_byte, cutter) = (true, 0, Cutter::of(dialect));
        Ok(User { account, dialect, server, stream: Some(stream), has_lines, last_byte, input, cutter })
    }

    /// How the rest of the stream is best cut.
    pub fn cutter(&self) -> Cutter {
        if self.has_lines && !self.dialect.has_frames() { Cutter::Lines } else { Cutter::of(self.dialect) }
    }

    /// The same connection, for a loop that reads it from here on, and what has come of it already. It ends when
    /// its new owner says so.
    pub fn into_parts(mut self) -> anyhow::Result<(Account, Stream<TcpStream>, Vec<u8>)> {
        let mut stream = self.stream.take().context("a user has a connection")?;
        self.input.extend(stream.left());
        Ok((self.account.clone(), stream, std::mem::take(&mut self.input)))
    }

    fn stream(&mut self) -> anyhow::Result<&mut Stream<TcpStream>> {
        self.stream.as_mut().context("a user has a connection")
    }

    pub fn send(&mut self, text: &str) -> anyhow::Result<()> {
        let mut bytes = Vec::with_capacity(text.len() + 16);
        if self.dialect.has_frames() {
            frames::begin(&mut bytes, text.len());
        }
        bytes.extend_from_slice(text.as_bytes());
        if !self.dialect.has_frames() {
            bytes.push(b'\n');
        }
        let stream = self.stream()?;
        let sent = stream.write_all(&bytes).and_then(|()| stream.flush());
        sent.with_context(|| format!("{} sends", self.account.name))
    }

    /// The next object or line, if one comes in this time.
    pub fn next_within(&mut self, time: Duration) -> anyhow::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + time;
        loop {
            match self.cutter.next(&self.input)? {
                Piece::Whole { start, end } => {
                    let piece = self.input[start..end].to_vec();
                    self.input.drain(..end);
                    return Ok(Some(piece));
                }
                Piece::Partial { skip } => drop(self.input.drain(..skip)),
            }
            let mut buffer = [0; 4096];
            match self.stream()?.read(&mut buffer) {
                Ok(0) => bail!("the server has closed the connection of {}", self.account.name),
                Ok(length) => {
                    self.input.extend_from_slice(&buffer[..length]);
                    self.last_byte = buffer[length - 1];
                    self.has_lines = self.last_byte == b'\n';
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    stop_if_told()?;
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(anyhow!("the connection of {}: {error}", self.account.name)),
            }
        }
    }

    fn next(&mut self) -> anyhow::Result<Vec<u8>> {
        self.next_within(PATIENCE)?.with_context(|| format!("{} waits for an answer in vain", self.account.name))
    }

    /// The next reply, whatever it says: not what others write meanwhile. A reply without a msgid is one, too.
    pub fn reply(&mut self, wanted: u64) -> anyhow::Result<Vec<u8>> {
        loop {
            let object = self.next()?;
            match msgid(&object) {
                Some(6 | 10) => {} // for an earlier owner of this account
                None => return Ok(object),
                Some(got) if got == wanted => return Ok(object),
                Some(_) => bail!("{}", refused(&self.account.name, &object)),
            }
        }
    }

    /// The next reply, which must report success.
    fn expect(&mut self, wanted: u64) -> anyhow::Result<Vec<u8>> {
        let object = self.reply(wanted)?;
        ensure!(errno(&object) == 0, "{}", refused(&self.account.name, &object));
        Ok(object)
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
            Dialect::Chat(_) => register_request(name),
            Dialect::Irc => format!("NICK {name}\r\nUSER {name} 0 * :{name}\r"),
            Dialect::Nats => format!("CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\nSUB {name} 1\r\nPING\r"),
        };
        self.send(&greeting)
    }

    fn welcome(&mut self) -> anyhow::Result<()> {
        match self.dialect {
            Dialect::Chat(_) => {
                let reply = self.expect(5)?;
                self.account.id = new_id(&reply).with_context(|| refused(&self.account.name, &reply))?;
                Ok(())
            }
            // The end of the message of the day, or that there is none.
            Dialect::Irc => self.await_line(&[" 376 ", " 422 "]),
            Dialect::Nats => self.await_line(&["PONG"]),
        }
    }

    /// Opens an account of this name.
    pub fn register(&mut self) -> anyhow::Result<Vec<u8>> {
        self.send(&format!(
            "{{\"msgid\":4,\"name\":\"{}\",\"password\":\"{PASSWORD}\",\"seq\":1}}",
            self.account.name
        ))?;
        let reply = self.expect(5)?;
        self.account.id = new_id(&reply).with_context(|| refused(&self.account.name, &reply))?;
        Ok(reply)
    }

    /// Logs in, and returns the reply, whatever it says.
    pub fn try_login(&mut self) -> anyhow::Result<Vec<u8>> {
        let request = self.account.login_request();
        let sturdy = self.dialect.is_sturdy();
        pace::keep(sturdy, || {
            self.send(&request)?;
            self.reply(2)
        })
    }

    /// Waits until the server has done all that this user has asked for: it does that in order, and a login to a
    /// missing account has a reply.
    pub fn sync(&mut self) -> anyhow::Result<()> {
        let sturdy = self.dialect.is_sturdy();
        pace::settle(sturdy);
        pace::keep(sturdy, || {
            self.send("{\"msgid\":1,\"id\":0,\"password\":\"nobody\"}")?;
            self.reply(2).map(drop)
        })
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.end(self.dialect.is_sturdy(), TcpStream::shutdown);
        }
    }
}

/// A socket from which a connection to this server can be made.
fn socket(server: Endpoint) -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::for_address(server.address), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(source) = server.source.and_then(next_of) {
        let bound = socket.bind(&SocketAddr::new(source, 0).into());
        bound.with_context(|| format!("cannot connect from {source}"))?;
    }
    Ok(socket)
}

/// Begins to connect, and does not wait for it: when the socket is writable it is known what has become of it.
///
/// # Errors
/// There are no more descriptors or ports.
pub fn dial(server: Endpoint) -> anyhow::Result<Stream<mio::net::TcpStream>> {
    let socket = socket(server)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&server.address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => {
            Err(error).with_context(|| format!("cannot connect to {}", server.address))
        }
        _ => Stream::begin(mio::net::TcpStream::from_std(socket.into()), server.tls),
    }
}

/// The addresses of a network are taken in turn.
fn next_of(network: IpNet) -> Option<IpAddr> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let mut hosts = network.hosts();
    hosts.nth(NEXT.fetch_add(1, Relaxed) % hosts.count().max(1))
}

pub fn register_request(name: &str) -> String {
    format!("{{\"msgid\":4,\"name\":\"{name}\",\"password\":\"{PASSWORD}\"}}")
}

/// The id of an account that has just been opened. Some servers report success for a name that is taken, and the id -1.
pub fn new_id(reply: &[u8]) -> Option<u64> {
    number_after(reply, b"\"id\":").filter(|&id| id > 0)
}

fn refused(name: &str, reply: &[u8]) -> String {
    let hint = match errno(reply) {
        20 => ": the server's limits (--limits, --max-…) do not allow this load",
        _ => "",
    };
    format!("{name} got {}{hint}", sample(reply))
}

/// # Errors
/// A signal has come.
fn stop_if_told() -> anyhow::Result<()> {
    ensure!(ending::signal().is_none(), "ended by a signal before anything was measured");
    Ok(())
}

/// A name that no earlier run has used.
pub fn new_name(n: usize) -> String {
    let run = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros());
    format!("u{}-{n}", run % 100_000_000_000)
}

/// Accounts that are to be opened, with names that no earlier run has used.
struct Names {
    run: String,
    next: usize,
}

impl Names {
    /// Numbered from `first` on.
    fn new(first: usize) -> Names {
        Names { run: new_name(0).trim_end_matches('0').to_owned(), next: first }
    }

    fn account(&mut self) -> Account {
        self.next += 1;
        Account { id: 0, name: format!("{}{}", self.run, self.next - 1), password: PASSWORD.to_owned() }
    }
}

/// Reports how many users have arrived, if that takes long.
struct Progress {
    what: &'static str,
    of: usize,
    pace: live::Pace,
    /// The time when it was shown last, since it began.
    shown: Duration,
}

impl Progress {
    fn new(what: &'static str, of: usize) -> Progress {
        Progress { what, of, pace: live::Pace::new(), shown: Duration::ZERO }
    }

    fn at(&mut self, n: usize) -> anyhow::Result<()> {
        stop_if_told()?;
        let elapsed = self.pace.elapsed();
        if elapsed > self.shown + SHOWN_EVERY[usize::from(!live::is_shown())] {
            self.shown = elapsed;
            let words = format!("{n} of {} users {}, {}", self.of, self.what, self.pace.words(n, self.of));
            if live::is_shown() { live::show(&words) } else { which::say(words) }
        }
        Ok(())
    }
}

/// How users arrive.
pub struct Arrival<'a> {
    pub count: usize,
    pub logs_in: bool,
    /// They belong to the reactors of their server in turn. Where the connection decides that, they do so by arriving
    /// in turn; where the account decides it, each gets one of the right reactor.
    pub in_turn: bool,
    /// The receive buffer of user `n`, if it is to be small.
    pub receive_buffer: &'a dyn Fn(usize) -> Option<usize>,
}

/// Connects users, registers those without an account in the book, and logs them in. Addresses are taken in turn.
pub fn arrive(target: &Target, book: &mut Book, arrival: &Arrival<'_>) -> anyhow::Result<Vec<User>> {
    let Arrival { count, logs_in, in_turn, receive_buffer } = *arrival;
    let is_family = matches!(target.servers[0].dialect, Dialect::Chat(_));
    let side_by_side = if target.is_sturdy() { SIDE_BY_SIDE } else { 1 };
    let homes = target.homes.filter(|_| in_turn);
    let fits = |n: usize, account: &Account| {
        homes.is_none_or(|homes| homes.of_user(account.id as UserId) == n / target.servers.len() % homes.reactors())
    };
    let mut names = Names::new(book.accounts.len());
    let mut users: Vec<User> = Vec::with_capacity(count);
    let mut progress = Progress::new("are connected", count);
    for n in 0..count {
        let account = is_family.then(|| book.take(|account| fits(n, account))).flatten();
        let server = target.servers[n % target.servers.len()];
        users.push(User::connect(server, account.unwrap_or_else(|| names.account()), receive_buffer(n))?);
        if homes.is_some() && n == count / 2 {
            // One more connection puts the users that follow out of step: they come to another reactor than their own,
            // and move when they log in, as most do where nothing arranges it.
            target.servers.iter().try_for_each(|server| TcpStream::connect(server.address).map(drop))?;
        }
        progress.at(n)?;
    }
    // The last one begins: if there are too many, that one is refused, before all others have opened accounts.
    let mut progress = Progress::new("have logged in", count);
    let mut left = count;
    while left > 0 {
        progress.at(count - left)?;
        let those = left.saturating_sub(if left == count { 1 } else { side_by_side })..left;
        left = those.start;
        let mut new: Vec<usize> = those.clone().filter(|&n| users[n].account.id == 0).collect();
        let mut tries = 0;
        while !new.is_empty() {
            for &n in &new {
                users[n].begin()?;
            }
            for &n in &new {
                let told = users[n].welcome().with_context(|| format!("user {} of {count}", n + 1));
                told?;
                if is_family {
                    book.enter(users[n].account.clone());
                }
            }
            if !is_family {
                break;
            }
            // An account of another reactor is for another user, and the one that has opened it opens one more.
            new.retain(|&n| {
                let account = book.take(|account| fits(n, account));
                let is_left = account.is_none();
                users[n].account = account.unwrap_or_else(|| names.account());
                is_left
            });
            tries += 1;
            ensure!(
                tries < TRIES * homes.map_or(1, |homes| homes.reactors()),
                "no new account belongs to the reactor that it is for"
            );
        }
        if !(logs_in && is_family) {
            continue;
        }
        if target.is_sturdy() {
            for user in &mut users[those.clone()] {
                let request = user.account.login_request();
                user.send(&request)?;
            }
            for user in &mut users[those] {
                // The account's last session may not have ended yet.
                if errno(&user.reply(2)?) != 0 {
                    come_in(user)?;
                }
            }
        } else {
            users[those].iter_mut().try_for_each(|user| come_in(user).map(drop))?;
        }
    }
    Ok(users)
}

/// Registers accounts over a few connections until the book has `count` of them.
pub fn enroll(target: &Target, book: &mut Book, count: usize) -> anyhow::Result<()> {
    let clerks = (count - book.accounts.len().min(count)).min(if target.is_sturdy() { SIDE_BY_SIDE } else { 1 });
    let mut names = Names::new(book.accounts.len());
    let server = |n: usize| target.servers[n % target.servers.len()];
    let clerks = (0..clerks).map(|n| User::connect(server(n), names.account(), None));
    let mut clerks = clerks.collect::<anyhow::Result<Vec<User>>>()?;
    let mut progress = Progress::new("have accounts", count);
    while book.accounts.len() < count {
        let first = book.accounts.len();
        progress.at(first)?;
        let round = (count - first).min(clerks.len());
        for clerk in &mut clerks[..round] {
            clerk.account = names.account();
            clerk.begin()?;
        }
        for clerk in &mut clerks[..round] {
            clerk.welcome()?;
            book.enter(clerk.account.clone());
        }
    }
    Ok(())
}

/// Logs in a user that may have left a moment ago, and returns the reply.
fn come_in(user: &mut User) -> anyhow::Result<Vec<u8>> {
    let deadline = Instant::now() + LEAVING;
    loop {
        let reply = user.try_login()?;
        if new_id(&reply).is_some() && errno(&reply) == 0 {
            return Ok(reply);
        }
        ensure!(Instant::now() < deadline, "{}", refused(&user.account.name, &reply));
        stop_if_told()?;
        std::thread::sleep(GLANCE);
    }
}

/// Leaves, and comes back over a new connection. Returns the login's reply.
pub fn come_again(user: &mut User) -> anyhow::Result<Vec<u8>> {
    let next = User::connect(user.server, user.account.clone(), None)?;
    // The old connection must be gone before the account can come again.
    drop(std::mem::replace(user, next));
    come_in(user)
}

/// The first user creates a group and the others join it. Returns its id.
pub fn make_group(members: &mut [User], book: &mut Book) -> anyhow::Result<u64> {
    let (creator, others) = members.split_first_mut().context("a group has a creator")?;
    let (id, name) = (creator.account.id, new_name(creator.account.id as usize));
    let create = format!("{{\"msgid\":8,\"id\":{id},\"groupname\":\"g-{name}\",\"groupdesc\":\"load\"");
    book.groups += 1;
    let has_acks = creator.dialect.capabilities().is_some_and(|it| it.group_ids == GroupIds::Ack);
    if !has_acks {
        creator.send(&format!("{create}}}"))?;
        creator.sync()?;
        let reply = come_again(creator)?;
        let group =
            group_in(&reply, &format!("g-{name}")).with_context(|| format!("g-{name} is not in {}", sample(&reply)))?;
        for member in others {
            member.send(&format!("{{\"msgid\":9,\"id\":{},\"groupid\":{group}}}", member.account.id))?;
            member.sync()?;
        }
        return Ok(group);
    }
    creator.send(&format!("{create},\"seq\":1}}"))?;
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

/// The id of the group of this name in a login's reply.
pub fn group_in(reply: &[u8], name: &str) -> Option<u64> {
    let reply: Value = serde_json::from_slice(reply).ok()?;
    let groups = reply["groups"].as_array()?.iter();
    let mut groups = groups.filter_map(|group| match group {
        Value::String(text) => serde_json::from_str(text).ok(),
        object => Some(object.clone()),
    });
    groups.find(|group: &Value| group["groupname"] == name)?["id"].as_u64()
}

/// Logs in every user in the book, reads what is stored for them, and logs them out. The book has as many messages less.
pub fn clean(target: &Target, book: &mut Book) -> anyhow::Result<()> {
    let (mut read, mut progress) = (0, Progress::new("have read what was stored", book.accounts.len()));
    for (n, account) in book.accounts.iter().enumerate() {
        progress.at(n)?;
        let mut user = User::connect(target.servers[n % target.servers.len()], account.clone(), None)?;
        read_stored(&mut user, &mut read)?;
    }
    book.messages = book.messages.saturating_sub(read);
    Ok(())
}

/// Logs in and out until a login's reply has nothing stored.
fn read_stored(user: &mut User, read: &mut u64) -> anyhow::Result<()> {
    loop {
        let reply = serde_json::from_slice::<Value>(&come_in(user)?).unwrap_or_default();
        let stored = reply["offlinemsg"].as_array().map_or(0, Vec::len) as u64;
        *read += stored;
        if stored == 0 {
            return Ok(());
        }
        while user.next_within(PAUSE)?.is_some() {
            *read += 1;
        }
        if !user.dialect.capabilities().is_some_and(|it| it.logout) {
            return Ok(()); // the reply of such a server has everything
        }
        user.send(&format!("{{\"msgid\":3,\"id\":{}}}", user.account.id))?;
    }
}
