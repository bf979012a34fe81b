//! What operators see of the controller: probes, metrics, events, exit codes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use crate::chain::one_initialized;
use crate::support::{Controller, World, until};

/// Status and body of a plain HTTP request to this machine; nothing while nobody listens.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// The value of the first series of a metric whose labels hold all of these.
fn value(text: &str, metric: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let fits = |line: &&str| {
        line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|(name, value)| line.contains(&format!("{name}=\"{value}\"")))
    };
    text.lines().find(fits)?.rsplit(' ').next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_metrics_and_events_tell_of_a_nodes_life() {
    let world = World::up().await;
    let controller = Controller::with(&world, &[("DISABLE_LEADER_ELECTION", "false")]);
    let health = controller.health_port;
    until("readiness", || async {
        (get(health, "/readyz")? == (200, "ok".to_owned())).then_some(())
    })
    .await;
    let (status, text) = get(health, "/readyz?verbose").unwrap();
    assert_eq!(status, 200);
    for check in ["manager", "crd", "readyz"] {
        assert!(text.contains(&format!("[+]{check} ok\n")), "{text}");
    }
    assert_eq!(get(health, "/readyz/crd").unwrap().0, 200);
    assert_eq!(get(health, "/readyz/nonsense").unwrap().0, 404);
    assert_eq!(get(health, "/healthz").unwrap(), (200, "ok".to_owned()));
    assert_eq!(get(controller.metrics_port, "/debug/pprof/").unwrap().0, 404);

    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    world.deploy("inflate", 3, "250m", "200Mi").await;
    one_initialized(&world).await;
    let read = || get(controller.metrics_port, "/metrics").unwrap().1;
    let pool = ("nodepool", "default");
    let cpu = ("resource_type", "cpu");
    until("the node's series", || async {
        let text = read();
        let requests = value(&text, "karpenter_nodes_total_pod_requests", &[pool, cpu])?;
        (requests == 0.75).then_some(())
    })
    .await;
    let text = read();
    let at = |metric: &str, labels: &[(&str, &str)]| {
        value(&text, metric, labels).unwrap_or_else(|| panic!("no {metric} {labels:?}"))
    };
    let spot = ("capacity_type", "spot");
    assert_eq!(at("karpenter_build_info", &[]), 1.0);
    assert_eq!(at("leader_election_master_status", &[("name", "karpenter-leader-election")]), 1.0);
    assert_eq!(at("karpenter_nodes_created_total", &[pool]), 1.0);
    assert_eq!(
        at("karpenter_nodes_allocatable", &[pool, cpu, spot, ("instance_type", "t3.medium")]),
        1.93
    );
    // NodePools are measured every ten seconds.
    until("the limit of the NodePool", || async {
        (value(&read(), "karpenter_nodepools_limit", &[pool, cpu])? == 1000.0).then_some(())
    })
    .await;
    until("the cost of the NodePool", || async {
        (value(&read(), "karpenter_nodepools_cost_total", &[pool])? > 0.0).then_some(())
    })
    .await;
    assert!(at("karpenter_cluster_utilization_percent", &[cpu]) > 30.0);
    assert!(at("karpenter_nodes_current_lifetime_seconds", &[pool, ("managed", "true")]) >= 0.0);
    let lifecycle = ("controller", "nodeclaim.lifecycle");
    let done = ("result", "success");
    assert!(at("controller_runtime_reconcile_total", &[lifecycle, done]) >= 1.0);
    assert!(at("controller_runtime_reconcile_time_seconds_count", &[lifecycle]) >= 1.0);
    assert!(at("controller_runtime_max_concurrent_reconciles", &[lifecycle]) >= 1.0);
    assert!(at("workqueue_depth", &[("name", "nodeclaim.lifecycle")]) >= 0.0);
    assert!(at("workqueue_adds_total", &[("name", "nodeclaim.lifecycle")]) >= 1.0);
    assert_eq!(
        at("karpenter_cloudprovider_duration_seconds_count", &[lifecycle, ("method", "Create")]),
        1.0
    );
    assert!(at("rest_client_requests_total", &[("method", "GET"), ("code", "200")]) >= 1.0);
    let ready = [("type", "Ready"), ("status", "True")];
    assert_eq!(at("operator_nodeclaim_status_condition_count", &ready), 1.0);
    assert_eq!(at("operator_nodepool_status_condition_count", &ready), 1.0);
    assert_eq!(at("operator_ec2nodeclass_status_condition_count", &ready), 1.0);
    assert_eq!(
        at("operator_status_condition_count", &[("kind", "NodeClaim"), ready[0], ready[1]]),
        1.0
    );
    let events = world.events("Registered").await;
    assert!(
        events.iter().any(|m| m.starts_with(
            "Status condition transitioned, Type: Registered, Status: Unknown -> True, Reason: Registered"
        )),
        "{events:?}"
    );
    assert_eq!(world.events("LeaderElection").await.len(), 1);

    world.scale("inflate", 0);
    until("the claim gone", || async { world.claims().await.is_empty().then_some(()) }).await;
    until("the node's end in the series", || async {
        let text = read();
        let ended = value(&text, "karpenter_nodeclaims_terminated_total", &[pool, spot])? == 1.0;
        let took = value(
            &text,
            "karpenter_nodes_termination_duration_seconds",
            &[pool, ("quantile", "0.99")],
        )?;
        let gone = value(&text, "karpenter_nodes_allocatable", &[pool]).is_none()
            && value(&text, "operator_nodeclaim_status_condition_count", &[]).is_none();
        (ended && took > 0.0 && gone).then_some(())
    })
    .await;
    let events = world.events("Finalized").await;
    assert!(events.iter().any(|m| m == "Finalized karpenter.sh/termination"), "{events:?}");
}

#[test]
fn unusable_settings_end_the_process_in_plain_words() {
    let run = |words: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_karpenter")).env_clear().args(words).output();
        let out = out.unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, text) = run(&["--log-level=warn"]);
    assert_eq!(code, Some(2));
    assert!(text.contains(r#"invalid LOG_LEVEL "warn""#), "{text}");
    // A flag that nobody knows is no reason to stop: what is missing is named all the same.
    let (code, text) = run(&["--nonsense"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("missing field, cluster-name"), "{text}");
    assert_eq!(run(&["controller", "--help"]).0, Some(0));
    let (code, text) = run(&["--cluster-name=x", "--log-output-paths=/no/such/folder/log"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("/no/such/folder/log"), "{text}");
}
