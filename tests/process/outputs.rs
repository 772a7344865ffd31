//! Outputs that no process reads, or that cannot be written: both programs end as they would have.

use std::process::Command;

use crate::support::CHAT_CLIENT;
use crate::{CHAT_SERVER, outcome, program};

/// `program WORDS` in a shell, with its output where `redirection` says.
fn in_a_shell(path: &str, words: &str, redirection: &str) -> Command {
    let mut command = program("bash");
    command.env("RUST_BACKTRACE", "1").env("RUST_LOG", "no=filter");
    command.arg("-c").arg(format!("set +o pipefail; {path} {words} {redirection}"));
    command
}

#[test]
fn help_version_and_errors_end_quietly_whoever_reads_them() {
    let to_end = [
        (CHAT_SERVER, "--help"),
        (CHAT_SERVER, "--version"),
        (CHAT_SERVER, "--no-such-flag"),
        (CHAT_SERVER, "127.0.0.1 no-port"),
        (CHAT_SERVER, "--store sqlite:/no/such/folder/chat.db 127.0.0.1 0"),
        (CHAT_SERVER, "--metrics 192.0.2.1:1 127.0.0.1 0"),
        (CHAT_CLIENT, "--help"),
        (CHAT_CLIENT, "--lang zh --help"),
        (CHAT_CLIENT, "--version"),
        (CHAT_CLIENT, "--no-such-flag"),
        (CHAT_CLIENT, "127.0.0.1 1"),
        (CHAT_CLIENT, "--tls --tls-ca /no/such/file"),
    ];
    // Into what has ended before anything is written; closed; full; and the same for both outputs.
    let gone = "> >(exec <&-) 2> >(exec <&-)";
    for (path, words) in to_end {
        let (expected, text) = outcome(in_a_shell(path, words, ""));
        assert!(expected.code().is_some() && !text.is_empty(), "{words}: {expected}");
        for redirection in ["| head -c 0; exit ${PIPESTATUS[0]}", "2>&1 | head -c 0; exit ${PIPESTATUS[0]}", gone] {
            let (status, text) = outcome(in_a_shell(path, words, redirection));
            assert_eq!(status.code(), expected.code(), "{path} {words} {redirection}: {text}");
            assert!(!text.contains("panicked") && !text.contains("backtrace"), "{path} {words}: {text}");
        }
        for redirection in [">&-", "2>&-", ">&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1"] {
            let (status, text) = outcome(in_a_shell(path, words, redirection));
            assert_eq!(status.code(), expected.code(), "{path} {words} {redirection}: {text}");
            assert!(!text.contains("panicked") && !text.contains("backtrace"), "{path} {words}: {text}");
        }
    }
}
