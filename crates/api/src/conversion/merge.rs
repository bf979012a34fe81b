//! Three-way merge of JSON: changes between two views, applied to what lies behind them.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

/// `base`, with everything changed that differs between the views `old` and `new`.
///
/// Objects are merged member by member, lists element by element as far as it is clear which
/// element became which, anything else as a whole.
pub(super) fn three_way(base: &Value, old: &Value, new: &Value) -> Value {
    if old == new {
        return base.clone();
    }
    let (b, o, n) = match (base, old, new) {
        (Value::Object(b), Value::Object(o), Value::Object(n)) => (b, o, n),
        // Elements of different numbers cannot be matched by their place.
        (Value::Array(b), Value::Array(o), Value::Array(n)) if b.len() == o.len() => {
            return Value::Array(lists(b, o, n));
        }
        _ => return new.clone(),
    };
    let mut merged = Map::new();
    for (key, value) in b {
        match (o.get(key), n.get(key)) {
            (Some(before), Some(after)) => {
                merged.insert(key.clone(), three_way(value, before, after));
            }
            // Not visible in either view: it stays.
            (None, None) => {
                merged.insert(key.clone(), value.clone());
            }
            (None, Some(after)) => {
                merged.insert(key.clone(), after.clone());
            }
            // Taken away.
            (Some(_), None) => {}
        }
    }
    for (key, value) in n {
        if !b.contains_key(key) && o.get(key) != Some(value) {
            merged.insert(key.clone(), value.clone());
        }
    }
    Value::Object(merged)
}

/// Elements that are in the old view as they are stand for what lies behind them there; one that
/// was changed in its place keeps the rest of what is behind it.
fn lists(base: &[Value], old: &[Value], new: &[Value]) -> Vec<Value> {
    // Where each element stands that is not taken yet.
    let mut places: HashMap<String, BTreeSet<usize>> = HashMap::new();
    for (i, element) in old.iter().enumerate() {
        // By their content, since a client may have inserted or moved elements.
        places.entry(canonical(element)).or_default().insert(i);
    }
    let mut used = vec![false; old.len()];
    let same: Vec<Option<usize>> = new
        .iter()
        .enumerate()
        .map(|(i, element)| {
            let free = places.get_mut(&canonical(element))?;
            let found = if free.remove(&i) { i } else { free.pop_first()? };
            used[found] = true;
            Some(found)
        })
        .collect();
    new.iter()
        .zip(same)
        .enumerate()
        .map(|(i, (element, same))| match same {
            Some(at) => base[at].clone(),
            None if old.len() == new.len() && !used[i] => three_way(&base[i], &old[i], element),
            None => element.clone(),
        })
        .collect()
}

/// Text that equal values have in common.
fn canonical(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Some 3 MB of elements: comparing each with each would take minutes.
    #[test]
    fn long_lists_are_merged_at_once() {
        let list = |hidden: bool| -> Value {
            (0..100_000)
                .map(|i| if hidden { json!({"n": i, "hidden": i}) } else { json!({"n": i}) })
                .collect()
        };
        let (base, old) = (list(true), list(false));
        let mut new = old.clone();
        new.as_array_mut().unwrap().reverse();
        let mut want = base.clone();
        want.as_array_mut().unwrap().reverse();
        assert!(three_way(&base, &old, &new) == want);
    }

    #[test]
    fn changes_are_applied_and_the_rest_stays() {
        let base = json!({"seen": 1, "hidden": 2, "list": [1, 2]});
        let old = json!({"seen": 1, "list": [1]});
        assert_eq!(three_way(&base, &old, &old), base);
        let new = json!({"seen": 5, "list": [1], "added": true});
        let want = json!({"seen": 5, "hidden": 2, "list": [1, 2], "added": true});
        assert_eq!(three_way(&base, &old, &new), want);
        let want = json!({"hidden": 2, "list": [3]});
        assert_eq!(three_way(&base, &old, &json!({"list": [3]})), want);
    }

    #[test]
    fn list_elements_keep_what_is_behind_them() {
        let base = json!([{"n": 1, "hidden": "a"}, {"n": 2, "hidden": "b"}]);
        let old = json!([{"n": 1}, {"n": 2}]);
        let swapped = json!([{"n": 2}, {"n": 1}]);
        let want = json!([{"n": 2, "hidden": "b"}, {"n": 1, "hidden": "a"}]);
        assert_eq!(three_way(&base, &old, &swapped), want);
        let changed = json!([{"n": 1}, {"n": 7}]);
        let want = json!([{"n": 1, "hidden": "a"}, {"n": 7, "hidden": "b"}]);
        assert_eq!(three_way(&base, &old, &changed), want);
        let longer = json!([{"n": 3}, {"n": 1}, {"n": 2}]);
        let want = json!([{"n": 3}, {"n": 1, "hidden": "a"}, {"n": 2, "hidden": "b"}]);
        assert_eq!(three_way(&base, &old, &longer), want);
    }
}
