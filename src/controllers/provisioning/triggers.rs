//! What opens a batch: pods that fit nowhere, and nodes that are being disrupted.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};

use super::super::Context;
use super::batcher::Batcher;
use super::decisions::Decisions;
use crate::api::taints;
use crate::cluster::Change;
use crate::scheduling::pod::PodKey;

/// A trigger is repeated after this long for as long as its cause stands.
const REPEAT: Duration = Duration::from_secs(10);

/// A cause of a batch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Cause {
    Pod(PodKey),
    Node(String),
}

/// When each cause is looked at again.
#[derive(Default)]
struct Due {
    at: HashMap<Cause, Instant>,
    order: BTreeSet<(Instant, Cause)>,
}

impl Due {
    fn set(&mut self, cause: &Cause, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.at.insert(cause.clone(), at),
            None => self.at.remove(cause),
        };
        if let Some(before) = before {
            self.order.remove(&(before, cause.clone()));
        }
        if let Some(at) = at {
            self.order.insert((at, cause.clone()));
        }
    }

    fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    fn take(&mut self, now: Instant) -> Vec<Cause> {
        let mut causes = Vec::new();
        while let Some((at, cause)) = self.order.pop_first() {
            if at > now {
                self.order.insert((at, cause));
                break;
            }
            self.at.remove(&cause);
            causes.push(cause);
        }
        causes
    }
}

/// Triggers the batcher for every cause, and again every ten seconds while the cause stands.
pub(super) async fn run(ctx: Arc<Context>, batcher: Arc<Batcher>, decisions: Arc<Decisions>) {
    let mut changes = ctx.cluster.subscribe();
    let mut due = Due::default();
    let look = |due: &mut Due, cause: Cause| {
        let stands = match &cause {
            Cause::Pod(key) => pod(&ctx, &batcher, &decisions, key),
            Cause::Node(name) => node(&ctx, &batcher, name),
        };
        due.set(&cause, stands.then(|| Instant::now() + REPEAT));
    };
    for cause in everything(&ctx) {
        look(&mut due, cause);
    }
    loop {
        let next = due.next();
        let timer = async move {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changes.recv() => match change {
                Ok(Change::Pod(key)) => look(&mut due, Cause::Pod(key)),
                Ok(Change::Node(name)) => look(&mut due, Cause::Node(name)),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => {
                    for cause in everything(&ctx) {
                        look(&mut due, cause);
                    }
                }
                Err(RecvError::Closed) => return,
            },
            () = timer => {
                for cause in due.take(Instant::now()) {
                    look(&mut due, cause);
                }
            }
        }
    }
}

fn everything(ctx: &Context) -> Vec<Cause> {
    let pods = ctx.cluster.provisionable_pods().into_iter().map(|p| Cause::Pod(p.key.clone()));
    let nodes = ctx.cluster.node_names().into_iter().map(Cause::Node);
    pods.chain(nodes).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn causes_come_due_once_each() {
        let mut due = Due::default();
        let now = Instant::now();
        let cause = |name: &str| Cause::Node(name.to_owned());
        due.set(&cause("a"), Some(now + REPEAT));
        due.set(&cause("b"), Some(now + 2 * REPEAT));
        due.set(&cause("a"), Some(now + 3 * REPEAT));
        assert_eq!(due.next(), Some(now + 2 * REPEAT));
        assert_eq!(due.take(now + 2 * REPEAT), [cause("b")]);
        due.set(&cause("a"), None);
        assert_eq!(due.next(), None);
        assert!(due.take(now + 9 * REPEAT).is_empty());
    }
}
