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
                if used.is_empty() || used == "support" {
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
