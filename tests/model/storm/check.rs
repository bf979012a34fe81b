//! The checks of the storm, checked: defects are planted one at a time, in what the controllers send
//! and see or in the cloud, and each has to be found.

use karpenter::model::api::{Call, Kind};

use super::*;

/// Changes a request's body; false when it is answered without being carried out.
type Send = fn(&Call, &mut Value) -> bool;
/// Changes an object that is shown; false when it is hidden.
type Show = fn(&Kind, &mut Value) -> bool;

/// Where a defect is.
#[derive(Clone, Copy)]
enum At {
    Send(Send),
    Show(Show),
    Cloud(Defect),
    /// Evictions are granted whatever the budgets of pods say.
    Budgets,
}

/// A defect.
#[derive(Clone, Copy)]
pub struct Plant {
    /// What is wrong.
    name: &'static str,
    at: At,
    /// What the schedules need for it to matter.
    tune: fn(&mut Schedule),
}

struct Distorted(At);

impl Lens for Distorted {
    fn send(&mut self, call: &Call, body: &mut Value) -> bool {
        match self.0 {
            At::Send(send) if call.user.starts_with("karpenter") => send(call, body),
            _ => true,
        }
    }

    fn show(&mut self, user: &str, kind: &'static Kind, object: &mut Value) -> bool {
        match self.0 {
            At::Show(show) if user.starts_with("karpenter") => show(kind, object),
            _ => true,
        }
    }
}

impl Plant {
    pub fn set(&self, world: &World) {
        match self.at {
            At::Cloud(defect) => world.cloud.plant(defect),
            At::Budgets => world.store.ignore_budgets(),
            at => world.server.set_lens(Distorted(at)),
        }
    }
}

const fn send(name: &'static str, send: Send) -> Plant {
    Plant { name, at: At::Send(send), tune: |_| () }
}

const fn show(name: &'static str, show: Show) -> Plant {
    Plant { name, at: At::Show(show), tune: |_| () }
}

const fn cloud(name: &'static str, defect: Defect) -> Plant {
    Plant { name, at: At::Cloud(defect), tune: |_| () }
}

fn faulty_cloud(schedule: &mut Schedule) {
    schedule.cloud = 100;
}

fn patient(schedule: &mut Schedule) {
    schedule.pause = 400;
    schedule.steps = 12;
}

fn two(schedule: &mut Schedule) {
    schedule.replicas = true;
}

/// True for a write of a kind by these verbs.
fn is(call: &Call, plural: &str, verbs: &[&str]) -> bool {
    call.kind.plural == plural && verbs.contains(&call.verb)
}

fn taints_of(body: &Value) -> Option<&Vec<Value>> {
    body["spec"]["taints"].as_array()
}

fn has_taint(body: &Value, key: &str) -> bool {
    taints_of(body).is_some_and(|t| t.iter().any(|t| t["key"] == key))
}

fn conditions_of(body: &mut Value) -> Option<&mut Vec<Value>> {
    body["status"]["conditions"].as_array_mut()
}

/// A condition is shown as True, whatever it is.
fn shown_true(object: &mut Value, kind: &str) {
    let Some(list) = conditions_of(object) else { return };
    match list.iter_mut().find(|c| c["type"] == kind) {
        Some(condition) => condition["status"] = json!("True"),
        None => list.push(json!({ "type": kind, "status": "True", "reason": kind, "message": "",
            "lastTransitionTime": "2026-01-05T00:00:00Z" })),
    }
}

