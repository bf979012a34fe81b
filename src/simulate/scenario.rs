//! The form of a scenario file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::{CounterSet, Device};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use super::{ScenarioError, check, read, types};
use crate::api::v1::{NodeClaim, Operator};
use crate::api::{labels, pod_defaults};
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::pod::{PodInfo, Sharing};
use crate::scheduling::requirements;
use crate::scheduling::resources::ApiQuantity;

/// One situation to decide on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scenario {
    /// A short name.
    pub name: String,
    /// What it shows, for the reader.
    pub description: String,
    /// The seed that made it, for the reader.
    pub seed: Option<i64>,
    /// Settings.
    pub options: ScenarioOptions,
    /// Label keys that a node may lack and still satisfy, besides the provider's own.
    pub well_known_labels: Vec<String>,
    /// NodePool objects, v1 or v1beta1.
    pub node_pools: Vec<Value>,
    /// What can be launched.
    pub instance_types: Option<TypeList>,
    /// One pod a DaemonSet.
    pub daemon_set_pods: PodList,
    /// Nodes with the pods on them.
    pub nodes: NodeList,
    /// Pods that wait.
    pub pods: PodList,
    /// Whatever else bears on the decision.
    pub objects: Vec<Value>,
}

impl Scenario {
    /// Takes these instance types, as if the document had listed them.
    pub fn provide_types(&mut self, types: Vec<TypeEntry>) {
        self.instance_types = Some(Stream { items: types, error: None });
    }

    /// Takes the instance types out.
    ///
    /// # Errors
    /// When there are none, or one of them cannot be used.
    pub fn take_types(&mut self) -> Result<Vec<TypeEntry>, ScenarioError> {
        let list = self.instance_types.take().unwrap_or_default();
        if let Some(error) = list.error {
            return Err(error.under("instanceTypes"));
        }
        if list.items.is_empty() {
            return Err(ScenarioError::new("instanceTypes", "expected at least one"));
        }
        Ok(list.items)
    }

    /// Zones that nodes are in.
    #[must_use]
    pub fn zones(&self) -> BTreeSet<String> {
        let nodes = self.nodes.items.iter().filter_map(|entry| entry.node.as_ref());
        nodes.filter_map(|node| node.metadata.labels.as_ref()?.get(labels::ZONE).cloned()).collect()
    }
}

/// The document form of instance types.
#[must_use]
pub fn describe_types(types: &[TypeEntry]) -> Value {
    let one = |entry: &TypeEntry| {
        let mut value = types::describe(&entry.instance_type);
        if let Some(pools) = &entry.node_pools {
            value["nodePools"] = serde_json::json!(pools);
        }
        value
    };
    types.iter().map(one).collect()
}

/// Settings of the controller that change decisions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ScenarioOptions {
    /// `Respect` (the default) or `Ignore`.
    pub preference_policy: String,
    /// `Strict` (the default) or `BestEffort`.
    pub min_values_policy: String,
    /// What `--scheduler-config` would say, as YAML or JSON text.
    pub scheduler_config: String,
    /// Feature gates by name.
    pub feature_gates: BTreeMap<String, bool>,
    /// The time at which to decide, RFC 3339.
    pub now: Option<jiff::Timestamp>,
}

/// A requirement on a label.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequirementSpec {
    pub key: String,
    pub operator: Operator,
    #[serde(default)]
    pub values: Vec<String>,
}

/// An instance type.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstanceTypeSpec {
    pub name: String,
    /// What nodes of the type are; name, zones and capacity types follow from the rest.
    #[serde(default)]
    pub requirements: Vec<RequirementSpec>,
    pub capacity: BTreeMap<String, ApiQuantity>,
    /// What the system keeps of it.
    #[serde(default)]
    pub overhead: BTreeMap<String, ApiQuantity>,
    pub offerings: Vec<OfferingSpec>,
    /// NodePools that may use it; all when missing.
    #[serde(default)]
    pub node_pools: Option<Vec<String>>,
    /// Devices for dynamic resources that drivers will publish on every instance.
    #[serde(default)]
    pub resource_slices: Vec<TypeSliceSpec>,
}

/// A pool of devices that an instance will have.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TypeSliceSpec {
    pub driver: String,
    pub pool: String,
    pub devices: Vec<Device>,
    #[serde(default)]
    pub shared_counters: Vec<CounterSet>,
    /// Devices that will have the same value of an attribute which they do not name.
    #[serde(default)]
    pub attribute_bindings: Vec<BindingSpec>,
}

