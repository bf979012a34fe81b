//! The API server in process behaves as a real one does (`behaviour.rs` runs against both), and
//! fails where it is configured to.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests may")]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use karpenter_model::api::{ApiServer, Call, Fault, FaultPlan, Journal, Store, kind};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchParams};
use serde_json::json;

#[macro_use]
mod behaviour;

use behaviour::Server;

fn server() -> ApiServer {
    let start = tokio::time::Instant::now();
    let base: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let store = Arc::new(Store::new(1, Arc::new(move || base + start.elapsed())));
    store.create(kind("namespaces"), "", json!({ "metadata": { "name": "default" } })).unwrap();
    ApiServer::new(store, Journal::default(), Duration::from_millis(1))
}

async fn run(
    behaviour: impl for<'a> FnOnce(&'a Server) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
) {
    let server = server();
    let store = Arc::clone(server.store());
    let forget = Box::new(move || store.compact());
    behaviour(&Server { client: server.client("test"), forget }).await;
}

each_behaviour!(run);

/// Makes every write go wrong in one way.
struct Every(Fault);

impl FaultPlan for Every {
    fn fault(&mut self, call: &Call) -> Option<Fault> {
        call.writes().then(|| self.0.clone())
    }

    fn staleness(&mut self, _call: &Call) -> u64 {
        1
    }
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_leaves_the_change_made() {
    let server = server();
    let api = Api::<ConfigMap>::namespaced(server.client("test"), "default");
    server.set_faults(Every(Fault::Lost));
    assert!(matches!(
        api.create(&PostParams::default(), &map("lost")).await,
        Err(kube::Error::Service(_))
    ));
    assert!(api.get_opt("lost").await.unwrap().is_some());
    server.set_faults(Every(Fault::Unreachable));
    assert!(api.create(&PostParams::default(), &map("never")).await.is_err());
    assert!(api.get_opt("never").await.unwrap().is_none());
    server.set_faults(Every(Fault::Refuse(429)));
    match api.create(&PostParams::default(), &map("busy")).await {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 429),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_may_be_old_lacks_the_last_change() {
    let server = server();
    let api = Api::<ConfigMap>::namespaced(server.client("test"), "default");
    api.create(&PostParams::default(), &map("one")).await.unwrap();
    api.create(&PostParams::default(), &map("two")).await.unwrap();
    server.set_faults(Every(Fault::Lost));
    let old = api.list(&ListParams::default().match_any()).await.unwrap();
    assert_eq!(old.items.len(), 1);
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_cut_ends() {
    use futures::StreamExt as _;
    let server = server();
    let api = Api::<ConfigMap>::namespaced(server.client("test"), "default");
    let made = api.create(&PostParams::default(), &map("one")).await.unwrap();
    let version = made.metadata.resource_version.unwrap();
    let mut stream = Box::pin(api.watch(&WatchParams::default(), &version).await.unwrap());
    server.cut_watches("other");
    let patch = Patch::Merge(json!({ "data": { "k": "v" } }));
    api.patch("one", &PatchParams::default(), &patch).await.unwrap();
    assert!(stream.next().await.is_some());
    server.cut_watches("test");
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_names() {
    let make = async || {
        let server = server();
        let api = Api::<ConfigMap>::namespaced(server.client("test"), "default");
        let value = json!({ "metadata": { "generateName": "made-" } });
        let made: ConfigMap = serde_json::from_value(value).unwrap();
        api.create(&PostParams::default(), &made).await.unwrap().metadata
    };
    assert_eq!(make().await, make().await);
}
