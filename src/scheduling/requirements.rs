//! The requirement algebra: sets of label values, finite or complemented, with integer bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::api::labels;
use crate::api::v1::{NodeSelectorRequirementWithMinValues, Operator};

/// What a label may be: a set of values (or all but a set), within integer bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: Arc<str>,
    complement: bool,
    values: BTreeSet<Arc<str>>,
    gte: Option<i64>,
    lte: Option<i64>,
    min_values: Option<i64>,
}

impl Requirement {
    /// A requirement as manifests write it; deprecated keys become today's.
    #[must_use]
    pub fn new<V: AsRef<str>>(
        key: &str,
        operator: Operator,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        let mut requirement = Self {
            key: Arc::from(labels::normalize(key)),
            complement: !matches!(operator, Operator::In | Operator::DoesNotExist),
            values: BTreeSet::new(),
            gte: None,
            lte: None,
            min_values: None,
        };
        let mut values = values.into_iter();
        let mut bound = || values.next().and_then(|v| v.as_ref().parse::<i64>().ok()).unwrap_or(0);
        match operator {
            Operator::In | Operator::NotIn => {
                requirement.values = values.map(|v| Arc::from(v.as_ref())).collect();
            }
            Operator::Exists | Operator::DoesNotExist => {}
            Operator::Gt => match bound().checked_add(1) {
                Some(n) => requirement.gte = Some(n),
                None => requirement.complement = false,
            },
            Operator::Lt => match bound().checked_sub(1) {
                Some(n) => requirement.lte = Some(n),
                None => requirement.complement = false,
            },
            Operator::Gte => requirement.gte = Some(bound()),
            Operator::Lte => requirement.lte = Some(bound()),
        }
        requirement
    }

    /// `key In [value]`.
    #[must_use]
    pub fn is(key: &str, value: &str) -> Self {
        Self::new(key, Operator::In, [value])
    }

    /// The same requirement that also asks for a variety of values.
    #[must_use]
    pub fn with_min_values(mut self, min_values: Option<i64>) -> Self {
        self.min_values = min_values;
        self
    }

    /// The label's key.
    #[must_use]
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// How many different values must stay possible.
    #[must_use]
    pub fn min_values(&self) -> Option<i64> {
        self.min_values
    }

    /// Named values: those allowed, or those excluded when [`Requirement::is_complement`].
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(|v| &**v)
    }

    /// Number of named values.
    #[must_use]
    pub fn named(&self) -> usize {
        self.values.len()
    }

    /// True when the named values are the ones excluded.
    #[must_use]
    pub fn is_complement(&self) -> bool {
        self.complement
    }

    /// Inclusive bounds.
    #[must_use]
    pub fn bounds(&self) -> (Option<i64>, Option<i64>) {
        (self.gte, self.lte)
    }

    /// The operator that describes the set.
    #[must_use]
    pub fn operator(&self) -> Operator {
        match (self.complement, self.values.is_empty()) {
            (true, false) => Operator::NotIn,
            (true, true) => Operator::Exists,
            (false, false) => Operator::In,
            (false, true) => Operator::DoesNotExist,
        }
    }

    /// True when the label may have this value.
    #[must_use]
    pub fn has(&self, value: &str) -> bool {
        self.values.contains(value) != self.complement && within(value, self.gte, self.lte)
    }

    /// The one value left, if exactly one is.
    #[must_use]
    pub fn single(&self) -> Option<&str> {
        (!self.complement && self.values.len() == 1)
            .then(|| self.values.iter().next().map(|v| &**v))
            .flatten()
    }

    /// A value that meets the requirement: the first named one, or the lowest integer allowed.
    #[must_use]
    pub fn any(&self) -> Option<String> {
        if !self.complement {
            return self.values.iter().next().map(|v| v.to_string());
        }
        let from = self.gte.unwrap_or(0);
        (from..=from.saturating_add(self.values.len() as i64))
            .map(|n| n.to_string())
            .find(|text| self.has(text))
    }

    /// The requirement that both put together make.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let gte = self.gte.max(other.gte);
        let lte = match (self.lte, other.lte) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let mut result = Self {
            key: Arc::clone(&self.key),
            complement: self.complement && other.complement,
            values: BTreeSet::new(),
            gte,
            lte,
            min_values: self.min_values.max(other.min_values),
        };
        if gte.zip(lte).is_some_and(|(g, l)| g > l) {
            result.complement = false;
            (result.gte, result.lte) = (None, None);
            return result;
        }
        let inside = |v: &&Arc<str>| within(v, gte, lte);
        result.values = match (self.complement, other.complement) {
            (true, true) => self.values.union(&other.values).filter(inside).cloned().collect(),
            (true, false) => {
                other.values.difference(&self.values).filter(inside).cloned().collect()
            }
            (false, true) => {
                self.values.difference(&other.values).filter(inside).cloned().collect()
            }
            (false, false) => {
                self.values.intersection(&other.values).filter(inside).cloned().collect()
            }
        };
        if !result.complement {
            (result.gte, result.lte) = (None, None);
        }
        result
    }

    /// Whether some value meets both, without building the intersection.
    #[must_use]
    pub fn has_intersection(&self, other: &Self) -> bool {
        let gte = self.gte.max(other.gte);
        let lte = match (self.lte, other.lte) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if gte.zip(lte).is_some_and(|(g, l)| g > l) {
            return false;
        }
        match (self.complement, other.complement) {
            (true, true) => true,
            (true, false) => {
                other.values.iter().any(|v| !self.values.contains(v) && within(v, gte, lte))
            }
            (false, true) => {
                self.values.iter().any(|v| !other.values.contains(v) && within(v, gte, lte))
            }
            (false, false) => {
                self.values.iter().any(|v| other.values.contains(v) && within(v, gte, lte))
            }
        }
    }

    /// The API form: bounds win over excluded values.
    fn to_api(&self) -> Vec<NodeSelectorRequirementWithMinValues> {
        let entry = |operator, values: Vec<String>| NodeSelectorRequirementWithMinValues {
            key: self.key.to_string(),
            min_values: self.min_values,
            operator,
            values,
        };
        let mut entries = Vec::new();
        if let Some(n) = self.gte {
            entries.push(entry(Operator::Gte, vec![n.to_string()]));
        }
        if let Some(n) = self.lte {
            entries.push(entry(Operator::Lte, vec![n.to_string()]));
        }
        if entries.is_empty() {
            entries.push(entry(self.operator(), self.values().map(str::to_owned).collect()));
        }
        entries
    }
}

