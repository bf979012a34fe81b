//! Disruption conditions: `Consolidatable` and `Drifted`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use tokio::task::JoinSet;

use super::super::patch;
use super::super::runner::{self, Identity};
use super::super::{Context, Outcome};
use super::{all_claims, condition, is_true, set_true, status_of};
use crate::api::v1::{NodeClaim, NodePool, Operator};
use crate::api::{conditions, labels};
use crate::cluster::Change;
use crate::disruption::drifted_by_pool;
use crate::scheduling::instance_type::{InstanceType, Offering};
use crate::scheduling::requirements::{Allow, Requirement, Requirements};

const DISRUPTION: Identity =
    Identity { name: "nodeclaim.disruption", group: labels::GROUP, kind: "NodeClaim", workers: 10 };
/// Drift is looked at again after this long.
const DRIFT_PERIOD: Duration = Duration::from_secs(300);

/// Claims younger than this are not asked whether their instance type still exists.
const TYPE_CHECK_AGE: Duration = Duration::from_secs(3600);
/// The reason of claims whose instance type the provider no longer has.
const TYPE_NOT_FOUND: &str = "InstanceTypeNotFound";
/// Labels of nodes in capacity reservations.
const RESERVATION: [&str; 3] = [
    labels::CAPACITY_RESERVATION_ID,
    labels::CAPACITY_RESERVATION_TYPE,
    labels::CAPACITY_RESERVATION_INTERRUPTIBLE,
];

/// Starts the controller.
pub(super) fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let disruption = DISRUPTION.scaled(&ctx.settings, 1000);
    tasks.spawn(runner::run(disruption, Arc::clone(ctx), all_claims, select, reconcile));
}

fn select(ctx: &Context, change: &Change) -> Vec<String> {
    match change {
        Change::NodeClaim(name) => vec![name.clone()],
        Change::NodePool(name) => ctx
            .cluster
            .claims_of_pool(name)
            .iter()
            .filter_map(|c| c.metadata.name.clone())
            .collect(),
        Change::NodeClass(name) => ctx
            .cluster
            .claims_of_class(name)
            .iter()
            .filter_map(|c| c.metadata.name.clone())
            .collect(),
        _ => Vec::new(),
    }
}

fn pool_of(claim: &NodeClaim) -> Option<&String> {
    claim.metadata.labels.as_ref()?.get(labels::NODEPOOL)
}

async fn reconcile(ctx: Arc<Context>, name: String) -> Outcome {
    let Some(before) = ctx.cluster.claim(&name) else { return Ok(None) };
    if before.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let Some(pool) = pool_of(&before).and_then(|p| ctx.cluster.pool(p)) else { return Ok(None) };
    let mut claim = (*before).clone();
    let again = if pool.spec.replicas.is_none() {
        consolidatable(&mut claim, &pool, ctx.clock.now())
    } else {
        None
    };
    let drift = drifted(&ctx, &mut claim, &pool).await;
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    // What is known is written even where drift cannot be found out.
    patch::merge(&api, &before, &claim).await?;
    drift?;
    Ok(Some(again.map_or(DRIFT_PERIOD, |a| a.min(DRIFT_PERIOD))))
}

/// Sets or removes `Consolidatable`; returns when to look again.
fn consolidatable(claim: &mut NodeClaim, pool: &NodePool, now: Timestamp) -> Option<Duration> {
    let kind = conditions::CONSOLIDATABLE;
    let after = pool.spec.disruption.consolidate_after.duration();
    let initialized = condition(claim, conditions::INITIALIZED)
        .filter(|c| c.status == conditions::TRUE)
        .map(|c| c.last_transition_time.0);
    let (Some(after), Some(initialized)) = (after, initialized) else {
        let reason = if after.is_none() {
            "consolidation is disabled"
        } else {
            "nodeclaim isn't initialized"
        };
        if conditions::clear(&mut status_of(claim).conditions, kind) {
            tracing::debug!("reason" = reason, "removing consolidatable status condition");
        }
        return None;
    };
    let last = claim.status.as_ref().and_then(|s| s.last_pod_event_time.as_ref()).map(|t| t.0);
    let quiet =
        Duration::try_from(now.duration_since(last.unwrap_or(initialized))).unwrap_or_default();
    if !after.is_zero() && quiet < after {
        if conditions::clear(&mut status_of(claim).conditions, kind) {
            let reason = "consolidateAfter window not yet elapsed";
            tracing::debug!("reason" = reason, "removing consolidatable status condition");
        }
        return Some(after - quiet);
    }
    if !is_true(claim, kind) {
        set_true(claim, kind, now);
        tracing::debug!("marking consolidatable");
    }
    None
}

