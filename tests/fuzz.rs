//! The fuzz targets over their corpora, and over the like of them: what the fuzzer has found once is found
//! again, and the targets keep pace with the server. `scripts/fuzz` looks for more.

#[path = "../fuzz/src/lib.rs"]
mod fuzz;
mod support;

use std::path::Path;

use support::Rng;

/// How many inputs are made of each one of a corpus.
const LIKE_IT: usize = 5;

/// Changes an input as a fuzzer does, but blindly.
fn mutated(input: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut input = input.to_vec();
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(input.len() + 1);
        match rng.below(4) {
            0 => input.insert(at, rng.below(256) as u8),
            1 => input.truncate(at),
            2 if at < input.len() => _ = input.remove(at),
            _ if at < input.len() => input[at] = rng.below(256) as u8,
            _ => {}
        }
    }
    input
}

#[test]
fn every_target_stands_its_corpus_and_the_like_of_it() {
    let mut rng = Rng::new();
    for (name, run) in fuzz::TARGETS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut files: Vec<_> =
            std::fs::read_dir(&corpus).expect("a corpus").map(|entry| entry.expect("a file").path()).collect();
        assert!(!files.is_empty(), "{name} has no corpus");
        files.sort();
        for file in files {
            let input = std::fs::read(&file).expect("a file");
            println!("{}", file.display());
            run(&input);
            for _ in 0..LIKE_IT {
                let input = mutated(&input, &mut rng);
                println!("{}: {}", file.display(), input.escape_ascii());
                run(&input);
            }
        }
    }
}
