//! Why pods were left over. Nothing of this is worked out for pods that found a place.
//!
//! A pod that is left over was tried once more after the last placement, so that its reasons follow
//! from the final state.

use fixedbitset::FixedBitSet;
use rustc_hash::FxHashMap;

use super::classes::Rule;
use super::prepare::serves;
use super::round::{Round, merge_class};
use super::stock::{Template, min_values_text};
use super::tally::Question;
use crate::api::labels;
use crate::scheduling::pod::PodKey;
use crate::scheduling::requirements::{Allow, Requirement, Requirements};
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::results::{FilterError, PodError, Reason};
use crate::scheduling::solver::ids::{
    ClassId, GroupId, HostId, Id, KindId, MaskId, NeedId, PodId, ReqId, SetId, ShapeId, TemplateId,
    ValueId,
};
use crate::scheduling::taints::tolerate_all;

/// The message for reserved capacity that is taken.
const TAKEN: &str = "one or more instance types with compatible reserved offerings are available, but could not be reserved";
/// Requests from which on a missing `m` is likely.
const ABSURD_CPU_MILLI: i64 = 1_000_000 * 1000;
/// Domains that a topology message lists.
const LISTED_DOMAINS: usize = 25;

impl Round<'_, '_> {
    /// Each pod that is left over, with its reasons.
    pub(super) fn explain(&mut self) -> Vec<(PodKey, PodError)> {
        let mut known: FxHashMap<KindId, PodError> = FxHashMap::default();
        let failed = std::mem::take(&mut self.failed);
        let mut errors = Vec::with_capacity(failed.len());
        for pod in failed {
            let waiting = &self.world.waiting[pod];
            let (key, kind) = (waiting.pod.key.clone(), waiting.kind);
            let error = match known.get(&kind) {
                Some(error) => error.clone(),
                None => {
                    let error = self.explain_kind(pod, kind);
                    known.insert(kind, error.clone());
                    error
                }
            };
            errors.push((key, error));
        }
        errors
    }

    fn explain_kind(&mut self, pod: PodId, kind: KindId) -> PodError {
        let of = &self.world.classes.kinds[kind];
        if of.dynamic && self.world.snapshot.options.ignore_dynamic_resources {
            return PodError::DynamicResources;
        }
        if let Some(error) = self.unresolved(pod) {
            return PodError::Claims(error.to_string());
        }
        let of = &self.world.classes.kinds[kind];
        if self.world.stock.templates.is_empty() {
            let any = self.world.snapshot.node_pools.iter().any(serves);
            return if any { PodError::NoTemplates } else { PodError::NoPools };
        }
        let (need, stages) = (of.need, of.stages.clone());
        let Some(last) = stages.last().copied() else { return PodError::NoTemplates };
        for class in stages {
            let reasons = self.reasons(pod, class, need);
            if let Some((_, Reason::Reserved(text))) =
                reasons.iter().find(|(_, r)| matches!(r, Reason::Reserved(_)))
            {
                return PodError::Reserved(text);
            }
            if class == last {
                return PodError::Pools(reasons);
            }
        }
        PodError::NoTemplates
    }

    fn reasons(&mut self, pod: PodId, class: ClassId, need: NeedId) -> Vec<(String, Reason)> {
        let mut reasons = Vec::new();
        for template in self.world.stock.templates.ids() {
            let name = self.world.stock.templates[template].name.to_string();
            let reason = self.reason(pod, template, class, need);
            let stop = matches!(reason, Reason::Reserved(_));
            reasons.push((name, reason));
            if stop {
                break;
            }
        }
        reasons
    }

