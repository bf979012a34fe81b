//! A cloud in memory, for tests of what stands on one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{CloudProvider, Error};
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodeClaimStatus, NodePool};
use crate::scheduling::instance_type::{InstanceType, sort_by_price};
use crate::scheduling::requirements::{Allow, Requirement, Requirements};
use crate::scheduling::resources::ResourceList;

/// Launches the cheapest type that fits, at once, unless a test made it fail.
#[derive(Debug, Default)]
pub struct FakeProvider {
    types: Vec<Arc<InstanceType>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    launched: u32,
    instances: BTreeMap<String, NodeClaim>,
    failures: VecDeque<Error>,
    drift: BTreeMap<String, String>,
}

impl FakeProvider {
    /// A cloud that has these types.
    #[must_use]
    pub fn new(types: Vec<Arc<InstanceType>>) -> Self {
        Self { types, state: Mutex::default() }
    }

    /// The next call of `create` fails so; set several times, so do the next ones, in order.
    pub fn fail_next(&self, error: Error) {
        self.state.lock().failures.push_back(error);
    }

    /// The instance of a claim counts as drifted, for that reason.
    pub fn drift(&self, claim: &str, reason: &str) {
        self.state.lock().drift.insert(claim.to_owned(), reason.to_owned());
    }

    /// Takes an instance away behind everybody's back.
    pub fn vanish(&self, provider_id: &str) {
        self.state.lock().instances.remove(provider_id);
    }

    /// Instances there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.state.lock().instances.len()
    }

    fn choose(&self, claim: &NodeClaim) -> Result<Arc<InstanceType>, Error> {
        let wanted = Requirements::from_api(&claim.spec.requirements);
        let requests = ResourceList::from_quantities_lossy(
            claim.spec.resources.as_ref().and_then(|r| r.requests.as_ref()),
        );
        let mut fitting: Vec<Arc<InstanceType>> = self
            .types
            .iter()
            .filter(|t| {
                wanted.compatible(&t.requirements, Allow::WellKnown).is_ok()
                    && requests.fits(&t.allocatable())
                    && t.cheapest(&wanted).is_some()
            })
            .cloned()
            .collect();
        sort_by_price(&mut fitting, &wanted);
        let none = || Error::InsufficientCapacity("no instance type fits".into());
        fitting.into_iter().next().ok_or_else(none)
    }
}

fn provider_id(claim: &NodeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.provider_id.as_deref()).unwrap_or_default()
}

#[async_trait]
impl CloudProvider for FakeProvider {
    async fn create(
        &self,
        claim: &NodeClaim,
        _class: Option<&EC2NodeClass>,
    ) -> Result<NodeClaim, Error> {
        let mut state = self.state.lock();
        let name = claim.metadata.name.clone();
        // Like EC2 with a client token: a repeated launch returns the first instance.
        if let Some(known) = state.instances.values().find(|c| c.metadata.name == name) {
            return Ok(known.clone());
        }
        if let Some(error) = state.failures.pop_front() {
            return Err(error);
        }
        let kind = self.choose(claim)?;
        let wanted = Requirements::from_api(&claim.spec.requirements);
        let Some(offering) = kind.cheapest(&wanted) else {
            return Err(Error::InsufficientCapacity("no offering".into()));
        };
        state.launched += 1;
        let id = format!("fake:///{}/i-{:04}", offering.zone(), state.launched);
        let mut created = claim.clone();
        let all = created.metadata.labels.get_or_insert_default();
        for requirement in kind.requirements.iter().chain(offering.requirements.iter()) {
            if let Some(value) = requirement.single() {
                all.insert(requirement.key().to_string(), value.to_owned());
            }
        }
        created.status = Some(NodeClaimStatus {
            provider_id: Some(id.clone()),
            image_id: Some("image".to_owned()),
            capacity: Some(kind.capacity.to_quantities()),
            allocatable: Some(kind.allocatable().to_quantities()),
            ..NodeClaimStatus::default()
        });
        state.instances.insert(id, created.clone());
        Ok(created)
    }

    async fn delete(&self, claim: &NodeClaim) -> Result<(), Error> {
        let id = provider_id(claim);
        match self.state.lock().instances.remove(id) {
            Some(_) => Ok(()),
            None => Err(Error::NodeClaimNotFound(format!("no instance {id:?}"))),
        }
    }

    async fn get(&self, provider_id: &str) -> Result<NodeClaim, Error> {
        let known = self.state.lock().instances.get(provider_id).cloned();
        known.ok_or_else(|| Error::NodeClaimNotFound(format!("no instance {provider_id:?}")))
    }

    async fn list(&self) -> Result<Vec<NodeClaim>, Error> {
        Ok(self.state.lock().instances.values().cloned().collect())
    }

    async fn instance_types(
        &self,
        _pool: &NodePool,
        _class: Option<&EC2NodeClass>,
    ) -> Result<Arc<[Arc<InstanceType>]>, Error> {
        Ok(self.types.clone().into())
    }

    async fn is_drifted(
        &self,
        claim: &NodeClaim,
        _pool: &NodePool,
        _class: Option<&EC2NodeClass>,
    ) -> Result<Option<String>, Error> {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        Ok(self.state.lock().drift.get(name).cloned())
    }

    fn name(&self) -> &'static str {
        "fake"
    }
}

/// A type with one available offering.
#[must_use]
pub fn instance_type(name: &str, capacity: ResourceList, price: f64) -> Arc<InstanceType> {
    let is = Requirement::is;
    Arc::new(InstanceType {
        name: Arc::from(name),
        requirements: [is(labels::INSTANCE_TYPE, name)].into_iter().collect(),
        offerings: vec![crate::scheduling::instance_type::Offering {
            requirements: [
                is(labels::CAPACITY_TYPE, labels::CAPACITY_ON_DEMAND),
                is(labels::ZONE, "zone-1"),
            ]
            .into_iter()
            .collect(),
            price,
            available: true,
            ..Default::default()
        }],
        capacity,
        ..InstanceType::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::resources::Name;

    #[tokio::test]
    async fn the_cheapest_fitting_type_is_launched_once() {
        let cores = |n: i64| [(Name::Cpu, n * 1000)].into_iter().collect();
        let cloud = FakeProvider::new(vec![
            instance_type("large", cores(8), 2.0),
            instance_type("small", cores(2), 1.0),
        ]);
        let claim = NodeClaim::new("c", Default::default());
        cloud.fail_next(Error::Other("not now".to_owned()));
        assert!(cloud.create(&claim, None).await.is_err());
        let created = cloud.create(&claim, None).await.unwrap();
        assert_eq!(created.metadata.labels.as_ref().unwrap()[labels::INSTANCE_TYPE], "small");
        assert_eq!(cloud.create(&claim, None).await.unwrap().status, created.status);
        assert_eq!(cloud.count(), 1);
        cloud.delete(&created).await.unwrap();
        assert!(cloud.delete(&created).await.unwrap_err().is_not_found());
        assert!(cloud.get("fake:///x").await.unwrap_err().is_not_found());
    }
}
