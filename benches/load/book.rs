//! Accounts: those that a run has made, and those of an earlier one.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::dialect::Capabilities;

pub const PASSWORD: &str = "correct horse";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Account {
    pub id: u64,
    pub name: String,
    pub password: String,
}

impl Account {
    pub fn login_request(&self) -> String {
        format!("{{\"msgid\":1,\"id\":{},\"password\":\"{}\"}}", self.id, self.password)
    }
}

/// The accounts of one target over all its rounds, and what was found out about it.
#[derive(Debug, Default)]
pub struct Book {
    pub accounts: Vec<Account>,
    /// How many of them this round has taken.
    pub taken: usize,
    /// How many this run has made.
    pub made: usize,
    /// Accounts that a workload has opened, and that are not in [`Book::accounts`].
    pub opened: u64,
    pub groups: u64,
    /// Messages that the target said it has stored, less those that were read.
    pub messages: u64,
    /// The findings have been reported before.
    pub is_quiet: bool,
    /// What each of its servers speaks.
    pub known: Vec<(SocketAddr, Capabilities)>,
}

impl Book {
    /// # Errors
    /// The file cannot be read, or is not a file of accounts. A missing file is no error.
    pub fn open(file: Option<&Path>) -> anyhow::Result<Book> {
        let Some(file) = file.filter(|file| file.exists()) else { return Ok(Book::default()) };
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let accounts = text.lines().filter(|line| !line.trim().is_empty()).enumerate().map(|(n, line)| {
            serde_json::from_str(line).with_context(|| format!("{}, line {}: no account", file.display(), n + 1))
        });
        Ok(Book { accounts: accounts.collect::<anyhow::Result<_>>()?, ..Book::default() })
    }

    /// Writes all accounts, a line for each.
    pub fn save(&self, file: &Path) -> anyhow::Result<()> {
        let mut text = Vec::new();
        for account in &self.accounts {
            serde_json::to_writer(&mut text, account)?;
            writeln!(text)?;
        }
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Marks all accounts as free: a new round begins.
    pub fn give_back(&mut self) {
        self.taken = 0;
    }

    /// Takes the first account that is free in this round and fulfils `is_wanted`.
    pub fn take(&mut self, is_wanted: impl Fn(&Account) -> bool) -> Option<Account> {
        let at = self.taken + self.accounts[self.taken..].iter().position(is_wanted)?;
        self.accounts.swap(self.taken, at);
        self.taken += 1;
        Some(self.accounts[self.taken - 1].clone())
    }

    /// Adds a new account, which is free.
    pub fn enter(&mut self, account: Account) {
        self.accounts.push(account);
        self.made += 1;
    }

    /// The same, in words.
    pub fn speaks(&self) -> Vec<String> {
        self.known.iter().map(|(address, it)| format!("{address} speaks: {it}")).collect()
    }

    /// What is left at a server that was there before.
    pub fn left(&self) -> String {
        let Book { accounts, made, opened, groups, messages, .. } = self;
        let mut left = format!("{} new accounts", *made as u64 + opened);
        let new = &accounts[accounts.len().saturating_sub(*made)..];
        if let (Some(first), Some(last)) = (new.first(), new.last()) {
            left += &format!(" ({} to {})", first.name, last.name);
        }
        if *groups > 0 {
            left += &format!(", {groups} groups");
        }
        left + &format!(", {messages} stored messages")
    }
}
