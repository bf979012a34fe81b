//! Topology during a round: which domains it leaves a pod, and counting the pods that were placed.

use super::{Round, Spot};
use crate::scheduling::solver::ids::{ClassId, HostId, Id, MaskId, SetId, TemplateId, ValueId};
use crate::scheduling::solver::intern::Interner;
use crate::scheduling::solver::tally::Question;
use crate::scheduling::solver::topology::Kind;

impl Round<'_, '_> {
    /// A candidate's requirements narrowed to the domains that topology leaves, if it leaves some.
    /// `new` is the template and mask of a planned node.
    pub(in crate::scheduling::solver) fn zones(
        &mut self,
        class: ClassId,
        set: SetId,
        new: Option<(TemplateId, MaskId)>,
    ) -> Option<SetId> {
        let rules = self.world.classes.classes[class].rules.clone();
        let strict = self.world.classes.classes[class].strict;
        let world = &mut *self.world;
        let (interner, topology, stock) = (&mut world.interner, &world.topology, &mut world.stock);
        let tally = &world.plan.tally;
        let (ties, moment) = (world.choices.ties, self.version);
        let mut result = set;
        for rule in rules.iter().filter(|s| !s.host) {
            let group = topology.get(rule.group);
            let (key, anti) = (group.key, group.kind.anti());
            let node = interner.get(set, key);
            let new_label = new.is_some() && interner.well_known(key);
            // Without the label there is no domain to keep away from.
            if anti && interner.lacks(node, new_label) {
                continue;
            }
            let daemon = new.is_some_and(|(template, _)| {
                stock.run_everywhere(template, topology.daemons(rule.group))
            });
            let mut rank = |interner: &mut Interner, domain: ValueId| -> f64 {
                let Some((template, mask)) = new else { return 0.0 };
                // A try with another choice: zones that are equally good are taken in another
                // order.
                if let Some(order) = ties.order(moment, || interner.rank_of_value(key, domain)) {
                    return order;
                }
                let one = interner.one_of(key, &[domain]);
                let narrowed = interner.narrow(set, one);
                let shape = stock.shape(template, narrowed, mask, interner);
                stock.unit_price(shape, interner)
            };
            let mut question = Question {
                pod: interner.get(strict, key),
                node,
                own: rule.own,
                daemon,
                rank: &mut rank,
            };
            let domains = tally.domains(topology, rule.group, &mut question, interner)?;
            // A node that exists never gets the label, so that it is in no domain.
            if node.is_none() && !new_label {
                return None;
            }
            let req = interner.one_of(key, &domains);
            result = interner.narrow(result, req);
            let left = interner.get(result, key).map(|r| interner.req(r));
            if left.is_some_and(|r| !r.complement && r.values.is_empty()) {
                return None;
            }
        }
        Some(result)
    }

    /// Takes hosts out of a mask that groups of host names rule out.
    pub(super) fn rule_out(&mut self, class: ClassId, first: HostId, mask: &mut [usize]) {
        let world = &*self.world;
        let wanted = &world.classes.classes[class];
        let strict = wanted.strict_host;
        let name_of = |host: HostId| -> Option<ValueId> {
            world.existing.nodes.get(host.at()).map(|n| n.host)
        };
        let admits = |host: HostId| match name_of(host) {
            Some(name) => world.interner.has(strict, name),
            // A planned node has no name yet: only a requirement that excludes names can hold for
            // it.
            None => world.interner.req(strict).complement,
        };
        let planned = first == world.first_claim_host;
        for rule in wanted.rules.iter().filter(|s| s.host) {
            // Nodes on which a DaemonSet's pod is expected are distinguished from the others by their rows.
            if planned
                && world.topology.get(rule.group).kind == Kind::Affinity
                && !world.topology.daemons(rule.group).is_empty()
            {
                continue;
            }
            let names: Option<&dyn Fn(HostId) -> bool> =
                if strict.is_none() { None } else { Some(&admits) };
            world.plan.tally.rule_out_hosts(
                &world.topology,
                rule.group,
                rule.own,
                names,
                first.at(),
                mask,
            );
        }
    }

    /// Counts a placed pod in every group that it belongs to, or with `back` takes that back.
    pub(super) fn record(&mut self, class: ClassId, at: Spot, back: bool) {
        let world = &mut *self.world;
        let wanted = &world.classes.classes[class];
        let (topology, interner) = (&mut world.topology, &mut world.interner);
        let Spot { set, taints, host, name } = at;
        let tally = &mut world.plan.tally;
        for group in wanted.counted.iter() {
            let filter = topology.get(*group).filter;
            if topology.passes(filter, set, taints, name, interner, &mut world.tolerance) {
                tally.change(topology, *group, set, host, interner, !back);
            }
        }
        // Pods that keep others away count whatever their node's labels: the rule is theirs.
        for group in &wanted.inverse {
            tally.change(topology, *group, set, host, interner, !back);
        }
    }

    pub(super) fn record_on_claim(&mut self, claim: usize, class: ClassId, set: SetId) {
        let at = self.spot(claim, set);
        self.record(class, at, false);
    }

    fn spot(&self, claim: usize, set: SetId) -> Spot {
        let shape = &self.world.stock.shapes[self.world.plan.claims[claim].shape];
        let taints = self.world.template_taints[shape.template];
        Spot { set, taints, host: self.world.host_of_claim(claim), name: None }
    }

    /// Counts the pods of a claim again once it asks for more than before.
    ///
    /// A pod on a node that may be in any of several zones counts in none of them (and one that
    /// others keep away from, in all); when a later pod settles the zone, both come right.
    /// [Q] Upstream leaves the counts as they were when each pod came.
    pub(super) fn recount(&mut self, claim: usize, before: SetId, after: SetId) {
        if !self.world.choices.recount || before == after || !self.world.topology.is_used() {
            return;
        }
        let (old, new) = (self.spot(claim, before), self.spot(claim, after));
        for at in 0..self.world.plan.claims[claim].pods.len() {
            let pod = self.world.plan.claims[claim].pods[at];
            let class = self.placed_as[pod];
            self.record(class, old, true);
            self.record(class, new, false);
        }
    }
}
