//! Removal of an EC2NodeClass: it waits for its NodeClaims, then takes its AWS objects with it.

use std::time::Duration;

use kube::Api;

use super::super::patch;
use super::super::{Outcome, read_live};
use super::Controller;
use crate::api::finalizers;
use crate::api::v1::{EC2NodeClass, NodeClaim};
use crate::operator::events::{Report, reference};

impl Controller {
    pub(super) async fn finalize(&self, api: &Api<EC2NodeClass>, before: &EC2NodeClass) -> Outcome {
        let held = before.metadata.finalizers.as_deref().unwrap_or_default();
        if !held.iter().any(|f| f == finalizers::NODECLASS_TERMINATION) {
            return Ok(None);
        }
        let mut users = self.users(before);
        if users.is_empty() {
            // A claim that the watch does not show yet is a user, too.
            let live = read_live::list::<NodeClaim>(&self.ctx.client).await?;
            users = names(live.objects.iter(), before);
        }
        if !users.is_empty() {
            let report = Report::WaitingOnNodeClaimTermination { claims: &shown(&users) };
            self.ctx.recorder.publish(report.on(reference(before)));
            return Ok(Some(Duration::from_secs(600)));
        }
        if !self.ctx.settings.isolated_vpc {
            self.aws.instance_profiles.delete_all(before).await?;
        }
        self.aws.launch_templates.delete_all(before).await?;
        patch::release(api, before, finalizers::NODECLASS_TERMINATION).await?;
        self.verdicts.forget(before);
        Ok(None)
    }

    /// NodeClaims that were made from the class, as far as the watch shows them.
    fn users(&self, class: &EC2NodeClass) -> Vec<String> {
        names(self.ctx.cluster.claims().iter().map(|c| &**c), class)
    }
}

fn names<'a>(claims: impl Iterator<Item = &'a NodeClaim>, class: &EC2NodeClass) -> Vec<String> {
    let class = class.metadata.name.as_deref().unwrap_or_default();
    let users = claims.filter(|c| c.is_managed() && c.spec.node_class_ref.name == class);
    let mut names: Vec<String> = users.filter_map(|c| c.metadata.name.clone()).collect();
    names.sort_unstable();
    names
}

fn shown(names: &[String]) -> String {
    let shown = names[..names.len().min(5)].join(", ");
    let more = match names.len().saturating_sub(5) {
        0 => String::new(),
        n => format!(" and {n} other(s)"),
    };
    format!("{shown}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_claims_are_cut() {
        let names: Vec<String> = (0..7).map(|i| format!("c{i}")).collect();
        assert_eq!(shown(&names[..2]), "c0, c1");
        assert!(shown(&names).ends_with("c4 and 2 other(s)"));
    }
}
