//! What VerticalPodAutoscalers will make containers request, kept by workload.
//!
//! Nothing reads it yet: as in Karpenter 1.14, scheduling goes by what pods request now.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::discovery::oneshot::pinned_kind;
use kube::{Api, Client};
use parking_lot::RwLock;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::Instrument as _;

use super::{Context, Error};
use crate::operator::logging;
use crate::scheduling::resources::{Name, ResourceList};

/// How often the autoscalers are read.
const POLL: Duration = Duration::from_secs(30);
/// How often it is looked whether there are any, where the API server does not know them.
const ABSENT: Duration = Duration::from_secs(60);
/// Objects a page of a list.
const PAGE: u32 = 500;

/// What containers of a workload will request, by container.
pub type Prediction = BTreeMap<String, ResourceList>;

/// Predictions by the workload's unique id.
#[derive(Debug, Default)]
pub struct Predictions(RwLock<HashMap<String, Arc<Prediction>>>);

impl Predictions {
    /// What the containers of a workload will request.
    #[must_use]
    pub fn of(&self, uid: &str) -> Option<Arc<Prediction>> {
        self.0.read().get(uid).cloned()
    }

    fn replace(&self, all: HashMap<String, Arc<Prediction>>) {
        *self.0.write() = all;
    }
}

/// Starts the controller.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) -> Arc<Predictions> {
    let store = Arc::new(Predictions::default());
    let (client, kept) = (ctx.client.clone(), Arc::clone(&store));
    let span = logging::controller_span("vpa.prediction");
    tasks.spawn(async move { run(client, kept).await }.instrument(span));
    store
}

async fn run(client: Client, store: Arc<Predictions>) {
    loop {
        let wait = match predictions(&client).await {
            Ok(Some(all)) => {
                store.replace(all);
                POLL
            }
            Ok(None) => {
                store.replace(HashMap::new());
                ABSENT
            }
            Err(error) => {
                tracing::error!("error" = %error, "Reconciler error");
                POLL
            }
        };
        sleep(wait).await;
    }
}

/// Predictions for all workloads; nothing where the API server knows no autoscalers, or does not
/// let them be read.
async fn predictions(client: &Client) -> Result<Option<HashMap<String, Arc<Prediction>>>, Error> {
    let gvk = GroupVersionKind::gvk("autoscaling.k8s.io", "v1", "VerticalPodAutoscaler");
    let Ok((resource, _)) = pinned_kind(client, &gvk).await else { return Ok(None) };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut params = ListParams::default().limit(PAGE);
    let mut list = Vec::new();
    loop {
        let page = match api.list(&params).await {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 403 => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        list.extend(page.items.iter().map(|o| serde_json::to_value(o).unwrap_or_default()));
        match page.metadata.continue_.filter(|t| !t.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => break,
        }
    }
    let mut kinds = HashMap::new();
    let mut all = HashMap::new();
    for (target, prediction) in chosen(&list) {
        if let Some(uid) = uid_of(client, &target, &mut kinds).await {
            all.insert(uid, Arc::new(prediction));
        }
    }
    Ok(Some(all))
}

/// A workload that an autoscaler is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Target {
    namespace: String,
    api_version: String,
    kind: String,
    name: String,
}

type Kinds = HashMap<(String, String), Option<kube::api::ApiResource>>;

async fn uid_of(client: &Client, target: &Target, kinds: &mut Kinds) -> Option<String> {
    let key = (target.api_version.clone(), target.kind.clone());
    if !kinds.contains_key(&key) {
        let (group, version) =
            target.api_version.split_once('/').unwrap_or(("", &target.api_version));
        let gvk = GroupVersionKind::gvk(group, version, &target.kind);
        let found = pinned_kind(client, &gvk).await.ok().map(|(resource, _)| resource);
        kinds.insert(key.clone(), found);
    }
    let resource = kinds.get(&key)?.as_ref()?;
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &target.namespace, resource);
    api.get_metadata_opt(&target.name).await.ok()??.metadata.uid
}

/// One prediction a workload: of several autoscalers the oldest counts, then the first by name.
fn chosen(list: &[Value]) -> BTreeMap<Target, Prediction> {
    let text = |v: &Value, place: &str| v.pointer(place).and_then(Value::as_str).map(str::to_owned);
    let mut order: Vec<&Value> = list.iter().collect();
    order.sort_by_key(|v| (text(v, "/metadata/creationTimestamp"), text(v, "/metadata/name")));
    let mut all = BTreeMap::new();
    for object in order {
        if text(object, "/spec/updatePolicy/updateMode").as_deref() == Some("Off") {
            continue;
        }
        let target = || {
            Some(Target {
                namespace: text(object, "/metadata/namespace")?,
                api_version: text(object, "/spec/targetRef/apiVersion")?,
                kind: text(object, "/spec/targetRef/kind")?,
                name: text(object, "/spec/targetRef/name")?,
            })
        };
        let Some(target) = target() else { continue };
        let prediction = prediction(object);
        if !prediction.is_empty() {
            all.entry(target).or_insert(prediction);
        }
    }
    all
}

