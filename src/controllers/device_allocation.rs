//! Logs which devices ResourceClaims hold, as they come and go (with ignore-dra-requests=false).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::Context;
use super::runner::{self, Identity};
use crate::cluster::Change;
use crate::operator::logging;
use crate::scheduling::dra::{Claim, ClaimKey, DeviceId};

const ALLOCATION: Identity = Identity {
    name: "dynamicresources.deviceallocation",
    group: "resource.k8s.io",
    kind: "ResourceClaim",
    workers: 1,
};

/// Starts the controller, unless dynamic resources are ignored.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    if ctx.settings.ignore_dra_requests {
        return;
    }
    let tracked = Arc::new(Mutex::new(Tracked::default()));
    let known = Arc::clone(&tracked);
    tasks.spawn(runner::run(
        ALLOCATION,
        Arc::clone(ctx),
        move |ctx| {
            let claims = &ctx.cluster.dynamic_resources().claims;
            // A claim that went unseen still holds devices here.
            let gone = known.lock().known().filter(|k| !claims.contains_key(k)).collect::<Vec<_>>();
            claims.keys().chain(&gone).map(ToString::to_string).collect()
        },
        |_, change| match change {
            Change::ResourceClaim(key) => vec![key.to_string()],
            _ => Vec::new(),
        },
        move |ctx, name| {
            let tracked = Arc::clone(&tracked);
            async move {
                let Some((namespace, name)) = name.split_once('/') else { return Ok(None) };
                let key = ClaimKey::new(namespace, name);
                let claim = ctx.cluster.dynamic_resources().claims.get(&key).cloned();
                let moved = tracked.lock().update(&key, claim.as_deref());
                log_moved(&key, moved);
                Ok(None)
            }
        },
    ));
}

fn log_moved(key: &ClaimKey, moved: Option<Moved>) {
    let Some(moved) = moved else { return };
    let shown = |list: &[DeviceId]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    tracing::debug!(
        "ResourceClaim" = %logging::obj_ns(&key.namespace, &key.name),
        "added" = %logging::json(&shown(&moved.added)),
        "removed" = %logging::json(&shown(&moved.removed)),
        "tracked" = moved.tracked,
        "updated tracked devices for claim"
    );
}

/// Devices by the claim that holds them.
#[derive(Debug, Default)]
struct Tracked(BTreeMap<ClaimKey, BTreeSet<DeviceId>>);

/// What an update changed.
#[derive(Debug, PartialEq, Eq)]
struct Moved {
    added: Vec<DeviceId>,
    removed: Vec<DeviceId>,
    /// Devices that are held now, by all claims.
    tracked: usize,
}

impl Tracked {
    fn known(&self) -> impl Iterator<Item = ClaimKey> {
        self.0.keys().cloned()
    }

    /// Notes what a claim holds now; nothing when that is what it held before.
    fn update(&mut self, key: &ClaimKey, claim: Option<&Claim>) -> Option<Moved> {
        let allocation = claim.and_then(|c| c.allocation.as_ref());
        let now: BTreeSet<DeviceId> = allocation
            .into_iter()
            .flat_map(|a| &a.devices)
            .filter(|d| !d.admin)
            .map(|d| d.device.clone())
            .collect();
        let before = self.0.remove(key).unwrap_or_default();
        let added: Vec<DeviceId> = now.difference(&before).cloned().collect();
        let removed: Vec<DeviceId> = before.difference(&now).cloned().collect();
        if !now.is_empty() {
            self.0.insert(key.clone(), now);
        }
        let tracked = self.0.values().map(BTreeSet::len).sum();
        (!added.is_empty() || !removed.is_empty()).then_some(Moved { added, removed, tracked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn devices_are_tracked_while_their_claim_holds_them() {
        let claim = |devices: &[&str]| {
            let results: Vec<_> = devices
                .iter()
                .map(|d| json!({"request": "r", "driver": "x", "pool": "p", "device": d}))
                .collect();
            let object = json!({"metadata": {"name": "c", "namespace": "n"}, "spec": {},
                "status": {"allocation": {"devices": {"results": results}}}});
            Claim::new(&serde_json::from_value(object).unwrap())
        };
        let id =
            |device: &str| DeviceId { driver: "x".into(), pool: "p".into(), device: device.into() };
        let key = ClaimKey::new("n", "c");
        let mut tracked = Tracked::default();
        let moved = tracked.update(&key, Some(&claim(&["a", "b"]))).unwrap();
        assert_eq!(moved.added, [id("a"), id("b")]);
        assert_eq!(tracked.update(&key, Some(&claim(&["a", "b"]))), None);
        let moved = tracked.update(&key, Some(&claim(&["b", "c"]))).unwrap();
        assert_eq!(moved, Moved { added: vec![id("c")], removed: vec![id("a")], tracked: 2 });
        let moved = tracked.update(&key, None).unwrap();
        assert_eq!((moved.removed.len(), moved.tracked), (2, 0));
        assert_eq!(tracked.known().count(), 0);
    }
}
