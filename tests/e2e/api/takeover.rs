//! Taking over clusters that other releases of Karpenter ran.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use karpenter::api::annotations::{
    EC2NODECLASS_HASH, EC2NODECLASS_HASH_VERSION, KUBELET_DRIFT_HASH, NODEPOOL_HASH,
    NODEPOOL_HASH_VERSION,
};
use karpenter::api::{crds, hash};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::api;
use crate::chain::one_initialized;
use crate::support::world::root;
use crate::support::{Controller, World, stays, until};

/// The definitions as they were when there was only v1beta1.
fn old_definitions() -> String {
    let mut text = String::new();
    for (_, mut crd) in crds::all() {
        let versions = crd["spec"]["versions"].as_array().unwrap().clone();
        if versions.len() < 2 {
            continue;
        }
        let mut old = versions.into_iter().find(|v| v["name"] == "v1beta1").unwrap();
        old["storage"] = json!(true);
        crd["spec"]["versions"] = json!([old]);
        crd["spec"].as_object_mut().unwrap().remove("conversion");
        text.push_str(&crds::to_yaml(&crd));
    }
    text
}

/// A cluster of 0.37: objects are stored as v1beta1, the kubelet's settings in the NodePool.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_v1beta1_goes_on_with_its_settings() {
    let world = World::bare(&[]).await;
    world.kubectl_with(&["apply", "-f", "-"], &old_definitions()).unwrap();
    world.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]);
    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    let pools = api(&world.kube, "karpenter.sh/v1beta1", "NodePool");
    let kubelet = json!({"spec": {"template": {"spec": {"kubelet": {"maxPods": 9}}}}});
    pools.patch("default", &PatchParams::default(), &Patch::Merge(&kubelet)).await.unwrap();

    let crds = root().join("crds").to_string_lossy().into_owned();
    world.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &crds]);
    let _controller = Controller::start(&world);
    world.deploy("inflate", 2, "250m", "200Mi").await;
    let claim = one_initialized(&world).await;
    let node = &world.nodes().await[0];
    let capacity = node.status.as_ref().and_then(|s| s.allocatable.as_ref()).unwrap();
    assert_eq!(capacity["pods"].0, "9", "the pool's own kubelet settings count");

    // In v1beta1 everything looks as it did.
    let pool = pools.get("default").await.unwrap();
    assert_eq!(pool.data["spec"]["template"]["spec"]["kubelet"], json!({"maxPods": 9}));
    let claims = api(&world.kube, "karpenter.sh/v1beta1", "NodeClaim");
    let name = claim.metadata.name.as_deref().unwrap();
    let beta = claims.get(name).await.unwrap();
    assert_eq!(beta.data["spec"]["kubelet"], json!({"maxPods": 9}));

    // And nothing is stored as v1beta1 any more.
    let definitions = Api::<CustomResourceDefinition>::all(world.kube.clone());
    for name in ["nodepools.karpenter.sh", "ec2nodeclasses.karpenter.k8s.aws"] {
        until(&format!("{name} stored as v1 only"), || async {
            let crd = definitions.get(name).await.unwrap();
            let stored = crd.status.unwrap().stored_versions.unwrap();
            (stored == ["v1"]).then_some(())
        })
        .await;
    }
    the_settings_move_to_the_class(&world, name).await;
}

