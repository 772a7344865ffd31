//! A store in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use chat_server::store::{
    Account, Claim, Connection, Friend, Group, GroupId, Holder, Kept, Loaded, Member, NodeId, Outcome, Page, RowId,
    StoreError, UserId, Write,
};
use chat_server::wire::name;

/// The only one.
pub const NODE: NodeId = NodeId(1);

/// A store in memory, with the semantics of the trait's documentation.
#[derive(Default)]
pub struct Memory {
    /// Name and password, by id less one.
    accounts: Vec<(String, String)>,
    dialects: BTreeMap<UserId, String>,
    claims: BTreeMap<UserId, u64>,
    friends: BTreeSet<(UserId, UserId)>,
    groups: Vec<(String, String, Vec<UserId>)>,
    rows: BTreeMap<RowId, (UserId, Arc<[u8]>)>,
    next_row: RowId,
}

pub struct Memories(pub Arc<Mutex<Memory>>);

impl Memory {
    pub fn with(accounts: Vec<(String, String)>) -> Memory {
        Memory { accounts, ..Memory::default() }
    }

    fn has(&self, user: UserId) -> bool {
        user >= 1 && user as usize <= self.accounts.len()
    }

    fn name(&self, user: UserId) -> String {
        self.accounts[user as usize - 1].0.clone()
    }

    fn state(&self, user: UserId) -> &'static str {
        if self.claims.contains_key(&user) { "online" } else { "offline" }
    }

    fn write(&mut self, write: &Write) -> Outcome {
        match write {
            Write::Register { name, password } => {
                if self.accounts.iter().any(|(taken, _)| name::key(taken) == name::key(name)) {
                    return Outcome::Already;
                }
                self.accounts.push((name.clone(), password.clone()));
                Outcome::Id(self.accounts.len() as u32)
            }
            Write::SetPassword { .. } => Outcome::Done,
            Write::SetDialect { user, dialect } => {
                match dialect {
                    Some(dialect) if self.has(*user) => _ = self.dialects.insert(*user, dialect.clone()),
                    _ => _ = self.dialects.remove(user),
                }
                Outcome::Done
            }
            Write::Claim { user, .. } if !self.has(*user) => Outcome::NoUser,
            Write::Claim { user, epoch, past } => match self.claims.get(user) {
                Some(held) if held != epoch && *past != Some(holder(*held)) => Outcome::InUse(holder(*held)),
                _ => {
                    self.claims.insert(*user, *epoch);
                    Outcome::Done
                }
            },
            Write::Release { user, epoch } => {
                if self.claims.get(user) == Some(epoch) {
                    self.claims.remove(user);
                }
                Outcome::Done
            }
            Write::AddFriend { friend, .. } if !self.has(*friend) => Outcome::NoUser,
            Write::AddFriend { user, friend } => {
                if self.friends.insert((*user, *friend)) {
                    Outcome::Done
                } else {
                    Outcome::Already
                }
            }
            Write::CreateGroup { creator, name, description } => {
                if self.groups.iter().any(|(taken, _, _)| name::key(taken) == name::key(name)) {
                    return Outcome::Already;
                }
                self.groups.push((name.clone(), description.clone(), vec![*creator]));
                Outcome::Id(self.groups.len() as u32)
            }
            Write::JoinGroup { user, group } => match self.groups.get_mut(*group as usize - 1) {
                None => Outcome::NoGroup,
                Some((_, _, members)) => {
                    let already = members.contains(user);
                    if !already {
                        members.push(*user);
                    }
                    Outcome::Joined { already, nodes: Vec::new() }
                }
            },
            Write::Keep(parcels) => Outcome::Kept(
                parcels
                    .iter()
                    .map(|parcel| {
                        if !self.has(parcel.to) {
                            return Kept::NoUser;
                        }
                        let first = self.next_row + 1;
                        for message in &parcel.messages {
                            self.next_row += 1;
                            self.rows.insert(self.next_row, (parcel.to, Arc::clone(message)));
                        }
                        Kept::Stored(first)
                    })
                    .collect(),
            ),
            Write::Show { .. } => Outcome::Done,
            Write::Remove { user, epoch, .. } if self.claims.get(user) != Some(epoch) => Outcome::Lost,
            Write::Remove { rows, .. } => {
                rows.iter().for_each(|row| _ = self.rows.remove(row));
                Outcome::Done
            }
        }
    }
}

/// The only node, by this claim.
fn holder(epoch: u64) -> Holder {
    Holder::Node(Claim { node: NODE, epoch })
}

impl Connection for Memories {
    fn write(&mut self, batch: &[Write]) -> Result<Vec<Outcome>, StoreError> {
        let mut memory = self.0.lock().unwrap();
        Ok(batch.iter().map(|write| memory.write(write)).collect())
    }

    fn account(&mut self, user: UserId) -> Result<Option<Account>, StoreError> {
        let memory = self.0.lock().unwrap();
        let account = user.checked_sub(1).and_then(|index| memory.accounts.get(index as usize));
        Ok(account.map(|(name, password)| Account { name: name.clone(), password: password.clone() }))
    }

    fn friends(&mut self, user: UserId) -> Result<Vec<Friend>, StoreError> {
        let memory = self.0.lock().unwrap();
        let friends = memory.friends.range((user, 0)..=(user, UserId::MAX));
        let friend = |&(_, id): &(UserId, UserId)| Friend { id, name: memory.name(id), state: memory.state(id) };
        Ok(friends.map(friend).collect())
    }

    fn groups(&mut self, user: UserId) -> Result<Vec<Group>, StoreError> {
        let memory = self.0.lock().unwrap();
        let mut groups = Vec::new();
        for (index, (name, description, members)) in memory.groups.iter().enumerate() {
            if !members.contains(&user) {
                continue;
            }
            let member = |&id: &UserId| Member {
                id,
                name: memory.name(id),
                state: memory.state(id),
                role: if id == members[0] { "creator" } else { "normal" },
            };
            let mut users: Vec<Member> = members.iter().map(member).collect();
            users.sort_by_key(|member| member.id);
            groups.push(Group {
                id: index as GroupId + 1,
                groupname: name.clone(),
                groupdesc: description.clone(),
                members: users.len() as u32,
                users,
            });
        }
        Ok(groups)
    }

    fn members(&mut self, group: GroupId) -> Result<Option<Vec<UserId>>, StoreError> {
        let memory = self.0.lock().unwrap();
        let members = group.checked_sub(1).and_then(|index| memory.groups.get(index as usize));
        Ok(members.map(|(_, _, members)| {
            let mut members = members.clone();
            members.sort_unstable();
            members
        }))
    }

    fn page(&mut self, user: UserId, max_bytes: usize) -> Result<Page, StoreError> {
        let memory = self.0.lock().unwrap();
        let (mut page, mut bytes) = (Page::default(), 0);
        for (row, (_, text)) in memory.rows.iter().filter(|(_, (owner, _))| *owner == user) {
            bytes += text.len();
            if !page.messages.is_empty() && bytes > max_bytes {
                page.more = true;
                break;
            }
            page.messages.push((*row, Box::from(&**text)));
        }
        Ok(page)
    }

    fn load(&mut self, user: UserId, max_bytes: usize) -> Result<Loaded, StoreError> {
        let (friends, groups, page) = (self.friends(user)?, self.groups(user)?, self.page(user, max_bytes)?);
        Ok(Loaded { friends, groups, page, dialect: self.0.lock().unwrap().dialects.get(&user).cloned() })
    }
}
