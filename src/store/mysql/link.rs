//! A connection to the database: how it is made, kept, lost and made again.

use std::error::Error as _;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mysql::prelude::{FromValue, Protocol, Queryable};
use mysql::{Conn, Opts, OptsBuilder, Params, QueryResult, Row};

use crate::store::StoreError;

/// How long the database may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long it may stay silent within an answer, or take none of our bytes.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a statement may wait for a row that another transaction has locked, in seconds: less than
/// [`SILENCE`], so that a long wait differs from a dead database.
const LOCK_WAIT: u32 = 3;
/// How long no worker tries again after a failed attempt to connect.
const BACK_OFF: Duration = Duration::from_millis(500);
/// A deadlock or a locked row is tried again until this much time has passed.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a connection may lie idle outside of a transaction, in seconds.
const IDLE: u64 = 28_800;
/// How long it may take the database to end a connection that was lost, before it counts as away.
const END: Duration = Duration::from_secs(3);
/// The protocol's own limit, in bytes.
const MAX_PACKET: usize = 1 << 30;
/// How often a connection begins anew whose time was over at once.
const TRIES: u32 = 10;
/// The pieces of SQL in use, so that none of them is prepared twice.
pub(super) const STATEMENTS: usize = 64;

/// The server's error codes that say something about what to do.
pub(super) mod code {
    pub const DUPLICATE: u16 = 1062;
    pub const LOCK_WAIT: u16 = 1205;
    pub const DEADLOCK: u16 = 1213;
    /// A row has changed since the snapshot.
    pub const CHANGED: u16 = 1020;
    /// Shutting down, interrupted, killed, or idle for too long: the connection is of no more use. Nor is one to
    /// a server that takes no writes (any more): another may stand at its address by now.
    pub const GONE: [u16; 9] = [1053, 1317, 1927, 4031, 1047, 1290, 1792, 1836, 1874];
    /// MariaDB's `max_statement_time` is over.
    pub const TIME_IS_OVER: u16 = 1969;
}

/// Why something could not be done, and so whether to try again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// A deadlock, or a row that stayed locked. Nothing is done.
    #[error("{0}")]
    Conflict(String),
    /// The connection is lost before a COMMIT: nothing is done.
    #[error("{0}")]
    Lost(String),
    /// There was no answer to a COMMIT: it may be done, or be done yet.
    #[error("no answer to a COMMIT: {0}")]
    InDoubt(String),
    /// It would be so again.
    #[error("{0}")]
    Refused(String),
    /// The database cannot be reached.
    #[error("{0}")]
    Away(String),
    /// Other nodes have taken this one for dead.
    #[error("this node was taken for dead")]
    Marked,
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Marked => StoreError::Marked,
            // The caller knows which write, and sets its key.
            failure @ Failure::InDoubt(_) => StoreError::InDoubt { key: 0, why: failure.to_string().into() },
            failure => StoreError::Unavailable(failure.to_string()),
        }
    }
}

impl From<mysql::Error> for Failure {
    fn from(error: mysql::Error) -> Self {
        let text = plain(&error);
        match error {
            mysql::Error::MySqlError(refusal) => match refusal.code {
                code::DEADLOCK | code::LOCK_WAIT | code::CHANGED => Failure::Conflict(text),
                gone if code::GONE.contains(&gone) => Failure::Lost(text),
                _ => Failure::Refused(text),
            },
            _ => Failure::Lost(text),
        }
    }
}

