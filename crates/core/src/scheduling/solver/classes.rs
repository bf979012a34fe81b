//! Pods that ask for the same are one class: what it asks for is worked out once.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PodAffinityTerm, TopologySpreadConstraint};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::amounts::{Amounts, Resources};
use super::attach::Attachable;
use super::intern::{EMPTY, Interner};
use super::relax::{given_up, stages};
use super::selector::Selector;
use super::tolerance::Tolerance;
use super::topology::{ANY, Filter, Group, Kind, Topology};
use crate::scheduling::pod::{Constraints, PodInfo};
use crate::scheduling::resources::ResourceList;
use crate::scheduling::snapshot::Snapshot;
use crate::scheduling::solver::ids::{
    ClassId, ConstraintsId, GroupId, Interned, KindId, LabelsId, List, NamespaceId, NeedId, PodId,
    ReqId, SetId, TolerationsId,
};
use crate::scheduling::volumes::PodVolumes;

/// The rule of a topology group that holds for a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) group: GroupId,
    /// Whether the group's selector selects the pods of the class.
    pub(super) own: bool,
    /// Whether the group is about host names.
    pub(super) host: bool,
}

/// What some pods ask of a node, at one stage of relaxation.
pub(super) struct Class {
    pub(super) constraints: Arc<Constraints>,
    /// Node requirements, the heaviest preference included.
    pub(super) set: SetId,
    /// The requirement on the host name, or [`ReqId::NONE`].
    pub(super) host: ReqId,
    /// Node requirements without preferences.
    pub(super) strict: SetId,
    pub(super) strict_host: ReqId,
    pub(super) tolerations: TolerationsId,
    /// Groups that it owns, and groups of others that keep it away.
    pub(super) rules: SmallVec<[Rule; 3]>,
    /// Groups that count it.
    pub(super) counted: Arc<[GroupId]>,
    /// Inverse groups that it owns.
    pub(super) inverse: SmallVec<[GroupId; 1]>,
    /// Where its volumes can be; any one of these.
    pub(super) volumes: SmallVec<[(SetId, ReqId); 1]>,
    /// Whether some group other than of host names has a rule.
    pub(super) zonal: bool,
    /// How many of the pods' preferences are not asked for any more.
    pub(super) given_up: u32,
}

/// Pods that are treated alike: the same constraints, stage by stage, and the same requests.
pub(super) struct PodKind {
    pub(super) need: NeedId,
    pub(super) stages: SmallVec<[ClassId; 2]>,
    /// Asks for dynamic resources.
    pub(super) dynamic: bool,
}

/// All classes of a round.
#[derive(Default)]
pub(super) struct Classes {
    pub(super) classes: List<ClassId, Class>,
    pub(super) kinds: List<KindId, PodKind>,
    pub(super) needs: List<NeedId, Amounts>,
}

type Labels = BTreeMap<String, String>;

/// Groups that count pods with some labels, and inverse ones that select them.
type Selected = (Arc<[GroupId]>, Arc<[GroupId]>);
/// Some groups.
pub(super) type Groups = SmallVec<[GroupId; 4]>;

/// Groups that select pods of one namespace, by a label that all these pods have.
#[derive(Default)]
struct BySelector {
    by_landmark: FxHashMap<String, FxHashMap<String, Vec<GroupId>>>,
    without_landmark: Vec<GroupId>,
}

/// Works out classes and the topology groups that they need.
pub(super) struct Builder<'a> {
    snapshot: &'a Snapshot,
    tolerate_prefer: bool,
    namespace_index: FxHashMap<Arc<str>, NamespaceId>,
    namespace_labels: List<NamespaceId, Labels>,
    /// Stages by constraints.
    constraints: List<ConstraintsId, Vec<Arc<Constraints>>>,
    constraint_address: FxHashMap<usize, ConstraintsId>,
    constraint_index: FxHashMap<Arc<Constraints>, ConstraintsId>,
    labels: Interned<LabelsId, (NamespaceId, Arc<Labels>)>,
    label_address: FxHashMap<(NamespaceId, usize), LabelsId>,
    /// Groups that select pods with these labels: those that count, and inverse ones.
    selected: List<LabelsId, Option<Selected>>,
    lists: FxHashMap<Selected, u32>,
    /// Groups by the namespaces of the pods that they select.
    by_selector: FxHashMap<NamespaceId, BySelector>,
}

