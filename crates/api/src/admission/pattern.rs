//! Regular expressions of schemas and CEL rules, which are Go's.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use regex::Regex;

/// Compiled expressions by text. There are as many as the CRDs have, so that none is ever dropped.
static COMPILED: LazyLock<Mutex<HashMap<String, Option<Arc<Regex>>>>> =
    LazyLock::new(Mutex::default);

/// The expression, compiled once; `None` when it is none.
pub(super) fn regex(pattern: &str) -> Option<Arc<Regex>> {
    let mut compiled = COMPILED.lock();
    if let Some(found) = compiled.get(pattern) {
        return found.clone();
    }
    // Go's classes are ASCII; and `$` without flags is the end of the text in both.
    let ascii = pattern.replace(r"\d", "[0-9]").replace(r"\s", r"[\t\n\f\r ]");
    let made = Regex::new(&ascii).ok().map(Arc::new);
    compiled.insert(pattern.to_owned(), made.clone());
    made
}
