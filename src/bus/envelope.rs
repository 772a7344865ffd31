//! What our nodes say to each other, and its encoding.
//!
//! A payload is the version, the sender's [`NodeId`] in 8 bytes (little-endian), and any number of
//! envelopes behind each other, each as postcard encodes it. Whoever can publish on the channel can
//! send anything, so decoding trusts nothing.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::store::{GroupId, NodeId, UserId};
use crate::wire::reply::FanOut;

/// Of the encoding. A payload of another version is dropped and logged; what it bears is stored by
/// its sender, who gets no confirmation.
const VERSION: u8 = 1;
const HEADER: usize = 1 + 8;

/// Names what waits for an answer at the node that sent it.
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
    /// The key of the last chat that the same shard has sent to this user and that it knows nothing
    /// of yet; 0: there is none. A node that has not received that one may not deliver this one.
    pub after: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Envelope {
    /// A chat for users who live on the receiving node. Answered by `Settled`, in one or in parts.
    Chat {
        to: Vec<Addressee>,
        #[serde(with = "bytes")]
        body: Arc<[u8]>,
        ticket: Ticket,
    },
    /// What became of a chat: of how many recipients what, and to whom it could not be delivered,
    /// because the node does not have them by that claim, or they read slowly, or the one before it
    /// has not arrived.
    Settled { ticket: Ticket, sum: FanOut, gone: Vec<UserId> },
    /// Messages were stored for this user although the receiving node has it: it is to drain the
    /// store. Answered by `Seen`, or by `Settled` with the user in `gone`.
    Nudge { user: UserId, epoch: u64, ticket: Ticket },
    /// A user has joined a group. Answered by `Seen`.
    Member { group: GroupId, user: UserId, ticket: Ticket },
    /// A nudge's drain is done; a member counts.
    Seen { ticket: Ticket },
}

/// A claim's epoch bears in its upper bits the shard that has drawn it, which is the session's.
const EPOCH_BITS: u32 = 48;

/// What a shard counts its claims from.
pub fn first_epoch(shard: usize) -> u64 {
    (shard as u64) << EPOCH_BITS
}

/// The shard of the session that has this claim, of so many. A sender's number is not to be trusted.
pub fn shard_of(epoch: u64, shards: usize) -> usize {
    (epoch >> EPOCH_BITS) as usize % shards
}

impl Envelope {
    /// The part for each receiving shard, of so many: of the recipients' sessions, or the one that
    /// waits for an answer. What two envelopes have for the same user goes to the same shard, so
    /// that order holds.
    pub fn split(self, shards: usize) -> Vec<(usize, Envelope)> {
        let shard = match &self {
            Envelope::Chat { to, .. } if to.len() != 1 => return self.split_chat(shards),
            Envelope::Chat { to, .. } => to.first().map_or(0, |to| shard_of(to.epoch, shards)),
            Envelope::Nudge { epoch, .. } => shard_of(*epoch, shards),
            Envelope::Member { ticket, .. } | Envelope::Settled { ticket, .. } | Envelope::Seen { ticket } => {
                usize::from(ticket.shard) % shards
            }
        };
        vec![(shard, self)]
    }

    fn split_chat(self, shards: usize) -> Vec<(usize, Envelope)> {
        let Envelope::Chat { to, body, ticket } = self else { return Vec::new() };
        let mut parts = vec![Vec::new(); shards];
        for to in to {
            parts[shard_of(to.epoch, shards)].push(to);
        }
        let part = |to| Envelope::Chat { to, body: Arc::clone(&body), ticket };
        parts.into_iter().enumerate().filter(|(_, to)| !to.is_empty()).map(|(shard, to)| (shard, part(to))).collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn to(user: UserId, epoch: u64) -> Addressee {
        Addressee { user, epoch, after: 7 }
    }

    fn some() -> Vec<Envelope> {
        let ticket = Ticket { shard: 3, key: 1 << 40 };
        let sum = FanOut { delivered: 1, stored: 2, failed: 3 };
        vec![
            Envelope::Chat { to: vec![to(1, 2), to(u32::MAX, u64::MAX)], body: b"{\"msg\":\"x\"}"[..].into(), ticket },
            Envelope::Settled { ticket, sum, gone: vec![7] },
            Envelope::Nudge { user: 1, epoch: 2, ticket },
            Envelope::Member { group: 1, user: 2, ticket },
            Envelope::Seen { ticket },
        ]
    }

    fn payload(envelopes: &[Envelope]) -> Vec<u8> {
        let mut payload = Vec::new();
        begin(NodeId(42), &mut payload);
        envelopes.iter().for_each(|envelope| append(envelope, &mut payload));
        payload
    }

    #[test]
    fn what_is_encoded_is_what_is_decoded() {
        let (from, envelopes) = decode(&payload(&some())).unwrap();
        assert_eq!((from, envelopes), (NodeId(42), some()));
        assert!(decode(&payload(&[])).unwrap().1.is_empty());
    }

    #[test]
    fn what_is_cut_or_foreign_is_an_error() {
        let one = payload(&some()[..1]);
        for cut in 0..one.len() {
            assert!(cut == HEADER || decode(&one[..cut]).is_err(), "cut at {cut}");
        }
        assert!(matches!(decode(b"{\"msgid\":6}"), Err(Unreadable::Version)));
    }

    #[test]
    fn every_recipient_is_in_the_part_of_its_sessions_shard_and_none_is_past_the_last() {
        let ticket = Ticket { shard: u16::MAX, key: 0 };
        let to = vec![to(1, first_epoch(0) + 7), to(2, first_epoch(2)), to(3, u64::MAX), to(4, first_epoch(2) + 1)];
        let chat = Envelope::Chat { to, body: b"{}"[..].into(), ticket };
        let parts = chat.split(3).into_iter().map(|(shard, part)| match part {
            Envelope::Chat { to, .. } => (shard, to.into_iter().map(|to| to.user).collect::<Vec<_>>()),
            other => panic!("{other:?}"),
        });
        assert_eq!(parts.collect::<Vec<_>>(), [(0, vec![1, 3]), (2, vec![2, 4])]);
        let of = |envelope: Envelope| envelope.split(4).iter().map(|(shard, _)| *shard).collect::<Vec<_>>();
        assert_eq!(of(Envelope::Seen { ticket }), [3]);
        assert_eq!(of(Envelope::Nudge { user: 1, epoch: first_epoch(2), ticket }), [2]);
    }
}