/// Kubelet settings that go from the pool to the class are no drift; a change of them is.
async fn the_settings_move_to_the_class(world: &World, claim: &str) {
    let claims = api(&world.kube, "karpenter.sh/v1", "NodeClaim");
    let drift = async || {
        let claim = claims.get(claim).await.unwrap();
        let list = claim.data["status"]["conditions"].as_array().unwrap().clone();
        list.into_iter().find(|c| c["type"] == "Drifted").map(|c| c["reason"].clone())
    };
    let marks = claims.get(claim).await.unwrap().metadata.annotations.unwrap();
    let kubelet = json!({"maxPods": 9});
    assert_eq!(marks[KUBELET_DRIFT_HASH], hash::kubelet_hash(kubelet.as_object()));

    let params = PatchParams::default();
    let classes = api(&world.kube, "karpenter.k8s.aws/v1", "EC2NodeClass");
    let put = |kubelet: &Value| Patch::Merge(json!({"spec": {"kubelet": kubelet}}));
    classes.patch("default", &params, &put(&kubelet)).await.unwrap();
    let pools = api(&world.kube, "karpenter.sh/v1beta1", "NodePool");
    let taken = json!({"spec": {"template": {"spec": {"kubelet": null}}}});
    pools.patch("default", &params, &Patch::Merge(&taken)).await.unwrap();
    stays(Duration::from_secs(20), "the claim's drift", None, &drift).await;
    classes.patch("default", &params, &put(&json!({"maxPods": 8}))).await.unwrap();
    until("drift of the class", || async {
        drift().await.filter(|reason| reason == "NodeClassDrift")
    })
    .await;
}

/// Hashes of other versions are stamped anew, not compared: nothing drifts on an upgrade.
#[tokio::test(flavor = "multi_thread")]
async fn hashes_of_other_versions_drift_nothing() {
    let world = World::up().await;
    let mut controller = Controller::start(&world);
    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    world.deploy("inflate", 1, "250m", "200Mi").await;
    let claim = one_initialized(&world).await;
    let name = claim.metadata.name.clone().unwrap();
    for (class_version, pool_version) in [("v5", "v2"), ("v2", "v2"), ("v99", "none of ours")] {
        controller.stop();
        let marks = json!({"metadata": {"annotations": {
            EC2NODECLASS_HASH: "1", EC2NODECLASS_HASH_VERSION: class_version,
            NODEPOOL_HASH: "2", NODEPOOL_HASH_VERSION: pool_version}}});
        for (version, kind, object) in [
            ("karpenter.sh/v1", "NodeClaim", name.as_str()),
            ("karpenter.sh/v1", "NodePool", "default"),
            ("karpenter.k8s.aws/v1", "EC2NodeClass", "default"),
        ] {
            let objects = api(&world.kube, version, kind);
            let params = PatchParams::default();
            objects.patch(object, &params, &Patch::Merge(&marks)).await.unwrap();
        }
        controller = Controller::start(&world);
        let claims = api(&world.kube, "karpenter.sh/v1", "NodeClaim");
        let of = async |version: &str, kind: &str, object: &str| {
            let found = api(&world.kube, version, kind).get(object).await.unwrap();
            found.metadata.annotations.unwrap_or_default()
        };
        until("every hash stamped anew", || async {
            let claim = claims.get(&name).await.ok()?.metadata.annotations?;
            let pool = of("karpenter.sh/v1", "NodePool", "default").await;
            let class = of("karpenter.k8s.aws/v1", "EC2NodeClass", "default").await;
            let same = claim.get(NODEPOOL_HASH) == pool.get(NODEPOOL_HASH)
                && claim.get(EC2NODECLASS_HASH) == class.get(EC2NODECLASS_HASH);
            let new = claim[NODEPOOL_HASH_VERSION] == "v3"
                && claim[EC2NODECLASS_HASH_VERSION] == "v6"
                && claim[NODEPOOL_HASH] != "2"
                && claim[EC2NODECLASS_HASH] != "1";
            (same && new).then_some(())
        })
        .await;
        let after = claims.get(&name).await.unwrap();
        let conditions = after.data["status"]["conditions"].as_array().unwrap();
        let drifted: Vec<&Value> = conditions.iter().filter(|c| c["type"] == "Drifted").collect();
        assert!(drifted.is_empty(), "{class_version}, {pool_version}: {drifted:?}");
        assert!(after.metadata.deletion_timestamp.is_none());
    }
    assert_eq!(world.instances().await.len(), 1);
}
