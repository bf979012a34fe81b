use proptest::prelude::*;

use super::*;
use Operator::{DoesNotExist, Exists, Gt, Gte, In, Lt, NotIn};

fn req(operator: Operator, values: &[&str]) -> Requirement {
    Requirement::new("k", operator, values)
}

fn set(requirement: Option<Requirement>) -> Requirements {
    requirement.into_iter().collect()
}

#[test]
fn worked_intersections() {
    for (a, b, want) in [
        (req(Exists, &[]), req(In, &["A"]), "k In [A]"),
        (req(NotIn, &["A"]), req(In, &["A", "B"]), "k In [B]"),
        (req(NotIn, &["A"]), req(In, &["A"]), "k DoesNotExist"),
        (req(NotIn, &["A"]), req(NotIn, &["B"]), "k NotIn [A B]"),
        (req(DoesNotExist, &[]), req(Exists, &[]), "k DoesNotExist"),
        (req(Gt, &["1"]), req(Lt, &["9"]), "k Exists >=2 <=8"),
        (req(Gt, &["9"]), req(Lt, &["1"]), "k DoesNotExist"),
        (req(Gt, &["1"]), req(In, &["1", "9"]), "k In [9]"),
        (req(Gt, &["1"]), req(In, &["A"]), "k DoesNotExist"),
        (req(NotIn, &["1", "2"]), req(Gt, &["1"]), "k NotIn [2] >=2"),
        (req(Gt, &["1"]), req(NotIn, &["A"]), "k Exists >=2"),
        (req(Gte, &["5"]), req(Gt, &["5"]), "k Exists >=6"),
    ] {
        assert_eq!(a.intersection(&b).to_string(), want, "{a} with {b}");
        assert_eq!(b.intersection(&a).to_string(), want, "{b} with {a}");
    }
    let beyond = NodeSelectorRequirementWithMinValues {
        key: "k".into(),
        operator: Gt,
        values: vec![i64::MAX.to_string()],
        min_values: Some(2),
    };
    assert_eq!(Requirements::from_api(&[beyond]).to_string(), "k DoesNotExist");
    let varied = req(In, &["A", "B"]).with_min_values(Some(2));
    assert_eq!(varied.intersection(&req(In, &["A"])).to_string(), "k In [A] minValues 2");
}

#[test]
fn compatibility_table() {
    let zone = |op, values: &[&str]| Requirement::new(labels::ZONE, op, values);
    for (a, b, intersects, strict) in [
        (None, Some(req(In, &["A"])), true, false),
        (None, Some(req(Gt, &["1"])), true, false),
        (None, Some(req(NotIn, &["A"])), true, true),
        (None, Some(req(DoesNotExist, &[])), true, true),
        (Some(req(In, &["A"])), Some(req(DoesNotExist, &[])), false, false),
        (Some(req(In, &["A"])), Some(req(NotIn, &["A"])), false, false),
        (Some(req(DoesNotExist, &[])), Some(req(NotIn, &["A"])), true, true),
        (Some(req(NotIn, &["A"])), Some(req(DoesNotExist, &[])), true, true),
        (Some(req(DoesNotExist, &[])), Some(req(Exists, &[])), false, false),
        (Some(req(Exists, &[])), Some(req(DoesNotExist, &[])), false, false),
        (Some(req(Gt, &["9"])), Some(req(Lt, &["1"])), false, false),
        (Some(req(In, &["A"])), None, true, true),
    ] {
        let (a, b) = (set(a), set(b));
        assert_eq!(a.intersects(&b).is_ok(), intersects, "{a} / {b}");
        assert_eq!(a.compatible(&b, Allow::Nothing).is_ok(), strict, "{a} / {b}");
    }
    let wanted = set(Some(zone(In, &["a"])));
    assert!(Requirements::new().compatible(&wanted, Allow::WellKnown).is_ok());
    assert!(Requirements::new().compatible(&wanted, Allow::Nothing).is_err());
}

#[test]
fn errors_name_the_key_and_a_likely_typo() {
    let wanted = set(Some(Requirement::new("zone", In, ["a"])));
    let error = Requirements::new().compatible(&wanted, Allow::WellKnown).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"label "zone" does not have known values (typo of "topology.kubernetes.io/zone"?)"#
    );
    let error = set(Some(req(In, &["A"]))).intersects(&set(Some(req(In, &["B"])))).unwrap_err();
    assert_eq!(error.to_string(), "key k, k In [B] not in k In [A]");
}

#[test]
fn api_form_keeps_bounds() {
    let list = set(Some(req(Gt, &["1"]).intersection(&req(Lt, &["9"])))).to_api();
    let text: Vec<_> = list.iter().map(|r| (r.operator.as_str(), r.values.join(","))).collect();
    assert_eq!(text, [("Gte", "2".to_owned()), ("Lte", "8".to_owned())]);
}

fn any_requirement() -> impl Strategy<Value = Requirement> {
    let values = proptest::collection::vec(prop_oneof!["[a-d]", "[0-9]"], 0..4);
    let bound = (0_i64..10).prop_map(|n| n.to_string());
    prop_oneof![
        values.clone().prop_map(|v| Requirement::new("k", In, v)),
        values.prop_map(|v| Requirement::new("k", NotIn, v)),
        Just(req(Exists, &[])),
        Just(req(DoesNotExist, &[])),
        bound.clone().prop_map(|n| Requirement::new("k", Gt, [n])),
        bound.prop_map(|n| Requirement::new("k", Lt, [n])),
    ]
}

proptest! {
    #[test]
    fn an_intersection_holds_what_both_hold(a in any_requirement(), b in any_requirement(), v in "[a-d0-9]") {
        let both = a.intersection(&b);
        prop_assert_eq!(both.has(&v), a.has(&v) && b.has(&v));
        prop_assert_eq!(&both, &b.intersection(&a));
        prop_assert_eq!(&both.intersection(&a), &both);
    }

    #[test]
    fn has_intersection_agrees_with_the_intersection(a in any_requirement(), b in any_requirement()) {
        let empty = a.intersection(&b).operator() == DoesNotExist;
        prop_assert_eq!(a.has_intersection(&b), !empty);
    }

    #[test]
    fn any_meets_the_requirement(a in any_requirement()) {
        if let Some(value) = a.any() {
            prop_assert!(a.has(&value) || a.bounds().1.is_some());
        }
    }
}

#[test]
fn a_requirement_is_found_wherever_it_is_looked_for_first() {
    let list: Requirements =
        ["a", "b", "c"].map(|key| Requirement::is(key, key)).into_iter().collect();
    for mut place in 0..5 {
        for key in ["c", "a", "b"] {
            assert_eq!(list.get_near(key, &mut place), list.get(key));
        }
        assert!(list.get_near("d", &mut place).is_none());
    }
}
