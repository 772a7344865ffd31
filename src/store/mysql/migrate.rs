//! The database as it is found, and what brings it up to date.
//!
//! There is no version number: C++ servers know of none, and every copy of theirs has made its own
//! tables. So at each start the tables are looked at, and what is not as `schema.sql` has it, as far
//! as that matters, is altered: one ALTER TABLE for each, which is done whole or not at all. Where
//! nothing is amiss nothing is done. Tables and columns keep their names, and visible columns their
//! order: C++ servers go on as before.
//!
//! **Text** is converted by its label: a latin1 column becomes the same characters in utf8mb4. If
//! the label was true, that is right. If it was not (a C++ server said nothing of its charset, and
//! each byte of its UTF-8 went into latin1 columns as a Latin letter), then the label is what that server
//! still says, and the database goes on converting to it: it gets back the bytes it wrote, for
//! utf8mb4 has every character of every charset. We get them too, if told by
//! [`Options::charset`](super::Options::charset) what it says. What was lost when it was written (a
//! Chinese character of GBK in a latin1 column) stays lost.

use mysql::prelude::Queryable;
use mysql::{Opts, OptsBuilder};

use super::link::{self, Failure, STATEMENTS, Session, column, quoted};

const SCHEMA: &str = include_str!("../../../schema.sql");
const CHARSET: &str = "utf8mb4";
/// The collation of `schema.sql`.
const COLLATION: &str = "utf8mb4_unicode_520_ci";
/// The collation of names, which distinguishes all of them except exact doubles: `namekey` decides which are the same.
const NAME_COLLATION: &str = "utf8mb4_bin";
/// How long an ALTER TABLE may take: that of a large table takes its time.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3600);
/// How long to wait for another node that is altering the tables, in seconds.
const WAIT: u32 = 600;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}; it must be mysql://USER:PASSWORD@HOST:PORT/DATABASE")]
    Url(String),
    #[error("cannot reach the database at {address}: {problem}; is it running, and is that its address?")]
    Unreachable { address: String, problem: String },
    #[error(
        "{address} does not let {user} in: {problem}; is the password right, and may it log in over TCP, without TLS? \
         (GRANT ALL ON `{database}`.* TO '{user}'@'…' IDENTIFIED BY '…')"
    )]
    Denied { address: String, user: String, database: String, problem: String },
    #[error(
        "{address} has no database {database} that {user} may use, and does not let it make one: {problem}; \
         let an administrator do: CREATE DATABASE `{database}`; GRANT ALL ON `{database}`.* TO '{user}'@'…'"
    )]
    NoDatabase { address: String, user: String, database: String, problem: String },
    #[error("this is version {0}, which has no invisible columns; it takes MariaDB 10.3 or MySQL 8.0.23")]
    TooOld(String),
    #[error("the database knows no charset {0:?}")]
    Charset(String),
    #[error("{table} is no table of a chat server: {problem}")]
    Foreign { table: String, problem: String },
    #[error("cannot bring the tables up to date: {step}: {problem} (the statement was: {sql})")]
    Migration { step: String, sql: String, problem: String },
    #[error("another server has been altering the tables for {WAIT} s; try again when it is done")]
    Locked,
    #[error("the database at {address} cannot be used as it is set up: {problem}; {remedy}")]
    Unusable { address: String, problem: String, remedy: String },
    #[error(
        "the database {database} at {address} is in use by {by}; servers that share a database need the same \
         --redis, and one that has just crashed lets go of it within 6 s"
    )]
    InUse { address: String, database: String, by: String },
    #[error("the database: {0}")]
    Database(String),
}

/// What an administrator can do about a refusal that would come again and again.
fn remedy(refusal: &mysql::MySqlError) -> Option<&'static str> {
    Some(match refusal.code {
        1040 | 1203 | 1226 => "raise max_connections, or the limits of its user",
        1286 | 1290 if refusal.code == 1286 || refusal.message.contains("ENGINE") => {
            "let it make InnoDB tables: enable InnoDB, and set enforce_storage_engine to NULL"
        }
        1036 | 1290 | 1792 | 1836 | 1874 => {
            "it takes no writes: set read_only (innodb_read_only, innodb_force_recovery) to 0, or give the address of \
             the server that takes them"
        }
        1461 => "set max_prepared_stmt_count to 16382",
        1598 | 1665 => {
            "set binlog_format to ROW or MIXED (SET GLOBAL binlog_format = 'ROW', and in its configuration), since \
             transactions here are READ COMMITTED"
        }
        1142 | 1143 | 1044 => "let its user read and write all tables: GRANT ALL ON DATABASE.* TO USER",
        3159 => "set require_secure_transport to OFF: it is reached without TLS",
        _ => return None,
    })
}