/// What distinguishes pods before groups are known.
#[derive(Clone, Copy)]
pub(super) struct Sort {
    constraints: ConstraintsId,
    namespace: NamespaceId,
    labels: LabelsId,
}

impl<'a> Builder<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, tolerate_prefer: bool) -> Self {
        Self {
            snapshot,
            tolerate_prefer,
            namespace_index: FxHashMap::default(),
            namespace_labels: List::default(),
            constraints: List::default(),
            constraint_address: FxHashMap::default(),
            constraint_index: FxHashMap::default(),
            labels: Interned::default(),
            label_address: FxHashMap::default(),
            selected: List::default(),
            lists: FxHashMap::default(),
            by_selector: FxHashMap::default(),
        }
    }

    fn namespace(&mut self, name: &Arc<str>) -> NamespaceId {
        if let Some(id) = self.namespace_index.get(name) {
            return *id;
        }
        let mut labels = self.snapshot.namespaces.get(&**name).cloned().unwrap_or_default();
        labels.entry("kubernetes.io/metadata.name".to_owned()).or_insert_with(|| name.to_string());
        let id = self.namespace_labels.push(labels);
        self.namespace_index.insert(Arc::clone(name), id);
        id
    }

    /// Notes the namespaces of the cluster, so that selectors of namespaces see them.
    pub(super) fn note_namespaces(&mut self) {
        for name in self.snapshot.namespaces.keys() {
            self.namespace(&Arc::from(name.as_str()));
        }
    }

    /// Where a pod belongs.
    pub(super) fn sort(&mut self, pod: &PodInfo) -> Sort {
        let namespace = self.namespace(&pod.key.namespace);
        let address = Arc::as_ptr(&pod.constraints) as usize;
        let constraints = match self.constraint_address.get(&address) {
            Some(id) => *id,
            None => {
                let id = match self.constraint_index.get(&pod.constraints) {
                    Some(id) => *id,
                    None => {
                        let id = self.constraints.push(stages(
                            &pod.constraints,
                            self.tolerate_prefer,
                            self.snapshot.options.respect_preferences,
                        ));
                        self.constraint_index.insert(Arc::clone(&pod.constraints), id);
                        id
                    }
                };
                self.constraint_address.insert(address, id);
                id
            }
        };
        Sort { constraints, namespace, labels: self.label_class(namespace, &pod.labels) }
    }

    fn label_class(&mut self, namespace: NamespaceId, labels: &Arc<Labels>) -> LabelsId {
        let address = (namespace, Arc::as_ptr(labels) as usize);
        if let Some(id) = self.label_address.get(&address) {
            return *id;
        }
        let id = self.labels.insert((namespace, Arc::clone(labels)));
        self.label_address.insert(address, id);
        id
    }

    fn own_labels_matter(constraints: &Constraints) -> bool {
        constraints.spread.iter().any(|s| s.match_label_keys.iter().flatten().next().is_some())
    }

    /// Namespaces that an affinity term is about, sorted.
    fn namespaces_of(&mut self, term: &PodAffinityTerm, own: NamespaceId) -> Arc<[NamespaceId]> {
        let listed = term.namespaces.as_deref().unwrap_or_default();
        let mut ids: Vec<NamespaceId> = Vec::new();
        if listed.is_empty() && term.namespace_selector.is_none() {
            ids.push(own);
        }
        for name in listed {
            ids.push(self.namespace(&Arc::from(name.as_str())));
        }
        if term.namespace_selector.is_some() {
            let selector = Selector::new(term.namespace_selector.as_ref());
            ids.extend(
                self.namespace_labels
                    .pairs()
                    .filter(|(_, labels)| selector.selects(labels))
                    .map(|(id, _)| id),
            );
        }
        ids.sort_unstable();
        ids.dedup();
        ids.into()
    }

    fn affinity_group(
        &mut self,
        term: &PodAffinityTerm,
        kind: Kind,
        own: NamespaceId,
        interner: &mut Interner,
    ) -> Group {
        Group {
            kind,
            key: interner.key(&term.topology_key),
            namespaces: self.namespaces_of(term, own),
            selector: Selector::new(term.label_selector.as_ref()),
            max_skew: i64::from(i32::MAX),
            min_domains: None,
            filter: ANY,
        }
    }

    /// The group of a spread constraint, given what the pod asks for in full and at this stage.
    ///
    /// Nodes count by every term of the node affinity. [Q] Upstream counts them by the terms that
    /// are left at the stage, so that a pod may go where Kubernetes' scheduler will not put it.
    fn spread_group(
        constraint: &TopologySpreadConstraint,
        (full, of): (&Constraints, &Constraints),
        namespace: NamespaceId,
        labels: &Labels,
        work: &mut Work<'_>,
    ) -> Group {
        let honour = |policy: &Option<String>, default: bool| match policy.as_deref() {
            Some("Honor") => true,
            Some("Ignore") => false,
            _ => default,
        };
        let mut filter = Filter::default();
        if honour(&constraint.node_affinity_policy, true) {
            filter.terms = full
                .alternatives()
                .iter()
                .map(|term| work.interner.intern_once(term))
                .filter(|term| *term != (EMPTY, ReqId::NONE))
                .collect();
            // An alternative without requirements lets every node pass.
            if filter.terms.len() < full.required_terms.len().max(1) {
                filter.terms.clear();
            }
        }
        if honour(&constraint.node_taints_policy, false) {
            filter.tolerations = Some(work.tolerance.tolerations(&of.tolerations));
        }
        let keys = constraint.match_label_keys.as_deref().unwrap_or_default();
        Group {
            kind: Kind::Spread,
            key: work.interner.key(&constraint.topology_key),
            namespaces: Arc::new([namespace]),
            selector: Selector::new(constraint.label_selector.as_ref()).with_own(keys, labels),
            max_skew: i64::from(constraint.max_skew),
            min_domains: constraint.min_domains.map(i64::from),
            filter: work.topology.filter(filter),
        }
    }

    /// Groups that pods of a sort own at one stage, inverse ones apart.
    fn owned(
        &mut self,
        sort: Sort,
        constraints: &Constraints,
        work: &mut Work<'_>,
    ) -> (SmallVec<[GroupId; 3]>, SmallVec<[GroupId; 1]>) {
        let respect = self.snapshot.options.respect_preferences;
        let mut owned = SmallVec::new();
        let mut inverse = SmallVec::new();
        let labels = Arc::clone(&self.labels[sort.labels].1);
        let full = Arc::clone(&self.constraints[sort.constraints][0]);
        for constraint in &constraints.spread {
            if respect || constraint.when_unsatisfiable == "DoNotSchedule" {
                let of = (&*full, constraints);
                let group = Self::spread_group(constraint, of, sort.namespace, &labels, work);
                owned.push(work.topology.group(group));
            }
        }
        let preferred = |list: &'_ [(i32, PodAffinityTerm)]| -> Vec<PodAffinityTerm> {
            list.iter().filter(|_| respect).map(|(_, t)| t.clone()).collect()
        };
        let own = sort.namespace;
        for term in constraints.affinity.iter().chain(&preferred(&constraints.preferred_affinity)) {
            let group = self.affinity_group(term, Kind::Affinity, own, work.interner);
            owned.push(work.topology.group(group));
        }
        for term in &constraints.anti_affinity {
            let group = self.affinity_group(term, Kind::Inverse, own, work.interner);
            inverse.push(work.topology.group(group));
        }
        let anti = &constraints.preferred_anti_affinity;
        for term in constraints.anti_affinity.iter().chain(&preferred(anti)) {
            let group = self.affinity_group(term, Kind::AntiAffinity, own, work.interner);
            owned.push(work.topology.group(group));
        }
        owned.sort_unstable();
        owned.dedup();
        (owned, inverse)
    }

    /// What the groups of a sort depend on: pods for which this is equal own the same groups.
    pub(super) fn group_key(&self, sort: Sort) -> (ConstraintsId, NamespaceId, LabelsId) {
        let stages = &self.constraints[sort.constraints];
        let own_labels = stages.iter().any(|c| Self::own_labels_matter(c));
        let labels = if own_labels { sort.labels } else { LabelsId::NONE };
        (sort.constraints, sort.namespace, labels)
    }

    /// Makes the groups that pods of a sort need at any stage.
    pub(super) fn make_groups(&mut self, sort: Sort, work: &mut Work<'_>) {
        for stage in self.constraints[sort.constraints].clone() {
            self.owned(sort, &stage, work);
        }
    }

    /// Makes the inverse groups of a pod that is on a node; returns them.
    pub(super) fn inverse_groups(
        &mut self,
        pod: &PodInfo,
        work: &mut Work<'_>,
    ) -> SmallVec<[GroupId; 1]> {
        let own = self.namespace(&pod.key.namespace);
        pod.constraints
            .anti_affinity
            .iter()
            .map(|term| {
                let group = self.affinity_group(term, Kind::Inverse, own, work.interner);
                work.topology.group(group)
            })
            .collect()
    }

    /// Sorts groups by what they select; after this no group may be added.
    pub(super) fn index_groups(&mut self, topology: &Topology) {
        for (id, group) in topology.groups.ids().zip(topology.groups.iter()) {
            for namespace in group.namespaces.iter() {
                let index = self.by_selector.entry(*namespace).or_default();
                let list = match group.selector.landmark() {
                    Some((key, value)) => {
                        let values = index.by_landmark.entry(key.to_owned()).or_default();
                        values.entry(value.to_owned()).or_default()
                    }
                    None => &mut index.without_landmark,
                };
                list.push(id);
            }
        }
    }

    /// Groups that select pods of a labels' class: those that count them, and inverse ones.
    fn selected(&mut self, labels: LabelsId, topology: &Topology) -> Selected {
        self.selected.grow(self.labels.len(), None);
        if let Some(known) = &self.selected[labels] {
            return known.clone();
        }
        let (namespace, content) = self.labels[labels].clone();
        let (counted, inverse) = self.select(namespace, &content, topology);
        let lists: Selected = (counted[..].into(), inverse[..].into());
        self.selected[labels] = Some(lists.clone());
        lists
    }

    /// Groups that count a pod which is on a node.
    pub(super) fn counted_by(&mut self, pod: &PodInfo, topology: &Topology) -> Groups {
        let namespace = self.namespace(&pod.key.namespace);
        self.select(namespace, &pod.labels, topology).0
    }

    /// Groups that select labels: those that count pods with them, and inverse ones.
    fn select(
        &self,
        namespace: NamespaceId,
        labels: &Labels,
        topology: &Topology,
    ) -> (Groups, Groups) {
        let mut found = Groups::new();
        if let Some(index) = self.by_selector.get(&namespace) {
            found.extend_from_slice(&index.without_landmark);
            if !index.by_landmark.is_empty() {
                for (key, value) in labels {
                    let with_key = index.by_landmark.get(key.as_str());
                    let with_value = with_key.and_then(|values| values.get(value.as_str()));
                    found.extend(with_value.into_iter().flatten().copied());
                }
            }
        }
        found.retain(|id| topology.get(*id).selector.selects(labels));
        found.sort_unstable();
        found.into_iter().partition(|id| topology.get(*id).kind != Kind::Inverse)
    }

    fn list_id(&mut self, lists: &Selected) -> u32 {
        let next = self.lists.len() as u32;
        *self.lists.entry(lists.clone()).or_insert(next)
    }
}

