use std::sync::Arc;
use std::time::Duration;

use super::super::fleet::{Answer, Place, Placed, Refused};
use super::super::stub::{self, World};
use super::*;
use crate::api::v1::{CapacityReservationSelectorTerm, EC2NodeClass, NodeClaim};
use crate::cloud::aws::placementgroup::PlacementGroup;
use crate::operator::events::Recorder;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::requirements::{Requirement, Requirements};

struct Case {
    world: World,
    class: EC2NodeClass,
    claim: NodeClaim,
    types: Vec<Arc<InstanceType>>,
    capacity_type: &'static str,
    placement: Option<PlacementGroup>,
    partition: Option<String>,
}

impl Case {
    async fn new(capacity_type: &'static str) -> Self {
        let world = World::new().await;
        let claim = stub::claim(&world.clock, &[capacity_type]);
        Self {
            world,
            class: stub::class(),
            claim,
            types: vec![stub::kind("m5.large"), stub::kind("m5.xlarge")],
            capacity_type,
            placement: None,
            partition: None,
        }
    }

    fn read(&self, refused: &[Refused], placed: Option<&str>) -> Result<Instance, Error> {
        let mut requirements = Requirements::from_api(&self.claim.spec.requirements);
        requirements.add(Requirement::is(labels::CAPACITY_TYPE, self.capacity_type));
        let subnets = &self.world.subnets;
        let attempt = Attempt {
            claim: &self.claim,
            class: &self.class,
            capacity_type: self.capacity_type,
            tenancy: "default",
            requirements,
            types: self.types.clone(),
            templates: Vec::new(),
            subnets: subnets.zonal_subnets_for_launch(&self.class, &self.types, self.capacity_type),
            placement: self.placement.clone(),
            partition: self.partition.clone(),
            tags: [("team".to_owned(), "x".to_owned())].into(),
        };
        let answer = Answer {
            fleet: placed.map(|_| "fleet-1".to_owned()),
            placed: placed.map(|id| Placed { id: id.to_owned(), place: place("m5.xlarge", "b") }),
            errors: refused.to_vec().into(),
            request_id: "r-1".to_owned(),
        };
        self.world.provider.read_answer(&attempt, &answer)
    }

    /// Which of the offerings are unavailable now: type and zone, of the case's capacity type.
    fn marked(&self) -> Vec<String> {
        let mut list = Vec::new();
        for kind in ["m5.large", "m5.xlarge"] {
            for zone in ["a", "b"] {
                let subnets = [format!("subnet-{zone}")];
                let unavailable = &self.world.unavailable;
                if unavailable.is_unavailable(self.capacity_type, kind, zone, &subnets, None) {
                    list.push(format!("{kind}/{zone}"));
                }
            }
        }
        list
    }
}

fn place(kind: &str, zone: &str) -> Place {
    Place {
        instance_type: kind.to_owned(),
        zone: zone.to_owned(),
        subnet: format!("subnet-{zone}"),
        image: "ami-1".to_owned(),
    }
}

/// A pool of m5.large in zone a that EC2 refused.
fn refused(code: &str, message: &str) -> Refused {
    Refused {
        code: code.to_owned(),
        message: message.to_owned(),
        place: Some(place("m5.large", "a")),
    }
}

/// Refusals counted so far by the class of a code, as Karpenter names it.
fn failures(case: &Case, code: &str) -> f64 {
    let (reason, _) = errors::launch_failure(&format!("{code}: no"));
    metrics::INSTANCE_LAUNCH_FAILURES
        .with_label_values(&["a", "id-a", case.capacity_type, reason])
        .get()
}

const OWN: &[&str] = &["m5.large/a"];
const ZONE: &[&str] = &["m5.large/a", "m5.xlarge/a"];
const SPOT: &[&str] = &["m5.large/a", "m5.large/b", "m5.xlarge/a", "m5.xlarge/b"];

