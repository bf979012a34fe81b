//! What a label of a node that does not exist yet can turn out to be.

use std::collections::BTreeSet;

use super::model::Expression;

/// The possibilities for one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// The node will not have it.
    Absent,
    /// It will have one of these values.
    OneOf(BTreeSet<String>),
    /// It will have some value: none of these, and an integer within the bounds if there are any.
    Open { except: BTreeSet<String>, least: Option<i64>, most: Option<i64> },
}

impl Label {
    pub fn open() -> Self {
        Self::Open { except: BTreeSet::new(), least: None, most: None }
    }

    pub fn of(expressions: &[Expression]) -> Option<Self> {
        let mut label = if expressions.iter().any(|e| e.operator == "DoesNotExist") {
            Self::Absent
        } else {
            Self::open()
        };
        for expression in expressions.iter().filter(|e| e.operator != "DoesNotExist") {
            label = label.narrowed(expression)?;
        }
        Some(label)
    }

    /// What is left of the possibilities under one more expression, if anything.
    pub fn narrowed(&self, expression: &Expression) -> Option<Self> {
        match self {
            Self::Absent => expression.met_by(None).then_some(Self::Absent),
            Self::OneOf(values) => {
                let left: BTreeSet<String> =
                    values.iter().filter(|v| expression.met_by(Some(v))).cloned().collect();
                (!left.is_empty()).then_some(Self::OneOf(left))
            }
            Self::Open { except, least, most } => {
                let bound = || expression.values.first().and_then(|v| v.parse::<i64>().ok());
                let (mut except, mut least, mut most) = (except.clone(), *least, *most);
                let from = |n: i64| Some(least.map_or(n, |m: i64| m.max(n)));
                let to = |n: i64| Some(most.map_or(n, |m: i64| m.min(n)));
                match expression.operator.as_str() {
                    "In" => {
                        let inside = |v: &&String| {
                            let n = v.parse::<i64>().ok();
                            !except.contains(*v)
                                && least.is_none_or(|l| n.is_some_and(|n| n >= l))
                                && most.is_none_or(|m| n.is_some_and(|n| n <= m))
                        };
                        let left: BTreeSet<String> =
                            expression.values.iter().filter(inside).cloned().collect();
                        return (!left.is_empty()).then_some(Self::OneOf(left));
                    }
                    "NotIn" => except.extend(expression.values.iter().cloned()),
                    "Exists" => {}
                    "DoesNotExist" => return None,
                    "Gt" => least = from(bound()? + 1),
                    "Gte" => least = from(bound()?),
                    "Lt" => most = to(bound()? - 1),
                    "Lte" => most = to(bound()?),
                    other => panic!("unknown operator {other}"),
                }
                if least.zip(most).is_some_and(|(l, m)| l > m) {
                    return None;
                }
                Some(Self::Open { except, least, most })
            }
        }
    }

    /// Whether every possibility meets the expression.
    pub fn surely(&self, expression: &Expression) -> bool {
        match self {
            Self::Absent => expression.met_by(None),
            Self::OneOf(values) => values.iter().all(|v| expression.met_by(Some(v))),
            Self::Open { .. } => match expression.operator.as_str() {
                "Exists" => true,
                "In" | "DoesNotExist" => false,
                // A narrower set means that something was still possible that does not meet it.
                _ => self.narrowed(expression).as_ref() == Some(self),
            },
        }
    }

    pub fn values(&self) -> BTreeSet<String> {
        match self {
            Self::OneOf(values) => values.clone(),
            _ => BTreeSet::new(),
        }
    }
}
