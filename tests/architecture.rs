//! Dependencies between the modules point one way: down ARCHITECTURE.md's table.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests may")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each module with those that it may use. `lib.rs`, which declares them, uses none.
const MAY_USE: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("api", &[]),
    ("scheduling", &["api"]),
    ("disruption", &["api", "scheduling"]),
    ("cluster", &["api", "scheduling", "clock"]),
    ("operator", &["api", "clock"]),
    ("cloud", &["api", "scheduling", "operator", "clock"]),
    ("controllers", &["api", "scheduling", "disruption", "cluster", "cloud", "operator", "clock"]),
    ("simulate", &["api", "scheduling", "disruption", "cloud", "clock"]),
    (
        "cli",
        &[
            "api",
            "scheduling",
            "disruption",
            "cluster",
            "cloud",
            "controllers",
            "operator",
            "simulate",
            "clock",
        ],
    ),
];

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// The modules that a source names after `crate::`, also within braces.
fn used(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for after in text.split("crate::").skip(1) {
        let Some(list) = after.strip_prefix('{') else {
            names.insert(word(after));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for letter in list.chars() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => names.extend([word(&std::mem::take(&mut item))]),
                _ if depth == 0 => item.push(letter),
                _ => {}
            }
        }
        names.insert(word(&item));
    }
    names.remove("");
    names
}

fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for path in files {
        let relative = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        let module = relative.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        if module == "lib" || module == "main" {
            continue;
        }
        let may = allowed.get(module.as_str());
        let may = may.unwrap_or_else(|| panic!("src/{relative}: {module} is not in the table"));
        for name in used(&std::fs::read_to_string(&path).unwrap()) {
            let known = allowed.contains_key(name.as_str());
            if known && name != module && !may.contains(&name.as_str()) {
                wrong.push(format!("src/{relative} uses {name}"));
            }
        }
        seen.insert(module);
    }
    assert!(wrong.is_empty(), "against the table:\n{}", wrong.join("\n"));
    for (module, _) in MAY_USE {
        assert!(seen.contains(*module), "{module} is in the table but not in src/");
    }
}

#[test]
fn the_table_has_no_circle() {
    let mut below: BTreeSet<&str> = BTreeSet::new();
    let mut left: Vec<_> = MAY_USE.to_vec();
    while !left.is_empty() {
        let before = left.len();
        left.retain(|(module, may)| {
            let ready = may.iter().all(|m| below.contains(m));
            if ready {
                below.insert(module);
            }
            !ready
        });
        assert!(left.len() < before, "a circle among {left:?}");
    }
}

#[test]
fn uses_are_found_in_every_form() {
    let text = "use crate::api::{a, b};\nuse crate::{clock::Clock, cloud::{x, y}, operator};\n\
                crate::scheduling::solve()";
    let names: Vec<String> = used(text).into_iter().collect();
    assert_eq!(names, ["api", "clock", "cloud", "operator", "scheduling"]);
}
