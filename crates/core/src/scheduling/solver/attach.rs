//! How many volumes nodes can attach: those that exist, and those to come.
//!
//! For the loop each CSI driver whose limit is known somewhere is one more resource: a pod requests
//! as many as it has volumes of the driver, a type has as many as can be attached to it. A volume
//! that several pods share counts for each of them on a node to come, which is safe, and once on a
//! node that exists, where [`Volumes`] counts exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::amounts::Resources;
use super::existing::Volumes;
use crate::api::labels;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::node::StateNode;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::resources::{Name, ResourceList};
use crate::scheduling::snapshot::Snapshot;
use crate::scheduling::volumes::PodVolumes;

/// More volumes than any node has.
const UNLIMITED: i64 = 1_000_000;

/// What is known of limits, by CSI driver.
#[derive(Default)]
pub(super) struct Attachable {
    /// Drivers of volumes that pods in this round have.
    drivers: Vec<Arc<str>>,
    /// The lowest limit that nodes of a type report, by type and driver.
    of_types: FxHashMap<(Arc<str>, Arc<str>), u64>,
    /// The highest limit that nodes of a pool report, by pool and driver.
    of_pools: FxHashMap<(Arc<str>, Arc<str>), u64>,
}

impl Attachable {
    /// What the nodes of a snapshot say; nothing where none of the pods has a volume.
    pub(super) fn new(snapshot: &Snapshot, pods: &[&Arc<PodInfo>]) -> Self {
        if snapshot.pod_volumes.is_empty() {
            return Self::default();
        }
        let attached = pods.iter().filter_map(|p| snapshot.pod_volumes.get(&p.key));
        let drivers: BTreeSet<Arc<str>> =
            attached.flat_map(|v| &v.attached).map(|(driver, _)| Arc::clone(driver)).collect();
        let mut known = Self { drivers: drivers.into_iter().collect(), ..Self::default() };
        if known.drivers.is_empty() {
            return known;
        }
        for state in snapshot.nodes.iter().chain(&snapshot.left_out) {
            let label = |key: &str| state.labels().get(key).map(|v| Arc::<str>::from(v.as_str()));
            for driver in &known.drivers {
                let Some(limit) = state.volume_limits.get(&**driver).copied().flatten() else {
                    continue;
                };
                if let Some(name) = label(labels::INSTANCE_TYPE) {
                    let least = known.of_types.entry((name, Arc::clone(driver))).or_insert(limit);
                    *least = limit.min(*least);
                }
                if let Some(pool) = label(labels::NODEPOOL) {
                    let most = known.of_pools.entry((pool, Arc::clone(driver))).or_insert(limit);
                    *most = limit.max(*most);
                }
            }
        }
        known
    }

    /// Makes a resource of each driver.
    pub(super) fn note(&self, resources: &mut Resources) {
        for driver in &self.drivers {
            resources.note(&[(resource(driver), 0)].into_iter().collect());
        }
    }

    /// Adds what a type takes to what it has. Nodes of the type know best, then the provider, then
    /// the other nodes of the pool.
    pub(super) fn add_limits(&self, kind: &InstanceType, pool: &str, list: &mut ResourceList) {
        for driver in &self.drivers {
            let of_nodes = self.of_types.get(&(Arc::clone(&kind.name), Arc::clone(driver)));
            let limit = of_nodes
                .or_else(|| kind.volume_limits.get(&**driver))
                .or_else(|| self.of_pools.get(&(Arc::from(pool), Arc::clone(driver))));
            let most = limit.map_or(UNLIMITED, |l| i64::try_from(*l).unwrap_or(UNLIMITED));
            list.set(resource(driver), most);
        }
    }

    /// Volumes of a pod as amounts.
    pub(super) fn add_volumes(&self, volumes: Option<&PodVolumes>, list: &mut ResourceList) {
        for driver in &self.drivers {
            let own = volumes.iter().flat_map(|v| &v.attached).filter(|(d, _)| d == driver);
            let claims: BTreeSet<&Arc<str>> = own.map(|(_, claim)| claim).collect();
            list.set(resource(driver), claims.len() as i64);
        }
    }

    /// What a node that exists has of these resources: volumes are counted one by one there.
    pub(super) fn add_unlimited(&self, list: &mut ResourceList) {
        for driver in &self.drivers {
            list.set(resource(driver), UNLIMITED);
        }
    }

    /// Whether any pod of the round has a volume.
    pub(super) fn is_used(&self) -> bool {
        !self.drivers.is_empty()
    }

    /// How many volumes each driver attaches to a node: as its CSINode reports, and for a driver that
    /// did not come up there yet as nodes of the type and the provider report.
    fn limits_of(&self, state: &StateNode, types: &[Arc<InstanceType>]) -> BTreeMap<String, u64> {
        let name = state.labels().get(labels::INSTANCE_TYPE).map(String::as_str);
        let mut limits = BTreeMap::new();
        for driver in &self.drivers {
            let limit = match state.volume_limits.get(&**driver) {
                Some(said) => *said,
                None => name.and_then(|name| {
                    let like = self.of_types.get(&(Arc::from(name), Arc::clone(driver))).copied();
                    like.or_else(|| {
                        let kind = types.iter().find(|t| &*t.name == name)?;
                        kind.volume_limits.get(&**driver).copied()
                    })
                }),
            };
            limits.extend(limit.map(|limit| (driver.to_string(), limit)));
        }
        limits
    }

    /// The volumes of a node that exists, with its limits.
    pub(super) fn volumes(&self, state: &StateNode, snapshot: &Snapshot) -> Volumes {
        let pool = state.node_pool();
        let input = snapshot
            .node_pools
            .iter()
            .find(|p| pool.is_some() && p.node_pool.metadata.name.as_deref() == pool);
        let types = input.map_or(&[][..], |p| &p.instance_types);
        Volumes::new(state, self.limits_of(state, types))
    }
}

/// The resource that stands for a driver's volumes, by the name that Kubernetes once had for it.
fn resource(driver: &str) -> Name {
    Name::Other(Arc::from(format!("attachable-volumes-csi-{driver}")))
}
