//! The command line: flags, their defaults, units and bounds.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, CommandFactory, Parser, ValueEnum};
use ipnet::{IpNet, Ipv4Net};

use crate::password::Cost;
use crate::secret::{SecretUrl, UrlError, may_hold_secret, redacted, scheme};
use crate::wire::dialect::{self, Dialect, DialectChoice};

/// Where accounts, groups and offline messages are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    Sqlite(PathBuf),
    MySql(SecretUrl),
}

/// Where the server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    At(SocketAddr),
    /// At this port of all addresses of this machine, of IPv6 and IPv4 where it has both.
    Everywhere(u16),
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub place: Listen,
    /// What its clients speak.
    pub dialect: DialectChoice,
}

/// A server started under this name has other defaults: the C++ server's MySQL and Redis.
const DROP_IN_NAME: &str = "ChatServer";
const DROP_IN_STORE: &str = "mysql://root:123456@127.0.0.1:3306/chat";
const DROP_IN_REDIS: &str = "redis://127.0.0.1:6379";

/// The server's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The main one first; there are at most 256.
    pub listeners: Vec<Listener>,
    pub store: StoreUrl,
    /// `None`: this is a single node.
    pub redis: Option<SecretUrl>,
    /// C++ nodes share the database and Redis.
    pub mixed: bool,
    /// The charset that C++ nodes name in `set names`.
    pub mysql_charset: String,
    pub reactors: usize,
    pub workers: usize,
    /// `None`: what the file-descriptor limit allows.
    pub max_connections: Option<usize>,
    pub max_message: usize,
    pub max_message_before_login: usize,
    /// Open connections of one address, over all reactors. `None`: no limit of its own.
    pub max_connections_per_address: Option<u32>,
    /// Offline messages of one user.
    pub max_offline: Option<u32>,
    /// Friends of one user.
    pub max_friends: Option<u32>,
    /// Groups that one user is in.
    pub max_groups: Option<u32>,
    /// Members of one group.
    pub max_group_size: Option<u32>,
    /// Failed logins of one account from one address per hour.
    pub max_failed_logins: Option<u32>,
    /// Registrations from one address per hour.
    pub max_registrations: Option<u32>,
    /// Messages of one connection per second.
    pub max_message_rate: Option<NonZeroU32>,
    /// Bytes of messages of one connection per second.
    pub max_byte_rate: Option<NonZeroU32>,
    pub login_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub high_water: usize,
    /// Bytes queued for all connections together.
    pub max_buffered: usize,
    pub password_cost: Cost,
    /// A verified password is not hashed again.
    pub login_memo: bool,
    pub legacy_client: bool,
    /// What each connection sends and gets is logged.
    pub trace_wire: bool,
    /// Networks whose connections begin with a PROXY header; empty: no connection does.
    pub proxies: Vec<IpNet>,
    /// Browsers get a page, and a WebSocket.
    pub web: bool,
    /// The other hosts whose pages may open a WebSocket, or `*` for all.
    pub web_origins: Vec<String>,
    /// Where metrics and health are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Decides which reactor each user belongs to; `None`: drawn at random, so that an attacker cannot choose ids that
    /// all belong to one.
    pub home_seed: Option<u64>,
    /// For tests: the payload versions that this node claims to read, and a kind that it makes up; `None`: those of
    /// this build, and no further kind.
    pub payload: Option<String>,
}

/// A cluster chat server: a drop-in for the muduo ChatServer.
#[derive(Parser, Debug)]
#[command(
    name = "chat-server",
    version,
    after_help = "Logging is set with RUST_LOG: error, warn, info (the default), debug."
)]
struct Flags {
    /// Where to listen. No argument: 127.0.0.1:6000. PORT: that port on all addresses of IPv6 and IPv4. IP PORT:
    /// that address. Port 0 takes any free port, which the log names ("listening on …")
    #[arg(value_name = "[IP] PORT", num_args = 0..=2)]
    address: Vec<String>,

    /// A further address to listen on, and what its clients speak, as --dialect says for those of the main one.
    /// Repeatable; several in one value, as in the variable, have blanks or semicolons between them
    #[arg(long, env = "CHAT_LISTEN", value_name = "IP:PORT[,dialect=NAME|FILE]", allow_hyphen_values = true, value_parser = further_listeners)]
    listen: Vec<FurtherListeners>,

    /// What the clients speak: auto, which finds it out from their requests; canon, which is the original; another
    /// dialect by its name; or the path of a TOML file that describes one. list prints all names
    #[arg(long, env = "CHAT_DIALECT", value_name = "NAME|FILE", default_value = "auto", value_parser = dialect_flag)]
    dialect: DialectFlag,

    /// The database: sqlite:PATH, or mysql://USER:PASSWORD@HOST:PORT/DATABASE (or mariadb://, which is the same).
    /// In the user and the password, characters with a meaning in a URL are percent-encoded: %40 for @
    #[arg(long, env = "CHAT_STORE", hide_env_values = true, value_name = "URL", default_value = "sqlite:chat.db")]
    store: Unread,