const PLANTS: &[Plant] = &[
    Plant { tune: faulty_cloud, ..cloud("a token that is not stable", Defect::UnstableToken) },
    cloud("a launch that makes two instances", Defect::DoubleLaunch),
    cloud("a launch that makes no instance", Defect::PhantomLaunch),
    cloud("what was asked for is not looked at", Defect::AnyType),
    cloud("the end of an instance is only confirmed", Defect::EndIgnored),
    cloud("instances that run are not found", Defect::NotFound),
    cloud("a price that is wrong", Defect::WrongPrice),
    Plant { name: "budgets of pods are not looked at", at: At::Budgets, tune: |_| () },
    send("a forgotten finalizer on claims", |call, body| {
        if is(call, "nodeclaims", &["create"]) {
            body["metadata"]["finalizers"] = json!([]);
        }
        // Nor is it added afterwards.
        !(is(call, "nodeclaims", &["patch"])
            && body.to_string().contains("karpenter.sh/termination")
            && !body.to_string().contains("\"remove\""))
    }),
    send("a forgotten finalizer on nodes", |call, body| {
        if is(call, "nodes", &["patch", "update"]) && body["metadata"]["finalizers"].is_array() {
            body["metadata"].as_object_mut().unwrap().remove("finalizers");
        }
        true
    }),
    send("a forgotten label on registration", |call, body| {
        if is(call, "nodes", &["patch", "update"]) && body["metadata"]["labels"].is_object() {
            let labels = body["metadata"]["labels"].as_object_mut().unwrap();
            labels.remove("karpenter.sh/registered");
        }
        true
    }),
    send("the taint of registration stays", |call, body| {
        if is(call, "nodes", &["patch", "update"])
            && body["spec"]["taints"].is_array()
            && !has_taint(body, "karpenter.sh/unregistered")
            && !has_taint(body, "karpenter.sh/disrupted")
        {
            body["spec"].as_object_mut().unwrap().remove("taints");
        }
        true
    }),
    send("the taint of a command is not written", |call, body| {
        !(is(call, "nodes", &["patch", "update"]) && has_taint(body, "karpenter.sh/disrupted"))
    }),
    send("the reason of a command is not written", |call, body| {
        let marks = is(call, "nodeclaims", &["patch", "update"])
            && body["status"]["conditions"].to_string().contains("DisruptionReason");
        !marks
    }),
    send("evictions are only confirmed", |call, _| {
        !(call.kind.plural == "pods" && call.subresource == "eviction")
    }),
    send("claims are not deleted", |call, _| !is(call, "nodeclaims", &["delete"])),
    send("claims are only confirmed", |call, _| !is(call, "nodeclaims", &["create"])),
    send("finalizers are never removed", |call, body| {
        let text = body.to_string();
        !(is(call, "nodeclaims", &["patch"]) && text.contains("\"remove\""))
    }),
    show("a budget off by two", |kind, object| {
        if kind.plural == "nodepools" {
            let budgets = object["spec"]["disruption"]["budgets"].as_array_mut();
            for budget in budgets.into_iter().flatten() {
                let count = budget["nodes"].as_str().and_then(|n| n.parse::<u32>().ok());
                if let Some(count) = count {
                    budget["nodes"] = json!((count + 2).to_string());
                }
            }
        }
        true
    }),
    show("budgets are not looked at", |kind, object| {
        if kind.plural == "nodepools" {
            object["spec"]["disruption"]["budgets"] = json!([{ "nodes": "100%" }]);
        }
        true
    }),
    show("limits are not looked at", |kind, object| {
        if kind.plural == "nodepools"
            && let Some(spec) = object["spec"].as_object_mut()
        {
            spec.remove("limits");
        }
        true
    }),
    show("pods that must not be disrupted are not looked at", |kind, object| {
        if kind.plural == "pods"
            && let Some(marks) = object["metadata"]["annotations"].as_object_mut()
        {
            marks.remove("karpenter.sh/do-not-disrupt");
        }
        true
    }),
    show("consolidateAfter is not looked at", |kind, object| {
        if kind.plural == "nodepools" {
            object["spec"]["disruption"]["consolidateAfter"] = json!("0s");
        }
        true
    }),
    Plant {
        tune: patient,
        ..show("expireAfter is not looked at", |kind, object| {
            if kind.plural == "nodeclaims"
                && let Some(spec) = object["spec"].as_object_mut()
            {
                spec.remove("expireAfter");
            }
            true
        })
    },
    show("every claim looks initialized", |kind, object| {
        if kind.plural == "nodeclaims" {
            shown_true(object, "Initialized");
        }
        true
    }),
    show("every claim looks drifted", |kind, object| {
        if kind.plural == "nodeclaims" {
            shown_true(object, "Drifted");
        }
        true
    }),
    show("pods that wait are not seen", |kind, object| {
        !(kind.plural == "pods" && object["spec"]["nodeName"].is_null())
    }),
    show("bound pods are not seen", |kind, object| {
        !(kind.plural == "pods" && object["spec"]["nodeName"].is_string())
    }),
    show("new claims are not seen", |kind, object| {
        !(kind.plural == "nodeclaims" && object["status"]["providerID"].is_null())
    }),
    show("deletions of claims are not seen", |kind, object| {
        !(kind.plural == "nodeclaims" && object["metadata"]["deletionTimestamp"].is_string())
    }),
    Plant {
        tune: two,
        ..show("the lease is always free", |kind, object| {
            if kind.plural == "leases" {
                object["spec"]["holderIdentity"] = json!("");
            }
            true
        })
    },
];

/// Schedules until a defect is found; nothing when it is not among so many. What fails without the
/// defect, too, shows nothing.
fn found(plant: &Plant, most: u64) -> Option<(u64, String)> {
    (0..most).find_map(|seed| {
        let mut schedule = Schedule::draw(seed);
        (plant.tune)(&mut schedule);
        let why = schedule.play_with(Some(plant)).err()?;
        schedule.play().is_ok().then_some((seed + 1, why))
    })
}

fn each_is_found(plants: &[Plant], most: u64) {
    let (next, missed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(plant) =
                    plants.get(usize::try_from(next.fetch_add(1, Ordering::SeqCst)).unwrap())
                {
                    match found(plant, most) {
                        Some((count, why)) => {
                            println!("{}: found by schedule {count}: {why}", plant.name);
                        }
                        None => missed.lock().push(plant.name),
                    }
                }
            });
        }
    });
    let missed = missed.into_inner();
    assert!(missed.is_empty(), "not found in {most} schedules: {missed:?}");
}

#[test]
fn every_plant_has_a_name_of_its_own() {
    let names: BTreeSet<&str> = PLANTS.iter().map(|p| p.name).collect();
    assert_eq!(names.len(), PLANTS.len());
    assert!(names.len() >= 25);
}

/// Some of the defects; `make storm-check` plants all of them.
#[test]
fn defects_that_are_planted_are_found() {
    // Those that the first schedule finds.
    let some = ["a launch that makes two instances", "the end of an instance is only confirmed"];
    let plants: Vec<Plant> = PLANTS.iter().filter(|p| some.contains(&p.name)).copied().collect();
    assert_eq!(plants.len(), some.len());
    each_is_found(&plants, 5);
}

#[test]
#[ignore = "takes minutes in a debug build"]
fn every_defect_that_is_planted_is_found() {
    let most = std::env::var("STORM_MOST").ok().and_then(|n| n.parse().ok());
    each_is_found(PLANTS, most.unwrap_or(200));
}
