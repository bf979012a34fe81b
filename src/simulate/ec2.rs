//! EC2's instance types for scenarios that bring none: from a saved answer, or from AWS itself.
//! They are built by the provider's own code.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use serde_json::Value;

use super::ScenarioError;
use super::scenario::{Scenario, TypeEntry};
use crate::api::checks::Finding;
use crate::api::conversion;
use crate::api::v1::{EC2NodeClass, EC2NodeClassStatus, Subnet};
use crate::clock::Clock;
use crate::cloud::aws::ami::AmiFamily;
use crate::cloud::aws::clients::{self, Clients};
use crate::cloud::aws::instancetype::{self, Options, Parts, info};
use crate::cloud::aws::offered::region_of;
use crate::cloud::aws::{nodeclass, pricing};
use crate::operator::settings::AwsFeatureGates;

/// The share of memory that the hypervisor keeps: the default of `--vm-memory-overhead-percent`.
const VM_MEMORY_OVERHEAD: f64 = 0.075;
/// The region of a saved answer, where nothing names one.
const DEFAULT_REGION: &str = "us-east-1";

/// What a NodePool says of its instance types by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct PoolClass {
    /// The node class that it names.
    class: String,
    /// Kubelet settings that it brings along from v1beta1.
    kubelet: Option<String>,
}

/// NodePools and their node classes, as far as instance types depend on them.
#[derive(Debug, Default)]
pub struct Classes {
    /// Pools by what they say of their types.
    pools_of: BTreeMap<PoolClass, Vec<String>>,
    /// Node classes by name.
    known: BTreeMap<String, EC2NodeClass>,
    /// Zones that nodes are in.
    zones: BTreeSet<String>,
}