/// Devices that will have the same value of an attribute.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindingSpec {
    pub attribute: String,
    pub devices: Vec<String>,
}

/// A way to get an instance type.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OfferingSpec {
    pub zone: String,
    pub capacity_type: String,
    pub price: f64,
    /// Nobody published the price: it orders types, and replaces no node.
    #[serde(default)]
    pub price_estimated: bool,
    #[serde(default = "yes")]
    pub available: bool,
    /// More labels of nodes from this offering.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub requirements: Vec<RequirementSpec>,
    /// Instances left in the reservation behind a `reserved` offering.
    #[serde(default)]
    pub reservation_capacity: i64,
}

fn yes() -> bool {
    true
}

/// A node with its pods.
#[derive(Clone, Debug)]
pub struct NodeEntry {
    pub node: Option<Arc<Node>>,
    pub node_claim: Option<Arc<NodeClaim>>,
    pub pods: Vec<Arc<PodInfo>>,
    /// Pods are expected on it.
    pub nominated: bool,
    /// A disruption command has chosen it.
    pub marked_for_deletion: bool,
}

/// Something read bit by bit, each bit turned into the solver's form at once and then dropped: a
/// document of hundreds of megabytes never stands in memory.
#[derive(Clone, Debug)]
pub struct Stream<T> {
    items: Vec<T>,
    /// The first item that cannot be used; its path starts at the list.
    error: Option<ScenarioError>,
}

impl<T> Default for Stream<T> {
    fn default() -> Self {
        Self { items: Vec::new(), error: None }
    }
}

impl<T> Stream<T> {
    /// The items, given the list's own place.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn into_items(self, path: &str) -> Result<Vec<T>, ScenarioError> {
        match self.error {
            Some(error) => Err(error.under(path)),
            None => Ok(self.items),
        }
    }

    /// Keeps the item, or the first error.
    fn push(&mut self, item: Result<T, ScenarioError>) {
        match item {
            Ok(item) => self.items.push(item),
            Err(error) => {
                // The rest is still read: an error of the document itself, further down, is
                // reported before this one.
                self.error.get_or_insert(error);
            }
        }
    }
}

/// Pods.
pub type PodList = Stream<Arc<PodInfo>>;

/// Nodes with their pods.
pub type NodeList = Stream<NodeEntry>;

/// Instance types.
pub type TypeList = Stream<TypeEntry>;

/// An instance type and the NodePools that may use it, all when it names none.
#[derive(Clone, Debug)]
pub struct TypeEntry {
    pub instance_type: Arc<InstanceType>,
    pub node_pools: Option<Vec<String>>,
}

/// How the items of a list are read.
trait Items: Sized {
    type Raw: DeserializeOwned;
    type Context: Default;
    const WHAT: &'static str;

    fn convert(
        context: &mut Self::Context,
        path: &str,
        raw: Self::Raw,
    ) -> Result<Self, ScenarioError>;
}

impl Items for Arc<PodInfo> {
    type Raw = Pod;
    type Context = Sharing;
    const WHAT: &'static str = "a list of Pod objects";

    fn convert(sharing: &mut Sharing, path: &str, mut pod: Pod) -> Result<Self, ScenarioError> {
        // Before defaults are filled in, so that errors speak of what the document says.
        check::pod(path, &pod)?;
        if let Some(spec) = &mut pod.spec {
            pod_defaults::fill(spec);
        }
        let mut info = PodInfo::from_pod(&pod);
        info.unschedulable |= taken_to_wait(&pod);
        Ok(Arc::new(sharing.share(info)))
    }
}

/// A pod of which the document does not say how far kube-scheduler has come is taken to have been
/// found unschedulable, unless its scheduling gates keep it from being looked at.
fn taken_to_wait(pod: &Pod) -> bool {
    let gates = pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_deref()).unwrap_or_default();
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    gates.is_empty() && !conditions.iter().any(|c| c.type_ == "PodScheduled")
}

impl Items for TypeEntry {
    type Raw = InstanceTypeSpec;
    type Context = requirements::Sharing;
    const WHAT: &'static str = "a list of instance types";

