use super::*;

/// (capacity type, zone, price, reservation: id, type, interruptible, how many are left)
type Offer<'a> = (&'a str, &'a str, f64, Option<(&'a str, &'a str, bool, i64)>);

fn offering((kind, zone, price, reservation): Offer<'_>) -> Offering {
    let mut requirements: Requirements =
        [Requirement::is(labels::CAPACITY_TYPE, kind), Requirement::is(labels::ZONE, zone)]
            .into_iter()
            .collect();
    let mut left = 0;
    if let Some((id, kind, interruptible, count)) = reservation {
        requirements.add(Requirement::is(labels::CAPACITY_RESERVATION_ID, id));
        requirements.add(Requirement::is(labels::CAPACITY_RESERVATION_TYPE, kind));
        let interruptible = interruptible.to_string();
        requirements
            .add(Requirement::is(labels::CAPACITY_RESERVATION_INTERRUPTIBLE, &interruptible));
        left = count;
    }
    Offering {
        requirements,
        price,
        available: true,
        reservation_capacity: left,
        ..Offering::default()
    }
}

fn instance_type(name: &str, gpu: i64, offers: &[Offer<'_>]) -> Arc<InstanceType> {
    let size = name.split('.').nth(1).unwrap_or_default();
    Arc::new(InstanceType {
        name: Arc::from(name),
        requirements: [
            Requirement::is(labels::INSTANCE_TYPE, name),
            Requirement::is(labels::INSTANCE_SIZE, size),
        ]
        .into_iter()
        .collect(),
        offerings: offers.iter().copied().map(offering).collect(),
        capacity: [(Name::Cpu, 2000), (Name::from("nvidia.com/gpu"), gpu)].into_iter().collect(),
        ..InstanceType::default()
    })
}

fn plain(name: &str, spot: f64, on_demand: f64) -> Arc<InstanceType> {
    instance_type(name, 0, &[("spot", "a", spot, None), ("on-demand", "a", on_demand, None)])
}

fn claim(requirements: serde_json::Value) -> NodeClaim {
    let spec = serde_json::json!({
        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "n"},
        "requirements": requirements,
    });
    NodeClaim::new("c", serde_json::from_value(spec).unwrap())
}

fn anything() -> NodeClaim {
    claim(serde_json::json!([]))
}

fn capacity(kinds: &[&str]) -> NodeClaim {
    claim(serde_json::json!([{"key": labels::CAPACITY_TYPE, "operator": "In", "values": kinds}]))
}

fn names(types: &[Arc<InstanceType>]) -> Vec<&str> {
    types.iter().map(|t| &*t.name).collect()
}

fn kept(types: &[Arc<InstanceType>], claim: &NodeClaim) -> Types {
    for_launch(types, claim, false).unwrap()
}

#[test]
fn exotic_types_and_dear_spot_are_left_out() {
    let types = [
        plain("a.large", 0.5, 1.0),
        plain("b.large", 1.5, 3.0),
        instance_type("g.large", 1, &[("spot", "a", 0.1, None)]),
        plain("m.metal", 0.2, 0.4),
    ];
    let found = kept(&types, &anything());
    assert_eq!(names(&found), ["a.large", "b.large"]);
    assert_eq!(found[1].offerings.len(), 1);
    assert_eq!(capacity_type(&found, &Requirements::new()), "spot");
    assert_eq!(names(&kept(&types[2..], &anything())), ["g.large", "m.metal"]);
}

#[test]
fn spot_as_dear_as_on_demand_stays() {
    let types = [plain("a.large", 1.0, 1.0), plain("b.large", 1.01, 2.0)];
    let found = kept(&types, &anything());
    assert_eq!(found[0].offerings.len(), 2);
    assert_eq!(found[1].offerings.len(), 1);
    let spot_only = kept(&types, &capacity(&["spot"]));
    assert_eq!(spot_only[1].offerings.len(), 2);
}

