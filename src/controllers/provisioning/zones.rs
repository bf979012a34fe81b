//! How many waiting pods are tied to which zone, for the metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::labels;
use crate::api::v1::Operator;
use crate::operator::metrics;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::requirements::Requirement;
use crate::scheduling::snapshot::Snapshot;
use crate::scheduling::volumes::PodVolumes;

/// Counts the waiting pods of a round by the zone that they and their volumes leave.
pub(super) fn count(controller: &str, snapshot: &Snapshot) {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for pod in snapshot.pods.iter().filter(|p| p.pending) {
        let volumes = snapshot.pod_volumes.get(&pod.key);
        *counts.entry(zone_of(pod, volumes)).or_default() += 1;
    }
    metrics::PENDING_PODS_BY_ZONE.reset();
    for (zone, count) in counts {
        let gauge = metrics::PENDING_PODS_BY_ZONE.with_label_values(&[controller, &zone]);
        gauge.set(f64::from(count));
    }
}

/// The zone that is left, `flexible` for several, `none` for no zone at all.
fn zone_of(pod: &PodInfo, volumes: Option<&Arc<PodVolumes>>) -> String {
    let anywhere = || Requirement::new::<&str>(labels::ZONE, Operator::Exists, []);
    let own = pod.constraints.strict_requirements().get(labels::ZONE).cloned();
    let left = own.unwrap_or_else(anywhere).intersection(&places(volumes).unwrap_or_else(anywhere));
    match left.single() {
        Some(zone) => zone.to_owned(),
        None if left.operator() == Operator::DoesNotExist => "none".to_owned(),
        None => "flexible".to_owned(),
    }
}

/// All zones in which the volumes can be; nothing when some way of placing them names none.
fn places(volumes: Option<&Arc<PodVolumes>>) -> Option<Requirement> {
    let mut zones: Vec<String> = Vec::new();
    for alternative in &volumes?.alternatives {
        let zone = alternative.get(labels::ZONE).filter(|z| z.operator() == Operator::In)?;
        zones.extend(zone.values().map(str::to_owned));
    }
    (!zones.is_empty()).then(|| Requirement::new(labels::ZONE, Operator::In, zones))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::requirements::Requirements;
    use serde_json::json;

    #[test]
    fn volumes_narrow_the_zones() {
        let pod = |selector: serde_json::Value| {
            let value = json!({"metadata": {"name": "p"},
                "spec": {"containers": [], "nodeSelector": selector}});
            PodInfo::from_pod(&serde_json::from_value(value).unwrap())
        };
        let volumes = |zones: &[&str]| {
            let at = |z: &&str| -> Requirements {
                [Requirement::is(labels::ZONE, z)].into_iter().collect()
            };
            let alternatives = zones.iter().map(at).collect();
            Some(Arc::new(PodVolumes { alternatives, ..PodVolumes::default() }))
        };
        let tied = pod(json!({"topology.kubernetes.io/zone": "a"}));
        let free = pod(json!({}));
        assert_eq!(zone_of(&free, None), "flexible");
        assert_eq!(zone_of(&tied, None), "a");
        assert_eq!(zone_of(&free, volumes(&["b"]).as_ref()), "b");
        assert_eq!(zone_of(&free, volumes(&["a", "b"]).as_ref()), "flexible");
        assert_eq!(zone_of(&tied, volumes(&["b"]).as_ref()), "none");
    }
}
