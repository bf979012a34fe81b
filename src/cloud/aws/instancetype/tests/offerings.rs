//! What is offered of the types, and what changes it.

use super::*;

fn offered(kind: &InstanceType) -> Vec<(String, String, bool)> {
    let mut list: Vec<_> = kind
        .offerings
        .iter()
        .map(|o| (o.capacity_type().to_owned(), o.zone().to_owned(), o.available))
        .collect();
    list.sort();
    list
}

#[test]
fn offerings_are_in_every_zone_and_available_where_there_is_a_subnet() {
    let provider = provider();
    let types = provider.list(&family("AL2023")).unwrap();
    let kind = by_name(&types)["m5.large"];
    let want = |c: &str, z: &str, available| (c.to_owned(), format!("us-east-1{z}"), available);
    assert_eq!(
        offered(kind),
        [
            want("on-demand", "a", true),
            want("on-demand", "b", true),
            want("on-demand", "c", false),
            want("spot", "a", true),
            want("spot", "b", true),
            want("spot", "c", false),
        ]
    );
    for offering in &kind.offerings {
        let id = offering.requirements.get(labels::ZONE_ID).and_then(Requirement::single);
        let known = match offering.zone() {
            "us-east-1a" => Some("use1-az1"),
            "us-east-1b" => Some("use1-az2"),
            _ => None,
        };
        assert_eq!(id, known);
        assert!(offering.requirements.has(labels::CAPACITY_RESERVATION_ID));
        assert_eq!(offering.reservation_id(), "");
        assert_eq!(offering.price, 0.096);
    }
}

#[test]
fn a_list_is_rebuilt_only_where_something_changed() {
    let clock = Clock::manual(Timestamp::UNIX_EPOCH);
    let provider = provider_with(options(), &clock);
    let class = family("AL2023");
    let first = provider.list(&class).unwrap();
    assert!(Arc::ptr_eq(&first, &provider.list(&class).unwrap()));
    provider.parts.unavailable.mark("x", "spot", "m5.large", "us-east-1a");
    let second = provider.list(&class).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    let changed: Vec<&str> = first
        .iter()
        .zip(second.iter())
        .filter(|(a, b)| !Arc::ptr_eq(a, b))
        .map(|(a, _)| &*a.name)
        .collect();
    assert_eq!(changed, ["m5.large"]);
    let available = |types: &[Arc<InstanceType>]| {
        by_name(types)["m5.large"].offerings.iter().filter(|o| o.available).count()
    };
    assert_eq!((available(&first), available(&second)), (4, 3));
    clock.advance(crate::cloud::aws::unavailable::TTL);
    assert_eq!(available(&provider.list(&class).unwrap()), 4);
    provider.parts.unavailable.mark_subnet("subnet-a");
    assert_eq!(available(&provider.list(&class).unwrap()), 2);
    clock.advance(crate::cloud::aws::unavailable::TTL);
    provider.parts.unavailable.mark_capacity_type("spot");
    assert_eq!(available(&provider.list(&class).unwrap()), 2);
    let before = provider.list(&class).unwrap();
    provider.parts.pricing.learn(pricing::Known {
        on_demand: HashMap::from([("m5.large".to_owned(), 0.5)]),
        ..pricing::Known::default()
    });
    let after = provider.list(&class).unwrap();
    assert!(!Arc::ptr_eq(&before, &after));
    let on_demand = by_name(&after)["m5.large"]
        .offerings
        .iter()
        .find(|o| o.capacity_type() == "on-demand")
        .map(|o| o.price);
    assert_eq!(on_demand, Some(0.5));
}

