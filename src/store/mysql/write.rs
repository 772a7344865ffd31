//! A batch of writes as one transaction.
//!
//! First of all it locks this node's mark for sharing, and then the rows of all users that the batch is
//! about, in the order of their ids; so two batches, even of different nodes, follow each other for the
//! users that they share, and never wait for each other in a circle. From then on the holder of each user is known, and
//! every decision is made here, by what was read under the lock.
//!
//! Messages are inserted at the end, all of the batch with as few statements as possible. Their ids
//! are given out under the lock too: a user's rows become visible in the order of their ids.

use std::borrow::Cow;
use std::collections::HashMap;

use mysql::Value;
use mysql::prelude::Queryable;

use super::link::{Failure, Session, column, is_duplicate};
use super::membership;
use super::names::{Namesake, fill_unseen};
use super::shared::Shared;
use super::sql::Named;
use crate::store::names::{NameKey, hash};
use crate::store::{Claim, Holder, Kept, NodeId, Outcome, Parcel, Quota, RowId, UserId, Write};

/// The most rows that one INSERT takes. They come in powers of two, so that few statements are
/// ever prepared.
const INSERT_ROWS: usize = 128;
/// The most bytes of messages that one INSERT takes, but for a single one.
const INSERT_BYTES: usize = 1 << 20;
/// What a packet has to hold besides one message.
const PACKET_REST: usize = 1 << 10;
/// The most numbers in a list.
const LIST: usize = 1000;
/// The widths of the tables' columns, in characters.
const NAME_CHARS: usize = 50;
const DESCRIPTION_CHARS: usize = 200;

/// The number of messages in a batch, and so of the keys that it takes.
pub(super) fn messages(batch: &[Write]) -> u64 {
    batch.iter().map(Write::messages).sum()
}

/// Does the batch. `first_key` is that of its first message; `in_doubt`: an earlier try may have
/// been committed, and then this one only finds out what came of it.
pub(super) fn write(
    session: &mut Session,
    shared: &Shared,
    batch: &[Write],
    first_key: u64,
    in_doubt: bool,
) -> Result<Vec<Outcome>, Failure> {
    match batch {
        [Write::Claim { user, epoch, past }] => {
            return claim_alone(session, shared, *user, *epoch, *past).map(|outcome| vec![outcome]);
        }
        [Write::Show { user, epoch }] => {
            return show_alone(session, shared, *user, *epoch).map(|outcome| vec![outcome]);
        }
        _ => {}
    }
    let holders = lock(session, shared, batch)?;
    let mut transaction = Transaction {
        session,
        shared,
        holders,
        stored: HashMap::new(),
        next_key: first_key,
        rows: Vec::new(),
        places: Vec::new(),
        namesakes: Vec::new(),
        in_doubt,
    };
    if in_doubt {
        transaction.look_for_messages(messages(batch))?;
    }
    let mut outcomes = batch.iter().map(|write| transaction.apply(write)).collect::<Result<Vec<_>, _>>()?;
    let ids = transaction.insert_messages()?;
    // Until here the outcome of a parcel that is kept contains its index in the list of places.
    for kept in outcomes.iter_mut().filter_map(|outcome| match outcome {
        Outcome::Kept(kept) => Some(kept),
        _ => None,
    }) {
        for kept in kept {
            if let Kept::Stored(row) | Kept::Past(row) = kept {
                *row = transaction.places.get(*row as usize).map_or(0, |place| place.id(&ids));
            }
        }
    }
    let namesakes = transaction.namesakes;
    let joined = outcomes.iter_mut().filter_map(|outcome| match outcome {
        Outcome::Joined { nodes, .. } => Some(nodes),
        _ => None,
    });
    let mut joined = joined.peekable();
    if joined.peek().is_some() && shared.sql.mark.is_some() {
        // After the COMMIT: read before it, the list could lack a node that writes its rows, and reads the members,
        // between the two.
        let others = format!("; {}", shared.sql.unmarked_nodes(shared.node));
        let others = session.commit(&others, |row| column(row, 0).map(NodeId))?;
        joined.for_each(|nodes| nodes.clone_from(&others));
    } else {
        session.commit("", |_| Ok(()))?;
    }
    namesakes.iter().for_each(Namesake::warn);
    Ok(outcomes)
}

