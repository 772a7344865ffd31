//! Where Redis is: its address, and the IP addresses that its name stands for.
//!
//! A resolver that is dead holds up whoever asks it for as long as it likes. So it is asked on a thread of
//! its own, at most one for each [`Address`], and nobody waits for longer than they have said. What the name
//! stood for last is used for as long as nothing newer is known.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, bounded};
use redis::io::tcp::TcpSettings;
use redis::{
    Client, Connection, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion, RedisResult,
};

use super::{PATIENCE, StartError};

/// How a name becomes IP addresses; may block.
pub type Lookup = Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// By the system's resolver.
pub(super) fn system_lookup() -> Lookup {
    Arc::new(|host, port| Ok((host, port).to_socket_addrs()?.collect()))
}

/// The address of a Redis, and what is known of where it leads.
pub(super) struct Address {
    info: ConnectionInfo,
    host: String,
    port: u16,
    lookup: Lookup,
    /// What the name stood for last.
    known: Vec<SocketAddr>,
    /// A look-up that is under way: since when, and what it will find.
    under_way: Option<(Instant, Receiver<io::Result<Vec<SocketAddr>>>)>,
    /// How often it was asked to connect; each attempt begins at another IP address.
    attempts: usize,
}

impl Address {
    /// Reads an address. Nothing is asked yet.
    ///
    /// # Errors
    /// It is none, or not that of a Redis over TCP.
    pub fn parse(url: &str, lookup: Lookup) -> Result<Address, StartError> {
        let info = url.into_connection_info().map_err(StartError::Url)?;
        let ConnectionAddr::Tcp(host, port) = info.addr().clone() else {
            return Err(StartError::Url((ErrorKind::InvalidClientConfig, "only TCP is supported").into()));
        };
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true)).set_redis_settings(settings);
        Client::open(info.clone()).map_err(StartError::Url)?;
        let known = host.parse().map_or(Vec::new(), |ip: IpAddr| vec![SocketAddr::new(ip, port)]);
        Ok(Address { info, host, port, lookup, known, under_way: None, attempts: 0 })
    }

    /// The user name and the password for it; `None`: it wants none.
    pub fn credentials(&self) -> Option<(Option<&str>, &str)> {
        let settings = self.info.redis_settings();
        settings.password().map(|password| (settings.username(), password))
    }

    fn is_literal(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }

    /// Has the name looked up, unless that is under way; since when it is. `done` is called when something was
    /// found, or nothing, if this call has begun it.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn look_up(&mut self, done: impl FnOnce() + Send + 'static) -> io::Result<Instant> {
        if let Some((since, _)) = &self.under_way {
            return Ok(*since);
        }
        let (found, under_way) = bounded(1);
        if self.is_literal() {
            let _ = found.send(Ok(self.known.clone())); // there is room, and a receiver
            done();
        } else {
            let (lookup, host, port) = (Arc::clone(&self.lookup), self.host.clone(), self.port);
            std::thread::Builder::new().name("bus-resolver".to_owned()).spawn(move || {
                let _ = found.send(lookup(&host, port)); // nobody waits any more
                done();
            })?;
        }
        let now = Instant::now();
        self.under_way = Some((now, under_way));
        Ok(now)
    }

    /// What a look-up has found; `None`: it is under way.
    ///
    /// # Errors
    /// It has found nothing, and nothing is known.
    pub fn found(&mut self) -> Option<io::Result<&[SocketAddr]>> {
        match self.under_way.as_ref()?.1.try_recv() {
            Ok(result) => Some(self.learn(result)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(self.learn(Err(io::ErrorKind::Other.into()))),
        }
    }

    /// What is known, where a look-up takes too long or fails.
    ///
    /// # Errors
    /// Nothing is.
    pub fn known(&self, error: io::Error) -> io::Result<&[SocketAddr]> {
        if self.known.is_empty() { Err(error) } else { Ok(&self.known) }
    }

    fn learn(&mut self, result: io::Result<Vec<SocketAddr>>) -> io::Result<&[SocketAddr]> {
        self.under_way = None;
        match result {
            Ok(addresses) if !addresses.is_empty() => {
                self.known = addresses;
                Ok(&self.known)
            }
            Ok(_) => self.known(no_addresses()),
            Err(error) => self.known(error),
        }
    }

    /// Looks the name up, and waits for that until it was under way for so long.
    ///
    /// # Errors
    /// Nothing is known until then.
    fn resolve(&mut self, patience: Duration) -> io::Result<&[SocketAddr]> {
        let since = self.look_up(|| ())?;
        let Some((_, under_way)) = &self.under_way else { return self.known(no_addresses()) };
        match under_way.recv_timeout((since + patience).saturating_duration_since(Instant::now())) {
            Ok(result) => self.learn(result),
            Err(RecvTimeoutError::Timeout) => self.known(slow_resolver()),
            Err(RecvTimeoutError::Disconnected) => self.learn(Err(io::ErrorKind::Other.into())),
        }
    }

    /// A blocking connection to a Redis that answers. Every wait on it ends after [`PATIENCE`].
    ///
    /// # Errors
    /// There was none within [`PATIENCE`].
    pub fn connect(&mut self) -> RedisResult<Connection> {
        let began = Instant::now();
        let first = self.attempts;
        self.attempts = self.attempts.wrapping_add(1);
        let addresses = self.resolve(PATIENCE / 2)?.to_vec();
        let left = |until: Duration| until.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
        let mut result = Err(io::Error::from(io::ErrorKind::NotFound).into());
        for tried in 0..addresses.len() {
            let address = addresses[first.wrapping_add(tried) % addresses.len()];
            let info = self.info.clone().set_addr(ConnectionAddr::Tcp(address.ip().to_string(), address.port()));
            // What is left of the time is shared by those that are.
            let share = left(PATIENCE * 3 / 4) / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            result = Client::open(info).and_then(|client| client.get_connection_with_timeout(share));
            if result.is_ok() {
                break;
            }
        }
        let mut connection = result?;
        // Half of it for good: a large write times out twice, once with what was taken and once with nothing.
        connection.set_write_timeout(Some(PATIENCE / 2))?;
        connection.set_read_timeout(Some(left(PATIENCE)))?;
        // A Redis that stands still accepts connections all the same.
        redis::cmd("PING").exec(&mut connection)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        Ok(connection)
    }
}