    /// Redis, for a cluster, as redis://[[USER]:PASSWORD@]HOST:PORT[/DATABASE] (or valkey://), beside a MySQL
    /// store that the nodes share. Without it, this server is a single node
    #[arg(long, env = "CHAT_REDIS", hide_env_values = true, value_name = "URL")]
    redis: Option<Unread>,

    /// For a cluster that still has C++ nodes: text is written to the database in their charset and JSON
    /// in ASCII, passwords stay plain text of at most 50 bytes, the members of a group are read for
    /// every message, and users that a C++ node's Ctrl-C set offline are set online again
    #[arg(long, env = "CHAT_MIXED", value_name = SWITCH, value_parser = switch(false), action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "on", default_value = "off", hide_default_value = true)]
    mixed: bool,

    /// The charset that the C++ nodes of this database name in "set names"
    /// [default: gbk with --mixed, otherwise utf8mb4]
    #[arg(long, env = "CHAT_MYSQL_CHARSET", value_name = "NAME")]
    mysql_charset: Option<String>,

    /// Sub-reactor threads, 1 to 256 [default: one per core]
    #[arg(long, env = "CHAT_REACTORS", value_name = "N", allow_hyphen_values = true, value_parser = count(1, 256))]
    reactors: Option<u64>,

    /// Worker threads for the store and for password hashing, 1 to 256
    #[arg(long, env = "CHAT_WORKERS", value_name = "N", allow_hyphen_values = true, value_parser = count(1, 256), default_value = "4")]
    workers: u64,

    /// Open connections; more are refused with error 20
    /// [default: the file-descriptor limit less a reserve]
    #[arg(long, env = "CHAT_MAX_CONNECTIONS", value_name = "N", allow_hyphen_values = true, value_parser = count(1, 10_000_000))]
    max_connections: Option<u64>,

    /// The preset for every limit that has no flag of its own: "default" leaves off those that could hit
    /// slow typists or many users behind one address; "internet" is for a server that strangers can
    /// reach
    #[arg(long, env = "CHAT_LIMITS", value_name = "SET", default_value = "default")]
    limits: LimitSet,

    /// Open connections of one address, or off; more are refused with error 20. An IPv6 address
    /// counts as its /64 network [default: off; internet: 50]
    #[arg(long, env = "CHAT_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N", allow_hyphen_values = true)]
    max_connections_per_address: Option<Bound>,

    /// The largest message after login, in bytes
    #[arg(long, env = "CHAT_MAX_MESSAGE", value_name = "BYTES", allow_hyphen_values = true, value_parser = count(256, 16 << 20), default_value = "65536")]
    max_message: u64,

    /// The largest message before login, in bytes
    #[arg(long, env = "CHAT_MAX_MESSAGE_BEFORE_LOGIN", value_name = "BYTES", allow_hyphen_values = true, value_parser = count(256, 16 << 20), default_value = "8192")]
    max_message_before_login: u64,

    /// Offline messages stored for one user, or off; the sender of one more gets error 20
    /// [default: 10000; internet: 1000]
    #[arg(long, env = "CHAT_MAX_OFFLINE", value_name = "N", allow_hyphen_values = true)]
    max_offline: Option<Bound>,

    /// Friends of one user, or off; more are refused with error 20 [default: off; internet: 500]
    #[arg(long, env = "CHAT_MAX_FRIENDS", value_name = "N", allow_hyphen_values = true)]
    max_friends: Option<Bound>,

    /// Groups that one user is in, or off; more are refused with error 20
    /// [default: off; internet: 100]
    #[arg(long, env = "CHAT_MAX_GROUPS", value_name = "N", allow_hyphen_values = true)]
    max_groups: Option<Bound>,

    /// Members of one group, or off; more are refused with error 20
    /// [default: off; internet: 1000]
    #[arg(long, env = "CHAT_MAX_GROUP_SIZE", value_name = "N", allow_hyphen_values = true)]
    max_group_size: Option<Bound>,

    /// Failed logins of one account from one address per hour, or off; past that, logins of that account
    /// from there get error 20, also with the right password, until another attempt is allowed
    /// [default: off; internet: 20]
    #[arg(long, env = "CHAT_MAX_FAILED_LOGINS", value_name = "N", allow_hyphen_values = true)]
    max_failed_logins: Option<Bound>,

    /// Attempts to register from one address per hour, or off; more are refused with error 20
    /// [default: off; internet: 20]
    #[arg(long, env = "CHAT_MAX_REGISTRATIONS", value_name = "N", allow_hyphen_values = true)]
    max_registrations: Option<Bound>,

    /// Messages of one connection per second, or off; bursts of ten times as many are allowed. A message past
    /// that is refused with error 20, and nothing more is read for a second [default: off; internet: 20]
    #[arg(long, env = "CHAT_MAX_MESSAGE_RATE", value_name = "N", allow_hyphen_values = true)]
    max_message_rate: Option<Bound>,

    /// Bytes of messages of one connection per second, or off, with the same bursts and refusals
    /// [default: off; internet: 65536]
    #[arg(long, env = "CHAT_MAX_BYTE_RATE", value_name = "BYTES", allow_hyphen_values = true)]
    max_byte_rate: Option<Bound>,

