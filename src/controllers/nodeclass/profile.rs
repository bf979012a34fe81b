//! The instance profile of an EC2NodeClass, and the collection of those that nobody uses.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::{Context, Error, Outcome, read_live};
use super::{Controller, status_of};
use crate::api::v1::{EC2NodeClass, NodeClaim};
use crate::api::{annotations, conditions};
use crate::cloud::aws::AwsProvider;
use crate::cloud::aws::instanceprofile::ProfileError;

impl Controller {
    pub(super) async fn instance_profile(&self, class: &mut EC2NodeClass) -> Outcome {
        let kind = conditions::INSTANCE_PROFILE_READY;
        let profiles = &self.aws.instance_profiles;
        let before = class.status.as_ref().and_then(|s| s.instance_profile.clone());
        let name = match (&class.spec.role, &class.spec.instance_profile) {
            (_, Some(profile)) => {
                if let Some(before) = before.filter(|b| b != profile) {
                    profiles.protect(&before);
                }
                profile.clone()
            }
            (Some(role), None) => {
                let role = role.clone();
                match profiles.ensure(class, &role, before.as_deref()).await {
                    Ok(name) => name,
                    Err(error) => return self.no_profile(class, &role, &error),
                }
            }
            (None, None) => {
                return Err(Error::Other(
                    "spec.role, spec.instanceProfile: expected exactly one of them to be set"
                        .to_owned(),
                ));
            }
        };
        status_of(class).instance_profile = Some(name);
        self.set_true(class, kind);
        Ok(None)
    }

    /// A role that IAM does not know and a call that the policy does not allow are the user's to
    /// mend, and are reported; other failures pass.
    fn no_profile(&self, class: &mut EC2NodeClass, role: &str, error: &ProfileError) -> Outcome {
        let kind = conditions::INSTANCE_PROFILE_READY;
        match error {
            ProfileError::RoleNotFound(_) => {
                let message = format!("spec.role: IAM has no role {role:?}");
                self.set(class, kind, conditions::FALSE, "RoleNotFound", &message);
            }
            ProfileError::Get(_, error) | ProfileError::Create(error) => {
                self.report_denied(class, kind, error);
            }
        }
        Err(Error::Other(error.to_string()))
    }
}

/// Removes profiles of this cluster that no node class and no NodeClaim uses.
pub(super) async fn collect(ctx: &Context, aws: &Arc<AwsProvider>) -> Result<(), Error> {
    let profiles = &aws.instance_profiles;
    // The list comes first: a profile that is made meanwhile must not look unused.
    let Some(found) = profiles.list(&profiles.cluster_path()).await? else { return Ok(()) };
    let classes = read_live::list::<EC2NodeClass>(&ctx.client).await?;
    let claims = read_live::list::<NodeClaim>(&ctx.client).await?;
    // Which profiles an object names that cannot be understood is not known.
    if !classes.unreadable.is_empty() || !claims.unreadable.is_empty() {
        return Ok(());
    }
    let mut used: HashSet<String> = classes
        .objects
        .into_iter()
        .filter_map(|c| c.status.and_then(|s| s.instance_profile))
        .collect();
    used.extend(
        claims.objects.into_iter().filter_map(|c| {
            c.metadata.annotations?.get(annotations::INSTANCE_PROFILE_NAME).cloned()
        }),
    );
    for name in found {
        if used.contains(&name) || profiles.is_protected(&name) {
            continue;
        }
        profiles.delete(&name).await.map_err(|e| {
            Error::Other(format!("deleting instance profile, {e} (instance-profile={name})"))
        })?;
        tracing::debug!("instance-profile" = name, "deleted instance profile");
    }
    Ok(())
}
