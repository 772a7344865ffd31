//! A database in memory, with the semantics of the traits' documentation, and with everything that can be wrong
//! with it or with one node's line to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chat_server::store::{
    Account, Claim, Connection, Entry, Friend, Group, GroupId, Holder, Kept, Loaded, NodeId, Outcome, Page, Parcel,
    RowId, StoreError, UserId, Write,
};

use crate::rng::Rng;

/// A message with this in it is refused by the database, whenever it is to be stored.
pub const POISON: u8 = b'!';

/// What is wrong with the store, or with a node's line to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trouble {
    #[default]
    None,
    /// Every call fails.
    Away,
    /// Writes fail, as with a full disk.
    ReadOnly,
    /// For some writes it is not known whether they were done, or will be.
    LosesAnswers,
}

/// Names one offline message of a node until it is removed.
type MessageKey = (NodeId, u64);

struct Row {
    user: UserId,
    text: Arc<[u8]>,
    key: Option<MessageKey>,
}

/// A batch whose COMMIT is still on its way, though nothing waits for its answer any more.
struct Late {
    node: NodeId,
    batch: Vec<Write>,
    first_key: u64,
}

/// A node's rows in the membership.
#[derive(Debug, Clone, Copy, Default)]
struct Enlisted {
    looks: u64,
    marked: bool,
}

pub struct Database {
    /// Several nodes share it, so there is a membership.
    is_shared: bool,
    rng: Rng,
    password: String,
    /// The quota of offline messages for one user.
    quota: Option<usize>,
    claims: BTreeMap<UserId, Claim>,
    /// Users whom C++ nodes see online although one of our nodes has them.
    shown: BTreeSet<UserId>,
    /// Users whom a C++ node has set online.
    foreign: BTreeSet<UserId>,
    dialects: BTreeMap<UserId, String>,
    groups: BTreeMap<GroupId, BTreeSet<UserId>>,
    rows: BTreeMap<RowId, Row>,
    next_row: RowId,
    keys: BTreeMap<MessageKey, RowId>,
    next_key: u64,
    late: Vec<Late>,
    membership: BTreeMap<NodeId, Enlisted>,
    /// Nodes whose claims were taken from them.
    freed: BTreeSet<NodeId>,
    trouble: Trouble,
    lines: BTreeMap<NodeId, Trouble>,
    /// Set by the world.
    pub clock: Duration,
    /// Since when no node has a user.
    unclaimed: BTreeMap<UserId, Duration>,
    /// Rows that were removed, since it was last asked.
    removed: Vec<(UserId, Arc<[u8]>)>,
    /// Something has failed at some time.
    pub has_failed: bool,
}

impl Database {
    pub fn new(seed: u64, is_shared: bool, password: String, quota: Option<usize>) -> Database {
        Database {
            is_shared,
            rng: Rng::new(seed),
            password,
            quota,
            claims: BTreeMap::new(),
            shown: BTreeSet::new(),
            foreign: BTreeSet::new(),
            dialects: BTreeMap::new(),
            groups: BTreeMap::new(),
            rows: BTreeMap::new(),
            next_row: 0,
            keys: BTreeMap::new(),
            next_key: 0,
            late: Vec::new(),
            membership: BTreeMap::new(),
            freed: BTreeSet::new(),
            trouble: Trouble::None,
            lines: BTreeMap::new(),
            clock: Duration::ZERO,
            unclaimed: BTreeMap::new(),
            removed: Vec::new(),
            has_failed: false,
        }
    }

    // -- what the world does to it ----------------------------------------------------------------

    pub fn set_trouble(&mut self, trouble: Trouble) {
        self.trouble = trouble;
        self.has_failed |= trouble != Trouble::None;
    }

    pub fn set_line(&mut self, node: NodeId, trouble: Trouble) {
        self.lines.insert(node, trouble);
        self.has_failed |= trouble != Trouble::None;
    }

    pub fn mend(&mut self) {
        self.trouble = Trouble::None;
        self.lines.clear();
    }

    fn trouble_of(&self, node: NodeId) -> Trouble {
        match self.trouble {
            Trouble::None => self.lines.get(&node).copied().unwrap_or_default(),
            trouble => trouble,
        }
    }

    // -- what the world looks at ------------------------------------------------------------------

    pub fn claim(&self, user: UserId) -> Option<Claim> {
        self.claims.get(&user).copied()
    }