    /// What a template has against a pod.
    fn reason(&mut self, pod: PodId, template: TemplateId, class: ClassId, need: NeedId) -> Reason {
        let name = self.world.stock.templates[template].name.to_string();
        if self.world.plan.limit(template).is_some_and(Template::node_limit_reached) {
            return Reason::NodeLimit(name);
        }
        let Some(mask) = self.limit_mask(template) else { return Reason::Limits(name) };
        let mould = &self.world.stock.templates[template];
        let wanted = &self.world.classes.classes[class];
        if let Err(error) = tolerate_all(&mould.taints, &wanted.constraints.tolerations) {
            return Reason::Taint(error);
        }
        let set = mould.set;
        let asked =
            wanted.constraints.requirements(self.world.snapshot.options.respect_preferences);
        let allow = Allow::WellKnownAnd(&self.world.snapshot.well_known);
        let mut own = self.world.interner.requirements(set);
        let host = format!("hostname-placeholder-{:04}", self.world.plan.claims.len() + 1);
        own.add(Requirement::is(labels::HOSTNAME, &host));
        if let Err(error) = own.compatible(&asked, allow) {
            return Reason::Requirements(error);
        }
        let Some(base) = merge_class(self.world, class, template, set) else {
            return Reason::Resources;
        };
        let volumes = self.world.classes.classes[class].volumes.clone();
        if volumes.is_empty() {
            return self.reason_of_set(pod, template, mask, base, class, need, &host);
        }
        let alternatives: Vec<Requirements> = self
            .world
            .snapshot
            .pod_volumes
            .get(&self.world.waiting[pod].pod.key)
            .map(|v| v.alternatives.clone())
            .unwrap_or_default();
        let mut reason = Reason::Resources;
        for ((place, _), asked) in volumes.iter().zip(&alternatives) {
            let mut with = self.world.interner.requirements(base);
            with.add(Requirement::is(labels::HOSTNAME, &host));
            let allow = Allow::WellKnownAnd(&self.world.snapshot.well_known);
            reason = match with.compatible(asked, allow) {
                Err(error) => Reason::Volumes(error),
                Ok(()) => {
                    let set = self.world.interner.merge(base, *place);
                    self.reason_of_set(pod, template, mask, set, class, need, &host)
                }
            };
        }
        reason
    }

    #[expect(clippy::too_many_arguments, reason = "each is a part of the one question")]
    fn reason_of_set(
        &mut self,
        pod: PodId,
        template: TemplateId,
        mask: MaskId,
        set: SetId,
        class: ClassId,
        need: NeedId,
        host: &str,
    ) -> Reason {
        let (whole, mut set, mut mask) = (mask, set, mask);
        if self.has_device_claims(pod) {
            match self.device_reason(pod, template, mask, set) {
                Ok(left) => (set, mask) = left,
                Err(error) => return Reason::Devices(error.to_string()),
            }
        }
        if let Some(text) = self.topology_reason(template, set, class, host) {
            return Reason::Topology(text);
        }
        let before = set;
        let zonal = self.world.classes.classes[class].zonal;
        let narrowed =
            if zonal { self.zones(class, set, Some((template, mask))) } else { Some(set) };
        let Some(set) = narrowed else {
            return Reason::Topology(self.exclusion(class, set));
        };
        let ports = self.world.classes.classes[class].constraints.host_ports.clone();
        let narrowed_by_devices = mask != whole;
        let mask = self.world.stock.mask_ports(template, mask, &ports);
        let shape = self.world.stock.shape(template, set, mask, &mut self.world.interner);
        let amounts = self.world.classes.needs[need].clone();
        let rows = self.world.stock.rows_for(shape, &amounts);
        if rows.is_clear() && set != before && self.zonal_rules(class).count() > 1 {
            let shape = self.world.stock.shape(template, before, mask, &mut self.world.interner);
            if !self.world.stock.rows_for(shape, &amounts).is_clear() {
                return Reason::Topology(self.exclusion(class, before));
            }
        }
        if !rows.is_clear() {
            let unmet = self.world.stock.unmet(shape, &rows, &mut self.world.interner);
            if unmet.is_empty() {
                return Reason::Reserved(TAKEN);
            }
            let names = unmet.iter().map(|(k, _)| &**self.world.interner.key_name(*k));
            let text = min_values_text(names);
            return self.filter_reason(pod, shape, Some(text));
        }
        if self.world.attachable.is_used() {
            let requests = self.world.waiting[pod].pod.requests.clone();
            let without = self.world.resources.vector(&requests);
            if !self.world.stock.rows_for(shape, &without).is_clear() {
                return Reason::VolumeLimits;
            }
        }
        if narrowed_by_devices {
            let whole = self.world.stock.mask_ports(template, whole, &ports);
            if self.fits_without_devices(template, whole, set, &amounts) {
                return Reason::DevicesApart;
            }
        }
        self.filter_reason(pod, shape, None)
    }

