//! What a NodePool's next node would look like: requirements, taints, daemons and candidate types.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::instance_type::InstanceType;
use super::pod::{HostPort, PodInfo};
use super::requirements::{Allow, Requirement, Requirements};
use super::resources::ResourceList;
use super::results::FilterError;
use super::snapshot::NodePoolInput;
use super::taints::tolerate_all;
use crate::api::v1::NodePool;
use crate::api::{labels, taints};

/// An instance type with what is worth computing once.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) instance_type: Arc<InstanceType>,
    pub(super) allocatable: ResourceList,
    /// Index of the daemon group that applies.
    pub(super) group: usize,
}

/// The daemons that run on some of a template's instance types.
#[derive(Clone, Debug, Default)]
pub(super) struct DaemonGroup {
    /// Indexes into the snapshot's DaemonSet pods.
    members: Vec<usize>,
    pub(super) overhead: ResourceList,
    pub(super) ports: Vec<HostPort>,
}

/// The mould of a NodePool's new nodes.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) node_pool: Arc<NodePool>,
    pub(super) name: String,
    pub(super) requirements: Requirements,
    pub(super) taints: Vec<Taint>,
    pub(super) candidates: Vec<Arc<Candidate>>,
    pub(super) groups: Vec<DaemonGroup>,
}

/// Requirements that a NodePool puts on its nodes, its own labels included.
#[must_use]
pub fn pool_requirements(pool: &NodePool) -> Requirements {
    let template = &pool.spec.template;
    let mut requirements = Requirements::from_api(&template.spec.requirements);
    for (key, value) in template.metadata.labels.iter().flatten() {
        requirements.add(Requirement::is(key, value));
    }
    let name = pool.metadata.name.as_deref().unwrap_or("");
    requirements.add(Requirement::is(labels::NODEPOOL, name));
    let class = &template.spec.node_class_ref;
    let class_key = format!("{}/{}", class.group, class.kind.to_lowercase());
    requirements.add(Requirement::is(&class_key, &class.name));
    requirements
}

impl Template {
    /// The template of a pool, or why no instance type is left for it.
    pub(super) fn new(
        input: &NodePoolInput,
        daemons: &[Arc<PodInfo>],
    ) -> Result<Self, Box<FilterError>> {
        let pool = &input.node_pool;
        let mut requirements = pool_requirements(pool);
        requirements.add(Requirement::is(labels::REGISTERED, "true"));
        requirements.add(Requirement::is(labels::INITIALIZED, "true"));
        let mut template = Self {
            node_pool: Arc::clone(pool),
            name: pool.metadata.name.clone().unwrap_or_default(),
            requirements,
            taints: pool.spec.template.spec.taints.clone().unwrap_or_default(),
            candidates: Vec::new(),
            groups: Vec::new(),
        };
        for instance_type in input.instance_types.iter() {
            let group = template.group_of(instance_type, daemons);
            template.candidates.push(Arc::new(Candidate {
                allocatable: instance_type.allocatable(),
                instance_type: Arc::clone(instance_type),
                group,
            }));
        }
        let all = std::mem::take(&mut template.candidates);
        let kept = template.filter(&all, &template.requirements, &ResourceList::new(), &[])?;
        template.candidates = kept;
        Ok(template)
    }

    fn group_of(&mut self, instance_type: &InstanceType, daemons: &[Arc<PodInfo>]) -> usize {
        let members: Vec<usize> =
            (0..daemons.len()).filter(|i| self.runs_daemon(&daemons[*i], instance_type)).collect();
        if let Some(at) = self.groups.iter().position(|g| g.members == members) {
            return at;
        }
        let mut group = DaemonGroup { members, ..DaemonGroup::default() };
        for member in &group.members {
            group.overhead.add(&daemons[*member].requests);
            group.ports.extend(daemons[*member].constraints.host_ports.iter().cloned());
        }
        self.groups.push(group);
        self.groups.len() - 1
    }

    fn runs_daemon(&self, daemon: &PodInfo, instance_type: &InstanceType) -> bool {
        let constraints = &daemon.constraints;
        if tolerate_all(&self.taints, &daemon_tolerations(daemon)).is_err() {
            return false;
        }
        let fits = |term: Option<&Requirements>| {
            let mut wanted = constraints.node_selector.clone();
            if let Some(term) = term {
                wanted.merge(term);
            }
            self.requirements.compatible(&wanted, Allow::WellKnown).is_ok()
                && instance_type.requirements.intersects(&wanted).is_ok()
        };
        if constraints.required_terms.is_empty() {
            fits(None)
        } else {
            constraints.required_terms.iter().any(|term| fits(Some(term)))
        }
    }

