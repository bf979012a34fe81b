//! Label selectors in a canonical form, so that equal ones are recognised whatever their order.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    /// An operator that does not exist: nothing meets it.
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Expression {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// What labels must be; sorted, without repetition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Selector {
    /// False for the absent selector, which selects nothing.
    present: bool,
    expressions: Vec<Expression>,
}

impl Selector {
    /// Reads a selector. [Q] Upstream's first count takes an absent selector as selecting every
    /// bound pod; here it selects none, as it does everywhere else.
    pub(super) fn new(selector: Option<&LabelSelector>) -> Self {
        let mut expressions: Vec<Expression> = Vec::new();
        for (key, value) in selector.iter().flat_map(|s| s.match_labels.iter().flatten()) {
            expressions.push(Expression {
                key: key.clone(),
                operator: Operator::In,
                values: vec![value.clone()],
            });
        }
        for expression in selector.iter().flat_map(|s| s.match_expressions.iter().flatten()) {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => Operator::Never,
            };
            let mut values = expression.values.clone().unwrap_or_default();
            values.sort_unstable();
            values.dedup();
            expressions.push(Expression { key: expression.key.clone(), operator, values });
        }
        let mut new = Self { present: selector.is_some(), expressions };
        new.tidy();
        new
    }

    fn tidy(&mut self) {
        self.expressions.sort_unstable();
        self.expressions.dedup();
    }

    /// The selector that also asks for the pod's own values of these labels.
    pub(super) fn with_own(mut self, keys: &[String], labels: &BTreeMap<String, String>) -> Self {
        for key in keys {
            if let Some(value) = labels.get(key) {
                self.expressions.push(Expression {
                    key: key.clone(),
                    operator: Operator::In,
                    values: vec![value.clone()],
                });
            }
        }
        self.tidy();
        self
    }

    /// True when the labels are selected.
    pub(super) fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.present
            && self.expressions.iter().all(|e| {
                let value = labels.get(&e.key);
                let named = value.is_some_and(|v| e.values.binary_search(v).is_ok());
                match e.operator {
                    Operator::In => named,
                    Operator::NotIn => !named,
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                    Operator::Never => false,
                }
            })
    }

    /// A label that everything selected must have, if one is named: to look selectors up by.
    pub(super) fn landmark(&self) -> Option<(&str, &str)> {
        self.expressions.iter().find_map(|e| match (&e.operator, &e.values[..]) {
            (Operator::In, [value]) => Some((e.key.as_str(), value.as_str())),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selector(value: serde_json::Value) -> Selector {
        Selector::new(Some(&serde_json::from_value(value).unwrap()))
    }

    #[test]
    fn order_and_repetition_do_not_matter() {
        let a = selector(json!({"matchLabels": {"b": "1", "a": "2"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["y", "x", "x"]}]}));
        let b = selector(json!({"matchExpressions": [
            {"key": "c", "operator": "In", "values": ["x", "y"]},
            {"key": "a", "operator": "In", "values": ["2"]},
            {"key": "b", "operator": "In", "values": ["1"]}]}));
        assert_eq!(a, b);
        let labels: BTreeMap<String, String> =
            [("a", "2"), ("b", "1"), ("c", "x")].map(|(k, v)| (k.into(), v.into())).into();
        assert!(a.selects(&labels));
    }

    #[test]
    fn an_absent_selector_selects_nothing_and_an_empty_one_everything() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        assert!(!Selector::new(None).selects(&labels));
        assert!(selector(json!({})).selects(&labels));
        let not = selector(json!({"matchExpressions": [
            {"key": "a", "operator": "NotIn", "values": ["1"]}]}));
        assert!(!not.selects(&labels));
        assert!(not.selects(&BTreeMap::new()));
    }
}
