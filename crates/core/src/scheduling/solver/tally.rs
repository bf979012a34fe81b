//! How many pods of each topology group are where, and what that leaves to the next pod.

use std::sync::Arc;

use fixedbitset::FixedBitSet;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::intern::Interner;
use super::topology::{Group, Kind, Topology};
use crate::scheduling::solver::ids::{GroupId, HostId, Id, KeyId, List, ReqId, SetId, ValueId};

/// Some domains.
pub(super) type Domains = SmallVec<[ValueId; 4]>;

/// How many pods of a group are where.
#[derive(Clone, Default)]
pub(super) struct Counts {
    /// By domain; for keys other than the host name.
    counts: List<ValueId, u32>,
    known: FixedBitSet,
    /// Sum of counts over all domains or hosts.
    total: u32,
    hosts: FxHashMap<HostId, u32>,
    /// Hosts with at least one.
    some: FixedBitSet,
    /// Hosts that a pod which counts itself would overfill.
    full: FixedBitSet,
    /// Hosts that are overfilled.
    over: FixedBitSet,
}

impl Counts {
    fn count(&self, domain: ValueId) -> u32 {
        self.counts.get(domain).copied().unwrap_or(0)
    }

    fn add(&mut self, domain: ValueId) {
        self.counts.grow(domain.at() + 1, 0);
        self.known.grow_and_insert(domain.at());
        self.counts[domain] += 1;
        self.total += 1;
    }

    fn add_host(&mut self, host: HostId, kind: Kind, max_skew: i64) {
        let count = self.hosts.entry(host).or_insert(0);
        *count += 1;
        self.total += 1;
        let (count, at) = (i64::from(*count), host.at());
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
        self.counts[domain] -= 1;
        self.total -= 1;
    }

    fn take_away_host(&mut self, host: HostId, max_skew: i64) {
        let Some(count) = self.hosts.get_mut(&host) else { return };
        *count -= 1;
        self.total -= 1;
        let (count, at) = (i64::from(*count), host.at());
        let shrink = |hosts: &mut FixedBitSet, still: bool| {
            if !still && at < hosts.len() {
                hosts.set(at, false);
            }
        };
        shrink(&mut self.full, count >= max_skew);
        shrink(&mut self.over, count > max_skew);
        // The sets follow the counts at once: masks are made from them without a look at the
        // counts.
        shrink(&mut self.some, count > 0);
    }
}

/// The counts of all groups.
#[derive(Default)]
pub(super) struct Tally {
    counts: List<GroupId, Counts>,
    /// What was changed since the counts were first complete, for [`Tally::undo`].
    log: Option<Vec<Change>>,
}

/// One change of the counts.
enum Change {
    /// A pod came to a domain, or one left it.
    Domain { group: GroupId, domain: ValueId, came: bool, was_known: bool },
    /// The same for a host.
    Host { group: GroupId, host: HostId, came: bool },
    /// No node is left in a domain.
    Forgot { group: GroupId, domain: ValueId },
}

/// Where a pod may go, as far as one group has a rule.
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

impl Tally {
    /// Makes room for the counts of so many groups.
    pub(super) fn grow(&mut self, groups: usize) {
        self.counts.grow(groups, Counts::default());
    }

    /// Makes a domain known, without any pod in it.
    pub(super) fn know(&mut self, id: GroupId, domain: ValueId) {
        self.counts[id].known.grow_and_insert(domain.at());
    }

    /// The domains that each group knows.
    pub(super) fn known(&self) -> List<GroupId, FixedBitSet> {
        self.counts.iter().map(|c| c.known.clone()).collect()
    }

