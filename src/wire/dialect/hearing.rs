//! Which dialect a client speaks, found out from its requests.
//!
//! A request tells it by its number together with what it holds: `{"msgid":9,"groupid":1,"msg":"…"}` is no JOIN_GROUP
//! of canon, which has no text, but a group chat of b. Only what canon would not do, or would do wrongly, is taken for
//! another dialect's; whatever is ambiguous stays canon. A login alone tells nothing between most of them, so what
//! was found out is remembered with the account, and counts until a request speaks against it.
//!
//! Some dialects are never guessed: their requests are canon's and only the replies differ, so that a guess would
//! break clients that work.

use std::sync::{Arc, LazyLock};

use super::members::Members;
use super::translate::number;
use super::{Ack, Dialect, Place, Verb, find};
use crate::wire::Request;
use crate::wire::request::{Key, Keys};

/// The dialects that can be told by a request; of several that can be meant, the first one is.
const FAMILIES: [&str; 9] = ["canon", "b", "canon-999", "zero", "canon-msgId", "canon-userid", "d", "f", "g"];
const CANON: u16 = 1;
const ALL: u16 = (1 << FAMILIES.len()) - 1;
/// Numbers that were found out one by one; no dialect has all of them.
const LEARNED: u16 = 1 << 15;

/// The numbers at which a bare id is a logout. Elsewhere it may be anything: a heartbeat, or an update.
const LOGOUTS: [i64; 8] = [2, 3, 4, 5, 10, 11, 15, 1002];
/// Without an id, these are logins by name, which canon refuses.
const LOGINS_BY_NAME: [i64; 3] = [0, 1, 1000];
/// Numbers that may be learned; from 200 up to 999 this server has its own.
const LEARNABLE: std::ops::Range<i64> = 0..100_000;
const RESERVED: std::ops::Range<i64> = 200..1000;

struct Family {
    dialect: Arc<Dialect>,
    /// By request, what its own keys stand for.
    keys: [Vec<(Keys, Keys)>; Verb::ALL.len()],
}

static KNOWN: LazyLock<Vec<Family>> = LazyLock::new(|| {
    let dialects = FAMILIES.iter().filter_map(|name| find(name).cloned());
    dialects.map(|dialect| Family { keys: Verb::ALL.map(|verb| dialect.own_keys(verb)), dialect }).collect()
});

impl Dialect {
    /// The keys that this dialect has instead of canon's in a request.
    fn own_keys(&self, verb: Verb) -> Vec<(Keys, Keys)> {
        let places = [Place::All, Place::Requests, verb.into()];
        let pairs = places.iter().flat_map(|place| &self.keys[*place as usize]);
        let canons = pairs.map(|(canon, _)| &**canon);
        let renaming = self.renaming(&places);
        canons.filter_map(|canon| Some((Keys::named(renaming.theirs(canon))?, Keys::named(canon)?))).collect()
    }
}

const ID: Keys = Keys::of(&[Key::id]);
const MSG: Keys = Keys::of(&[Key::msg]);
const GROUP: Keys = Keys::of(&[Key::groupid]);
const GROUPNAME: Keys = Keys::of(&[Key::groupname]);
const FRIEND: Keys = Keys::of(&[Key::friendid]);
const TO: Keys = Keys::of(&[Key::toid, Key::to]);
const NAME: Keys = Keys::of(&[Key::name]);
const PASSWORD: Keys = Keys::of(&[Key::password, Key::passwd, Key::pwd]);
/// What every request may have.
const COMMON: Keys = Keys::of(&[Key::msgid, Key::seq]);

/// Whether what a request holds is what this one needs, and nothing that only another one has.
const fn fits(verb: Verb, keys: Keys) -> bool {
    match verb {
        Verb::Login => keys.has_all(ID) && keys.has_any(PASSWORD),
        Verb::Logout => keys.has_all(ID) && !keys.has_any(PASSWORD) && !keys.has_any(MSG),
        Verb::Register => keys.has_all(NAME) && keys.has_any(PASSWORD),
        Verb::Chat => keys.has_any(TO) && keys.has_all(MSG),
        Verb::AddFriend => keys.has_all(FRIEND) && !keys.has_any(TO),
        Verb::CreateGroup => keys.has_all(GROUPNAME) && !keys.has_any(GROUP),
        Verb::JoinGroup => keys.has_all(GROUP) && !keys.has_any(MSG),
        Verb::GroupChat => keys.has_all(GROUP) && keys.has_all(MSG),
        Verb::Update => is_bare(keys),
    }
}

