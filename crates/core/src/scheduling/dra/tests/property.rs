//! The search against trying every combination.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::ledger::NodeSite;
use super::super::*;
use super::read;
use crate::scheduling::pod::{PodInfo, PodKey};
use crate::scheduling::requirements::Requirements;

/// What the counter of the pool holds.
const COUNTER: i64 = 5;

#[derive(Clone, Debug)]
struct ModelDevice {
    kind: Option<i64>,
    group: Option<i64>,
    memory: i64,
    shared: bool,
    counter: i64,
}

#[derive(Clone, Debug)]
struct ModelChoice {
    /// `None` for all devices that match.
    count: Option<usize>,
    kind: Option<i64>,
    memory: Option<i64>,
}

#[derive(Clone, Debug)]
struct ModelClaim {
    requests: Vec<Vec<ModelChoice>>,
    /// Requests whose devices must agree in their group: none, the first, or all.
    matched: u8,
}

fn devices() -> impl Strategy<Value = Vec<ModelDevice>> {
    let device = (
        prop::option::weighted(0.8, 0..2_i64),
        prop::option::weighted(0.8, 0..2_i64),
        1..4_i64,
        any::<bool>(),
        0..3_i64,
    )
        .prop_map(|(kind, group, memory, shared, counter)| ModelDevice {
            kind,
            group,
            memory,
            shared,
            counter,
        });
    prop::collection::vec(device, 0..6)
}

fn claims() -> impl Strategy<Value = Vec<ModelClaim>> {
    let choice = (
        prop::option::weighted(0.8, 1..3_usize),
        prop::option::of(0..2_i64),
        prop::option::of(1..4_i64),
    )
        .prop_map(|(count, kind, memory)| ModelChoice { count, kind, memory });
    let request = prop::collection::vec(choice, 1..3);
    let claim = (prop::collection::vec(request, 1..3), 0..3_u8)
        .prop_map(|(requests, matched)| ModelClaim { requests, matched });
    prop::collection::vec(claim, 1..4)
}

/// What is in use, as the checker counts it.
#[derive(Clone, Debug, Default)]
struct State {
    used: Vec<bool>,
    memory: Vec<i64>,
    counter: i64,
}

/// Devices chosen for a claim, request by request: device, memory taken.
type Chosen = Vec<Vec<(usize, i64)>>;

fn suits(device: &ModelDevice, choice: &ModelChoice) -> bool {
    choice.kind.is_none_or(|k| device.kind == Some(k))
}

/// Whether the state allows a claim to have these devices, and the state afterwards.
fn apply(state: &State, all: &[ModelDevice], claim: &ModelClaim, chosen: &Chosen) -> Option<State> {
    let mut next = state.clone();
    let mut seen = Vec::new();
    for (device, memory) in chosen.iter().flatten() {
        let of = &all[*device];
        if seen.contains(device) {
            return None;
        }
        seen.push(*device);
        if next.used[*device] && !of.shared {
            return None;
        }
        if !next.used[*device] {
            next.counter += of.counter;
        }
        next.used[*device] = true;
        if of.shared {
            next.memory[*device] += memory;
        }
        if *memory > of.memory || next.memory[*device] > of.memory {
            return None;
        }
    }
    if next.counter > COUNTER {
        return None;
    }
    let concerned = match claim.matched {
        0 => 0,
        1 => 1,
        _ => chosen.len(),
    };
    let groups: Vec<Option<i64>> =
        chosen[..concerned].iter().flatten().map(|(d, _)| all[*d].group).collect();
    groups.iter().all(|g| g.is_some() && *g == groups[0]).then_some(next)
}

fn taken(device: &ModelDevice, choice: &ModelChoice) -> i64 {
    choice.memory.unwrap_or(if device.shared { device.memory } else { 0 })
}

/// Every way of choosing devices for the requests from one on.
fn ways(all: &[ModelDevice], requests: &[Vec<ModelChoice>]) -> Vec<Chosen> {
    let Some((request, rest)) = requests.split_first() else { return vec![Vec::new()] };
    let tails = ways(all, rest);
    let mut found = Vec::new();
    for choice in request {
        let matching: Vec<usize> = (0..all.len()).filter(|d| suits(&all[*d], choice)).collect();
        let subsets: Vec<Vec<usize>> = match choice.count {
            None if matching.is_empty() => Vec::new(),
            None => vec![matching.clone()],
            Some(count) => (0_u32..1 << matching.len())
                .filter(|bits| bits.count_ones() as usize == count)
                .map(|bits| {
                    (0..matching.len())
                        .filter(|i| bits >> i & 1 == 1)
                        .map(|i| matching[i])
                        .collect()
                })
                .collect(),
        };
        for subset in subsets {
            let part: Vec<(usize, i64)> =
                subset.iter().map(|d| (*d, taken(&all[*d], choice))).collect();
            for tail in &tails {
                found.push(std::iter::once(part.clone()).chain(tail.iter().cloned()).collect());
            }
        }
    }
    found
}

