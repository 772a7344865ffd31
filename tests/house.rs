//! The shape of the house: a module imports only those listed before it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lowest layer first. `lib.rs` lists them in the same order, with what each is.
const MODULES: [&str; 14] = [
    "password", "secret", "wire", "config", "logging", "metrics", "clock", "reactor", "pool", "store", "home", "bus",
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
    let table = fs::read_to_string(root.join("tests/mutations/README.md")).unwrap();
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
        if !table.contains(&format!("({name})")) {
            wrong.push(format!("{name} has no row in README.md"));
        }
        let applied = Command::new("git").args(["apply", "--check"]).arg(&path).current_dir(root).output();
        let applied = applied.expect("git can be started");
        if !applied.status.success() {
            wrong.push(format!("{name}: {}", String::from_utf8_lossy(&applied.stderr).trim()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A file without its comments and its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect();
    let text = lines.join("\n");
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or("").to_owned()
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The name that a path begins with.
fn first(path: &str) -> &str {
    path.trim().split(|c| !is_name(c)).next().unwrap_or("")
}

/// The parts of `{a, b::{c, d}}`, or all up to the end of one path.
fn parts(tree: &str) -> Vec<&str> {
    let Some(list) = tree.strip_prefix('{') else { return vec![tree] };
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '}' if depth == 0 => {
                parts.push(&list[from..at]);
                break;
            }
            ',' if depth == 0 => {
                parts.push(&list[from..at]);
                from = at + 1;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    parts
}

/// Paths that a file names from `super` or `crate`: how many times `super` (0: `crate`), and what follows.
fn paths(code: &str) -> Vec<(usize, &str)> {
    let mut paths = Vec::new();
    for start in ["super::", "crate::"] {
        for (at, _) in code.match_indices(start) {
            if code[..at].ends_with(|c| is_name(c) || c == ':') {
                continue;
            }
            let (mut rest, mut up) = (&code[at + start.len()..], usize::from(start == "super::"));
            while let Some(more) = rest.strip_prefix("super::") {
                (rest, up) = (more, up + 1);
            }
            paths.extend(parts(rest).into_iter().map(|part| (up, part.trim())));
        }
    }
    paths
}

/// The modules of a folder, and which of them imports which.
#[derive(Default)]
struct Folder {
    /// By name: the files of each. The empty name is the folder's own, `mod.rs` or `main.rs`.
    modules: BTreeMap<String, Vec<PathBuf>>,
    imports: BTreeMap<String, BTreeSet<String>>,
}

impl Folder {
    /// `root` is the folder of the crate.
    fn read(folder: &Path, root: &Path) -> Folder {
        let mut this = Folder::default();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let mut files = Vec::new();
            if path.is_dir() {
                sources(&path, &mut files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
            let name = if matches!(&*name, "mod" | "main" | "lib") { String::new() } else { name };
            if !files.is_empty() {
                this.modules.entry(name).or_default().extend(files);
            }
        }
        let top = this.modules.get("").map(|files| code(&files[0])).unwrap_or_default();
        let exported = this.exported(&top);
        let inside: Vec<_> = folder.strip_prefix(root).unwrap().iter().map(|name| name.to_str().unwrap()).collect();
        for (name, files) in &this.modules {
            for file in files {
                let code = code(file);
                let depth = file.strip_prefix(folder).unwrap().iter().count() - usize::from(file.ends_with("mod.rs"));
                for (up, path) in paths(&code) {
                    let path = match (up, name.is_empty()) {
                        (0, _) => {
                            inside.iter().try_fold(path, |path, name| path.strip_prefix(name)?.strip_prefix("::"))
                        }
                        (_, false) if up == depth => Some(path),
                        _ => None,
                    };
                    for path in path.into_iter().flat_map(parts).map(str::trim) {
                        let other = match exported.get(first(path)) {
                            Some(module) if !path[first(path).len()..].starts_with("::") => module,
                            _ => first(path),
                        };
                        if this.modules.contains_key(other) {
                            this.imports.entry(name.clone()).or_default().insert(other.to_owned());
                        }
                    }
                }
            }
        }
        for statement in top.split(';').map(str::trim) {
            let imported = statement.rsplit('\n').next().unwrap_or("").strip_prefix("use ").map(first);
            if let Some(module) = imported.filter(|module| this.modules.contains_key(*module)) {
                this.imports.entry(String::new()).or_default().insert(module.to_owned());
            }
        }
        this
    }

    /// What `super::NAME` means in a file of this folder: the module from which the folder's own file has it, or that
    /// file itself.
    fn exported(&self, top: &str) -> BTreeMap<String, String> {
        let mut exported = BTreeMap::new();
        for (at, _) in top.match_indices("use ") {
            let tree = top[at + 4..].split(';').next().unwrap_or("").trim();
            let (module, rest) = tree.split_once("::").unwrap_or((tree, ""));
            if self.modules.contains_key(module) {
                for part in parts(rest) {
                    let name = part.rsplit([':', ' ']).next().unwrap_or("").trim();
                    exported.insert(name.to_owned(), module.to_owned());
                }
            }
        }
        for word in ["fn ", "struct ", "enum ", "trait ", "type ", "const ", "static "] {
            for (at, _) in top.match_indices(word) {
                exported.entry(first(&top[at + word.len()..]).to_owned()).or_default();
            }
        }
        exported
    }

    /// Whether `to` can be reached from what `from` imports.
    fn reaches(&self, from: &str, to: &str) -> bool {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            for other in self.imports.get(module).into_iter().flatten().filter(|other| *other != module) {
                if other == to {
                    return true;
                }
                if seen.insert(other) {
                    next.push(other);
                }
            }
        }
        false
    }
}

#[test]
fn no_folder_has_a_circle_of_imports() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    ["src", "benches"].iter().for_each(|folder| sources(&home.join(folder), &mut files));
    let folders: BTreeSet<PathBuf> = files.iter().map(|file| file.parent().unwrap().to_owned()).collect();
    let (mut imports, mut circles) = (0, BTreeMap::new());
    for folder in folders.iter().filter(|folder| !folder.ends_with("benches")) {
        let root = folder.ancestors().find(|folder| folder.join("main.rs").exists() || folder.join("lib.rs").exists());
        let graph = Folder::read(folder, root.expect("a crate has a root"));
        imports += graph.imports.values().map(BTreeSet::len).sum::<usize>();
        let name = folder.strip_prefix(home).unwrap().display().to_string();
        let circle: Vec<_> = graph.modules.keys().filter(|module| graph.reaches(module, module)).cloned().collect();
        // A library's root has no business of its own, and its layers are checked above.
        if !circle.is_empty() && name != "src" {
            circles.insert(name, circle);
        }
    }
    assert!(imports > 100, "only {imports} imports were seen: how they are found is wrong");
    assert!(circles.is_empty(), "{circles:#?}");
}

/// The table at the head of `src/service/mod.rs` is the order in which the files can be read.
#[test]
fn files_of_the_service_import_only_those_above_them_in_its_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let graph = Folder::read(&root.join("service"), &root);
    let text = fs::read_to_string(root.join("service/mod.rs")).unwrap();
    let cells = text.lines().filter_map(|line| line.strip_prefix("//! | `")?.split('|').next());
    let names =
        cells.flat_map(|cell| cell.split('`')).filter_map(|name| name.strip_suffix(".rs").or(name.strip_suffix('/')));
    let listed: Vec<&str> = names.collect();
    let place = |module: &str| listed.iter().position(|name| *name == module);
    let (mut checked, mut wrong) = (0, Vec::new());
    for module in graph.modules.keys().filter(|module| !module.is_empty()) {
        let Some(own) = place(module) else {
            wrong.push(format!("{module} is not in the table"));
            continue;
        };
        for other in graph.imports.get(module).into_iter().flatten().filter(|other| *other != module) {
            checked += 1;
            if place(other).is_none_or(|other| other > own) {
                wrong.push(format!("{module} imports {other}, which is not above it"));
            }
        }
    }
    assert!(checked > 50, "only {checked} imports were seen: how they are found is wrong");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A reader should not have to find out in which thread a function runs.
#[test]
fn modules_of_the_reactor_and_the_server_begin_with_their_thread() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    ["reactor", "server"].iter().for_each(|folder| sources(&root.join(folder), &mut files));
    assert!(files.len() > 30, "{}", files.len());
    let says = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        let first = text.lines().next().unwrap_or("").to_lowercase();
        first.starts_with("//! ") && first.split([':', ',']).next().is_some_and(|start| start.contains("thread"))
    };
    let silent: Vec<_> = files.iter().filter(|file| !says(file)).collect();
    assert!(silent.is_empty(), "{silent:#?}");
}
