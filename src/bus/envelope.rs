//! What our nodes say to each other, and its encoding.
//!
//! A payload is a header, followed by any number of envelopes. Integers are little-endian.
//!
//! | bytes | in the header |
//! | --- | --- |
//! | 1 | the version |
//! | 8 | the sender's [`NodeId`] |
//! | 8 | the number of the connection on which it is published: the sender's *line*, which grows with each new one |
//!
//! | bytes | of each envelope |
//! | --- | --- |
//! | 4 | the length of what follows |
//! | 1 | its kind: the index of its variant in [`Envelope`] |
//! | | its fields, as postcard encodes them |
//!
//! A kind never changes its meaning, nor do its fields: a new meaning gets a new kind, at the end, and an envelope of
//! an unknown kind is skipped. So a new kind needs a new version only if its sender must know that it is understood. A
//! payload of a version that a node does not read is dropped as a whole; hence a node speaks to each other node the
//! newest version that both of them read ([`Versions`]). It learns what the other one reads from its lease, and speaks
//! the lowest version until then.
//!
//! Any process that can publish on the channel can send anything, so decoding trusts nothing.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::home::Homes;
use crate::store::{GroupId, NodeId, UserId};
use crate::wire::Errno;

/// Version, node, line.
const HEADER: usize = 1 + 8 + 8;
/// The number of variants of [`Envelope`]: a kind from here on is unknown.
const KINDS: u8 = 9;

/// Identifies what waits for an answer at the node that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ticket {
    pub shard: u16,
    pub key: u64,
}

/// A recipient of a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addressee {
    pub user: UserId,
    /// The epoch of the claim by which the receiving node has the user.
    pub epoch: u64,
    /// The number of this launch; the sending node's home of this user never uses it again.
    pub number: u64,
    /// The number of the last launch or nudge on the same route that is not answered yet; 0: there is none. The
    /// receiving node may deliver this launch only if that one is the last that it has received on this route.
    pub after: u64,
}

/// What became of a message for one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// The kernel took its last byte for the recipient's connection.
    Delivered,
    /// It is committed to the store.
    Stored,
    /// It was not served; the sender is told.
    Failed(Errno),
    /// The node that was asked does not have the user by that claim, or may not deliver this one.
    Gone,
}

/// The answer to one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    pub user: UserId,
    pub number: u64,
    pub delivery: Delivery,
}

/// The order of the variants is part of the encoding: see the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Envelope {
    /// A chat for users that the receiving node has. Answered by `Answer`, for each of them.
    Chat {
        #[serde(with = "bytes")]
        body: Arc<[u8]>,
        to: Vec<Addressee>,
    },
    Answer(Vec<Answered>),
    /// The store may hold messages for this user that the receiving node does not know of. Answered by `Nudged`
    /// when everything that it took for the user before is delivered or committed, and it will read the store before
    /// it takes anything else; at once if it has no such session.
    Nudge {
        user: UserId,
        epoch: u64,
        number: u64,
    },
    Nudged {
        user: UserId,
        number: u64,
    },
    /// A user has joined a group. Answered by `Seen`.
    Joined {
        group: GroupId,
        user: UserId,
        ticket: Ticket,
    },
    /// The receiving node's join is taken into account.
    Seen {
        ticket: Ticket,
    },
    /// A node is dead. Answered by `Confirmed`.
    Dead {
        node: NodeId,
    },
    /// The sender has nothing from a dead node that is neither delivered nor stored.
    Confirmed {
        node: NodeId,
    },
    /// For its sender itself, in ns since the machine was booted: by its own beats a node knows whether the whole
    /// way through Redis works.
    Beat {
        sent: u64,
    },
}

impl Envelope {
    /// Splits it by shard: the home of its users or its group, or the shard of its ticket. The parts of two envelopes
    /// for the same user go to the same shard, so that order holds. `Dead`, `Confirmed` and `Beat` go to no shard.
    pub fn split(self, homes: &Homes) -> Vec<(usize, Envelope)> {
        let shard = match &self {
            Envelope::Chat { to, .. } if to.len() != 1 => return self.split_list(homes),
            Envelope::Answer(answers) if answers.len() != 1 => return self.split_list(homes),
            Envelope::Chat { to, .. } => to.first().map_or(0, |to| homes.of_user(to.user)),
            Envelope::Answer(answers) => answers.first().map_or(0, |answer| homes.of_user(answer.user)),
            Envelope::Nudge { user, .. } | Envelope::Nudged { user, .. } => homes.of_user(*user),
            Envelope::Joined { group, .. } => homes.of_group(*group),
            Envelope::Seen { ticket } => usize::from(ticket.shard) % homes.reactors(),
            Envelope::Dead { .. } | Envelope::Confirmed { .. } | Envelope::Beat { .. } => return Vec::new(),
        };
        vec![(shard, self)]
    }

