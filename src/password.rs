//! Passwords, as Argon2id PHC strings.
//!
//! A hash takes 20 to 40 ms and 19 MiB on purpose, so it belongs on a worker, never on a reactor,
//! and not on more workers at once than there are cores. The memory is mapped for each hash and
//! given back behind it: through malloc, glibc would keep it, for every worker, for good.
//!
//! The same password may come in other bytes from another keyboard. So what is hashed is its normal form:
//! NFC, with every blank as U+0020. What was stored before that was so is tried first.

use std::borrow::Cow;
use std::fmt;
use std::hint::black_box;
use std::io;
use std::str::FromStr;

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use icu_normalizer::ComposingNormalizer;
#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;

/// What a stored password begins with that is not plain text.
const PHC_PREFIX: &str = "$argon2";

/// What one hash costs. Every stored hash names its own; one that has another than this is
/// replaced at its next login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory, in KiB.
    kib: u32,
    /// Passes over the memory.
    iterations: u32,
}

impl Cost {
    /// From the least that Argon2 can do, for tests, to what one login may reasonably take. A
    /// stored hash above it is refused: its purpose is to take the memory, not to log in.
    const KIB: std::ops::RangeInclusive<u32> = Params::MIN_M_COST..=256 * 1024;
    const ITERATIONS: std::ops::RangeInclusive<u32> = Params::MIN_T_COST..=16;
}

impl Cost {
    /// The memory of one hash, in KiB.
    pub fn kib(&self) -> u32 {
        self.kib
    }
}

impl Default for Cost {
    /// OWASP's recommendation, and that of the crate.
    fn default() -> Self {
        Cost { kib: 19456, iterations: 2 }
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{},{}", self.kib, self.iterations)
    }
}

/// Why a text is no [`Cost`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CostError {
    #[error("must be KIB,ITERATIONS, such as {}", Cost::default())]
    Form,
    #[error("the memory must be {} to {} KiB", Cost::KIB.start(), Cost::KIB.end())]
    Kib,
    #[error("the iterations must be {} to {}", Cost::ITERATIONS.start(), Cost::ITERATIONS.end())]
    Iterations,
}

impl FromStr for Cost {
    type Err = CostError;

    /// Reads "KIB,ITERATIONS".
    fn from_str(text: &str) -> Result<Self, CostError> {
        let (kib, iterations) = text.split_once(',').ok_or(CostError::Form)?;
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| CostError::Form);
        let (kib, iterations) = (number(kib)?, number(iterations)?);
        let within = |value: u64, bounds: &std::ops::RangeInclusive<u32>| {
            u32::try_from(value).ok().filter(|value| bounds.contains(value))
        };
        Ok(Cost {
            kib: within(kib, &Cost::KIB).ok_or(CostError::Kib)?,
            iterations: within(iterations, &Cost::ITERATIONS).ok_or(CostError::Iterations)?,
        })
    }
}

/// What a password is, held against the stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Right,
    /// Right, but stored as plain text, at another cost, or not in its normal form: store [`Hasher::hash`] of
    /// it instead.
    RightButUpgrade,
    Wrong,
}

/// Nothing is known of the password: there was no memory, or no randomness.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    #[error("no memory to hash a password in: {0}")]
    Memory(#[from] io::Error),
    #[error("no randomness for a salt")]
    Randomness,
    #[error("Argon2: {0}")]
    Argon2(argon2::Error),
    #[error("PHC string: {0}")]
    Phc(argon2::password_hash::Error),
}

/// Hashes and verifies; one per worker. Each call takes the time of one hash, whatever it finds,
/// so that its time does not reveal whether there is such an account or how its password is stored. A password that
/// came in another form than its normal one takes two, if it is wrong.
#[derive(Debug)]
pub struct Hasher {
    configured: Recipe,
}

impl Hasher {
    pub fn new(cost: Cost) -> Self {
        Hasher { configured: Recipe::configured(cost) }
    }

