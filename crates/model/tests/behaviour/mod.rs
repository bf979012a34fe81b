//! How an API server behaves, as far as controllers rely on it: written once, run against the
//! server in process and, end to end, against a real one.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use karpenter_api::v1::{NodeClaim, NodePool};
use kube::api::{
    DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams, Preconditions,
    WatchEvent, WatchParams,
};
use kube::core::Status;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const SPACE: &str = "default";

type Outcome<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A server under test: a client, and a way to let old versions be forgotten.
pub struct Server {
    pub client: Client,
    pub forget: Box<dyn Fn() + Send + Sync>,
}

macro_rules! behaviours {
    ($($name:ident),* $(,)?) => {
        /// Every behaviour by name.
        #[allow(dead_code, reason = "one of the two places that include this runs them by name")]
        pub const ALL: &[(&str, for<'a> fn(&'a Server) -> Outcome<'a>)] =
            &[$((stringify!($name), |server| Box::pin($name(server)))),*];

        /// Makes a test of each behaviour.
        #[allow(unused_macros, reason = "one of the two places that include this uses it")]
        macro_rules! each_behaviour {
            ($run:path) => { $(
                #[tokio::test(start_paused = true)]
                async fn $name() {
                    $run(|server| Box::pin(behaviour::$name(server))).await;
                }
            )* };
        }
    };
}

behaviours!(
    a_new_object_gets_its_identity_and_exists_only_once,
    a_generated_name_ends_with_five_letters,
    a_missing_object_is_not_found,
    a_patch_with_an_old_version_is_a_conflict,
    a_null_in_a_merge_patch_removes_a_field,
    a_replacement_with_an_old_version_is_a_conflict,
    a_custom_resource_is_not_replaced_without_a_version,
    a_patch_that_changes_nothing_makes_no_new_version,
    a_json_patch_whose_test_fails_changes_nothing,
    the_status_is_written_through_its_subresource_only,
    the_generation_counts_changes_of_the_spec,
    finalizers_hold_an_object_that_is_deleted,
    a_pod_on_a_node_is_deleted_after_its_grace_period,
    a_pod_without_a_node_is_deleted_at_once,
    a_deletion_with_another_uid_is_a_conflict,
    fields_and_labels_select,
    pages_show_one_version,
    a_watch_shows_what_happens,
    a_watch_with_a_selector_shows_what_comes_and_goes,
    a_watch_from_a_forgotten_version_has_expired,
    an_eviction_respects_its_budget,
    two_budgets_of_a_pod_are_an_error,
    a_pod_is_bound_once,
    what_the_schema_forbids_is_invalid,
    defaults_of_the_schema_are_filled_in,
    a_namespace_has_to_exist,
    a_new_node_takes_no_pods_before_it_is_ready,
    leases_and_events_are_stored,
    discovery_names_the_custom_resources,
    a_collection_is_deleted_by_label,
);

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

async fn create<K>(api: &Api<K>, value: Value) -> K
where
    K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    api.create(&PostParams::default(), &object(value)).await.unwrap()
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, kube::Error>) -> Status {
    match outcome {
        Err(kube::Error::Api(status)) => *status,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

fn maps(server: &Server) -> Api<ConfigMap> {
    Api::namespaced(server.client.clone(), SPACE)
}

fn pods(server: &Server) -> Api<Pod> {
    Api::namespaced(server.client.clone(), SPACE)
}

fn merge(value: Value) -> Patch<Value> {
    Patch::Merge(value)
}

fn map(name: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { "a": "1", "b": "2" } }, "data": { "k": "v" } })
}

fn pod(name: &str, app: &str, node: Option<&str>) -> Value {
    let mut pod = json!({ "metadata": { "name": name, "labels": { "app": app } },
        "spec": { "containers": [{ "name": "c", "image": "image" }],
            // Nobody schedules it behind the test's back.
            "schedulerName": "nobody", "terminationGracePeriodSeconds": 60 } });
    if let Some(node) = node {
        pod["spec"]["nodeName"] = json!(node);
    }
    pod
}