/// A refusal at the start, by what is to be done about it.
fn refused(address: &Opts, error: &mysql::Error) -> OpenError {
    let problem = link::plain(error);
    match error {
        mysql::Error::MySqlError(refusal) => match remedy(refusal) {
            Some(remedy) => OpenError::Unusable { address: place(address), problem, remedy: remedy.to_owned() },
            None => OpenError::Database(problem),
        },
        _ => OpenError::Database(problem),
    }
}

/// Where it is, as the user has given it, without what is secret.
pub(super) fn place(address: &Opts) -> String {
    format!("{}:{}", address.get_ip_or_hostname(), address.get_tcp_port())
}

/// Its name.
pub(super) fn database(address: &Opts) -> String {
    address.get_db_name().unwrap_or_default().to_owned()
}

impl From<mysql::Error> for OpenError {
    fn from(error: mysql::Error) -> Self {
        OpenError::Database(link::plain(&error))
    }
}

impl From<Failure> for OpenError {
    fn from(failure: Failure) -> Self {
        OpenError::Database(failure.to_string())
    }
}

/// What the tables are called, and the column that numbers the messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub user: String,
    pub friend: String,
    pub all_group: String,
    pub group_user: String,
    pub offline_message: String,
    pub message_row: String,
    pub node_mark: String,
    pub node_looks: String,
}

/// Makes the database what it has to be.
pub(super) fn bring_up_to_date(session: &mut Session, address: &Opts, charset: &str) -> Result<Layout, OpenError> {
    check_settings(session, address)?;
    check_version(session)?;
    check_charset(session, charset)?;
    let mut plan = Plan::of(session)?;
    if !plan.steps.is_empty() {
        plan = carry_out(address)?;
    }
    check_writes(session, address, &plan.layout)?;
    for warning in &plan.warnings {
        log::warn!("{warning}");
    }
    Ok(plan.layout)
}

/// The least of the database's `max_allowed_packet` in which every statement fits, but for messages.
const LEAST_PACKET: usize = 32 << 10;

/// Looks at what only the database's configuration can say.
fn check_settings(session: &mut Session, address: &Opts) -> Result<(), OpenError> {
    let unusable = |problem: String, remedy: String| OpenError::Unusable { address: place(address), problem, remedy };
    if session.max_packet < LEAST_PACKET {
        let problem = format!("its max_allowed_packet is {} bytes", session.max_packet);
        return Err(unusable(problem, "set it to 16M".to_owned()));
    }
    let (statements, flush): (u64, u64) = session
        .list_text("SELECT @@max_prepared_stmt_count, @@innodb_flush_log_at_trx_commit", |row| {
            Ok((column(row, 0)?, column(row, 1)?))
        })?
        .first()
        .copied()
        .unwrap_or((u64::MAX, 1));
    if statements < STATEMENTS as u64 {
        let problem = format!("its max_prepared_stmt_count is {statements}");
        return Err(unusable(problem, "set it to 16382".to_owned()));
    }
    if flush != 1 {
        log::warn!(
            "innodb_flush_log_at_trx_commit of the database is {flush}: it says that something is stored before it is \
             on disk, and what was stored in its last second may be lost with it; 1 is safe"
        );
    }
    Ok(())
}

/// Does every kind of write to every table, to no row. What is refused now is refused for ever: a binary log
/// that does not accept it, a database that is read-only, a user without the right to do it.
fn check_writes(session: &mut Session, address: &Opts, layout: &Layout) -> Result<(), OpenError> {
    let Layout { user, friend, all_group, group_user, offline_message, node_mark, node_looks, .. } = layout;
    let tables = [
        (user, "name, password, state"),
        (friend, "userid, friendid"),
        (all_group, "groupname, groupdesc"),
        (group_user, "groupid, userid, grouprole"),
        (offline_message, "userid, message, once"),
        (node_mark, "node, marked"),
        (node_looks, "node, looks"),
    ];
    for (table, columns) in tables {
        let table = quoted(table);
        let insert = format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM {table} WHERE 1 = 0");
        session.conn.query_drop(insert).map_err(|error| refused(address, &error))?;
    }
    for (table, columns) in [
        (user, "password = password, state = state, node = node, epoch = epoch, dialect = dialect"),
        (node_mark, "marked = marked"),
        (node_looks, "looks = looks"),
    ] {
        let update = format!("UPDATE {} SET {columns} WHERE 1 = 0", quoted(table));
        session.conn.query_drop(update).map_err(|error| refused(address, &error))?;
    }
    for table in [friend, all_group, group_user, offline_message, node_mark, node_looks] {
        let delete = format!("DELETE FROM {} WHERE 1 = 0", quoted(table));
        session.conn.query_drop(delete).map_err(|error| refused(address, &error))?;
    }
    Ok(())
}

