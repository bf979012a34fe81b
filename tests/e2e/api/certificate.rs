//! The webhook's certificate: made once, shared, renewed, and known to the CRDs.

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::task::JoinSet;

use super::{api, serve};
use crate::support::controller::free_port;
use crate::support::{World, until};

const CRDS: [&str; 3] =
    ["nodepools.karpenter.sh", "nodeclaims.karpenter.sh", "ec2nodeclasses.karpenter.k8s.aws"];

async fn secret(world: &World) -> Secret {
    let secrets = Api::<Secret>::namespaced(world.kube.clone(), "kube-system");
    secrets.get("karpenter-cert").await.unwrap()
}

fn part(secret: &Secret, key: &str) -> Vec<u8> {
    secret.data.as_ref().unwrap()[key].0.clone()
}

/// The bundles that the CRDs trust; none when one of them has none.
async fn bundles(world: &World) -> Option<Vec<Vec<u8>>> {
    let crds = Api::<CustomResourceDefinition>::all(world.kube.clone());
    let mut found = Vec::new();
    for name in CRDS {
        let crd = crds.get(name).await.unwrap();
        let webhook = crd.spec.conversion?.webhook?;
        found.push(webhook.client_config?.ca_bundle?.0);
    }
    Some(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_is_shared_and_renewed() {
    let world = World::up().await;
    // Two replicas start at the same time: there is one certificate.
    let (port, other) = (free_port(), free_port());
    let mut tasks = JoinSet::new();
    let mut others = JoinSet::new();
    tokio::join!(serve(&world.kube, port, &mut tasks), serve(&world.kube, other, &mut others));
    let first = secret(&world).await;
    until("bundles in the CRDs", || async {
        let wanted = part(&first, "ca-cert.pem");
        bundles(&world).await.filter(|all| all.iter().all(|b| *b == wanted))
    })
    .await;
    let pools = api(&world.kube, "karpenter.sh/v1beta1", "NodePool");
    until("lists in v1beta1", || async { pools.list(&Default::default()).await.ok() }).await;

    // Near its end it is replaced, and the old authority stays trusted for whoever still serves it.
    let near = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)).to_string();
    let patch = json!({"metadata": {"annotations": {"karpenter.sh/webhook-expires": near}}});
    let secrets = Api::<Secret>::namespaced(world.kube.clone(), "kube-system");
    secrets.patch("karpenter-cert", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    let renewed = until("another certificate", || async {
        let now = secret(&world).await;
        (part(&now, "server-cert.pem") != part(&first, "server-cert.pem")).then_some(now)
    })
    .await;
    let bundle = part(&renewed, "ca-cert.pem");
    let old = part(&first, "ca-cert.pem");
    assert!(bundle.len() > old.len() && bundle.ends_with(&old), "the old authority is kept");
    until("the new bundle in the CRDs", || async {
        bundles(&world).await.filter(|all| all.iter().all(|b| *b == bundle))
    })
    .await;
    // While replicas change over, and after, no list fails.
    for _ in 0..80 {
        pools.list(&Default::default()).await.expect("a list during the change");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }

    // Someone wipes a bundle, and the Secret: both come back.
    let crds = Api::<CustomResourceDefinition>::all(world.kube.clone());
    let wiped = json!({"spec": {"conversion": {"webhook": {"clientConfig": {"caBundle": null}}}}});
    crds.patch(CRDS[0], &PatchParams::default(), &Patch::Merge(&wiped)).await.unwrap();
    secrets.delete("karpenter-cert", &Default::default()).await.unwrap();
    until("everything back", || async {
        let now = secrets.get_opt("karpenter-cert").await.unwrap()?;
        let wanted = part(&now, "ca-cert.pem");
        bundles(&world).await.filter(|all| all.iter().all(|b| *b == wanted))
    })
    .await;
    until("lists in v1beta1", || async { pools.list(&Default::default()).await.ok() }).await;
}