/// What building classes writes to.
pub(super) struct Work<'w> {
    pub(super) interner: &'w mut Interner,
    pub(super) tolerance: &'w mut Tolerance,
    pub(super) topology: &'w mut Topology,
    pub(super) resources: &'w Resources,
    pub(super) attachable: &'w Attachable,
}

/// What the classes of a kind depend on: constraints, namespace, what selects the pods, and where
/// their volumes are.
type ClassKey = (ConstraintsId, NamespaceId, Selecting, u32);
type KindKey = (ClassKey, NeedId, bool, Option<PodId>);

/// What decides which groups select a pod.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Selecting {
    /// The lists of groups.
    Lists(u32),
    /// The labels themselves, where the groups that pods own depend on these.
    Labels(LabelsId),
}

/// Finds classes that were made before.
#[derive(Default)]
pub(super) struct ClassIndex {
    kinds: FxHashMap<KindKey, KindId>,
    classes: FxHashMap<ClassKey, SmallVec<[ClassId; 2]>>,
    needs: FxHashMap<Amounts, NeedId>,
    volumes: FxHashMap<Vec<(SetId, ReqId)>, u32>,
}

impl Classes {
    /// The kind of a pod; `own` sets those apart that are like no other.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the one question")]
    pub(super) fn kind_of(
        &mut self,
        pod: &PodInfo,
        sort: Sort,
        volumes: Option<&PodVolumes>,
        own: Option<PodId>,
        index: &mut ClassIndex,
        builder: &mut Builder<'_>,
        work: &mut Work<'_>,
    ) -> KindId {
        let mut amounts = work.resources.vector(&pod.requests);
        if volumes.is_some_and(|v| !v.attached.is_empty()) {
            let mut of_volumes = ResourceList::new();
            work.attachable.add_volumes(volumes, &mut of_volumes);
            work.resources.add_to(&mut amounts, &of_volumes, 1);
        }
        let need = match index.needs.get(&amounts) {
            Some(id) => *id,
            None => {
                let id = self.needs.push(amounts.clone());
                index.needs.insert(amounts, id);
                id
            }
        };
        let places: Vec<(SetId, ReqId)> = volumes
            .iter()
            .flat_map(|v| &v.alternatives)
            .map(|r| work.interner.intern_all(r))
            .collect();
        let next = index.volumes.len() as u32;
        let place = *index.volumes.entry(places.clone()).or_insert(next);
        let lists = builder.selected(sort.labels, work.topology);
        let list = builder.list_id(&lists);
        let stages = &builder.constraints[sort.constraints];
        let own_labels = stages.iter().any(|c| Builder::own_labels_matter(c));
        let selected =
            if own_labels { Selecting::Labels(sort.labels) } else { Selecting::Lists(list) };
        let class_key = (sort.constraints, sort.namespace, selected, place);
        let kind_key = (class_key, need, pod.dynamic_resources, own);
        if let Some(id) = index.kinds.get(&kind_key) {
            return *id;
        }
        let stages = match index.classes.get(&class_key) {
            Some(stages) => stages.clone(),
            None => {
                let stages = self.add_classes(sort, &lists, &places, builder, work);
                index.classes.insert(class_key, stages.clone());
                stages
            }
        };
        let id = self.kinds.push(PodKind { need, stages, dynamic: pod.dynamic_resources });
        index.kinds.insert(kind_key, id);
        id
    }

