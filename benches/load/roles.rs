//! Who does what: every workload is a cast of a few roles.

use crate::flags::{Flags, Workload};
use crate::target::Target;
use crate::users::{self, User};

/// Members of a group in the mix.
const GROUP: usize = 20;
/// What the pair beside a crowd sends, in messages a second.
const PAIR_RATE: f64 = 1000.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Chats with its neighbour: 2n with 2n + 1.
    Partner,
    /// Talks to its group, which has so many other members.
    Speaker {
        group: u64,
        others: usize,
    },
    /// Hears what the speaker of this index says.
    Listener {
        speaker: usize,
    },
    /// Writes to an account that never comes.
    Depositor {
        to: u64,
    },
    /// Writes to its neighbour, a sleeper, once that one has left.
    Feeder,
    /// Leaves, and comes back for what was written meanwhile.
    Sleeper,
    /// Logs out and in again.
    Visitor,
    /// Opens accounts.
    Registrar,
    Idle,
}

impl Role {
    pub fn acts(self) -> bool {
        !matches!(self, Role::Listener { .. } | Role::Sleeper | Role::Idle)
    }
}

/// Some users and their roles: the business of one generator thread.
pub struct Troupe {
    pub users: Vec<User>,
    pub roles: Vec<Role>,
    /// Messages a second, in time whatever the server does; else a closed loop.
    pub rate: Option<f64>,
}

/// Brings the users of all threads in, and gives them their roles.
pub fn cast(flags: &Flags, target: &Target) -> anyhow::Result<Vec<Troupe>> {
    let (count, threads) = (flags.users(), usize::from(flags.threads));
    let mut users = users::arrive(target, count, true)?;
    if flags.together {
        // Those who came half the users apart are on the same reactor, if there are 2 and half is even.
        let second = users.split_off(count / 2);
        users = users.into_iter().zip(second).flat_map(|(a, b)| [a, b]).collect();
    }
    if flags.workload == Workload::Crowd {
        let mut members = users.split_off(2);
        let crowd = Troupe { roles: group(&mut members, 0)?, users: members, rate: None };
        // A thread of its own, which does not have to hear the crowd first, and a rate, so that a moment in
        // which the server does not answer counts for as long as it is.
        let pair = Troupe { users, roles: vec![Role::Partner; 2], rate: Some(PAIR_RATE) };
        return Ok(vec![pair, crowd]);
    }
    let mut troupes = Vec::with_capacity(threads);
    for _ in 0..threads {
        let mut mine: Vec<User> = users.drain(..count / threads).collect();
        let roles = match flags.workload {
            Workload::Group => group(&mut mine, 0)?,
            Workload::Store => depositors(target, mine.len())?,
            Workload::Drain => [Role::Feeder, Role::Sleeper].repeat(mine.len() / 2),
            Workload::Login => vec![Role::Visitor; mine.len()],
            Workload::Register => vec![Role::Registrar; mine.len()],
            Workload::Mix => people(&mut mine)?,
            Workload::Pairs | Workload::Crowd | Workload::Idle => vec![Role::Partner; mine.len()],
        };
        troupes.push(Troupe { users: mine, roles, rate: flags.rate().map(|rate| rate / threads as f64) });
    }
    Ok(troupes)
}

/// The first of these talks to the others; it will stand at index `first`.
fn group(members: &mut [User], first: usize) -> anyhow::Result<Vec<Role>> {
    let group = users::make_group(members)?;
    let mut roles = vec![Role::Listener { speaker: first }; members.len()];
    roles[0] = Role::Speaker { group, others: members.len() - 1 };
    Ok(roles)
}

fn depositors(target: &Target, count: usize) -> anyhow::Result<Vec<Role>> {
    let absent = users::arrive(target, count, false)?;
    Ok(absent.iter().map(|user| Role::Depositor { to: user.account.id }).collect())
}

/// A tenth chats in pairs, a fiftieth comes and goes, a fifth is in groups in which one talks, and the
/// rest is idle.
fn people(users: &mut [User]) -> anyhow::Result<Vec<Role>> {
    let even = |n: usize| (n & !1).max(2);
    let mut roles = vec![Role::Partner; even(users.len() / 10)];
    roles.extend([Role::Feeder, Role::Sleeper].repeat(even(users.len() / 50) / 2));
    let in_groups = users.len() / 5;
    let first = roles.len();
    for members in users[first..first + in_groups].chunks_mut(GROUP) {
        let speaker = roles.len();
        roles.extend(group(members, speaker)?);
    }
    roles.resize(users.len(), Role::Idle);
    Ok(roles)
}
