//! The kinds as a real API server has them: rules, defaults, columns, versions and conversion.

mod certificate;
mod conversion;
mod rules;
mod surface;
mod table;
mod takeover;

use std::collections::BTreeMap;

use karpenter::api::conversion as convert;
use karpenter::clock::Clock;
use karpenter::operator::settings::Settings;
use karpenter::operator::webhook;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::controller::free_port;
use crate::support::{World, until};

/// A world with the CRDs and the conversion webhook, but no controller that changes anything.
struct Served {
    world: World,
    port: u16,
    _tasks: JoinSet<()>,
}

impl Served {
    async fn up() -> Self {
        let world = World::up().await;
        let port = free_port();
        let mut tasks = JoinSet::new();
        serve(&world.kube, port, &mut tasks).await;
        let pools = api(&world.kube, "karpenter.sh/v1beta1", "NodePool");
        until("lists in v1beta1", || async { pools.list(&Default::default()).await.ok() }).await;
        Self { world, port, _tasks: tasks }
    }

    fn api(&self, api_version: &str, kind: &str) -> Api<DynamicObject> {
        api(&self.world.kube, api_version, kind)
    }

    /// Stores an object and gives it as the API server answers.
    async fn create(&self, object: &Value) -> Value {
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let made = self.api(version, kind).create(&PostParams::default(), &object).await;
        serde_json::to_value(made.unwrap_or_else(|e| panic!("{version} {kind}: {e}"))).unwrap()
    }

    async fn get(&self, api_version: &str, kind: &str, name: &str) -> Value {
        serde_json::to_value(self.api(api_version, kind).get(name).await.unwrap()).unwrap()
    }
}

/// Serves the webhook out of this process; claims find no pools.
async fn serve(client: &Client, port: u16, tasks: &mut JoinSet<()>) {
    let given = BTreeMap::from([
        ("CLUSTER_NAME", "weasel-eks".to_owned()),
        ("WEBHOOK_PORT", port.to_string()),
        ("WEBHOOK_URL", format!("https://127.0.0.1:{port}")),
    ]);
    let settings = Settings::parse(&[], |name| given.get(name).cloned()).unwrap();
    let review = |review: &Value| convert::review(review, &|_| Ok(None));
    webhook::start(client, &settings, "kube-system", &Clock::system(), review, tasks)
        .await
        .unwrap();
}

fn api(client: &Client, api_version: &str, kind: &str) -> Api<DynamicObject> {
    let (group, version) = api_version.split_once('/').unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    if kind == "CapacityBuffer" {
        return Api::namespaced_with(client.clone(), "default", &resource);
    }
    Api::all_with(client.clone(), &resource)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
