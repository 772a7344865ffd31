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
use super::{Ack, Dialect, Kind, Place, Verb, find};
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
        let renaming = self.renaming(Kind::Request(verb));
        renaming.pairs().filter_map(|(canon, theirs)| Some((Keys::named(theirs)?, Keys::named(canon)?))).collect()
    }
}

const MSGID: Keys = Keys::of(&[Key::msgid]);
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

/// Whether canon would do rightly what a request of its own number asks for. What it does not read may stand there,
/// unless it shows that something else is meant.
const fn is_canons(verb: Verb, keys: Keys) -> bool {
    match verb {
        Verb::Login => keys.has_all(ID) && keys.has_any(PASSWORD),
        Verb::Logout => keys.has_all(ID) && !keys.has_any(PASSWORD.with(MSG)),
        Verb::Register => keys.has_all(NAME) && keys.has_any(PASSWORD),
        Verb::Chat => keys.has_any(TO) && keys.has_all(MSG),
        Verb::AddFriend => keys.has_all(FRIEND),
        Verb::CreateGroup => keys.has_all(GROUPNAME) && !keys.has_all(GROUP.with(MSG)),
        Verb::JoinGroup => keys.has_all(GROUP) && !keys.has_any(MSG),
        Verb::GroupChat => keys.has_all(GROUP.with(MSG)),
        Verb::Update => false,
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
        let Some(verb) = self.dialect.verb(number) else { return false };
        let mut keys = request.keys();
        for (own, canon) in &self.keys[verb as usize] {
            if keys.has_any(*canon) {
                return false;
            }
            if keys.has_all(*own) {
                keys = keys.without(*own).with(*canon);
            }
        }
        let fits = if number == verb.msgid() { is_canons(verb, keys) } else { shape(keys, number) == Some(verb) };
        fits && keys.has_all(MSGID)
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

    /// Whether a client that was taken for one of canon sends nothing else with a request of this number: what was said
    /// before is not said anew.
    pub fn is_nothing_new(self, request: &Request, number: Option<i64>) -> bool {
        let is_known = |verb| self.heard & bit(verb) != 0 && is_canons(verb, request.keys());
        self.candidates == 0 || number.and_then(Verb::from_msgid).is_some_and(is_known)
    }

    /// Takes note of a request. Returns the dialect of the client if it is not what it was taken for; `None` in there
    /// is canon. `speaks`: what it was taken for.
    pub fn hear(&mut self, request: &Request, speaks: Option<&Dialect>) -> Option<Option<Arc<Dialect>>> {
        if self.candidates == 0 {
            return None;
        }
        let number = request.number().or_else(|| other_msgid(request))?;
        if speaks.is_none()
            && let Some(verb) = Verb::from_msgid(number).filter(|verb| is_canons(*verb, request.keys()))
        {
            if self.heard & bit(verb) != 0 {
                return None;
            }
            self.heard |= bit(verb);
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
        if base.number(verb) == Some(number) && (!names_friend || base.names_friend()) {
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
            let speaks_against = |verb: &Verb| self.heard & bit(*verb) != 0 && own.number(*verb) != Some(verb.msgid());
            if Verb::ALL.iter().any(speaks_against) {
                return None;
            }
            self.candidates = LEARNED;
            return Some(Arc::new(own));
        }
        let family = 1 << FAMILIES.iter().position(|name| *name == remembered)?;
        if family == CANON || self.candidates & family == 0 {
            return None;
        }
        self.candidates = family;
        find(remembered).cloned()
    }
}

const fn bit(verb: Verb) -> u16 {
    1 << verb as u16
}

#[cold]
fn other_msgid(request: &Request) -> Option<i64> {
    Keys::named("msgId").filter(|key| request.keys().has_all(*key))?;
    number(Members::parse(request.object())?.get("msgId")?)
}

/// The name of a dialect with numbers that were learned begins with this, and the one that it is like follows.
const OWN: &str = "own ";

impl Dialect {
    /// Whether it is such a client's own request, at this number.
    fn has(&self, request: &Request, number: i64) -> bool {
        let keys = request.keys();
        let fits = |verb| shape(keys, number) == Some(verb) || number == verb.msgid() && is_canons(verb, keys);
        self.verb(number).is_some_and(fits)
    }

    /// Whether a chat's `toid` is called `friendid`.
    fn names_friend(&self) -> bool {
        self.renaming(Kind::Chat(Verb::Chat)).theirs("toid") == "friendid"
    }

    /// The same with another number for one request, and its ack where the original has one.
    fn with_number(mut self, verb: Verb, number: i64, names_friend: bool) -> Dialect {
        if !self.name.starts_with(OWN) {
            self.name = format!("{OWN}{}", self.name).into();
        }
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
            self.rename(Place::Chat, "toid", "friendid");
        }
        self
    }

    /// What is to be remembered with an account: a name, or what was learned.
    pub fn memo(&self) -> String {
        if !self.name.starts_with(OWN) {
            return self.name().to_owned();
        }
        let numbers =
            Verb::ALL.iter().map(|verb| self.number(*verb).map_or("-".to_owned(), |number| number.to_string()));
        let numbers: Vec<String> = numbers.collect();
        let friendid = if self.names_friend() { " friendid" } else { "" };
        format!("{} {}{friendid}", self.name, numbers.join(" "))
    }

    /// Reads what was remembered; `None`: it is no memo of learned numbers.
    fn from_memo(memo: &str) -> Option<Dialect> {
        let mut words = memo.strip_prefix(OWN)?.split_ascii_whitespace();
        let mut dialect = Dialect::clone(find(words.next()?)?);
        for verb in Verb::ALL {
            match words.next()? {
                "-" => dialect.numbers[verb as usize] = None,
                word => {
                    // Others than it writes may stand in a database.
                    let number = word.parse().ok().filter(|number| LEARNABLE.contains(number))?;
                    dialect = dialect.with_number(verb, number, false);
                }
            }
        }
        if words.next() == Some("friendid") {
            dialect.rename(Place::Chat, "toid", "friendid");
        }
        Some(dialect)
    }
}
