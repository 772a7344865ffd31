//! Where Redis is: its address, and the IP addresses that its name stands for.
//!
//! A resolver that is dead blocks a thread that asks it for an unbounded time. So it is asked on a thread of
//! its own, at most one for each [`Address`], and no caller waits for longer than it wants to. The last known IP
//! addresses are used until newer ones are found.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use redis::io::tcp::TcpSettings;
use redis::{
    Client, Connection, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, ProtocolVersion, RedisError,
    RedisResult,
};

use super::error::StartError;
use super::retry::PATIENCE;
use crate::bus::envelope::PayloadVersions;

/// Resolves a name to IP addresses; may block.
pub type Lookup = Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// The system's resolver.
pub(super) fn system_lookup() -> Lookup {
    Arc::new(|host, port| Ok((host, port).to_socket_addrs()?.collect()))
}

/// What tests change; the default otherwise.
#[derive(Clone)]
pub struct Setup {
    /// The versions of payloads that the node reads and writes.
    pub payload: PayloadVersions,
    /// How the name of Redis is resolved.
    pub lookup: Lookup,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { payload: PayloadVersions::default(), lookup: system_lookup() }
    }
}

/// The address of a Redis, and the IP addresses that are known for it.
pub(super) struct Address {
    info: ConnectionInfo,
    host: String,
    port: u16,
    lookup: Lookup,
    /// The IP addresses that were found last.
    known: Vec<SocketAddr>,
    /// A look-up that is under way: when it began, and its future result.
    under_way: Option<(Instant, Receiver<io::Result<Vec<SocketAddr>>>)>,
    /// The index of the next known one to try; it may be past the last.
    next: usize,
    /// The address at which Redis was last reached. It is tried before all others, until Redis is not reached there.
    good: Option<SocketAddr>,
}

impl Address {
    /// Parses an address. The resolver is not asked yet.
    ///
    /// # Errors
    /// It is not the address of a Redis over TCP.
    pub fn parse(url: &str, lookup: Lookup) -> Result<Address, StartError> {
        let info = url.into_connection_info().map_err(StartError::Url)?;
        let ConnectionAddr::Tcp(host, port) = info.addr().clone() else {
            return Err(StartError::Url((ErrorKind::InvalidClientConfig, "only TCP is supported").into()));
        };
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true)).set_redis_settings(settings);
        Client::open(info.clone()).map_err(StartError::Url)?;
        let known = host.parse().map_or(Vec::new(), |ip: IpAddr| vec![SocketAddr::new(ip, port)]);
        Ok(Address { info, host, port, lookup, known, under_way: None, next: 0, good: None })
    }

    /// The user name and the password for it; `None`: it requires none.
    pub fn credentials(&self) -> Option<(Option<&str>, &str)> {
        let settings = self.info.redis_settings();
        settings.password().map(|password| (settings.username(), password))
    }

    /// The known address to try next: the one at which Redis was last reached, and then all of them in turn.
    ///
    /// # Errors
    /// None is known; that of the look-up, if it has failed.
    pub fn choose(&mut self, looked_up: io::Result<()>) -> io::Result<SocketAddr> {
        let good = self.good.take().and_then(|good| self.known.iter().position(|address| *address == good));
        let index = good.or_else(|| self.next.checked_rem(self.known.len()));
        match index.and_then(|index| Some((index, *self.known.get(index)?))) {
            Some((index, chosen)) => {
                self.next = index + 1;
                Ok(chosen)
            }
            None => Err(looked_up.err().unwrap_or_else(|| io::ErrorKind::NotFound.into())),
        }
    }

    /// Redis was reached there.
    pub fn is_good(&mut self, address: SocketAddr) {
        self.good = Some(address);
    }

    /// Begins with the address at which the other one has reached Redis.
    pub fn begin_at(&mut self, other: &Address) {
        self.good = other.good;
        self.known.clone_from(&other.known);
    }

    /// Begins to look the name up, unless that is under way; returns when it began. `done` is called when this
    /// look-up has ended, successfully or not.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn look_up(&mut self, done: impl FnOnce() + Send + 'static) -> io::Result<Instant> {
        if let Some((since, _)) = &self.under_way {
            return Ok(*since);
        }
        let (found, under_way) = bounded(1);
        if self.host.parse::<IpAddr>().is_ok() {
            let _ = found.send(Ok(self.known.clone())); // there is room, and a receiver
            done();
        } else {
            let (lookup, host, port) = (Arc::clone(&self.lookup), self.host.clone(), self.port);
            std::thread::Builder::new().name("bus-resolver".to_owned()).spawn(move || {
                let _ = found.send(lookup(&host, port)); // the receiver may be gone
                done();
            })?;
        }
        let now = Instant::now();
        self.under_way = Some((now, under_way));
        Ok(now)
    }

    /// The outcome of the look-up, for which it waits until `deadline`; `None`: it is still under way. After a success,
    /// the addresses that were found are known; after an error, those that were known before still are.
    pub fn looked_up(&mut self, deadline: Instant) -> Option<io::Result<()>> {
        let Some((_, under_way)) = &self.under_way else { return Some(Ok(())) };
        match under_way.recv_deadline(deadline) {
            Ok(result) => Some(self.learn(result)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(self.learn(Err(io::ErrorKind::Other.into()))),
        }
    }

    /// Looks the name up, and waits until the look-up has been under way for `patience`.
    ///
    /// # Errors
    /// Nothing was found until then.
    fn resolve(&mut self, patience: Duration) -> io::Result<()> {
        let since = self.look_up(|| ())?;
        self.looked_up(since + patience).unwrap_or_else(|| Err(slow_resolver()))
    }

    fn learn(&mut self, result: io::Result<Vec<SocketAddr>>) -> io::Result<()> {
        self.under_way = None;
        let found = result?;
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its name has no address"));
        }
        self.known = found;
        Ok(())
    }

    /// Makes a blocking connection to a Redis that answers. Every wait on it ends after [`PATIENCE`].
    ///
    /// # Errors
    /// Redis did not answer within [`PATIENCE`].
    pub fn connect(&mut self) -> RedisResult<Connection> {
        let began = Instant::now();
        let looked_up = self.resolve(PATIENCE / 2);
        let left = |until: Duration| until.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
        let mut result = self.choose(looked_up).map_err(RedisError::from);
        let mut more = self.known.len();
        let (address, mut connection) = loop {
            let address = result?;
            let info = self.info.clone().set_addr(ConnectionAddr::Tcp(address.ip().to_string(), address.port()));
            // The remaining addresses share the remaining time.
            let share = left(PATIENCE * 3 / 4) / u32::try_from(more).unwrap_or(u32::MAX).max(1);
            match Client::open(info).and_then(|client| client.get_connection_with_timeout(share)) {
                Ok(connection) => break (address, connection),
                Err(error) => {
                    more = more.saturating_sub(1);
                    result = if more == 0 { Err(error) } else { self.choose(Ok(())).map_err(RedisError::from) };
                }
            }
        };
        // It stays at half: a large write times out twice, once after a part was taken and once after nothing was.
        connection.set_write_timeout(Some(PATIENCE / 2))?;
        connection.set_read_timeout(Some(left(PATIENCE)))?;
        // A Redis that stands still accepts connections all the same.
        redis::cmd("PING").exec(&mut connection)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        self.is_good(address);
        Ok(connection)
    }
}