    /// How long a connection may stay without a login, like 90s or 10m; off: no limit
    /// [default: off; internet: 1m]
    #[arg(long, env = "CHAT_LOGIN_TIMEOUT", value_name = "TIME", allow_hyphen_values = true)]
    login_timeout: Option<Timeout>,

    /// How long a connection may stay silent, like 90s or 10m; off: no limit. Half-way through, clients
    /// that use "seq" or PING are sent a PING, which a PONG satisfies [default: off; internet: 15m]
    #[arg(long, env = "CHAT_IDLE_TIMEOUT", value_name = "TIME", allow_hyphen_values = true)]
    idle_timeout: Option<Timeout>,

    /// Bytes that may be queued for one connection. Above that, its messages go through the store and its input is
    /// not read; if it has not read all that was queued 10 s later, it is closed. It is closed at once if four times
    /// as much and twice --max-message is queued
    #[arg(long, env = "CHAT_HIGH_WATER", value_name = "BYTES", allow_hyphen_values = true, value_parser = count(4096, 1 << 30), default_value = "1048576")]
    high_water: u64,

    /// Bytes that may be queued for all connections together. While there are more, each connection may have
    /// its share of this queued, and no more
    #[arg(long, env = "CHAT_MAX_BUFFERED", value_name = "BYTES", allow_hyphen_values = true, value_parser = count(1 << 20, 1 << 40), default_value = "268435456")]
    max_buffered: u64,

    /// The cost of hashing a password: memory in KiB and passes. Stored passwords of another cost
    /// are hashed again at the next login
    #[arg(long, env = "CHAT_PASSWORD_COST", value_name = "KIB,ITERATIONS", allow_hyphen_values = true, default_value_t = Cost::default())]
    password_cost: Cost,

    /// Whether a verified password is remembered, as a code that only this process can make: logging
    /// in with it again costs no hash. on or off
    #[arg(long, env = "CHAT_LOGIN_MEMO", value_name = SWITCH, value_parser = switch(true), action = ArgAction::Set, default_value = "on")]
    login_memo: bool,

    /// For the C++ client, which loses messages that share a segment, and crashes on more than 1023 bytes:
    /// messages to clients that end theirs with NUL and never use "seq" are sent 10 ms apart whatever
    /// their rate, and friends and groups that do not fit are left out of their login replies
    #[arg(long, env = "CHAT_LEGACY_CLIENT", value_name = SWITCH, value_parser = switch(false), action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "on", default_value = "off", hide_default_value = true)]
    legacy_client: bool,

    /// Logs what each connection sends and gets, one line a message, to find out what a client speaks. Passwords are
    /// left out, chats are not. on or off
    #[arg(long, env = "CHAT_TRACE_WIRE", value_name = SWITCH, value_parser = switch(false), action = ArgAction::Set, default_value = "off")]
    trace_wire: bool,

    /// The networks of the proxies in front, like 127.0.0.1/32,10.0.0.0/8: connections from there
    /// must begin with a PROXY header (version 1 or 2), all others are refused. Off by default
    #[arg(long, env = "CHAT_PROXY_PROTOCOL", value_name = "CIDR,…", value_delimiter = ',', value_parser = network)]
    proxy_protocol: Vec<IpNet>,

    /// Whether browsers are served at the address of the chat: at / a page to chat with, and at /ws a WebSocket, in
    /// which the page speaks as every client does. on or off
    #[arg(long, env = "CHAT_WEB", value_name = SWITCH, value_parser = switch(true), action = ArgAction::Set, default_value = "on")]
    web: bool,

    /// The other hosts whose pages may open a WebSocket here, like https://example.com,http://10.0.0.7:8080, or * for
    /// all. Pages of this server's own host always may
    #[arg(long, env = "CHAT_WEB_ORIGINS", value_name = "ORIGIN,…", value_delimiter = ',', value_parser = origin)]
    web_origins: Vec<String>,

    /// Serves /metrics (for Prometheus), /healthz, /readyz and, at /, a page that draws them, by HTTP, to
    /// every client that can reach it: keep it from strangers. Off by default
    #[arg(long, env = "CHAT_METRICS", value_name = "IP:PORT", allow_hyphen_values = true, value_parser = socket_address)]
    metrics: Option<SocketAddr>,

    /// For tests: which reactor a user belongs to depends on this and on the user's id alone
    #[arg(long, value_name = "N", hide = true)]
    home_seed: Option<u64>,

    /// For tests: speaks to other nodes like a build that reads these payload versions, and that has one more kind
    #[arg(long, value_name = "LOWEST-NEWEST[+KIND]", hide = true)]
    payload: Option<String>,
}

/// A number within bounds.
fn count(min: u64, max: u64) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("must be a number from {min} to {max}")),
    }
}

/// The help's name for the value of a flag that is on or off.
const SWITCH: &str = "on|off";

/// On or off, in the spellings usual in an environment; there, an empty value means unset.
fn switch(default: bool) -> impl Fn(&str) -> Result<bool, String> + Clone + Send + Sync + 'static {
    move |text| match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        "" => Ok(default),
        _ => Err("must be 1, true, yes or on, or else 0, false, no or off".to_owned()),
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be IP:PORT, like 127.0.0.1:9100 or [::1]:9100".to_owned())
}