fn objects(all: &[ModelDevice], claims: &[ModelClaim]) -> Objects {
    let listed: Vec<Value> = all
        .iter()
        .enumerate()
        .map(|(at, d)| {
            let mut attributes = json!({});
            if let Some(kind) = d.kind {
                attributes["kind"] = json!({"int": kind});
            }
            if let Some(group) = d.group {
                attributes["group"] = json!({"int": group});
            }
            json!({"name": format!("d{at}"), "attributes": attributes,
                "capacity": {"memory": {"value": d.memory.to_string()}},
                "allowMultipleAllocations": d.shared,
                "consumesCounters": [{"counterSet": "s",
                    "counters": {"c": {"value": d.counter.to_string()}}}]})
        })
        .collect();
    let mut objects = Objects::default();
    objects.set_slice(&read(json!({"metadata": {"name": "s"}, "spec": {"driver": "x",
        "nodeName": "node", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        "sharedCounters": [{"name": "s", "counters": {"c": {"value": COUNTER.to_string()}}}],
        "devices": listed}})));
    objects.set_class(&read(json!({"metadata": {"name": "any"}, "spec": {"selectors": [
        {"cel": {"expression": "device.driver == 'x'"}}]}})));
    for (at, claim) in claims.iter().enumerate() {
        let choice = |c: &ModelChoice| {
            let mut value = json!({"deviceClassName": "any"});
            match c.count {
                Some(count) => value["count"] = count.into(),
                None => value["allocationMode"] = "All".into(),
            }
            if let Some(kind) = c.kind {
                let expression = format!(
                    "has(device.attributes['x'].kind) && device.attributes['x'].kind == {kind}"
                );
                value["selectors"] = json!([{"cel": {"expression": expression}}]);
            }
            if let Some(memory) = c.memory {
                value["capacity"] = json!({"requests": {"memory": memory.to_string()}});
            }
            value
        };
        let requests: Vec<Value> = claim
            .requests
            .iter()
            .enumerate()
            .map(|(r, choices)| {
                let name = format!("r{r}");
                if let [only] = choices.as_slice() {
                    return json!({"name": name, "exactly": choice(only)});
                }
                let subs: Vec<Value> = choices
                    .iter()
                    .enumerate()
                    .map(|(s, c)| {
                        let mut value = choice(c);
                        value["name"] = format!("s{s}").into();
                        value
                    })
                    .collect();
                json!({"name": name, "firstAvailable": subs})
            })
            .collect();
        let constraints = match claim.matched {
            0 => json!([]),
            1 => json!([{"matchAttribute": "x/group", "requests": ["r0"]}]),
            _ => json!([{"matchAttribute": "x/group"}]),
        };
        objects.set_claim(&read(json!({"metadata": {"name": format!("c{at}"), "namespace": "n"},
            "spec": {"devices": {"requests": requests, "constraints": constraints}}})));
    }
    objects
}

fn pod(at: usize) -> Arc<PodInfo> {
    let claim = format!("c{at}");
    let name = format!("p{at}");
    Arc::new(PodInfo::from_pod(&read(json!({"metadata": {"name": name, "namespace": "n",
        "uid": name}, "spec": {"containers": [],
        "resourceClaims": [{"name": "r", "resourceClaimName": claim}]}}))))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Pods come one after the other to one node. Each is given devices exactly when some way of
    /// choosing exists, and what it is given is one of these ways.
    #[test]
    fn the_search_finds_devices_exactly_when_there_are_some(
        all in devices(), claims in claims()
    ) {
        let objects = objects(&all, &claims);
        let pods: Vec<_> = (0..claims.len()).map(pod).collect();
        let node: k8s_openapi::api::core::v1::Node =
            read(json!({"metadata": {"name": "node"}}));
        let view = crate::scheduling::node::NodeView {
            node: Some(Arc::new(node)),
            ..Default::default()
        };
        let state = view.into();
        let inventory = Inventory::new(&objects, &pods, &[state], []);
        let mut ledger = Ledger::new(Arc::new(inventory));
        let site = NodeSite { node: 0, name: "node", labels: Requirements::new(), set: DeviceSetId::FIRST };
        let mut state =
            State { used: vec![false; all.len()], memory: vec![0; all.len()], counter: 0 };
        for (at, claim) in claims.iter().enumerate() {
            let key = PodKey::new("n", &format!("p{at}"));
            let possible = ways(&all, &claim.requests);
            let any = possible.iter().any(|w| apply(&state, &all, claim, w).is_some());
            match ledger.on_node(&key, &site) {
                Err(error) => prop_assert!(!any, "claim {at}: {error}"),
                Ok(plan) => {
                    let inventory = Arc::clone(ledger.inventory());
                    let mut chosen: Chosen = vec![Vec::new(); claim.requests.len()];
                    for pick in plan.given.iter().flat_map(|(_, picks)| picks) {
                        let shown = inventory.shown(pick.device);
                        let device: usize = shown.rsplit_once('d').unwrap().1.parse().unwrap();
                        let (request, sub) =
                            pick.request.split_once("/s").unwrap_or((&*pick.request, "0"));
                        let request: usize = request[1..].parse().unwrap();
                        let choice = &claim.requests[request][sub.parse::<usize>().unwrap()];
                        chosen[request].push((device, taken(&all[device], choice)));
                    }
                    let next = apply(&state, &all, claim, &chosen);
                    prop_assert!(possible.contains(&chosen), "claim {at}: {chosen:?}");
                    prop_assert!(next.is_some(), "claim {at}: {chosen:?} in {state:?}");
                    state = next.unwrap();
                    ledger.commit_node(0, plan);
                }
            }
        }
    }
}
