//! NodePools: hash, validation, readiness, and what their nodes add up to.

use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use tokio::task::JoinSet;

use super::patch;
use super::runner::{self, Identity};
use super::{Context, Outcome};
use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool};
use crate::api::{annotations, checks, conditions, hash, labels};
use crate::cluster::Change;
use crate::scheduling::resources::{Name, ResourceList};

pub mod health;

const READINESS: Identity =
    Identity { name: "nodepool.readiness", group: labels::GROUP, kind: "NodePool", workers: 10 };
/// Counts are refreshed this often.
const COUNTER_PERIOD: Duration = Duration::from_secs(5);

/// Starts the controllers of NodePools.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    tasks.spawn(runner::run(
        READINESS,
        Arc::clone(ctx),
        |ctx| ctx.cluster.pools().iter().filter_map(|p| p.metadata.name.clone()).collect(),
        |ctx, change| match change {
            Change::NodePool(name) => vec![name.clone()],
            Change::NodeClass(name) => ctx
                .cluster
                .pools()
                .iter()
                .filter(|p| p.spec.template.spec.node_class_ref.name == *name)
                .filter_map(|p| p.metadata.name.clone())
                .collect(),
            _ => Vec::new(),
        },
        reconcile,
    ));
}

async fn reconcile(ctx: Arc<Context>, name: String) -> Outcome {
    let Some(before) = ctx.cluster.pool(&name) else { return Ok(None) };
    if before.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let mut pool = (*before).clone();
    // Before the pool gets its own stamp: a process that ends between the two begins here again.
    restamp_claims(&ctx, &pool).await?;
    let marks = pool.metadata.annotations.get_or_insert_default();
    marks.insert(annotations::NODEPOOL_HASH.to_owned(), hash::node_pool_hash(&before));
    marks.insert(
        annotations::NODEPOOL_HASH_VERSION.to_owned(),
        annotations::NODEPOOL_HASH_VERSION_VALUE.to_owned(),
    );
    let class = ctx.cluster.class_of(&pool.spec.template.spec.node_class_ref);
    judge(&mut pool, class.as_deref(), ctx.clock.now());
    let generation = class.as_ref().and_then(|c| c.metadata.generation);
    health::judge(&ctx.registration_health, &mut pool, generation, ctx.clock.now());
    count(&ctx, &mut pool);
    let api = Api::<NodePool>::all(ctx.client.clone());
    patch::merge(&api, &*before, &pool).await?;
    Ok(Some(COUNTER_PERIOD))
}

/// Claims stamped with another hash version get today's, so that an upgrade drifts nothing.
async fn restamp_claims(ctx: &Context, pool: &NodePool) -> Result<(), super::Error> {
    let version = annotations::NODEPOOL_HASH_VERSION;
    let current = annotations::NODEPOOL_HASH_VERSION_VALUE;
    let stamped = |a: Option<&std::collections::BTreeMap<String, String>>| {
        a.and_then(|a| a.get(version)).is_some_and(|v| v == current)
    };
    if stamped(pool.metadata.annotations.as_ref()) {
        return Ok(());
    }
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    for before in ctx.cluster.claims_of_pool(pool.metadata.name.as_deref().unwrap_or_default()) {
        if stamped(before.metadata.annotations.as_ref()) {
            continue;
        }
        let mut claim = (*before).clone();
        // A claim that has drifted already keeps its hash: with today's it would count as current.
        let drifted = claim
            .status
            .as_ref()
            .is_some_and(|s| conditions::get(&s.conditions, conditions::DRIFTED).is_some());
        let marks = claim.metadata.annotations.get_or_insert_default();
        marks.insert(version.to_owned(), current.to_owned());
        if !drifted {
            marks.insert(annotations::NODEPOOL_HASH.to_owned(), hash::node_pool_hash(pool));
        }
        patch::merge(&api, &*before, &claim).await?;
    }
    Ok(())
}

/// Sets the conditions that make up `Ready`.
fn judge(pool: &mut NodePool, class: Option<&EC2NodeClass>, now: jiff::Timestamp) {
    let generation = pool.metadata.generation;
    let findings = checks::nodepool::check(pool);
    let list = &mut pool.status.get_or_insert_default().conditions;
    let validated = conditions::VALIDATION_SUCCEEDED;
    if findings.is_empty() {
        conditions::set_true(list, validated, generation, now);
    } else {
        let text = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        conditions::set(
            list,
            validated,
            conditions::FALSE,
            findings[0].reason,
            &text,
            generation,
            now,
        );
    }
    let class_ready = conditions::NODE_CLASS_READY;
    match class_problem(class) {
        None => conditions::set_true(list, class_ready, generation, now),
        Some((reason, message)) => {
            let status = conditions::FALSE;
            conditions::set(list, class_ready, status, &reason, &message, generation, now)
        }
    };
    conditions::set_ready(list, conditions::NODEPOOL_READY, generation, now);
}

fn class_problem(class: Option<&EC2NodeClass>) -> Option<(String, String)> {
    let problem = |reason: &str, message: &str| Some((reason.to_owned(), message.to_owned()));
    let Some(class) = class else {
        return problem("NodeClassNotFound", "NodeClass not found on cluster");
    };
    if class.metadata.deletion_timestamp.is_some() {
        return problem("NodeClassTerminating", "NodeClass is Terminating");
    }
    let list = class.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    match conditions::get(list, conditions::READY) {
        Some(ready) if ready.status == conditions::TRUE => None,
        Some(ready) if ready.status == conditions::FALSE => problem(&ready.reason, &ready.message),
        _ => problem("NodeClassReadinessUnknown", "Node Class Readiness Unknown"),
    }
}

/// What the pool's nodes have together.
fn count(ctx: &Context, pool: &mut NodePool) {
    let mut total: ResourceList =
        [Name::Cpu, Name::Memory, Name::Pods, Name::EphemeralStorage, Name::from("nodes")]
            .into_iter()
            .map(|name| (name, 0))
            .collect();
    let name = pool.metadata.name.clone().unwrap_or_default();
    for node in ctx.cluster.state_nodes_of(&name).iter().filter(|n| !n.deleting()) {
        total.add(&node.capacity());
    }
    let status = pool.status.get_or_insert_default();
    status.nodes = Some(total.get(&Name::from("nodes")));
    status.resources = Some(total.to_quantities());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pool_is_ready_with_its_class() {
        let mut pool = NodePool::new("p", serde_json::from_value(json!({})).unwrap());
        let now = jiff::Timestamp::UNIX_EPOCH;
        judge(&mut pool, None, now);
        let list = |p: &NodePool| p.status.clone().unwrap().conditions;
        let class_ready = conditions::get(&list(&pool), conditions::NODE_CLASS_READY).cloned();
        assert_eq!(class_ready.unwrap().reason, "NodeClassNotFound");
        let mut class = EC2NodeClass::new("c", serde_json::from_value(json!({})).unwrap());
        let status = class.status.get_or_insert_default();
        conditions::set_true(&mut status.conditions, conditions::READY, None, now);
        judge(&mut pool, Some(&class), now);
        assert!(conditions::is_true(&list(&pool), conditions::READY));
    }
}