/// Connects, and makes the database if there is none of that name.
pub(super) fn connect(address: &Opts) -> Result<Session, OpenError> {
    let name = address.get_db_name().filter(|name| !name.is_empty());
    let Some(name) = name.map(str::to_owned) else {
        return Err(OpenError::Url("the address names no database".to_owned()));
    };
    let user = address.get_user().unwrap_or_default().to_owned();
    let explain = |error: mysql::Error| {
        let (at, user, database, problem) = (place(address), user.clone(), name.clone(), link::plain(&error));
        match &error {
            mysql::Error::MySqlError(refusal) => match refusal.code {
                1044 | 1049 | 1142 | 1227 => OpenError::NoDatabase { address: at, user, database, problem },
                1045 | 1130 | 1698 => OpenError::Denied { address: at, user, database, problem },
                _ => refused(address, &error),
            },
            _ => OpenError::Unreachable { address: at, problem },
        }
    };
    match Session::open(address.clone()) {
        Err(mysql::Error::MySqlError(refusal)) if refusal.code == 1049 => {
            let nowhere = OptsBuilder::from_opts(address.clone()).db_name(None::<String>);
            let create = statement_of("CREATE DATABASE").replacen(" chat ", &format!(" {} ", quoted(&name)), 1);
            Session::open(nowhere.into()).and_then(|mut session| session.conn.query_drop(create)).map_err(explain)?;
            log::info!("created the database {name}");
            Session::open(address.clone()).map_err(explain)
        }
        other => other.map_err(explain),
    }
}

fn check_version(session: &mut Session) -> Result<(), OpenError> {
    let text: String = session.conn.query_first("SELECT VERSION()")?.unwrap_or_default();
    // What old clients took for the version stands before it.
    let version = text.strip_prefix("5.5.5-").unwrap_or(&text);
    let numbers: Vec<u32> = version.split(['.', '-']).map_while(|number| number.parse().ok()).collect();
    let needed: &[u32] = if text.contains("MariaDB") { &[10, 3] } else { &[8, 0, 23] };
    if numbers.as_slice() < needed { Err(OpenError::TooOld(text)) } else { Ok(()) }
}

/// The charset becomes part of statements: only what is one may.
fn check_charset(session: &mut Session, charset: &str) -> Result<(), OpenError> {
    let sql = "SELECT 1 FROM information_schema.CHARACTER_SETS WHERE CHARACTER_SET_NAME = ?";
    let is_word = charset.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match is_word && session.find(sql, (charset,), |_| Ok(()))?.is_some() {
        true => Ok(()),
        false => Err(OpenError::Charset(charset.to_owned())),
    }
}

/// Does what has to be done, while no other node does.
fn carry_out(address: &Opts) -> Result<Plan, OpenError> {
    let patient = OptsBuilder::from_opts(address.clone()).read_timeout(Some(PATIENCE));
    let mut session = Session::open(patient.into())?;
    // An ALTER TABLE may wait for as long as it takes.
    session.conn.query_drop(format!("SET SESSION lock_wait_timeout = {}", PATIENCE.as_secs()))?;
    // Only an administrator may do this; without it CREATE TABLE is refused, and the error says why.
    let _ = session.conn.query_drop("SET SESSION enforce_storage_engine = NULL");
    // The lock goes with the connection.
    let lock = format!("SELECT GET_LOCK(CONCAT('chat-server ', LEFT(MD5(DATABASE()), 32)), {WAIT})");
    if session.conn.query_first::<Option<i64>, _>(lock)?.flatten() != Some(1) {
        return Err(OpenError::Locked);
    }
    // Looked at again under the lock: another node may just have done it. Twice, because there may
    // be something wrong with a table that another server has just made.
    for _ in 0..2 {
        let plan = Plan::of(&mut session)?;
        if plan.steps.is_empty() {
            return Ok(plan);
        }
        for Step { what, sql } in plan.steps {
            log::info!("the database: {what}");
            session.conn.query_drop(&sql).map_err(|error| match refused(address, &error) {
                OpenError::Database(problem) => OpenError::Migration { step: what, sql: sql.clone(), problem },
                unusable => unusable,
            })?;
        }
    }
    let plan = Plan::of(&mut session)?;
    match plan.steps.first() {
        None => Ok(plan),
        Some(step) => Err(OpenError::Database(format!("altered, and still not as it should be: {}", step.what))),
    }
}

