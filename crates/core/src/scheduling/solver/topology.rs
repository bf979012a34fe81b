//! Topology groups: which domains a pod may go to, given where others are.

use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::{FxBuildHasher, FxHashMap};
use smallvec::SmallVec;

use super::daemons::Daemons;
use super::intern::{Interner, KeyId, NONE, ReqId, SetId, ValueId};
use super::selector::Selector;
use super::tolerance::{TaintsId, Tolerance, TolerationsId};

/// Index of a group.
pub(super) type GroupId = u32;
/// Index of a node filter; 0 lets every node pass.
pub(super) type FilterId = u32;
/// Some domains.
pub(super) type Domains = SmallVec<[ValueId; 4]>;

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
    pub(super) namespaces: Arc<[u32]>,
    pub(super) selector: Selector,
    pub(super) max_skew: i64,
    pub(super) min_domains: Option<i64>,
    pub(super) filter: FilterId,
}

impl Group {
    /// Domains in which a pod on a node with these requirements counts.
    fn counted_in<'a>(&self, set: SetId, interner: &'a Interner) -> &'a [ValueId] {
        match interner.get(set, self.key).map(|r| interner.req(r)) {
            Some(req) if !req.complement && (self.kind.anti() || req.values.len() == 1) => {
                &req.values
            }
            _ => &[],
        }
    }
}

/// How many pods of a group are where.
#[derive(Clone, Default)]
pub(super) struct Counts {
    /// By domain; for keys other than the host name.
    counts: Vec<u32>,
    known: FixedBitSet,
    /// Sum of counts over all domains or hosts.
    total: u32,
    hosts: FxHashMap<u32, u32>,
    /// Hosts with at least one.
    some: FixedBitSet,
    /// Hosts that a pod which counts itself would overfill.
    full: FixedBitSet,
    /// Hosts that are overfilled.
    over: FixedBitSet,
}

impl Counts {
    fn count(&self, domain: ValueId) -> u32 {
        self.counts.get(domain as usize).copied().unwrap_or(0)
    }

    fn add(&mut self, domain: ValueId) {
        let at = domain as usize;
        if self.counts.len() <= at {
            self.counts.resize(at + 1, 0);
        }
        self.known.grow_and_insert(at);
        self.counts[at] += 1;
        self.total += 1;
    }

    fn add_host(&mut self, host: u32, kind: Kind, max_skew: i64) {
        let count = self.hosts.entry(host).or_insert(0);
        *count += 1;
        self.total += 1;
        let (count, at) = (i64::from(*count), host as usize);
        if kind == Kind::Spread {
            if count >= max_skew {
                self.full.grow_and_insert(at);
            }
            if count > max_skew {
                self.over.grow_and_insert(at);
            }
        }
        self.some.grow_and_insert(at);
    }

    fn take_away(&mut self, domain: ValueId) {
        self.counts[domain as usize] -= 1;
        self.total -= 1;
    }

    fn take_away_host(&mut self, host: u32, max_skew: i64) {
        let Some(count) = self.hosts.get_mut(&host) else { return };
        *count -= 1;
        self.total -= 1;
        let (count, at) = (i64::from(*count), host as usize);
        let shrink = |hosts: &mut FixedBitSet, still: bool| {
            if !still && at < hosts.len() {
                hosts.set(at, false);
            }
        };
        shrink(&mut self.full, count >= max_skew);
        shrink(&mut self.over, count > max_skew);
        shrink(&mut self.some, count > 0);
    }
}

/// All topology groups, and their counts in this round.
#[derive(Default)]
pub(super) struct Topology {
    pub(super) groups: indexmap::IndexSet<Group, FxBuildHasher>,
    pub(super) counts: Vec<Counts>,
    pub(super) filters: indexmap::IndexSet<Filter, FxBuildHasher>,
    matches: FxHashMap<(FilterId, SetId, TaintsId), bool>,
    /// DaemonSets whose pods a group of affinity or anti-affinity counts, or that own an inverse
    /// one; by group, empty where there is none at all.
    daemons: Vec<Daemons>,
    /// What was changed since the counts were first complete, for [`Topology::undo`].
    log: Option<Vec<Change>>,
}

/// One change of the counts.
enum Change {
    /// A pod came to a domain, or one left it.
    Domain { group: GroupId, domain: ValueId, came: bool, was_known: bool },
    /// The same for a host.
    Host { group: GroupId, host: u32, came: bool },
    /// No node is left in a domain.
    Forgot { group: GroupId, domain: ValueId },
}