impl Classes {
    /// What a scenario says of them.
    ///
    /// # Errors
    /// When a NodePool or an EC2NodeClass of it cannot be read.
    pub fn of(scenario: &Scenario) -> Result<Self, ScenarioError> {
        let mut classes = Self::default();
        for (index, pool) in scenario.node_pools.iter().enumerate() {
            let pool = to_v1(pool, &format!("nodePools[{index}]"))?;
            let name = pool["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let class = pool["spec"]["template"]["spec"]["nodeClassRef"]["name"].as_str();
            let kubelet = pool["metadata"]["annotations"][conversion::KUBELET].as_str();
            let of = PoolClass {
                class: class.unwrap_or_default().to_owned(),
                kubelet: kubelet.map(str::to_owned),
            };
            classes.pools_of.entry(of).or_default().push(name);
        }
        for (index, object) in scenario.objects.iter().enumerate() {
            if object["kind"] != "EC2NodeClass" {
                continue;
            }
            let path = format!("objects[{index}]");
            let class: EC2NodeClass = serde_json::from_value(to_v1(object, &path)?)
                .map_err(|e| ScenarioError::new(&path, e))?;
            // The controller would not launch from such a class either.
            let findings = nodeclass::findings(&class, AwsFeatureGates::ALL);
            if let Some(first) = findings.into_iter().find(Finding::is_error) {
                return Err(ScenarioError::new(format!("{path}.{}", first.path), first.message));
            }
            let name = class.metadata.name.clone().unwrap_or_default();
            classes.known.insert(name, class);
        }
        classes.zones = scenario.zones();
        Ok(classes)
    }

    /// A node class with subnets: its own, or one in each zone when nothing is known of them.
    fn class(&self, of: &PoolClass, zones: &BTreeSet<String>) -> Result<EC2NodeClass, String> {
        let mut class = self.known.get(&of.class).cloned().unwrap_or_else(|| {
            let mut class = EC2NodeClass::new(&of.class, Default::default());
            // The document lacks the class: the common family stands in.
            class.spec.ami_family = Some(AmiFamily::Al2023.as_str().to_owned());
            class
        });
        if let Some(kubelet) = &of.kubelet {
            let marks = BTreeMap::from([(conversion::KUBELET.to_owned(), kubelet.clone())]);
            class = class.with_kubelet_of(Some(&marks))?.into_owned();
        }
        let status = class.status.get_or_insert_with(EC2NodeClassStatus::default);
        if status.subnets.is_empty() {
            status.subnets = zones
                .iter()
                .map(|zone| Subnet {
                    id: format!("subnet-{zone}"),
                    zone: zone.clone(),
                    zone_id: None,
                })
                .collect();
        }
        Ok(class)
    }

    /// Zones of subnets and nodes, or the region's first three.
    fn zones(&self, region: &str) -> BTreeSet<String> {
        let subnets =
            self.known.values().filter_map(|c| c.status.as_ref()).flat_map(|s| &s.subnets);
        let mut zones: BTreeSet<String> = subnets.map(|s| s.zone.clone()).collect();
        zones.extend(self.zones.iter().cloned());
        if zones.is_empty() {
            zones.extend(["a", "b", "c"].map(|letter| format!("{region}{letter}")));
        }
        zones
    }

    /// The types that each pool may launch.
    fn entries(
        &self,
        provider: &instancetype::Provider,
        zones: &BTreeSet<String>,
    ) -> Result<Vec<TypeEntry>, String> {
        let mut entries = Vec::new();
        for (of, pools) in &self.pools_of {
            let types = provider.list(&self.class(of, zones)?).map_err(|e| e.to_string())?;
            // While all pools say the same of their types, the types need not name them.
            let node_pools = (self.pools_of.len() > 1).then(|| pools.clone());
            entries.extend(types.iter().map(|t| TypeEntry {
                instance_type: Arc::clone(t),
                node_pools: node_pools.clone(),
            }));
        }
        Ok(entries)
    }
}

/// The object as the API server would store it.
fn to_v1(object: &Value, path: &str) -> Result<Value, ScenarioError> {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let Some((group, "v1beta1")) = version.split_once('/') else { return Ok(object.clone()) };
    conversion::convert_object(object.clone(), &format!("{group}/v1"), &|_| Ok(None))
        .map_err(|e| ScenarioError::new(path, e))
}

fn provider(config: &SdkConfig) -> (Arc<pricing::Provider>, instancetype::Provider) {
    let clients = Clients::new(config);
    let clock = Clock::system();
    let pricing = Arc::new(pricing::Provider::new(clients.clone(), false));
    let options = Options {
        region: clients.region.clone(),
        vm_memory_overhead: VM_MEMORY_OVERHEAD,
        reserved_enis: 0,
        reserved_capacity: true,
        kubelet_expressions: false,
        devices: AwsFeatureGates::default(),
        volume_limits: false,
    };
    let parts = Parts::of_prices(&clients, &clock, &pricing);
    (pricing, instancetype::Provider::new(parts, options))
}

/// Types from what `aws ec2 describe-instance-types` printed, each offered in every zone at the
/// list's prices.
///
/// # Errors
/// When the text is not such an answer, or a node class cannot be used.
pub fn from_answer(text: &str, classes: &Classes) -> Result<Vec<TypeEntry>, String> {
    let types = info::parse(text)?;
    let region = std::env::var("AWS_REGION").unwrap_or_else(|_| {
        let zone = classes.zones(DEFAULT_REGION).into_iter().next().unwrap_or_default();
        region_of(&zone)
    });
    let zones = classes.zones(&region);
    let zones_of: HashMap<String, BTreeSet<String>> =
        types.iter().map(|t| (t.instance_type.clone(), zones.clone())).collect();
    let config = SdkConfig::builder()
        .region(Region::new(region))
        .behavior_version(BehaviorVersion::latest())
        .build();
    let (_, provider) = provider(&config);
    provider.set_catalog(types, zones_of);
    classes.entries(&provider, &zones)
}

/// Types as AWS describes and prices them now.
///
/// # Errors
/// When EC2 cannot be asked, or a node class cannot be used.
pub async fn from_aws(classes: &Classes) -> Result<Vec<TypeEntry>, String> {
    let (pricing, provider) = provider(&clients::load_config().await);
    provider.update().await.map_err(|e| e.to_string())?;
    // Where prices cannot be read, those that are compiled in are used.
    let _ = pricing.update_on_demand().await;
    let _ = pricing.update_spot(Clock::system().now()).await;
    let zones = classes.zones(pricing.region());
    classes.entries(&provider, &zones)
}
