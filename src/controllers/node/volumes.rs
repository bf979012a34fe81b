//! Volumes that are still attached to a drained node.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::drain;
use crate::cluster::State;
use crate::scheduling::pod::PodInfo;
use crate::scheduling::volumes::VolumeObjects;

/// Attachments that are named in the event.
const NAMED: usize = 5;

/// Names of the VolumeAttachments that a drained node has to wait for.
pub(super) fn pending(state: &State, node: &str, now: Timestamp) -> Vec<String> {
    awaited(&state.attachments(node), &state.pods_on(node), &state.volumes(), now)
}

/// Attachments but for those of pods that stay: a volume that such a pod uses is not detached before
/// its node is gone.
fn awaited(
    attachments: &[(String, String)],
    pods: &[Arc<PodInfo>],
    objects: &VolumeObjects,
    now: Timestamp,
) -> Vec<String> {
    let stay = pods.iter().filter(|p| !drain::is_drainable(p, now));
    let used: HashSet<&str> = stay
        .flat_map(|pod| pod.claims.iter().map(move |claim| (pod, claim)))
        .filter_map(|(pod, claim)| objects.volume_of(&pod.key.namespace, claim))
        .collect();
    let held = attachments.iter().filter(|(_, volume)| !used.contains(volume.as_str()));
    held.map(|(name, _)| name.clone()).collect()
}

/// The volumes that are waited for, in an event: the first ones, and how many more.
pub(super) fn named(pending: &[String]) -> String {
    let named = pending.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = pending.len().saturating_sub(NAMED);
    let rest = if more > 0 { format!(" and {more} other(s)") } else { String::new() };
    format!("{named}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_of_pods_that_stay_are_not_waited_for() {
        let mut objects = VolumeObjects::default();
        for (claim, volume) in [("of-agent", "pv-agent"), ("of-app", "pv-app")] {
            let claim = json!({"metadata": {"name": claim, "namespace": "n"},
                "spec": {"volumeName": volume}});
            objects.set_claim(&serde_json::from_value(claim).unwrap());
        }
        let pod = |name: &str, claim: &str, tolerations: serde_json::Value| {
            let pod = json!({"metadata": {"name": name, "namespace": "n"},
                "spec": {"tolerations": tolerations, "volumes": [{"name": "v",
                    "persistentVolumeClaim": {"claimName": claim}}]}});
            Arc::new(PodInfo::from_pod(&serde_json::from_value(pod).unwrap()))
        };
        let pods = [
            pod("agent", "of-agent", json!([{"operator": "Exists"}])),
            pod("app", "of-app", json!([])),
            pod("odd", "no-such-claim", json!([{"operator": "Exists"}])),
        ];
        let attachments = ["pv-agent", "pv-app", "pv-other"]
            .map(|volume| (format!("a-{volume}"), volume.to_owned()));
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(awaited(&attachments, &pods, &objects, now), ["a-pv-app", "a-pv-other"]);
    }

    #[test]
    fn the_first_five_attachments_are_named() {
        let names: Vec<String> = (0..7).map(|n| format!("a{n}")).collect();
        assert_eq!(named(&names[..2]), "a0, a1");
        assert_eq!(named(&names), "a0, a1, a2, a3, a4 and 2 other(s)");
    }
}