/// Where a pod may go, as far as one group has a say.
pub(super) struct Question<'a> {
    /// The pod's strict requirement on the key.
    pub(super) pod: Option<ReqId>,
    /// The node's requirement on the key.
    pub(super) node: Option<ReqId>,
    /// Whether the group's selector selects the pod itself.
    pub(super) own: bool,
    /// Whether a pod of a DaemonSet that the group counts comes with the node.
    pub(super) daemon: bool,
    /// Orders domains that are equally good: the lower, the better.
    pub(super) rank: &'a mut dyn FnMut(&mut Interner, ValueId) -> f64,
}

impl Topology {
    /// The number of a filter.
    pub(super) fn filter(&mut self, filter: Filter) -> FilterId {
        if self.filters.is_empty() {
            self.filters.insert(Filter::default());
        }
        self.filters.insert_full(filter).0 as FilterId
    }

    /// The number of a group.
    pub(super) fn group(&mut self, group: Group) -> GroupId {
        self.groups.insert_full(group).0 as GroupId
    }

    /// The group behind a number.
    pub(super) fn get(&self, id: GroupId) -> &Group {
        &self.groups[id as usize]
    }

    /// Notes the DaemonSets of a group.
    pub(super) fn add_daemon(&mut self, id: GroupId, daemon: u32) {
        self.daemons.resize(self.groups.len(), Daemons::new());
        self.daemons[id as usize].push(daemon);
    }

    /// The DaemonSets of a group.
    pub(super) fn daemons(&self, id: GroupId) -> &[u32] {
        self.daemons.get(id as usize).map_or(&[], |d| d.as_slice())
    }

    /// Whether pods of DaemonSets matter to any group.
    pub(super) fn counts_daemons(&self) -> bool {
        !self.daemons.is_empty()
    }

