//! The memory that nodes really have: `providers.instancetype.capacity`.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::api::labels;
use crate::cloud::aws::AwsProvider;
use crate::cloud::aws::launchtemplate::types_by_ami;
use crate::controllers::runner::{self, Identity};
use crate::controllers::{Context, Outcome};
use crate::scheduling::quantity;

const CAPACITY: Identity =
    Identity { name: "providers.instancetype.capacity", group: "", kind: "Node", workers: 1 };

pub(super) fn start(ctx: &Arc<Context>, aws: &Arc<AwsProvider>, tasks: &mut JoinSet<()>) {
    let provider = Arc::clone(aws);
    // Each Node is looked at once, when it has registered.
    let seen: Arc<Mutex<HashSet<String>>> = Arc::default();
    tasks.spawn(runner::run(
        CAPACITY,
        Arc::clone(ctx),
        |ctx| {
            let claims = ctx.cluster.claims();
            claims.iter().filter_map(|c| c.status.as_ref()?.node_name.clone()).collect()
        },
        runner::changed_node,
        move |ctx, name| {
            let (aws, seen) = (Arc::clone(&provider), Arc::clone(&seen));
            async move {
                let Some(node) = ctx.cluster.node(&name) else {
                    seen.lock().remove(&name);
                    return Ok(None);
                };
                if !is_registered(&node) || seen.lock().contains(&name) {
                    return Ok(None);
                }
                let outcome = learn(&ctx, &aws, &node).await;
                if outcome.is_ok() {
                    seen.lock().insert(name);
                }
                outcome
            }
        },
    ));
}

fn is_registered(node: &Node) -> bool {
    let all = node.metadata.labels.as_ref();
    all.and_then(|l| l.get(labels::REGISTERED)).is_some_and(|v| v == "true")
}

/// Notes the Node's memory, if its image is one that its type would get today.
async fn learn(ctx: &Context, aws: &AwsProvider, node: &Node) -> Outcome {
    let provider_id = node.spec.as_ref().and_then(|s| s.provider_id.as_deref());
    let Some(claim) = provider_id.and_then(|id| ctx.cluster.claim_by_provider_id(id)) else {
        return Ok(None);
    };
    let memory = node
        .status
        .as_ref()
        .and_then(|s| s.capacity.as_ref()?.get("memory"))
        .and_then(|q| quantity::parse(&q.0).ok());
    let kind = node.metadata.labels.as_ref().and_then(|l| l.get(labels::INSTANCE_TYPE));
    let image = claim.status.as_ref().and_then(|s| s.image_id.as_deref());
    let (Some(memory), Some(kind), Some(image)) = (memory, kind, image) else { return Ok(None) };
    let Some(class) = ctx.cluster.class_of(&claim.spec.node_class_ref) else {
        return Ok(None);
    };
    let Ok(types) = aws.instance_types.list(&class) else { return Ok(None) };
    let own: Vec<_> = types.iter().filter(|t| *t.name == **kind).cloned().collect();
    let amis = class.status.as_ref().map(|s| s.amis.as_slice()).unwrap_or_default();
    if types_by_ami(amis, &own).iter().any(|(ami, _)| ami.id == image) {
        aws.instance_types.note_memory(&class, kind, memory.value());
    }
    Ok(None)
}