/// As it may be shown: without the password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.info.addr().fmt(f)
    }
}

fn no_addresses() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "its name stands for no address")
}

/// What looking up a name comes to that takes too long.
pub(super) fn slow_resolver() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "its name was not resolved in time")
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::Sender;

    use super::*;

    fn parse(url: &str) -> Result<Address, StartError> {
        Address::parse(url, system_lookup())
    }

    #[test]
    fn an_address_that_is_none_of_a_redis_over_tcp_is_refused() {
        for url in ["", "redis://", "http://127.0.0.1", "unix:/tmp/redis", "rediss://127.0.0.1", "redis://127.0.0.1/x"]
        {
            assert!(matches!(parse(url), Err(StartError::Url(_))), "{url}");
        }
        let address = parse("redis://some:p%40ss@127.0.0.1:7000/3").unwrap();
        assert_eq!((address.credentials(), address.info.redis_settings().db()), (Some((Some("some"), "p@ss")), 3));
    }

    /// What a resolver says, one after the other; it waits for what is not there yet.
    type Says = Sender<io::Result<Vec<SocketAddr>>>;

    fn resolved_by_hand() -> (Address, Says) {
        let (says, told) = bounded(8);
        let lookup: Lookup = Arc::new(move |host, port| {
            assert_eq!((host, port), ("redis.test", 7000));
            told.recv().expect("the test goes on")
        });
        (Address::parse("redis://redis.test:7000", lookup).unwrap(), says)
    }

    fn ip(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 7000))
    }

    const A_WHILE: Duration = Duration::from_secs(20);
    const A_MOMENT: Duration = Duration::from_millis(50);

    #[test]
    fn what_a_name_stood_for_is_used_while_the_resolver_is_dead() {
        let (mut address, says) = resolved_by_hand();
        says.send(Ok(vec![ip(1)])).unwrap();
        assert_eq!(address.resolve(A_WHILE).unwrap(), [ip(1)]);
        // It does not answer.
        assert_eq!(address.resolve(A_MOMENT).unwrap(), [ip(1)]);
        assert_eq!(address.resolve(A_MOMENT).unwrap(), [ip(1)], "and nobody waits for it once more");
        says.send(Ok(vec![ip(2), ip(3)])).unwrap();
        assert_eq!(address.resolve(A_WHILE).unwrap(), [ip(2), ip(3)], "the answer to the same question");
        for nothing in [Err(io::ErrorKind::NotFound.into()), Ok(Vec::new())] {
            says.send(nothing).unwrap();
            assert_eq!(address.resolve(A_WHILE).unwrap(), [ip(2), ip(3)]);
        }
    }

    #[test]
    fn a_resolver_that_was_never_alive_holds_up_nobody_for_longer_than_the_patience() {
        let (mut address, says) = resolved_by_hand();
        let began = Instant::now();
        let error = address.connect().err().expect("where it is is not known");
        assert!(error.is_timeout() && began.elapsed() < PATIENCE, "{error} after {:?}", began.elapsed());
        let began = Instant::now();
        assert!(address.connect().is_err());
        assert!(began.elapsed() < PATIENCE / 4, "it is the same question still: {:?}", began.elapsed());
        says.send(Err(io::ErrorKind::NotFound.into())).unwrap();
        assert_eq!(address.resolve(A_WHILE).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn who_looks_up_is_told_when_it_is_done() {
        let (mut address, says) = resolved_by_hand();
        let (done, is_done) = bounded(1);
        let since = address.look_up(move || done.send(()).unwrap()).unwrap();
        assert!(address.found().is_none());
        assert_eq!(address.look_up(|| panic!("one is under way")).unwrap(), since);
        says.send(Ok(vec![ip(1)])).unwrap();
        is_done.recv_timeout(A_WHILE).unwrap();
        assert_eq!(address.found().unwrap().unwrap(), [ip(1)]);
        assert!(address.found().is_none(), "nothing is under way");
        let mut literal = parse("redis://127.0.0.1:7000").unwrap();
        literal.look_up(|| ()).unwrap();
        assert_eq!(literal.found().unwrap().unwrap(), [ip(1)], "an address needs no resolver");
    }
}
