//! How many nodes came and went, and how long that took: counted as the watches show it.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;

use super::super::Context;
use super::view::{self, View};
use crate::api::{conditions, finalizers, labels};
use crate::cluster::Change;
use crate::operator::metrics;

/// Follows NodeClaims and Nodes for as long as the state lives.
pub(super) async fn run(ctx: Arc<Context>) {
    let mut changes = ctx.cluster.subscribe();
    ctx.cluster.until_listed().await;
    let mut watch = Watch::default();
    watch.start(&ctx);
    loop {
        let now = ctx.clock.now();
        match changes.recv().await {
            Ok(Change::NodeClaim(name)) => {
                watch.claim(&name, (view::NODECLAIM.one)(&ctx.cluster, &name), now);
            }
            Ok(Change::Node(name)) => {
                let created = ctx
                    .cluster
                    .node(&name)
                    .and_then(|n| n.metadata.creation_timestamp.as_ref().map(|t| t.0));
                watch.node(&name, (view::NODE.one)(&ctx.cluster, &name), created, now);
            }
            Ok(_) => {}
            // What was missed is not counted; what is there now is known again.
            Err(RecvError::Lagged(_)) => watch.start(&ctx),
            Err(RecvError::Closed) => return,
        }
    }
}

/// What is known of NodeClaims and Nodes; Nodes with the time of their creation.
#[derive(Default)]
struct Watch {
    claims: HashMap<String, View>,
    nodes: HashMap<String, (View, Option<Timestamp>)>,
}

impl Watch {
    /// Takes in what is there without counting it.
    fn start(&mut self, ctx: &Context) {
        let claims = (view::NODECLAIM.all)(&ctx.cluster).into_iter();
        self.claims = claims.map(|v| (v.name.clone(), v)).collect();
        let nodes = ctx.cluster.nodes();
        self.nodes = nodes
            .iter()
            .filter_map(|n| {
                let created = n.metadata.creation_timestamp.as_ref().map(|t| t.0);
                let name = n.metadata.name.clone()?;
                Some((name.clone(), ((view::NODE.one)(&ctx.cluster, &name)?, created)))
            })
            .collect();
    }

    fn claim(&mut self, name: &str, found: Option<View>, now: Timestamp) {
        let before = self.claims.remove(name);
        let Some(view) = found else {
            if let Some(gone) = before.filter(|b| b.deleted.is_some()) {
                claim_gone(&gone, now);
            }
            return;
        };
        let became = |kind: &str| {
            let is = |v: &View| v.condition(kind).is_some_and(|c| c.status == conditions::TRUE);
            is(&view) && before.as_ref().is_some_and(|b| !is(b))
        };
        let pool = view.label(labels::NODEPOOL);
        if became(conditions::REGISTERED) {
            metrics::NODES_CREATED.with_label_values(&[pool, view.label(labels::ZONE)]).inc();
        }
        if became(conditions::DRAINED) {
            metrics::NODES_DRAINED.with_label_values(&[pool]).inc();
        }
        self.claims.insert(name.to_owned(), view);
    }

    fn node(
        &mut self,
        name: &str,
        found: Option<View>,
        created: Option<Timestamp>,
        now: Timestamp,
    ) {
        let before = self.nodes.remove(name);
        if let Some(view) = found {
            self.nodes.insert(name.to_owned(), (view, created));
            return;
        }
        let Some((gone, created)) = before else { return };
        let ours = gone.finalizers.iter().any(|f| f == finalizers::TERMINATION);
        if let Some(deleted) = gone.deleted.filter(|_| ours) {
            let pool = gone.label(labels::NODEPOOL);
            metrics::NODES_TERMINATED.with_label_values(&[pool, gone.label(labels::ZONE)]).inc();
            metrics::NODE_TERMINATION_DURATION.observe(&[pool], seconds(deleted, now));
            if let Some(created) = created {
                metrics::NODE_LIFETIME.with_label_values(&[pool]).observe(seconds(created, now));
            }
        }
    }
}

fn claim_gone(gone: &View, now: Timestamp) {
    let pool = gone.label(labels::NODEPOOL);
    let capacity_type = gone.label(labels::CAPACITY_TYPE);
    metrics::NODECLAIMS_TERMINATED
        .with_label_values(&[pool, capacity_type, gone.label(labels::ZONE)])
        .inc();
    if let Some(deleted) = gone.deleted {
        let metric = metrics::NODECLAIM_TERMINATION_DURATION.with_label_values(&[pool]);
        metric.observe(seconds(deleted, now));
    }
    let asked = gone.condition(conditions::INSTANCE_TERMINATING).and_then(|c| c.since);
    if let Some(asked) = asked {
        let metric = metrics::INSTANCE_TERMINATION_DURATION.with_label_values(&[pool]);
        metric.observe(seconds(asked, now));
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::super::view::Seen;
    use super::*;

    fn claim(registered: bool) -> View {
        let status = if registered { "True" } else { "Unknown" };
        let pairs =
            [(labels::NODEPOOL, "lived"), (labels::ZONE, "z"), (labels::CAPACITY_TYPE, "spot")];
        View {
            name: "c".to_owned(),
            labels: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            conditions: vec![Seen {
                kind: "Registered".to_owned(),
                status: status.to_owned(),
                reason: String::new(),
                message: String::new(),
                since: None,
            }],
            ..View::default()
        }
    }

    #[test]
    fn a_life_is_counted_once() {
        let created = metrics::NODES_CREATED.with_label_values(&["lived", "z"]);
        let ended = metrics::NODECLAIMS_TERMINATED.with_label_values(&["lived", "spot", "z"]);
        let now = Timestamp::UNIX_EPOCH;
        let mut watch = Watch::default();
        watch.claim("c", Some(claim(false)), now);
        assert_eq!(created.get(), 0.0);
        watch.claim("c", Some(claim(true)), now);
        watch.claim("c", Some(claim(true)), now);
        assert_eq!(created.get(), 1.0);
        let mut going = claim(true);
        going.deleted = Some(now);
        watch.claim("c", Some(going), now);
        watch.claim("c", None, now);
        watch.claim("c", None, now);
        assert_eq!(ended.get(), 1.0);
        // One that was registered before it was first seen is not counted.
        watch.claim("c", Some(claim(true)), now);
        assert_eq!(created.get(), 1.0);
    }
}
