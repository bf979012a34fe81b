//! Types, bounds, patterns, lists.

use serde_json::{Map, Value};

use super::{Finding, is_true, member, members, pattern};

/// Checks a value; false when CEL rules on it make no sense: something has the wrong type, is
/// missing or is too long.
pub(super) fn check(schema: &Value, value: &Value, path: &str, out: &mut Vec<Finding>) -> bool {
    if path.is_empty() {
        return object(schema, value, path, out);
    }
    if schema.get("type").is_none() && !is_true(schema, "x-kubernetes-int-or-string") {
        return true;
    }
    let mut add = |message: String| out.push(Finding::new(path, message));
    if let Some(wanted) = wrong_type(schema, value) {
        add(format!("expected {wanted}, is {}", kind_of(value)));
        return false;
    }
    if let Some(choice) = schema["enum"].as_array()
        && !choice.contains(value)
    {
        let names: Vec<&str> = choice.iter().filter_map(Value::as_str).collect();
        add(format!("unsupported value {value}, expected one of {}", names.join(", ")));
    }
    match value {
        Value::String(text) => string(schema, text, &mut add),
        Value::Number(number) => {
            bounds(schema, number.as_f64().unwrap_or_default(), &mut add);
            true
        }
        Value::Array(items) => list(schema, items, path, out),
        Value::Object(_) => object(schema, value, path, out),
        _ => true,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// What was wanted instead, if the type is wrong.
fn wrong_type(schema: &Value, value: &Value) -> Option<&'static str> {
    let whole =
        // The API server takes `1.0` for an integer.
        |v: &Value| v.is_i64() || v.is_u64() || v.as_f64().is_some_and(|f| f.fract() == 0.0);
    if is_true(schema, "x-kubernetes-int-or-string") {
        return (!value.is_string() && !whole(value)).then_some("a whole number or a text");
    }
    match schema["type"].as_str()? {
        "string" => (!value.is_string()).then_some("a text"),
        "boolean" => (!value.is_boolean()).then_some("a boolean"),
        "integer" => (!whole(value)).then_some("a whole number"),
        "number" => (!value.is_number()).then_some("a number"),
        "array" => (!value.is_array()).then_some("a list"),
        "object" => (!value.is_object()).then_some("an object"),
        _ => None,
    }
}

fn string(schema: &Value, text: &str, add: &mut impl FnMut(String)) -> bool {
    // OpenAPI counts characters, not bytes.
    let length = text.chars().count() as u64;
    if let Some(least) = schema["minLength"].as_u64().filter(|n| length < *n) {
        add(format!("has {length} characters, expected at least {least}"));
    }
    let long = schema["maxLength"].as_u64().filter(|n| length > *n);
    if let Some(most) = long {
        add(format!("has {length} characters, expected at most {most}"));
    }
    if let Some(wanted) = schema["pattern"].as_str()
        && pattern::regex(wanted).is_some_and(|r| !r.is_match(text))
    {
        add(format!("invalid value {text:?}, expected to match {wanted}"));
    }
    if schema["format"] == "date-time" && text.parse::<jiff::Timestamp>().is_err() {
        add(format!("invalid time {text:?}, expected RFC 3339"));
    }
    long.is_none()
}

fn bounds(schema: &Value, number: f64, add: &mut impl FnMut(String)) {
    if let Some(least) = schema["minimum"].as_f64().filter(|n| number < *n) {
        add(format!("is {number}, expected at least {least}"));
    }
    if let Some(most) = schema["maximum"].as_f64().filter(|n| number > *n) {
        add(format!("is {number}, expected at most {most}"));
    }
    let range = match schema["format"].as_str() {
        Some("int32") => f64::from(i32::MIN)..=f64::from(i32::MAX),
        // The nearest numbers that a float holds.
        Some("int64") => -(2.0_f64.powi(63))..=2.0_f64.powi(63),
        _ => return,
    };
    if !range.contains(&number) {
        add(format!("is {number}, which is out of the range of {}", schema["format"]));
    }
}

fn list(schema: &Value, items: &[Value], path: &str, out: &mut Vec<Finding>) -> bool {
    let mut add = |path: String, message: String| out.push(Finding::new(path, message));
    let count = items.len() as u64;
    if let Some(least) = schema["minItems"].as_u64().filter(|n| count < *n) {
        add(path.to_owned(), format!("has {count} items, expected at least {least}"));
    }
    let long = schema["maxItems"].as_u64().filter(|n| count > *n);
    if let Some(most) = long {
        add(path.to_owned(), format!("has {count} items, expected at most {most}"));
    }
    let same: fn(&Value, &Value) -> bool = match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => |a, b| a == b,
        // The only key of our map lists.
        Some("map") => |a, b| a["type"] == b["type"],
        _ => |_, _| false,
    };
    for (i, item) in items.iter().enumerate() {
        if items[..i].iter().any(|earlier| same(earlier, item)) {
            add(format!("{path}[{i}]"), "duplicate value".to_owned());
        }
    }
    let mut sound = long.is_none();
    for (i, item) in items.iter().enumerate() {
        sound &= check(&schema["items"], item, &format!("{path}[{i}]"), out);
    }
    sound
}

fn object(schema: &Value, value: &Value, path: &str, out: &mut Vec<Finding>) -> bool {
    let none = Map::new();
    let fields = value.as_object().unwrap_or(&none);
    let mut sound = true;
    if let Some(most) = schema["maxProperties"].as_u64().filter(|n| fields.len() as u64 > *n) {
        let message = format!("has {} entries, expected at most {most}", fields.len());
        out.push(Finding::new(path, message));
        sound = false;
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            out.push(Finding::new(member(path, name, true), "required"));
            sound = false;
        }
    }
    for (name, value, found, field) in members(schema, fields) {
        if path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        sound &= check(found, value, &member(path, name, field), out);
    }
    sound
}