#[tokio::test]
async fn each_refusal_of_a_pool_has_its_class_and_its_marks() {
    // Code, whether it is a lack of capacity or the reason of a failure, and what is left out.
    for (code, failure, marked) in [
        ("InsufficientInstanceCapacity", None, OWN),
        ("MaxSpotInstanceCountExceeded", None, OWN),
        ("VcpuLimitExceeded", None, OWN),
        ("UnfulfillableCapacity", None, OWN),
        ("Unsupported", None, OWN),
        ("MaxFleetCountExceeded", None, OWN),
        ("ReservationCapacityExceeded", None, OWN),
        // The zone has no other subnet.
        ("InsufficientFreeAddressesInSubnet", None, ZONE),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", None, SPOT),
        ("UnauthorizedOperation", Some("Unauthorized"), &[]),
        ("AuthFailure", Some("Unauthorized"), &[]),
        ("RequestLimitExceeded", Some("RequestLimitExceeded"), &[]),
        ("InternalError", Some("InternalError"), &[]),
        ("InvalidAMIID.NotFound", Some("AMINotFound"), &[]),
        ("InvalidAMIID.Malformed", Some("InvalidAMIID"), &[]),
        ("InvalidLaunchTemplateId.NotFound", Some("LaunchTemplateNotFound"), &[]),
        ("PendingVerification", Some("AccountPendingVerification"), &[]),
        ("InvalidParameterValue", Some("LaunchFailed"), &[]),
    ] {
        let case = Case::new("spot").await;
        let before = failures(&case, code);
        let error = case.read(&[refused(code, "no")], None).unwrap_err();
        let call = error.failed_call().unwrap();
        assert_eq!(
            (call.operation, call.status, call.code.as_str(), call.request_id.as_str()),
            ("CreateFleet", 200, "UnfulfillableCapacity", "r-1"),
            "{code}"
        );
        match (&error, failure) {
            (Error::InsufficientCapacity(detail), None) => {
                assert_eq!(detail.text, format!("with fleet error(s), {code}: no"));
            }
            (Error::Create { reason, condition, .. }, Some(want)) => {
                assert_eq!(reason, want, "{code}");
                assert_eq!(condition, errors::launch_failure(code).1, "{code}");
            }
            other => panic!("{code}: {other:?}"),
        }
        assert_eq!(case.marked(), marked, "{code}");
        assert!(failures(&case, code) > before, "{code}");
        // What was marked comes back after three minutes.
        case.world.clock.advance(Duration::from_secs(180));
        assert!(case.marked().is_empty(), "{code}");
    }
}