#[test]
fn a_type_that_cannot_be_used_stays_listed_without_offerings_to_have() {
    let provider = provider();
    let available = |spec: serde_json::Value, kind: &str| {
        let types = provider.list(&class(spec)).unwrap();
        by_name(&types)[kind].offerings.iter().any(|o| o.available)
    };
    let interfaces =
        |list: serde_json::Value| json!({"amiFamily": "AL2023", "networkInterfaces": list});
    let plain = json!({"networkCardIndex": 0, "deviceIndex": 0, "interfaceType": "interface"});
    let fabric = json!({"networkCardIndex": 1, "deviceIndex": 1, "interfaceType": "efa-only"});
    for (spec, kind, want) in [
        (json!({"amiFamily": "AL2023"}), "a1.large", false),
        (json!({"amiFamily": "AL2"}), "a1.large", true),
        (
            json!({"amiFamily": "AL2023", "cpuOptions": {"nestedVirtualization": "enabled"}}),
            "m5.large",
            false,
        ),
        (
            json!({"amiFamily": "AL2023", "cpuOptions": {"nestedVirtualization": "enabled"}}),
            "m7i.12xlarge",
            true,
        ),
        (json!({"amiFamily": "AL2023", "enclaveOptions": {"enabled": true}}), "m5.xlarge", true),
        (json!({"amiFamily": "AL2023", "enclaveOptions": {"enabled": true}}), "t3.large", false),
        (json!({"amiFamily": "AL2023", "enclaveOptions": {"enabled": false}}), "t3.large", true),
        (json!({"amiFamily": "AL2023", "connectionTracking": {}}), "m5.metal", false),
        (json!({"amiFamily": "AL2023", "connectionTracking": {}}), "m5.large", true),
        (interfaces(json!([plain])), "m5.large", true),
        (interfaces(json!([plain, fabric])), "m5.large", false),
        (interfaces(json!([plain, fabric])), "p5.48xlarge", true),
    ] {
        assert_eq!(available(spec.clone(), kind), want, "{kind} {spec}");
    }
}

#[test]
fn reservations_are_offered_while_they_last() {
    let clock = Clock::manual(Timestamp::UNIX_EPOCH);
    let provider = provider_with(options(), &clock);
    let mut class = family("AL2023");
    let reservation = |id: &str, state: &str| {
        json!({
        "id": id, "instanceType": "m5.large", "availabilityZone": "us-east-1a",
        "instanceMatchCriteria": "targeted", "ownerID": "1", "state": state,
        "reservationType": "capacity-block", "interruptible": false})
    };
    let list = [reservation("cr-1", "active"), reservation("cr-2", "expiring")];
    class.status.as_mut().unwrap().capacity_reservations =
        list.map(|r| serde_json::from_value(r).unwrap()).into();
    let reserved = || -> Vec<(String, bool, i64)> {
        let types = provider.list(&class).unwrap();
        let kind = by_name(&types)["m5.large"].clone();
        assert!(kind.requirements.get(labels::CAPACITY_TYPE).unwrap().has("reserved"));
        kind.offerings
            .iter()
            .filter(|o| o.capacity_type() == "reserved")
            .map(|o| (o.reservation_id().to_owned(), o.available, o.reservation_capacity))
            .collect()
    };
    // Nothing is known of what is left.
    assert_eq!(reserved(), [("cr-1".to_owned(), false, 0), ("cr-2".to_owned(), false, 0)]);
    let types = provider.list(&class).unwrap();
    let offerings = &by_name(&types)["m5.large"].offerings;
    let full = offerings.iter().filter(|o| o.reservation_full).map(|o| o.reservation_id());
    assert_eq!(full.collect::<Vec<_>>(), ["cr-1"], "one that ends does not come back");
    assert!(
        by_name(&types)["c5.large"]
            .requirements
            .get(labels::CAPACITY_RESERVATION_ID)
            .unwrap()
            .values()
            .next()
            .is_none()
    );
    let off = provider_with(Options { reserved_capacity: false, ..options() }, &clock);
    let types = off.list(&class).unwrap();
    assert!(by_name(&types)["m5.large"].offerings.iter().all(|o| o.capacity_type() != "reserved"));
}

#[test]
fn memory_that_nodes_have_is_believed_once_types_are_worked_out_again() {
    let clock = Clock::manual(Timestamp::UNIX_EPOCH);
    let provider = provider_with(options(), &clock);
    let class = family("AL2023");
    let memory = || {
        let types = provider.list(&class).unwrap();
        by_name(&types)["m5.large"].capacity.get(&Name::Memory) / MIB
    };
    assert_eq!(memory(), 7577);
    provider.note_memory(&class, "m5.large", 7800 * MIB);
    provider.note_memory(&class, "m5.large", 7700 * MIB);
    provider.note_memory(&class, "m5.large", 7900 * MIB);
    assert_eq!(memory(), 7577);
    clock.advance(TTL);
    assert_eq!(memory(), 7700);
    let mut other = class.clone();
    other.status.as_mut().unwrap().amis.pop();
    let types = provider.list(&other).unwrap();
    assert_eq!(by_name(&types)["m5.large"].capacity.get(&Name::Memory) / MIB, 7577);
}