/// Takes an account by one statement, which needs no transaction around it. If that changes nothing, it is
/// looked at why.
fn claim_alone(
    session: &mut Session,
    shared: &Shared,
    user: UserId,
    epoch: u64,
    past: Option<Holder>,
) -> Result<Outcome, Failure> {
    let mine = Claim { node: shared.node, epoch };
    session.conn.query_drop(shared.sql.claim_alone(user, mine, past))?;
    if session.conn.affected_rows() > 0 {
        return Ok(Outcome::Done);
    }
    membership::check(session, shared)?;
    match session.list_text(&shared.sql.holder(user), read_holder)?.first() {
        None => Ok(Outcome::NoUser),
        Some((_, Some(other))) if *other == Holder::Node(mine) => Ok(Outcome::Done),
        Some((_, Some(other))) if Some(*other) != past => Ok(Outcome::InUse(*other)),
        Some(_) => Err(Failure::Conflict(format!("user {user} came free a moment ago"))),
    }
}

/// The same for what C++ servers see.
fn show_alone(session: &mut Session, shared: &Shared, user: UserId, epoch: u64) -> Result<Outcome, Failure> {
    if shared.mixed {
        session.conn.query_drop(shared.sql.show(user, Claim { node: shared.node, epoch }))?;
        if session.conn.affected_rows() == 0 {
            membership::check(session, shared)?;
        }
    }
    Ok(Outcome::Done)
}

/// A user and its holder.
fn read_holder(row: &mut mysql::Row) -> Result<(UserId, Option<Holder>), Failure> {
    let (state, node, epoch): (Option<String>, Option<u64>, Option<u64>) =
        (column(row, 1)?, column(row, 2)?, column(row, 3)?);
    let holder = match node {
        Some(node) => Some(Holder::Node(Claim { node: NodeId(node), epoch: epoch.unwrap_or_default() })),
        None => (state.as_deref() == Some("online")).then_some(Holder::Foreign),
    };
    Ok((column(row, 0)?, holder))
}

/// A message to be inserted.
struct Row<'a> {
    to: UserId,
    message: Cow<'a, [u8]>,
    key: u64,
}

/// Where the first message of a parcel stands.
enum Place {
    /// An earlier try has put it into this row.
    There(RowId),
    /// This one of the rows that are inserted at the end.
    Row(usize),
}

impl Place {
    fn id(&self, inserted: &[RowId]) -> RowId {
        match self {
            Place::There(id) => *id,
            // A parcel without messages has none.
            Place::Row(index) => inserted.get(*index).copied().unwrap_or_default(),
        }
    }
}

/// A name that is to be registered.
struct NewName {
    /// As it stands in the table.
    stored: String,
    key: NameKey,
}

struct Transaction<'a> {
    session: &'a mut Session,
    shared: &'a Shared,
    /// The holders of the users that are locked; users without an account are not in it.
    holders: HashMap<UserId, Option<Holder>>,
    /// Messages of an earlier try, by their keys.
    stored: HashMap<u64, RowId>,
    /// The next message's.
    next_key: u64,
    rows: Vec<Row<'a>>,
    places: Vec<Place>,
    /// Found while names were given their keys.
    namesakes: Vec<Namesake>,
    in_doubt: bool,
}

/// Begins the transaction, and locks all users that the batch is about. Returns their holders; users without an
/// account are not among them.
fn lock(session: &mut Session, shared: &Shared, batch: &[Write]) -> Result<HashMap<UserId, Option<Holder>>, Failure> {
    let mut users = Vec::new();
    for write in batch {
        match write {
            Write::Keep(parcels) => users.extend(parcels.iter().map(|parcel| parcel.to)),
            Write::Claim { user, .. }
            | Write::Show { user, .. }
            | Write::Release { user, .. }
            | Write::SetPassword { user, .. }
            | Write::SetDialect { user, .. }
            | Write::Remove { user, .. } => users.push(*user),
            // These concern no user that could have a holder.
            Write::Register { .. } | Write::AddFriend { .. } | Write::CreateGroup { .. } | Write::JoinGroup { .. } => {}
        }
    }
    users.sort_unstable();
    users.dedup();
    let mut chunks = users.chunks(LIST);
    let first = chunks.next().map(|users| shared.sql.lock_users(users));
    let mut holders: HashMap<_, _> =
        membership::begin(session, &shared.sql, first.as_deref(), read_holder)?.into_iter().collect();
    for users in chunks {
        holders.extend(session.list_text(&shared.sql.lock_users(users), read_holder)?);
    }
    Ok(holders)
}

impl<'a> Transaction<'a> {
    /// The recipients are locked, so what an earlier try has done is done by now, or never.
    fn look_for_messages(&mut self, count: u64) -> Result<(), Failure> {
        let Some(last) = count.checked_sub(1) else { return Ok(()) };
        let keys = (self.shared.once(self.next_key), self.shared.once(self.next_key + last));
        let found = self.session.list(&self.shared.sql.stored, keys, |row| {
            let once: Vec<u8> = column(row, 1)?;
            let key = once.last_chunk().map_or(0, |key| u64::from_be_bytes(*key));
            Ok((key, column(row, 0)?))
        })?;
        self.stored.extend(found);
        Ok(())
    }