async fn drifted(
    ctx: &Context,
    claim: &mut NodeClaim,
    pool: &NodePool,
) -> Result<(), super::super::Error> {
    let kind = conditions::DRIFTED;
    let reason = if is_true(claim, conditions::LAUNCHED) {
        match drifted_by_pool(claim, pool) {
            Some(reason) => Some(reason.to_owned()),
            None if type_is_gone(ctx, claim, pool).await => Some(TYPE_NOT_FOUND.to_owned()),
            None => match is_drifted(ctx, claim, pool).await {
                Ok(reason) => reason,
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error.into()),
            },
        }
    } else {
        None
    };
    let generation = claim.metadata.generation;
    let list = &mut status_of(claim).conditions;
    match reason {
        Some(reason) => {
            let now = ctx.clock.now();
            if conditions::set(list, kind, conditions::TRUE, &reason, &reason, generation, now) {
                tracing::debug!("reason" = reason, "marking drifted");
            }
        }
        None => {
            if conditions::clear(list, kind) {
                tracing::debug!("removing drifted status condition, not drifted");
            }
        }
    }
    Ok(())
}

/// Drift that the provider finds.
async fn is_drifted(
    ctx: &Context,
    claim: &NodeClaim,
    pool: &NodePool,
) -> Result<Option<String>, crate::cloud::Error> {
    let class = ctx.cluster.class_of(&pool.spec.template.spec.node_class_ref);
    ctx.cloud.is_drifted(claim, pool, class.as_deref()).await
}

/// Whether the provider no longer has the claim's instance type. New claims are not judged: what
/// the provider knows may be older than they are.
async fn type_is_gone(ctx: &Context, claim: &NodeClaim, pool: &NodePool) -> bool {
    let created = claim.metadata.creation_timestamp.as_ref().map(|t| t.0);
    if created.is_none_or(|at| ctx.clock.since(at) < TYPE_CHECK_AGE) {
        return false;
    }
    // While the provider cannot say what there is, nothing is gone.
    ctx.instance_types(pool).await.is_ok_and(|types| !is_offered(claim, &types))
}