/// The statement of `schema.sql` that begins so.
fn statement_of(begin: &str) -> String {
    let text: String = SCHEMA.lines().filter(|line| !line.starts_with("--")).flat_map(|line| [line, "\n"]).collect();
    let statement = text.split(';').map(str::trim).find(|statement| statement.starts_with(begin));
    statement.unwrap_or_default().to_owned()
}

/// One statement, and what it does.
struct Step {
    what: String,
    sql: String,
}

/// What the tables are, and what they lack.
#[derive(Default)]
struct Plan {
    steps: Vec<Step>,
    /// What an administrator has to see to.
    warnings: Vec<String>,
    layout: Layout,
}

impl Plan {
    fn of(session: &mut Session) -> Result<Plan, OpenError> {
        let mut plan = Plan::default();
        let names = session.list_text(
            "SELECT TABLE_NAME FROM information_schema.TABLES
             WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE = 'BASE TABLE' ORDER BY BINARY TABLE_NAME",
            |row| column::<String>(row, 0),
        )?;
        let lower = names.iter().any(|name| matches!(&**name, "user" | "allgroup" | "groupuser" | "offlinemessage"));
        let mut find = |canon: &str| -> Result<(String, Option<Altered>), OpenError> {
            let exact = names.iter().find(|name| *name == canon);
            match exact.or_else(|| names.iter().find(|name| name.eq_ignore_ascii_case(canon))) {
                Some(name) => Ok((name.clone(), Some(Altered::read(session, name)?))),
                None => {
                    // Beside tables in lower case it is looked for in lower case.
                    let name = if lower { canon.to_ascii_lowercase() } else { canon.to_owned() };
                    let begin = format!("CREATE TABLE IF NOT EXISTS {canon} ");
                    let sql = statement_of(&begin).replacen(canon, &name, 1);
                    plan.steps.push(Step { what: format!("the table {name} is made"), sql });
                    Ok((name, None))
                }
            }
        };
        let (user, user_table) = find("User")?;
        let (friend, friend_table) = find("Friend")?;
        let (all_group, all_group_table) = find("AllGroup")?;
        let (group_user, group_user_table) = find("GroupUser")?;
        let (offline_message, offline_message_table) = find("OfflineMessage")?;
        let (node_mark, node_mark_table) = find("NodeMark")?;
        let (node_looks, node_looks_table) = find("NodeLooks")?;
        let message_row = "id".to_owned();
        plan.layout =
            Layout { user, friend, all_group, group_user, offline_message, message_row, node_mark, node_looks };

        if let Some(mut table) = user_table {
            table.needs(&["id", "name", "password", "state"])?;
            table.ids()?;
            let recollated = table.text("name", 50, NAME_COLLATION)?;
            table.text("password", 255, COLLATION)?;
            table.add_column("node", "BIGINT UNSIGNED NULL INVISIBLE", "whose node");
            table.add_column("epoch", "BIGINT UNSIGNED NULL INVISIBLE", "by which claim");
            table.index(&["node"]);
            table.unique(session, "name", recollated, &mut plan)?;
            table.name_keys();
            table.add_column("dialect", "VARCHAR(255) CHARACTER SET ascii NULL INVISIBLE", "what its client speaks");
            table.fills(&["name", "password", "state"])?;
            table.finish(&mut plan.steps);
        }
        if let Some(mut table) = friend_table {
            table.needs(&["userid", "friendid"])?;
            table.pairs(session, ["userid", "friendid"], "friendid", &mut plan)?;
            table.index(&["userid"]);
            table.fills(&["userid", "friendid"])?;
            table.finish(&mut plan.steps);
        }
        if let Some(mut table) = all_group_table {
            table.needs(&["id", "groupname", "groupdesc"])?;
            table.ids()?;
            let recollated = table.text("groupname", 50, NAME_COLLATION)?;
            table.text("groupdesc", 200, COLLATION)?;
            table.unique(session, "groupname", recollated, &mut plan)?;
            table.name_keys();
            table.fills(&["groupname", "groupdesc"])?;
            table.finish(&mut plan.steps);
        }
        if let Some(mut table) = group_user_table {
            table.needs(&["groupid", "userid", "grouprole"])?;
            table.pairs(session, ["groupid", "userid"], "grouprole = 'creator'", &mut plan)?;
            table.index(&["groupid"]);
            table.index(&["userid"]);
            table.fills(&["groupid", "userid", "grouprole"])?;
            table.finish(&mut plan.steps);
        }
        if let Some(mut table) = offline_message_table {
            table.needs(&["userid", "message"])?;
            table.message("message");
            let row = table.row_ids()?;
            table.add_column("once", "BINARY(16) NULL INVISIBLE UNIQUE", "a key of its own for each message");
            table.index(&["userid", &row]);
            table.fills(&["userid", "message"])?;
            table.finish(&mut plan.steps);
            plan.layout.message_row = row;
        }
        for (table, columns) in [(node_mark_table, ["node", "marked"]), (node_looks_table, ["node", "looks"])] {
            let Some(table) = table else { continue };
            table.needs(&columns)?;
            table.fills(&columns)?;
            table.finish(&mut plan.steps);
        }
        Ok(plan)
    }
}

