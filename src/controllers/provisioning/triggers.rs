//! What opens a batch: pods that fit nowhere, and nodes that are being disrupted.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use tokio::task::JoinSet;

use super::super::Context;
use super::super::runner::{self, Identity};
use super::Shared;
use super::batcher::Batcher;
use super::decisions::Decisions;
use crate::api::taints;
use crate::cluster::Change;
use crate::scheduling::pod::PodKey;

/// A trigger is repeated after this long for as long as its cause stands.
const REPEAT: Duration = Duration::from_secs(10);

const PODS: Identity =
    Identity { name: "provisioner.trigger.pod", group: "", kind: "Pod", workers: 10 };
const NODES: Identity =
    Identity { name: "provisioner.trigger.node", group: "", kind: "Node", workers: 10 };

/// Starts what triggers the batcher for every cause, and again every ten seconds while it stands.
pub(super) fn start(ctx: &Arc<Context>, shared: &Shared, tasks: &mut JoinSet<()>) {
    let pods = shared.clone();
    tasks.spawn(runner::run(
        PODS,
        Arc::clone(ctx),
        |ctx| ctx.cluster.provisionable_pods().iter().map(|p| p.key.to_string()).collect(),
        waiting_pod,
        move |ctx, name| {
            let stands = name.split_once('/').is_some_and(|(namespace, name)| {
                pod(&ctx, &pods.batcher, &pods.decisions, &PodKey::new(namespace, name))
            });
            std::future::ready(Ok(stands.then_some(REPEAT)))
        },
    ));
    let nodes = shared.clone();
    tasks.spawn(runner::run(
        NODES,
        Arc::clone(ctx),
        |ctx| ctx.cluster.node_names(),
        |ctx, change| match change {
            Change::Node(name) if ctx.cluster.node(name).is_some_and(|n| disrupted(&n)) => {
                vec![name.clone()]
            }
            _ => Vec::new(),
        },
        move |ctx, name| {
            let stands = node(&ctx, &nodes.batcher, &name);
            std::future::ready(Ok(stands.then_some(REPEAT)))
        },
    ));
}

/// Pods that wait, and those that are gone; what else happens to pods triggers nothing.
fn waiting_pod(ctx: &Context, change: &Change) -> Vec<String> {
    match change {
        Change::Pod(key) if ctx.cluster.pod(key).is_none_or(|p| p.is_provisionable()) => {
            vec![key.to_string()]
        }
        _ => Vec::new(),
    }
}

fn pod(ctx: &Context, batcher: &Batcher, decisions: &Decisions, key: &PodKey) -> bool {
    match ctx.cluster.pod(key) {
        Some(pod) if pod.is_provisionable() => {
            batcher.trigger(&pod.uid);
            decisions.acknowledge(key, ctx.clock.now());
            true
        }
        Some(_) => false,
        None => {
            decisions.forget(key);
            false
        }
    }
}

fn node(ctx: &Context, batcher: &Batcher, name: &str) -> bool {
    let Some(node) = ctx.cluster.node(name).filter(|n| disrupted(n)) else { return false };
    batcher.trigger(&Arc::from(node.metadata.uid.as_deref().unwrap_or(name)));
    true
}

fn disrupted(node: &Node) -> bool {
    let taint = taints::disrupted();
    node.spec
        .as_ref()
        .and_then(|s| s.taints.as_ref())
        .is_some_and(|list| list.iter().any(|t| taints::matches(t, &taint)))
}