/// Without the password, so that it may be shown.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.info.addr().fmt(f)
    }
}

/// The error of a look-up that takes too long.
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

    /// How a look-up has gone within the patience, and where to try then.
    fn resolved(address: &mut Address, patience: Duration) -> (bool, io::Result<SocketAddr>) {
        let looked_up = address.resolve(patience);
        (looked_up.is_ok(), address.choose(looked_up))
    }

    #[test]
    fn what_a_name_stood_for_is_used_while_the_resolver_is_dead() {
        let (mut address, says) = resolved_by_hand();
        says.send(Ok(vec![ip(1)])).unwrap();
        assert!(matches!(resolved(&mut address, A_WHILE), (true, Ok(at)) if at == ip(1)));
        // It does not answer, and no call waits for it once more.
        for _ in 0..2 {
            assert!(matches!(resolved(&mut address, A_MOMENT), (false, Ok(at)) if at == ip(1)));
        }
        says.send(Ok(vec![ip(2), ip(2)])).unwrap();
        assert!(matches!(resolved(&mut address, A_WHILE), (true, Ok(at)) if at == ip(2)), "to the same question");
        for nothing in [Err(io::ErrorKind::NotFound.into()), Ok(Vec::new())] {
            says.send(nothing).unwrap();
            assert!(matches!(resolved(&mut address, A_WHILE), (false, Ok(at)) if at == ip(2)));
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
        let (_, chosen) = resolved(&mut address, A_WHILE);
        assert_eq!(chosen.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn who_looks_up_is_told_when_it_is_done() {
        let (mut address, says) = resolved_by_hand();
        let (done, is_done) = bounded(1);
        let since = address.look_up(move || done.send(()).unwrap()).unwrap();
        assert!(address.looked_up(Instant::now()).is_none());
        assert_eq!(address.look_up(|| panic!("one is under way")).unwrap(), since);
        says.send(Ok(vec![ip(1)])).unwrap();
        is_done.recv_timeout(A_WHILE).unwrap();
        assert!(address.looked_up(Instant::now()).is_some_and(|result| result.is_ok()));
        assert_eq!(address.choose(Ok(())).unwrap(), ip(1));
        let mut literal = parse("redis://127.0.0.1:7000").unwrap();
        literal.look_up(|| ()).unwrap();
        let looked_up = literal.looked_up(Instant::now());
        assert!(looked_up.is_some_and(|result| result.is_ok()), "an address needs no resolver");
        assert_eq!(literal.choose(Ok(())).unwrap(), ip(1));
    }

    #[test]
    fn where_redis_was_reached_is_tried_first_and_then_all_in_turn() {
        let (mut address, says) = resolved_by_hand();
        says.send(Ok(vec![ip(1), ip(2), ip(3)])).unwrap();
        address.resolve(A_WHILE).unwrap();
        let mut next = || address.choose(Ok(())).unwrap();
        assert_eq!([next(), next()], [ip(1), ip(2)]);
        address.is_good(ip(2));
        let mut other = parse("redis://redis.test:7000").unwrap();
        other.begin_at(&address);
        assert_eq!(other.choose(Ok(())).unwrap(), ip(2), "where somebody else has reached it");
        let mut next = || address.choose(Ok(())).unwrap();
        assert_eq!([next(), next(), next(), next()], [ip(2), ip(3), ip(1), ip(2)]);
        address.is_good(ip(9));
        assert_eq!(address.choose(Ok(())).unwrap(), ip(3), "the name does not stand for that one any more");
    }
}
