//! The bench's files use only those above them in the table that its first page shows.

use std::fs;
use std::path::Path;

#[test]
fn no_file_uses_one_below_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/load");
    let main = fs::read_to_string(folder.join("main.rs")).unwrap();
    let table = main.lines().filter_map(|line| line.strip_prefix("//! | `"));
    let names = |row: &str| -> Vec<String> {
        let files = row.split('|').next().unwrap().split('`').filter(|name| name.ends_with(".rs"));
        files.map(|name| name.trim_end_matches(".rs").to_owned()).collect()
    };
    let order: Vec<String> = table.flat_map(|row| names(&format!("`{row}"))).collect();
    let place = |name: &str| order.iter().position(|other| other == name);
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "main" {
            continue;
        }
        let own = place(&name).unwrap_or_else(|| panic!("{name}.rs is not in the table"));
        let text = fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices("crate::") {
            let rest = &text[at + "crate::".len()..];
            let list = rest.strip_prefix('{').and_then(|rest| Some(rest.split_once('}')?.0)).unwrap_or(rest);
            let is_list = rest.starts_with('{');
            for used in list.split(',').take(if is_list { usize::MAX } else { 1 }) {
                let used = used.trim().split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap();
                if used.is_empty() {
                    continue;
                }
                seen += 1;
                let other = place(used).unwrap_or_else(|| panic!("{name}.rs uses {used}, which is not in the table"));
                assert!(other < own, "{name}.rs uses {used}.rs, which stands below it");
            }
        }
    }
    assert!(seen > 80, "only {seen} uses were found");
}

/// The crates that a file names at the beginning of a path.
fn crates(text: &str) -> impl Iterator<Item = &str> {
    let paths = text.lines().filter_map(|line| line.trim().strip_prefix("use ")?.split("::").next());
    let is_crate = |name: &&str| name.starts_with(|c: char| c.is_lowercase());
    paths.filter(is_crate).filter(|name| !["crate", "self", "std", "super", "chat_server"].contains(name))
}

/// `cargo install` has no dev-dependencies: what the bench names must be in the feature, or what the server needs itself.
#[test]
fn chat_bench_has_all_that_the_bench_is_built_of() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest: toml::Table = fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
    let feature = manifest["features"]["bench"].as_array().unwrap();
    let is_there = |name: &str| {
        let name = name.replace('_', "-");
        let is_optional = |it: &toml::Value| it.get("optional").is_some_and(|is| is.as_bool() == Some(true));
        let found =
            manifest["dependencies"].get(&name).or_else(|| manifest["dependencies"].get(name.replace('-', "_")));
        found.is_some_and(|it| !is_optional(it) || feature.iter().any(|of| of.as_str() == Some(&format!("dep:{name}"))))
    };
    let (mut seen, mut modules) = (0, Vec::new());
    for entry in fs::read_dir(root.join("benches/load")).unwrap() {
        modules.push(entry.unwrap().path());
    }
    let names: Vec<&str> = modules.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    for path in &modules {
        let text = fs::read_to_string(path).unwrap();
        for name in crates(&text).filter(|name| !names.contains(name)) {
            seen += 1;
            assert!(is_there(name), "{} uses {name}, which chat-bench does not have", path.display());
        }
    }
    assert!(seen > 40, "only {seen} uses were found");
    // The versions and features are those that the bench is tested with.
    for of in feature.iter().filter_map(|of| of.as_str()?.strip_prefix("dep:")) {
        let (optional, tested) = (&manifest["dependencies"][of], &manifest["dev-dependencies"][of]);
        for key in ["version", "features", "default-features"] {
            let short = |it: &toml::Value| it.get(key).cloned().or_else(|| (key == "version").then(|| it.clone()));
            assert_eq!(short(optional), short(tested), "{of}: {key}");
        }
    }
}