    pub fn claims(&self) -> usize {
        self.claims.len()
    }

    /// No node has had the user since before `time`.
    pub fn is_unclaimed_since(&self, user: UserId, time: Duration) -> bool {
        !self.claims.contains_key(&user)
            && !self.foreign.contains(&user)
            && self.unclaimed.get(&user).is_none_or(|since| *since < time)
    }

    pub fn rows(&self) -> impl Iterator<Item = (UserId, &[u8])> {
        self.rows.values().map(|row| (row.user, &*row.text))
    }

    pub fn take_removed(&mut self) -> Vec<(UserId, Arc<[u8]>)> {
        std::mem::take(&mut self.removed)
    }

    pub fn has_freed(&self, node: NodeId) -> bool {
        self.freed.contains(&node)
    }

    pub fn add_member(&mut self, group: GroupId, user: UserId) {
        self.groups.entry(group).or_default().insert(user);
    }

    pub fn group(&self, group: GroupId) -> &BTreeSet<UserId> {
        &self.groups[&group]
    }

    // -- the membership ---------------------------------------------------------------------------------

    fn of_roll(&mut self, node: NodeId) -> Result<(), StoreError> {
        assert!(self.is_shared, "a node that is alone asks for the membership");
        match self.trouble_of(node) {
            Trouble::Away => Err(away()),
            Trouble::LosesAnswers if self.rng.one_in(4) => Err(away()),
            _ => Ok(()),
        }
    }

    pub fn enlist(&mut self, node: NodeId) -> Result<(), StoreError> {
        if !self.is_shared {
            // No other session uses it: what a former life has left is over.
            self.claims.clear();
            self.shown.clear();
            return Ok(());
        }
        self.of_roll(node)?;
        self.membership.insert(node, Enlisted::default());
        Ok(())
    }

    /// Returns the nodes that are marked.
    pub fn look(&mut self, node: NodeId) -> Result<Vec<NodeId>, StoreError> {
        self.glance(node)?;
        self.membership.entry(node).and_modify(|row| row.looks += 1);
        Ok(self.membership.iter().filter(|(_, row)| row.marked).map(|(node, _)| *node).collect())
    }

    pub fn glance(&mut self, node: NodeId) -> Result<(), StoreError> {
        self.of_roll(node)?;
        self.unmarked(node)
    }

    fn unmarked(&self, node: NodeId) -> Result<(), StoreError> {
        match self.membership.get(&node) {
            _ if !self.is_shared => Ok(()),
            Some(row) if !row.marked => Ok(()),
            _ => Err(StoreError::Marked),
        }
    }

    pub fn nodes(&mut self, by: NodeId) -> Result<Vec<Entry>, StoreError> {
        self.of_roll(by)?;
        let has_claims = |node| self.claims.values().any(|claim| claim.node == node);
        let mut nodes: BTreeSet<NodeId> = self.membership.keys().copied().collect();
        nodes.extend(self.claims.values().map(|claim| claim.node));
        nodes.remove(&by);
        let entry = |node| {
            let row = self.membership.get(&node);
            let (looks, marked) = row.map_or((0, true), |row| (row.looks, row.marked));
            Entry { node, looks, marked, has_claims: has_claims(node) }
        };
        Ok(nodes.into_iter().map(entry).collect())
    }

    pub fn mark(&mut self, by: NodeId, node: NodeId, looks: u64) -> Result<bool, StoreError> {
        self.of_roll(by)?;
        self.unmarked(by)?;
        // It waits for that node's open transactions.
        self.end_lost(node);
        let row = self.membership.get_mut(&node).filter(|row| row.looks == looks);
        Ok(row.map(|row| row.marked = true).is_some())
    }

    pub fn free(&mut self, by: NodeId, node: NodeId) -> Result<(), StoreError> {
        self.of_roll(by)?;
        self.unmarked(by)?;
        if self.membership.get(&node).is_none_or(|row| row.marked) {
            self.membership.remove(&node);
            self.freed.insert(node);
            self.end_claims(|claim| claim.node == node);
        }
        Ok(())
    }

    /// Users of this node are shown online again where a C++ node's end has set all users offline.
    pub fn reassert(&mut self, node: NodeId) -> Result<(), StoreError> {
        self.of_roll(node)?;
        self.unmarked(node)?;
        let mine = self.claims.iter().filter(|(_, claim)| claim.node == node).map(|(user, _)| *user);
        self.shown.extend(mine);
        Ok(())
    }

