//! What the stores keep of a name beside the name itself.

use std::fmt::Display;

use crate::wire::name;

/// See [`hash`].
pub(super) type NameKey = [u8; 32];

/// The hash of a name's [`key`](name::key), by which a table keeps names apart: SHA-256. However long a key
/// grows (one character may become eighteen), it fits into an index.
pub(super) fn hash(name: &str) -> NameKey {
    let digest = ring::digest::digest(&ring::digest::SHA256, name::key(name).as_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// Two rows of `table` that are there already have the same name; only the `owner` has its key.
pub(super) fn warn_of_same(table: &str, id: impl Display, name: &str, owner: impl Display) {
    log::warn!(
        "the name {name:?} of {table} {id} is the same as that of {table} {owner}, which was there first: both keep \
         theirs, and nobody can take it again. Whoever renames one sets its namekey to NULL, too"
    );
}
