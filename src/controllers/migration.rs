//! Objects that are still stored as v1beta1 are stored anew as v1, so that a later release of the
//! CRDs may drop v1beta1.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::json;
use tokio::task::JoinSet;

use super::runner::{self, Identity};
use super::{Context, Error};
use crate::api::conversion::STORED_VERSION_MIGRATED;

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

/// Starts the controller; it is done with a definition when nothing is left to store anew.
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

/// Marks every object that has no mark; writing an object stores it as v1. Gives their number.
async fn mark_all(objects: &Api<DynamicObject>) -> Result<usize, Error> {
    let mark = json!({"metadata": {"annotations": {STORED_VERSION_MIGRATED: "true"}}});
    let mut page = ListParams::default().limit(PAGE);
    let mut count = 0;
    loop {
        let list = objects.list_metadata(&page).await?;
        let token = list.metadata.continue_.clone().filter(|t| !t.is_empty());
        let unmarked = list.items.into_iter().filter(|o| {
            let marks = o.metadata.annotations.as_ref();
            marks.and_then(|a| a.get(STORED_VERSION_MIGRATED)).is_none_or(|m| m != "true")
        });
        let names: Vec<String> = unmarked.filter_map(|o| o.metadata.name).collect();
        count += names.len();
        stream::iter(names)
            .map(|name| {
                let mark = &mark;
                async move {
                    let patch = Patch::Merge(mark);
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