    fn split_list(self, homes: &Homes) -> Vec<(usize, Envelope)> {
        match self {
            Envelope::Chat { body, to } => parts(to, homes, |to| to.user)
                .map(|(shard, to)| (shard, Envelope::Chat { body: Arc::clone(&body), to }))
                .collect(),
            Envelope::Answer(answers) => parts(answers, homes, |answer| answer.user)
                .map(|(shard, answers)| (shard, Envelope::Answer(answers)))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// Groups a list by the home of each item's user.
fn parts<T>(list: Vec<T>, homes: &Homes, user: impl Fn(&T) -> UserId) -> impl Iterator<Item = (usize, Vec<T>)> {
    let mut parts: Vec<Vec<T>> = (0..homes.reactors()).map(|_| Vec::new()).collect();
    for item in list {
        parts[homes.of_user(user(&item))].push(item);
    }
    parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty())
}

/// The versions of the encoding that a node reads, from the lowest to the newest. The node's lease contains them as
/// text, like `2-3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    lowest: u8,
    newest: u8,
}

impl Versions {
    /// The versions that this build reads.
    pub const OURS: Versions = Versions { lowest: 2, newest: 2 };

    fn reads(self, version: u8) -> bool {
        (self.lowest..=self.newest).contains(&version)
    }

    /// The version to speak to a node that reads `theirs`: the newest that both read. `None`: nothing is known of it.
    pub fn to_speak(self, theirs: Option<Versions>) -> u8 {
        theirs.map_or(self.lowest, |theirs| self.newest.min(theirs.newest).max(self.lowest))
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}-{}", self.lowest, self.newest)
    }
}

/// A text that is not a range of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be LOWEST-NEWEST, two versions")]
pub struct NoVersions;

impl FromStr for Versions {
    type Err = NoVersions;

    fn from_str(text: &str) -> Result<Versions, NoVersions> {
        let (lowest, newest) = text.split_once('-').ok_or(NoVersions)?;
        let (Ok(lowest), Ok(newest)) = (lowest.parse(), newest.parse()) else { return Err(NoVersions) };
        if lowest <= newest { Ok(Versions { lowest, newest }) } else { Err(NoVersions) }
    }
}

/// The versions of payloads that a node reads and writes. Tests can make a node behave like a build that does not exist yet, by the
/// text `LOWEST-NEWEST` or `LOWEST-NEWEST+KIND`.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadVersions {
    pub versions: Versions,
    /// A made-up kind: each payload begins with an envelope of it.
    pub made_up: Option<u8>,
}

impl Default for PayloadVersions {
    fn default() -> PayloadVersions {
        PayloadVersions { versions: Versions::OURS, made_up: None }
    }
}

impl FromStr for PayloadVersions {
    type Err = NoVersions;

    fn from_str(text: &str) -> Result<PayloadVersions, NoVersions> {
        let (versions, kind) = text.split_once('+').map_or((text, None), |(versions, kind)| (versions, Some(kind)));
        let made_up = kind.map(str::parse).transpose().map_err(|_| NoVersions)?;
        Ok(PayloadVersions { versions: versions.parse()?, made_up })
    }
}

/// Begins a payload.
pub fn begin(version: u8, from: NodeId, line: u64, payload: &mut Vec<u8>) {
    payload.push(version);
    payload.extend_from_slice(&from.0.to_le_bytes());
    payload.extend_from_slice(&line.to_le_bytes());
}

/// Appends an [`Envelope`] to a payload; or one of an unknown kind, as a tuple of the kind and its fields.
pub fn append(envelope: &impl Serialize, payload: &mut Vec<u8>) {
    // It cannot fail: no length is unknown, and a Vec takes any number of bytes.
    let Ok(bytes) = postcard::to_allocvec(envelope) else { return };
    // Nothing is sent that is anywhere near 4 GiB.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    payload.extend_from_slice(&length.to_le_bytes());
    payload.extend_from_slice(&bytes);
}