#[tokio::test]
async fn a_missing_spot_role_is_reported_on_the_claim() {
    let case = Case::new("spot").await;
    let recorder = Recorder::new(case.world.kube.clone(), case.world.clock.clone());
    case.world.provider.set_recorder(recorder);
    let _ = case.read(&[refused(errors::SPOT_ROLE_MISSING, "no")], None);
    let said = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Some(text) = case.world.stub.events().pop() {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(
        said.await.unwrap(),
        "Attempted to launch a spot instance but failed due to \"AuthFailure.ServiceLinkedRoleCreationNotPermitted\""
    );
    // On-demand is not concerned.
    let unavailable = &case.world.unavailable;
    assert!(!unavailable.is_unavailable("on-demand", "m5.large", "a", &[], None));
}

#[tokio::test]
async fn one_other_error_makes_a_lack_of_capacity_a_failure() {
    let case = Case::new("on-demand").await;
    let lack = refused("InsufficientInstanceCapacity", "none");
    let twice = [lack.clone(), lack.clone(), refused("Unsupported", "no")];
    let error = case.read(&twice, None).unwrap_err();
    let text = "insufficient capacity, with fleet error(s), InsufficientInstanceCapacity: none; Unsupported: no";
    assert_eq!(error.to_string(), text, "each is told once");
    let error = case.read(&[lack, refused("InternalError", "x")], None).unwrap_err();
    assert!(matches!(error, Error::Create { reason, .. } if reason == "InternalError"));
    // A fleet that got less than it asked for, and nobody says why.
    let silent = Refused { message: "too few instances returned".to_owned(), ..Refused::default() };
    let error = case.read(&[silent], None).unwrap_err();
    assert!(matches!(error, Error::Create { reason, .. } if reason == "LaunchFailed"));
    // What EC2 names no pool for marks none.
    let case = Case::new("on-demand").await;
    let nowhere = Refused { place: None, ..refused("InsufficientInstanceCapacity", "none") };
    let error = case.read(&[nowhere], None).unwrap_err();
    assert!(matches!(error, Error::InsufficientCapacity(_)));
    assert!(case.marked().is_empty());
}

#[tokio::test]
async fn refusals_are_learnt_from_when_there_is_an_instance_too() {
    let case = Case::new("on-demand").await;
    let lack = refused("InsufficientInstanceCapacity", "none");
    let launched = case.read(&[lack], Some("i-1")).unwrap();
    assert_eq!(case.marked(), OWN);
    assert_eq!(launched.provider_id(), "aws:///b/i-1");
    assert_eq!(launched.zone_id.as_deref(), Some("id-b"));
    assert_eq!((launched.state.as_str(), launched.image_id.as_str()), ("pending", "ami-1"));
    assert!(launched.security_groups.contains("sg-1"));
    assert_eq!(launched.launched, Some(case.world.clock.now()));
}

#[tokio::test]
async fn refusals_in_a_placement_group_concern_the_group_alone() {
    let scope = |partition| Some(Scope { group: "pg-1", partition });
    let group = |strategy: &str| PlacementGroup {
        id: "pg-1".to_owned(),
        strategy: strategy.to_owned(),
        ..PlacementGroup::default()
    };
    let mut case = Case::new("on-demand").await;
    case.placement = Some(group("cluster"));
    let _ = case.read(&[refused("InsufficientInstanceCapacity", "none")], None);
    assert!(case.marked().is_empty());
    let has = |case: &Case, kind: &str, zone: &str, partition| {
        let unavailable = &case.world.unavailable;
        unavailable.is_unavailable("on-demand", kind, zone, &[], scope(partition))
    };
    assert!(has(&case, "m5.large", "a", None));
    assert!(!has(&case, "m5.xlarge", "a", None) && !has(&case, "m5.large", "b", None));
    // A full spread group is full for every type.
    let mut case = Case::new("on-demand").await;
    case.placement = Some(group("spread"));
    let full = "You have exceeded the limit of instances in this spread placement group";
    let _ = case.read(&[refused("InsufficientInstanceCapacity", full)], None);
    assert!(has(&case, "m5.large", "a", None) && has(&case, "m5.xlarge", "a", None));
    assert!(!has(&case, "m5.large", "b", None));
    // The partition that was asked for, not its neighbour.
    let mut case = Case::new("on-demand").await;
    case.placement = Some(group("partition"));
    case.partition = Some("2".to_owned());
    let _ = case.read(&[refused("InsufficientInstanceCapacity", "none")], None);
    assert!(has(&case, "m5.large", "a", Some("2")) && !has(&case, "m5.large", "a", Some("3")));
}

#[tokio::test]
async fn a_refused_reservation_is_full_and_its_pool_stays() {
    let spread = "You have exceeded the limit of instances in this spread placement group";
    for (code, message, left) in [
        ("ReservationCapacityExceeded", "full", 0),
        ("InsufficientInstanceCapacity", "none", 0),
        ("UnfulfillableCapacity", "none", 0),
        ("InsufficientInstanceCapacity", spread, 3),
        ("InternalError", "x", 3),
    ] {
        let case = Case::new("reserved").await;
        case.world.stub.answer(
            "DescribeCapacityReservations",
            "<DescribeCapacityReservationsResponse><capacityReservationSet><item>\
             <capacityReservationId>cr-1</capacityReservationId>\
             <availableInstanceCount>3</availableInstanceCount>\
             </item></capacityReservationSet></DescribeCapacityReservationsResponse>",
        );
        let term = CapacityReservationSelectorTerm {
            id: Some("cr-1".to_owned()),
            ..CapacityReservationSelectorTerm::default()
        };
        case.world.reservations.list(&[term]).await.unwrap();
        let _ = case.read(&[refused(code, message)], None);
        assert_eq!(case.world.reservations.available("cr-1"), left, "{code}: {message}");
        assert!(case.marked().is_empty(), "{code}");
    }
}