#[test]
fn nothing_left_is_a_lack_of_capacity() {
    for (types, claim) in
        [(vec![], anything()), (vec![plain("a.large", 1.0, 1.0)], capacity(&["reserved"]))]
    {
        let error = for_launch(&types, &claim, false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "insufficient capacity, all requested instance types were unavailable during launch"
        );
    }
}

#[test]
fn at_most_sixty_types_are_asked_for_and_minvalues_must_survive() {
    let types: Vec<_> =
        (0..80).map(|n| plain(&format!("t{n:02}.large"), f64::from(n), 99.0)).collect();
    let found = kept(&types, &anything());
    assert_eq!(found.len(), MAX_TYPES);
    assert_eq!(names(&found)[..2], ["t00.large", "t01.large"]);
    let wanted = |n: i64| {
        claim(serde_json::json!([
            {"key": labels::INSTANCE_TYPE, "operator": "Exists", "minValues": n}]))
    };
    assert_eq!(kept(&types, &wanted(60)).len(), MAX_TYPES);
    let error = for_launch(&types, &wanted(61), false).unwrap_err();
    assert_eq!(error.class(), "InsufficientCapacityError");
    assert!(error.to_string().contains("validating minValues"), "{error}");
    assert!(for_launch(&types, &wanted(61), true).is_ok());
}

#[test]
fn minvalues_keep_exotic_and_dear_types() {
    let types =
        [plain("a.large", 0.5, 1.0), plain("b.large", 9.0, 9.0), plain("m.metal", 0.2, 0.4)];
    let wanted = claim(serde_json::json!([
        {"key": labels::INSTANCE_TYPE, "operator": "Exists", "minValues": 3}]));
    assert_eq!(kept(&types, &wanted).len(), 3);
}

#[test]
fn one_kind_of_reservation_is_used_the_cheapest() {
    let types = [
        instance_type(
            "a.large",
            0,
            &[
                ("reserved", "a", 2e-8, Some(("cr-1", "default", false, 3))),
                ("reserved", "a", 2e-8, Some(("cr-2", "default", false, 5))),
                ("reserved", "b", 2e-8, Some(("cr-3", "default", false, 1))),
                ("reserved", "a", 2e-8, Some(("cr-4", "default", true, 9))),
                ("on-demand", "a", 0.2, None),
            ],
        ),
        instance_type(
            "b.large",
            0,
            &[
                ("reserved", "a", 3e-8, Some(("cr-5", "capacity-block", false, 9))),
                ("spot", "a", 0.1, None),
            ],
        ),
    ];
    let found = kept(&types, &anything());
    assert_eq!(names(&found), ["a.large"]);
    let ids: Vec<&str> = found[0].offerings.iter().map(Offering::reservation_id).collect();
    assert_eq!(ids, ["cr-2", "cr-3"], "the fullest of each zone");
    assert_eq!(capacity_type(&found, &Requirements::new()), "reserved");
    let without = kept(&types, &capacity(&["spot", "on-demand"]));
    assert_eq!(names(&without), ["b.large", "a.large"]);
}

#[test]
fn one_capacity_block_is_used() {
    let types = [
        instance_type(
            "a.large",
            0,
            &[
                ("reserved", "a", 3e-8, Some(("cr-1", "capacity-block", false, 3))),
                ("reserved", "b", 2e-8, Some(("cr-2", "capacity-block", false, 1))),
            ],
        ),
        instance_type(
            "b.large",
            0,
            &[("reserved", "a", 4e-8, Some(("cr-3", "capacity-block", false, 9)))],
        ),
    ];
    let found = kept(&types, &anything());
    assert_eq!(names(&found), ["a.large"]);
    assert_eq!(found[0].offerings.len(), 1);
    assert_eq!(found[0].offerings[0].reservation_id(), "cr-2");
}

#[test]
fn long_lists_of_names_are_cut() {
    assert_eq!(first_five(&["a", "b"]), "a, b");
    assert_eq!(first_five(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d, e and 2 other(s)");
}
