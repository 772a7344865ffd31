//! What the stores keep in addition to a name.

use std::fmt::Display;

use crate::wire::name;

/// See [`hash`].
pub(super) type NameKey = [u8; 32];

/// The hash of a name's [`key`](name::key), by which a table distinguishes names: SHA-256. However long a key
/// grows (one character may become eighteen), the hash fits into an index.
pub(super) fn hash(name: &str) -> NameKey {
    let digest = ring::digest::digest(&ring::digest::SHA256, name::key(name).as_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// Warns that two rows of `table` have the same name already; only the `owner` has its key.
pub(super) fn warn_of_same(table: &str, id: impl Display, name: &str, owner: impl Display) {
    log::warn!(
        "the name {name:?} of {table} {id} is the same as that of {table} {owner}, which existed before: both keep \
         their name, and it cannot be taken again. To rename one, set its namekey to NULL as well"
    );
}
