//! The store in MySQL or MariaDB, which several nodes share, C++ ones among them.
//!
//! | file | what |
//! | --- | --- |
//! | `mod.rs` | the store, and reading |
//! | `write.rs` | a batch as one transaction |
//! | `membership.rs` | what nodes see of each other, and the mark |
//! | `shared.rs` | what all connections of a node have in common |
//! | `hidden.rs` | claims that C++ servers do not see yet |
//! | `migrate.rs` | the tables as they are found, and what brings them up to date |
//! | `lock.rs` | whether one server alone or one cluster uses the database |
//! | `names.rs` | which names are the same |
//! | `link.rs` | connections, and what is tried again |
//! | `text.rs` | text that C++ servers read and write too |
//! | `sql.rs` | the statements |
//!
//! What holds the nodes together is in the tables: a claim is the columns `node` and `epoch` of a
//! user's row, and that row's lock decides whether a message is stored before or after a claim. A node that
//! the others took for dead is marked in a row of its own, which each of its transactions locks and reads.
//! If the database gives no answer, none is made up: the result is [`StoreError::Unavailable`].

mod hidden;
mod link;
mod lock;
mod membership;
mod migrate;
mod names;
mod shared;
mod sql;
mod text;
mod write;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mysql::prelude::Queryable;
use mysql::{Opts, Row};

use super::quota::Room;
use super::{
    Account, Connection, Friend, Group, GroupId, Kept, Loaded, Member, Membership, NodeId, Outcome, Page, Parcel,
    Quotas, RowId, Store, StoreError, UserId, Write,
};
use hidden::Hidden;
use link::{Failure, Gate, Link, Session, column};
use membership::MySqlRoll;
use shared::Shared;
use sql::{Kind, PAGE_ROWS, Sql};
use text::Texts;

pub use lock::Lock;
pub use migrate::OpenError;
pub use text::ascii_json;

/// How a node uses the database.
#[derive(Clone)]
pub struct Options {
    /// `mysql://USER:PASSWORD@HOST:PORT/DATABASE`.
    pub url: String,
    /// The id of this life of this node.
    pub node: NodeId,
    /// What the C++ servers at this database say in `set names`, such as `gbk`; `utf8mb4` if there
    /// are none, or they speak it.
    pub charset: String,
    /// C++ servers read the messages stored here, so they are written as ASCII; and they publish for users that are
    /// online, so a claim is shown to them only by [`Write::Show`].
    pub mixed: bool,
    /// No other node uses the database: no user can be online before this node has begun, and no node marks it.
    pub single_node: bool,
    pub quotas: Quotas,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Options { url: _, node, charset, mixed, single_node, quotas } = self; // the URL contains a password
        write!(
            f,
            "Options {{ node: {node}, charset: {charset:?}, mixed: {mixed}, single_node: {single_node}, {quotas:?} }}"
        )
    }
}

/// A MySQL or MariaDB database.
pub struct MySqlStore {
    shared: Arc<Shared>,
    /// The lock of a node that is alone, from its start.
    lock: Mutex<Option<Lock>>,
}

impl MySqlStore {
    /// Connects, makes the tables or brings old ones up to date, gives names their keys, and sets everyone
    /// offline if this node is alone.
    ///
    /// # Errors
    /// The database is away, refuses the login, or has tables or settings that cannot be used; or this node
    /// is alone, and another server uses the database.
    pub fn open(options: Options) -> Result<MySqlStore, OpenError> {
        let address = Opts::from_url(&options.url).map_err(|error| OpenError::Url(link::url_error(&error)))?;
        let address: Opts = link::options(address).into();
        let mut session = migrate::connect(&address)?;
        let lock = options.single_node.then(|| Lock::take(address.clone(), options.node, true)).transpose()?;
        let layout = migrate::bring_up_to_date(&mut session, &address, &options.charset)?;
        let texts = Texts::new(&options.charset, options.mixed);
        let sql = Sql::new(&layout, &texts, options.mixed, (!options.single_node).then_some(options.node));
        if options.single_node {
            // A node of a cluster that stands still, and has lost its lock by that, is to find itself marked.
            for strike in sql.strike(None) {
                session.conn.query_drop(strike)?;
            }
            session.execute(&sql.free_all, ())?;
        }
        let (gate, next_key) = (Gate::new(address), AtomicU64::new(0));
        names::fill_all(&mut Link::from(session), &gate, &sql)?;
        let Options { node, mixed, quotas, .. } = options;
        let room = Mutex::new(Room::new(quotas.offline));
        let shared =
            Arc::new(Shared { gate, node, mixed, hidden: Hidden::default(), sql, texts, next_key, quotas, room });
        Ok(MySqlStore { shared, lock: Mutex::new(lock) })
    }