/// The value of `--dialect`.
#[derive(Debug, Clone)]
enum DialectFlag {
    /// All of them are to be printed.
    List,
    Of(DialectChoice),
}

/// What may stand there besides a dialect, and is listed first.
const AUTO: (&str, &str) = ("auto", "found out from the requests of each client");

fn dialect_flag(text: &str) -> Result<DialectFlag, String> {
    if text == "list" { Ok(DialectFlag::List) } else { dialect(text).map(DialectFlag::Of) }
}

/// A dialect by its name, or else of a file.
///
/// # Errors
/// There is neither, or the file describes none.
pub fn dialect(text: &str) -> Result<DialectChoice, String> {
    if let Some(named) = DialectChoice::named(text) {
        return Ok(named);
    }
    let path = Path::new(text);
    if !text.contains(['/', '.']) && !path.exists() {
        let names: Vec<&str> = dialect::list().map(Dialect::name).collect();
        return Err(format!("must be the path of a file, auto, or one of {}", names.join(", ")));
    }
    let name = path.file_stem().map_or_else(|| text.into(), OsStr::to_string_lossy);
    let read = std::fs::read_to_string(path).map_err(|error| error.to_string());
    let dialect = read.and_then(|toml| Dialect::from_toml(&toml, &name).map_err(|error| error.to_string()));
    dialect.map(|dialect| DialectChoice::Other(Arc::new(dialect))).map_err(|why| format!("{text}: {why}"))
}

/// All dialects with what distinguishes them, one a line, behind what else the flag can have.
pub fn dialects(others: &[(&str, &str)]) -> String {
    let known = dialect::list().map(|dialect| (dialect.name(), dialect.about()));
    let lines: Vec<_> = others.iter().copied().chain(known).collect();
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().map(|(name, about)| format!("{name:width$}  {about}\n")).collect()
}

/// As many further listeners as the acceptor can name beside the main one.
const MAX_FURTHER: usize = 255;

/// The listeners of one value of `--listen`.
#[derive(Debug, Clone)]
struct FurtherListeners(Vec<Listener>);

fn further_listeners(text: &str) -> Result<FurtherListeners, String> {
    let one = |text: &str| {
        let (address, dialect) = match text.split_once(',') {
            None => (text, Some(DialectChoice::Auto)),
            Some((address, rest)) => (address, rest.strip_prefix("dialect=").map(self::dialect).transpose()?),
        };
        let address = address.parse().ok().map(Listen::At);
        let listener = address.zip(dialect).map(|(place, dialect)| Listener { place, dialect });
        listener.ok_or_else(|| {
            "must be IP:PORT, like 127.0.0.1:7000 or [::]:7000, perhaps with ,dialect=NAME behind it".to_owned()
        })
    };
    let parts = text.split([' ', '\t', '\n', ';']).filter(|part| !part.is_empty());
    parts.map(one).collect::<Result<_, _>>().map(FurtherListeners)
}

/// A network, or one address. An IPv4 one written as IPv6 becomes the IPv4 one.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network.map_err(|_| "must be networks like 10.0.0.0/8 or addresses, with commas between")?;
    let inside = |outer: &IpNet| Some((outer.addr().to_canonical(), outer.prefix_len().checked_sub(96)?));
    Ok(match inside(&network) {
        Some((IpAddr::V4(ip), prefix)) if !network.addr().is_ipv4() => {
            Ipv4Net::new(ip, prefix).map_or(network, IpNet::from)
        }
        _ => network,
    })
}

/// The host of a page, as a browser names it: its scheme, its name, and its port unless that is the scheme's own.
fn origin(text: &str) -> Result<String, String> {
    let form = || "must be like https://example.com or http://10.0.0.7:8080, without a path, or *".to_owned();
    let is_host = |host: &str| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ', '*']);
    match text.split_once("://") {
        _ if text == "*" => Ok(text.to_owned()),
        Some(("http" | "https", host)) if is_host(host) => {
            let port = if text.starts_with("https") { ":443" } else { ":80" };
            Ok(text.strip_suffix(port).unwrap_or(text).to_owned())
        }
        _ => Err(form()),
    }
}

/// An address that is not parsed yet, so nothing of it may be printed.
#[derive(Clone)]
struct Unread(String);

impl From<String> for Unread {
    fn from(text: String) -> Unread {
        Unread(text)
    }
}

impl fmt::Debug for Unread {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("…")
    }
}

impl Unread {
    fn store(&self) -> Result<StoreUrl, String> {
        const FORM: &str = "must be sqlite:PATH or mysql://USER:PASSWORD@HOST:PORT/DATABASE";
        self.read("--store <URL>", FORM, |scheme| match scheme {
            // Another kind of address, given by mistake, is not a path: it may contain a password.
            "sqlite" => {
                let path = self.0.trim_start().split_once(':').map_or("", |(_, path)| path);
                if path.is_empty() {
                    Err(FORM.to_owned())
                } else if path.contains("://") || path.starts_with("//") && path.contains('@') {
                    Err("a file has no user and no host: it must be sqlite:PATH".to_owned())
                } else {
                    Ok(StoreUrl::Sqlite(path.into()))
                }
            }
            "mysql" | "mariadb" => Ok(StoreUrl::MySql(url(&self.0, "mysql", FORM)?)),
            _ => Err(FORM.to_owned()),
        })
    }

