//! Which program this is: cargo's bench, or `chat-bench`, which needs neither cargo nor a checkout.

use std::fmt::Display;
use std::path::PathBuf;

/// Cargo tells a bench where the server is that it has built for it.
const BUILT: Option<&str> = option_env!("CARGO_BIN_EXE_chat-server");

/// This is `chat-bench`.
pub fn is_installed() -> bool {
    env!("CARGO_CRATE_NAME") == "chat_bench"
}

/// What it calls itself.
pub fn name() -> &'static str {
    if is_installed() { "chat-bench" } else { "load" }
}

/// How it is started, up to its flags.
pub fn invocation() -> &'static str {
    if is_installed() { "chat-bench" } else { "cargo bench --bench load --" }
}

/// A line on stderr.
pub fn say(what: impl Display) {
    eprintln!("{}: {what}", name());
}

/// The server of this build; for `chat-bench` the one beside it, or else the one on the path.
pub fn server() -> PathBuf {
    if let (Some(built), false) = (BUILT, is_installed()) {
        return PathBuf::from(built);
    }
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|own| Some(own.parent()?.join("chat-server")));
    beside.filter(|file| file.is_file()).unwrap_or_else(|| PathBuf::from("chat-server"))
}