fn within(value: &str, gte: Option<i64>, lte: Option<i64>) -> bool {
    if gte.is_none() && lte.is_none() {
        return true;
    }
    value.parse::<i64>().is_ok_and(|n| gte.is_none_or(|g| n >= g) && lte.is_none_or(|l| n <= l))
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.operator().as_str())?;
        if !self.values.is_empty() {
            let shown: Vec<&str> = self.values().take(5).collect();
            write!(f, " [{}", shown.join(" "))?;
            if self.values.len() > shown.len() {
                write!(f, " and {} others", self.values.len() - shown.len())?;
            }
            f.write_str("]")?;
        }
        if let Some(n) = self.gte {
            write!(f, " >={n}")?;
        }
        if let Some(n) = self.lte {
            write!(f, " <={n}")?;
        }
        if let Some(n) = self.min_values {
            write!(f, " minValues {n}")?;
        }
        Ok(())
    }
}

/// Which labels a node may lack and still satisfy a requirement on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    /// None: for nodes that exist.
    Nothing,
    /// Well-known labels, which the provider fills in at launch.
    WellKnown,
}

impl Allow {
    fn allows(self, key: &str) -> bool {
        self == Self::WellKnown && labels::is_well_known(key)
    }
}

/// Why two sets of requirements do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// A label is asked for that the node does not have.
    #[error("label \"{key}\" does not have known values{hint}")]
    Undefined { key: Arc<str>, hint: String },
    /// No value is left for a label.
    #[error("key {}, {incoming} not in {existing}", incoming.key)]
    Disjoint { existing: Box<Requirement>, incoming: Box<Requirement> },
}

/// One requirement a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements(BTreeMap<Arc<str>, Requirement>);