/// A payload as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    pub from: NodeId,
    /// The number of the sender's connection on which it was published.
    pub line: u64,
    pub envelopes: Vec<Envelope>,
    /// How many envelopes of unknown kinds were skipped.
    pub skipped: u32,
}

/// Why a payload cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("its version is not one of {0}")]
    Version(Versions),
    #[error("it is truncated")]
    Cut,
    #[error("it is damaged: {0}")]
    Damaged(#[from] postcard::Error),
}

/// Reads a payload of a version that this build reads.
///
/// # Errors
/// It is of another version, or was not written by one of our nodes; nothing of it is to be used then.
pub fn decode(payload: &[u8]) -> Result<Payload, Unreadable> {
    decode_as(Versions::OURS, payload)
}

/// The same for a build that reads other versions.
pub(super) fn decode_as(versions: Versions, payload: &[u8]) -> Result<Payload, Unreadable> {
    match payload.first() {
        Some(version) if versions.reads(*version) => {}
        _ => return Err(Unreadable::Version(versions)),
    }
    let (header, mut rest) = payload.split_first_chunk::<HEADER>().ok_or(Unreadable::Cut)?;
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let (from, line) = (NodeId(number(1)), number(9));
    let mut payload = Payload { from, line, envelopes: Vec::new(), skipped: 0 };
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk::<4>().ok_or(Unreadable::Cut)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (envelope, behind) = behind.split_at_checked(length).ok_or(Unreadable::Cut)?;
        match envelope.first() {
            Some(kind) if *kind >= KINDS => payload.skipped += 1,
            _ => payload.envelopes.push(whole(envelope)?),
        }
        rest = behind;
    }
    Ok(payload)
}

/// Reads an envelope that takes up all of these bytes.
fn whole(bytes: &[u8]) -> Result<Envelope, Unreadable> {
    match postcard::take_from_bytes(bytes)? {
        (envelope, []) => Ok(envelope),
        _ => Err(postcard::Error::DeserializeBadEncoding.into()),
    }
}

/// Bytes as bytes: serde would treat a slice as a list of numbers.
mod bytes {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Arc::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(42);
    const TICKET: Ticket = Ticket { shard: 3, key: 1 << 40 };

    fn to(user: UserId, epoch: u64) -> Addressee {
        Addressee { user, epoch, number: 9, after: 7 }
    }

    fn answered(user: UserId, delivery: Delivery) -> Answered {
        Answered { user, number: 300, delivery }
    }

    /// One of each kind, by its number.
    fn all() -> Vec<(u8, Envelope)> {
        let fates = [Delivery::Delivered, Delivery::Stored, Delivery::Failed(Errno::NoSuchUser), Delivery::Gone];
        vec![
            (0, Envelope::Chat { body: b"{\"msg\":\"x\"}"[..].into(), to: vec![to(1, 2), to(u32::MAX, u64::MAX)] }),
            (1, Envelope::Answer(fates.map(|delivery| answered(5, delivery)).to_vec())),
            (2, Envelope::Nudge { user: 1, epoch: 2, number: 3 }),
            (3, Envelope::Nudged { user: 1, number: 3 }),
            (4, Envelope::Joined { group: 1, user: 2, ticket: TICKET }),
            (5, Envelope::Seen { ticket: TICKET }),
            (6, Envelope::Dead { node: NodeId(u64::MAX) }),
            (7, Envelope::Confirmed { node: NodeId(3) }),
            (8, Envelope::Beat { sent: u64::MAX }),
        ]
    }

    fn some() -> Vec<Envelope> {
        all().into_iter().map(|(_, envelope)| envelope).collect()
    }

    fn begun() -> Vec<u8> {
        let mut payload = Vec::new();
        begin(2, ME, 6, &mut payload);
        payload
    }

    fn payload(envelopes: &[Envelope]) -> Vec<u8> {
        let mut payload = begun();
        envelopes.iter().for_each(|envelope| append(envelope, &mut payload));
        payload
    }

