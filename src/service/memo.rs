//! Which passwords have been found right: a returning client's costs no second hash.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::{fmt, mem};

use ring::hmac;

use crate::store::UserId;

/// The number of logins that are remembered at least. About 35 bytes each, and twice as many at most: 18 MiB.
const REMEMBERED: usize = 1 << 18;
/// The bytes of a code: that two of 2^18 logins share one by chance is one in 10^28.
const CODE: usize = 16;

type Code = [u8; CODE];

/// The logins of which the password was verified. It holds a code of each, by a key that only this
/// process knows and that ends with it: neither passwords nor anything that a password could be
/// tried on without the key. A login whose stored password has changed since is not found.
pub struct Memo {
    key: hmac::Key,
    /// The number of logins that are remembered at least.
    room: usize,
    codes: Mutex<Codes>,
}

/// The codes of the last logins, in two generations: the older one is forgotten when the younger one is full.
/// That costs half the memory of a list in the order of use.
#[derive(Default)]
struct Codes {
    young: HashSet<Code>,
    old: HashSet<Code>,
}

impl Codes {
    fn put(&mut self, code: Code, room: usize) {
        if self.young.len() >= room && !self.young.contains(&code) {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(code);
    }

    /// Whether the code is there. One that is used stays.
    fn has(&mut self, code: Code, room: usize) -> bool {
        let is_there = self.young.contains(&code) || self.old.contains(&code);
        if is_there {
            self.put(code, room);
        }
        is_there
    }
}

impl fmt::Debug for Memo {
    /// Nothing of what is in it.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Memo")
    }
}

impl Memo {
    /// An empty one, with a new key.
    ///
    /// # Errors
    /// The operating system gives no random bytes.
    pub fn new() -> Result<Memo, getrandom::Error> {
        Memo::with_room(REMEMBERED)
    }

    fn with_room(room: usize) -> Result<Memo, getrandom::Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Ok(Memo { key, room, codes: Mutex::default() })
    }

    /// The length of `stored` is hashed along, so that no part of one field can be taken for a part of another.
    fn code(&self, user: UserId, stored: &str, password: &str) -> Code {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&user.to_le_bytes());
        context.update(&(stored.len() as u64).to_le_bytes());
        context.update(stored.as_bytes());
        context.update(password.as_bytes());
        let mut code = [0; CODE];
        code.copy_from_slice(&context.sign().as_ref()[..CODE]);
        code
    }

    /// Whether `password` was found right for what is stored.
    ///
    /// The code is looked up like any other key: how long that takes depends on the codes, which
    /// cannot be chosen or known without the secret.
    pub fn knows(&self, user: UserId, stored: &str, password: &str) -> bool {
        let code = self.code(user, stored, password);
        self.codes.lock().unwrap_or_else(PoisonError::into_inner).has(code, self.room)
    }

    /// `password` is right for what is stored.
    pub fn remember(&self, user: UserId, stored: &str, password: &str) {
        let code = self.code(user, stored, password);
        self.codes.lock().unwrap_or_else(PoisonError::into_inner).put(code, self.room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_known_by_all_of_it_and_nothing_else() {
        let memo = Memo::new().unwrap();
        memo.remember(7, "stored", "password");
        assert!(memo.knows(7, "stored", "password"));
        let others =
            [(8, "stored", "password"), (7, "other", "password"), (7, "stored", "Password"), (7, "storedp", "assword")];
        for (user, stored, password) in others {
            assert!(!memo.knows(user, stored, password), "{user} {stored} {password}");
        }
        let another = Memo::new().unwrap();
        assert_ne!(memo.code(7, "stored", "password"), another.code(7, "stored", "password"), "one secret for all");
        assert_eq!(format!("{memo:?}"), "Memo");
    }

    #[test]
    fn the_last_logins_are_remembered_and_not_more_than_twice_as_many() {
        const ROOM: u32 = 100;
        let memo = Memo::with_room(ROOM as usize).unwrap();
        for user in 0..1_000 {
            memo.remember(user, "s", "p");
            let codes = memo.codes.lock().unwrap();
            let known = |user: u32| {
                let code = memo.code(user, "s", "p");
                codes.young.contains(&code) || codes.old.contains(&code)
            };
            assert!((user.saturating_sub(ROOM - 1)..=user).all(known), "{user}");
            assert!(codes.young.len().max(codes.old.len()) <= ROOM as usize, "{user}");
        }
        assert!(!memo.knows(0, "s", "p"));
    }

    #[test]
    fn a_login_that_comes_again_is_not_forgotten() {
        let memo = Memo::with_room(3).unwrap();
        memo.remember(0, "s", "p");
        for user in 1..100 {
            memo.remember(user, "s", "p");
            assert!(memo.knows(0, "s", "p"), "{user}");
        }
    }
}