    /// The PHC string to store, with a salt of its own: of the password's normal form.
    pub fn hash(&mut self, password: &str) -> Result<String, HashError> {
        let salt = argon2::password_hash::try_generate_salt().map_err(|_| HashError::Randomness)?;
        let hash = self.configured.run(&normal(password), &salt)?;
        self.configured.phc(&salt, &hash).map_err(HashError::Phc)
    }

    /// Holds `password` against what `User.password` has: as it came, and then in its normal form.
    pub fn verify(&mut self, password: &str, stored: &str) -> Result<Verdict, HashError> {
        let normal = normal(password);
        if !stored.starts_with(PHC_PREFIX) {
            // Plain text is as it came, too; that of C++ servers stays so.
            return match equal(normal.as_bytes(), self::normal(stored).as_bytes()) {
                // The caller's hash for the upgrade takes the time.
                true => Ok(Verdict::RightButUpgrade),
                false => self.verify_nobody(password),
            };
        }
        if normal == password {
            return self.verify_hash(password, stored);
        }
        match self.verify_hash(password, stored)? {
            // It was stored as it came. From now on it is right as others send it, too.
            Verdict::Right | Verdict::RightButUpgrade => Ok(Verdict::RightButUpgrade),
            Verdict::Wrong => self.verify_hash(&normal, stored),
        }
    }

    /// For an account that does not exist: always wrong, and no sooner than for one that does.
    pub fn verify_nobody(&mut self, password: &str) -> Result<Verdict, HashError> {
        let normal = normal(password);
        let run = |text| self.configured.run(text, &[0; Salt::RECOMMENDED_LENGTH]);
        black_box(run(password)?);
        if normal != password {
            black_box(run(&normal)?);
        }
        Ok(Verdict::Wrong)
    }

    fn verify_hash(&mut self, password: &str, stored: &str) -> Result<Verdict, HashError> {
        let Some((recipe, salt, expected)) = parse(stored) else {
            log::warn!(
                "a stored password is broken, or asks for more than a login may take: nobody can log in with it"
            );
            black_box(self.configured.run(password, &[0; Salt::RECOMMENDED_LENGTH])?);
            return Ok(Verdict::Wrong);
        };
        let hash = recipe.run(password, &salt)?;
        Ok(match equal(&hash, expected.as_bytes()) {
            true if recipe == self.configured => Verdict::Right,
            true => Verdict::RightButUpgrade,
            false => Verdict::Wrong,
        })
    }
}

/// The form of a password that does not depend on the keyboard: NFC, and every blank (White_Space) a
/// U+0020. Nothing is dropped or refused; case counts.
pub fn normal(password: &str) -> Cow<'_, str> {
    if password.is_ascii() && !password.contains(|character: char| character.is_whitespace() && character != ' ') {
        return Cow::Borrowed(password);
    }
    let blank = |character: char| if character.is_whitespace() { ' ' } else { character };
    Cow::Owned(ComposingNormalizer::new_nfc().normalize(password).chars().map(blank).collect())
}

/// Whether they are equal, in a time that depends on nothing but their lengths.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    a.len() == b.len() && difference == 0
}

/// Everything a hash depends on but the password and the salt.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Recipe {
    algorithm: Algorithm,
    version: Version,
    params: Params,
}

impl Recipe {
    fn configured(cost: Cost) -> Self {
        let params = Params::new(cost.kib, cost.iterations, 1, Some(Params::DEFAULT_OUTPUT_LEN));
        let params = params.expect("a Cost's bounds are within Argon2's");
        Recipe { algorithm: Algorithm::Argon2id, version: Version::V0x13, params }
    }

