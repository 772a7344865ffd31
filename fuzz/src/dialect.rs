//! A client's stream of requests, whatever it speaks: its dialect is found out, its requests become canon, and what it
//! is told is strict JSON, or a frame of that. Nothing panics, and nothing grows without bound.
//!
//! The first byte chooses a dialect to begin with, or leaves it to be guessed; the rest is the stream.

use std::sync::Arc;

use chat_server::wire::dialect::{Dialect, Heard, Hearing, Length, Me, Speaker, To, find, list};
use chat_server::wire::reply::{self, Errno, FanOut, Friend, Group, LoginReply, Member, Refusal, ReplyLimit, Yields};
use chat_server::wire::{Request, Split, Splitter, msgid};

use super::strict::{Json, read};

const MAX_OBJECT: usize = 4096;
const ME: u32 = 7;
const NAME: &str = "zhang \"san\" \u{1F600}";

struct Client {
    hearing: Hearing,
    speaker: Option<Speaker>,
    /// The last request that was taken as a chat.
    chat: Vec<u8>,
}

pub fn run(data: &[u8]) {
    let Some((&first, mut rest)) = data.split_first() else { return };
    let given = list().nth(first.into()).and_then(|dialect| find(dialect.name())).cloned();
    let mut splitter = match &given {
        Some(dialect) if dialect.length() == Length::Both => Splitter::of_known(true),
        _ => Splitter::default(),
    };
    let mut client = Client {
        hearing: if given.is_some() { Hearing::settled() } else { Hearing::default() },
        speaker: given.map(Speaker::new),
        chat: Vec::new(),
    };
    while let Ok(Split::Object { start, end }) = splitter.next(rest, MAX_OBJECT) {
        client.object(&rest[start..end]);
        rest = &rest[end..];
    }
}

impl Client {
    /// As the service does it.
    fn object(&mut self, object: &[u8]) {
        let Ok(request) = Request::parse(object) else { return };
        if matches!(request.seq(), Ok(None)) {
            let speaks = self.speaker.as_ref().map(|speaker| &**speaker.dialect());
            match self.hearing.hear(&request, speaks) {
                None => {}
                Some(None) => self.speaker = None,
                Some(Some(dialect)) => self.turns_out(dialect),
            }
        }
        let Some(speaker) = &mut self.speaker else { return };
        let (canon, verb) = match speaker.hear(object, Some(ME)) {
            Heard::Theirs(verb, canon) => (canon, verb),
            // What is told of it is nothing: this server's 201.
            Heard::Canon | Heard::Unknown => return,
        };
        let theirs = fields(object);
        let Ok(request) = Request::parse(&canon) else { panic!("no request: {}", canon.escape_ascii()) };
        let said = fields(&canon);
        assert!(said.len() <= theirs.len() + 1, "{} of {}", canon.escape_ascii(), object.escape_ascii());
        let has_one_number = said.iter().filter(|(key, _)| key == "msgid").count() == 1;
        assert!(!has_one_number || request.msgid() == Ok(verb.msgid()), "{}", canon.escape_ascii());
        let has_seq = !matches!(request.seq(), Ok(None));
        let asked = if has_seq { None } else { speaker.ask(verb, &canon) };
        self.replies(verb.msgid(), asked, &canon);
        if request.chat().is_ok() && has_one_number && [msgid::ONE_CHAT, msgid::GROUP_CHAT].contains(&verb.msgid()) {
            self.chat = canon;
            self.pushes();
        }
    }

    fn turns_out(&mut self, dialect: Arc<Dialect>) {
        // What is remembered with the account is the same client's.
        let memo = dialect.memo();
        if memo != dialect.name() {
            let remembered = Hearing::default().remember(&memo).expect("a memo that is read as it was written");
            assert_eq!(remembered.memo(), memo);
        }
        match &mut self.speaker {
            Some(speaker) => speaker.switch(dialect),
            None => self.speaker = Some(Speaker::new(dialect)),
        }
    }

