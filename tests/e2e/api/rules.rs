//! What is accepted and what is refused, and that `karpenter validate` knows it without a server.

use std::collections::BTreeSet;

use karpenter::api::admission::Admission;
use kube::api::{DynamicObject, PostParams};
use serde_json::{Value, json};

use super::{Served, table, text};

impl Served {
    /// Asks whether an object would be stored: none, or the fields that are refused with the text.
    async fn judge(&self, object: &Value) -> Option<(BTreeSet<String>, String)> {
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let api = self.api(version, kind);
        let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        verdict(api.create(&dry, &object).await)
    }

    /// The same for a change of what is stored under the name.
    async fn judge_change(
        &self,
        object: &Value,
        stored: &Value,
    ) -> Option<(BTreeSet<String>, String)> {
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let name = text(&stored["metadata"]["name"]).to_owned();
        let mut object = object.clone();
        object["metadata"]["name"] = json!(name);
        object["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        verdict(self.api(version, kind).replace(&name, &dry, &object).await)
    }
}

fn verdict(outcome: kube::Result<DynamicObject>) -> Option<(BTreeSet<String>, String)> {
    match outcome {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => {
            let causes = status.details.as_ref().map(|d| d.causes.clone()).unwrap_or_default();
            let fields = causes.into_iter().map(|c| c.field).collect();
            Some((fields, status.message.clone()))
        }
        Err(error) => panic!("{error}"),
    }
}

/// The fields that we refuse without a server.
fn ours(object: &Value, old: Option<&Value>) -> BTreeSet<String> {
    let admitted = match old {
        Some(old) => Admission::get().update(old, object.clone()),
        None => Admission::get().create(object.clone()),
    };
    admitted.unwrap().findings.into_iter().map(|f| f.path).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_accepts_and_refuses() {
    let served = Served::up().await;
    let mut wrong = Vec::new();
    let cases = table::cases();
    for (i, case) in cases.iter().enumerate() {
        let stored = match &case.from {
            Some(from) => {
                let mut from = from.clone();
                from["metadata"]["name"] = json!(format!("case-{i}"));
                Some(served.create(&from).await)
            }
            None => None,
        };
        let judge = async |object: &Value| match &stored {
            Some(stored) => served.judge_change(object, stored).await,
            None => served.judge(object).await,
        };
        if let Some((_, message)) = judge(&case.accepted).await {
            wrong.push(format!("accepted: {}\n  {message}", case.label()));
        }
        let Some((fields, message)) = judge(&case.refused).await else {
            wrong.push(format!("refused: {}: it was accepted", case.label()));
            continue;
        };
        if !message.contains(&format!("{}: Invalid value", case.at))
            || !message.contains(&case.message)
        {
            wrong.push(format!("refused: {}\n  {message}", case.label()));
        }
        let offline = ours(&case.refused, stored.as_ref());
        if offline != fields {
            wrong.push(format!("{}\n  server {fields:?}, offline {offline:?}", case.label()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    values(&served).await;
}

/// Types, bounds, enumerations and patterns.
async fn values(served: &Served) {
    let mut wrong = Vec::new();
    for value in table::values() {
        for (object, good) in value.objects() {
            let server = served.judge(&object).await;
            let offline = ours(&object, None);
            let label = || format!("{} {}", value.label, object["spec"]);
            match (&server, good) {
                (Some((_, message)), true) => wrong.push(format!("{}: {message}", label())),
                (None, false) => wrong.push(format!("{}: it was accepted", label())),
                _ => {}
            }
            if server.is_some() == offline.is_empty() {
                wrong.push(format!("{}: offline finds {offline:?}", label()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
