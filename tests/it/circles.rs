//! Modules of one folder do not import each other in a circle, so that each can be read and changed without the others that use it.
//!
//! Read from the paths in the source, without its tests. What a module imports from its parent does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::sources::{code, rust_files};

/// Circles that are left, each by its folder and its modules. None may grow, and a circle that is gone must be removed from here.
const LEFT: &[(&str, &str)] = &[
    (
        "http",
        "base_path body callers commands contract credential devices forwarded lines listing methods pipeline problem stream \
         subjects violations",
    ),
    ("cli", "opening serve"),
    ("cli", "report run"),
    ("cli/demo", "desk process scanner school"),
    ("cli/run", "delivery reporter spool"),
    ("cli/run", "process tty"),
    ("cli/run", "relay taskbar"),
    ("cli/watch", "changes goal scope"),
    ("wire", "example form schema"),
];

/// By module, the modules of the same folder that it imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// Returns the source files of the module at a path, each with the number of `super`s that lead to the folder around the
/// module. A `mod.rs` is the module of its own folder; the other files of that folder are one level deeper.
fn files(path: &Path) -> Vec<(PathBuf, usize)> {
    if path.is_file() {
        return vec![(path.to_owned(), 1)];
    }
    let with_depth = |file: PathBuf| {
        let below = file.strip_prefix(path).unwrap().components().count();
        let is_module_itself = file.file_name().unwrap() == "mod.rs";
        (file, 1 + below - usize::from(is_module_itself))
    };
    rust_files(path).into_iter().map(with_depth).collect()
}

fn name(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// Returns the names with which what follows a path begins: one, or those of a group in braces.
fn names(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else {
        return vec![name(rest)];
    };
    let (mut depth, mut is_first, mut found) = (1, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => break,
            '}' => depth -= 1,
            ',' if depth == 1 => is_first = true,
            c if c.is_whitespace() => {}
            _ if is_first && depth == 1 => {
                found.push(name(&group[at..]));
                is_first = false;
            }
            _ => {}
        }
    }
    found
}

/// Returns the names that the code takes from the module with this path.
fn taken(code: &str, path: &str) -> BTreeSet<String> {
    let is_start = |at: usize| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
    };
    code.match_indices(path)
        .filter(|(at, _)| is_start(*at))
        .flat_map(|(at, _)| names(&code[at + path.len()..]))
        .collect()
}

/// Returns what the modules of a folder import from each other.
fn imports(root: &Path, folder: &Path) -> Imports {
    let mut modules = BTreeMap::<String, Vec<(PathBuf, usize)>>::new();
    for entry in fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        let module = entry.file_stem().unwrap().to_str().unwrap().to_owned();
        let is_source =
            entry.is_dir() || entry.extension().is_some_and(|extension| extension == "rs");
        if is_source && !["mod", "lib", "main"].contains(&&*module) {
            modules.entry(module).or_default().extend(files(&entry));
        }
    }
    let mut absolute = String::from("crate::");
    for part in folder.strip_prefix(root).unwrap() {
        absolute.push_str(&format!("{}::", part.to_str().unwrap()));
    }
    let of_module = |(module, files): (&String, &Vec<(PathBuf, usize)>)| {
        let mut all = BTreeSet::new();
        for (file, depth) in files {
            let code = code(file);
            all.extend(taken(&code, &absolute));
            all.extend(taken(&code, &"super::".repeat(*depth)));
        }
        all.retain(|other| other != module && modules.contains_key(other));
        (module.clone(), all)
    };
    modules.iter().map(of_module).collect()
}

/// Returns everything that a module imports, directly or not.
fn reached<'a>(imports: &'a Imports, from: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = imports[from].iter().map(String::as_str).collect();
    while let Some(module) = next.pop() {
        if reached.insert(module) {
            next.extend(imports[module].iter().map(String::as_str));
        }
    }
    reached
}

/// Returns the groups of modules of which each imports every other one, directly or not.
fn circles(imports: &Imports) -> BTreeSet<Vec<&str>> {
    let all = imports
        .keys()
        .map(|module| (&**module, reached(imports, module)));
    let all: BTreeMap<&str, BTreeSet<&str>> = all.collect();
    let on_a_circle = all
        .iter()
        .filter(|(module, reached)| reached.contains(**module));
    on_a_circle
        .map(|(module, reached)| {
            let others = reached.iter().filter(|other| all[**other].contains(module));
            others.copied().collect()
        })
        .collect()
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let below = entries
        .filter(|entry| entry.is_dir())
        .flat_map(|below| folders(&below));
    [folder.to_owned()].into_iter().chain(below).collect()
}

#[test]
fn modules_of_one_folder_do_not_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut seen) = (BTreeSet::new(), 0);
    for folder in folders(&root) {
        let imports = imports(&root, &folder);
        seen += imports.values().map(BTreeSet::len).sum::<usize>();
        let place = folder.strip_prefix(&root).unwrap().to_str().unwrap();
        let circles = circles(&imports).into_iter();
        found.extend(circles.map(|modules| (place.to_owned(), modules.join(" "))));
    }
    assert!(seen > 500, "the imports were found: {seen}");
    let left = LEFT
        .iter()
        .map(|(place, modules)| ((*place).to_owned(), (*modules).to_owned()))
        .collect();
    assert_eq!(found, left, "left: what was found; right: what is known");
}

#[test]
fn a_circle_is_found_through_groups_of_imports_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("mod.rs", "mod a;\nmod b;\nmod c;\nmod d;\n");
    write(
        "a.rs",
        "use super::{Parent, b::{self, d}};\nuse self::x::c;\n",
    );
    write("b/mod.rs", "mod inner;\n");
    write("b/inner.rs", "fn f() { super::super::c::g() }\n");
    write("c.rs", "// super::d::h\nuse crate::a::Own;\n");
    write(
        "d.rs",
        "use super::a;\n\n#[cfg(test)]\nmod tests {\n    use super::super::d;\n}\n",
    );
    let imports = imports(folder.path(), folder.path());
    assert_eq!(circles(&imports), [vec!["a", "b", "c"]].into());
}
