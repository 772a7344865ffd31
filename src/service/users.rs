//! All that a node knows of a user: one struct, at the user's home, and no copy of it anywhere else.

use std::collections::HashMap;
use std::sync::Arc;

use super::backlog::Backlog;
use super::jobs::Login;
use super::receipts::SessionId;
use super::route::Route;
use crate::reactor::ConnId;
use crate::store::{NodeId, UserId};

/// The users that something is known of, by id. They are looked up several times for each message, so by a faster
/// hash than the standard library's, whose seed cannot be known from outside, either. Boxed, since half of a table
/// may be empty.
pub(super) type Users = HashMap<UserId, Box<User>, foldhash::fast::RandomState>;

#[derive(Default)]
pub(super) struct User {
    /// The session, once it has begun, until its claim is released.
    pub session: Option<Session>,
    /// Messages that this user has sent, in whichever session, and that are not settled. The claim is not
    /// released while there are any.
    pub sends: u32,
    /// Messages of this user that are in the store of a recipient whose node does not know it yet. Nor is the claim
    /// released while there are any. Below 0 while a group message is not settled of which the last ones that it
    /// has counted are known by now, and it is not.
    pub debts: i32,
    /// What most users do not have.
    more: Option<Box<More>>,
}

/// A session that has its claim and its connection, or is ending.
pub(super) struct Session {
    pub conn: ConnId,
    pub id: SessionId,
    /// What does not go to the connection; `None`: everything does.
    pub backlog: Option<Box<Backlog>>,
}

/// Where a session's messages go.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub conn: ConnId,
    pub session: SessionId,
    pub is_live: bool,
}

impl Session {
    pub fn is_ending(&self) -> bool {
        self.backlog.as_deref().is_some_and(Backlog::is_ending)
    }

    /// It is ending, and nothing is left that it must wait for.
    pub fn is_over(&self) -> bool {
        self.backlog.as_deref().is_some_and(|backlog| backlog.is_ending() && backlog.is_settled())
    }

    /// The login reply is not out yet.
    pub fn is_loading(&self) -> bool {
        self.backlog.as_deref().is_some_and(Backlog::is_loading)
    }

    /// Some of a message was written, and the rest may follow.
    pub fn has_half(&self) -> bool {
        self.backlog.as_deref().is_some_and(Backlog::has_half)
    }
}

#[derive(Default)]
pub(super) struct More {
    /// The route to where the user is, while that is not here; or was, while something is still on it.
    pub route: Option<Route>,
    /// A login that has passed its password.
    pub entering: Option<Entering>,
    /// Logins that wait for that one, or for the end of the session.
    pub waiting: Vec<Login>,
    /// Other nodes that have sent something to the session.
    pub peers: Vec<Peer>,
    /// How the session ends.
    pub ending: Option<Ending>,
    /// Claims that the store may have, and that no session uses: their release has failed and is tried again.
    pub unreleased: Vec<u64>,
    /// Claims by logins that have failed since, which may have replaced the one of the session that is ending. The
    /// account is not given back before that has ended.
    pub replaced_by: Vec<u64>,
}

impl More {
    fn is_nothing(&self) -> bool {
        self.route.is_none()
            && self.entering.is_none()
            && self.waiting.is_empty()
            && self.peers.is_empty()
            && self.ending.is_none()
            && self.unreleased.is_empty()
            && self.replaced_by.is_empty()
    }
}

/// A login that takes the account.
pub(super) struct Entering {
    pub login: Login,
    pub session: SessionId,
    /// What other nodes, which have read of the claim already, have sent for it.
    pub early: Vec<Early>,
}

/// Something from another node for a session that has not begun.
pub(super) enum Early {
    Chat { body: Arc<[u8]>, from: NodeId, number: u64, after: u64 },
    Nudge { from: NodeId, number: u64 },
}

impl Early {
    pub fn from(&self) -> NodeId {
        match self {
            Early::Chat { from, .. } | Early::Nudge { from, .. } => *from,
        }
    }
}