    /// The lock that excludes others from the database: a node that is alone has had it since its start, a node of a
    /// cluster has it from now on. It must be [checked](Lock::check) as long as the node runs.
    ///
    /// # Errors
    /// A server that is alone uses the database, or the database is away.
    pub fn lock(&self) -> Result<Lock, OpenError> {
        match self.lock.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(lock) => Ok(lock),
            None => Lock::take(self.shared.gate.opts.clone(), self.shared.node, false),
        }
    }
}

impl Store for MySqlStore {
    fn connection(&self) -> Box<dyn Connection> {
        Box::new(MySqlConnection { shared: Arc::clone(&self.shared), link: Link::default() })
    }

    fn release_all(&self) -> Result<(), StoreError> {
        MySqlRoll::new(&self.shared).leave()
    }

    fn membership(&self) -> Option<Box<dyn Membership>> {
        let membership = self.shared.sql.mark.as_ref().map(|_| MySqlRoll::new(&self.shared));
        membership.map(|membership| Box::new(membership) as Box<dyn Membership>)
    }
}

/// The connection of one worker.
struct MySqlConnection {
    shared: Arc<Shared>,
    link: Link,
}

impl MySqlConnection {
    fn read<T>(&mut self, mut read: impl FnMut(&mut Session, &Sql) -> Result<T, Failure>) -> Result<T, StoreError> {
        let Shared { gate, sql, .. } = &*self.shared;
        Ok(self.link.run(gate, |session, _| read(session, sql))?)
    }

    fn lists(&mut self, kinds: &[Kind], user: UserId, max_bytes: usize) -> Result<Loaded, StoreError> {
        self.read(|session, sql| Ok(read_lists(session, sql, kinds, user, max_bytes)?.0))
    }

    /// One transaction. `in_doubt`: whether an earlier try may have been committed, before and after this.
    fn try_write(&mut self, batch: &[Write], first_key: u64, in_doubt: &mut bool) -> Result<Vec<Outcome>, Failure> {
        let shared = &*self.shared;
        self.link.run(&shared.gate, |session, in_doubt_now| {
            *in_doubt |= in_doubt_now;
            write::write(session, shared, batch, first_key, *in_doubt).inspect_err(|_| shared.room().forget_all())
        })
    }

    /// Does a batch that was refused as a whole: each write in a transaction of its own, and offline messages
    /// parcel by parcel, and message by message.
    fn write_one_by_one(
        &mut self,
        batch: &[Write],
        mut key: u64,
        in_doubt: bool,
        why: String,
    ) -> Result<Vec<Outcome>, StoreError> {
        if let [Write::Keep(parcels)] = batch {
            let mut kept = Vec::with_capacity(parcels.len());
            for parcel in parcels {
                kept.push(self.keep_one_by_one(parcel, key, in_doubt)?);
                key += parcel.messages.len() as u64;
            }
            return Ok(vec![Outcome::Kept(kept)]);
        }
        if let [_] = batch {
            return Ok(vec![Outcome::Refused(why)]);
        }
        log::debug!("{} writes are done one by one: {why}", batch.len());
        let mut outcomes = Vec::with_capacity(batch.len());
        for write in batch.chunks(1) {
            let mut in_doubt = in_doubt;
            match self.try_write(write, key, &mut in_doubt) {
                Err(Failure::Refused(why)) => outcomes.extend(self.write_one_by_one(write, key, in_doubt, why)?),
                other => outcomes.extend(other?),
            }
            key += write::messages(write);
        }
        Ok(outcomes)
    }