    /// Strikes a node off the membership at the end of its shutdown, with all its claims.
    pub fn release_all(&mut self, node: NodeId) -> Result<(), StoreError> {
        match self.trouble_of(node) {
            Trouble::None => {}
            _ => return Err(away()),
        }
        self.unmarked(node)?;
        self.membership.remove(&node);
        self.end_claims(|claim| claim.node == node);
        Ok(())
    }

    fn end_claims(&mut self, which: impl Fn(&Claim) -> bool) {
        let users: Vec<UserId> = self.claims.iter().filter(|(_, claim)| which(claim)).map(|(user, _)| *user).collect();
        users.into_iter().for_each(|user| self.end_claim(user));
    }

    fn end_claim(&mut self, user: UserId) {
        self.claims.remove(&user);
        self.shown.remove(&user);
        self.unclaimed.insert(user, self.clock);
    }

    // -- C++ nodes, which know of no claims -------------------------------------------------------

    /// What `User.state` says.
    pub fn is_online(&self, user: UserId) -> bool {
        self.foreign.contains(&user) || self.shown.contains(&user)
    }

    pub fn set_foreign(&mut self, user: UserId, online: bool) {
        if online {
            self.foreign.insert(user);
        } else {
            self.foreign.remove(&user);
            self.unclaimed.insert(user, self.clock);
        }
    }

    /// What a C++ node does at its end.
    pub fn set_everybody_offline(&mut self) {
        self.shown.clear();
        let foreign: Vec<UserId> = self.foreign.iter().copied().collect();
        foreign.into_iter().for_each(|user| self.set_foreign(user, false));
    }

    pub fn insert(&mut self, user: UserId, text: Arc<[u8]>, key: Option<MessageKey>) -> RowId {
        self.next_row += 1;
        self.rows.insert(self.next_row, Row { user, text, key });
        if let Some(key) = key {
            assert!(self.keys.insert(key, self.next_row).is_none(), "a key is used twice");
        }
        self.next_row
    }

    fn delete(&mut self, row: RowId) -> Option<(UserId, Arc<[u8]>)> {
        let Row { user, text, key } = self.rows.remove(&row)?;
        key.iter().for_each(|key| _ = self.keys.remove(key));
        Some((user, text))
    }

    fn rows_of(&self, user: UserId) -> impl Iterator<Item = (RowId, &Arc<[u8]>)> {
        self.rows.iter().filter(move |(_, row)| row.user == user).map(|(id, row)| (*id, &row.text))
    }

    /// All of a user's offline messages, which are removed before they are read.
    pub fn take_all(&mut self, user: UserId) -> Vec<Arc<[u8]>> {
        let rows: Vec<RowId> = self.rows_of(user).map(|(row, _)| row).collect();
        rows.into_iter().filter_map(|row| self.delete(row)).map(|(_, text)| text).collect()
    }

    // -- writes -----------------------------------------------------------------------------------

    fn holder(&self, user: UserId) -> Option<Holder> {
        match self.claims.get(&user) {
            Some(claim) => Some(Holder::Node(*claim)),
            None => self.foreign.contains(&user).then_some(Holder::Foreign),
        }
    }

    /// `key`: of its first message. Those that are there already are not stored again.
    fn keep(&mut self, node: NodeId, parcel: &Parcel, key: u64) -> Kept {
        let holder = self.holder(parcel.to);
        let is_past = match holder {
            Some(Holder::Node(claim)) if claim.node == node => false,
            Some(holder) if parcel.past != Some(holder) => {
                // As many as an earlier try found room for. Who has got the user since then has read them, or will.
                let keys = (key..).take(parcel.messages.len());
                let there: Vec<RowId> = keys.filter_map(|key| self.keys.get(&(node, key)).copied()).collect();
                return match there.first() {
                    None => Kept::Elsewhere(holder),
                    Some(_) if there.len() < parcel.messages.len() => Kept::Full(there.len()),
                    Some(first) => Kept::Stored(*first),
                };
            }
            holder => holder.is_some(),
        };
        let mut first = None;
        for (stored, (message, key)) in parcel.messages.iter().zip(key..).enumerate() {
            if let Some(row) = self.keys.get(&(node, key)) {
                first.get_or_insert(*row);
                continue;
            }
            if self.quota.is_some_and(|quota| self.rows_of(parcel.to).count() >= quota) {
                return Kept::Full(stored);
            }
            if message.contains(&POISON) {
                return Kept::Refused(stored);
            }
            let row = self.insert(parcel.to, Arc::clone(message), Some((node, key)));
            first.get_or_insert(row);
        }
        let first = first.unwrap_or_default();
        if is_past { Kept::Past(first) } else { Kept::Stored(first) }
    }

