//! The requirement algebra: sets of label values, finite or complemented, with integer bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::api::labels;
use crate::api::v1::{NodeSelectorRequirementWithMinValues, Operator};

mod requirement;
mod shared;

pub use requirement::Requirement;
pub use shared::Sharing;

/// The labels that a node may lack and still meet a requirement on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow<'a> {
    /// None: for nodes that exist.
    Nothing,
    /// Well-known labels, which the provider fills in at launch.
    WellKnown,
    /// Well-known labels, and these.
    WellKnownAnd(&'a BTreeSet<String>),
}

impl Allow<'_> {
    fn allows(self, key: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::WellKnown => labels::is_well_known(key),
            Self::WellKnownAnd(more) => labels::is_well_known(key) || more.contains(key),
        }
    }

    fn keys(self) -> impl Iterator<Item = &'static str> + use<> {
        let some = self != Self::Nothing;
        let known = [labels::WELL_KNOWN_CORE, labels::WELL_KNOWN_AWS];
        known.into_iter().flatten().copied().filter(move |_| some)
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

/// One requirement per key, in key order. Cloning shares the list; changing a shared list copies it
/// first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requirements(Arc<Vec<Requirement>>);

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
        let one = |r: &NodeSelectorRequirementWithMinValues| {
            let requirement = Requirement::new(&r.key, r.operator, &r.values);
            // No integer is beyond the last one: that asks for no variety of values either.
            let beyond = r.operator == Operator::Gt && !requirement.complement;
            requirement.with_min_values(r.min_values.filter(|_| !beyond))
        };
        list.iter().map(one).collect()
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
                // The API server knows no such operator, and validation reports it; here it must
                // not widen what the pod asks for.
                let operator = Operator::parse(&e.operator).unwrap_or(Operator::DoesNotExist);
                Requirement::new(&e.key, operator, e.values.iter().flatten())
            })
            .collect()
    }

    /// Requirements of distinct keys, in any order.
    pub(super) fn from_vec(mut list: Vec<Requirement>) -> Self {
        list.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        list.shrink_to_fit();
        Self(Arc::new(list))
    }

    fn find(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|r| (*r.key).cmp(key))
    }

    /// Adds a requirement: what was there for the key is narrowed, never replaced.
    pub fn add(&mut self, requirement: Requirement) {
        match self.find(&requirement.key) {
            Ok(at) => {
                let merged = self.0[at].intersection(&requirement);
                Arc::make_mut(&mut self.0)[at] = merged;
            }
            Err(at) => Arc::make_mut(&mut self.0).insert(at, requirement),
        }
    }

    /// Sets a requirement, whatever was there.
    pub fn replace(&mut self, requirement: Requirement) {
        match self.find(&requirement.key) {
            Ok(at) => Arc::make_mut(&mut self.0)[at] = requirement,
            Err(at) => Arc::make_mut(&mut self.0).insert(at, requirement),
        }
    }

    /// Adds every requirement of `other`.
    pub fn merge(&mut self, other: &Self) {
        for requirement in other.iter() {
            self.add(requirement.clone());
        }
    }

    /// Drops a key.
    pub fn remove(&mut self, key: &str) {
        if let Ok(at) = self.find(key) {
            Arc::make_mut(&mut self.0).remove(at);
        }
    }

    /// The requirement on a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Requirement> {
        self.find(key).ok().map(|at| &self.0[at])
    }

    /// As [`Requirements::get`], but looks first at `place`, where the key was found in a similar
    /// value. Instance types of a pool have mostly the same keys, which saves the search.
    pub(super) fn get_near(&self, key: &str, place: &mut usize) -> Option<&Requirement> {
        match self.0.get(*place) {
            Some(there) if &*there.key == key => Some(there),
            _ => {
                *place = self.find(key).ok()?;
                self.0.get(*place)
            }
        }
    }

    /// True when there is a requirement on the key.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.find(key).is_ok()
    }

    /// All requirements in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Requirement> {
        self.0.iter()
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

    /// True when both share one list in memory, which equal values need not do.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The address of the shared list. It stays the same for as long as this value or a clone of it
    /// lives unchanged.
    pub(super) fn address(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Checks that each key which both name has a common value. Two negative requirements (`NotIn`,
    /// `DoesNotExist`) always go together: a node without the label meets both.
    ///
    /// # Errors
    /// The first key without a common value.
    pub fn intersects(&self, other: &Self) -> Result<(), Incompatible> {
        let (small, large) = if self.len() <= other.len() { (self, other) } else { (other, self) };
        for requirement in small.iter() {
            let Some(match_) = large.get(&requirement.key) else { continue };
            // The loop goes through the shorter list, but the error names the sides as the caller
            // gave them.
            let (existing, incoming) = if std::ptr::eq(small, self) {
                (requirement, match_)
            } else {
                (match_, requirement)
            };
            let negative =
                |r: &Requirement| matches!(r.operator(), Operator::NotIn | Operator::DoesNotExist);
            let agree =
                existing.has_intersection(incoming) || (negative(existing) && negative(incoming));
            if !agree {
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
    pub fn compatible(&self, other: &Self, allow: Allow<'_>) -> Result<(), Incompatible> {
        for incoming in other.iter() {
            let negative = matches!(incoming.operator(), Operator::NotIn | Operator::DoesNotExist);
            // A node without the label meets `NotIn` and `DoesNotExist`, as in Kubernetes.
            if !negative && !self.has(&incoming.key) && !allow.allows(&incoming.key) {
                return Err(Incompatible::Undefined {
                    key: Arc::clone(&incoming.key),
                    hint: self.hint(&incoming.key, allow),
                });
            }
        }
        self.intersects(other)
    }

    /// A known label of which the key may be a misspelling, by Karpenter's rule: it contains the
    /// key, or ends with the key's part after the slash.
    fn hint(&self, key: &str, allow: Allow<'_>) -> String {
        let suffix = key.split_once('/').map_or(key, |(_, name)| name);
        let more = match allow {
            Allow::WellKnownAnd(more) => Some(more),
            _ => None,
        };
        let mut known: Vec<&str> = allow.keys().collect();
        known.extend(more.into_iter().flatten().map(String::as_str));
        known.extend(self.iter().map(|r| &*r.key));
        known
            .into_iter()
            .find(|known| known.contains(key) || known.ends_with(suffix))
            .map_or_else(String::new, |known| format!(" (typo of \"{known}\"?)"))
    }

    /// The API form, sorted by key.
    #[must_use]
    pub fn to_api(&self) -> Vec<NodeSelectorRequirementWithMinValues> {
        self.iter().flat_map(Requirement::to_api).collect()
    }

    /// Labels that the requirements give a new node. Well-known ones are left out: their values are
    /// known after the launch, and the provider sets them.
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
        if let Some(list) = Arc::get_mut(&mut requirements.0) {
            list.shrink_to_fit();
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