    fn keep_one_by_one(&mut self, parcel: &Parcel, first_key: u64, mut in_doubt: bool) -> Result<Kept, StoreError> {
        Kept::of_each(parcel.one_by_one().into_iter().zip(first_key..).map(|(one, key)| {
            match self.try_write(&[Write::Keep(vec![one])], key, &mut in_doubt) {
                Ok(outcomes) => Ok(outcomes.into_iter().next().map_or(Kept::Refused(0), Outcome::of_one_parcel)),
                Err(Failure::Refused(why)) if !parcel.messages.is_empty() => {
                    log::warn!("an offline message for user {} is refused: {why}", parcel.to);
                    Ok(Kept::Refused(0))
                }
                Err(failure) => Err(failure.into()),
            }
        }))
    }
}

impl MySqlConnection {
    /// Does a batch, the first message of which has this key.
    fn write_as(&mut self, batch: &[Write], key: u64, mut in_doubt: bool) -> Result<Vec<Outcome>, StoreError> {
        if self.shared.mixed {
            self.shared.hidden.begin(batch);
        }
        let outcomes = match self.try_write(batch, key, &mut in_doubt) {
            Err(Failure::Refused(why)) => self.write_one_by_one(batch, key, in_doubt, why),
            other => other.map_err(StoreError::from),
        };
        if let Ok(outcomes) = &outcomes
            && self.shared.mixed
        {
            self.shared.hidden.end(self.shared.node, batch, outcomes);
        }
        outcomes.map_err(|error| match error {
            StoreError::InDoubt { why, .. } => StoreError::InDoubt { key, why },
            StoreError::Unavailable(why) if in_doubt => StoreError::InDoubt { key, why: why.into() },
            error => error,
        })
    }
}

impl Connection for MySqlConnection {
    fn write(&mut self, batch: &[Write]) -> Result<Vec<Outcome>, StoreError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let first_key = self.shared.next_key.fetch_add(write::messages(batch), Ordering::Relaxed);
        self.write_as(batch, first_key, false)
    }

    fn write_again(&mut self, write: &Write, key: u64) -> Result<Outcome, StoreError> {
        let outcomes = self.write_as(std::slice::from_ref(write), key, true)?;
        outcomes.into_iter().next().ok_or_else(|| StoreError::Unavailable("no outcome".into()))
    }

    fn account(&mut self, user: UserId) -> Result<Option<Account>, StoreError> {
        self.read(|session, sql| {
            let found = session.list_text(&sql.account(user), |row| {
                Ok(Account { name: text::read_string(row, 0)?, password: text::read_string(row, 2)? })
            })?;
            Ok(found.into_iter().next())
        })
    }

    fn friends(&mut self, user: UserId) -> Result<Vec<Friend>, StoreError> {
        Ok(self.lists(&[Kind::Friend], user, 0)?.friends)
    }

    fn groups(&mut self, user: UserId) -> Result<Vec<Group>, StoreError> {
        Ok(self.lists(&[Kind::Group, Kind::Member], user, 0)?.groups)
    }

    fn members(&mut self, group: GroupId) -> Result<Option<Vec<UserId>>, StoreError> {
        self.read(|session, sql| {
            // Two statements, two snapshots; but a group that is there stays.
            match session.find(&sql.group_exists, (group,), |_| Ok(()))? {
                Some(()) => session.list(&sql.members, (group,), |row| column(row, 0)).map(Some),
                None => Ok(None),
            }
        })
    }

    fn page(&mut self, user: UserId, max_bytes: usize) -> Result<Page, StoreError> {
        Ok(self.lists(&[Kind::Message], user, max_bytes)?.page)
    }

    fn load(&mut self, user: UserId, max_bytes: usize) -> Result<Loaded, StoreError> {
        let kinds = [Kind::Friend, Kind::Group, Kind::Member, Kind::Many, Kind::Dialect];
        self.read(|session, sql| {
            let (mut loaded, many) = read_lists(session, sql, &kinds, user, max_bytes)?;
            if many {
                loaded.page = read_lists(session, sql, &[Kind::Message], user, max_bytes)?.0.page;
            }
            Ok(loaded)
        })
    }
}