    /// Whether topology has a say at all.
    pub(super) fn is_used(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Makes a domain known, without any pod in it.
    pub(super) fn know(&mut self, id: GroupId, domain: ValueId) {
        self.counts[id as usize].known.grow_and_insert(domain as usize);
    }

    /// The domains that each group knows.
    pub(super) fn known(&self) -> Vec<FixedBitSet> {
        self.counts.iter().map(|c| c.known.clone()).collect()
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
        if filter == 0 {
            return true;
        }
        let by_host = self.filters[filter as usize].terms.iter().any(|(_, h)| *h != NONE);
        if !by_host && let Some(known) = self.matches.get(&(filter, set, taints)) {
            return *known;
        }
        let wanted = &self.filters[filter as usize];
        let tolerated = wanted.tolerations.is_none_or(|t| tolerance.tolerates(t, taints));
        let answer = tolerated
            && (wanted.terms.is_empty()
                || wanted.terms.iter().any(|(term, h)| {
                    interner.compatible(set, *term, false)
                        && (*h == NONE
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

    /// Counts a pod of the group: in the one domain that is left, or for anti-affinity in each.
    ///
    /// [Q] As upstream, a node whose domain is entirely open counts nowhere.
    pub(super) fn record(&mut self, id: GroupId, set: SetId, host: u32, interner: &Interner) {
        self.change(id, set, host, interner, true);
    }

    /// Takes back what [`Topology::record`] did with the same arguments.
    pub(super) fn withdraw(&mut self, id: GroupId, set: SetId, host: u32, interner: &Interner) {
        self.change(id, set, host, interner, false);
    }

    /// One of both.
    pub(super) fn change(
        &mut self,
        id: GroupId,
        set: SetId,
        host: u32,
        interner: &Interner,
        came: bool,
    ) {
        let group = &self.groups[id as usize];
        let counts = &mut self.counts[id as usize];
        if group.key == interner.hostname {
            if came {
                counts.add_host(host, group.kind, group.max_skew);
            } else {
                counts.take_away_host(host, group.max_skew);
            }
            if let Some(log) = &mut self.log {
                log.push(Change::Host { group: id, host, came });
            }
            return;
        }
        for domain in group.counted_in(set, interner) {
            let was_known = counts.known.contains(*domain as usize);
            if came {
                counts.add(*domain);
            } else {
                counts.take_away(*domain);
            }
            if let Some(log) = &mut self.log {
                log.push(Change::Domain { group: id, domain: *domain, came, was_known });
            }
        }
    }

    /// Forgets a domain in which no node is left.
    pub(super) fn forget(&mut self, id: GroupId, domain: ValueId) {
        self.counts[id as usize].known.set(domain as usize, false);
        if let Some(log) = &mut self.log {
            log.push(Change::Forgot { group: id, domain });
        }
    }

    /// Notes changes from here on.
    pub(super) fn start_log(&mut self) {
        self.log = Some(Vec::new());
    }

    /// How far the log has come.
    pub(super) fn mark(&self) -> usize {
        self.log.as_ref().map_or(0, Vec::len)
    }

    /// Takes back every change since a mark.
    pub(super) fn undo(&mut self, mark: usize) {
        let Some(mut log) = self.log.take() else { return };
        for change in log.drain(mark.min(log.len())..).rev() {
            match change {
                Change::Domain { group, domain, came, was_known } => {
                    let counts = &mut self.counts[group as usize];
                    if came {
                        counts.take_away(domain);
                    } else {
                        counts.add(domain);
                    }
                    counts.known.set(domain as usize, was_known);
                }
                Change::Host { group, host, came } => {
                    let of = &self.groups[group as usize];
                    let counts = &mut self.counts[group as usize];
                    if came {
                        counts.take_away_host(host, of.max_skew);
                    } else {
                        counts.add_host(host, of.kind, of.max_skew);
                    }
                }
                Change::Forgot { group, domain } => {
                    self.counts[group as usize].known.insert(domain as usize);
                }
            }
        }
        self.log = Some(log);
    }

    /// Domains that a group leaves; nothing when there is none.
    pub(super) fn domains(
        &self,
        id: GroupId,
        question: &mut Question<'_>,
        interner: &mut Interner,
    ) -> Option<Domains> {
        let group = self.get(id);
        let counts = &self.counts[id as usize];
        let (pod, node) = (question.pod, question.node);
        let open =
            |interner: &Interner, d: ValueId| interner.admits(pod, d) && interner.admits(node, d);
        let found: Domains = match group.kind {
            Kind::Spread => {
                let least = least(group, counts, pod, interner);
                let own = i64::from(question.own);
                let usable: SmallVec<[(u32, ValueId); 8]> = counts
                    .known
                    .ones()
                    .map(|d| d as ValueId)
                    .filter(|d| interner.admits(node, *d))
                    .map(|d| (counts.count(d), d))
                    .filter(|(n, _)| i64::from(*n) + own - least <= group.max_skew)
                    .collect();
                let fewest = usable.iter().map(|(n, _)| *n).min()?;
                let ties: Domains =
                    usable.iter().filter(|(n, _)| *n == fewest).map(|(_, d)| *d).collect();
                best(ties, question, group.key, interner)
            }
            Kind::AntiAffinity | Kind::Inverse => counts
                .known
                .ones()
                .map(|d| d as ValueId)
                .filter(|d| counts.count(*d) == 0 && open(interner, *d))
                .collect(),
            Kind::Affinity if question.daemon => {
                let known = counts.known.ones().map(|d| d as ValueId);
                known.filter(|d| open(interner, *d)).collect()
            }
            Kind::Affinity => {
                let with: Domains = counts
                    .known
                    .ones()
                    .map(|d| d as ValueId)
                    .filter(|d| counts.count(*d) > 0 && open(interner, *d))
                    .collect();
                if with.is_empty() && question.own && self.may_start(id, pod, interner) {
                    let all: Domains = counts
                        .known
                        .ones()
                        .map(|d| d as ValueId)
                        .filter(|d| open(interner, *d))
                        .collect();
                    best(all, question, group.key, interner)
                } else {
                    with
                }
            }
        };
        (!found.is_empty()).then_some(found)
    }

    /// All domains that a group would allow a pod before its candidates are looked at.
    pub(super) fn allowed(
        &self,
        id: GroupId,
        own: bool,
        pod: Option<ReqId>,
        interner: &Interner,
    ) -> Vec<ValueId> {
        let group = self.get(id);
        let counts = &self.counts[id as usize];
        let known = counts.known.ones().map(|d| d as ValueId);
        let open = known.filter(|d| interner.admits(pod, *d));
        match group.kind {
            Kind::Spread => {
                let least = least(group, counts, pod, interner) - i64::from(own);
                open.filter(|d| i64::from(counts.count(*d)) - least <= group.max_skew).collect()
            }
            Kind::AntiAffinity | Kind::Inverse => open.filter(|d| counts.count(*d) == 0).collect(),
            Kind::Affinity if own && self.may_start(id, pod, interner) => open.collect(),
            Kind::Affinity => open.filter(|d| counts.count(*d) > 0).collect(),
        }
    }

    /// Whether a pod that its own affinity selects may be the first of its domain.
    fn may_start(&self, id: GroupId, pod: Option<ReqId>, interner: &Interner) -> bool {
        let counts = &self.counts[id as usize];
        counts.total == 0
            || !counts
                .known
                .ones()
                .any(|d| counts.count(d as ValueId) > 0 && interner.admits(pod, d as ValueId))
    }

    /// Takes hosts that a group of host names rules out from a mask; `first` is the host that the
    /// mask's first bit stands for, a multiple of 64.
    pub(super) fn rule_out_hosts(
        &self,
        id: GroupId,
        own: bool,
        names: Option<&dyn Fn(u32) -> bool>,
        first: usize,
        mask: &mut [usize],
    ) {
        let group = self.get(id);
        let counts = &self.counts[id as usize];
        let out = match group.kind {
            Kind::Spread if own => &counts.full,
            Kind::Spread => &counts.over,
            Kind::AntiAffinity | Kind::Inverse => &counts.some,
            Kind::Affinity => {
                let start = own
                    && (counts.total == 0
                        || names.is_some_and(|f| !counts.some.ones().any(|h| f(h as u32))));
                if !start {
                    let some = counts.some.as_slice().get(first / 64..).unwrap_or_default();
                    let (near, far) = mask.split_at_mut(some.len().min(mask.len()));
                    near.iter_mut().zip(some).for_each(|(m, s)| *m &= s);
                    far.fill(0);
                }
                return;
            }
        };
        let out = out.as_slice().get(first / 64..).unwrap_or_default();
        mask.iter_mut().zip(out).for_each(|(m, o)| *m &= !o);
    }

    /// Whether a group of host names lets a pod on a node without pods.
    pub(super) fn takes_new_host(&self, id: GroupId, own: bool, named: bool) -> bool {
        let group = self.get(id);
        let counts = &self.counts[id as usize];
        match group.kind {
            Kind::Spread => i64::from(own) <= group.max_skew,
            Kind::AntiAffinity | Kind::Inverse => true,
            Kind::Affinity => own && (counts.total == 0 || named),
        }
    }

    /// How many pods of a group are on a host.
    pub(super) fn on_host(&self, id: GroupId, host: u32) -> u32 {
        self.counts[id as usize].hosts.get(&host).copied().unwrap_or(0)
    }

    /// Domains with their counts, by name.
    pub(super) fn listed(&self, id: GroupId, interner: &Interner) -> Vec<(Arc<str>, u32)> {
        let key = self.get(id).key;
        let counts = &self.counts[id as usize];
        let mut list: Vec<(Arc<str>, u32)> = counts
            .known
            .ones()
            .map(|d| {
                let d = d as ValueId;
                (Arc::clone(interner.value_name(key, d)), counts.count(d))
            })
            .collect();
        list.sort_unstable();
        list
    }
}

/// The lowest count among the domains that the pod itself allows.
fn least(group: &Group, counts: &Counts, pod: Option<ReqId>, interner: &Interner) -> i64 {
    let (mut least, mut domains) = (i64::from(i32::MAX), 0);
    for domain in counts.known.ones().map(|d| d as ValueId) {
        if interner.admits(pod, domain) {
            domains += 1;
            least = least.min(i64::from(counts.count(domain)));
        }
    }
    if group.min_domains.is_some_and(|wanted| domains < wanted) { 0 } else { least }
}

/// The one domain to take among equally good ones.
fn best(
    mut ties: Domains,
    question: &mut Question<'_>,
    key: KeyId,
    interner: &mut Interner,
) -> Domains {
    if ties.len() > 1 {
        let mut chosen = (f64::INFINITY, ties[0]);
        for (index, domain) in ties.iter().copied().enumerate() {
            let rank = (question.rank)(interner, domain);
            let earlier = || interner.value_name(key, domain) < interner.value_name(key, chosen.1);
            if index == 0 || rank < chosen.0 || (rank == chosen.0 && earlier()) {
                chosen = (rank, domain);
            }
        }
        ties.clear();
        ties.push(chosen.1);
    }
    ties
}