/// What an autoscaler will make each container request.
fn prediction(object: &Value) -> Prediction {
    let recommended = object.pointer("/status/recommendation/containerRecommendations");
    recommended
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|container| {
            let name = container["containerName"].as_str()?;
            let policy = policy(object, name);
            if policy.is_some_and(|p| p["mode"] == "Off") {
                return None;
            }
            let limit = |field: &str| policy.map(|p| amounts(&p[field])).unwrap_or_default();
            let (least, most) = (limit("minAllowed"), limit("maxAllowed"));
            let mut target = amounts(&container["target"]);
            let clamped: Vec<(Name, i64)> = target
                .iter()
                .map(|(resource, value)| {
                    let low = least.find(resource).map_or(value, |l| value.max(l));
                    (resource.clone(), most.find(resource).map_or(low, |m| low.min(m)))
                })
                .collect();
            for (resource, value) in clamped {
                target.set(resource, value);
            }
            boost(&mut target, object, policy);
            Some((name.to_owned(), target))
        })
        .collect()
}

/// The policy of a container, or the one for all.
fn policy<'a>(object: &'a Value, container: &str) -> Option<&'a Value> {
    let list = object.pointer("/spec/resourcePolicy/containerPolicies")?.as_array()?;
    let named = |name: &str| list.iter().find(|p| p["containerName"] == name);
    named(container).or_else(|| named("*"))
}

/// More cpu for the start, as the container's policy or the autoscaler asks for it.
fn boost(target: &mut ResourceList, object: &Value, policy: Option<&Value>) {
    let own = policy.and_then(|p| p.pointer("/startupBoost/cpu"));
    let Some(boost) = own.or_else(|| object.pointer("/spec/startupBoost/cpu")) else { return };
    let cpu = target.get(&Name::Cpu);
    let boosted = match boost["type"].as_str().unwrap_or("Factor") {
        "Factor" => cpu.saturating_mul(boost["factor"].as_i64().unwrap_or(1).max(1)),
        "Quantity" => {
            let more = amounts(&serde_json::json!({"cpu": boost["quantity"]}));
            cpu.saturating_add(more.get(&Name::Cpu))
        }
        _ => cpu,
    };
    if target.find(&Name::Cpu).is_some() {
        target.set(Name::Cpu, boosted);
    }
}

fn amounts(value: &Value) -> ResourceList {
    let map = serde_json::from_value(value.clone()).unwrap_or_default();
    ResourceList::from_quantities_lossy(Some(&map))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn autoscaler(name: &str, created: &str, cpu: &str, spec: Value) -> Value {
        let mut object = json!({
            "metadata": {"name": name, "namespace": "n", "creationTimestamp": created},
            "spec": {"targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}},
            "status": {"recommendation": {"containerRecommendations": [
                {"containerName": "c", "target": {"cpu": cpu, "memory": "1Gi"}}]}}});
        object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        object
    }

    fn cpu(list: &[Value]) -> Option<i64> {
        let all = chosen(list);
        assert!(all.len() <= 1);
        Some(all.into_values().next()?["c"].get(&Name::Cpu))
    }

    #[test]
    fn targets_are_kept_within_bounds_and_boosted() {
        let with = |spec: Value| cpu(&[autoscaler("a", "2026-01-01T00:00:00Z", "500m", spec)]);
        let policy = |fields: Value| {
            let mut policy = json!({"containerName": "*"});
            policy.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            json!({"resourcePolicy": {"containerPolicies": [policy]}})
        };
        assert_eq!(with(json!({})), Some(500));
        assert_eq!(with(policy(json!({"minAllowed": {"cpu": "1"}}))), Some(1000));
        assert_eq!(with(policy(json!({"maxAllowed": {"cpu": "200m"}}))), Some(200));
        assert_eq!(with(policy(json!({"mode": "Off"}))), None);
        assert_eq!(with(json!({"updatePolicy": {"updateMode": "Off"}})), None);
        let factor = json!({"startupBoost": {"cpu": {"type": "Factor", "factor": 3}}});
        assert_eq!(with(factor), Some(1500));
        let more = json!({"startupBoost": {"cpu": {"type": "Quantity", "quantity": "250m"}}});
        assert_eq!(with(more), Some(750));
    }

    #[test]
    fn the_oldest_of_several_counts() {
        let old = autoscaler("b", "2026-01-01T00:00:00Z", "1", json!({}));
        let new = autoscaler("a", "2026-02-01T00:00:00Z", "2", json!({}));
        let twin = autoscaler("a", "2026-01-01T00:00:00Z", "3", json!({}));
        assert_eq!(cpu(&[new.clone(), old.clone()]), Some(1000));
        assert_eq!(cpu(&[old, new, twin]), Some(3000));
    }

    #[test]
    fn predictions_are_found_by_workload() {
        let store = Predictions::default();
        assert!(store.of("u").is_none());
        let prediction = Prediction::from([("c".to_owned(), ResourceList::new())]);
        store.replace(HashMap::from([("u".to_owned(), Arc::new(prediction.clone()))]));
        assert_eq!(*store.of("u").unwrap(), prediction);
    }
}
