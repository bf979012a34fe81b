//! Three-way merge of JSON: changes between two views, applied to what lies behind them.

use serde_json::{Map, Value};

/// `base`, with everything changed that differs between the views `old` and `new`.
///
/// Objects are merged member by member, anything else as a whole.
pub(super) fn three_way(base: &Value, old: &Value, new: &Value) -> Value {
    if old == new {
        return base.clone();
    }
    let (Value::Object(b), Value::Object(o), Value::Object(n)) = (base, old, new) else {
        return new.clone();
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
}