struct Column {
    name: String,
    data_type: String,
    column_type: String,
    /// In characters.
    length: u64,
    charset: Option<String>,
    collation: Option<String>,
    nullable: bool,
    auto_increment: bool,
    /// Whether a row can be inserted that says nothing of it.
    optional: bool,
}

struct Index {
    name: String,
    unique: bool,
    columns: Vec<String>,
}

impl Index {
    fn is_over(&self, columns: &[&str]) -> bool {
        self.columns.len() == columns.len()
            && columns.iter().all(|column| self.columns.iter().any(|own| own.eq_ignore_ascii_case(column)))
    }

    fn begins_with(&self, columns: &[&str]) -> bool {
        self.columns.len() >= columns.len()
            && columns.iter().zip(&self.columns).all(|(column, own)| own.eq_ignore_ascii_case(column))
    }
}

/// A table that exists, and the clauses of the ALTER TABLE that it needs.
struct Altered {
    name: String,
    columns: Vec<Column>,
    indexes: Vec<Index>,
    clauses: Vec<String>,
    /// What they do.
    what: Vec<String>,
}

impl Altered {
    fn read(session: &mut Session, name: &str) -> Result<Altered, OpenError> {
        // These views compare names without regard to case: `user` would bring `User` along.
        let here = "TABLE_SCHEMA = DATABASE() AND BINARY TABLE_NAME = BINARY ?";
        let columns = session.list(
            &format!(
                "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, CHARACTER_MAXIMUM_LENGTH, CHARACTER_SET_NAME,
                        COLLATION_NAME, IS_NULLABLE, EXTRA, COLUMN_DEFAULT IS NOT NULL
                 FROM information_schema.COLUMNS WHERE {here} ORDER BY ORDINAL_POSITION"
            ),
            (name,),
            |row| {
                let data_type = column::<String>(row, 1)?.to_ascii_lowercase();
                let (nullable, extra) =
                    (column::<String>(row, 6)? == "YES", column::<String>(row, 7)?.to_ascii_lowercase());
                let auto_increment = extra.contains("auto_increment");
                // One of several words has its first as a default.
                let has_default = column(row, 8)? || data_type == "enum" || extra.contains("generated");
                Ok(Column {
                    name: column(row, 0)?,
                    data_type,
                    column_type: column(row, 2)?,
                    length: column::<Option<u64>>(row, 3)?.unwrap_or_default(),
                    charset: column(row, 4)?,
                    collation: column(row, 5)?,
                    nullable,
                    auto_increment,
                    optional: nullable || auto_increment || has_default,
                })
            },
        )?;
        let parts = session.list(
            &format!(
                "SELECT INDEX_NAME, NON_UNIQUE, COLUMN_NAME, SUB_PART FROM information_schema.STATISTICS
                 WHERE {here} ORDER BY INDEX_NAME, SEQ_IN_INDEX"
            ),
            (name,),
            |row| {
                // A column's beginning is not the column.
                let part = match column::<Option<u64>>(row, 3)? {
                    None => column::<Option<String>>(row, 2)?.unwrap_or_default(),
                    Some(_) => String::new(),
                };
                Ok((column::<String>(row, 0)?, column::<i64>(row, 1)? == 0, part))
            },
        )?;
        let mut indexes: Vec<Index> = Vec::new();
        for (name, unique, part) in parts {
            match indexes.last_mut().filter(|index| index.name == name) {
                Some(index) => index.columns.push(part),
                None => indexes.push(Index { name, unique, columns: vec![part] }),
            }
        }
        let (engine, charset) = session
            .find(
                &format!(
                    "SELECT ENGINE, SUBSTRING_INDEX(TABLE_COLLATION, '_', 1) FROM information_schema.TABLES
                     WHERE {here}"
                ),
                (name,),
                |row| Ok((column::<Option<String>>(row, 0)?, column::<Option<String>>(row, 1)?)),
            )?
            .unwrap_or_default();
        let name = name.to_owned();
        let mut table = Altered { name, columns, indexes, clauses: vec![], what: vec![] };
        let engine = engine.unwrap_or_default();
        if !engine.eq_ignore_ascii_case("InnoDB") {
            table.add("ENGINE = InnoDB".to_owned(), format!("{engine} becomes InnoDB"));
        }
        if charset.as_deref() != Some(CHARSET) {
            let clause = format!("DEFAULT CHARACTER SET {CHARSET} COLLATE {COLLATION}");
            table.add(clause, format!("its charset becomes {CHARSET}"));
        }
        Ok(table)
    }