/// The rows of [`Sql::lists`], put in order; and whether there are many messages, which are none of them.
fn read_lists(
    session: &mut Session,
    sql: &Sql,
    kinds: &[Kind],
    user: UserId,
    max_bytes: usize,
) -> Result<(Loaded, bool), Failure> {
    let (mut loaded, mut members, mut there, mut many) = (Loaded::default(), Vec::new(), 0, false);
    let mut marked = sql.locks(kinds);
    session.list_text(&sql.lists(kinds, user, max_bytes), |row| {
        let kind: u8 = column(row, 0)?;
        match kind {
            kind if kind == Kind::Mark as u8 => marked = column(row, 1)?,
            kind if kind == Kind::Friend as u8 => {
                loaded.friends.push(Friend {
                    id: column(row, 1)?,
                    state: state(row)?,
                    name: text::read_string(row, 4)?,
                });
            }
            kind if kind == Kind::Group as u8 => {
                let (groupname, groupdesc) = (text::read_string(row, 4)?, text::read_string(row, 6)?);
                let (id, members) = (column(row, 1)?, column(row, 2)?);
                loaded.groups.push(Group { id, groupname, groupdesc, users: Vec::new(), members });
            }
            kind if kind == Kind::Member as u8 => {
                let role = if column::<Option<Vec<u8>>>(row, 6)?.is_some() { "creator" } else { "normal" };
                let member = Member { id: column(row, 2)?, state: state(row)?, name: text::read_string(row, 4)?, role };
                members.push((column::<GroupId>(row, 1)?, member));
            }
            kind if kind == Kind::Many as u8 => many = true,
            kind if kind == Kind::Dialect as u8 => loaded.dialect = Some(text::read_string(row, 4)?),
            _ => {
                there = column(row, 2)?;
                loaded.page.messages.push((column(row, 1)?, text::read(row, 4)?.into()));
            }
        }
        Ok(())
    })?;
    if marked {
        return Err(Failure::Marked);
    }
    loaded.friends.sort_unstable_by_key(|friend| friend.id);
    loaded.groups.sort_unstable_by_key(|group| group.id);
    members.sort_unstable_by_key(|(group, member)| (*group, member.id));
    let mut members = members.into_iter().peekable();
    for group in &mut loaded.groups {
        while members.next_if(|(of, _)| *of < group.id).is_some() {} // of a group that is none any more
        group.users.extend(std::iter::from_fn(|| members.next_if(|(of, _)| *of == group.id)).map(|(_, member)| member));
        // Counted only where the list was cut.
        group.members = group.members.max(u32::try_from(group.users.len()).unwrap_or(u32::MAX));
    }
    cut(&mut loaded.page, there, max_bytes);
    Ok((loaded, many))
}

/// Truncates a page to `max_bytes`. `there`: the number of messages that the database has found.
fn cut(page: &mut Page, there: u64, max_bytes: usize) {
    page.messages.sort_unstable_by_key(|(row, _)| *row);
    page.more = there >= PAGE_ROWS || (page.messages.len() as u64) < there;
    let mut bytes = 0_usize;
    let mut fits = |(_, message): &(RowId, Box<[u8]>)| {
        bytes = bytes.saturating_add(message.len());
        bytes <= max_bytes
    };
    // One at least, or a message larger than a page would never be delivered.
    let fitting = page.messages.iter().take_while(|message| fits(message)).count().max(1);
    if fitting < page.messages.len() {
        page.messages.truncate(fitting);
        page.more = true;
    }
}

/// Whether a user is online: the fourth column of every list of users.
fn state(row: &mut Row) -> Result<&'static str, Failure> {
    Ok(if column(row, 3)? { "online" } else { "offline" })
}