    /// Keeps the candidates that meet the requirements, have room and an available offering.
    pub(super) fn filter(
        &self,
        candidates: &[Arc<Candidate>],
        requirements: &Requirements,
        requests: &ResourceList,
        ports: &[HostPort],
    ) -> Result<Vec<Arc<Candidate>>, Box<FilterError>> {
        let totals: Vec<Option<ResourceList>> = self
            .groups
            .iter()
            .map(|group| {
                let conflict = group.ports.iter().any(|a| ports.iter().any(|b| a.conflicts(b)));
                (!conflict).then(|| {
                    let mut total = requests.clone();
                    total.add(&group.overhead);
                    total
                })
            })
            .collect();
        let mut kept = Vec::new();
        let mut error = FilterError::default();
        for candidate in candidates {
            let Some(total) = &totals[candidate.group] else { continue };
            let instance_type = &candidate.instance_type;
            let compatible = instance_type.requirements.intersects(requirements).is_ok();
            let offering = instance_type.compatible_offerings(requirements).next().is_some();
            let fits = offering && total.fits(&candidate.allocatable);
            error.requirements_met |= compatible;
            error.fits |= fits;
            error.has_offering |= offering;
            error.requirements_and_fits |= compatible && fits && !offering;
            error.requirements_and_offering |= compatible && offering && !fits;
            error.fits_and_offering |= fits && offering && !compatible;
            if compatible && fits && offering {
                kept.push(Arc::clone(candidate));
            }
        }
        if !kept.is_empty() {
            return match unmet_min_values(&kept, requirements) {
                None => Ok(kept),
                Some(text) => {
                    error.min_values = Some(text);
                    Err(Box::new(error))
                }
            };
        }
        error.requirements = requirements.clone();
        error.absurd_cpu = requests.get(&super::resources::Name::Cpu) >= 1_000_000_000;
        let mut seen = totals.into_iter().flatten();
        let first = seen.next().unwrap_or_default();
        error.requests = (first.clone(), first);
        Err(Box::new(error))
    }

    /// The daemon overhead that every remaining candidate has at least.
    pub(super) fn overhead(&self, candidates: &[Arc<Candidate>]) -> ResourceList {
        let mut least: Option<ResourceList> = None;
        for (index, group) in self.groups.iter().enumerate() {
            if group.overhead.is_empty() || !candidates.iter().any(|c| c.group == index) {
                continue;
            }
            least = Some(match least {
                None => group.overhead.clone(),
                Some(least) => least
                    .iter()
                    .filter_map(|(name, value)| {
                        Some((name.clone(), value.min(group.overhead.find(name)?)))
                    })
                    .collect(),
            });
        }
        least.unwrap_or_default()
    }
}

/// A DaemonSet pod's tolerations; preferences against scheduling do not keep daemons away.
pub(super) fn daemon_tolerations(daemon: &PodInfo) -> Vec<Toleration> {
    let mut tolerations = daemon.constraints.tolerations.clone();
    tolerations.push(prefer_no_schedule());
    tolerations
}

/// Tolerates every PreferNoSchedule taint.
pub(super) fn prefer_no_schedule() -> Toleration {
    Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some(taints::PREFER_NO_SCHEDULE.to_owned()),
        ..Toleration::default()
    }
}

/// The message for requirements whose variety of values is too small, if any.
pub(super) fn unmet_min_values(
    candidates: &[Arc<Candidate>],
    requirements: &Requirements,
) -> Option<String> {
    let unmet: Vec<&str> = min_values_reached(candidates, requirements)
        .into_iter()
        .filter(|(_, wanted, reached)| reached < wanted)
        .map(|(key, _, _)| key)
        .collect();
    (!unmet.is_empty()).then(|| {
        format!("minValues requirement is not met for label(s) (label(s)=[{}])", unmet.join(" "))
    })
}

/// For each requirement with minValues: its key, the number wanted, and the number reached.
pub(super) fn min_values_reached<'a>(
    candidates: &[Arc<Candidate>],
    requirements: &'a Requirements,
) -> Vec<(&'a str, i64, i64)> {
    requirements
        .iter()
        .filter_map(|r| Some((r.key(), r.min_values()?)))
        .map(|(key, wanted)| {
            let values: std::collections::BTreeSet<&str> = candidates
                .iter()
                .filter_map(|c| c.instance_type.requirements.get(key))
                .flat_map(|r| r.values())
                .collect();
            (&**key, wanted, i64::try_from(values.len()).unwrap_or(i64::MAX))
        })
        .collect()
}