    fn redis(&self) -> Result<SecretUrl, String> {
        const FORM: &str = "must be redis://[[USER]:PASSWORD@]HOST:PORT[/DATABASE]";
        self.read("--redis <URL>", FORM, |scheme| match scheme {
            "redis" | "valkey" => url(&self.0, "redis", FORM),
            "rediss" | "valkeys" => {
                Err("TLS to Redis is not supported: use redis://, over a private network".to_owned())
            }
            "unix" | "redis+unix" | "valkey+unix" => Err(format!("only TCP is supported: {FORM}")),
            _ => Err(FORM.to_owned()),
        })
    }

    fn read<T>(&self, flag: &str, form: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<T, String> {
        let scheme = scheme(&self.0).map(str::to_ascii_lowercase);
        let result = scheme.map_or_else(|| Err(form.to_owned()), |scheme| read(&scheme));
        result.map_err(|why| format!("invalid value '{}' for '{flag}': {why}", redacted(&self.0)))
    }
}

fn url(text: &str, scheme: &str, form: &str) -> Result<SecretUrl, String> {
    SecretUrl::parse(text, scheme).map_err(|error| match error {
        UrlError::Form => form.to_owned(),
        error => format!("{error}: it {form}"),
    })
}

/// A preset of limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LimitSet {
    Default,
    Internet,
}

impl LimitSet {
    /// A limit as it was given, or else as in this preset.
    fn or<T>(self, given: Option<T>, internet: T, default: T) -> T {
        given.unwrap_or(match self {
            LimitSet::Default => default,
            LimitSet::Internet => internet,
        })
    }
}

/// A number of at least 1, or `off`.
#[derive(Debug, Clone, Copy)]
struct Bound(Option<u32>);

impl Bound {
    fn rate(self) -> Option<NonZeroU32> {
        self.0.and_then(NonZeroU32::new)
    }
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Bound(None));
        }
        match text.parse() {
            Ok(number) if number > 0 => Ok(Bound(Some(number))),
            _ => Err(format!("must be a number from 1 to {}, or off", u32::MAX)),
        }
    }
}

/// The longest time that a flag takes: longer ones make no difference, and the clock cannot overflow.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// A duration, or `off`.
#[derive(Debug, Clone, Copy)]
struct Timeout(Option<Duration>);

impl FromStr for Timeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Timeout(None));
        }
        match humantime::parse_duration(text) {
            Ok(time) if (Duration::from_millis(1)..=LONGEST).contains(&time) => Ok(Timeout(Some(time))),
            _ => Err("must be a time from 1ms to 10years, like 500ms, 90s or 10m, or off".to_owned()),
        }
    }
}

impl fmt::Display for StoreUrl {
    /// Without the password of a MySQL address: this is logged.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            StoreUrl::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            StoreUrl::MySql(url) => write!(f, "{url}"),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Listen::At(address) => write!(f, "{address}"),
            Listen::Everywhere(port) => write!(f, "{}", SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port))),
        }
    }
}

/// Why there is no [`Config`].
#[derive(Debug)]
pub enum Stop {
    /// The help, the version or the list of dialects was asked for: print it, exit status 0.
    Help(String),
    /// One line, exit status 2.
    Usage(String),
}