    /// The writes of a batch, the first message of which has this key.
    fn write_batch(&mut self, node: NodeId, batch: &[Write], mut key: u64) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for write in batch {
            outcomes.push(self.write(node, write, key));
            key += write.messages();
        }
        outcomes
    }

    /// A COMMIT that was still on its way arrives, unless the same has been stored by now.
    pub fn commit_late(&mut self) -> bool {
        let is_any = !self.late.is_empty();
        if is_any {
            let at = self.rng.below(self.late.len());
            self.finish_late(at);
        }
        is_any
    }

    /// Before a node does anything else, the database ends its connections that were lost: what these were asked for
    /// is done by then, or never.
    fn end_lost(&mut self, node: NodeId) {
        while let Some(at) = self.late.iter().position(|late| late.node == node) {
            self.finish_late(at);
        }
    }

    fn finish_late(&mut self, at: usize) {
        let Late { node, batch, first_key } = self.late.swap_remove(at);
        let messages: u64 = batch.iter().map(Write::messages).sum();
        let is_done = (first_key..first_key + messages).any(|key| self.keys.contains_key(&(node, key)));
        if !is_done && self.rng.one_in(2) && self.unmarked(node).is_ok() {
            self.write_batch(node, &batch, first_key);
        }
    }

    fn write(&mut self, node: NodeId, write: &Write, first_key: u64) -> Outcome {
        match write {
            Write::Claim { user, epoch, past } => {
                let claim = Claim { node, epoch: *epoch };
                match self.holder(*user) {
                    Some(holder) if holder != Holder::Node(claim) && *past != Some(holder) => Outcome::InUse(holder),
                    _ => {
                        self.foreign.remove(user);
                        self.shown.remove(user);
                        self.claims.insert(*user, claim);
                        Outcome::Done
                    }
                }
            }
            Write::Show { user, epoch } => {
                if self.has(node, *user, *epoch) {
                    self.shown.insert(*user);
                }
                Outcome::Done
            }
            Write::Release { user, epoch } => {
                if self.has(node, *user, *epoch) {
                    self.end_claim(*user);
                }
                Outcome::Done
            }
            Write::JoinGroup { user, group } => {
                let Some(members) = self.groups.get_mut(group) else { return Outcome::NoGroup };
                let already = !members.insert(*user);
                let others = self.membership.iter().filter(|(other, row)| **other != node && !row.marked);
                Outcome::Joined { already, nodes: others.map(|(node, _)| *node).collect() }
            }
            Write::Keep(parcels) => {
                let mut key = first_key;
                let mut kept = Vec::new();
                for parcel in parcels {
                    kept.push(self.keep(node, parcel, key));
                    key += parcel.messages.len() as u64;
                }
                Outcome::Kept(kept)
            }
            Write::Remove { user, epoch, .. } if !self.has(node, *user, *epoch) => Outcome::Lost,
            Write::Remove { user, rows, .. } => {
                for row in rows {
                    if let Some((owner, text)) = self.delete(*row) {
                        assert_eq!(owner, *user, "somebody else's row is removed");
                        self.removed.push((owner, text));
                    }
                }
                Outcome::Done
            }
            Write::SetDialect { user, dialect } => {
                match dialect {
                    Some(dialect) => _ = self.dialects.insert(*user, dialect.clone()),
                    None => _ = self.dialects.remove(user),
                }
                Outcome::Done
            }
            other => panic!("not simulated: {other:?}"),
        }
    }

    /// A transaction of writes, by whatever line its node has.
    fn transact(&mut self, node: NodeId, batch: &[Write], first_key: u64) -> Result<Vec<Outcome>, StoreError> {
        let fate = match self.trouble_of(node) {
            Trouble::None => Fate::Done,
            Trouble::Away | Trouble::ReadOnly => Fate::Failed,
            // A file is this process's own: what has failed is not done.
            Trouble::LosesAnswers if !self.is_shared => self.rng.pick(&[Fate::Done, Fate::Failed]),
            Trouble::LosesAnswers => self.rng.pick(&[Fate::Done, Fate::DoneInDoubt, Fate::LateInDoubt, Fate::Failed]),
        };
        if let Fate::Failed = fate {
            return Err(away());
        }
        self.end_lost(node);
        self.unmarked(node)?;
        if let Fate::LateInDoubt = fate {
            self.late.push(Late { node, batch: batch.to_vec(), first_key });
        } else {
            let outcomes = self.write_batch(node, batch, first_key);
            if let Fate::Done = fate {
                return Ok(outcomes);
            }
        }
        Err(StoreError::InDoubt { key: first_key, why: "the answer is lost".into() })
    }

    fn has(&self, node: NodeId, user: UserId, epoch: u64) -> bool {
        self.claims.get(&user) == Some(&Claim { node, epoch })
    }
}

