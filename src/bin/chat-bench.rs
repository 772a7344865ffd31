//! The load bench as a program of its own, for a machine without a checkout and without cargo. The code is that of
//! `cargo bench --bench load`.

#[path = "../../benches/load/main.rs"]
mod load;

// The files of the bench name each other from the root of their crate.
use load::*;

fn main() -> std::process::ExitCode {
    load::main()
}
