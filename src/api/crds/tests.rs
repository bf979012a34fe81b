use super::*;

/// Set `UPDATE_CRDS=1` to write the files anew.
#[test]
fn the_files_are_those_of_the_types() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/crds");
    for (name, definition) in all() {
        let path = format!("{folder}/{name}");
        let fresh = to_yaml(&definition);
        if std::env::var_os("UPDATE_CRDS").is_some() {
            std::fs::write(&path, &fresh).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(stored == fresh, "crds/{name} is stale: run UPDATE_CRDS=1 cargo test --lib crds");
    }
}

#[test]
fn schemas_hold_nothing_that_the_api_server_refuses() {
    fn walk(value: &Value, path: &str) {
        match value {
            Value::Object(object) => {
                for bad in ["$ref", "oneOf", "const", "nullable"] {
                    assert!(!object.contains_key(bad), "{bad} at {path}");
                }
                for (key, value) in object {
                    walk(value, &format!("{path}/{key}"));
                }
            }
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(i, v)| walk(v, &format!("{path}/{i}")));
            }
            _ => {}
        }
    }
    for (name, definition) in all() {
        for version in definition["spec"]["versions"].as_array().unwrap() {
            walk(&version["schema"], name);
        }
    }
}
