//! The roles of the clients: every workload has a few of them.

use std::ops::Range;

use crate::acts::{Act, Mix};
use crate::book::Book;
use crate::flags::Flags;
use crate::target::Target;
use crate::users::{self, Arrival, User};
use crate::workload::Workload;

/// Members of a group in the mix.
const GROUP: usize = 20;
/// The part of the users of a mix that is not idle, in per cent.
const ACTING: usize = 32;
/// What the pair beside a crowd sends, in messages a second.
const PAIR_RATE: f64 = 1000.0;
/// The receive buffer of a client that does not read, in bytes, more or less: the rest is the server's business.
const SMALL_BUFFER: usize = 8192;
/// The same for a client that reads well, and stands still only once: the buffer must not be what slows it down.
const USUAL_BUFFER: usize = 65_536;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Chats with its neighbour: 2n with 2n + 1.
    Partner,
    /// Talks to its group: the clients of these indexes.
    Speaker {
        group: u64,
        first: usize,
        end: usize,
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
    /// Writes to its neighbour, whatever that one reads.
    Writer,
    /// Reads now and then, or slowly.
    Reader,
    /// Writes to the first one, a recipient.
    Sender {
        is_elsewhere: bool,
    },
    /// Reads, but stands still once.
    Recipient,
    Idle,
}

impl Role {
    pub fn acts(self) -> bool {
        !matches!(self, Role::Listener { .. } | Role::Sleeper | Role::Reader | Role::Recipient | Role::Idle)
    }