    fn add(&mut self, clause: String, what: String) {
        self.clauses.push(clause);
        self.what.push(what);
    }

    fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name))
    }

    fn foreign(&self, problem: String) -> OpenError {
        OpenError::Foreign { table: self.name.clone(), problem }
    }

    fn needs(&self, columns: &[&str]) -> Result<(), OpenError> {
        match columns.iter().find(|name| self.column(name).is_none()) {
            Some(name) => Err(self.foreign(format!("it has no column {name}"))),
            None => Ok(()),
        }
    }

    /// Every column but these, which is all that we give a row, takes a row without it.
    fn fills(&self, given: &[&str]) -> Result<(), OpenError> {
        let is_given = |column: &Column| given.iter().any(|name| column.name.eq_ignore_ascii_case(name));
        match self.columns.iter().find(|column| !column.optional && !is_given(column)) {
            Some(Column { name, column_type, .. }) => Err(self.foreign(format!(
                "its column {name} ({column_type}) has no default, and this server has nothing to put into it; give it \
                 one (ALTER TABLE {} ALTER COLUMN {} SET DEFAULT ...) or make it NULL",
                quoted(&self.name),
                quoted(name),
            ))),
            None => Ok(()),
        }
    }

    /// Rows are numbered by the database, and found by their numbers.
    fn ids(&mut self) -> Result<(), OpenError> {
        if !self.column("id").is_some_and(|id| id.auto_increment) {
            return Err(self.foreign("its column id is not AUTO_INCREMENT".to_owned()));
        }
        if let Some(primary) = self.indexes.iter().position(|index| index.name == "PRIMARY") {
            if self.indexes[primary].begins_with(&["id"]) {
                return Ok(());
            }
            self.drop_index("PRIMARY", "its primary key goes");
        }
        self.add_index("PRIMARY KEY", &["id"], "id becomes its primary key");
        Ok(())
    }

    /// A name's key, or the row that has that key; both are NULL in the rows of C++ servers until we see them.
    fn name_keys(&mut self) {
        self.add_column("namekey", "BINARY(32) NULL INVISIBLE UNIQUE", "a hash of what makes a name the same");
        self.add_column("namesake", "BIGINT UNSIGNED NULL INVISIBLE", "whose name is the same");
        self.index(&["namekey", "namesake"]);
    }

    /// A column for at least this number of characters of any script; returns whether it will be altered.
    fn text(&mut self, name: &str, length: u64, collation: &str) -> Result<bool, OpenError> {
        let Some(column) = self.column(name) else { return Ok(false) };
        let Some(charset) = &column.charset else {
            return Err(self.foreign(format!("its column {name} is a {}, and no text", column.column_type)));
        };
        let is_string = matches!(&*column.data_type, "varchar" | "char");
        let too_short = is_string && column.length < length;
        let other_collation = collation == NAME_COLLATION && column.collation.as_deref() != Some(collation);
        if charset == CHARSET && !too_short && !other_collation {
            return Ok(false);
        }
        let length = column.length.max(length);
        let data_type = if is_string { format!("VARCHAR({length})") } else { column.column_type.clone() };
        let null = if column.nullable { "NULL" } else { "NOT NULL" };
        // The only one that has one, in every copy.
        let default = if name == "groupdesc" && is_string { " DEFAULT ''" } else { "" };
        let own = quoted(&column.name);
        let what = format!("{} becomes {data_type} in {CHARSET}", column.name);
        let clause = format!("MODIFY {own} {data_type} CHARACTER SET {CHARSET} COLLATE {collation} {null}{default}");
        self.add(clause, what);
        Ok(true)
    }

    fn message(&mut self, name: &str) {
        let Some(column) = self.column(name) else { return };
        let is_long = matches!(&*column.data_type, "mediumtext" | "longtext");
        if is_long && column.charset.as_deref() == Some(CHARSET) {
            return;
        }
        let data_type = if column.data_type == "longtext" { "LONGTEXT" } else { "MEDIUMTEXT" };
        let null = if column.nullable { "NULL" } else { "NOT NULL" };
        let what = format!("{} becomes {data_type} in {CHARSET}", column.name);
        let own = quoted(&column.name);
        self.add(format!("MODIFY {own} {data_type} CHARACTER SET {CHARSET} COLLATE {COLLATION} {null}"), what);
    }

    fn add_column(&mut self, name: &str, definition: &str, what: &str) {
        if self.column(name).is_none() {
            self.add(format!("ADD COLUMN {name} {definition}"), format!("a new invisible column {name}, {what}"));
        }
    }

    fn index(&mut self, columns: &[&str]) {
        if !self.indexes.iter().any(|index| index.begins_with(columns)) {
            self.add_index("KEY", columns, &format!("a new index over ({})", columns.join(", ")));
        }
    }

    fn add_index(&mut self, kind: &str, columns: &[&str], what: &str) {
        let names: Vec<_> = columns.iter().map(|column| quoted(column)).collect();
        self.add(format!("ADD {kind} ({})", names.join(", ")), what.to_owned());
        self.indexes.push(Index {
            name: if kind == "PRIMARY KEY" { "PRIMARY" } else { "" }.to_owned(),
            unique: kind != "KEY",
            columns: columns.iter().map(|column| (*column).to_owned()).collect(),
        });
    }

    fn drop_index(&mut self, name: &str, what: &str) {
        let clause = match name {
            "PRIMARY" => "DROP PRIMARY KEY".to_owned(),
            name => format!("DROP INDEX {}", quoted(name)),
        };
        self.add(clause, what.to_owned());
        self.indexes.retain(|index| index.name != name);
    }

    /// Messages have rows of their own, as many for each user as there are, and as often as they are sent.
    /// The column that numbers them: the table's own, if it has one.
    fn row_ids(&mut self) -> Result<String, OpenError> {
        let own = self.columns.iter().find(|column| column.auto_increment).map(|column| column.name.clone());
        if own.as_deref().is_some_and(|own| own.eq_ignore_ascii_case("userid")) {
            return Err(self.foreign("its column userid is AUTO_INCREMENT, and not whose a message is".to_owned()));
        }
        if own.is_none() && self.column("id").is_some() {
            return Err(self.foreign("its column id is not AUTO_INCREMENT".to_owned()));
        }
        let row = own.as_deref().unwrap_or("id");
        let bears = |index: &Index, name: &str| index.columns.iter().any(|column| column.eq_ignore_ascii_case(name));
        let in_the_way = |index: &&Index| index.unique && !bears(index, row) && !bears(index, "once");
        for name in self.indexes.iter().filter(in_the_way).map(|index| index.name.clone()).collect::<Vec<_>>() {
            self.drop_index(&name, "more than one message for each user");
        }
        if own.is_none() {
            let definition = "BIGINT UNSIGNED NOT NULL AUTO_INCREMENT INVISIBLE PRIMARY KEY";
            self.add_column("id", definition, "which numbers the messages");
        }
        Ok(row.to_owned())
    }

    /// Each pair is there once. Of those that are there several times, `worth` says which stays. A table that
    /// has a primary key of its own keeps it.
    fn pairs(&mut self, session: &mut Session, pair: [&str; 2], worth: &str, plan: &mut Plan) -> Result<(), OpenError> {
        let narrower = |index: &&Index| index.unique && pair.iter().any(|column| index.is_over(&[column]));
        for name in self.indexes.iter().filter(narrower).map(|index| index.name.clone()).collect::<Vec<_>>() {
            self.drop_index(&name, "more than one row for each user");
        }
        if self.indexes.iter().any(|index| index.unique && index.is_over(&pair)) {
            return Ok(());
        }
        let (table, [one, other]) = (quoted(&self.name), pair);
        let sql = format!(
            "SELECT {one}, {other}, COUNT(*) FROM {table}
             WHERE {one} IS NOT NULL AND {other} IS NOT NULL GROUP BY {one}, {other} HAVING COUNT(*) > 1"
        );
        let doubles: Vec<(i64, i64, u64)> =
            session.list_text(&sql, |row| Ok((column(row, 0)?, column(row, 1)?, column(row, 2)?)))?;
        for (first, second, count) in doubles {
            let surplus = count - 1;
            plan.steps.push(Step {
                what: format!("{}: ({first}, {second}) is there {count} times, and from now on once", self.name),
                sql: format!(
                    "DELETE FROM {table} WHERE {one} = {first} AND {other} = {second} ORDER BY {worth} LIMIT {surplus}"
                ),
            });
        }
        let has_primary = self.indexes.iter().any(|index| index.name == "PRIMARY");
        let has_null = pair.iter().any(|name| self.column(name).is_some_and(|column| column.nullable));
        match has_primary || has_null {
            true => self.add_index("UNIQUE KEY", &pair, &format!("({one}, {other}) becomes unique")),
            false => self.add_index("PRIMARY KEY", &pair, &format!("({one}, {other}) becomes its primary key")),
        }
        Ok(())
    }

    /// C++ servers cannot add an exact double of a name, if those that are there allow an index.
    fn unique(
        &mut self,
        session: &mut Session,
        name: &str,
        recollated: bool,
        plan: &mut Plan,
    ) -> Result<(), OpenError> {
        let index = self.indexes.iter().find(|index| index.unique && index.is_over(&[name]));
        let index = index.map(|index| index.name.clone());
        if index.is_some() && !recollated {
            return Ok(());
        }
        let table = quoted(&self.name);
        let doubles = session.list_text(
            &format!(
                "SELECT MIN({name}), COUNT(*) FROM {table}
                 GROUP BY CONVERT({name} USING {CHARSET}) COLLATE {NAME_COLLATION} HAVING COUNT(*) > 1
                 ORDER BY 1 LIMIT 5"
            ),
            |row| {
                let (name, count): (Option<String>, u64) = (column(row, 0)?, column(row, 1)?);
                Ok(format!("{:?} ({count} times)", name.unwrap_or_default()))
            },
        )?;
        if doubles.is_empty() {
            if index.is_none() {
                self.add_index("UNIQUE KEY", &[name], &format!("{name} becomes unique"));
            }
            return Ok(());
        }
        plan.warnings.push(format!(
            "{}.{name} has names that are there more than once: {}. As long as it has, C++ servers can add more of \
             them; rename all but one of each, and the next start makes them unique by an index",
            self.name,
            doubles.join(", "),
        ));
        match index {
            // It was unique by another collation: by ours it would not be.
            Some(index) => {
                self.drop_index(&index, "its unique index goes");
                self.index(&[name]);
            }
            None => self.index(&[name]),
        }
        Ok(())
    }

    /// Puts the ALTER TABLE among the steps, if it takes one.
    fn finish(mut self, steps: &mut Vec<Step>) {
        // InnoDB asks for it, MyISAM does not.
        if let Some(counter) = self.columns.iter().find(|column| column.auto_increment).map(|own| own.name.clone()) {
            self.index(&[&counter]);
        }
        if !self.clauses.is_empty() {
            steps.push(Step {
                what: format!("the table {}: {}", self.name, self.what.join("; ")),
                sql: format!("ALTER TABLE {} {}", quoted(&self.name), self.clauses.join(", ")),
            });
        }
    }
}