    #[test]
    fn what_is_encoded_is_what_is_decoded() {
        let expected = Payload { from: ME, line: 6, envelopes: some(), skipped: 0 };
        assert_eq!(decode(&payload(&some())).unwrap(), expected);
        assert_eq!(decode(&payload(&[])).unwrap(), Payload { envelopes: Vec::new(), ..expected });
    }

    #[test]
    fn a_kind_is_the_same_number_for_good_and_its_body_the_same_bytes() {
        for (kind, envelope) in all() {
            assert_eq!(payload(std::slice::from_ref(&envelope))[HEADER + 4], kind, "{envelope:?}");
        }
        assert!(all().into_iter().map(|(kind, _)| kind).eq(0..KINDS));
        // Nodes of two builds read each other by these.
        let bytes = |envelope: Envelope| payload(&[envelope]).split_off(HEADER);
        let header = [2, 42, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(payload(&[]), header);
        let chat = Envelope::Chat { body: b"{}"[..].into(), to: vec![to(300, 2)] };
        assert_eq!(bytes(chat), [10, 0, 0, 0, 0, 2, b'{', b'}', 1, 0xac, 2, 2, 9, 7]);
        let fates = [Delivery::Delivered, Delivery::Stored, Delivery::Failed(Errno::Busy), Delivery::Gone];
        let answers = fates.map(|delivery| Answered { user: 5, number: 6, delivery });
        let answers = bytes(Envelope::Answer(answers.to_vec()));
        assert_eq!(answers, [15, 0, 0, 0, 1, 4, 5, 6, 0, 5, 6, 1, 5, 6, 2, 20, 5, 6, 3]);
        assert_eq!(bytes(Envelope::Nudge { user: 1, epoch: 2, number: 300 }), [5, 0, 0, 0, 2, 1, 2, 0xac, 2]);
        assert_eq!(bytes(Envelope::Nudged { user: 1, number: 3 }), [3, 0, 0, 0, 3, 1, 3]);
        let ticket = Ticket { shard: 3, key: 4 };
        assert_eq!(bytes(Envelope::Joined { group: 1, user: 2, ticket }), [5, 0, 0, 0, 4, 1, 2, 3, 4]);
        assert_eq!(bytes(Envelope::Seen { ticket }), [3, 0, 0, 0, 5, 3, 4]);
        assert_eq!(bytes(Envelope::Dead { node: NodeId(7) }), [2, 0, 0, 0, 6, 7]);
        assert_eq!(bytes(Envelope::Confirmed { node: NodeId(7) }), [2, 0, 0, 0, 7, 7]);
        assert_eq!(bytes(Envelope::Beat { sent: 300 }), [3, 0, 0, 0, 8, 0xac, 2]);
    }

    #[test]
    fn an_envelope_of_an_unknown_kind_is_skipped_and_no_other() {
        let mut payload = begun();
        for (at, envelope) in some().iter().enumerate() {
            append(&(200 + at as u8, "something, however long it is".repeat(at)), &mut payload);
            append(envelope, &mut payload);
        }
        append(&(KINDS, ()), &mut payload);
        let decoded = decode(&payload).unwrap();
        assert_eq!((decoded.envelopes, decoded.skipped), (some(), 10));
    }

    #[test]
    fn what_is_cut_or_foreign_is_an_error() {
        for envelope in some() {
            let one = payload(&[envelope]);
            for cut in 0..one.len() {
                assert!(cut == HEADER || decode(&one[..cut]).is_err(), "cut at {cut}");
            }
        }
        for version in [0, 1, 3, b'{', 255] {
            let mut other = payload(&some());
            other[0] = version;
            assert!(matches!(decode(&other), Err(Unreadable::Version(Versions::OURS))), "{version}");
        }
    }

    #[test]
    fn a_length_that_lies_is_an_error_and_reserves_nothing() {
        let whole = payload(&some());
        for length in [0, 1, 12, whole.len() as u32, u32::MAX] {
            let mut lies = whole.clone();
            lies[HEADER..HEADER + 4].copy_from_slice(&length.to_le_bytes());
            assert!(decode(&lies).is_err(), "{length}");
        }
        // A list of 2^63 recipients, of which none is there.
        let mut many = begun();
        append(&(1_u8, u64::MAX >> 1), &mut many);
        assert!(matches!(decode(&many), Err(Unreadable::Damaged(_))));
    }

    #[test]
    fn a_body_that_is_longer_than_what_it_says_is_damaged() {
        let mut payload = begun();
        append(&(3_u8, 1_u32, 2_u64, 3_u64), &mut payload);
        assert!(matches!(decode(&payload), Err(Unreadable::Damaged(_))));
    }

    #[test]
    fn a_node_speaks_the_newest_version_that_the_other_reads_too() {
        let versions = |text: &str| text.parse::<Versions>().unwrap();
        let ours = versions("2-4");
        for (theirs, spoken) in [("2-2", 2), ("2-3", 3), ("3-4", 4), ("2-9", 4), ("4-9", 4)] {
            assert_eq!(ours.to_speak(Some(versions(theirs))), spoken, "{theirs}");
            assert_eq!(versions(theirs).to_string(), theirs);
        }
        assert_eq!(ours.to_speak(None), 2, "nothing is known of it");
        for text in ["", "2", "-", "2-", "3-2", "2-3-4", "a-b", "2-256", "2 - 3", "-1-2"] {
            assert_eq!(text.parse::<Versions>(), Err(NoVersions), "{text}");
        }
    }

    #[test]
    fn a_newer_build_reads_what_is_older_and_is_not_read_by_that() {
        let newer: PayloadVersions = "2-3+200".parse().unwrap();
        assert_eq!(newer.made_up, Some(200));
        assert_eq!("2-2".parse(), Ok(PayloadVersions::default()));
        for text in ["2-3+", "2-3+256", "2+3", "+7"] {
            assert_eq!(text.parse::<PayloadVersions>(), Err(NoVersions), "{text}");
        }
        let mut payload = payload(&some());
        assert!(decode_as(newer.versions, &payload).is_ok());
        payload[0] = 3;
        assert!(decode_as(newer.versions, &payload).is_ok() && decode(&payload).is_err());
    }

    #[test]
    fn every_part_is_at_the_home_of_what_it_is_about() {
        let homes = Homes::new(7, 3);
        let users = [1, 2, 3, 4, 5, 6, 7, 8];
        let chat = Envelope::Chat { body: b"{}"[..].into(), to: users.map(|user| to(user, 2)).to_vec() };
        let answer = Envelope::Answer(users.map(|user| answered(user, Delivery::Gone)).to_vec());
        for envelope in [chat, answer] {
            let mut seen = Vec::new();
            let mut last = None;
            for (shard, part) in envelope.split(&homes) {
                assert!(last.replace(shard) < Some(shard), "one part for each");
                let of: Vec<UserId> = match part {
                    Envelope::Chat { to, .. } => to.iter().map(|to| to.user).collect(),
                    Envelope::Answer(answers) => answers.iter().map(|answer| answer.user).collect(),
                    other => panic!("{other:?}"),
                };
                assert!(of.is_sorted() && of.iter().all(|user| homes.of_user(*user) == shard));
                seen.extend(of);
            }
            seen.sort_unstable();
            assert_eq!(seen, users);
        }
        let of = |envelope: Envelope| envelope.split(&homes).iter().map(|(shard, _)| *shard).collect::<Vec<_>>();
        for user in users {
            let home = vec![homes.of_user(user)];
            assert_eq!(of(Envelope::Chat { body: b"{}"[..].into(), to: vec![to(user, 1)] }), home);
            assert_eq!(of(Envelope::Answer(vec![answered(user, Delivery::Stored)])), home);
            assert_eq!(of(Envelope::Nudge { user, epoch: 1, number: 2 }), home);
            assert_eq!(of(Envelope::Nudged { user, number: 2 }), home);
            assert_eq!(of(Envelope::Joined { group: user, user: 1, ticket: TICKET }), [homes.of_group(user)]);
        }
        assert_eq!(of(Envelope::Seen { ticket: Ticket { shard: u16::MAX, key: 0 } }), [0], "none is past the last");
        assert_eq!(of(Envelope::Seen { ticket: Ticket { shard: 2, key: 0 } }), [2]);
        assert_eq!(of(Envelope::Dead { node: ME }), [0; 0]);
        assert_eq!(of(Envelope::Beat { sent: 1 }), [0; 0]);
        assert_eq!(of(Envelope::Chat { body: b"{}"[..].into(), to: Vec::new() }), [0; 0]);
        assert_eq!(of(Envelope::Answer(Vec::new())), [0; 0]);
    }
}
