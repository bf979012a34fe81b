//! What a conversion changed, for people.

use std::collections::BTreeMap;

use serde_json::Value;

/// Longer values are cut.
const WIDTH: usize = 60;

/// One line a change: what moved, was set, changed or was removed.
pub(super) fn describe(before: &Value, after: &Value) -> String {
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten(before, String::new(), &mut old);
    flatten(after, String::new(), &mut new);
    for map in [&mut old, &mut new] {
        map.remove("apiVersion");
    }
    let mut out = String::new();
    let gone: Vec<String> = old.keys().filter(|p| !new.contains_key(*p)).cloned().collect();
    let mut come: Vec<String> = new.keys().filter(|p| !old.contains_key(*p)).cloned().collect();
    for path in gone {
        // The same last name and value in another place: it moved.
        let leaf = path.rsplit('.').next();
        let target =
            come.iter().position(|p| p.rsplit('.').next() == leaf && new.get(p) == old.get(&path));
        match target {
            Some(at) => {
                out.push_str(&format!("  moved {path} to {}\n", come.remove(at)));
            }
            None => {
                out.push_str(&format!("  removed {path} (was {})\n", shown(old.get(&path))));
            }
        }
    }
    for (path, value) in &new {
        match old.get(path) {
            Some(was) if was != value => out.push_str(&format!(
                "  changed {path} from {} to {}\n",
                shown(Some(was)),
                shown(Some(value))
            )),
            None if come.contains(path) => {
                out.push_str(&format!("  set {path} to {}\n", shown(Some(value))));
            }
            _ => {}
        }
    }
    out
}

/// All leaves by their paths.
fn flatten(value: &Value, path: String, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                let path = if path.is_empty() {
                    name.clone()
                } else if name.contains(['.', '/']) {
                    format!("{path}[{name}]")
                } else {
                    format!("{path}.{name}")
                };
                flatten(value, path, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, value) in items.iter().enumerate() {
                flatten(value, format!("{path}[{i}]"), out);
            }
        }
        other => {
            out.insert(path, other.clone());
        }
    }
}

fn shown(value: Option<&Value>) -> String {
    let text = value.map(ToString::to_string).unwrap_or_default();
    if text.chars().count() <= WIDTH {
        return text;
    }
    let cut: String = text.chars().take(WIDTH).collect();
    format!("{cut}...")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn moves_are_distinguished_from_losses() {
        let before =
            json!({"apiVersion": "a", "spec": {"d": {"expireAfter": "1h", "x": 1}, "y": 2}});
        let after =
            json!({"apiVersion": "b", "spec": {"t": {"expireAfter": "1h"}, "y": 3, "z": [4]}});
        assert_eq!(
            describe(&before, &after),
            "  moved spec.d.expireAfter to spec.t.expireAfter\n  removed spec.d.x (was 1)\n  \
             changed spec.y from 2 to 3\n  set spec.z[0] to 4\n"
        );
    }
}