fn claim(name: &str) -> Value {
    json!({ "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "metadata": { "name": name },
        "spec": { "nodeClassRef": { "group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
                "name": "default" },
            "requirements": [{ "key": "kubernetes.io/os", "operator": "In", "values": ["linux"] }],
            "expireAfter": "720h" } })
}

pub async fn a_new_object_gets_its_identity_and_exists_only_once(server: &Server) {
    let made = create(&maps(server), map("identity")).await;
    let meta = &made.metadata;
    assert_eq!(meta.uid.as_deref().unwrap().len(), 36);
    assert!(meta.resource_version.as_deref().is_some_and(|v| !v.is_empty()));
    assert!(meta.creation_timestamp.is_some());
    assert_eq!(meta.namespace.as_deref(), Some(SPACE));
    let again =
        refused(maps(server).create(&PostParams::default(), &object(map("identity"))).await);
    assert_eq!((again.code, again.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(again.message, "configmaps \"identity\" already exists");
}

pub async fn a_generated_name_ends_with_five_letters(server: &Server) {
    let value = json!({ "metadata": { "generateName": "made-" } });
    let one = create(&maps(server), value.clone()).await.name_any();
    let two = create(&maps(server), value).await.name_any();
    assert_ne!(one, two);
    let end = one.strip_prefix("made-").unwrap();
    assert_eq!(end.len(), 5);
    assert!(end.chars().all(|c| "bcdfghjklmnpqrstvwxz2456789".contains(c)), "{end}");
}

pub async fn a_missing_object_is_not_found(server: &Server) {
    let status = refused(maps(server).get("nowhere").await);
    assert_eq!((status.code, status.reason.as_str()), (404, "NotFound"));
    assert_eq!(status.message, "configmaps \"nowhere\" not found");
    let patch = merge(json!({ "data": {} }));
    assert_eq!(
        refused(maps(server).patch("nowhere", &PatchParams::default(), &patch).await).code,
        404
    );
    let deleted = maps(server).delete("nowhere", &DeleteParams::default()).await;
    assert_eq!(refused(deleted).code, 404);
    assert!(maps(server).get_opt("nowhere").await.unwrap().is_none());
}

pub async fn a_patch_with_an_old_version_is_a_conflict(server: &Server) {
    let old = create(&maps(server), map("versions")).await;
    let params = PatchParams::default();
    let new = maps(server)
        .patch("versions", &params, &merge(json!({ "data": { "k": "w" } })))
        .await
        .unwrap();
    assert_ne!(old.metadata.resource_version, new.metadata.resource_version);
    let locked = |version: &Option<String>| {
        merge(json!({ "metadata": { "resourceVersion": version }, "data": { "k": "x" } }))
    };
    let status = refused(
        maps(server).patch("versions", &params, &locked(&old.metadata.resource_version)).await,
    );
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert!(status.message.contains("the object has been modified"), "{}", status.message);
    let done = maps(server)
        .patch("versions", &params, &locked(&new.metadata.resource_version))
        .await
        .unwrap();
    assert_eq!(done.data.unwrap()["k"], "x");
}

pub async fn a_null_in_a_merge_patch_removes_a_field(server: &Server) {
    create(&maps(server), map("nulls")).await;
    let patch = merge(json!({ "metadata": { "labels": { "a": null, "c": "3" } }, "data": null }));
    let done = maps(server).patch("nulls", &PatchParams::default(), &patch).await.unwrap();
    let labels: Vec<_> = done.labels().clone().into_iter().collect();
    let text = |s: &str| s.to_owned();
    assert_eq!(labels, [(text("b"), text("2")), (text("c"), text("3"))]);
    assert!(done.data.is_none());
}

pub async fn a_replacement_with_an_old_version_is_a_conflict(server: &Server) {
    let old = create(&maps(server), map("replaced")).await;
    let mut new = old.clone();
    new.data.get_or_insert_default().insert("k".into(), "w".into());
    let new = maps(server).replace("replaced", &PostParams::default(), &new).await.unwrap();
    assert_eq!(new.data.as_ref().unwrap()["k"], "w");
    let status = refused(maps(server).replace("replaced", &PostParams::default(), &old).await);
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
}

pub async fn a_custom_resource_is_not_replaced_without_a_version(server: &Server) {
    let api = Api::<NodeClaim>::all(server.client.clone());
    let mut claim = create(&api, claim("unversioned")).await;
    claim.metadata.resource_version = None;
    let status = refused(api.replace("unversioned", &PostParams::default(), &claim).await);
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    assert!(status.message.contains("must be specified for an update"), "{}", status.message);
}

pub async fn a_patch_that_changes_nothing_makes_no_new_version(server: &Server) {
    let old = create(&maps(server), map("same")).await;
    let patch = merge(json!({ "data": { "k": "v" } }));
    let new = maps(server).patch("same", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(old.metadata.resource_version, new.metadata.resource_version);
}

pub async fn a_json_patch_whose_test_fails_changes_nothing(server: &Server) {
    create(&maps(server), map("tested")).await;
    let patch = async |value: &str| {
        let list = json!([
            { "op": "test", "path": "/data/k", "value": value },
            { "op": "replace", "path": "/data/k", "value": "w" },
        ]);
        let request = http::Request::patch(format!("/api/v1/namespaces/{SPACE}/configmaps/tested"))
            .header("content-type", "application/json-patch+json")
            .body(list.to_string().into_bytes())
            .unwrap();
        server.client.request::<ConfigMap>(request).await
    };
    assert_eq!(refused(patch("other").await).code, 422);
    assert_eq!(maps(server).get("tested").await.unwrap().data.unwrap()["k"], "v");
    assert_eq!(patch("v").await.unwrap().data.unwrap()["k"], "w");
}

pub async fn the_status_is_written_through_its_subresource_only(server: &Server) {
    let api = Api::<NodeClaim>::all(server.client.clone());
    let mut value = claim("status");
    value["status"] = json!({ "nodeName": "early" });
    let made = create(&api, value).await;
    assert_eq!(made.status.and_then(|s| s.node_name), None);
    let params = PatchParams::default();
    let both = |node: &str, label: &str| {
        merge(json!({ "metadata": { "labels": { "l": label } }, "status": { "nodeName": node } }))
    };
    let main = api.patch("status", &params, &both("main", "1")).await.unwrap();
    assert_eq!(main.labels()["l"], "1");
    assert_eq!(main.status.and_then(|s| s.node_name), None);
    let sub = api.patch_status("status", &params, &both("sub", "2")).await.unwrap();
    assert_eq!(sub.labels()["l"], "1");
    assert_eq!(sub.status.and_then(|s| s.node_name).as_deref(), Some("sub"));
}

pub async fn the_generation_counts_changes_of_the_spec(server: &Server) {
    let api = Api::<NodePool>::all(server.client.clone());
    let made = create(&api, pool("generations")).await;
    assert_eq!(made.metadata.generation, Some(1));
    let params = PatchParams::default();
    let patch = merge(json!({ "metadata": { "labels": { "l": "1" } } }));
    let labelled = api.patch("generations", &params, &patch).await.unwrap();
    assert_eq!(labelled.metadata.generation, Some(1));
    let patch = merge(json!({ "spec": { "weight": 7 } }));
    let weighed = api.patch("generations", &params, &patch).await.unwrap();
    assert_eq!(weighed.metadata.generation, Some(2));
    let patch = merge(json!({ "status": { "resources": { "cpu": "1" } } }));
    let counted = api.patch_status("generations", &params, &patch).await.unwrap();
    assert_eq!(counted.metadata.generation, Some(2));
}

pub async fn finalizers_hold_an_object_that_is_deleted(server: &Server) {
    let mut value = map("held");
    value["metadata"]["finalizers"] = json!(["example.com/one"]);
    create(&maps(server), value).await;
    maps(server).delete("held", &DeleteParams::default()).await.unwrap();
    let held = maps(server).get("held").await.unwrap();
    assert!(held.metadata.deletion_timestamp.is_some());
    let params = PatchParams::default();
    let more =
        merge(json!({ "metadata": { "finalizers": ["example.com/one", "example.com/two"] } }));
    let status = refused(maps(server).patch("held", &params, &more).await);
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    let none = merge(json!({ "metadata": { "finalizers": null } }));
    maps(server).patch("held", &params, &none).await.unwrap();
    assert!(maps(server).get_opt("held").await.unwrap().is_none());
}

pub async fn a_pod_on_a_node_is_deleted_after_its_grace_period(server: &Server) {
    node(server, "grace-node").await;
    create(&pods(server), pod("graceful", "grace", Some("grace-node"))).await;
    pods(server).delete("graceful", &DeleteParams::default()).await.unwrap();
    let held = pods(server).get("graceful").await.unwrap();
    assert!(held.metadata.deletion_timestamp.is_some());
    assert_eq!(held.metadata.deletion_grace_period_seconds, Some(60));
    // It may become shorter, not longer.
    pods(server).delete("graceful", &DeleteParams::default().grace_period(90)).await.unwrap();
    let held = pods(server).get("graceful").await.unwrap();
    assert_eq!(held.metadata.deletion_grace_period_seconds, Some(60));
    pods(server).delete("graceful", &DeleteParams::default().grace_period(20)).await.unwrap();
    let held = pods(server).get("graceful").await.unwrap();
    assert_eq!(held.metadata.deletion_grace_period_seconds, Some(20));
    pods(server).delete("graceful", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(pods(server).get_opt("graceful").await.unwrap().is_none());
}

pub async fn a_pod_without_a_node_is_deleted_at_once(server: &Server) {
    create(&pods(server), pod("homeless", "grace", None)).await;
    pods(server).delete("homeless", &DeleteParams::default()).await.unwrap();
    assert!(pods(server).get_opt("homeless").await.unwrap().is_none());
}

pub async fn a_deletion_with_another_uid_is_a_conflict(server: &Server) {
    create(&maps(server), map("other")).await;
    let wanted = |uid: &str| DeleteParams {
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    let other = wanted("00000000-0000-4000-8000-000000000000");
    let status = refused(maps(server).delete("other", &other).await);
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let uid = maps(server).get("other").await.unwrap().uid().unwrap();
    maps(server).delete("other", &wanted(&uid)).await.unwrap();
}

pub async fn fields_and_labels_select(server: &Server) {
    node(server, "select-node").await;
    create(&pods(server), pod("selected", "select", Some("select-node"))).await;
    create(&pods(server), pod("waiting", "select", None)).await;
    let names = async |params: ListParams| -> Vec<String> {
        let list = pods(server).list(&params).await.unwrap();
        list.items.iter().map(ResourceExt::name_any).collect()
    };
    let by = |labels: &str, fields: &str| ListParams::default().labels(labels).fields(fields);
    assert_eq!(names(by("app=select", "spec.nodeName=select-node")).await, ["selected"]);
    assert_eq!(names(by("app in (select)", "spec.nodeName=")).await, ["waiting"]);
    assert_eq!(names(by("app=select", "")).await, ["selected", "waiting"]);
    assert_eq!(names(by("app=select", "metadata.name!=selected")).await, ["waiting"]);
    assert!(names(by("app=select,!app", "")).await.is_empty());
    for name in ["selected", "waiting"] {
        pods(server).delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    }
}

pub async fn pages_show_one_version(server: &Server) {
    for n in 0..5 {
        let value =
            json!({ "metadata": { "name": format!("page-{n}"), "labels": { "page": "1" } } });
        create(&maps(server), value).await;
    }
    let params = ListParams::default().labels("page=1").limit(2);
    let first = maps(server).list(&params).await.unwrap();
    assert_eq!(first.items.len(), 2);
    let late = json!({ "metadata": { "name": "page-15", "labels": { "page": "1" } } });
    create(&maps(server), late).await;
    let mut names: Vec<String> = first.items.iter().map(ResourceExt::name_any).collect();
    let mut next = first.metadata.continue_.clone();
    while let Some(token) = next.filter(|t| !t.is_empty()) {
        let page = maps(server).list(&params.clone().continue_token(&token)).await.unwrap();
        names.extend(page.items.iter().map(ResourceExt::name_any));
        assert_eq!(page.metadata.resource_version, first.metadata.resource_version);
        next = page.metadata.continue_;
    }
    assert_eq!(names, ["page-0", "page-1", "page-2", "page-3", "page-4"]);
}

/// What a watch shows, as `TYPE name`.
async fn shown(server: &Server, labels: &str, version: &str, count: usize) -> Vec<String> {
    let params = WatchParams::default().labels(labels).timeout(20);
    let stream = maps(server).watch(&params, version).await.unwrap();
    let lines = stream.try_filter_map(async |event| {
        Ok(match event {
            WatchEvent::Added(o) => Some(format!("ADDED {}", o.name_any())),
            WatchEvent::Modified(o) => Some(format!("MODIFIED {}", o.name_any())),
            WatchEvent::Deleted(o) => Some(format!("DELETED {}", o.name_any())),
            WatchEvent::Error(status) => Some(format!("ERROR {}", status.code)),
            WatchEvent::Bookmark(_) => None,
        })
    });
    lines.take(count).try_collect().await.unwrap()
}

pub async fn a_watch_shows_what_happens(server: &Server) {
    let value = |name: &str| json!({ "metadata": { "name": name, "labels": { "watch": "1" } } });
    let first = create(&maps(server), value("watched-1")).await;
    let version = first.metadata.resource_version.unwrap();
    create(&maps(server), value("watched-2")).await;
    let patch = merge(json!({ "data": { "k": "v" } }));
    maps(server).patch("watched-1", &PatchParams::default(), &patch).await.unwrap();
    maps(server).delete("watched-2", &DeleteParams::default()).await.unwrap();
    let lines = shown(server, "watch=1", &version, 3).await;
    assert_eq!(lines, ["ADDED watched-2", "MODIFIED watched-1", "DELETED watched-2"]);
    // From no version: what is there first.
    assert_eq!(shown(server, "watch=1", "0", 1).await, ["ADDED watched-1"]);
}

pub async fn a_watch_with_a_selector_shows_what_comes_and_goes(server: &Server) {
    let value = json!({ "metadata": { "name": "comes", "labels": { "in": "no" } } });
    let first = create(&maps(server), value).await;
    let version = first.metadata.resource_version.unwrap();
    for label in ["yes", "yes", "no"] {
        let patch = merge(json!({ "metadata": { "labels": { "in": label, "n": label } },
            "data": { "k": label } }));
        maps(server).patch("comes", &PatchParams::default(), &patch).await.unwrap();
    }
    let lines = shown(server, "in=yes", &version, 2).await;
    assert_eq!(lines, ["ADDED comes", "DELETED comes"]);
}

pub async fn a_watch_from_a_forgotten_version_has_expired(server: &Server) {
    create(&maps(server), map("forgotten")).await;
    (server.forget)();
    let stream = maps(server).watch(&WatchParams::default().timeout(20), "1").await;
    let code = match stream {
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
        Ok(stream) => match Box::pin(stream).next().await {
            Some(Ok(WatchEvent::Error(status))) => status.code,
            other => panic!("expected an error, found {other:?}"),
        },
    };
    assert_eq!(code, 410);
}

async fn node(server: &Server, name: &str) {
    let api = Api::<Node>::all(server.client.clone());
    create(&api, json!({ "metadata": { "name": name } })).await;
}

/// Pods that run on a node and are ready.
async fn running(server: &Server, app: &str, names: &[&str]) {
    let on = format!("{app}-node");
    node(server, &on).await;
    for name in names {
        create(&pods(server), pod(name, app, Some(&on))).await;
        let status = merge(json!({ "status": { "phase": "Running", "conditions":
            [{ "type": "Ready", "status": "True" }] } }));
        pods(server).patch_status(name, &PatchParams::default(), &status).await.unwrap();
    }
}

async fn budget(server: &Server, name: &str, app: &str, allowed: i32) {
    let api = Api::<PodDisruptionBudget>::namespaced(server.client.clone(), SPACE);
    create(
        &api,
        json!({ "metadata": { "name": name }, "spec": { "maxUnavailable": 1,
            "selector": { "matchLabels": { "app": app } } } }),
    )
    .await;
    // Pods without a controller make the disruption controller count nothing: the status is ours.
    for _ in 0..100 {
        let found = api.get(name).await.unwrap();
        let generation = found.metadata.generation;
        let status = merge(json!({ "status": { "disruptionsAllowed": allowed, "currentHealthy": 2,
            "desiredHealthy": 2 - allowed, "expectedPods": 2, "observedGeneration": generation } }));
        api.patch_status(name, &PatchParams::default(), &status).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = api.get(name).await.unwrap().status.unwrap_or_default();
        if now.disruptions_allowed == Some(allowed) && now.observed_generation == generation {
            return;
        }
    }
    panic!("the budget's status does not stay as it was written");
}

pub async fn an_eviction_respects_its_budget(server: &Server) {
    running(server, "evict", &["evict-1", "evict-2", "free"]).await;
    budget(server, "evict", "evict", 0).await;
    let evict = async |name: &str| pods(server).evict(name, &EvictParams::default()).await;
    let status = refused(evict("evict-1").await);
    assert_eq!((status.code, status.reason.as_str()), (429, "TooManyRequests"));
    let text = "Cannot evict pod as it would violate the pod's disruption budget.";
    assert_eq!(status.message, text);
    assert_eq!(status.details.unwrap().causes[0].reason, "DisruptionBudget");
    assert!(pods(server).get("evict-1").await.unwrap().metadata.deletion_timestamp.is_none());
    // What no budget selects goes; so does what is being deleted already.
    let patch = merge(json!({ "metadata": { "labels": { "app": "free" } } }));
    pods(server).patch("free", &PatchParams::default(), &patch).await.unwrap();
    evict("free").await.unwrap();
    assert!(pods(server).get("free").await.unwrap().metadata.deletion_timestamp.is_some());
    evict("free").await.unwrap();
    assert_eq!(refused(evict("nowhere").await).code, 404);
}

pub async fn two_budgets_of_a_pod_are_an_error(server: &Server) {
    running(server, "twice", &["twice-1"]).await;
    budget(server, "twice-1", "twice", 0).await;
    budget(server, "twice-2", "twice", 0).await;
    let status = refused(pods(server).evict("twice-1", &EvictParams::default()).await);
    assert_eq!(status.code, 500);
    assert!(status.message.contains("more than one PodDisruptionBudget"), "{}", status.message);
}

pub async fn a_pod_is_bound_once(server: &Server) {
    node(server, "bind-node").await;
    create(&pods(server), pod("bound", "bind", None)).await;
    let bind = async |name: &str| {
        let body = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": "bind-node" } });
        let request =
            http::Request::post(format!("/api/v1/namespaces/{SPACE}/pods/{name}/binding"))
                .header("content-type", "application/json")
                .body(body.to_string().into_bytes())
                .unwrap();
        server.client.request::<Value>(request).await
    };
    bind("bound").await.unwrap();
    let found = pods(server).get("bound").await.unwrap();
    assert_eq!(found.spec.unwrap().node_name.as_deref(), Some("bind-node"));
    assert_eq!(refused(bind("bound").await).code, 409);
    assert_eq!(refused(bind("nowhere").await).code, 404);
}

pub async fn what_the_schema_forbids_is_invalid(server: &Server) {
    let api = Api::<NodePool>::all(server.client.clone());
    let mut value = pool("invalid");
    value["spec"]["template"]["spec"]["requirements"] =
        json!([{ "key": "kubernetes.io/hostname", "operator": "Exists" }]);
    let status = refused(api.create(&PostParams::default(), &object(value)).await);
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
}

fn pool(name: &str) -> Value {
    json!({ "apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": { "name": name },
        "spec": { "template": { "spec": {
            "nodeClassRef": { "group": "karpenter.k8s.aws", "kind": "EC2NodeClass",
                "name": "default" },
            "requirements": [{ "key": "kubernetes.io/os", "operator": "In", "values": ["linux"] }],
        } } } })
}

pub async fn defaults_of_the_schema_are_filled_in(server: &Server) {
    let made: Value = {
        let request = http::Request::post("/apis/karpenter.sh/v1/nodepools")
            .header("content-type", "application/json")
            .body(pool("defaults").to_string().into_bytes())
            .unwrap();
        server.client.request(request).await.unwrap()
    };
    assert_eq!(made["spec"]["disruption"]["consolidateAfter"], "0s");
    assert_eq!(made["spec"]["disruption"]["budgets"], json!([{ "nodes": "10%" }]));
    assert_eq!(made["spec"]["template"]["spec"]["expireAfter"], "720h");
}

pub async fn a_namespace_has_to_exist(server: &Server) {
    let api = Api::<ConfigMap>::namespaced(server.client.clone(), "no-such-space");
    let status = refused(api.create(&PostParams::default(), &object(map("lost"))).await);
    assert_eq!((status.code, status.reason.as_str()), (404, "NotFound"));
    assert_eq!(status.message, "namespaces \"no-such-space\" not found");
}

pub async fn a_new_node_takes_no_pods_before_it_is_ready(server: &Server) {
    let api = Api::<Node>::all(server.client.clone());
    let made = create(&api, json!({ "metadata": { "name": "new-node" } })).await;
    let taints = made.spec.unwrap().taints.unwrap_or_default();
    let found = |t: &k8s_openapi::api::core::v1::Taint| {
        t.key == "node.kubernetes.io/not-ready" && t.effect == "NoSchedule"
    };
    assert!(taints.iter().any(found), "{taints:?}");
}

pub async fn leases_and_events_are_stored(server: &Server) {
    let leases = Api::<Lease>::namespaced(server.client.clone(), SPACE);
    let made = create(
        &leases,
        json!({ "metadata": { "name": "leader" }, "spec": { "holderIdentity": "a",
            "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.000000Z" } }),
    )
    .await;
    let mut taken = made.clone();
    taken.spec.get_or_insert_default().holder_identity = Some("b".into());
    leases.replace("leader", &PostParams::default(), &taken).await.unwrap();
    let late = refused(leases.replace("leader", &PostParams::default(), &made).await);
    assert_eq!(late.code, 409);
    let events = Api::<Event>::namespaced(server.client.clone(), SPACE);
    let event = create(
        &events,
        json!({ "metadata": { "generateName": "node." }, "reason": "Tested", "type": "Normal",
            "message": "m", "involvedObject": { "kind": "Pod", "namespace": SPACE, "name": "p" },
            "source": { "component": "test" } }),
    )
    .await;
    assert!(event.name_any().starts_with("node."));
}

pub async fn discovery_names_the_custom_resources(server: &Server) {
    let list = server.client.list_api_group_resources("karpenter.sh/v1").await.unwrap();
    for (plural, kind) in [("nodeclaims", "NodeClaim"), ("nodepools", "NodePool")] {
        let found = list.resources.iter().find(|r| r.name == plural).unwrap();
        assert_eq!((found.kind.as_str(), found.namespaced), (kind, false));
    }
    let none = refused(server.client.list_api_group_resources("karpenter.sh/v7").await);
    assert_eq!(none.code, 404);
}

pub async fn a_collection_is_deleted_by_label(server: &Server) {
    for (name, group) in [("collected-1", "x"), ("collected-2", "x"), ("collected-3", "y")] {
        let value = json!({ "metadata": { "name": name, "labels": { "collect": group } } });
        create(&maps(server), value).await;
    }
    let which = ListParams::default().labels("collect=x");
    maps(server).delete_collection(&DeleteParams::default(), &which).await.unwrap();
    let left = maps(server).list(&ListParams::default().labels("collect")).await.unwrap();
    let names: Vec<String> = left.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["collected-3"]);
}