impl Config {
    /// Reads a command line, the program's name first, and the environment.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Config, Stop> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let is_drop_in = args.first().and_then(|name| Path::new(name).file_name()).is_some_and(|n| n == DROP_IN_NAME);
        let is_given = |flag: &str, variable: &str| {
            let is_flag = |arg: &OsString| arg.to_str().is_some_and(|arg| arg.split('=').next() == Some(flag));
            std::env::var_os(variable).is_some() || args.iter().any(is_flag)
        };
        if is_drop_in && !is_given("--store", "CHAT_STORE") {
            // A command line that names its own store names its own bus, too.
            if !is_given("--redis", "CHAT_REDIS") {
                args.insert(1, format!("--redis={DROP_IN_REDIS}").into());
            }
            args.insert(1, format!("--store={DROP_IN_STORE}").into());
        }
        let is_word = |flag: &str| args.iter().any(|arg| arg.to_string_lossy().split('=').next() == Some(flag));
        let flags = Flags::try_parse_from(&args).map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Help(error.to_string()),
            _ => Stop::Usage(usage(&error, &is_word)),
        })?;
        Config::from_flags(flags, &is_word)
    }

    fn from_flags(flags: Flags, is_word: &dyn Fn(&str) -> bool) -> Result<Config, Stop> {
        let dialect = match flags.dialect {
            DialectFlag::List => return Err(Stop::Help(dialects(&[AUTO]))),
            DialectFlag::Of(dialect) => dialect,
        };
        let place = listen_address(&flags.address).map_err(Stop::Usage)?;
        let mut listeners = vec![Listener { place, dialect }];
        listeners.extend(flags.listen.into_iter().flat_map(|further| further.0));
        if listeners.len() > 1 + MAX_FURTHER {
            return Err(Stop::Usage(format!("--listen takes {MAX_FURTHER} addresses at most")));
        }
        let of = |flag| move |line: String| Stop::Usage(with_origin(line, flag, is_word));
        let store = flags.store.store().map_err(of("--store"))?;
        let redis = flags.redis.as_ref().map(Unread::redis).transpose().map_err(of("--redis"))?;
        let is_mysql = matches!(store, StoreUrl::MySql(_));
        if !is_mysql {
            let only =
                |flag: &str| Stop::Usage(format!("{flag} needs a store that nodes can share: --store mysql://…"));
            if redis.is_some() {
                return Err(only("--redis"));
            }
            if flags.mixed {
                return Err(only("--mixed"));
            }
        }
        let default_charset = if flags.mixed { "gbk" } else { "utf8mb4" };
        let (set, off) = (flags.limits, Bound(None));
        let time = |seconds| Timeout(Some(Duration::from_secs(seconds)));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Config {
            listeners,
            store,
            redis,
            mixed: flags.mixed,
            mysql_charset: flags.mysql_charset.unwrap_or_else(|| default_charset.to_owned()),
            reactors: flags.reactors.map_or(cores.min(256), |n| n as usize),
            workers: flags.workers as usize,
            max_connections: flags.max_connections.map(|n| n as usize),
            max_message: flags.max_message as usize,
            max_message_before_login: flags.max_message_before_login as usize,
            max_connections_per_address: set.or(flags.max_connections_per_address, Bound(Some(50)), off).0,
            max_offline: set.or(flags.max_offline, Bound(Some(1000)), Bound(Some(10_000))).0,
            max_friends: set.or(flags.max_friends, Bound(Some(500)), off).0,
            max_groups: set.or(flags.max_groups, Bound(Some(100)), off).0,
            max_group_size: set.or(flags.max_group_size, Bound(Some(1000)), off).0,
            max_failed_logins: set.or(flags.max_failed_logins, Bound(Some(20)), off).0,
            max_registrations: set.or(flags.max_registrations, Bound(Some(20)), off).0,
            max_message_rate: set.or(flags.max_message_rate, Bound(Some(20)), off).rate(),
            max_byte_rate: set.or(flags.max_byte_rate, Bound(Some(65_536)), off).rate(),
            login_timeout: set.or(flags.login_timeout, time(60), Timeout(None)).0,
            idle_timeout: set.or(flags.idle_timeout, time(15 * 60), Timeout(None)).0,
            high_water: flags.high_water as usize,
            max_buffered: flags.max_buffered as usize,
            password_cost: flags.password_cost,
            login_memo: flags.login_memo,
            legacy_client: flags.legacy_client,
            trace_wire: flags.trace_wire,
            proxies: flags.proxy_protocol,
            web: flags.web,
            web_origins: flags.web_origins,
            metrics: flags.metrics,
            home_seed: flags.home_seed,
            payload: flags.payload,
        })
    }
}

fn listen_address(words: &[String]) -> Result<Listen, String> {
    let shown = |text: &String| if may_hold_secret(text) { redacted(text) } else { text.clone() };
    let ip = |text: &String| text.parse::<IpAddr>().map_err(|_| format!("'{}' is not an IP address", shown(text)));
    let port = |text: &String| text.parse::<u16>().map_err(|_| format!("'{}' is not a port (0 to 65535)", shown(text)));
    Ok(match words {
        [] => Listen::At(SocketAddr::from((Ipv4Addr::LOCALHOST, 6000))),
        [one] => Listen::Everywhere(port(one)?),
        [first, second, ..] => Listen::At(SocketAddr::new(ip(first)?, port(second)?)),
    })
}

/// Clap's message in one line, without anything that may be a password.
fn usage(error: &clap::Error, is_word: &dyn Fn(&str) -> bool) -> String {
    let text = error.to_string();
    // The second line lists the allowed values, if there is such a list.
    let (line, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let allowed = rest.lines().next().map(str::trim).filter(|line| line.starts_with("[possible values"));
    let line = [Some(line), allowed].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let mut line = line.strip_prefix("error: ").unwrap_or(&line).to_owned();
    for (_, value) in error.context() {
        if let ContextValue::String(value) = value
            && may_hold_secret(value)
        {
            line = line.replace(value, &redacted(value));
        }
    }
    let flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) => flag.split(['=', '[', ' ']).next().unwrap_or_default(),
        _ => "",
    };
    with_origin(line, flag, is_word)
}

