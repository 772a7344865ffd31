//! What a shard counts. Counting is no effect and changes none: it may be read at any time, and is
//! read by nothing here.

use super::jobs::Answer;
use super::receipts::Receipt;
use crate::metrics::{By, Counter, Gauge, Histogram, Label, cells, labels};
use crate::store::{Quota, StoreError};
use crate::wire::Errno;

labels! {
    /// What a client asks for.
    pub enum Asks as "request" {
        Chat = "chat",
        GroupChat = "group chat",
        Login = "login",
        Logout = "logout",
        Register = "register",
        AddFriend = "add friend",
        CreateGroup = "create group",
        JoinGroup = "join group",
        List = "list",
        Ping = "ping",
        Pong = "pong",
        Unknown = "unknown",
    }
}

labels! {
    /// What kind of message it is.
    pub enum MessageKind as "kind" {
        Chat = "chat",
        Group = "group",
    }
}

labels! {
    /// The route that a message takes to one recipient.
    pub enum Path as "path" {
        SameReactor = "same reactor",
        OtherReactor = "other reactor",
        OtherNode = "other node",
        Stored = "stored",
    }
}

labels! {
    /// What there was too much of. Connections, time and sizes are counted where they are refused or closed.
    pub enum Limit as "limit" {
        MessageRate = "message rate",
        FailedLogins = "failed logins",
        Registrations = "registrations",
        Offline = "offline messages",
        Friends = "friends",
        Groups = "groups",
        Members = "group size",
        Hashes = "password hashes",
    }
}

labels! {
    /// What the password of a login or a registration has cost.
    pub enum PasswordWork as "work" {
        /// Nothing: it was found right before.
        Remembered = "remembered",
        Hashed = "hashed",
        /// Nothing: no client waited for it any more.
        Spared = "spared",
    }
}

impl From<Quota> for Limit {
    fn from(quota: Quota) -> Limit {
        match quota {
            Quota::Friends => Limit::Friends,
            Quota::Groups => Limit::Groups,
            Quota::Members => Limit::Members,
        }
    }
}

impl Label for Errno {
    const ALL: &'static [Errno] = &[
        Errno::Rejected,
        Errno::InUse,
        Errno::Unfollowable,
        Errno::UnknownMsgid,
        Errno::BadField,
        Errno::NotLoggedIn,
        Errno::NotYou,
        Errno::NoSuchUser,
        Errno::NoSuchGroup,
        Errno::NotAMember,
        Errno::AlreadySo,
        Errno::TooLarge,
        Errno::Busy,
        Errno::StoreUnavailable,
        Errno::ShuttingDown,
    ];

    fn index(self) -> usize {
        Errno::ALL.iter().position(|errno| *errno == self).unwrap_or_default()
    }

    fn label(self) -> String {
        format!("errno=\"{}\"", self as i64)
    }
}

/// Ways by kind.
type Ways = By<MessageKind, By<Path, Counter, { Path::COUNT }>, { MessageKind::COUNT }>;

cells! {
    /// Counted by each shard; what every chat touches, in the first 128 bytes.
    pub struct ShardCounts {
        /// Messages of this node's clients, once per recipient and route: a message that needs a second route,
        /// such as the store, counts under both.
        messages: Ways = "chat_messages_total",
        /// Jobs that wait or run, and answers on their way back.
        jobs: Gauge = "chat_jobs_pending",
        /// Questions to other nodes, and to the bus, that are not answered.
        questions: Gauge = "chat_node_questions_pending",
        /// Requests that could be read, by what they ask for.
        requests: By<Asks, Counter, { Asks::COUNT }> = "chat_requests_total",
        /// Requests and connections that were refused, by errno.
        refusals: By<Errno, Counter, 15> = "chat_errors_total",
        /// Requests, and messages for one recipient each, that were refused by a limit.
        limits: By<Limit, Counter, { Limit::COUNT }> = "chat_limited_total",
        /// Passwords of logins and registrations, by what they have cost.
        passwords: By<PasswordWork, Counter, { PasswordWork::COUNT }> = "chat_passwords_total",
        /// Users who are logged in.
        sessions: Gauge = "chat_sessions",
        /// Messages that other nodes sent to users of this one, once for each.
        from_nodes: Counter = "chat_messages_from_nodes_total",
        /// How long other nodes took to report a message's outcome.
        answers: Histogram = "chat_node_answer_seconds",
    }
}

impl ShardCounts {
    /// Notes what a password has cost, once that is known.
    pub(super) fn count_password(&self, answer: &Result<Answer, StoreError>) {
        let work = match answer {
            Ok(Answer::Remembered(_)) => PasswordWork::Remembered,
            Ok(Answer::Verified(_) | Answer::Wrote(_)) => PasswordWork::Hashed,
            Ok(Answer::Spared) => PasswordWork::Spared,
            _ => return,
        };
        self.passwords.of(work).add(1);
    }

    /// Counts a message to one recipient, if it is this node's to count.
    pub(super) fn count_message(&self, receipt: Receipt, path: Path) {
        let kind = match receipt {
            Receipt::Sender { .. } => MessageKind::Chat,
            Receipt::Sum { .. } => MessageKind::Group,
            Receipt::Node { .. } | Receipt::Nobody => return,
        };
        self.messages.of(kind).of(path).add(1);
    }
}
