//! The tables, and what brings them up to date.

use rusqlite::{Transaction, TransactionBehavior, params};

use super::{execute, find, list};
use crate::store::names;

/// What brings a database from each version (`PRAGMA user_version`) to the next. Only ever
/// appended to: files of every version are out there.
pub(super) const MIGRATIONS: &[&str] =
    &[include_str!("schema.sql"), include_str!("names.sql"), include_str!("claims.sql"), include_str!("dialects.sql")];

/// How many names are read at a time to be given their keys.
const NAMES: usize = 1000;

/// Brings the database up to date, gives every name its key, and returns the version it had. A version that is not known is
/// left as it is.
pub(super) fn migrate(connection: &mut rusqlite::Connection) -> rusqlite::Result<i64> {
    // Otherwise a table that a view refers to could not be rebuilt.
    connection.pragma_update(None, "legacy_alter_table", true)?;
    let found = migrate_all(connection)?;
    connection.pragma_update(None, "legacy_alter_table", false)?;
    Ok(found)
}

fn migrate_all(connection: &mut rusqlite::Connection) -> rusqlite::Result<i64> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let missing = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)).unwrap_or_default();
    if !missing.is_empty() {
        for migration in missing {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    }
    if usize::try_from(found).is_ok_and(|found| found <= MIGRATIONS.len()) {
        fill_keys(&transaction, "User", "name")?;
        fill_keys(&transaction, "AllGroup", "groupname")?;
    }
    transaction.commit()?;
    Ok(found)
}

/// Gives a key to each name that has none: after a migration, or from an administrator's hand. Of rows whose
/// names are the same it is the first that gets it.
fn fill_keys(transaction: &Transaction, table: &str, column: &str) -> rusqlite::Result<()> {
    let keyless =
        format!("SELECT id, {column} FROM {table} WHERE namekey IS NULL AND id > ?1 ORDER BY id LIMIT {NAMES}");
    let fill = format!("UPDATE OR IGNORE {table} SET namekey = ?2 WHERE id = ?1");
    let owner = format!("SELECT id FROM {table} WHERE namekey = ?1");
    let mut last = 0;
    loop {
        let rows: Vec<(i64, String)> = list(transaction, &keyless, [last], |row| Ok((row.get(0)?, row.get(1)?)))?;
        for (id, name) in &rows {
            let hash = names::hash(name);
            if execute(transaction, &fill, params![id, hash])? == 0
                && let Some(owner) = find(transaction, &owner, [hash], |row| row.get::<_, i64>(0))?
            {
                names::warn_of_same(table, id, name, owner);
            }
        }
        match rows.last() {
            Some((id, _)) => last = *id,
            None => return Ok(()),
        }
    }
}