    fn run(&self, password: &str, salt: &[u8]) -> Result<Vec<u8>, HashError> {
        #[cfg(test)]
        tests::RUNS.set(tests::RUNS.get() + 1);
        let mut hash = vec![0; self.params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN)];
        let mut memory = MmapMut::map_anon(self.params.block_count() * Block::SIZE)?;
        // In small pages it takes half as long again. Where there are no huge ones, that is all.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(Advice::HugePage);
        Argon2::new(self.algorithm, self.version, self.params.clone())
            .hash_password_into_with_memory(password.as_bytes(), salt, &mut hash, blocks(&mut memory))
            .map_err(HashError::Argon2)?;
        Ok(hash)
    }

    fn phc(&self, salt: &[u8], hash: &[u8]) -> Result<String, argon2::password_hash::Error> {
        let phc = PasswordHash {
            algorithm: self.algorithm.ident(),
            version: Some(self.version.into()),
            params: ParamsString::try_from(&self.params)?,
            salt: Some(Salt::new(salt)?),
            hash: Some(Output::new(hash)?),
        };
        Ok(phc.to_string())
    }
}

/// What a stored PHC string says, unless it is broken or costs more than [`Cost`] allows.
fn parse(stored: &str) -> Option<(Recipe, Salt, Output)> {
    let phc = PasswordHash::new(stored).ok()?;
    let algorithm = Algorithm::try_from(phc.algorithm.as_str()).ok()?;
    // Version 0x10 was there before versions were written down.
    let version = phc.version.map_or(Ok(Version::V0x10), Version::try_from).ok()?;
    let params = Params::try_from(&phc).ok()?;
    let allowed = Cost::KIB.contains(&params.m_cost()) && Cost::ITERATIONS.contains(&params.t_cost());
    allowed.then_some((Recipe { algorithm, version, params }, phc.salt?, phc.hash?))
}

