//! Whether an instance still is what its node class asks for today.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::instance::{Instance, parse_provider_id};
use super::{AwsProvider, launchtemplate};
use crate::api::conversion::KUBELET;
use crate::api::v1::{EC2NodeClass, EC2NodeClassStatus, NodeClaim, NodePool};
use crate::api::{annotations, hash, labels};
use crate::cloud::Error;
use crate::scheduling::instance_type::InstanceType;

/// The node class's own settings changed.
const NODE_CLASS: &str = "NodeClassDrift";
/// Another image is chosen today.
const AMI: &str = "AMIDrift";
/// Other security groups are selected today.
const SECURITY_GROUP: &str = "SecurityGroupDrift";
/// The instance's subnet is not selected any more.
const SUBNET: &str = "SubnetDrift";
/// The instance's reservation is not selected any more.
const CAPACITY_RESERVATION: &str = "CapacityReservationDrift";
/// Another placement group is selected today.
const PLACEMENT_GROUP: &str = "PlacementGroupDrift";

impl AwsProvider {
    /// Why the claim's instance no longer is what its node class asks for, if so.
    pub(super) async fn drift_reason(
        &self,
        claim: &NodeClaim,
        pool: &NodePool,
        class: Option<&EC2NodeClass>,
    ) -> Result<Option<&'static str>, Error> {
        let usable = |c: &&EC2NodeClass| c.metadata.deletion_timestamp.is_none();
        let Some(class) = class.filter(usable) else {
            self.report_class_missing(pool);
            return Ok(None);
        };
        // What needs no call comes first. Each check returns Karpenter's reason, and the first that
        // applies is reported, in Karpenter's order.
        if settings_changed(claim, class, &|| self.claim_hash(class, claim))
            || kubelet_changed(claim, class, pool).map_err(|e| drift_error("kubelet", &e))?
        {
            return Ok(Some(NODE_CLASS));
        }
        let types = self.instance_types.list(class).map_err(|e| drift_error("ami", &e))?;
        if image_changed(claim, class, &types).map_err(|e| drift_error("ami", &e))? {
            return Ok(Some(AMI));
        }
        let id = claim.status.as_ref().and_then(|s| s.provider_id.as_deref()).unwrap_or_default();
        let id = parse_provider_id(id).ok_or_else(|| {
            Error::Other(format!("provider id does not match known format (provider-id={id})"))
        })?;
        let instance = self.instances.get(id).await?;
        let status = class.status.clone().unwrap_or_default();
        let groups = security_groups_changed(&instance, &status)
            .map_err(|e| drift_error("securitygroup", &e))?;
        let subnet = subnet_left(&instance, &status).map_err(|e| drift_error("subnet", &e))?;
        let reservation = self.reservation_left(id, &instance, &status).await?;
        let placement = self.placement_changed(claim, class).await;
        Ok([
            (groups, SECURITY_GROUP),
            (subnet, SUBNET),
            (reservation, CAPACITY_RESERVATION),
            (placement, PLACEMENT_GROUP),
        ]
        .into_iter()
        .find_map(|(drifted, reason)| drifted.then_some(reason)))
    }

    /// A reservation that seems to be left is looked at twice: the first look may be an old one.
    async fn reservation_left(
        &self,
        id: &str,
        instance: &Instance,
        status: &EC2NodeClassStatus,
    ) -> Result<bool, Error> {
        if !outside_reservations(instance, status) {
            return Ok(false);
        }
        Ok(outside_reservations(&self.instances.get_fresh(id).await?, status))
    }

    async fn placement_changed(&self, claim: &NodeClaim, class: &EC2NodeClass) -> bool {
        let wanted = match self.placement_groups.get(class).await {
            Ok(group) => group,
            // A failed lookup must not look like "no placement group": every node in one would
            // drift.
            Err(_) => self.placement_groups.known(class),
        };
        let has = label(claim, labels::PLACEMENT_GROUP_ID).unwrap_or_default();
        has != wanted.map(|g| g.id).unwrap_or_default()
    }
}

fn drift_error(what: &str, error: &impl std::fmt::Display) -> Error {
    Error::Other(format!("calculating {what} drift, {error}"))
}

fn label<'a>(claim: &'a NodeClaim, key: &str) -> Option<&'a str> {
    claim.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// Hashes of one version differ; others cannot be compared. `today` is what the claim would be
/// stamped with now, which is not the class's hash when the claim has kubelet settings of its own.
fn settings_changed(claim: &NodeClaim, class: &EC2NodeClass, today: &dyn Fn() -> String) -> bool {
    let version = annotations::EC2NODECLASS_HASH_VERSION;
    let hash = annotations::EC2NODECLASS_HASH;
    let (of_claim, of_class) = (&claim.metadata, &class.metadata);
    match (mark(of_claim, version), mark(of_class, version)) {
        (Some(a), Some(b)) if a == b => {
            let (Some(x), Some(y)) = (mark(of_claim, hash), mark(of_class, hash)) else {
                return false;
            };
            x != y && (mark(of_claim, KUBELET).is_none() || x != today())
        }
        _ => false,
    }
}

