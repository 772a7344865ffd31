//! What is known of groups at their homes: their cached members, and what waits for those.

use std::collections::HashMap;
use std::sync::Arc;

use super::letters::GroupMessage;
use crate::home::Homes;
use crate::store::{GroupId, UserId};

/// With more members than this in all, a shard's cache begins anew: 16 MiB.
const MAX_CACHED_MEMBERS: usize = 4 * 1024 * 1024;

/// The groups whose home a shard is.
#[derive(Default)]
pub(super) struct Groups {
    pub groups: HashMap<GroupId, Group, foldhash::fast::RandomState>,
    /// Members in all of `groups`.
    cached: usize,
}

/// What is known of a group.
#[derive(Default)]
pub(super) struct Group {
    pub members: Option<Members>,
    /// Its members are being read.
    pub loading: Option<Loading>,
    /// What waits for that, or for its sender's join, oldest first.
    pub waiting: Vec<GroupMessage>,
    /// The users whose joins are being committed.
    pub joining: Vec<UserId>,
}

#[derive(Default)]
pub(super) struct Loading {
    /// The users who have joined since they were asked for.
    pub joined: Vec<UserId>,
    /// What is being read may not be true any more when it comes, and is not kept.
    pub outdated: bool,
}

/// A group's members by their homes, in ascending order.
#[derive(Clone)]
pub(super) struct Members {
    pub by_home: Arc<[Arc<[UserId]>]>,
    pub count: usize,
}

impl Members {
    pub fn new(mut members: Vec<UserId>, homes: &Homes) -> Members {
        members.sort_unstable();
        members.dedup();
        let mut by_home = vec![Vec::new(); homes.reactors()];
        members.iter().for_each(|member| by_home[homes.of_user(*member)].push(*member));
        Members { by_home: by_home.into_iter().map(Arc::from).collect(), count: members.len() }
    }

    pub fn has(&self, member: UserId, homes: &Homes) -> bool {
        self.by_home[homes.of_user(member)].binary_search(&member).is_ok()
    }

    fn with(&self, member: UserId, homes: &Homes) -> Members {
        Members::new(self.by_home.iter().flat_map(|members| members.iter().copied()).chain([member]).collect(), homes)
    }
}

impl Groups {
    /// What was read, or is being read, may not be true any more.
    pub fn forget(&mut self) {
        self.cached = 0;
        self.groups.retain(|_, group| {
            group.members = None;
            if let Some(loading) = &mut group.loading {
                loading.outdated = true;
            }
            group.is_in_use()
        });
    }

    /// A user has joined: what is known of the group, or is just being read, must say so.
    pub fn joined(&mut self, group: GroupId, user: UserId, homes: &Homes) {
        let Some(group) = self.groups.get_mut(&group) else { return };
        if let Some(loading) = &mut group.loading {
            loading.joined.push(user);
            loading.outdated = true;
        }
        if let Some(members) = group.members.take_if(|members| !members.has(user, homes)) {
            group.members = Some(members.with(user, homes));
            self.cached += 1;
        }
    }

    pub fn keep(&mut self, group: GroupId, members: Members) {
        if self.cached + members.count > MAX_CACHED_MEMBERS {
            self.forget();
        }
        self.cached += members.count;
        self.groups.entry(group).or_default().members = Some(members);
    }
}

impl Group {
    pub fn is_in_use(&self) -> bool {
        self.members.is_some() || self.loading.is_some() || !self.waiting.is_empty() || !self.joining.is_empty()
    }
}