/// An id and nothing else.
const fn is_bare(keys: Keys) -> bool {
    keys.has_all(ID) && !keys.has_any(Keys::ALL.without(ID.with(COMMON)))
}

/// What a request holds is told by its keys alone, whatever its number.
fn shape(keys: Keys, number: i64) -> Option<Verb> {
    if keys.has_any(PASSWORD) {
        return match (keys.has_all(ID), keys.has_all(NAME)) {
            (true, _) => Some(Verb::Login),
            (false, true) if !LOGINS_BY_NAME.contains(&number) => Some(Verb::Register),
            _ => None,
        };
    }
    let verbs = [
        (keys.has_all(GROUP.with(MSG)), Verb::GroupChat),
        (keys.has_any(TO) || keys.has_all(FRIEND.with(MSG)), Verb::Chat),
        (keys.has_all(GROUPNAME), Verb::CreateGroup),
        (keys.has_all(GROUP), Verb::JoinGroup),
        (keys.has_all(FRIEND), Verb::AddFriend),
        (is_bare(keys) && LOGOUTS.contains(&number), Verb::Logout),
    ];
    verbs.into_iter().find(|(is_so, _)| *is_so).map(|(_, verb)| verb)
}

impl Family {
    fn explains(&self, request: &Request, number: i64) -> bool {
        let Some(verb) = Verb::ALL.into_iter().find(|verb| self.dialect.number(*verb) == Some(number)) else {
            return false;
        };
        let mut keys = request.keys();
        for (own, canon) in &self.keys[verb as usize] {
            if keys.has_any(*canon) {
                return false;
            }
            if keys.has_all(*own) {
                keys = keys.without(*own).with(*canon);
            }
        }
        fits(verb, keys)
    }
}

/// What is known about the dialect of one client.
#[derive(Debug, Clone, Copy)]
pub struct Hearing {
    /// The dialects that it may speak, a bit each, of which the lowest is taken for it; none: it is not guessed.
    candidates: u16,
    /// The requests of canon that it has sent: the next one of the same kind tells nothing new.
    heard: u16,
}

impl Default for Hearing {
    /// Nothing is known yet.
    fn default() -> Hearing {
        Hearing { candidates: ALL, heard: 0 }
    }
}

impl Hearing {
    /// The dialect is given; nothing is guessed.
    pub fn settled() -> Hearing {
        Hearing { candidates: 0, heard: 0 }
    }

    pub fn is_settled(self) -> bool {
        self.candidates == 0
    }

    /// Takes note of a request. Returns the dialect of the client if it is not what it was taken for; `None` in there
    /// is canon. `speaks`: what it was taken for.
    pub fn hear(&mut self, request: &Request, speaks: Option<&Dialect>) -> Option<Option<Arc<Dialect>>> {
        if self.candidates == 0 {
            return None;
        }
        let number = request.msgid().ok().or_else(|| other_msgid(request))?;
        let is_canons = speaks.is_none();
        if is_canons && let Some(verb) = Verb::from_msgid(number) {
            let bit = 1 << verb as u16;
            if self.heard & bit != 0 && fits(verb, request.keys()) {
                return None;
            }
            self.heard |= bit;
        }
        let explained_by = KNOWN.iter().enumerate().filter(|(_, family)| family.explains(request, number));
        let explained = explained_by.fold(0, |bits, (at, _)| bits | 1 << at);
        if explained == 0 {
            return self.learn(request, number, speaks).map(Some);
        }
        if self.candidates & LEARNED != 0 && speaks.is_some_and(|speaks| speaks.has(request, number)) {
            return None;
        }
        let both = self.candidates & explained;
        self.candidates = if both != 0 { both } else { explained };
        let family = &KNOWN.get(self.candidates.trailing_zeros() as usize)?.dialect;
        let is_canon = self.candidates & CANON != 0;
        match speaks {
            None if is_canon => None,
            Some(speaks) if !is_canon && speaks.name() == family.name() => None,
            _ => Some((!is_canon).then(|| Arc::clone(family))),
        }
    }

