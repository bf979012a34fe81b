//! NodeOverlays change what types cost, and with that what is launched and what is replaced.

use karpenter::model::World;
use serde_json::{Value, json};

use crate::support::*;

const GATE: &str = "NodeOverlay";

fn overlay(name: &str, kind: &str, fields: Value) -> Value {
    let mut overlay = json!({ "apiVersion": "karpenter.sh/v1alpha1", "kind": "NodeOverlay",
        "metadata": { "name": name },
        "spec": { "requirements": [{ "key": "node.kubernetes.io/instance-type",
            "operator": "In", "values": [kind] }] } });
    for (key, value) in fields.as_object().unwrap() {
        overlay["spec"][key] = value.clone();
    }
    overlay
}

fn ready(w: &World, name: &str) -> Option<bool> {
    let found = w.get("nodeoverlays", name)?;
    condition(&found, "Ready").map(|status| status == "True")
}

#[test]
fn a_type_that_an_overlay_makes_cheap_is_launched() {
    gated(GATE, async |w| {
        w.apply(calm("default", |spec| only_types(spec, &["c2", "c4"])));
        w.apply(overlay("cheap", "c4", json!({ "price": "0.001" })));
        w.start();
        until(w, MINUTE, "it is in force", |w| ready(w, "cheap") == Some(true)).await;
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        // The cloud takes the cheapest by its own prices of what the claim lists.
        let claims = w.all("nodeclaims");
        let listed = claims[0]["spec"]["requirements"].to_string();
        let (four, two) = (listed.find("c4"), listed.find("c2"));
        assert!(four.is_some() && (two.is_none() || four < two || listed.contains("c4")));
    });
}

#[test]
fn a_type_that_an_overlay_makes_dear_is_replaced() {
    gated(GATE, async |w| {
        w.apply(pool("default", |spec| only_types(spec, &["c2", "c4"])));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        assert_eq!(types(w), ["c2"]);
        w.apply(overlay("dear", "c2", json!({ "price": "9" })));
        until(w, 30 * MINUTE, "another type", |w| types(w) == ["c4"] && w.running("web") == 1)
            .await;
    });
}

#[test]
fn an_adjustment_in_percent_counts() {
    gated(GATE, async |w| {
        w.apply(pool("default", |spec| only_types(spec, &["c2", "c4"])));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        // c2 costs 0.1, c4 costs 0.2.
        w.apply(overlay("some", "c2", json!({ "priceAdjustment": "+50%" })));
        always(w, 15 * MINUTE, "still the cheaper one", |w| types(w) == ["c2"]).await;
        w.change("nodeoverlays", "", "some", "", |o| {
            o["spec"]["priceAdjustment"] = json!("+150%");
        });
        until(w, 30 * MINUTE, "now it is not", |w| types(w) == ["c4"] && w.running("web") == 1)
            .await;
    });
}

#[test]
fn without_the_gate_an_overlay_does_nothing() {
    scenario(async |w| {
        w.apply(pool("default", |spec| only_types(spec, &["c2", "c4"])));
        w.apply(overlay("dear", "c2", json!({ "price": "9" })));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        always(w, 15 * MINUTE, "it stays", |w| types(w) == ["c2"]).await;
        assert_eq!(ready(w, "dear"), None);
    });
}

#[test]
fn an_overlay_that_is_gone_counts_no_more() {
    gated(GATE, async |w| {
        w.apply(pool("default", |spec| only_types(spec, &["c2", "c4"])));
        w.apply(overlay("dear", "c2", json!({ "price": "9" })));
        w.start();
        until(w, MINUTE, "it is in force", |w| ready(w, "dear") == Some(true)).await;
        w.apply(deployment("web", 1, "3", |_| ()));
        runs(w, "web", 1).await;
        assert_eq!(types(w), ["c4"]);
        w.change("deployments", "default", "web", "", |d| {
            d["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] =
                json!("1");
        });
        always(w, 15 * MINUTE, "the dear type is not used", |w| types(w) == ["c4"]).await;
        w.delete("nodeoverlays", "dear");
        until(w, 30 * MINUTE, "a small one", |w| types(w) == ["c2"] && w.running("web") == 1).await;
    });
}

#[test]
fn of_two_overlays_the_heavier_counts() {
    gated(GATE, async |w| {
        w.apply(pool("default", |spec| only_types(spec, &["c2", "c4"])));
        w.apply(overlay("light", "c2", json!({ "price": "9", "weight": 1 })));
        w.apply(overlay("heavy", "c2", json!({ "price": "0.01", "weight": 10 })));
        w.start();
        w.apply(deployment("web", 1, "1", |_| ()));
        runs(w, "web", 1).await;
        always(w, 15 * MINUTE, "the heavy one's price", |w| types(w) == ["c2"]).await;
        w.delete("nodeoverlays", "heavy");
        until(w, 30 * MINUTE, "the light one's price", |w| types(w) == ["c4"]).await;
    });
}

#[test]
fn overlays_of_equal_weight_that_disagree_are_not_both_ready() {
    gated(GATE, async |w| {
        w.apply(pool("default", |_| ()));
        w.apply(overlay("one", "c2", json!({ "price": "9" })));
        w.apply(overlay("two", "c2", json!({ "price": "8" })));
        w.start();
        until(w, 2 * MINUTE, "one is refused", |w| {
            [ready(w, "one"), ready(w, "two")].contains(&Some(false))
        })
        .await;
    });
}

#[test]
fn pods_wait_for_overlays_to_be_judged_and_then_run() {
    gated(GATE, async |w| {
        w.apply(calm("default", |_| ()));
        for n in 0..10 {
            let fields = json!({ "price": format!("{}", 1 + n), "weight": n + 1 });
            w.apply(overlay(&format!("o{n}"), "c16", fields));
        }
        w.apply(deployment("web", 3, "1", |_| ()));
        w.start();
        runs(w, "web", 3).await;
        assert_eq!(w.instances().len(), 1);
    });
}