    fn apply(&mut self, write: &'a Write) -> Result<Outcome, Failure> {
        let shared = self.shared;
        match write {
            Write::Register { name, password } => self.register(name, password),
            Write::SetPassword { user, password } => {
                let password = self.password(password)?;
                self.session.execute(&shared.sql.set_password, (password, user))?;
                Ok(Outcome::Done)
            }
            Write::SetDialect { user, dialect } => {
                self.session.execute(&shared.sql.set_dialect, (dialect.as_deref(), user))?;
                Ok(Outcome::Done)
            }
            Write::Claim { user, epoch, past } => self.claim(*user, *epoch, *past),
            Write::Show { user, epoch } => {
                let mine = Claim { node: shared.node, epoch: *epoch };
                if shared.mixed && self.holders.get(user) == Some(&Some(Holder::Node(mine))) {
                    self.session.conn.query_drop(shared.sql.show(*user, mine))?;
                }
                Ok(Outcome::Done)
            }
            Write::Release { user, epoch } => {
                let mine = Holder::Node(Claim { node: shared.node, epoch: *epoch });
                if self.holders.get(user) == Some(&Some(mine)) {
                    self.session.execute(&shared.sql.release, (user,))?;
                    self.holders.insert(*user, None);
                }
                Ok(Outcome::Done)
            }
            Write::AddFriend { user, friend } => match self.session.execute(&shared.sql.add_friend, (user, friend)) {
                Ok(0) => Ok(Outcome::NoUser),
                Ok(_) if self.is_over(shared.quotas.friends, &shared.sql.friends_of, *user)? => {
                    self.session.execute(&shared.sql.remove_friend, (user, friend))?;
                    Ok(Outcome::Full(Quota::Friends))
                }
                other => self.done_or_already(other),
            },
            Write::CreateGroup { creator, name, description } => self.create_group(*creator, name, description),
            Write::JoinGroup { user, group } => {
                if shared.quotas.members.is_some() {
                    // Joins of a group wait for each other, or each of them would count without the others.
                    self.session.list(&shared.sql.lock_group, (group,), |_| Ok(()))?;
                }
                match self.session.execute(&shared.sql.join_group, (user, group)) {
                    Ok(0) => Ok(Outcome::NoGroup),
                    Ok(_) if self.is_over(shared.quotas.members, &shared.sql.members_of, *group)? => {
                        self.session.execute(&shared.sql.remove_member, (user, group))?;
                        Ok(Outcome::Full(Quota::Members))
                    }
                    Ok(_) if self.is_over(shared.quotas.groups, &shared.sql.groups_of, *user)? => {
                        self.session.execute(&shared.sql.remove_member, (user, group))?;
                        Ok(Outcome::Full(Quota::Groups))
                    }
                    // The other nodes are read after the commit.
                    other => self
                        .done_or_already(other)
                        .map(|outcome| Outcome::Joined { already: outcome == Outcome::Already, nodes: Vec::new() }),
                }
            }
            Write::Keep(parcels) => {
                parcels.iter().map(|parcel| self.keep(parcel)).collect::<Result<_, _>>().map(Outcome::Kept)
            }
            Write::Remove { user, epoch, rows } => {
                let mine = Holder::Node(Claim { node: shared.node, epoch: *epoch });
                if self.holders.get(user) != Some(&Some(mine)) {
                    return Ok(Outcome::Lost);
                }
                shared.room().forget(*user);
                let mut rows = rows.clone();
                rows.sort_unstable();
                for rows in rows.chunks(LIST) {
                    self.session.conn.query_drop(shared.sql.remove(*user, rows))?;
                }
                Ok(Outcome::Done)
            }
        }
    }