/// The kubelet's settings that count today, be they the pool's from v1beta1 or the class's, differ
/// from those that the claim was launched with. The same settings in another place are no change.
/// Where only classes have such settings, their hash shows a change.
fn kubelet_changed(
    claim: &NodeClaim,
    class: &EC2NodeClass,
    pool: &NodePool,
) -> Result<bool, String> {
    let version = annotations::EC2NODECLASS_HASH_VERSION;
    let brought = mark(&claim.metadata, KUBELET).is_some();
    if !brought && mark(&pool.metadata, KUBELET).is_none()
        || mark(&claim.metadata, version) != mark(&class.metadata, version)
    {
        return Ok(false);
    }
    let of = |marks: Option<&BTreeMap<String, String>>| {
        let class = class.with_kubelet_of(marks)?;
        Ok::<_, String>(hash::kubelet_hash(class.spec.kubelet.as_ref()))
    };
    let launched = match mark(&claim.metadata, annotations::KUBELET_DRIFT_HASH) {
        Some(hash) if !brought => hash.to_owned(),
        _ => of(claim.metadata.annotations.as_ref())?,
    };
    Ok(launched != of(pool.metadata.annotations.as_ref())?)
}

fn mark<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn image_changed(
    claim: &NodeClaim,
    class: &EC2NodeClass,
    types: &[Arc<InstanceType>],
) -> Result<bool, String> {
    let kind = label(claim, labels::INSTANCE_TYPE).unwrap_or_default();
    let own: Vec<Arc<InstanceType>> = types.iter().filter(|t| &*t.name == kind).cloned().collect();
    if own.is_empty() {
        return Err(format!("finding node instance type (instance-type={kind})"));
    }
    let amis = class.status.as_ref().map(|s| s.amis.as_slice()).unwrap_or_default();
    // An empty status means that selection has not worked yet, not that the image drifted.
    if amis.is_empty() {
        return Err("no amis exist given constraints".to_owned());
    }
    let image = claim.status.as_ref().and_then(|s| s.image_id.as_deref()).unwrap_or_default();
    if image.is_empty() {
        return Err("the nodeclaim has no image id in its status".to_owned());
    }
    let chosen = launchtemplate::types_by_ami(amis, &own);
    Ok(chosen.iter().all(|(ami, _)| ami.id != image))
}

fn security_groups_changed(
    instance: &Instance,
    status: &EC2NodeClassStatus,
) -> Result<bool, &'static str> {
    if status.security_groups.is_empty() {
        return Err("no security groups are present in the status");
    }
    let wanted: BTreeSet<String> = status.security_groups.iter().map(|g| g.id.clone()).collect();
    Ok(instance.security_groups != wanted)
}

fn subnet_left(instance: &Instance, status: &EC2NodeClassStatus) -> Result<bool, &'static str> {
    if status.subnets.is_empty() {
        return Err("no subnets are discovered");
    }
    Ok(status.subnets.iter().all(|s| s.id != instance.subnet_id))
}