    /// No dialect has this number for what the request holds: the client has numbers of its own.
    fn learn(&mut self, request: &Request, number: i64, speaks: Option<&Dialect>) -> Option<Arc<Dialect>> {
        let keys = request.keys();
        let verb = shape(keys, number).filter(|_| LEARNABLE.contains(&number) && !RESERVED.contains(&number))?;
        let names_friend = verb == Verb::Chat && !keys.has_any(TO);
        let base = speaks.cloned().unwrap_or_else(Dialect::canon);
        if base.number(verb) == Some(number) && !names_friend {
            return None; // it lacks something, and is refused for that
        }
        self.candidates = LEARNED;
        Some(Arc::new(base.with_number(verb, number, names_friend)))
    }

    /// What was remembered with the account counts where the client itself has told nothing: returns the dialect, if
    /// it is not what the client is taken for.
    pub fn remember(&mut self, remembered: &str) -> Option<Arc<Dialect>> {
        if self.candidates & CANON == 0 {
            return None;
        }
        if let Some(own) = Dialect::from_memo(remembered) {
            self.candidates = LEARNED;
            return Some(Arc::new(own));
        }
        let at = FAMILIES.iter().position(|name| *name == remembered)?;
        let bit = 1 << at;
        if bit == CANON || self.candidates & bit == 0 {
            return None;
        }
        self.candidates = bit;
        find(remembered).cloned()
    }
}

#[cold]
fn other_msgid(request: &Request) -> Option<i64> {
    Keys::named("msgId").filter(|key| request.keys().has_all(*key))?;
    number(Members::parse(request.object())?.get("msgId")?)
}

/// What numbers that were learned are called.
const OWN: &str = "own";

impl Dialect {
    fn has(&self, request: &Request, number: i64) -> bool {
        Verb::ALL
            .into_iter()
            .any(|verb| self.number(verb) == Some(number) && shape(request.keys(), number) == Some(verb))
    }

    /// The same with another number for one request, and its ack where the original has one.
    fn with_number(mut self, verb: Verb, number: i64, names_friend: bool) -> Dialect {
        self.name = OWN.into();
        self.about = "numbers of its own".into();
        // It had this number for something else.
        for other in &mut self.numbers {
            other.take_if(|other| *other == number);
        }
        self.numbers[verb as usize] = Some(number);
        if matches!(verb, Verb::Login | Verb::Register) {
            self.acks[verb as usize] = Some(Ack { number: number + 1, says: Vec::new() });
        }
        if names_friend {
            self.keys[Place::Chat as usize] = vec![("toid".into(), "friendid".into())];
        }
        self
    }

    /// What is to be remembered with an account: a name, or what was learned.
    pub fn memo(&self) -> String {
        if self.name() != OWN {
            return self.name().to_owned();
        }
        let numbers =
            Verb::ALL.iter().map(|verb| self.number(*verb).map_or("-".to_owned(), |number| number.to_string()));
        let numbers: Vec<String> = numbers.collect();
        let keys = if self.keys[Place::Chat as usize].is_empty() { "" } else { " friendid" };
        format!("{OWN} {}{keys}", numbers.join(" "))
    }

    fn from_memo(memo: &str) -> Option<Dialect> {
        let mut words = memo.strip_prefix(OWN)?.split_ascii_whitespace();
        let mut dialect = Dialect::canon();
        for verb in Verb::ALL {
            match words.next()? {
                "-" => dialect.numbers[verb as usize] = None,
                number => dialect = dialect.with_number(verb, number.parse().ok()?, false),
            }
        }
        if words.next() == Some("friendid") {
            dialect.keys[Place::Chat as usize] = vec![("toid".into(), "friendid".into())];
        }
        Some(dialect)
    }
}