/// A mapping as Argon2's blocks, all zero when it is new. It begins at a page, so none is left
/// out for its alignment; were it otherwise, Argon2 would find too few and say so.
fn blocks(memory: &mut MmapMut) -> &mut [Block] {
    const { assert!(size_of::<Block>() == Block::SIZE) };
    // SAFETY: A Block is 128 u64 and, by its size, nothing else; every pattern of bits is a valid
    // one, both for reading the bytes as blocks and for leaving blocks as bytes. `align_to_mut`
    // hands out only what is aligned for them and inside the mapping, and it borrows the mapping,
    // which so stays mapped and exclusive for as long as the blocks are in use.
    let (_, blocks, _) = unsafe { memory.align_to_mut::<Block>() };
    blocks
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use argon2::{PasswordHasher, PasswordVerifier};

    use super::*;

    thread_local! {
        /// How many hashes this thread has made.
        pub(super) static RUNS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }

    /// Cheap, since most of these look at the form alone.
    fn hasher() -> Hasher {
        Hasher::new("64,1".parse().unwrap())
    }

    fn verdict(password: &str, stored: &str) -> Verdict {
        hasher().verify(password, stored).unwrap()
    }

    #[test]
    fn a_cost_is_read_within_bounds_and_written_back() {
        assert_eq!(Cost::default().to_string(), "19456,2");
        assert_eq!("19456,2".parse(), Ok(Cost::default()));
        assert_eq!("8, 16".parse(), Ok(Cost { kib: 8, iterations: 16 }));
        for (text, error) in [
            ("", CostError::Form),
            ("19456", CostError::Form),
            ("a,2", CostError::Form),
            ("19456,2,1", CostError::Form),
            ("-1,2", CostError::Form),
            ("7,2", CostError::Kib),
            ("262145,2", CostError::Kib),
            ("4294967304,2", CostError::Kib),
            ("19456,0", CostError::Iterations),
            ("19456,17", CostError::Iterations),
        ] {
            assert_eq!(text.parse::<Cost>(), Err(error), "{text}");
        }
        assert_eq!(CostError::Form.to_string(), "must be KIB,ITERATIONS, such as 19456,2");
        assert_eq!(CostError::Kib.to_string(), "the memory must be 8 to 262144 KiB");
    }

    #[test]
    fn a_hash_is_right_for_its_password_alone() {
        let stored = hasher().hash("pässword").unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{stored}");
        assert_eq!(verdict("pässword", &stored), Verdict::Right);
        assert_eq!(verdict("passwörd", &stored), Verdict::Wrong);
        assert_eq!(verdict("", &stored), Verdict::Wrong);
        assert_ne!(hasher().hash("pässword").unwrap(), stored, "each has a salt of its own");
        assert!(Hasher::new(Cost::default()).hash(&"x".repeat(128)).unwrap().len() <= 255);
    }

    #[test]
    fn the_hashes_are_those_of_the_crates_own_verifier() {
        let mut hasher = Hasher::new(Cost::default());
        let ours = hasher.hash("secret").unwrap();
        assert!(Argon2::default().verify_password(b"secret", ours.as_str()).is_ok());
        assert!(Argon2::default().verify_password(b"Secret", ours.as_str()).is_err());
        let theirs = Argon2::default().hash_password(b"secret").unwrap().to_string();
        assert_eq!(hasher.verify("secret", &theirs).unwrap(), Verdict::Right);
    }

    /// From the test suite of the reference implementation in C.
    #[test]
    fn the_hashes_are_those_of_the_reference_implementation() {
        let of_id = "$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc";
        let of_i = "$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$iekCn0Y3spW+sCcFanM2xBT63UP2sghkUoHLIUpWRS8";
        let of_10 = "$argon2i$m=256,t=2,p=1$c29tZXNhbHQ$/U3YPXYsSb3q9XxHvc0MLxur+GP960kN9j7emXX8zwY";
        for stored in [of_id, of_i, of_10] {
            assert_eq!(verdict("password", stored), Verdict::RightButUpgrade, "{stored}");
            assert_eq!(verdict("passwort", stored), Verdict::Wrong, "{stored}");
        }
    }

    #[test]
    fn what_is_stored_otherwise_than_configured_is_upgraded() {
        let stored = Hasher::new("64,2".parse().unwrap()).hash("secret").unwrap();
        assert_eq!(verdict("secret", &stored), Verdict::RightButUpgrade);
        assert_eq!(verdict("Secret", &stored), Verdict::Wrong);
        assert_eq!(verdict("secret", "secret"), Verdict::RightButUpgrade);
        for stored in ["", "secre", "secret1", "Secret", "$argon"] {
            assert_eq!(verdict("secret", stored), Verdict::Wrong, "{stored}");
        }
    }

    /// What was stored before passwords had a normal form.
    fn hash_of_bytes(password: &str) -> String {
        let (hasher, salt) = (hasher(), [7; 16]);
        let hash = hasher.configured.run(password, &salt).unwrap();
        hasher.configured.phc(&salt, &hash).unwrap()
    }

    #[test]
    fn a_password_is_right_in_every_encoding_of_it() {
        for same in [
            &["café", "cafe\u{301}"][..],
            &["pass word", "pass\u{A0}word", "pass\u{3000}word", "pass\u{2009}word", "pass\tword", "pass\u{1680}word"],
            &["한", "\u{1112}\u{1161}\u{11AB}"],
            &["Å", "A\u{30A}", "\u{212B}"],
            &[" x ", "\u{3000}x\u{2028}"],
        ] {
            for stored in same {
                let hashed = hasher().hash(stored).unwrap();
                for typed in same {
                    assert_eq!(verdict(typed, &hashed), Verdict::Right, "{typed:?} for {stored:?}");
                    assert_eq!(
                        verdict(typed, stored),
                        Verdict::RightButUpgrade,
                        "{typed:?} for {stored:?} in plain text"
                    );
                }
            }
        }
        let all = [
            "café",
            "cafe",
            "CAFÉ",
            "café ",
            " café",
            "ｃａｆé",
            "ca fé",
            "ca  fé",
            "caf\u{200D}é",
            "ﬁ",
            "fi",
            "ß",
            "ss",
        ];
        for (index, stored) in all.iter().enumerate() {
            let hashed = hasher().hash(stored).unwrap();
            for (other, typed) in all.iter().enumerate().filter(|(other, _)| *other != index) {
                assert_eq!(verdict(typed, &hashed), Verdict::Wrong, "{other}: {typed:?} for {stored:?}");
                assert_eq!(verdict(typed, stored), Verdict::Wrong, "{typed:?} for {stored:?} in plain text");
            }
        }
    }

    #[test]
    fn a_hash_of_the_bytes_as_they_came_is_tried_first_and_upgraded() {
        for old in ["cafe\u{301}", "pass\u{3000}word", "\u{212B}"] {
            let stored = hash_of_bytes(old);
            assert_eq!(verdict(old, &stored), Verdict::RightButUpgrade, "{old:?}");
            assert_eq!(verdict(&normal(old), &stored), Verdict::Wrong, "only whoever typed it knows it so");
            let upgraded = hasher().hash(old).unwrap();
            assert_eq!(verdict(old, &upgraded), Verdict::Right);
            assert_eq!(verdict(&normal(old), &upgraded), Verdict::Right);
        }
        assert_eq!(verdict("café", &hash_of_bytes("café")), Verdict::Right, "it was normal");
    }

    #[test]
    fn a_stored_hash_is_never_taken_for_plain_text() {
        let stored = hasher().hash("secret").unwrap();
        for stored in [&stored, &stored[..50], "$argon2id", "$argon2"] {
            assert_eq!(verdict(stored, stored), Verdict::Wrong, "{stored}");
        }
    }

    #[test]
    fn a_hostile_cost_is_refused() {
        let tail = "c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc";
        for cost in ["m=4294967295,t=2,p=1", "m=262145,t=1,p=1", "m=8,t=4294967295,p=1", "m=8,t=1,p=2", "m=8,t=17,p=1"]
        {
            let stored = format!("$argon2id$v=19${cost}${tail}");
            assert!(parse(&stored).is_none(), "{cost}");
            assert_eq!(verdict("password", &stored), Verdict::Wrong);
        }
        assert!(parse(&format!("$argon2id$v=19$m=262144,t=16,p=1${tail}")).is_some());
    }

    #[test]
    fn a_wrong_password_takes_as_many_hashes_whether_there_is_an_account_or_not() {
        let stored = hasher().hash("secret").unwrap();
        for (password, hashes) in [("Secret", 1), ("Se cret", 1), ("sécret", 1), ("Se\tcret", 2), ("se\u{301}cret", 2)]
        {
            for stored in [Some(&*stored), Some("secret"), Some("$argon2"), None] {
                let before = RUNS.get();
                let verdict = match stored {
                    Some(stored) => verdict(password, stored),
                    None => hasher().verify_nobody(password).unwrap(),
                };
                assert_eq!((verdict, RUNS.get() - before), (Verdict::Wrong, hashes), "{password:?}, {stored:?}");
            }
        }
    }

    #[test]
    fn nobody_is_always_wrong_after_the_work_of_a_hash() {
        let mut hasher = Hasher::new(Cost::default());
        let stored = hasher.hash("secret").unwrap();
        let mut least = |verify: &dyn Fn(&mut Hasher) -> Verdict| {
            let timed = |_| {
                let begin = Instant::now();
                assert_eq!(verify(&mut hasher), Verdict::Wrong);
                begin.elapsed()
            };
            (0..3).map(timed).min().unwrap()
        };
        let wrong = least(&|hasher| hasher.verify("Secret", &stored).unwrap());
        let nobody = least(&|hasher| hasher.verify_nobody("Secret").unwrap());
        let plain = least(&|hasher| hasher.verify("Secret", "secret").unwrap());
        // The least of three, and a wide margin: it separates a hash from none, which is 1000 times less.
        assert!(nobody * 4 > wrong && plain * 4 > wrong, "{wrong:?}, {nobody:?}, {plain:?}");
    }
}