#[test]
fn an_overlay_prices_a_type_that_has_no_price() {
    use crate::api::v1::NodePool;
    use crate::api::v1alpha1::NodeOverlay;
    use crate::scheduling::overlay::{InForce, PoolTypes, evaluate};

    let mut provider = provider();
    let overlays = InForce::default();
    provider.parts.overlays = Some(overlays.clone());
    let class = family("AL2023");
    let offers = || {
        let types = provider.list(&class).unwrap();
        let all: Vec<_> = by_name(&types)["x8aedz.large"].offerings.clone();
        let available: Vec<f64> = all.iter().filter(|o| o.available).map(|o| o.price).collect();
        available
    };
    assert!(offers().is_empty(), "nobody knows what it costs");
    let spec = json!({"price": "1.5", "requirements": [
        {"key": labels::INSTANCE_TYPE, "operator": "In", "values": ["x8aedz.large"]}]});
    let overlay = NodeOverlay::new("o", serde_json::from_value(spec).unwrap());
    let pool = NodePool::new("p", serde_json::from_value(json!({})).unwrap());
    let pools = [PoolTypes { pool: Arc::new(pool), types: provider.list(&class).unwrap() }];
    overlays.set(evaluate(&[Arc::new(overlay)], &pools).0);
    assert_eq!(offers(), [1.5; 4], "in two zones, spot and on-demand");
}

#[test]
fn classes_that_differ_in_what_a_type_must_be_able_to_do_share_no_offerings() {
    let provider = provider();
    let has = |spec: serde_json::Value, kind: &str| {
        let types = provider.list(&class(spec)).unwrap();
        by_name(&types)[kind].offerings.iter().any(|o| o.available)
    };
    let nested =
        |value: &str| json!({"amiFamily": "AL2023", "cpuOptions": {"nestedVirtualization": value}});
    let enclaves = |on: bool| json!({"amiFamily": "AL2023", "enclaveOptions": {"enabled": on}});
    // Each is asked for twice, so that the second answer may come from what is kept.
    for _ in 0..2 {
        assert!(!has(nested("enabled"), "m5.large"));
        assert!(has(nested("disabled"), "m5.large"));
        assert!(has(json!({"amiFamily": "AL2023"}), "t3.large"));
        assert!(!has(enclaves(true), "t3.large"));
        assert!(has(enclaves(false), "t3.large"));
    }
}

#[test]
fn volume_limits_of_types_are_known_only_where_that_is_asked_for() {
    let clock = Clock::manual(Timestamp::UNIX_EPOCH);
    let limits = |volume_limits| {
        let provider = provider_with(Options { volume_limits, ..options() }, &clock);
        let types = provider.list(&class(json!({"amiFamily": "AL2023"}))).unwrap();
        by_name(&types)["m5.large"].volume_limits.clone()
    };
    assert!(limits(false).is_empty());
    assert_eq!(limits(true)["ebs.csi.aws.com"], 26);
}

#[test]
fn gpus_are_shared_as_the_class_says() {
    let clock = Clock::manual(Timestamp::UNIX_EPOCH);
    let devices = AwsFeatureGates { dra_nvidia_gpu: true, ..AwsFeatureGates::default() };
    let provider = provider_with(Options { devices, ..options() }, &clock);
    let shared = |mode: Option<&str>| {
        let mut class = class(json!({"amiFamily": "AL2023"}));
        let key = crate::api::annotations::NVIDIA_CONSUMABLE_CAPACITY.to_owned();
        class.metadata.annotations = mode.map(|mode| [(key, mode.to_owned())].into());
        let types = provider.list(&class).unwrap();
        by_name(&types)["g4dn.xlarge"].devices[0].devices[0].shared
    };
    for _ in 0..2 {
        assert!(!shared(None));
        assert!(shared(Some("4")));
        assert!(!shared(Some("disabled")));
    }
}