    /// What an insert into a table of pairs came to. If an earlier try may have put the pair there,
    /// it has.
    fn done_or_already(&self, result: mysql::Result<u64>) -> Result<Outcome, Failure> {
        match result {
            Ok(_) => Ok(Outcome::Done),
            Err(error) if is_duplicate(&error) && self.in_doubt => Ok(Outcome::Done),
            Err(error) if is_duplicate(&error) => Ok(Outcome::Already),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there are more than the quota, now that one was added.
    fn is_over(&mut self, quota: Option<u32>, count: &str, of: u32) -> Result<bool, Failure> {
        let Some(quota) = quota else { return Ok(false) };
        let there = self.session.find(count, (of, quota.saturating_add(1)), |row| column::<u32>(row, 0))?;
        Ok(there.unwrap_or_default() > quota)
    }

    /// Whether there are as many as the quota allows, before one is added.
    fn is_full(&mut self, quota: Option<u32>, count: &str, of: u32) -> Result<bool, Failure> {
        let Some(quota) = quota else { return Ok(false) };
        let there = self.session.find(count, (of, quota), |row| column::<u32>(row, 0))?;
        Ok(there.unwrap_or_default() >= quota)
    }

    fn password(&mut self, password: &str) -> Result<String, Failure> {
        // What cannot be written for C++ servers can still be read by us.
        let encoded = self.shared.texts.encode(self.session, password, usize::MAX)?;
        Ok(encoded.map_or_else(|| password.to_owned(), Cow::into_owned))
    }

    fn register(&mut self, name: &str, password: &str) -> Result<Outcome, Failure> {
        let shared = self.shared;
        let Some(name) = self.name(name)? else { return Ok(Outcome::Already) };
        let password = self.password(password)?;
        if !self.is_taken(&shared.sql.users, &name)?
            && let Some(user) =
                self.insert_named(&shared.sql.users, &name, &shared.sql.register, [&name.stored, &password])?
        {
            return Ok(Outcome::Id(user));
        }
        // A hash has a salt of its own: by it we know our row from all others.
        let ours = match self.in_doubt {
            true => self.session.find(&shared.sql.registered, (&name.stored, &password), |row| column(row, 0))?,
            false => None,
        };
        Ok(ours.map_or(Outcome::Already, Outcome::Id))
    }

    fn create_group(&mut self, creator: UserId, name: &str, description: &str) -> Result<Outcome, Failure> {
        let shared = self.shared;
        let Some(name) = self.name(name)? else { return Ok(Outcome::Already) };
        let description = match shared.texts.encode(self.session, description, DESCRIPTION_CHARS)? {
            Some(description) => description.into_owned(),
            None => description.replace(|character: char| !character.is_ascii(), "?"),
        };
        let named = &shared.sql.groups_by_name;
        if !self.is_taken(named, &name)? {
            if self.is_full(shared.quotas.groups, &shared.sql.groups_of, creator)? {
                return Ok(Outcome::Full(Quota::Groups));
            }
            let texts = [&name.stored, &description];
            if let Some(group) = self.insert_named(named, &name, &shared.sql.create_group, texts)? {
                self.session.execute(&shared.sql.add_creator, (group, creator))?;
                return Ok(Outcome::Id(group));
            }
        }
        let ours = match self.in_doubt {
            true => self.session.find(&shared.sql.created_group, (&name.stored, creator), |row| column(row, 0))?,
            false => None,
        };
        Ok(ours.map_or(Outcome::Already, Outcome::Id))
    }

    /// A name as it is stored; `None`, which is to say taken, if it cannot be.
    fn name(&mut self, name: &str) -> Result<Option<NewName>, Failure> {
        let Some(stored) = self.shared.texts.encode(self.session, name, NAME_CHARS)? else {
            log::warn!("C++ servers could not read the name {name:?}: it is refused, as they do");
            return Ok(None);
        };
        Ok(Some(NewName { stored: stored.into_owned(), key: hash(name) }))
    }

    /// Whether the name is taken. This is checked before it is inserted, since an INSERT that is refused uses up
    /// an id.
    fn is_taken(&mut self, named: &Named, name: &NewName) -> Result<bool, Failure> {
        self.namesakes.extend(fill_unseen(self.session, named)?);
        let params = (&name.key[..], &name.stored);
        Ok(self.session.find(&named.taken, params, |_| Ok(()))?.is_some())
    }

    /// Inserts a row with a name of its own, two texts and the name's key. Returns its id; `None`: another
    /// server was faster with the name.
    fn insert_named(
        &mut self,
        named: &Named,
        name: &NewName,
        insert: &str,
        [first, second]: [&String; 2],
    ) -> Result<Option<u32>, Failure> {
        match self.session.execute(insert, (first, second, &name.key[..])) {
            Ok(_) => {
                let id = self.session.conn.last_insert_id();
                u32::try_from(id).map(Some).map_err(|_| Failure::Refused(format!("an id of {id} is too large")))
            }
            // It may also be the id that is there already, where there are no further ones.
            Err(error) if is_duplicate(&error) && self.is_taken(named, name)? => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn claim(&mut self, user: UserId, epoch: u64, past: Option<Holder>) -> Result<Outcome, Failure> {
        let mine = Holder::Node(Claim { node: self.shared.node, epoch });
        match self.holders.get(&user) {
            None => Ok(Outcome::NoUser),
            Some(Some(other)) if *other == mine => Ok(Outcome::Done),
            Some(Some(other)) if Some(*other) != past => Ok(Outcome::InUse(*other)),
            Some(_) => {
                self.session.execute(&self.shared.sql.claim, (self.shared.node.0, epoch, user))?;
                self.holders.insert(user, Some(mine));
                Ok(Outcome::Done)
            }
        }
    }

    fn keep(&mut self, parcel: &'a Parcel) -> Result<Kept, Failure> {
        let first_key = self.next_key;
        self.next_key += parcel.messages.len() as u64;
        let wanted = parcel.messages.len();
        let there: Vec<RowId> = (first_key..self.next_key).filter_map(|key| self.stored.get(&key).copied()).collect();
        let other = self.holders.get(&parcel.to).map(|holder| holder.filter(|holder| !self.is_mine(*holder)));
        let (place, granted) = if let Some(id) = there.first() {
            // The earlier try found room for this number. A holder that has got the user since then has read
            // them or will.
            (Place::There(*id), there.len())
        } else {
            match other {
                None => return Ok(Kept::NoUser),
                Some(Some(other)) if Some(other) != parcel.past => return Ok(Kept::Elsewhere(other)),
                Some(_) => {}
            }
            let granted = self.take_room(parcel.to, wanted)?;
            let place = Place::Row(if granted == 0 { usize::MAX } else { self.rows.len() });
            self.rows.extend(parcel.messages[..granted].iter().zip(first_key..).map(|(message, key)| Row {
                to: parcel.to,
                message: self.shared.texts.message(message),
                key,
            }));
            (place, granted)
        };
        if granted < wanted {
            return Ok(Kept::Full(granted));
        }
        self.places.push(place);
        let place = self.places.len() as RowId - 1;
        match other.flatten() {
            Some(other) if Some(other) == parcel.past => Ok(Kept::Past(place)),
            _ => Ok(Kept::Stored(place)),
        }
    }

    /// How many of `wanted` messages the user's store has room for.
    fn take_room(&mut self, user: UserId, wanted: usize) -> Result<usize, Failure> {
        let shared = self.shared;
        let (known, enough) = {
            let mut room = shared.room();
            (room.known(user, wanted), room.enough())
        };
        if let Some(granted) = known {
            return Ok(granted);
        }
        // Not under the room's lock, for the database may take its time.
        let there = self.session.find(&shared.sql.messages_of, (user, enough), |row| column::<u32>(row, 0))?;
        // What this transaction has yet to insert counts, too.
        let pending = self.rows.iter().filter(|row| row.to == user).count();
        let there = there.unwrap_or_default().saturating_add(u32::try_from(pending).unwrap_or(u32::MAX));
        Ok(shared.room().counted(user, wanted, there))
    }

    fn is_mine(&self, holder: Holder) -> bool {
        matches!(holder, Holder::Node(claim) if claim.node == self.shared.node)
    }

    /// Inserts all that is to be kept, in order; the ids are in the same order.
    fn insert_messages(&mut self) -> Result<Vec<RowId>, Failure> {
        let max_packet = self.session.max_packet;
        let mut ids = Vec::with_capacity(self.rows.len());
        let mut rows = self.rows.as_slice();
        while let Some(first) = rows.first() {
            if first.message.len().saturating_add(PACKET_REST) > max_packet {
                return Err(Failure::Refused(format!(
                    "a message of {} bytes is too large for the database's max_allowed_packet of {max_packet}",
                    first.message.len(),
                )));
            }
            let (these, rest) = rows.split_at(fitting(rows, INSERT_BYTES.min(max_packet / 2)));
            let mut params = Vec::with_capacity(these.len() * 3);
            for row in these {
                let once = self.shared.once(row.key);
                params.extend([row.to.into(), Value::from(&*row.message), Value::from(&once[..])]);
            }
            self.session.execute(&self.shared.sql.insert_messages(these.len()), params)?;
            // One statement's ids are given out at once.
            let first_id = self.session.conn.last_insert_id();
            ids.extend((0..these.len() as u64).map(|index| first_id + index * self.session.id_step));
            rows = rest;
        }
        Ok(ids)
    }
}

/// How many of the rows to insert at once: a power of two.
fn fitting(rows: &[Row], max_bytes: usize) -> usize {
    let mut bytes = 0;
    let count = rows.iter().take(INSERT_ROWS).take_while(|row| {
        bytes += row.message.len();
        bytes <= max_bytes
    });
    match count.count() {
        0 => 1,
        count => 1 << count.ilog2(),
    }
}