    fn convert(
        sharing: &mut requirements::Sharing,
        path: &str,
        spec: InstanceTypeSpec,
    ) -> Result<Self, ScenarioError> {
        let instance_type = Arc::new(types::instance_type(path, &spec, sharing)?);
        Ok(Self { instance_type, node_pools: spec.node_pools })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawNode {
    #[serde(default)]
    node: Option<Node>,
    #[serde(default)]
    node_claim: Option<NodeClaim>,
    #[serde(default)]
    pods: PodList,
    #[serde(default)]
    nominated: bool,
    #[serde(default)]
    marked_for_deletion: bool,
}

impl Items for NodeEntry {
    type Raw = RawNode;
    type Context = Sharing;
    const WHAT: &'static str = "a list of nodes, each {node, nodeClaim, pods}";

    fn convert(sharing: &mut Sharing, path: &str, raw: RawNode) -> Result<Self, ScenarioError> {
        if let Some(node) = &raw.node {
            check::node(&format!("{path}.node"), node)?;
        }
        if let Some(claim) = &raw.node_claim {
            check::node_claim(&format!("{path}.nodeClaim"), claim)?;
        }
        let name = raw.node.as_ref().and_then(|n| n.metadata.name.clone());
        let bound = raw.pods.into_items(&format!("{path}.pods"))?;
        let mut pods: Vec<Arc<PodInfo>> = Vec::with_capacity(bound.len());
        for pod in bound {
            // Each list of pods was read with a table of its own. Sharing again lets the pods of
            // all nodes share one.
            let mut pod = sharing.share(Arc::unwrap_or_clone(pod));
            pod.node_name = name.as_deref().map(|n| sharing.text(n));
            pods.push(Arc::new(pod));
        }
        let (nominated, marked_for_deletion) = (raw.nominated, raw.marked_for_deletion);
        let node = raw.node.map(Arc::new);
        let node_claim = raw.node_claim.map(Arc::new);
        Ok(Self { node, node_claim, pods, nominated, marked_for_deletion })
    }
}

struct Reader<T>(PhantomData<T>);

impl<'de, T: Items> Visitor<'de> for Reader<T> {
    type Value = Stream<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::WHAT)
    }

    fn visit_unit<E>(self) -> Result<Stream<T>, E> {
        Ok(Stream::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Stream<T>, A::Error> {
        let (mut stream, mut context) = (Stream::default(), T::Context::default());
        let mut index = 0_usize;
        // Each item goes through one plain form, so that the readers of all the kinds are in the
        // binary (and, once used, in memory) once, and not once more for each format.
        while let Some(item) = seq.next_element::<Value>()? {
            let path = format!("[{index}]");
            let raw = read::strict::<_, T::Raw>(item, &path);
            stream.push(raw.and_then(|raw| T::convert(&mut context, &path, raw)));
            index += 1;
        }
        // A list that grew by doubling may be twice as large as its items.
        stream.items.shrink_to_fit();
        Ok(stream)
    }
}

impl<'de, T: Items> Deserialize<'de> for Stream<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::super::build::GATES;
    use super::super::expected::assert_documented;
    use super::*;

    const PAGE: &str = "scenarios.md";

    #[test]
    fn the_reference_page_lists_every_field_of_a_scenario() {
        assert_documented::<Scenario>(PAGE, "Scenario");
        assert_documented::<ScenarioOptions>(PAGE, "Options");
        assert_documented::<InstanceTypeSpec>(PAGE, "Instance type");
        assert_documented::<RequirementSpec>(PAGE, "Requirement");
        assert_documented::<OfferingSpec>(PAGE, "Offering");
        assert_documented::<TypeSliceSpec>(PAGE, "Slice");
        assert_documented::<BindingSpec>(PAGE, "Binding");
        assert_documented::<RawNode>(PAGE, "Node");
    }

    #[test]
    fn the_reference_page_names_every_gate_and_every_kind_of_object() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/reference/scenarios.md");
        let text = std::fs::read_to_string(path).unwrap();
        let section = |heading: &str| {
            let all = text.split_once(&format!("\n## {heading}\n")).unwrap().1;
            all.split_once("\n## ").map_or(all, |(section, _)| section).to_owned()
        };
        let options = section("Options");
        for gate in GATES {
            assert!(options.contains(&format!("`{gate}`")), "{gate}");
        }
        // The arms of the match by kind.
        let arms = include_str!("objects.rs").lines().filter_map(|line| {
            line.trim_start().strip_prefix('"')?.split_once("\" =>").map(|(kind, _)| kind)
        });
        let kinds: Vec<&str> = arms.collect();
        assert!(kinds.len() > 12, "{kinds:?}");
        let objects = section("Objects");
        for kind in kinds {
            assert!(objects.contains(&format!("`{kind}`")), "{kind}");
        }
    }
}
