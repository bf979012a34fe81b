//! The one way in which this process deletes a NodeClaim.

use kube::Api;

use super::super::Context;
use super::super::patch::{self, Deleted};
use crate::api::v1::NodeClaim;
use crate::operator::readable::Readable;

/// Deletes a NodeClaim, and returns whether this process is the first to do so: the caller counts and logs
/// that. The API server also accepts the deletion of an object that is being deleted, so its answer does not
/// tell.
///
/// The state has the deletion when this returns: a watch that is late would let another look choose the
/// claim again.
///
/// # Errors
/// When the API server refuses.
pub(in crate::controllers) async fn delete(ctx: &Context, name: &str) -> Result<bool, kube::Error> {
    let api = Api::<NodeClaim>::all(ctx.client.clone());
    match patch::delete(&api, name).await? {
        Deleted::Absent => return Ok(false),
        Deleted::Terminating(Readable::Object(claim)) => ctx.cluster.announce_claim(claim),
        Deleted::Terminating(Readable::Unreadable(_)) | Deleted::Removed => {}
    }
    Ok(ctx.cluster.note_deletion(name))
}