    /// One of the replies that such a request may have.
    fn replies(&mut self, request: i64, asked: Option<i64>, canon: &[u8]) {
        let Some(speaker) = &mut self.speaker else { return };
        let is_refused = canon.len().is_multiple_of(3);
        let mut reply = Vec::new();
        if is_refused {
            let refusal = Refusal::busy("no \"more\"", 3);
            reply::refused(&mut reply, Some(request), asked, &refusal);
        } else {
            match (request, asked) {
                (msgid::REGISTER, _) => reply::registered(&mut reply, asked, ME),
                (msgid::CREATE_GROUP, Some(seq)) => reply::ack_group_created(&mut reply, seq, 3),
                (msgid::ONE_CHAT, Some(seq)) => reply::ack_chat(&mut reply, seq, true),
                (msgid::GROUP_CHAT, Some(seq)) => reply::ack_group_chat(&mut reply, seq, FanOut::default()),
                (msgid::LIST, seq) => reply::lists(&mut reply, seq, &[], &[]),
                (_, Some(seq)) => reply::ack(&mut reply, seq),
                (_, None) => reply::refused(&mut reply, Some(request), None, &Errno::NotYou.into()),
            }
        }
        let mut told = Vec::new();
        speaker.write_reply(&reply, Some(Me { id: ME, name: NAME }), &mut told);
        let is_201 = reply.starts_with(br#"{"msgid":201,"#);
        assert_eq!(told.is_empty(), is_201, "{} for {}", told.escape_ascii(), reply.escape_ascii());
        if !is_201 {
            let told = unframed(speaker.dialect(), &told);
            assert!(!fields(told).iter().any(|(key, _)| key == "seq"), "{}", told.escape_ascii());
        }
    }

    /// A chat as it comes for somebody of each dialect, now and with a login.
    fn pushes(&self) {
        let canon = fields(&self.chat);
        for dialect in list() {
            let dialect = find(dialect.name()).expect("it is in the list");
            let mut theirs = Vec::new();
            Speaker::new(Arc::clone(dialect)).write_chat(&self.chat, &mut theirs);
            let theirs = unframed(dialect, &theirs);
            assert!(fields(theirs).len() <= canon.len());
            let mut back = Vec::new();
            dialect.write_chat(To::Canon, theirs, &mut back);
            assert!(fields(&back).len() <= canon.len());
        }
        let Some(speaker) = &self.speaker else { return };
        let text = std::str::from_utf8(&self.chat).expect("UTF-8");
        let friend = Friend { id: 4, name: NAME.to_owned(), state: "online" };
        let member = Member { id: 4, name: NAME.to_owned(), state: "online", role: "normal" };
        let group =
            Group { id: 3, groupname: "a".to_owned(), groupdesc: NAME.to_owned(), users: vec![member], members: 600 };
        let yields = if self.chat.len().is_multiple_of(2) { Yields::Offline } else { Yields::Everything };
        let limit = ReplyLimit { bytes: self.chat.len() + 200, yields };
        let (friends, groups, limit) = ([friend], [group], Some(limit));
        let login = LoginReply {
            seq: None,
            id: ME,
            name: NAME,
            friends: &friends,
            groups: &groups,
            offline: &[text, text],
            limit,
        };
        let (reply, listed) = speaker.dialect().login_ack(&login);
        fields(unframed(speaker.dialect(), &reply));
        assert!(listed.offline <= 2 && listed.friends <= 1 && listed.groups <= 1);
    }
}

/// What is in a frame, if it is the right one.
fn unframed<'a>(dialect: &Dialect, bytes: &'a [u8]) -> &'a [u8] {
    if dialect.length() == Length::Nowhere {
        return bytes;
    }
    let (head, object) = bytes.split_at(4);
    assert_eq!(head, u32::try_from(object.len()).expect("a length").to_be_bytes());
    object
}

fn fields(object: &[u8]) -> Vec<(String, Json)> {
    match read(object) {
        Some(Json::Object(fields)) => fields,
        _ => panic!("no strict JSON object: {}", object.escape_ascii()),
    }
}