    /// Which checks instance types passed.
    fn filter_reason(&mut self, pod: PodId, shape: ShapeId, min_values: Option<String>) -> Reason {
        let requests = self.world.waiting[pod].pod.requests.clone();
        let world = &mut *self.world;
        let of = &world.stock.shapes[shape];
        let (template, set, mask) = (of.template, of.set, of.mask);
        let evaluated = world.stock.mask_rows(template, mask);
        let catalog = world.stock.catalog(template);
        let matching = catalog.matching(set, &mut world.interner).clone();
        let offered = catalog.offered(set, &mut world.interner).clone();
        let amounts = world.resources.vector(&requests);
        let width = world.resources.len();
        let mut error = FilterError {
            min_values,
            requirements: world.interner.requirements(set),
            absurd_cpu: requests.get(&Name::Cpu) >= ABSURD_CPU_MILLI,
            ..FilterError::default()
        };
        let full = world.stock.catalog(template).reserved_elsewhere(set, &mut world.interner);
        let mould = &world.stock.templates[template];
        let holds = |row: usize| {
            let room = &mould.net[row * width..(row + 1) * width];
            matching.contains(row) && super::amounts::fits(&amounts, room)
        };
        if error.min_values.is_none() && evaluated.intersection(&full).any(holds) {
            return Reason::Reserved(TAKEN);
        }
        for row in evaluated.ones() {
            let room = &mould.net[row * width..(row + 1) * width];
            let requirements = matching.contains(row);
            let offering = offered.contains(row);
            // [Q] As upstream, a type only counts as large enough where it can be had.
            let fits = offering && super::amounts::fits(&amounts, room);
            error.requirements_met |= requirements;
            error.fits |= fits;
            error.has_offering |= offering;
            error.requirements_and_fits |= requirements && fits && !offering;
            error.requirements_and_offering |= requirements && offering && !fits;
            error.fits_and_offering |= fits && offering && !requirements;
        }
        error.requests = overhead_range(mould, &evaluated, &requests);
        Reason::NoInstanceType(Box::new(error))
    }

    /// The message of the first topology group that leaves no domain.
    fn topology_reason(
        &mut self,
        template: TemplateId,
        set: SetId,
        class: ClassId,
        host: &str,
    ) -> Option<String> {
        let wanted = &self.world.classes.classes[class];
        let (rules, strict, strict_host) =
            (wanted.rules.clone(), wanted.strict, wanted.strict_host);
        for rule in rules {
            let world = &mut *self.world;
            let key = world.topology.get(rule.group).key;
            let (pod, node) = if rule.host {
                ((!strict_host.is_none()).then_some(strict_host), None)
            } else {
                (world.interner.get(strict, key), world.interner.get(set, key))
            };
            let daemons = world.topology.daemons(rule.group);
            let kind = world.topology.get(rule.group).kind;
            let satisfied = if rule.host {
                world.plan.tally.takes_new_host(&world.topology, rule.group, rule.own, false)
                    || !daemons.is_empty()
            } else if kind.anti() && world.interner.lacks(node, world.interner.well_known(key)) {
                true
            } else {
                let daemon = world.stock.run_everywhere(template, daemons);
                let mut rank = |_: &mut super::intern::Interner, _: ValueId| 0.0;
                let mut question = Question { pod, node, own: rule.own, daemon, rank: &mut rank };
                world
                    .plan
                    .tally
                    .domains(&world.topology, rule.group, &mut question, &mut world.interner)
                    .is_some()
            };
            if satisfied {
                continue;
            }
            let text = self.rule_text(rule, pod, node, host);
            return Some(format!("unsatisfiable topology constraint for {text}"));
        }
        None
    }