/// Whether one of the types is the claim's, and can be had as the claim's labels say; an offering
/// that is not available for the moment counts.
fn is_offered(claim: &NodeClaim, types: &[Arc<InstanceType>]) -> bool {
    let mut own = claim.metadata.labels.clone().unwrap_or_default();
    let name = own.get(labels::INSTANCE_TYPE).cloned().unwrap_or_default();
    // A label whose value is not known yet says nothing.
    own.retain(|_, value| !value.is_empty());
    let reserved = own.get(labels::CAPACITY_TYPE).is_some_and(|c| c == labels::CAPACITY_RESERVED);
    if reserved {
        // A reservation ends, and its instance runs on as an on-demand one.
        own.retain(|key, _| !RESERVATION.contains(&key.as_str()));
    }
    let mut wanted = Requirements::from_labels(own.iter());
    if reserved {
        let kinds = [labels::CAPACITY_RESERVED, labels::CAPACITY_ON_DEMAND];
        wanted.replace(Requirement::new(labels::CAPACITY_TYPE, Operator::In, kinds));
    }
    let fits = |o: &Offering| {
        let mut of_offering = o.requirements.clone();
        if reserved {
            RESERVATION.iter().for_each(|key| of_offering.remove(key));
        }
        wanted.compatible(&of_offering, Allow::WellKnown).is_ok()
    };
    types.iter().filter(|t| *t.name == *name).any(|t| t.offerings.iter().any(fits))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::api::annotations;
    use serde_json::json;

    fn claim(value: serde_json::Value) -> NodeClaim {
        serde_json::from_value(value).unwrap()
    }

    fn pool(spec: serde_json::Value) -> NodePool {
        NodePool::new("p", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_node_is_consolidatable_after_a_quiet_time() {
        let start = Timestamp::UNIX_EPOCH;
        let mut node = claim(json!({"metadata": {}, "spec": {}, "status": {"conditions": [
            {"type": "Initialized", "status": "True", "reason": "", "message": "",
             "lastTransitionTime": "1970-01-01T00:00:00Z"}]}}));
        let pool_of = |after: &str| pool(json!({"disruption": {"consolidateAfter": after}}));
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(
            consolidatable(&mut node, &pool_of("30s"), at(10)),
            Some(Duration::from_secs(20))
        );
        assert!(!is_true(&node, conditions::CONSOLIDATABLE));
        assert_eq!(consolidatable(&mut node, &pool_of("30s"), at(30)), None);
        assert!(is_true(&node, conditions::CONSOLIDATABLE));
        status_of(&mut node).last_pod_event_time = Some(Time(at(29)));
        consolidatable(&mut node, &pool_of("30s"), at(31));
        assert!(!is_true(&node, conditions::CONSOLIDATABLE));
        consolidatable(&mut node, &pool_of("0s"), at(31));
        assert!(is_true(&node, conditions::CONSOLIDATABLE));
        consolidatable(&mut node, &pool_of("Never"), at(99));
        assert!(!is_true(&node, conditions::CONSOLIDATABLE));
    }

    #[test]
    fn hashes_of_one_version_are_compared() {
        let marks = |hash: &str, version: &str| json!({annotations::NODEPOOL_HASH: hash, annotations::NODEPOOL_HASH_VERSION: version});
        let mut with_hash = pool(json!({}));
        with_hash.metadata.annotations = serde_json::from_value(marks("1", "v3")).unwrap();
        let node = |hash, version| {
            claim(json!({"metadata": {"annotations": marks(hash, version)}, "spec": {}}))
        };
        assert_eq!(drifted_by_pool(&node("1", "v3"), &with_hash), None);
        assert_eq!(drifted_by_pool(&node("2", "v3"), &with_hash), Some("NodePoolDrifted"));
        assert_eq!(drifted_by_pool(&node("2", "v2"), &with_hash), None);
        let arm = pool(json!({"template": {"spec": {"requirements": [
            {"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]}]}}}));
        let amd =
            claim(json!({"metadata": {"labels": {"kubernetes.io/arch": "amd64"}}, "spec": {}}));
        assert_eq!(drifted_by_pool(&amd, &arm), Some("RequirementsDrifted"));
    }

    #[test]
    fn a_claim_whose_type_can_no_longer_be_had_has_drifted() {
        let offering = |capacity: &str, more: &[(&str, &str)], available: bool| Offering {
            requirements: [(labels::CAPACITY_TYPE, capacity), (labels::ZONE, "a")]
                .iter()
                .chain(more)
                .map(|(key, value)| Requirement::is(key, value))
                .collect(),
            available,
            ..Offering::default()
        };
        let types = |offerings: Vec<Offering>| {
            [Arc::new(InstanceType { name: "m5.large".into(), offerings, ..Default::default() })]
        };
        let node = |kind: &str, capacity: &str, zone: &str| {
            claim(json!({"spec": {}, "metadata": {"labels": {labels::INSTANCE_TYPE: kind,
                labels::CAPACITY_TYPE: capacity, labels::ZONE: zone,
                labels::PLACEMENT_GROUP_PARTITION: "", labels::CAPACITY_RESERVATION_ID: "cr-1"}}}))
        };
        let on_demand = types(vec![offering("on-demand", &[], false)]);
        for (want, kind, capacity, zone) in [
            (true, "m5.large", "on-demand", "a"),
            (false, "m1.large", "on-demand", "a"),
            (false, "m5.large", "spot", "a"),
            (false, "m5.large", "on-demand", "b"),
            // The reservation is gone; the instance is taken for an on-demand one.
            (true, "m5.large", "reserved", "a"),
        ] {
            let node = node(kind, capacity, zone);
            assert_eq!(is_offered(&node, &on_demand), want, "{kind} {capacity} {zone}");
        }
        let other = [(labels::CAPACITY_RESERVATION_ID, "cr-2")];
        let reserved = types(vec![offering("reserved", &other, true)]);
        assert!(is_offered(&node("m5.large", "reserved", "a"), &reserved));
        assert!(!is_offered(&node("m5.large", "reserved", "b"), &reserved));
    }
}
