//! The shape of the house: a module imports only those listed before it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lowest layer first. `lib.rs` lists them in the same order, with what each is.
const MODULES: [&str; 14] = [
    "password", "secret", "config", "logging", "metrics", "clock", "wire", "reactor", "pool", "store", "home", "bus",
    "service", "server",
];
/// Not in the library: they may use all of it.
const BINARIES: &str = "bin";

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a file names as `crate::MODULE`, alone or in a list of several.
fn used(text: &str) -> Vec<String> {
    let name = |text: &str| text.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or("").to_owned();
    let mut used = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => used.extend(list.split('}').next().unwrap_or("").split(',').map(|item| name(item.trim()))),
            None => used.push(name(rest)),
        }
    }
    used
}

#[test]
fn imports_only_go_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let level = |module: &str| MODULES.iter().position(|name| *name == module);
    let (mut checked, mut wrong) = (0, Vec::new());
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if module == BINARIES || module == "lib" {
            continue;
        }
        let own = level(module).unwrap_or_else(|| panic!("{module} has no place in the list"));
        for other in used(&fs::read_to_string(&file).unwrap()) {
            checked += 1;
            match level(&other) {
                Some(other) if other <= own => {}
                Some(_) => wrong.push(format!("{} uses {other}, which stands below it in the list", inside.display())),
                None => wrong.push(format!("{} uses {other}, which is no module of the list", inside.display())),
            }
        }
    }
    assert!(checked > 50, "only {checked} uses were seen: how they are found is wrong");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A patch of `scripts/mutations` that does not apply any more breaks nothing, and so shows nothing.
#[test]
fn each_mutation_applies_and_says_what_catches_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for entry in fs::read_dir(root.join("tests/mutations")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        let name = path.file_name().unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        if !text.lines().any(|line| line.starts_with("caught by: -")) {
            wrong.push(format!("{name} does not say what catches it"));
        }
        let applied = Command::new("git").args(["apply", "--check"]).arg(&path).current_dir(root).output();
        let applied = applied.expect("git can be started");
        if !applied.status.success() {
            wrong.push(format!("{name}: {}", String::from_utf8_lossy(&applied.stderr).trim()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
