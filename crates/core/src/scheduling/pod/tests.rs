use super::*;

fn pod(value: serde_json::Value) -> PodInfo {
    PodInfo::from_pod(&serde_json::from_value(value).unwrap())
}

#[test]
fn only_pods_that_were_refused_are_provisionable() {
    let condition = |reason: &str| {
        serde_json::json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": reason}]})
    };
    let base = |status: serde_json::Value| {
        serde_json::json!({"metadata": {"name": "a", "namespace": "n"},
            "spec": {"containers": []}, "status": status})
    };
    assert!(pod(base(condition("Unschedulable"))).is_provisionable());
    assert!(!pod(base(condition("SchedulingGated"))).is_provisionable());
    let mut bound = base(condition("Unschedulable"));
    bound["spec"]["nodeName"] = "x".into();
    assert!(!pod(bound).is_provisionable());
    let mut daemon = base(condition("Unschedulable"));
    daemon["metadata"]["ownerReferences"] = serde_json::json!([
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u"}]);
    assert!(!pod(daemon).is_provisionable());
}

#[test]
fn do_not_disrupt_may_be_a_time() {
    let mut info = PodInfo { do_not_disrupt: Some("10m".into()), ..PodInfo::default() };
    assert!(info.do_not_disrupt_active(Timestamp::UNIX_EPOCH));
    info.started = Some(Timestamp::UNIX_EPOCH);
    let later = Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(601);
    assert!(!info.do_not_disrupt_active(later));
    assert_eq!(info.do_not_disrupt_problem(), None);
    info.do_not_disrupt = Some("0s".into());
    assert!(info.do_not_disrupt_problem().unwrap().contains("not positive"));
    info.do_not_disrupt = Some("soon".into());
    assert!(info.do_not_disrupt_problem().unwrap().contains("soon"));
    assert!(!info.do_not_disrupt_active(Timestamp::UNIX_EPOCH));
}

#[test]
fn host_ports_on_one_address_conflict_however_it_is_written() {
    let port = |ip: &str| HostPort::new("TCP", ip, 80);
    assert!(port("2001:db8::1").conflicts(&port("2001:0DB8:0:0:0:0:0:1")));
    assert!(port("::ffff:10.0.0.1").conflicts(&port("10.0.0.1")));
    assert!(port("0:0:0:0:0:0:0:0").conflicts(&port("10.0.0.1")));
    assert!(!port("2001:db8::1").conflicts(&port("2001:db8::2")));
    assert!(!port("10.0.0.1").conflicts(&HostPort::new("UDP", "10.0.0.1", 80)));
}

#[test]
fn the_disruption_cost_wins_over_the_deletion_cost() {
    let cost = |annotations: serde_json::Value| {
        let pod =
            serde_json::from_value(serde_json::json!({"metadata": {"annotations": annotations}}))
                .unwrap();
        (
            disruption_cost(&pod, true).map_err(|e| e.to_string()),
            PodInfo::from_pod(&pod).deletion_cost,
        )
    };
    let (own, others) =
        ("karpenter.sh/disruption-cost", "controller.kubernetes.io/pod-deletion-cost");
    assert_eq!(cost(serde_json::json!({own: "7", others: "9"})), (Ok(7), 7));
    assert_eq!(cost(serde_json::json!({others: "-9"})), (Ok(-9), -9));
    assert_eq!(cost(serde_json::json!({})), (Ok(0), 0));
    for bad in ["1.5", "2147483648", ""] {
        let (text, counts) = cost(serde_json::json!({own: bad, others: "9"}));
        assert!(text.unwrap_err().contains("karpenter.sh/disruption-cost"));
        assert_eq!(counts, 0);
    }
}