    /// What it does in a mix.
    pub fn act(self) -> Option<Act> {
        Some(match self {
            Role::Partner => Act::Chat,
            Role::Speaker { .. } => Act::Group,
            Role::Feeder => Act::Return,
            Role::Visitor => Act::Login,
            Role::Depositor { .. } => Act::Store,
            Role::Registrar => Act::Register,
            _ => return None,
        })
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
pub fn cast(flags: &Flags, target: &Target, book: &mut Book) -> anyhow::Result<Vec<Troupe>> {
    let (count, threads) = (flags.users(), usize::from(flags.threads));
    let is_reader = |n: usize| n >= 2 && n % 2 == 1 && matches!(flags.workload, Workload::Paused | Workload::Slow);
    let receive_buffer = |n: usize| match flags.workload {
        Workload::Busy => (n == 0).then_some(USUAL_BUFFER),
        _ => is_reader(n).then_some(SMALL_BUFFER),
    };
    let arrival = Arrival { count, logs_in: true, in_turn: true, receive_buffer: &receive_buffer };
    let mut users = users::arrive(target, book, &arrival)?;
    if flags.together {
        // Reactors have their users in turn, so users half the count apart in order of arrival are on the same one:
        // half is a multiple of the number of reactors.
        let second = users.split_off(count / 2);
        users = users.into_iter().zip(second).flat_map(|(a, b)| [a, b]).collect();
    }
    if flags.workload.has_a_pair_beside() {
        let mut others = users.split_off(2);
        // The pair has a thread of its own, which does not have to read for the others first, and a rate, so that
        // a moment in which the server does not answer counts with its whole length.
        let pair = Troupe { users, roles: vec![Role::Partner; 2], rate: Some(PAIR_RATE) };
        let beside = if flags.workload == Workload::Crowd {
            let end = others.len();
            Troupe { roles: group(&mut others, 0..end, book)?, users: others, rate: None }
        } else {
            let roles = [Role::Writer, Role::Reader].repeat(others.len() / 2);
            Troupe { roles, users: others, rate: flags.rate() }
        };
        return Ok(vec![pair, beside]);
    }
    let mut troupes = Vec::with_capacity(threads);
    for _ in 0..threads {
        let mut mine: Vec<User> = users.drain(..count / threads).collect();
        let all = mine.len();
        let roles = match flags.workload {
            Workload::Group => groups(&mut mine, 0..all, flags.members().unwrap_or(all), book)?,
            Workload::Store => depositors(target, all, book)?,
            Workload::Drain => [Role::Feeder, Role::Sleeper].repeat(all / 2),
            Workload::Login => vec![Role::Visitor; all],
            Workload::Register => vec![Role::Registrar; all],
            Workload::Mix => people(flags.mix.unwrap_or_default(), target, &mut mine, book)?,
            Workload::Busy => {
                let nodes = target.servers.len();
                let senders = (1..all).map(|n| Role::Sender { is_elsewhere: n % nodes != 0 });
                std::iter::once(Role::Recipient).chain(senders).collect()
            }
            // Idle sessions and storms have loops of their own.
            Workload::Pairs
            | Workload::Crowd
            | Workload::Idle
            | Workload::Storm
            | Workload::Paused
            | Workload::Slow => vec![Role::Partner; all],
        };
        troupes.push(Troupe { users: mine, roles, rate: flags.rate().map(|rate| rate / threads as f64) });
    }
    Ok(troupes)
}

/// The users of these indexes become one group: the first one talks to the others.
fn group(users: &mut [User], those: Range<usize>, book: &mut Book) -> anyhow::Result<Vec<Role>> {
    let Range { start, end } = those.clone();
    let group = users::make_group(&mut users[those], book)?;
    let mut roles = vec![Role::Listener { speaker: start }; end - start];
    roles[0] = Role::Speaker { group, first: start + 1, end };
    Ok(roles)
}

fn groups(users: &mut [User], those: Range<usize>, members: usize, book: &mut Book) -> anyhow::Result<Vec<Role>> {
    let mut roles = Vec::new();
    for first in those.clone().step_by(members) {
        let end = (first + members).min(those.end);
        if end - first < 2 {
            roles.push(Role::Idle); // there is no other user to talk to
        } else {
            roles.extend(group(users, first..end, book)?);
        }
    }
    Ok(roles)
}

fn depositors(target: &Target, count: usize, book: &mut Book) -> anyhow::Result<Vec<Role>> {
    // Which reactor they belong to does not matter.
    let arrival = Arrival { count, logs_in: false, in_turn: false, receive_buffer: &|_| None };
    let absent = users::arrive(target, book, &arrival)?;
    Ok(absent.iter().map(|user| Role::Depositor { to: user.account.id }).collect())
}

/// A third of the users acts, in each role as many as its weight says, and the rest is idle; but since nobody logs in or
/// registers twice at a time, a tenth does so at least. With the usual weights a tenth
/// chats in pairs, a fifth is in groups in which one talks, and a fiftieth comes and goes.
fn people(mix: Mix, target: &Target, users: &mut [User], book: &mut Book) -> anyhow::Result<Vec<Role>> {
    let all = users.len();
    let each = |act: Act| match act {
        Act::Group => GROUP,
        Act::Return => 2,
        _ => 1,
    };
    let whole: usize = mix.acts().map(|act| mix.weight(act) as usize * each(act)).sum();
    let acting = |act: Act| match mix.weight(act) as usize {
        0 => 0,
        weight => (all * ACTING * weight / (100 * whole)).max(1),
    };
    let many = |act: Act| if mix.has(act) { acting(act).max(all / 10) } else { 0 };
    let mut roles = vec![Role::Partner; (acting(Act::Chat) & !1).max(2 * acting(Act::Chat).min(1))];
    roles.extend([Role::Feeder, Role::Sleeper].repeat(acting(Act::Return)));
    let (first, members) = (roles.len(), GROUP.min(all / 5));
    roles.extend(groups(users, first..first + acting(Act::Group) * members, members, book)?);
    roles.extend(vec![Role::Visitor; many(Act::Login)]);
    roles.extend(depositors(target, acting(Act::Store), book)?);
    roles.extend(vec![Role::Registrar; many(Act::Register)]);
    roles.resize(all, Role::Idle);
    Ok(roles)
}