    fn add_classes(
        &mut self,
        sort: Sort,
        (counted, keep_away): &(Arc<[GroupId]>, Arc<[GroupId]>),
        volumes: &[(SetId, ReqId)],
        builder: &mut Builder<'_>,
        work: &mut Work<'_>,
    ) -> SmallVec<[ClassId; 2]> {
        let respect = builder.snapshot.options.respect_preferences;
        let mut ids = SmallVec::new();
        let stages = builder.constraints[sort.constraints].clone();
        for constraints in stages.clone() {
            let (owned, inverse) = builder.owned(sort, &constraints, work);
            let hostname = work.interner.hostname;
            let rules: SmallVec<[Rule; 3]> = owned
                .iter()
                .map(|group| (*group, counted.binary_search(group).is_ok()))
                .chain(keep_away.iter().map(|group| (*group, true)))
                .map(|(group, own)| {
                    let host = work.topology.get(group).key == hostname;
                    Rule { group, own, host }
                })
                .collect();
            let (set, host) = work.interner.intern_once(&constraints.requirements(respect));
            let (strict, strict_host) =
                work.interner.intern_once(&constraints.strict_requirements());
            ids.push(self.classes.push(Class {
                set,
                host,
                strict,
                strict_host,
                tolerations: work.tolerance.tolerations(&constraints.tolerations),
                zonal: rules.iter().any(|s| !s.host),
                rules,
                counted: Arc::clone(counted),
                inverse,
                volumes: volumes.iter().copied().collect(),
                given_up: given_up(&stages[0], &constraints, respect),
                constraints,
            }));
        }
        ids
    }
}
