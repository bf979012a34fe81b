//! How many waiting pods are tied to which zone.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::classes::Class;
use super::prepare::Prepared;
use super::topology::Kind;
use crate::api::labels;
use crate::scheduling::solver::ids::{KeyId, KindId, ValueId};

/// Counts the waiting pods by the zone that they, their volumes and their own topology leave.
pub(super) fn count(world: &Prepared<'_>) -> BTreeMap<String, u32> {
    let mut by_kind: FxHashMap<KindId, u32> = FxHashMap::default();
    for waiting in world.waiting.iter().filter(|w| w.pod.pending) {
        *by_kind.entry(waiting.kind).or_insert(0) += 1;
    }
    let mut counts = BTreeMap::new();
    for (kind, count) in by_kind {
        let stages = &world.classes.kinds[kind].stages;
        let Some(class) = stages.first() else { continue };
        let zone = zone_of(world, &world.classes.classes[*class]);
        *counts.entry(zone).or_insert(0) += count;
    }
    counts
}

/// The zone that is left, `flexible` for several, `none` for no zone at all.
fn zone_of(world: &Prepared<'_>, class: &Class) -> String {
    let Some(zone) = world.interner.find_key(labels::ZONE) else { return "flexible".to_owned() };
    let strict = world.interner.get(class.strict, zone);
    let mut left: Option<Vec<ValueId>> = None;
    let mut narrow = |to: Vec<ValueId>| {
        left = Some(match left.take() {
            None => to,
            Some(before) => before.into_iter().filter(|v| to.contains(v)).collect(),
        });
    };
    if let Some(req) = strict.map(|r| world.interner.req(r)).filter(|r| !r.complement) {
        narrow(req.values.to_vec());
    }
    if let Some(places) = places(world, class, zone) {
        narrow(places);
    }
    for rule in class.rules.iter().filter(|s| !s.host) {
        let group = world.topology.get(rule.group);
        if group.key == zone && group.kind != Kind::Inverse {
            narrow(world.plan.tally.allowed(
                &world.topology,
                rule.group,
                rule.own,
                strict,
                &world.interner,
            ));
        }
    }
    let Some(left) = left else { return "flexible".to_owned() };
    let mut left: Vec<ValueId> =
        left.into_iter().filter(|v| world.interner.admits(strict, *v)).collect();
    left.sort_unstable();
    left.dedup();
    match left.as_slice() {
        [] => "none".to_owned(),
        [one] => world.interner.value_name(zone, *one).to_string(),
        _ => "flexible".to_owned(),
    }
}

/// All zones in which the volumes can be; nothing when some way of placing them names none.
fn places(world: &Prepared<'_>, class: &Class, zone: KeyId) -> Option<Vec<ValueId>> {
    if class.volumes.is_empty() {
        return None;
    }
    let mut zones = Vec::new();
    for (place, _) in &class.volumes {
        let req = world.interner.req(world.interner.get(*place, zone)?);
        if req.complement {
            return None;
        }
        zones.extend(req.values.iter().copied());
    }
    Some(zones)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::super::solve;
    use super::super::tests::{pod, pool, snapshot};
    use crate::api::labels;
    use crate::scheduling::requirements::{Requirement, Requirements};
    use crate::scheduling::volumes::PodVolumes;

    fn zone(spec: Value, volumes: &[&str]) -> String {
        let pod = pod("p", "1", spec);
        let at =
            |z: &&str| -> Requirements { [Requirement::is(labels::ZONE, z)].into_iter().collect() };
        let alternatives = volumes.iter().map(at).collect();
        let mut snapshot = snapshot(vec![pool("p", json!({}))], vec![Arc::clone(&pod)]);
        if !volumes.is_empty() {
            let volumes = PodVolumes { alternatives, ..PodVolumes::default() };
            snapshot.pod_volumes.insert(pod.key.clone(), Arc::new(volumes));
        }
        snapshot.options.count_zones = true;
        let zones = solve(&snapshot).zones;
        assert_eq!(zones.values().sum::<u32>(), 1);
        zones.into_keys().next().unwrap()
    }

    #[test]
    fn selectors_volumes_and_topology_narrow_the_zones() {
        let tied = json!({"nodeSelector": {"topology.kubernetes.io/zone": "a"}});
        assert_eq!(zone(json!({}), &[]), "flexible");
        assert_eq!(zone(tied.clone(), &[]), "a");
        assert_eq!(zone(json!({}), &["b"]), "b");
        assert_eq!(zone(json!({}), &["a", "b"]), "flexible");
        assert_eq!(zone(tied, &["b"]), "none");
        let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {}}]});
        assert_eq!(zone(spread.clone(), &[]), "flexible");
        assert_eq!(zone(spread, &["a"]), "a");
        // Affinity to pods that are nowhere, of which it is not one itself.
        let near = json!({"affinity": {"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{
                "topologyKey": "topology.kubernetes.io/zone",
                "labelSelector": {"matchLabels": {"app": "other"}}}]}}});
        assert_eq!(zone(near, &[]), "none");
    }
}
