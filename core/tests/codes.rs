//! Every code of a message is documented in docs/errors.md, and every documented code is used somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where messages come from. Tests inside these files use codes as well, but only such as the code has.
const SOURCES: &[&str] = &[
    "src",
    "c_shim",
    "core/src",
    "express/src",
    "nginx/src",
    "scoreboard/src",
    "supervisor/src",
    "wire/src",
    "worker/src",
    "worker/python",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every `MWR` with four digits in `text`.
fn codes(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("MWR").filter_map(|(at, _)| {
        let code = text.get(at..at + 7)?;
        code[3..].bytes().all(|b| b.is_ascii_digit()).then_some(code)
    })
}

fn scan(dir: &Path, found: &mut BTreeMap<String, PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            scan(&path, found);
        } else if path.extension().is_some_and(|e| ["rs", "py", "c", "h", "jinja", "conf"].iter().any(|x| e == *x)) {
            for code in codes(&std::fs::read_to_string(&path).unwrap()) {
                found.entry(code.to_owned()).or_insert_with(|| path.clone());
            }
        }
    }
}

/// Codes that begin a row of docs/errors.md, in its order.
fn documented() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let rows = text.lines().filter_map(|l| l.strip_prefix("| ").filter(|l| l.starts_with("MWR")));
    rows.map(|l| l[..7].to_owned()).collect()
}

#[test]
fn codes_and_their_documentation_agree() {
    let mut used = BTreeMap::new();
    SOURCES.iter().for_each(|dir| scan(&root().join(dir), &mut used));
    assert!(used.len() > 50, "the sources were not found");
    let documented: BTreeSet<String> = documented().into_iter().collect();
    let missing: Vec<_> = used.iter().filter(|(code, _)| !documented.contains(*code)).collect();
    assert!(missing.is_empty(), "without a row in docs/errors.md: {missing:?}");
    let unused: Vec<_> = documented.iter().filter(|code| !used.contains_key(*code)).collect();
    assert!(unused.is_empty(), "in docs/errors.md, but no message has them: {unused:?}");
}

#[test]
fn rows_are_in_order_and_complete() {
    let rows = documented();
    assert!(rows.windows(2).all(|w| w[0] < w[1]), "sorted, each once: {rows:?}");
    let text = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    for line in text.lines().filter(|l| l.starts_with("| MWR")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert!(
            cells.len() == 5 && cells.iter().all(|c| !c.is_empty()),
            "code, message, cause, outcome, what to do: {line}"
        );
    }
}
