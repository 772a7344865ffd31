//! Which passwords have been found right: a returning client's costs no second hash.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;
use ring::hmac;

use crate::store::UserId;

/// Logins that are remembered; the one that was used longest ago makes room. About 80 bytes each: 20 MiB.
const REMEMBERED: usize = 1 << 18;
/// Of a login's code: two that share it by chance, of 2^18, are one in 10^28.
const CODE: usize = 16;

type Code = [u8; CODE];

/// The logins of which the password was verified. It holds a code of each, by a key that only this
/// process knows and that ends with it: neither passwords nor anything that a password could be
/// tried on without the key. Whose stored password has changed since is not found.
pub struct Memo {
    key: hmac::Key,
    /// How many codes there may be. The cache has no bound of its own, for it would reserve all of it at once.
    room: usize,
    codes: Mutex<LruCache<Code, ()>>,
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
        Ok(Memo { key, room, codes: Mutex::new(LruCache::unbounded()) })
    }

    /// Of equal length for equal fields alone: nothing of one can be taken for a part of another.
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
    /// nobody can choose or know without the secret.
    pub fn knows(&self, user: UserId, stored: &str, password: &str) -> bool {
        let code = self.code(user, stored, password);
        self.codes.lock().unwrap_or_else(PoisonError::into_inner).get(&code).is_some()
    }

    /// `password` is right for what is stored.
    pub fn remember(&self, user: UserId, stored: &str, password: &str) {
        let code = self.code(user, stored, password);
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        codes.put(code, ());
        if codes.len() > self.room {
            codes.pop_lru();
        }
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
    fn who_has_not_come_for_longest_is_forgotten_first() {
        let memo = Memo::with_room(3).unwrap();
        (1..=3).for_each(|user| memo.remember(user, "s", "p"));
        assert!(memo.knows(1, "s", "p"));
        memo.remember(4, "s", "p");
        assert_eq!([1, 2, 3, 4].map(|user| memo.knows(user, "s", "p")), [true, false, true, true]);
    }
}