impl Requirements {
    /// No requirements.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `key In [value]` for each label.
    #[must_use]
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        labels.into_iter().map(|(k, v)| Requirement::is(k, v)).collect()
    }

    /// The requirements of a NodePool or NodeClaim.
    #[must_use]
    pub fn from_api(list: &[NodeSelectorRequirementWithMinValues]) -> Self {
        list.iter()
            .map(|r| Requirement::new(&r.key, r.operator, &r.values).with_min_values(r.min_values))
            .collect()
    }

    /// The match expressions of a node selector term; unknown operators match nothing.
    #[must_use]
    pub fn from_term(term: &NodeSelectorTerm) -> Self {
        Self::from_expressions(term.match_expressions.iter().flatten())
    }

    /// Match expressions; unknown operators match nothing.
    #[must_use]
    pub fn from_expressions<'a>(
        list: impl IntoIterator<Item = &'a NodeSelectorRequirement>,
    ) -> Self {
        list.into_iter()
            .map(|e| {
                let operator = Operator::parse(&e.operator).unwrap_or(Operator::DoesNotExist);
                Requirement::new(&e.key, operator, e.values.iter().flatten())
            })
            .collect()
    }

    /// Adds a requirement: what was there for the key is narrowed, never replaced.
    pub fn add(&mut self, requirement: Requirement) {
        match self.0.entry(Arc::clone(&requirement.key)) {
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let merged = entry.get().intersection(&requirement);
                entry.insert(merged);
            }
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(requirement);
            }
        }
    }

    /// Sets a requirement, whatever was there.
    pub fn replace(&mut self, requirement: Requirement) {
        self.0.insert(Arc::clone(&requirement.key), requirement);
    }

    /// Adds every requirement of `other`.
    pub fn merge(&mut self, other: &Self) {
        for requirement in other.iter() {
            self.add(requirement.clone());
        }
    }

    /// Drops a key.
    pub fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// The requirement on a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Requirement> {
        self.0.get(key)
    }

    /// True when there is a requirement on the key.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// All requirements in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Requirement> {
        self.0.values()
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True without any key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that the keys both name leave a value; two negative requirements always go together.
    ///
    /// # Errors
    /// The first key without a common value.
    pub fn intersects(&self, other: &Self) -> Result<(), Incompatible> {
        let (small, large) = if self.len() <= other.len() { (self, other) } else { (other, self) };
        for key in small.0.keys().filter(|k| large.0.contains_key(*k)) {
            let (Some(existing), Some(incoming)) = (self.0.get(key), other.0.get(key)) else {
                continue;
            };
            let negative =
                |r: &Requirement| matches!(r.operator(), Operator::NotIn | Operator::DoesNotExist);
            if !existing.has_intersection(incoming) && !(negative(existing) && negative(incoming)) {
                return Err(Incompatible::Disjoint {
                    existing: Box::new(existing.clone()),
                    incoming: Box::new(incoming.clone()),
                });
            }
        }
        Ok(())
    }

    /// Checks that a node with these requirements can meet `other`.
    ///
    /// # Errors
    /// A key that the node lacks, or one without a common value.
    pub fn compatible(&self, other: &Self, allow: Allow) -> Result<(), Incompatible> {
        for incoming in other.iter() {
            let negative = matches!(incoming.operator(), Operator::NotIn | Operator::DoesNotExist);
            if !negative && !self.has(&incoming.key) && !allow.allows(&incoming.key) {
                return Err(Incompatible::Undefined {
                    key: Arc::clone(&incoming.key),
                    hint: self.hint(&incoming.key, allow),
                });
            }
        }
        self.intersects(other)
    }

    fn hint(&self, key: &str, allow: Allow) -> String {
        let well_known = (allow == Allow::WellKnown)
            .then(|| labels::WELL_KNOWN_CORE.iter().chain(labels::WELL_KNOWN_AWS).copied())
            .into_iter()
            .flatten();
        let suffix = key.split_once('/').map_or(key, |(_, name)| name);
        well_known
            .chain(self.0.keys().map(|k| &**k))
            .find(|known| known.contains(key) || known.ends_with(suffix))
            .map_or_else(String::new, |known| format!(" (typo of \"{known}\"?)"))
    }

    /// The API form, sorted by key.
    #[must_use]
    pub fn to_api(&self) -> Vec<NodeSelectorRequirementWithMinValues> {
        self.iter().flat_map(Requirement::to_api).collect()
    }

    /// Labels that the requirements settle for a new node: custom keys with a value to choose.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.iter()
            .filter(|r| !labels::is_well_known(r.key()) && &**r.key() != labels::HOSTNAME)
            .filter_map(|r| Some((r.key().to_string(), r.any()?)))
            .collect()
    }
}

impl FromIterator<Requirement> for Requirements {
    fn from_iter<I: IntoIterator<Item = Requirement>>(iter: I) -> Self {
        let mut requirements = Self::new();
        for requirement in iter {
            requirements.add(requirement);
        }
        requirements
    }
}

impl fmt::Display for Requirements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.iter().filter(|r| &**r.key() != labels::HOSTNAME);
        for (i, requirement) in shown.enumerate() {
            write!(f, "{}{requirement}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
