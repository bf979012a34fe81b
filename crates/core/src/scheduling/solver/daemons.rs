//! Pods of DaemonSets as neighbours: they will be on a planned node before anybody has seen them.
//!
//! A pod that must be beside one can have a new node where the DaemonSet runs, and a pod that must
//! not be beside one, or that the DaemonSet's pods keep away, cannot. Without this a pod of the first
//! kind never gets a node, and one of the second gets node after node.

use fixedbitset::FixedBitSet;
use smallvec::SmallVec;

use super::prepare::Prepared;
use super::stock::Stock;
use super::topology::Kind;
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::solver::ids::{ClassId, DaemonId, GroupId, MaskId, TemplateId};

/// DaemonSets by their place in the list.
pub(super) type Daemons = SmallVec<[DaemonId; 2]>;

/// Labels that distinguish pods of one DaemonSet.
const OWN_LABELS: [&str; 2] = ["controller-revision-hash", "pod-template-generation"];

/// Whether a pod of a DaemonSet is on a node already.
pub(super) fn is_there(daemon: &PodInfo, state: &StateNode) -> bool {
    let like = |pod: &PodInfo| {
        let wanted = daemon.labels.iter().filter(|(key, _)| !OWN_LABELS.contains(&key.as_str()));
        wanted.into_iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    };
    let own = |pod: &PodInfo| {
        pod.owners.daemon_set && !pod.terminal && pod.key.namespace == daemon.key.namespace
    };
    state.pods.iter().any(|pod| own(pod) && like(pod))
}

impl Stock {
    /// The mask of the rows on which one of these DaemonSets runs, or on which none does.
    fn mask_daemons(
        &mut self,
        template: TemplateId,
        mask: MaskId,
        daemons: &[DaemonId],
        wanted: bool,
    ) -> MaskId {
        let mut rows = self.mask_rows(template, mask);
        let before = rows.count_ones(..);
        for group in &self.templates[template].groups {
            let runs = group.members.iter().any(|m| daemons.contains(m));
            if runs != wanted {
                rows.difference_with(&group.rows);
            }
        }
        if rows.count_ones(..) == before { mask } else { self.mask(rows) }
    }

    /// Whether one of these DaemonSets runs on every type of a template.
    pub(super) fn run_everywhere(&self, template: TemplateId, daemons: &[DaemonId]) -> bool {
        let without = |rows: &FixedBitSet| !rows.is_clear();
        !daemons.is_empty()
            && !self.templates[template].groups.iter().any(|group| {
                without(&group.rows) && !group.members.iter().any(|m| daemons.contains(m))
            })
    }
}

impl Prepared<'_> {
    /// The mask of the rows of a template that suit a class, given the DaemonSets that run there.
    /// `met` decides for a group whether its rule is met by other pods on the node.
    pub(super) fn mask_of_daemons(
        &mut self,
        class: ClassId,
        template: TemplateId,
        mask: MaskId,
        met: &dyn Fn(&Self, GroupId, bool) -> bool,
    ) -> MaskId {
        if !self.topology.counts_daemons() {
            return mask;
        }
        let mut mask = mask;
        for rule in self.classes.classes[class].rules.clone() {
            let daemons = Daemons::from_slice(self.topology.daemons(rule.group));
            if daemons.is_empty() {
                continue;
            }
            match self.topology.get(rule.group).kind {
                Kind::AntiAffinity | Kind::Inverse => {
                    mask = self.stock.mask_daemons(template, mask, &daemons, false);
                }
                Kind::Affinity if rule.host && !met(self, rule.group, rule.own) => {
                    mask = self.stock.mask_daemons(template, mask, &daemons, true);
                }
                Kind::Affinity | Kind::Spread => {}
            }
        }
        mask
    }

    /// The same for a node that has no other pod.
    pub(super) fn mask_of_daemons_alone(
        &mut self,
        class: ClassId,
        template: TemplateId,
        mask: MaskId,
    ) -> MaskId {
        self.mask_of_daemons(class, template, mask, &|world, group, own| {
            world.plan.tally.takes_new_host(&world.topology, group, own, false)
        })
    }
}
