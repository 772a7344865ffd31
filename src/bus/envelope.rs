//! What our nodes say to each other, and its encoding.
//!
//! A payload is the version, the sender's [`NodeId`] in 8 bytes (little-endian), and any number of
//! envelopes behind each other, each as postcard encodes it. Whoever can publish on the channel can
//! send anything, so decoding trusts nothing.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::home::Homes;
use crate::store::{GroupId, NodeId, UserId};
use crate::wire::Errno;

/// Of the encoding. A payload of another version is dropped and logged; what it bears is stored by
/// its sender, who gets no confirmation.
const VERSION: u8 = 1;
const HEADER: usize = 1 + 8;

/// Names what waits for an answer at the node that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ticket {
    pub shard: u16,
    pub key: u64,
}

/// A recipient of a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addressee {
    pub user: UserId,
    /// Of the claim by which the receiving node has the user.
    pub epoch: u64,
    /// Of this launch; it is never used again by the sending node's home of this user.
    pub number: u64,
    /// The last launch or nudge on the same route that is not answered yet; 0: there is none. A node of which
    /// that is not the last that it has of this route may not deliver this one.
    pub after: u64,
}

/// What became of a message for one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
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
    pub fate: Fate,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Envelope {
    /// A chat for users whom the receiving node has. Answered by `Answer`, for each of them.
    Chat {
        #[serde(with = "bytes")]
        body: Arc<[u8]>,
        to: Vec<Addressee>,
    },
    Answer(Vec<Answered>),
    /// Messages may stand in this user's store of which the receiving node does not know. Answered by `Nudged`
    /// when all that it took for the user before is delivered or committed, and it will read the store before
    /// it takes anything else; at once where it has no such session.
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
    /// A join counts.
    Seen {
        ticket: Ticket,
    },
    /// A node is dead. Answered by `Confirmed`.
    Dead {
        node: NodeId,
    },
    /// Nothing of a dead node is open here.
    Confirmed {
        node: NodeId,
    },
}

impl Envelope {
    /// The part for each shard that it is about: the home of its users or its group, or the shard of its ticket.
    /// What two envelopes have for the same user goes to the same shard, so that order holds. `Dead` and
    /// `Confirmed` are no shard's.
    pub fn split(self, homes: &Homes) -> Vec<(usize, Envelope)> {
        let shard = match &self {
            Envelope::Chat { to, .. } if to.len() != 1 => return self.split_list(homes),
            Envelope::Answer(answers) if answers.len() != 1 => return self.split_list(homes),
            Envelope::Chat { to, .. } => to.first().map_or(0, |to| homes.of_user(to.user)),
            Envelope::Answer(answers) => answers.first().map_or(0, |answer| homes.of_user(answer.user)),
            Envelope::Nudge { user, .. } | Envelope::Nudged { user, .. } => homes.of_user(*user),
            Envelope::Joined { group, .. } => homes.of_group(*group),
            Envelope::Seen { ticket } => usize::from(ticket.shard) % homes.reactors(),
            Envelope::Dead { .. } | Envelope::Confirmed { .. } => return Vec::new(),
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

/// A list by the home of each item's user.
fn parts<T>(list: Vec<T>, homes: &Homes, user: impl Fn(&T) -> UserId) -> impl Iterator<Item = (usize, Vec<T>)> {
    let mut parts: Vec<Vec<T>> = (0..homes.reactors()).map(|_| Vec::new()).collect();
    for item in list {
        parts[homes.of_user(user(&item))].push(item);
    }
    parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty())
}

/// Begins a payload.
pub fn begin(from: NodeId, payload: &mut Vec<u8>) {
    payload.push(VERSION);
    payload.extend_from_slice(&from.0.to_le_bytes());
}

/// Appends an envelope to a payload.
pub fn append(envelope: &Envelope, payload: &mut Vec<u8>) {
    // Plain data into a Vec: no length is unknown, no space is short.
    if let Ok(bytes) = postcard::to_extend(envelope, std::mem::take(payload)) {
        *payload = bytes;
    }
}

/// Why a payload cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("its version is not {VERSION}")]
    Version,
    #[error("it is damaged: {0}")]
    Damaged(#[from] postcard::Error),
}

/// Who sent a payload, and the envelopes in it.
///
/// # Errors
/// It is of another version, or none of ours; nothing of it is to be used then.
pub fn decode(payload: &[u8]) -> Result<(NodeId, Vec<Envelope>), Unreadable> {
    let Some((header, mut rest)) = payload.split_first_chunk::<HEADER>().filter(|(header, _)| header[0] == VERSION)
    else {
        return Err(Unreadable::Version);
    };
    let [_, from @ ..] = *header;
    let mut envelopes = Vec::new();
    while !rest.is_empty() {
        let (envelope, behind) = postcard::take_from_bytes(rest)?;
        envelopes.push(envelope);
        rest = behind;
    }
    Ok((NodeId(u64::from_le_bytes(from)), envelopes))
}

/// Bytes as bytes: serde would take a slice for a list of numbers.
mod bytes {
    use super::*;

    pub fn serialize<S: Serializer>(bytes: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        struct Bytes;
        impl de::Visitor<'_> for Bytes {
            type Value = Arc<[u8]>;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(bytes.into())
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}