    /// A topology rule with where its pods are, and which domains the pod and the node ask for.
    fn rule_text(&self, rule: Rule, pod: Option<ReqId>, node: Option<ReqId>, host: &str) -> String {
        let world = &*self.world;
        let group = world.topology.get(rule.group);
        let name = world.interner.key_name(group.key);
        let counts: Vec<String> = if rule.host {
            self.host_counts(rule.group)
        } else {
            let listed = world.plan.tally.listed(&world.topology, rule.group, &world.interner);
            listed.into_iter().map(|(domain, count)| format!("{domain}: {count}")).collect()
        };
        let shown = counts.len().min(LISTED_DOMAINS);
        let text = |req: Option<ReqId>| match req {
            Some(req) => world.interner.requirement(req).to_string(),
            None => format!("{name} Exists"),
        };
        let node = if rule.host { format!("{name} In [{host}]") } else { text(node) };
        format!(
            "{}, key={name} (counts = {}, podDomains = {}, nodeDomains = {node}",
            group.kind.as_str(),
            counts[..shown].join(", "),
            text(pod),
        )
    }

    /// The rules of a class about domains other than hosts.
    fn zonal_rules(&self, class: ClassId) -> impl Iterator<Item = Rule> {
        let rules = self.world.classes.classes[class].rules.clone();
        rules.into_iter().filter(|rule| !rule.host)
    }

    /// The message of rules each of which leaves a domain, but which leave none together.
    fn exclusion(&self, class: ClassId, set: SetId) -> String {
        let strict = self.world.classes.classes[class].strict;
        let interner = &self.world.interner;
        let rules = self.zonal_rules(class).map(|rule| {
            let key = self.world.topology.get(rule.group).key;
            let (pod, node) = (interner.get(strict, key), interner.get(set, key));
            // The text of one rule leaves its bracket open, as upstream's does.
            format!("{})", self.rule_text(rule, pod, node, ""))
        });
        let rules: Vec<String> = rules.collect();
        format!(
            "unsatisfiable topology constraint, these exclude each other: {}",
            rules.join(" and ")
        )
    }

    fn host_counts(&self, group: GroupId) -> Vec<String> {
        let mut list: Vec<(String, u32)> = Vec::new();
        let away = |at: usize| self.world.plan.away.contains(at);
        for (at, node) in self.world.existing.nodes.iter().enumerate().filter(|(at, _)| !away(*at))
        {
            let name = self.world.interner.value_name(self.world.interner.hostname, node.host);
            list.push((name.to_string(), self.world.plan.tally.on_host(group, HostId::new(at))));
        }
        for at in 0..self.world.plan.claims.len() {
            let host = self.world.host_of_claim(at);
            let count = self.world.plan.tally.on_host(group, host);
            list.push((format!("hostname-placeholder-{:04}", at + 1), count));
        }
        list.sort();
        list.into_iter().map(|(name, count)| format!("{name}: {count}")).collect()
    }
}

/// Requests with the least and the most daemon overhead among these rows.
fn overhead_range(
    mould: &Template,
    rows: &FixedBitSet,
    requests: &ResourceList,
) -> (ResourceList, ResourceList) {
    let mut totals: Vec<ResourceList> = mould
        .groups
        .iter()
        .filter(|g| !g.rows.is_disjoint(rows))
        .map(|g| {
            let mut total = requests.clone();
            total.add(&g.list);
            total
        })
        .collect();
    let Some(mut most) = totals.pop() else { return (requests.clone(), requests.clone()) };
    let mut least = most.clone();
    for total in totals {
        least = least
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), value.min(total.find(name)?))))
            .collect();
        most.max(&total);
    }
    (least, most)
}
