//! Topology groups: which domains a pod may go to, given where others are.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::daemons::Daemons;
use super::intern::Interner;
use super::selector::Selector;
use super::tolerance::Tolerance;
use crate::scheduling::solver::ids::{
    DaemonId, FilterId, GroupId, Interned, KeyId, List, NamespaceId, ReqId, SetId, TaintsId,
    TolerationsId, ValueId,
};

/// The filter that lets every node pass.
pub(super) const ANY: FilterId = FilterId::FIRST;
/// What a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Spread,
    Affinity,
    AntiAffinity,
    /// Where the owners of an anti-affinity are, for the pods that it keeps away.
    Inverse,
}

impl Kind {
    /// The name in messages.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Spread => "topology spread",
            Self::Affinity => "pod affinity",
            Self::AntiAffinity | Self::Inverse => "pod anti-affinity",
        }
    }

    /// Keeps pods apart. A node without the label shares no domain with any other.
    pub(super) fn anti(self) -> bool {
        matches!(self, Self::AntiAffinity | Self::Inverse)
    }
}

/// Which nodes count for a spread constraint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Filter {
    /// Alternatives that a node must meet one of; none means that any node will do.
    pub(super) terms: Vec<(SetId, ReqId)>,
    /// Tolerations that must cover the node's taints, where those are honoured.
    pub(super) tolerations: Option<TolerationsId>,
}

/// A topology constraint, shared by all pods that have the same.
///
/// [Q] Upstream shares groups that differ in minDomains or in the values of their node filter, so
/// that the first pod decides for the others; here all parts are compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Group {
    pub(super) kind: Kind,
    pub(super) key: KeyId,
    /// Namespaces, sorted.
    pub(super) namespaces: Arc<[NamespaceId]>,
    pub(super) selector: Selector,
    pub(super) max_skew: i64,
    pub(super) min_domains: Option<i64>,
    pub(super) filter: FilterId,
}

impl Group {
    /// Domains in which a pod on a node with these requirements counts.
    pub(super) fn counted_in<'a>(&self, set: SetId, interner: &'a Interner) -> &'a [ValueId] {
        match interner.get(set, self.key).map(|r| interner.req(r)) {
            Some(req) if !req.complement && (self.kind.anti() || req.values.len() == 1) => {
                &req.values
            }
            _ => &[],
        }
    }
}

/// All topology groups, and the filters of nodes that they have.
#[derive(Default)]
pub(super) struct Topology {
    pub(super) groups: Interned<GroupId, Group>,
    pub(super) filters: Interned<FilterId, Filter>,
    matches: FxHashMap<(FilterId, SetId, TaintsId), bool>,
    /// DaemonSets whose pods a group of affinity or anti-affinity counts, or that own an inverse
    /// one; by group, empty where there is none at all.
    daemons: List<GroupId, Daemons>,
}

impl Topology {
    /// The number of a filter.
    pub(super) fn filter(&mut self, filter: Filter) -> FilterId {
        if self.filters.is_empty() {
            self.filters.insert(Filter::default());
        }
        self.filters.insert(filter)
    }

    /// The number of a group.
    pub(super) fn group(&mut self, group: Group) -> GroupId {
        self.groups.insert(group)
    }

    /// The group behind a number.
    pub(super) fn get(&self, id: GroupId) -> &Group {
        &self.groups[id]
    }

    /// Notes the DaemonSets of a group.
    pub(super) fn add_daemon(&mut self, id: GroupId, daemon: DaemonId) {
        self.daemons.grow(self.groups.len(), Daemons::new());
        self.daemons[id].push(daemon);
    }

    /// The DaemonSets of a group.
    pub(super) fn daemons(&self, id: GroupId) -> &[DaemonId] {
        self.daemons.get(id).map_or(&[], |d| d.as_slice())
    }

    /// Whether pods of DaemonSets matter to any group.
    pub(super) fn counts_daemons(&self) -> bool {
        !self.daemons.is_empty()
    }

    /// Whether topology has a say at all.
    pub(super) fn is_used(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Whether a node with these requirements and taints counts for a filter.
    pub(super) fn passes(
        &mut self,
        filter: FilterId,
        set: SetId,
        taints: TaintsId,
        host: Option<ValueId>,
        interner: &mut Interner,
        tolerance: &mut Tolerance,
    ) -> bool {
        if filter == ANY {
            return true;
        }
        let by_host = self.filters[filter].terms.iter().any(|(_, h)| !h.is_none());
        if !by_host && let Some(known) = self.matches.get(&(filter, set, taints)) {
            return *known;
        }
        let wanted = &self.filters[filter];
        let tolerated = wanted.tolerations.is_none_or(|t| tolerance.tolerates(t, taints));
        let answer = tolerated
            && (wanted.terms.is_empty()
                || wanted.terms.iter().any(|(term, h)| {
                    interner.compatible(set, *term, false)
                        && (h.is_none()
                            || match host {
                                Some(name) => interner.has(*h, name),
                                None => interner.req(*h).complement,
                            })
                }));
        if !by_host {
            self.matches.insert((filter, set, taints), answer);
        }
        answer
    }
}