    /// Counts a pod of the group that came, in the one domain that is left, or for anti-affinity in
    /// each; or takes that back for one that left.
    ///
    /// [Q] As upstream, a node whose domain is entirely open counts nowhere.
    pub(super) fn change(
        &mut self,
        of: &Topology,
        id: GroupId,
        set: SetId,
        host: HostId,
        interner: &Interner,
        came: bool,
    ) {
        let group = of.get(id);
        let counts = &mut self.counts[id];
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
            let was_known = counts.known.contains(domain.at());
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
        self.counts[id].known.set(domain.at(), false);
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
    pub(super) fn undo(&mut self, of: &Topology, mark: usize) {
        let Some(mut log) = self.log.take() else { return };
        // The last change first: whether a domain was known depends on those before it.
        for change in log.drain(mark.min(log.len())..).rev() {
            match change {
                Change::Domain { group, domain, came, was_known } => {
                    let counts = &mut self.counts[group];
                    if came {
                        counts.take_away(domain);
                    } else {
                        counts.add(domain);
                    }
                    counts.known.set(domain.at(), was_known);
                }
                Change::Host { group, host, came } => {
                    let group_of = of.get(group);
                    let counts = &mut self.counts[group];
                    if came {
                        counts.take_away_host(host, group_of.max_skew);
                    } else {
                        counts.add_host(host, group_of.kind, group_of.max_skew);
                    }
                }
                Change::Forgot { group, domain } => {
                    self.counts[group].known.insert(domain.at());
                }
            }
        }
        self.log = Some(log);
    }

    /// Domains that a group leaves; nothing when there is none.
    pub(super) fn domains(
        &self,
        of: &Topology,
        id: GroupId,
        question: &mut Question<'_>,
        interner: &mut Interner,
    ) -> Option<Domains> {
        let group = of.get(id);
        let counts = &self.counts[id];
        let (pod, node) = (question.pod, question.node);
        let open =
            |interner: &Interner, d: ValueId| interner.admits(pod, d) && interner.admits(node, d);
        let found: Domains = match group.kind {
            Kind::Spread => {
                // The minimum is taken over the domains that the pod itself may use, as Kubernetes
                // does.
                let least = least(group, counts, pod, interner);
                let own = i64::from(question.own);
                let usable: SmallVec<[(u32, ValueId); 8]> = counts
                    .known
                    .ones()
                    .map(ValueId::new)
                    .filter(|d| interner.admits(node, *d))
                    .map(|d| (counts.count(d), d))
                    .filter(|(n, _)| i64::from(*n) + own - least <= group.max_skew)
                    .collect();
                // Karpenter's choice: the emptiest domain, so that the next pod has room to spread
                // too.
                let fewest = usable.iter().map(|(n, _)| *n).min()?;
                let ties: Domains =
                    usable.iter().filter(|(n, _)| *n == fewest).map(|(_, d)| *d).collect();
                best(ties, question, group.key, interner)
            }
            Kind::AntiAffinity | Kind::Inverse => counts
                .known
                .ones()
                .map(ValueId::new)
                .filter(|d| counts.count(*d) == 0 && open(interner, *d))
                .collect(),
            Kind::Affinity if question.daemon => {
                let known = counts.known.ones().map(ValueId::new);
                known.filter(|d| open(interner, *d)).collect()
            }
            Kind::Affinity => {
                let with: Domains = counts
                    .known
                    .ones()
                    .map(ValueId::new)
                    .filter(|d| counts.count(*d) > 0 && open(interner, *d))
                    .collect();
                // The first of pods that must be together has nobody to join; only one that selects
                // itself may begin.
                if with.is_empty() && question.own && self.may_start(id, pod, interner) {
                    let all: Domains = counts
                        .known
                        .ones()
                        .map(ValueId::new)
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
        of: &Topology,
        id: GroupId,
        own: bool,
        pod: Option<ReqId>,
        interner: &Interner,
    ) -> Vec<ValueId> {
        let group = of.get(id);
        let counts = &self.counts[id];
        let known = counts.known.ones().map(ValueId::new);
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
        let counts = &self.counts[id];
        counts.total == 0
            || !counts
                .known
                .ones()
                .any(|d| counts.count(ValueId::new(d)) > 0 && interner.admits(pod, ValueId::new(d)))
    }

    /// Takes hosts that a group of host names rules out from a mask; `first` is the host that the
    /// mask's first bit stands for, a multiple of 64.
    pub(super) fn rule_out_hosts(
        &self,
        of: &Topology,
        id: GroupId,
        own: bool,
        names: Option<&dyn Fn(HostId) -> bool>,
        first: usize,
        mask: &mut [usize],
    ) {
        let group = of.get(id);
        let counts = &self.counts[id];
        let out = match group.kind {
            Kind::Spread if own => &counts.full,
            Kind::Spread => &counts.over,
            Kind::AntiAffinity | Kind::Inverse => &counts.some,
            Kind::Affinity => {
                let start = own
                    && (counts.total == 0
                        || names.is_some_and(|f| !counts.some.ones().any(|h| f(HostId::new(h)))));
                if !start {
                    let some = counts.some.as_slice().get(first / 64..).unwrap_or_default();
                    let (near, far) = mask.split_at_mut(some.len().min(mask.len()));
                    near.iter_mut().zip(some).for_each(|(m, s)| *m &= s);
                    // Hosts beyond the counted ones have no pod of the group.
                    far.fill(0);
                }
                return;
            }
        };
        let out = out.as_slice().get(first / 64..).unwrap_or_default();
        mask.iter_mut().zip(out).for_each(|(m, o)| *m &= !o);
    }

    /// Whether a group of host names lets a pod on a node without pods.
    pub(super) fn takes_new_host(
        &self,
        of: &Topology,
        id: GroupId,
        own: bool,
        named: bool,
    ) -> bool {
        let group = of.get(id);
        let counts = &self.counts[id];
        match group.kind {
            Kind::Spread => i64::from(own) <= group.max_skew,
            Kind::AntiAffinity | Kind::Inverse => true,
            Kind::Affinity => own && (counts.total == 0 || named),
        }
    }

    /// How many pods of a group are on a host.
    pub(super) fn on_host(&self, id: GroupId, host: HostId) -> u32 {
        self.counts[id].hosts.get(&host).copied().unwrap_or(0)
    }

    /// Domains with their counts, by name.
    pub(super) fn listed(
        &self,
        of: &Topology,
        id: GroupId,
        interner: &Interner,
    ) -> Vec<(Arc<str>, u32)> {
        let key = of.get(id).key;
        let counts = &self.counts[id];
        let mut list: Vec<(Arc<str>, u32)> = counts
            .known
            .ones()
            .map(|d| {
                let d = ValueId::new(d);
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
    for domain in counts.known.ones().map(ValueId::new) {
        if interner.admits(pod, domain) {
            domains += 1;
            least = least.min(i64::from(counts.count(domain)));
        }
    }
    // With fewer domains than minDomains, Kubernetes takes the global minimum for zero.
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
            // The name decides between equal prices, so that the outcome does not depend on the
            // order of interning.
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