/// What becomes of a transaction.
#[derive(Clone, Copy)]
enum Fate {
    Done,
    DoneInDoubt,
    LateInDoubt,
    Failed,
}

fn away() -> StoreError {
    StoreError::Unavailable("it is away".into())
}

/// One node's connection to it.
pub struct Line {
    database: Arc<Mutex<Database>>,
    node: NodeId,
}

impl Line {
    pub fn new(database: &Arc<Mutex<Database>>, node: NodeId) -> Line {
        Line { database: Arc::clone(database), node }
    }

    /// Locks the database for reading. `is_checked`: the transaction looks at the node's mark first.
    fn read(&self, is_checked: bool) -> Result<MutexGuard<'_, Database>, StoreError> {
        let mut database = self.database.lock().expect("a database");
        let is_lost = match database.trouble_of(self.node) {
            Trouble::None | Trouble::ReadOnly => false,
            Trouble::Away => true,
            Trouble::LosesAnswers => database.rng.one_in(2),
        };
        if is_lost {
            return Err(away());
        }
        database.end_lost(self.node);
        if is_checked {
            database.unmarked(self.node)?;
        }
        Ok(database)
    }
}

impl Connection for Line {
    fn write(&mut self, batch: &[Write]) -> Result<Vec<Outcome>, StoreError> {
        let mut database = self.database.lock().expect("a database");
        let first_key = database.next_key;
        database.next_key += batch.iter().map(Write::messages).sum::<u64>();
        database.transact(self.node, batch, first_key)
    }

    fn write_again(&mut self, write: &Write, key: u64) -> Result<Outcome, StoreError> {
        let mut database = self.database.lock().expect("a database");
        let outcomes = database.transact(self.node, std::slice::from_ref(write), key)?;
        Ok(outcomes.into_iter().next().expect("an outcome"))
    }

    fn account(&mut self, user: UserId) -> Result<Option<Account>, StoreError> {
        let password = self.read(false)?.password.clone();
        Ok(Some(Account { name: format!("u{user}"), password }))
    }

    fn friends(&mut self, _: UserId) -> Result<Vec<Friend>, StoreError> {
        self.read(false).map(|_| Vec::new())
    }

    fn groups(&mut self, _: UserId) -> Result<Vec<Group>, StoreError> {
        self.read(false).map(|_| Vec::new())
    }

    fn members(&mut self, group: GroupId) -> Result<Option<Vec<UserId>>, StoreError> {
        Ok(self.read(false)?.groups.get(&group).map(|members| members.iter().copied().collect()))
    }

    fn page(&mut self, user: UserId, max_bytes: usize) -> Result<Page, StoreError> {
        let database = self.read(true)?;
        let (mut page, mut bytes) = (Page::default(), 0);
        for (row, text) in database.rows_of(user) {
            bytes += text.len();
            if !page.messages.is_empty() && bytes > max_bytes {
                page.more = true;
                break;
            }
            page.messages.push((row, Box::from(&**text)));
        }
        Ok(page)
    }

    fn load(&mut self, user: UserId, max_bytes: usize) -> Result<Loaded, StoreError> {
        let page = self.page(user, max_bytes)?;
        let dialect = self.database.lock().expect("a database").dialects.get(&user).cloned();
        Ok(Loaded { page, dialect, ..Loaded::default() })
    }
}