/// How a session ends.
#[derive(Clone, Copy)]
pub(super) struct Ending {
    /// The connection lives on, and waits for the end.
    pub stays: bool,
    /// The logout's `seq`. It is acked when the claim is released, so that it holds on all nodes.
    pub ack: Option<i64>,
}

/// What another node has sent to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub node: NodeId,
    /// The number of the last launch or nudge that came.
    pub last: u64,
    /// One went back, or did not arrive: what follows must not overtake it, and goes back, too, until that
    /// node's nudge tells that it knows.
    pub fenced: bool,
}

impl User {
    pub fn more(&self) -> Option<&More> {
        self.more.as_deref()
    }

    pub fn more_mut(&mut self) -> Option<&mut More> {
        self.more.as_deref_mut()
    }

    /// The same, which is there from now on.
    pub fn with_more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    pub fn route(&mut self) -> Option<&mut Route> {
        self.more.as_deref_mut()?.route.as_mut()
    }

    pub fn entering(&self) -> Option<&Entering> {
        self.more.as_deref()?.entering.as_ref()
    }

    pub fn has_route(&self) -> bool {
        self.more.as_deref().is_some_and(|more| more.route.is_some())
    }

    /// Where the session is, and whether it is live.
    pub fn place(&self) -> Option<Place> {
        let session = self.session.as_ref()?;
        Some(Place { conn: session.conn, session: session.id, is_live: session.backlog.is_none() })
    }

    /// Whether the end of a session, or of all that is known of the user, may have waited for what the user has
    /// sent.
    pub fn may_be_over(&self) -> bool {
        let is_here = self.session.as_ref().is_some_and(|session| !session.is_ending());
        self.sends == 0 && self.debts == 0 && !is_here
    }

    /// Whether this is the user's session.
    pub fn is_in(&self, id: SessionId) -> bool {
        self.session.as_ref().is_some_and(|session| session.id == id)
    }

    /// Whether the session takes what other nodes send to this epoch. It is the last one that the account was claimed
    /// by: as soon as a login may have replaced that, other nodes may read so in the store, and need not wait for what
    /// comes by the old one.
    pub fn takes_by(&self, epoch: u64) -> bool {
        let last = |session: &Session| match self.more() {
            Some(more) if more.entering.is_some() => None,
            more => Some(more.and_then(|more| more.replaced_by.last().copied()).unwrap_or(session.id.epoch)),
        };
        self.session.as_ref().and_then(last) == Some(epoch)
    }

    /// Whether the user may log in again at once although the last session is ending: its connection is gone, and
    /// nothing that was for it is held, being stored, or awaited by a nudge. What the user has sent counts on.
    pub fn may_return(&self) -> bool {
        let stays = self.more().and_then(|more| more.ending).is_none_or(|ending| ending.stays);
        !stays && self.session.as_ref().is_some_and(Session::is_over)
    }

    /// What a node has sent to the session.
    pub fn peer(&mut self, node: NodeId) -> &mut Peer {
        let peers = &mut self.with_more().peers;
        let at = peers.iter().position(|peer| peer.node == node).unwrap_or_else(|| {
            peers.push(Peer { node, last: 0, fenced: false });
            peers.len() - 1
        });
        &mut peers[at]
    }

    /// Messages for this user that are neither delivered nor stored.
    pub fn unsettled(&self) -> usize {
        let backlog = self.session.as_ref().and_then(|session| session.backlog.as_deref());
        let route = self.more().and_then(|more| more.route.as_ref());
        backlog.map_or(0, Backlog::len) + route.map_or(0, Route::len)
    }

    /// The process is to end: no login goes on. What the store has not taken back is released with everything
    /// else of the node. Returns the logins that have waited.
    pub fn end_of_service(&mut self) -> Vec<Login> {
        let Some(more) = self.more_mut() else { return Vec::new() };
        more.unreleased.clear();
        std::mem::take(&mut more.waiting)
    }

    /// Forgets what is empty. True: nothing is known of the user any more.
    pub fn tidy(&mut self) -> bool {
        if self.more.as_deref().is_some_and(More::is_nothing) {
            self.more = None;
        }
        self.session.is_none() && self.sends == 0 && self.debts == 0 && self.more.is_none()
    }
}