/// An error as a person reads it.
pub(super) fn plain(error: &mysql::Error) -> String {
    let io_error = match error {
        mysql::Error::IoError(error) => Some(error),
        mysql::Error::CodecError(error) => error.source().and_then(|source| source.downcast_ref()),
        _ => None,
    };
    match (error, io_error) {
        (mysql::Error::MySqlError(refusal), _) => format!("{} (error {})", refusal.message, refusal.code),
        (mysql::Error::DriverError(mysql::DriverError::CouldNotConnect(Some((_, problem, _)))), _) => problem.clone(),
        (mysql::Error::DriverError(error), _) => error.to_string(),
        (_, Some(error)) if is_timeout(error) => format!("no answer within {} s", SILENCE.as_secs()),
        (_, Some(error)) => error.to_string(),
        _ => error.to_string(),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Whether the statement was refused because its key is there already.
pub(super) fn is_duplicate(error: &mysql::Error) -> bool {
    matches!(error, mysql::Error::MySqlError(refusal) if refusal.code == code::DUPLICATE)
}

/// What is wrong with an address. What it gives a parameter is not shown, since it may be a password.
pub(super) fn url_error(error: &mysql::UrlError) -> String {
    match error {
        mysql::UrlError::ParseError(error) => error.to_string(),
        mysql::UrlError::InvalidValue(parameter, _) => {
            format!("the parameter '{parameter}' has no value that it can have")
        }
        error => error.to_string(),
    }
}

/// The address with all that every connection has in common.
pub(super) fn options(address: Opts) -> OptsBuilder {
    OptsBuilder::from_opts(address)
        .prefer_socket(false)
        .tcp_nodelay(true)
        .tcp_connect_timeout(Some(CONNECT))
        .read_timeout(Some(SILENCE))
        .write_timeout(Some(SILENCE))
        .stmt_cache_size(STATEMENTS)
        // Or the driver asks for the database's own limit, in a round trip of its own.
        .max_allowed_packet(Some(MAX_PACKET))
}

/// A name as part of a statement.
pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// An open connection, and what of the server's settings matters.
pub(super) struct Session {
    pub conn: Conn,
    /// A lock of the server by which others know whether the connection is still there, once it is lost.
    name: Name,
    /// How far apart the ids of rows are that one statement inserts: 1, or the number of masters.
    pub id_step: u64,
    /// The largest packet the server takes, in bytes.
    pub max_packet: usize,
    /// The server is MySQL, whose `wait_timeout` is the only limit to how long a transaction may lie idle.
    is_mysql: bool,
}

/// All that the database's own settings, or a command that it runs for each connection, could change about
/// what our statements do, return or refuse; except for the names, which are known to MariaDB and MySQL
/// alike where they stand in no comment.
///
/// - Strict: what does not fit is an error, not cut off. And whatever the handshake said, text is UTF-8.
/// - A statement waits for a lock for less than [`SILENCE`], and has no other limit: of time, rows or memory.
/// - A node that is stopped, or whose machine lost power, holds no lock for longer than [`SILENCE`]: neither
///   between the statements of a transaction, nor in the middle of a statement or of its rows. What MySQL has for
///   the first is in [`Session::begin`].
/// - MariaDB is not to make a subquery of a long list, which would lock its rows in another order.
const SETTINGS: &str = "
    SET NAMES utf8mb4 COLLATE utf8mb4_general_ci, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',
        autocommit = 1, completion_type = 0, foreign_key_checks = 1, unique_checks = 1, sql_auto_is_null = 0,
        sql_safe_updates = 0, sql_big_selects = 1, sql_select_limit = 18446744073709551615, max_sort_length = 1024,
        innodb_lock_wait_timeout = LOCK_WAIT, lock_wait_timeout = LOCK_WAIT,
        wait_timeout = IDLE, net_read_timeout = SILENCE, net_write_timeout = SILENCE
        /*M!100307 , old_mode = '', check_constraint_checks = 1, alter_algorithm = 'DEFAULT',
            idle_transaction_timeout = SILENCE, idle_write_transaction_timeout = SILENCE,
            idle_readonly_transaction_timeout = SILENCE, system_versioning_alter_history = 'KEEP',
            tmp_disk_table_size = 18446744073709551615, max_session_mem_used = 9223372036854775807 */
        /*M!100500 , in_predicate_conversion_threshold = 0 */
        /*!80000 , max_execution_time = 0, range_optimizer_max_mem_size = 0 */;
    SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE;
    SELECT @@auto_increment_increment, @@max_allowed_packet, VERSION() NOT LIKE '%MariaDB%'";

/// The lock of a session: another one for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name(u64);

impl Name {
    fn new() -> mysql::Result<Name> {
        let random = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Name(random))
    }

    fn quoted(self) -> String {
        format!("'chat-server connection {:016x}'", self.0)
    }

    /// An expression: the ids of the connections that are still there, separated by commas.
    fn held(names: &[Name]) -> String {
        let ids = names.iter().map(|name| format!(", IS_USED_LOCK({})", name.quoted()));
        format!("CONCAT_WS(','{}, NULL)", ids.collect::<String>())
    }
}

impl Session {
    /// Connects, and sets all that our statements depend on.
    pub fn open(opts: Opts) -> mysql::Result<Session> {
        Session::open_after(opts, &[]).map(|(session, _)| session)
    }

    /// The same, and whether some of the connections that were `lost` are still there.
    fn open_after(opts: Opts, lost: &[Name]) -> mysql::Result<(Session, bool)> {
        let name = Name::new()?;
        let limits = [("LOCK_WAIT", u64::from(LOCK_WAIT)), ("SILENCE", SILENCE.as_secs()), ("IDLE", IDLE)];
        let settings = limits
            .iter()
            .fold(SETTINGS.to_owned(), |sql, (name, n)| sql.replace(&format!("= {name}"), &format!("= {n}")));
        // A command for each connection may have begun something, or gone elsewhere.
        let place = opts.get_db_name().map_or_else(String::new, |name| format!("USE {};", quoted(name)));
        let mut conn = Conn::new(opts)?;
        let begin = format!(
            "ROLLBACK AND NO CHAIN NO RELEASE; UNLOCK TABLES; {place} {settings}, {}, GET_LOCK({}, 0)",
            Name::held(lost),
            name.quoted()
        );
        // MariaDB's limit of time is lifted alone: where it strikes between two statements of one request, MariaDB
        // reports no error, and the rest is waited for in vain. It may strike before it is lifted.
        let mut tries = 1;
        while let Err(error) = conn.query_drop("SET autocommit = 1 /*M!100307 , max_statement_time = 0 */") {
            match error {
                mysql::Error::MySqlError(refusal) if refusal.code == code::TIME_IS_OVER && tries < TRIES => tries += 1,
                error => return Err(error),
            }
        }
        let row = last_row(&mut conn, &begin)?;
        let setting = |index| row.as_ref().and_then(|row| row.get_opt::<u64, _>(index)?.ok());
        let (id_step, max_packet) = (setting(0).unwrap_or(1), setting(1).unwrap_or(1 << 20));
        let max_packet = usize::try_from(max_packet).unwrap_or(usize::MAX);
        let held: String = row.as_ref().and_then(|row| row.get_opt(3)?.ok()).unwrap_or_default();
        Ok((Session { conn, name, id_step, max_packet, is_mysql: setting(2) == Some(1) }, !held.is_empty()))
    }

    /// Has the database end connections that were lost, and waits until they are gone: with all that they had
    /// begun, done or undone.
    fn end(&mut self, lost: &[Name]) -> Result<(), Failure> {
        let (begun, mut killed, mut pause) = (Instant::now(), false, Duration::from_millis(1));
        loop {
            let held: Option<Option<String>> = self.conn.query_first(format!("SELECT {}", Name::held(lost)))?;
            let held = held.flatten().unwrap_or_default();
            if held.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > END {
                return Err(Failure::Away(format!("the database has not ended a connection that was lost ({held})")));
            }
            if !killed {
                killed = true;
                for id in held.split(',') {
                    // It may have ended a moment ago.
                    match self.conn.query_drop(format!("KILL CONNECTION {id}")) {
                        Ok(()) | Err(mysql::Error::MySqlError(_)) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Begins a transaction and does its first statements, in one round trip. All of their rows, each with the
    /// number of its statement.
    pub fn begin<T>(
        &mut self,
        first: &str,
        mut read: impl FnMut(usize, &mut Row) -> Result<T, Failure>,
    ) -> Result<Vec<T>, Failure> {
        match self.is_mysql {
            true => {
                let limit = format!("SET SESSION wait_timeout = {}", SILENCE.as_secs());
                self.several(&format!("{limit}; START TRANSACTION{first}"), |statement, row| read(statement - 2, row))
            }
            false => self.several(&format!("START TRANSACTION{first}"), |statement, row| read(statement - 1, row)),
        }
    }

    /// All rows of several statements, each with the number of its statement, from 0.
    pub fn several<T>(
        &mut self,
        statements: &str,
        mut read: impl FnMut(usize, &mut Row) -> Result<T, Failure>,
    ) -> Result<Vec<T>, Failure> {
        let mut results = self.conn.query_iter(statements)?;
        let (mut found, mut statement) = (Vec::new(), 0);
        while let Some(rows) = results.iter() {
            for row in rows {
                found.push(read(statement, &mut row?)?);
            }
            statement += 1;
        }
        Ok(found)
    }

    /// Commits, and runs a statement after that, in one round trip. Returns the rows of that statement.
    ///
    /// # Errors
    /// [`Failure::Conflict`] is the database's word that nothing is done. Anything else is in doubt.
    pub fn commit<T>(
        &mut self,
        behind: &str,
        mut read: impl FnMut(&mut Row) -> Result<T, Failure>,
    ) -> Result<Vec<T>, Failure> {
        let limit = if self.is_mysql { format!("; SET SESSION wait_timeout = {IDLE}") } else { String::new() };
        let doubt = |failure: Failure| Failure::InDoubt(failure.to_string());
        let mut results =
            self.conn.query_iter(format!("COMMIT{behind}{limit}")).map_err(|error| match Failure::from(error) {
                conflict @ Failure::Conflict(_) => conflict,
                other => doubt(other),
            })?;
        let mut found = Vec::new();
        while let Some(rows) = results.iter() {
            for row in rows {
                let row = row.map_err(Failure::from).and_then(|mut row| read(&mut row));
                found.push(row.map_err(doubt)?);
            }
        }
        Ok(found)
    }

    /// Does a prepared statement that answers with no rows; how many rows it has changed.
    pub fn execute(&mut self, sql: &str, params: impl Into<Params>) -> mysql::Result<u64> {
        self.conn.exec_drop(sql, params)?;
        Ok(self.conn.affected_rows())
    }

    /// All rows of a prepared statement.
    pub fn list<T>(
        &mut self,
        sql: &str,
        params: impl Into<Params>,
        read: impl FnMut(&mut Row) -> Result<T, Failure>,
    ) -> Result<Vec<T>, Failure> {
        rows(self.conn.exec_iter(sql, params)?, read)
    }

    /// All rows of a statement that is sent as text: for those that bear a list of numbers.
    pub fn list_text<T>(
        &mut self,
        sql: &str,
        read: impl FnMut(&mut Row) -> Result<T, Failure>,
    ) -> Result<Vec<T>, Failure> {
        rows(self.conn.query_iter(sql)?, read)
    }

    /// The first row, if there is any.
    pub fn find<T>(
        &mut self,
        sql: &str,
        params: impl Into<Params>,
        read: impl FnMut(&mut Row) -> Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        Ok(self.list(sql, params, read)?.into_iter().next())
    }
}

/// The last row of several statements.
fn last_row(conn: &mut Conn, statements: &str) -> mysql::Result<Option<Row>> {
    let mut row = None;
    let mut results = conn.query_iter(statements)?;
    while let Some(result) = results.iter() {
        for found in result {
            row = Some(found?);
        }
    }
    Ok(row)
}

fn rows<T>(
    result: QueryResult<'_, '_, '_, impl Protocol>,
    mut read: impl FnMut(&mut Row) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    result.map(|row| read(&mut row?)).collect()
}

/// One column of a row.
pub(super) fn column<T: FromValue>(row: &mut Row, index: usize) -> Result<T, Failure> {
    match row.take_opt(index) {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(Failure::Refused(format!("column {index}: {error}"))),
        None => Err(Failure::Refused(format!("column {index} is missing"))),
    }
}

/// Whether the database can be reached, as all workers know it.
///
/// While it is away one of them at a time tries to connect, and no more often than each
/// [`BACK_OFF`]; the others get an error at once, instead of waiting for a time-out each.
///
/// A connection that gave no answer may still be at work, or begin to be when the database or the network goes on:
/// its last request would then be done after what was done since, such as a claim after its
/// release. So before any worker does anything else, the database has to end that connection.
pub(super) struct Gate {
    pub opts: Opts,
    outage: Mutex<Option<Outage>>,
    lost: Mutex<Vec<Name>>,
    /// There are some of them.
    has_lost: AtomicBool,
}

struct Outage {
    since: Instant,
    tried: Instant,
    /// A worker is trying at this moment.
    trying: bool,
    error: String,
}

impl Gate {
    pub fn new(opts: Opts) -> Self {
        Gate { opts, outage: Mutex::new(None), lost: Mutex::default(), has_lost: AtomicBool::new(false) }
    }

    fn lost(&self) -> MutexGuard<'_, Vec<Name>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, session: &Session) {
        self.lost().push(session.name);
        self.has_lost.store(true, Ordering::SeqCst);
    }

    fn ended(&self, names: &[Name]) {
        let mut lost = self.lost();
        lost.retain(|name| !names.contains(name));
        self.has_lost.store(!lost.is_empty(), Ordering::SeqCst);
    }

    /// Has all connections ended that were lost.
    fn end_lost(&self, session: &mut Session) -> Result<(), Failure> {
        if !self.has_lost.load(Ordering::SeqCst) {
            return Ok(());
        }
        let lost = self.lost().clone();
        session.end(&lost)?;
        self.ended(&lost);
        Ok(())
    }

    fn outage(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> Result<Session, Failure> {
        if let Some(outage) = self.outage().as_mut() {
            if outage.trying || outage.tried.elapsed() < BACK_OFF {
                return Err(Failure::Away(outage.error.clone()));
            }
            outage.trying = true;
        }
        let lost = self.lost().clone();
        let result = Session::open_after(self.opts.clone(), &lost);
        let mut outage = self.outage();
        match result {
            Ok((session, some_left)) => {
                if !some_left {
                    self.ended(&lost);
                }
                if let Some(outage) = outage.take() {
                    log::info!("the database is back after {:.1} s", outage.since.elapsed().as_secs_f32());
                }
                Ok(session)
            }
            Err(error) => {
                let (now, error) = (Instant::now(), format!("cannot connect to the database: {}", plain(&error)));
                if outage.is_none() {
                    log::warn!("{error}");
                }
                let since = outage.as_ref().map_or(now, |outage| outage.since);
                *outage = Some(Outage { since, tried: now, trying: false, error: error.clone() });
                Err(Failure::Away(error))
            }
        }
    }
}

/// One worker's session: opened when first used, and again after a failure.
#[derive(Default)]
pub(super) struct Link(Option<Session>);

impl From<Session> for Link {
    fn from(session: Session) -> Self {
        Link(Some(session))
    }
}

impl Link {
    /// Does `work`, and does it again where that can help: after a deadlock or a long wait for a
    /// lock, and once after the connection was lost. Its second argument says that an earlier try
    /// may have been committed.
    ///
    /// `work` may leave a transaction open when it fails.
    pub fn run<T>(
        &mut self,
        gate: &Gate,
        mut work: impl FnMut(&mut Session, bool) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        let (mut lost, mut in_doubt) = (false, false);
        loop {
            let mut session = match self.0.take() {
                Some(session) => session,
                None => match gate.connect() {
                    Err(failure) if in_doubt => return Err(Failure::InDoubt(failure.to_string())),
                    session => session?,
                },
            };
            let failure = match gate.end_lost(&mut session).and_then(|()| work(&mut session, in_doubt)) {
                Ok(value) => {
                    self.0 = Some(session);
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            match &failure {
                Failure::Conflict(_) | Failure::Refused(_) | Failure::Marked => {
                    // What was refused, or has waited for too long, leaves the transaction open.
                    match session.conn.query_drop("ROLLBACK") {
                        Ok(()) => self.0 = Some(session),
                        Err(_) => gate.lose(&session),
                    }
                    if matches!(failure, Failure::Conflict(_)) && begun.elapsed() < PATIENCE {
                        log::debug!("once more: {failure}");
                        continue;
                    }
                }
                Failure::Lost(_) | Failure::InDoubt(_) if !lost => {
                    gate.lose(&session);
                    lost = true;
                    in_doubt |= matches!(failure, Failure::InDoubt(_));
                    log::debug!("once more, on a new connection: {failure}");
                    continue;
                }
                Failure::Lost(_) | Failure::InDoubt(_) => gate.lose(&session),
                // This one is sound.
                Failure::Away(_) => self.0 = Some(session),
            }
            return Err(match failure {
                Failure::Conflict(why) | Failure::Lost(why) | Failure::Away(why) if in_doubt => Failure::InDoubt(why),
                failure => failure,
            });
        }
    }
}
