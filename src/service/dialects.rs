//! What clients speak: their requests in canon, and what they are told in their dialect.

use std::sync::Arc;

use super::jobs::Then;
use super::letters::{Tag, Translated, Translation};
use super::shard::Shard;
use super::{Payload, Reason};
use crate::reactor::ConnId;
use crate::store::Write;
use crate::wire::dialect::{CANON, Dialect, Heard, Hearing, Speaker, find};
use crate::wire::{Errno, Request};

/// The dialect of a client that puts a length before each object, as its first bytes have shown.
const WITH_LENGTHS: &str = "canon-length";

impl Shard {
    /// Takes note of what a request of this number tells about its client, and makes canon of it.
    pub(super) fn hear(&mut self, conn: ConnId, request: &Request, number: Option<i64>) -> Heard {
        let Some(client) = self.clients.get_mut(conn) else { return Heard::Canon };
        // Who uses `seq` knows this server.
        let is_guessed = !client.uses_seq && !request.has_seq();
        let is_canons = client.speaker.is_none() && !client.splitter.has_lengths();
        if is_canons && (!is_guessed || client.hearing.is_nothing_new(request, number)) {
            return Heard::Canon;
        }
        if client.splitter.has_lengths() && client.speaker.is_none() {
            // Nobody else of the family has them, so nothing more is guessed.
            client.hearing = Hearing::settled();
            client.speaker = find(WITH_LENGTHS).cloned().map(|dialect| Box::new(Speaker::new(dialect)));
        }
        let mut hearing = client.hearing;
        let told = if is_guessed { hearing.hear(request, client.dialect()) } else { None };
        client.hearing = hearing;
        if let Some(dialect) = told {
            self.speaks(conn, dialect);
        }
        let Some(client) = self.clients.get(conn) else { return Heard::Canon };
        let me = client.user.as_deref().map(|me| me.session.user);
        client.speaker.as_deref().map_or(Heard::Canon, |speaker| speaker.hear(request.object(), me))
    }

    /// A request of this number, whatever its client speaks.
    pub(super) fn heard(&mut self, conn: ConnId, request: &Request, number: Option<i64>, heard: Heard) {
        match heard {
            Heard::Canon => self.request(conn, request, number, None),
            Heard::Theirs(verb, object) => {
                let canon = match Request::parse(&object) {
                    Ok(canon) => canon,
                    Err(refusal) => return self.refuse_stream(conn, refusal, Reason::Unfollowable),
                };
                let speaker = self.clients.get_mut(conn).and_then(|client| client.speaker.as_deref_mut());
                let has_seq = !matches!(canon.seq(), Ok(None));
                let asked = speaker.filter(|_| !has_seq).and_then(|speaker| speaker.ask(verb, &object));
                self.request(conn, &canon, canon.number(), asked);
            }
            Heard::Unknown => {
                let refusal = self.is_too_fast(conn, request.object().len());
                self.refuse(conn, None, None, &refusal.unwrap_or_else(|| Errno::UnknownMsgid.into()));
            }
        }
    }

    /// The client turns out to speak another dialect, or canon after all: it is remembered for its account.
    fn speaks(&mut self, conn: ConnId, dialect: Option<Arc<Dialect>>) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        log::debug!("{conn}: speaks {}", dialect.as_deref().map_or(CANON, Dialect::name));
        match (client.speaker.as_deref_mut(), dialect) {
            (Some(speaker), Some(dialect)) => speaker.switch(dialect),
            (None, Some(dialect)) => client.speaker = Some(Box::new(Speaker::new(dialect))),
            // Acks of before are still due, and are not canon's.
            (Some(speaker), None) if speaker.is_asked() => {
                if let Some(canon) = find(CANON) {
                    speaker.switch(Arc::clone(canon));
                }
            }
            (_, None) => client.speaker = None,
        }
        self.remember_dialect(conn);
    }

    /// The account was read at its login: what was remembered counts if the client itself has told nothing, and what
    /// the client has told is remembered from now on.
    pub(super) fn remembered(&mut self, conn: ConnId, remembered: Option<&str>) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        let has_seq = client.attempt.as_deref().is_some_and(|attempt| attempt.seq.is_some()) || client.uses_seq;
        if client.hearing.is_settled() || has_seq {
            return;
        }
        let mut hearing = client.hearing;
        if let Some(dialect) = remembered.and_then(|memo| hearing.remember(memo)) {
            client.hearing = hearing;
            client.speaker = Some(Box::new(Speaker::new(dialect)));
        } else if client.dialect().map(Dialect::memo).as_deref() != remembered {
            self.remember_dialect(conn);
        }
    }

    fn remember_dialect(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get(conn) else { return };
        let Some(user) = client.user.as_deref().map(|me| me.session.user) else { return };
        let dialect = client.dialect().map(Dialect::memo);
        // A client that changes its mind all the time is read no faster than that is stored.
        self.owe(conn);
        self.write(user, Then::Remembered(conn), Write::SetDialect { user, dialect });
    }

    /// A reply in the dialect of a client that has one; empty: its dialect has none.
    pub(super) fn reply_in_dialect(&mut self, conn: ConnId, canon: &[u8]) -> Vec<u8> {
        let mut theirs = Vec::new();
        if let Some(client) = self.clients.get_mut(conn)
            && let Some(mut speaker) = client.speaker.take()
        {
            speaker.write_reply(canon, client.me(), &mut theirs);
            client.speaker = Some(speaker);
        }
        theirs
    }

    /// A chat in the dialect of its recipient. What is taken back of it is canon.
    pub(super) fn translated(&mut self, conn: ConnId, tag: Tag, body: Payload) -> (Tag, Payload) {
        let speaker = self.clients.get(conn).and_then(|client| client.speaker.as_deref());
        let Some(speaker) = speaker else { return (tag, body) };
        let canon: Arc<[u8]> = match body {
            Payload::Shared(bytes) => bytes,
            Payload::Own(range) => self.fx.bytes[range].into(),
        };
        let dialect = speaker.dialect();
        let known = self.translation.as_ref();
        let known = known.filter(|known| Arc::ptr_eq(&known.canon, &canon) && Arc::ptr_eq(&known.dialect, dialect));
        let theirs = known.map(|known| Arc::clone(&known.theirs)).unwrap_or_else(|| {
            let mut theirs = Vec::with_capacity(canon.len() + 16);
            speaker.write_chat(&canon, &mut theirs);
            theirs.into()
        });
        let tag = match tag {
            Tag::Chat { session, receipt } => {
                Tag::Translated(Box::new(Translated { session, receipt, canon: Arc::clone(&canon) }))
            }
            tag => tag,
        };
        self.translation = Some(Translation { canon, dialect: Arc::clone(dialect), theirs: Arc::clone(&theirs) });
        (tag, Payload::Shared(theirs))
    }
}
