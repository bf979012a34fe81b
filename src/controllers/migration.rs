//! Objects that are still stored as v1beta1 are stored again as v1, so that a later release of the
//! CRDs may drop v1beta1.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::runner::{self, Identity};
use super::{Context, Error};
use crate::api::conversion::STORED_VERSION_MIGRATED;
use crate::api::v1::NodeClassReference;

const MIGRATION: Identity = Identity {
    name: "migration.crd",
    group: "apiextensions.k8s.io",
    kind: "CustomResourceDefinition",
    workers: 3,
};
/// The definitions with two versions.
const CRDS: [&str; 3] =
    ["nodepools.karpenter.sh", "nodeclaims.karpenter.sh", "ec2nodeclasses.karpenter.k8s.aws"];
/// The version that objects are to be stored in.
const STORED: &str = "v1";
/// The version that they may have been stored in.
const OLD: &str = "v1beta1";
/// How soon again after a definition that is not there yet or not done yet.
const AGAIN: Duration = Duration::from_secs(30);
/// Objects that are written at the same time.
const WORKERS: usize = 10;
/// Objects read at once.
const PAGE: u32 = 500;

/// Starts the controller; it is done with a definition when nothing is left to store again.
pub fn start(ctx: &Arc<Context>, tasks: &mut JoinSet<()>) {
    if ctx.settings.webhook_port == 0 {
        // Without the webhook nothing can be read that is stored as v1beta1.
        return;
    }
    let client = ctx.client.clone();
    runner::each(tasks, MIGRATION, CRDS, move |name| {
        let client = client.clone();
        async move { Ok((!migrate(&client, &name).await?).then_some(AGAIN)) }
    });
}

/// Writes every object that is not marked, then takes the old version out of the definition's
/// status; true when the definition has only the new one.
async fn migrate(client: &kube::Client, name: &str) -> Result<bool, Error> {
    let crds = Api::<CustomResourceDefinition>::all(client.clone());
    let Some(crd) = crds.get_opt(name).await? else { return Ok(false) };
    let stored = crd.status.as_ref().and_then(|s| s.stored_versions.clone()).unwrap_or_default();
    if !stored.iter().any(|version| version == OLD) {
        return Ok(true);
    }
    if !crd.spec.versions.iter().any(|v| v.name == STORED && v.storage) {
        return Err(Error::Other(format!(
            "failed to migrate CRD, expected storage version to be {STORED} (make sure you've upgraded your CRDs)"
        )));
    }
    let resource = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk(&crd.spec.group, STORED, &crd.spec.names.kind),
        &crd.spec.names.plural,
    );
    let objects = Api::<DynamicObject>::all_with(client.clone(), &resource);
    let count = mark_all(&objects).await?;
    // Only if nothing was stored as the old version meanwhile by another definition.
    let patch = json!({
        "metadata": {"resourceVersion": crd.metadata.resource_version},
        "status": {"storedVersions": [STORED]},
    });
    match crds.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => {
            tracing::info!(
                "CustomResourceDefinition" = name,
                "objects" = count,
                "migrated stored objects to v1"
            );
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What is written on an object. Another provider's carries no mark of ours: an empty change is
/// enough to have it stored again.
fn patch_for(object: &Value) -> Value {
    let spec = &object["spec"];
    let reference = spec.pointer("/template/spec/nodeClassRef").or(spec.get("nodeClassRef"));
    let reference: NodeClassReference =
        reference.and_then(|r| serde_json::from_value(r.clone()).ok()).unwrap_or_default();
    if reference.is_managed() {
        json!({"metadata": {"annotations": {STORED_VERSION_MIGRATED: "true"}}})
    } else {
        json!({})
    }
}

/// Marks every object that has no mark; writing an object stores it as v1. Gives their number.
async fn mark_all(objects: &Api<DynamicObject>) -> Result<usize, Error> {
    let mut page = ListParams::default().limit(PAGE);
    let mut count = 0;
    loop {
        let list = objects.list(&page).await?;
        let token = list.metadata.continue_.clone().filter(|t| !t.is_empty());
        let unmarked = list.items.into_iter().filter(|o| {
            let marks = o.metadata.annotations.as_ref();
            marks.and_then(|a| a.get(STORED_VERSION_MIGRATED)).is_none_or(|m| m != "true")
        });
        let names: Vec<(String, Value)> =
            unmarked.filter_map(|o| Some((o.metadata.name.clone()?, patch_for(&o.data)))).collect();
        count += names.len();
        stream::iter(names)
            .map(|(name, patch)| {
                async move {
                    let patch = Patch::Merge(&patch);
                    match objects.patch_metadata(&name, &PatchParams::default(), &patch).await {
                        // Gone meanwhile.
                        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                        other => other.map(|_| ()),
                    }
                }
            })
            .buffer_unordered(WORKERS)
            .try_collect::<Vec<()>>()
            .await?;
        match token {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_providers_objects_are_stored_again_without_a_mark() {
        let of = |group: &str, kind: &str| json!({"group": group, "kind": kind, "name": "n"});
        let claim = |class: Value| patch_for(&json!({"spec": {"nodeClassRef": class}}));
        let pool = |class: Value| {
            patch_for(&json!({"spec": {"template": {"spec": {"nodeClassRef": class}}}}))
        };
        for foreign in [of("eks.amazonaws.com", "NodeClass"), of("karpenter.k8s.aws", "Other")] {
            assert_eq!(claim(foreign.clone()), json!({}));
            assert_eq!(pool(foreign), json!({}));
        }
        for own in [of("karpenter.k8s.aws", "EC2NodeClass"), of("", "")] {
            assert!(!claim(own.clone())["metadata"].is_null());
            assert!(!pool(own)["metadata"].is_null());
        }
        assert!(!patch_for(&json!({"spec": {"role": "r"}}))["metadata"].is_null());
    }
}