/// A message about the value of a flag, with the variable that it came from if the flag is not on the
/// command line.
fn with_origin(line: String, flag: &str, is_word: &dyn Fn(&str) -> bool) -> String {
    let long = flag.strip_prefix("--").filter(|_| !is_word(flag));
    let command = Flags::command();
    let arg = command.get_arguments().find(|arg| long.is_some() && arg.get_long() == long);
    match arg.and_then(|arg| arg.get_env()) {
        Some(variable) => format!("{line} (set by {} in the environment)", variable.display()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(line: &str) -> Result<Config, Stop> {
        Config::from_args(line.split_whitespace().map(OsString::from))
    }

    fn usage(line: &str) -> String {
        match config(line) {
            Err(Stop::Usage(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn none_one_or_two_words_say_where_to_listen() {
        let listen = |line: &str| config(line).unwrap().listeners[0].place.to_string();
        assert_eq!(listen("chat-server"), "127.0.0.1:6000");
        assert_eq!(listen("chat-server 7000"), "[::]:7000");
        assert_eq!(listen("chat-server 127.0.0.2 0"), "127.0.0.2:0");
        assert_eq!(listen("chat-server ::1 6000"), "[::1]:6000");
    }

    #[test]
    fn each_listener_has_a_dialect_of_its_own() {
        let of = |args: &[&str]| {
            let line = ["chat-server"].iter().chain(args).map(OsString::from);
            let listeners = Config::from_args(line).unwrap().listeners;
            let shown = listeners.iter().map(|it| format!("{} {}", it.place, it.dialect.name().unwrap_or("auto")));
            shown.collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), ["127.0.0.1:6000 auto"]);
        assert_eq!(of(&["--dialect", "auto", "7000"]), ["[::]:7000 auto"]);
        assert_eq!(of(&["--dialect=canon"]), ["127.0.0.1:6000 canon"]);
        let args = ["127.0.0.1", "0", "--listen", "127.0.0.1:1", "--dialect=b", "--listen=[::1]:2,dialect=canon-999"];
        assert_eq!(of(&args), ["127.0.0.1:0 b", "127.0.0.1:1 auto", "[::1]:2 canon-999"]);
        let several = "127.0.0.1:1,dialect=canon 127.0.0.1:2;\n127.0.0.1:3,dialect=auto; ";
        assert_eq!(of(&["--listen", several])[1..], ["127.0.0.1:1 canon", "127.0.0.1:2 auto", "127.0.0.1:3 auto"]);
        assert_eq!(of(&["--listen", ""]).len(), 1, "a variable that is empty is none");
        let most = "127.0.0.1:1 ".repeat(MAX_FURTHER);
        assert_eq!(of(&["--listen", &most]).len(), 256);
        let line = ["chat-server", "--listen", &most, "--listen", "127.0.0.1:1"].map(OsString::from);
        assert!(matches!(Config::from_args(line), Err(Stop::Usage(text)) if text.contains("255")));
    }

    #[test]
    fn a_dialect_may_stand_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        let path = path.to_str().unwrap();
        let write = |text: &str| std::fs::write(path, text).unwrap();
        write("like = \"b\"\n[numbers]\nlogin = 77\n");
        for flag in ["--dialect=", "--listen=127.0.0.1:1,dialect="] {
            let listeners = config(&format!("chat-server {flag}{path}")).unwrap().listeners;
            let DialectChoice::Other(dialect) = &listeners.last().unwrap().dialect else { panic!("{listeners:?}") };
            let number = |verb| dialect.number(verb);
            let numbers = (number(dialect::Verb::Login), number(dialect::Verb::Register));
            assert_eq!((dialect.name(), numbers), ("mine", (Some(77), Some(3))));
        }
        for (text, why) in [
            ("[numbers]\nlogin = \"one\"\n", "line 2: "),
            ("\n\nlike = \"nobody\"\n", "line 3: "),
            ("about = \"\"\nreader = 1\n", "line 2: "),
            ("[numbers]\nlogin = 3\n", "line 2: "),
        ] {
            write(text);
            for flag in ["--dialect=", "--listen=127.0.0.1:1,dialect="] {
                let line = usage(&format!("chat-server {flag}{path}"));
                assert!(line.contains(&format!("{path}: {why}")) && line.lines().count() == 1, "{text}: {line}");
            }
        }
        for (missing, why) in [("nowhere/at.toml", "No such file"), ("./", "directory")] {
            let line = usage(&format!("chat-server --dialect {missing}"));
            assert!(line.contains(&format!("{missing}: ")) && line.contains(why), "{line}");
        }
    }

    #[test]
    fn an_unknown_dialect_is_refused_with_the_names_of_all_and_they_can_be_listed() {
        let line = usage("chat-server --dialect nobody");
        for dialect in dialect::list() {
            assert!(line.contains(&format!(" {}", dialect.name())), "{line}");
        }
        let Err(Stop::Help(list)) = config("chat-server --dialect list") else { panic!("no list") };
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 1 + dialect::list().count());
        let column = lines[0].find("found out").unwrap();
        for (line, dialect) in lines[1..].iter().zip(dialect::list()) {
            assert_eq!(line[..column].trim_end(), dialect.name());
            assert_eq!(&line[column..], dialect.about());
        }
        assert!(DialectChoice::named("list").is_none(), "the flag means all of them");
    }

    #[test]
    fn a_bad_value_is_one_line_that_names_it() {
        for (line, word) in [
            ("chat-server 127.0.0.1 70000", "70000"),
            ("chat-server localhost 6000", "localhost"),
            ("chat-server 1 2 3", "3"),
            ("chat-server --reactors 0", "--reactors"),
            ("chat-server --store redis:x", "--store"),
            ("chat-server --password-cost x", "--password-cost"),
            ("chat-server --login-timeout soon", "--login-timeout"),
            ("chat-server --high-water 1", "--high-water"),
            ("chat-server --max-connections -1", "--max-connections"),
            ("chat-server --proxy-protocol nginx", "--proxy-protocol"),
            ("chat-server --proxy-protocol 10.0.0.0/8,10.0.0.0/33", "10.0.0.0/33"),
            ("chat-server --redis redis://127.0.0.1:6379", "--redis"),
            ("chat-server --mixed", "--mixed"),
            ("chat-server --limits none", "--limits"),
            ("chat-server --max-connections-per-address 0", "--max-connections-per-address"),
            ("chat-server --max-connections-per-address -1", "--max-connections-per-address"),
            ("chat-server --metrics 9100", "--metrics"),
            ("chat-server --web perhaps", "--web"),
            ("chat-server --web-origins example.com", "--web-origins"),
            ("chat-server --web-origins https://a.example,https://b.example/", "without a path"),
            ("chat-server --dialect nobody", "--dialect"),
            ("chat-server --listen 7000", "--listen"),
            ("chat-server --listen 127.0.0.1:7000,b", "dialect="),
            ("chat-server --listen 127.0.0.1:7000,dialect=nobody", "canon"),
            ("chat-server --colour", "--colour"),
        ] {
            let text = usage(line);
            assert!(text.contains(word) && text.lines().count() == 1, "{line}: {text}");
        }
    }

    #[test]
    fn under_the_cpp_servers_name_its_database_is_the_default() {
        let of = |line: &str| config(line).map(|config| (config.store, config.redis)).unwrap();
        let redis = |text: &str| Some(SecretUrl::parse(text, "redis").unwrap());
        let mysql = StoreUrl::MySql(SecretUrl::parse(DROP_IN_STORE, "mysql").unwrap());
        assert_eq!(of("/usr/bin/ChatServer 127.0.0.1 6000"), (mysql.clone(), redis(DROP_IN_REDIS)));
        assert_eq!(of("ChatServer --redis redis://h:1"), (mysql, redis("redis://h:1")));
        assert_eq!(of("ChatServer --store sqlite:a.db"), (StoreUrl::Sqlite("a.db".into()), None));
        assert_eq!(of("chat-server"), (StoreUrl::Sqlite("chat.db".into()), None));
    }

    #[test]
    fn a_limit_is_as_given_or_else_as_its_set_has_it() {
        let of = |line: &str| {
            let config = config(line).unwrap();
            (config.max_connections_per_address, config.login_timeout.map(|time| time.as_secs()))
        };
        assert_eq!(of("chat-server"), (None, None));
        assert_eq!(of("chat-server --limits internet"), (Some(50), Some(60)));
        let line = "chat-server --limits internet --max-connections-per-address off --login-timeout 5s";
        assert_eq!(of(line), (None, Some(5)));
        assert_eq!(of("chat-server --max-connections-per-address 7"), (Some(7), None));
    }

    #[test]
    fn times_may_be_off() {
        let config = config("chat-server --login-timeout off --idle-timeout 90s").unwrap();
        assert_eq!((config.login_timeout, config.idle_timeout), (None, Some(Duration::from_secs(90))));
    }

    #[test]
    fn a_switch_is_on_by_its_name_and_off_by_its_word() {
        let of = |line: &str| {
            let config = config(line).unwrap();
            (config.legacy_client, config.login_memo, config.trace_wire)
        };
        assert_eq!(of("chat-server"), (false, true, false));
        assert_eq!(of("chat-server --legacy-client --login-memo off --trace-wire on 6000"), (true, false, true));
        assert_eq!(of("chat-server --legacy-client=No --login-memo=1"), (false, true, false));
    }

    #[test]
    fn browsers_are_served_unless_they_are_not_to_be() {
        let of = |line: &str| {
            let config = config(line).unwrap();
            (config.web, config.web_origins)
        };
        assert_eq!(of("chat-server"), (true, Vec::new()));
        assert!(!of("chat-server --web off").0);
        let origins = of("chat-server --web-origins https://a.example:443,http://a.example:8080,http://[::1]:80").1;
        assert_eq!(origins, ["https://a.example", "http://a.example:8080", "http://[::1]"]);
        assert_eq!(of("chat-server --web-origins=*").1, ["*"]);
    }

    #[test]
    fn proxies_are_networks_or_addresses() {
        let proxies = |line: &str| -> Vec<String> {
            config(line).unwrap().proxies.iter().map(|network| network.to_string()).collect()
        };
        assert!(proxies("chat-server").is_empty());
        let line = "chat-server --proxy-protocol 127.0.0.1,10.0.0.0/8,::1 6000";
        assert_eq!(proxies(line), ["127.0.0.1/32", "10.0.0.0/8", "::1/128"]);
        let line = "chat-server --proxy-protocol ::ffff:10.1.2.3,::ffff:10.0.0.0/104,::/0,::ffff:0:0/90";
        assert_eq!(proxies(line), ["10.1.2.3/32", "10.0.0.0/8", "::/0", "::ffff:0.0.0.0/90"]);
    }
}
