//! The tables, and what brings them up to date.

use rusqlite::TransactionBehavior;

/// What brings a database from each version (`PRAGMA user_version`) to the next. Only ever
/// appended to: files of every version are out there.
pub(super) const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];

/// Brings the database up to date and returns the version it had. A version that is not known is
/// left as it is.
pub(super) fn migrate(connection: &mut rusqlite::Connection) -> rusqlite::Result<i64> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let missing = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)).unwrap_or_default();
    if !missing.is_empty() {
        for migration in missing {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    }
    transaction.commit()?;
    Ok(found)
}
