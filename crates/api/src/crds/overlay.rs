//! Laying constraints over a derived schema.

use serde_json::{Map, Value, json};

/// Removes what derives only for Rust's sake: nullability, and defaults and required lists, which
/// the overlays give in full.
pub(super) fn tidy(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    for key in ["nullable", "default", "required", "title"] {
        object.shift_remove(key);
    }
    if object.get("type") == Some(&json!("integer"))
        && object.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint"))
    {
        object.shift_remove("format");
    }
    for key in ["minimum", "maximum"] {
        // Derived as a float.
        if let Some(whole) = object.get(key).and_then(Value::as_f64).filter(|n| n.fract() == 0.0) {
            object.insert(key.to_owned(), json!(whole as i64));
        }
    }
    if object.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
        // The derivation drops the types from below `anyOf`.
        object.insert("anyOf".to_owned(), json!([{"type": "integer"}, {"type": "string"}]));
    }
    if let Some(list) = object.get_mut("enum").and_then(Value::as_array_mut) {
        list.retain(|v| !v.is_null());
    }
    for (key, value) in object.iter_mut() {
        match key.as_str() {
            "properties" => value.as_object_mut().into_iter().flatten().for_each(|(_, v)| tidy(v)),
            // Conditions and taints come with their required lists.
            "items" if value.get("x-karpenter-complete").is_none() => tidy_items(value),
            "additionalProperties" => tidy(value),
            _ => {}
        }
    }
}

/// Items written by hand keep their required list: they have no Rust type behind them.
fn tidy_items(items: &mut Value) {
    let by_hand = items.pointer("/properties/lastTransitionTime").is_some()
        || items.pointer("/properties/effect").is_some();
    let required = items.get("required").cloned();
    tidy(items);
    if let (true, Some(required)) = (by_hand, required) {
        items["required"] = required;
    }
}

/// The schema at a path: names joined by dots, `[]` for items and `{}` for map values.
///
/// # Panics
/// When the path leads nowhere; the paths are constants, checked by the tests.
pub(super) fn at<'a>(schema: &'a mut Value, path: &str) -> &'a mut Value {
    let mut here = schema;
    for segment in path.split('.').filter(|s| !s.is_empty()) {
        let name = segment.trim_end_matches("[]").trim_end_matches("{}");
        let rest = &segment[name.len()..];
        here = &mut here["properties"][name];
        // Indexing would create the field, and a misspelled path go unnoticed.
        assert!(!here.is_null(), "no field {name:?} on the way of {path:?}");
        let mut rest = rest;
        while !rest.is_empty() {
            let key = if rest.starts_with("[]") { "items" } else { "additionalProperties" };
            here = &mut here[key];
            assert!(!here.is_null(), "no {key} on the way of {path:?}");
            rest = &rest[2..];
        }
    }
    here
}

/// Lays keys over the schema at a path.
pub(super) fn set(schema: &mut Value, path: &str, keys: Value) {
    let target = at(schema, path);
    if let (Some(target), Value::Object(keys)) = (target.as_object_mut(), keys) {
        target.extend(keys);
    }
}

/// Replaces a choice by a plain enumeration.
pub(super) fn one_of(schema: &mut Value, path: &str, values: &[&str]) {
    let target = at(schema, path);
    let mut plain = Map::new();
    if let Some(text) = target.get("description") {
        plain.insert("description".to_owned(), text.clone());
    }
    plain.insert("type".to_owned(), json!("string"));
    plain.insert("enum".to_owned(), json!(values));
    *target = Value::Object(plain);
}

/// Adds CEL rules: message and expression; a rule that may fail only on change sees `oldSelf`.
pub(super) fn rule(schema: &mut Value, path: &str, message: &str, expression: &str) {
    let target = at(schema, path);
    let rules = &mut target["x-kubernetes-validations"];
    if rules.is_null() {
        *rules = json!([]);
    }
    if let Some(rules) = rules.as_array_mut() {
        rules.push(json!({"message": message, "rule": expression}));
    }
}

/// Takes fields away.
pub(super) fn remove(schema: &mut Value, path: &str, fields: &[&str]) {
    if let Some(properties) = at(schema, path)["properties"].as_object_mut() {
        for field in fields {
            properties.shift_remove(*field);
        }
    }
}

/// Puts a field in, in alphabetical order.
pub(super) fn add(schema: &mut Value, path: &str, field: &str, value: Value) {
    if let Some(properties) = at(schema, path)["properties"].as_object_mut() {
        properties.insert(field.to_owned(), value);
        properties.sort_keys();
    }
}

/// Takes keys of the schema away.
pub(super) fn clear(schema: &mut Value, path: &str, keys: &[&str]) {
    if let Some(object) = at(schema, path).as_object_mut() {
        for key in keys {
            object.shift_remove(*key);
        }
    }
}

/// Takes CEL rules away.
pub(super) fn clear_rules(schema: &mut Value, path: &str) {
    if let Some(object) = at(schema, path).as_object_mut() {
        object.shift_remove("x-kubernetes-validations");
    }
}
