//! Objects of AWS answers, read so that nothing gets lost unseen.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// An object of which each field is taken once: what is left was not carried over.
#[derive(Clone, Debug, Default)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// The fields of an object; none of anything else.
    pub fn of(value: Value) -> Self {
        match value {
            Value::Object(map) => Self(map),
            _ => Self::default(),
        }
    }

    /// Takes a field; null where there is none.
    pub fn take(&mut self, name: &str) -> Value {
        self.0.shift_remove(name).unwrap_or_default()
    }

    /// Takes a text; `None` where it is empty.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.take(name).as_str().filter(|t| !t.is_empty()).map(str::to_owned)
    }

    /// Takes a whole number.
    pub fn number(&mut self, name: &str) -> Option<i64> {
        self.take(name).as_i64()
    }

    /// Takes a list.
    pub fn list(&mut self, name: &str) -> Vec<Value> {
        match self.take(name) {
            Value::Array(list) => list,
            _ => Vec::new(),
        }
    }

    /// Takes a list of texts.
    pub fn texts(&mut self, name: &str) -> Vec<String> {
        self.list(name).iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Takes an object.
    pub fn object(&mut self, name: &str) -> Self {
        Self::of(self.take(name))
    }

    /// Takes an object of texts.
    pub fn map(&mut self, name: &str) -> BTreeMap<String, String> {
        let Value::Object(map) = self.take(name) else { return BTreeMap::new() };
        map.into_iter().filter_map(|(k, v)| Some((k, v.as_str()?.to_owned()))).collect()
    }

    /// Drops fields that mean nothing for new nodes.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.0.shift_remove(*name);
        }
    }

    /// A note for each field that is left and has a value; `advice` has what to do about some.
    pub fn rest(self, prefix: &str, advice: &[(&str, &str)]) -> Vec<String> {
        let left = self.0.into_iter().filter(|(_, value)| has_value(value));
        left.map(|(name, value)| {
            let known = advice.iter().find(|(n, _)| *n == name).map(|(_, text)| *text);
            let text = known.unwrap_or("has no counterpart");
            match value {
                Value::Array(_) | Value::Object(_) => format!("{prefix}{name}: {text}"),
                plain => format!("{prefix}{name} ({plain}): {text}"),
            }
        })
        .collect()
    }
}

/// False for what AWS returns where nothing was set.
fn has_value(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => list.iter().any(has_value),
        Value::Object(map) => map.values().any(has_value),
        _ => true,
    }
}