fn outside_reservations(instance: &Instance, status: &EC2NodeClassStatus) -> bool {
    let Some(id) = &instance.reservation_id else { return false };
    status.capacity_reservations.iter().all(|r| r.id != *id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduling::requirements::Requirement;
    use serde_json::{Value, json};

    fn claim(annotations: Value) -> NodeClaim {
        serde_json::from_value(json!({
            "metadata": {"annotations": annotations, "labels": {labels::INSTANCE_TYPE: "m5.large"}},
            "spec": {}, "status": {"imageID": "ami-1"}}))
        .unwrap()
    }

    fn class(annotations: Value, status: Value) -> EC2NodeClass {
        serde_json::from_value(json!({
            "metadata": {"annotations": annotations}, "spec": {}, "status": status}))
        .unwrap()
    }

    fn status(value: Value) -> EC2NodeClassStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_hashes_of_one_version_are_compared() {
        let marks = |version: &str, hash: &str| json!({annotations::EC2NODECLASS_HASH_VERSION: version, annotations::EC2NODECLASS_HASH: hash});
        for (want, on_claim, on_class) in [
            (false, marks("v6", "1"), marks("v6", "1")),
            (true, marks("v6", "1"), marks("v6", "2")),
            (false, marks("v5", "1"), marks("v6", "2")),
            (false, json!({}), marks("v6", "2")),
            (false, marks("v6", "1"), json!({})),
        ] {
            let class = class(on_class, json!({}));
            let changed = settings_changed(&claim(on_claim), &class, &|| "today".to_owned());
            assert_eq!(changed, want);
        }
        // A claim with kubelet settings of its own does not care for those of the class.
        let mut own = marks("v6", "today");
        own[KUBELET] = json!("{}");
        let class = class(marks("v6", "2"), json!({}));
        assert!(!settings_changed(&claim(own.clone()), &class, &|| "today".to_owned()));
        assert!(settings_changed(&claim(own), &class, &|| "another".to_owned()));
    }

    #[test]
    fn kubelet_settings_may_move_but_not_change() {
        let changed = |of_claim: Value, of_pool: Value, of_class: Value| {
            let pool: NodePool =
                serde_json::from_value(json!({"metadata": {"annotations": of_pool}, "spec": {}}))
                    .unwrap();
            let mut class = class(json!({}), json!({}));
            class.spec.kubelet = of_class.as_object().cloned();
            kubelet_changed(&claim(of_claim), &class, &pool)
        };
        let kept = |text: &str| json!({KUBELET: text});
        let five = r#"{"maxPods":5,"cpuCFSQuota":true}"#;
        let moved = json!({"cpuCFSQuota": true, "maxPods": 5});
        for (want, of_claim, of_pool, of_class) in [
            (false, kept(five), kept(five), json!(null)),
            (true, kept(five), kept(r#"{"maxPods":6}"#), json!(null)),
            // Taken out of the pool and put into the class, or taken out altogether.
            (false, kept(five), json!({}), moved.clone()),
            (true, kept(five), json!({}), json!(null)),
            (true, kept(five), json!({}), json!({"maxPods": 7})),
            // What stands in the class does not count while the pool has its own.
            (false, kept(five), kept(five), json!({"maxPods": 7})),
            // Put into the pool after the launch: the same, something else, unknown how it was.
            (false, json!({}), kept(five), moved.clone()),
            (true, json!({}), kept(five), json!(null)),
            (
                false,
                json!({annotations::KUBELET_DRIFT_HASH: hash::kubelet_hash(moved.as_object())}),
                kept(five),
                json!(null),
            ),
            (false, kept("{}"), json!({}), json!(null)),
            // Only the class has settings: its hash shows a change.
            (false, json!({annotations::KUBELET_DRIFT_HASH: "1"}), json!({}), moved.clone()),
        ] {
            let label = format!("{of_claim} {of_pool} {of_class}");
            assert_eq!(changed(of_claim, of_pool, of_class), Ok(want), "{label}");
        }
        assert!(changed(kept("{"), json!({}), json!(null)).is_err());
    }

    #[test]
    fn the_image_is_the_one_chosen_for_the_type() {
        let kind = |arch: &str| {
            vec![Arc::new(InstanceType {
                name: "m5.large".into(),
                requirements: [Requirement::is(labels::ARCH, arch)].into_iter().collect(),
                ..InstanceType::default()
            })]
        };
        let ami = |id: &str, arch: &str| json!({"id": id, "requirements": [{"key": labels::ARCH, "operator": "In", "values": [arch]}]});
        let check = |amis: Value, types: &[Arc<InstanceType>]| {
            image_changed(&claim(json!({})), &class(json!({}), json!({"amis": amis})), types)
        };
        let amd = kind("amd64");
        assert_eq!(check(json!([ami("ami-1", "amd64")]), &amd), Ok(false));
        assert_eq!(check(json!([ami("ami-2", "amd64")]), &amd), Ok(true));
        // The first that suits the type counts, not any that does.
        assert_eq!(check(json!([ami("ami-2", "amd64"), ami("ami-1", "amd64")]), &amd), Ok(true));
        assert_eq!(check(json!([ami("ami-2", "arm64"), ami("ami-1", "amd64")]), &amd), Ok(false));
        assert!(check(json!([]), &amd).is_err());
        assert!(check(json!([ami("ami-1", "amd64")]), &[]).unwrap_err().contains("m5.large"));
    }

    #[test]
    fn groups_are_compared_as_sets() {
        let instance = Instance {
            security_groups: ["sg-1".to_owned(), "sg-2".to_owned()].into(),
            ..Instance::default()
        };
        let groups = |ids: &[&str]| {
            let list: Vec<Value> = ids.iter().map(|id| json!({"id": id})).collect();
            status(json!({"securityGroups": list}))
        };
        assert_eq!(security_groups_changed(&instance, &groups(&["sg-2", "sg-1"])), Ok(false));
        assert_eq!(security_groups_changed(&instance, &groups(&["sg-1"])), Ok(true));
        assert_eq!(
            security_groups_changed(&instance, &groups(&["sg-1", "sg-2", "sg-3"])),
            Ok(true)
        );
        assert!(security_groups_changed(&instance, &groups(&[])).is_err());
    }

    #[test]
    fn the_subnet_and_the_reservation_must_still_be_selected() {
        let mut instance = Instance { subnet_id: "subnet-1".to_owned(), ..Instance::default() };
        let subnets = |id: &str| status(json!({"subnets": [{"id": id, "zone": "a"}]}));
        assert_eq!(subnet_left(&instance, &subnets("subnet-1")), Ok(false));
        assert_eq!(subnet_left(&instance, &subnets("subnet-2")), Ok(true));
        assert!(subnet_left(&instance, &status(json!({}))).is_err());
        assert!(!outside_reservations(&instance, &status(json!({}))));
        instance.reservation_id = Some("cr-1".to_owned());
        assert!(outside_reservations(&instance, &status(json!({}))));
        let kept = status(json!({"capacityReservations": [{"id": "cr-1", "availabilityZone": "a",
            "instanceMatchCriteria": "open", "instanceType": "m5.large", "ownerID": "1"}]}));
        assert!(!outside_reservations(&instance, &kept));
    }
}
