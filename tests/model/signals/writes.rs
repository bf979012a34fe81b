//! Writes while everything that is written to changes just before.

use std::collections::BTreeMap;
use std::sync::Arc;

use karpenter::model::api::{Call, Fault, FaultPlan, Store};
use parking_lot::Mutex;
use serde_json::json;

use crate::support::*;

/// Somebody else who writes to each object just before every other patch of it, so that its
/// resourceVersion has moved when the patch arrives.
struct Busy {
    store: Arc<Store>,
    turns: BTreeMap<String, u32>,
    /// When each patch came, by its object.
    patches: Arc<Mutex<Vec<(i128, String)>>>,
}

impl FaultPlan for Busy {
    fn fault(&mut self, call: &Call) -> Option<Fault> {
        if call.user != "karpenter" || call.verb != "patch" {
            return None;
        }
        let target = format!("{} {} {}", call.kind.plural, call.name, call.subresource);
        self.patches.lock().push((self.store.now().as_nanosecond(), target.clone()));
        let turn = self.turns.entry(target).or_default();
        *turn += 1;
        if *turn % 2 == 1 {
            let text = turn.to_string();
            // An object that is gone has nothing to be changed.
            let _ = self.store.modify(call.kind, &call.namespace, &call.name, "", |object| {
                object["metadata"]["annotations"]["example.com/busy"] = json!(text);
                Ok(())
            });
        }
        None
    }
}

#[test]
fn a_write_goes_through_although_the_object_changed_meanwhile() {
    with(gates_on("NodeOverlay,CapacityBuffer"), async |w| {
        let patches = Arc::new(Mutex::new(Vec::new()));
        w.server.set_faults(Busy {
            store: Arc::clone(&w.store),
            turns: BTreeMap::new(),
            patches: Arc::clone(&patches),
        });
        w.apply(pool("default", |_| ()));
        w.apply(json!({ "apiVersion": "karpenter.sh/v1alpha1", "kind": "NodeOverlay",
                "metadata": { "name": "dear" },
                "spec": { "requirements": [{ "key": "node.kubernetes.io/instance-type",
                    "operator": "In", "values": ["c16"] }], "priceAdjustment": "+10%" } }));
        w.start();
        w.apply(deployment("web", 12, "1", |_| ()));
        runs(w, "web", 12).await;
        w.scale("web", 1);
        until(w, HOUR, "a small one", |w| types(w) == ["c2"] && w.running("web") == 1).await;
        w.apply(json!({ "apiVersion": "v1", "kind": "PodTemplate",
                "metadata": { "name": "room" },
                "template": { "spec": { "containers": [{ "name": "c", "image": "image",
                    "resources": { "requests": { "cpu": "1" } } }] } } }));
        w.apply(json!({ "apiVersion": "autoscaling.x-k8s.io/v1beta1",
                "kind": "CapacityBuffer", "metadata": { "name": "room" },
                "spec": { "podTemplateRef": { "name": "room" }, "replicas": 1 } }));
        w.pass(5 * MINUTE).await;
        let journal = w.journal.tail(100_000);
        let refused: Vec<&String> = journal.iter().filter(|l| l.ends_with("-> 409")).collect();
        // Annotations and labels need nothing of what was read.
        for line in &refused {
            assert!(!line.contains(" patch nodepools default ->"), "{line}");
            assert!(!line.contains(" patch ec2nodeclasses default ->"), "{line}");
            assert!(!line.contains(" patch nodeoverlays dear ->"), "{line}");
        }
        for written in [
            "nodepools default/status",
            "nodeoverlays dear/status",
            "capacitybuffers default/room/status",
        ] {
            let done = |l: &&String| l.contains(&format!(" patch {written} -> 200"));
            assert!(journal.iter().any(|l| done(&l)), "{written}: {}", tail(w));
        }
        // What was refused since a list would have been replaced is made again at once.
        let patches = patches.lock();
        let at_once = patches.windows(2).enumerate().filter(|(index, _)| {
            let (time, target) = &patches[*index];
            patches[index + 1..]
                .iter()
                .take_while(|(t, _)| t - time <= 50_000_000)
                .any(|(_, other)| other == target)
        });
        let at_once = at_once.count();
        assert!(!refused.is_empty() && at_once >= refused.len(), "{at_once}: {refused:#?}");
    });
}
