//! Label and field selectors.

use serde_json::Value;

use super::failure::Failure;

/// One condition of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// What a list or a watch is limited to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Term>,
    fields: Vec<Term>,
}

impl Selector {
    /// Reads both selectors as they are in a URL.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, Failure> {
        Ok(Self { labels: terms(labels)?, fields: terms(fields)? })
    }

    /// True when everything is selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// True when the object is selected.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        let field = |path: &str| {
            let value = path.split('.').fold(object, |at, part| &at[part]);
            match value {
                Value::Bool(true) => Some("true"),
                Value::Bool(false) => Some("false"),
                other => Some(other.as_str().unwrap_or_default()),
            }
        };
        self.labels.iter().all(|t| t.met(label)) && self.fields.iter().all(|t| t.met(field))
    }
}

impl Term {
    fn met<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::In(key, values) => value(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Self::NotIn(key, values) => !value(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
        }
    }
}

/// Splits at commas outside parentheses, and reads each part.
fn terms(text: &str) -> Result<Vec<Term>, Failure> {
    let mut depth = 0_i32;
    let parts = text.split(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|p| !p.is_empty()).map(term).collect()
}

fn term(part: &str) -> Result<Term, Failure> {
    let own = |s: &str| s.trim().to_owned();
    let set = |list: &str| -> Option<Vec<String>> {
        let inner = list.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(inner.split(',').map(own).collect())
    };
    let wrong = || Failure::bad_request(format!("unable to parse requirement: {part:?}"));
    if let Some((key, list)) = part.split_once(" notin ") {
        return Ok(Term::NotIn(own(key), set(list).ok_or_else(wrong)?));
    }
    if let Some((key, list)) = part.split_once(" in ") {
        return Ok(Term::In(own(key), set(list).ok_or_else(wrong)?));
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Term::NotIn(own(key), vec![own(value)]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Term::In(own(key), vec![own(value)]));
    }
    Ok(match part.strip_prefix('!') {
        Some(key) => Term::Absent(own(key)),
        None => Term::Exists(own(part)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_of_a_selector_is_read() {
        let pod = json!({"metadata": {"name": "p", "labels": {"app": "a", "tier": "web"}},
            "spec": {"nodeName": "n", "unschedulable": true}});
        let met =
            |labels: &str, fields: &str| Selector::parse(labels, fields).unwrap().matches(&pod);
        assert!(met("app=a,tier in (web, db)", "spec.nodeName=n"));
        assert!(met("app==a,tier notin (db),!other,app", "metadata.name!=q"));
        assert!(met("", "spec.unschedulable=true"));
        assert!(!met("app!=a", ""));
        assert!(!met("", "spec.nodeName="));
        assert!(!met("other", ""));
        assert!(Selector::parse("a in b", "").is_err());
    }
}
