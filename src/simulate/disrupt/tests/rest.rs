//! Random clusters that are carried to rest stay there: nothing is moved to and fro.

use super::*;

/// How many clusters each run of the tests tries; `REST_CLUSTERS` asks for more.
const CLUSTERS: u64 = 25;

const KINDS: [(&str, u64); 3] = [("small", 2), ("medium", 4), ("large", 16)];

/// A cluster that is filled by chance, with volumes and a DaemonSet in some.
fn random(seed: u64) -> Value {
    let mut random = fastrand::Rng::with_seed(seed);
    let (volumes, daemons) = (random.bool(), random.bool());
    let mut objects = Vec::new();
    let mut nodes = Vec::new();
    for at in 0..random.usize(2..14) {
        let (kind, cpu) = KINDS[random.usize(0..3)];
        let mut left = 1000 * cpu - if daemons { 200 } else { 0 };
        let mut pods = Vec::new();
        while random.u32(0..3) > 0 {
            let millis = [100, 250, 500, 900, 1500, 3000][random.usize(0..6)];
            if millis > left {
                break;
            }
            left -= millis;
            pods.push(format!("{millis}m"));
        }
        let sizes: Vec<&str> = pods.iter().map(String::as_str).collect();
        let name = format!("n{at:02}");
        let mut node = node(&name, kind, &cpu.to_string(), &sizes);
        for pod in node["pods"].as_array_mut().unwrap() {
            let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
            if volumes && random.u32(0..3) == 0 {
                pod["spec"]["volumes"] =
                    json!([{"name": "v", "persistentVolumeClaim": {"claimName": name}}]);
                objects.extend(volume(&name));
            }
        }
        if volumes {
            objects
                .push(json!({"kind": "CSINode", "metadata": {"name": name}, "spec": {"drivers": [
                {"name": "ebs.csi.aws.com", "nodeID": name, "allocatable": {"count": 3}}]}}));
        }
        nodes.push(node);
    }
    let waiting: Vec<Value> =
        (0..random.usize(0..4)).map(|at| pod(&format!("w{at}"), "700m")).collect();
    let mut document = document(&nodes, &waiting);
    document["objects"] = json!(objects);
    if daemons {
        document["daemonSetPods"] = json!([pod("agent", "200m")]);
    }
    let budget = ["100%", "20%", "1"][random.usize(0..3)];
    document["nodePools"][0]["spec"]["disruption"]["budgets"] = json!([{"nodes": budget}]);
    let several = ["1", "3"][random.usize(0..2)];
    document["nodePools"][0]["metadata"]["annotations"] =
        json!({"karpenter.rs/consolidation-max-replacements": several});
    if random.u32(0..4) == 0 {
        document["nodePools"][0]["spec"]["disruption"]["consolidationPolicy"] = json!("Balanced");
    }
    document
}

fn volume(name: &str) -> [Value; 2] {
    let claim = json!({"kind": "PersistentVolumeClaim", "metadata": {"name": name,
            "namespace": "n", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": name}});
    let volume = json!({"kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        "csi": {"driver": "ebs.csi.aws.com", "volumeHandle": name},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a"]}]}]}}}});
    [claim, volume]
}

fn to_rest(world: &mut World, now: Timestamp) -> DisruptReport {
    let report = begin(world, None);
    carry_out(world, report, now)
}

#[test]
fn clusters_that_were_carried_to_rest_stay_at_rest() {
    let asked = std::env::var("REST_CLUSTERS").ok().and_then(|n| n.parse().ok());
    for seed in 0..asked.unwrap_or(CLUSTERS) {
        let mut world = world(&random(seed));
        let pods: usize = world.snapshot.nodes.iter().map(|n| n.pods.len()).sum();
        let pods = pods + world.snapshot.pods.len();
        let now = Timestamp::from_second(3600).unwrap();
        let first = to_rest(&mut world, now);
        let plan = first.plan.unwrap();
        assert!(plan.at_rest, "seed {seed}");
        assert!(plan.price_after <= plan.price_before + 1e-9, "seed {seed}: {plan:?}");
        // Each command saves something, and nodes only come back as fewer or cheaper ones.
        assert!(first.commands.iter().all(|c| c.savings > 0.0), "seed {seed}");
        assert!(first.commands.len() <= 3 * plan.nodes_before + 3, "seed {seed}: {plan:?}");
        let left: usize = world.snapshot.nodes.iter().map(|n| n.pods.len()).sum();
        assert_eq!(left + world.snapshot.pods.len(), pods, "seed {seed}: no pod is lost");
        for later in [3660, 90_000] {
            let again = to_rest(&mut world, Timestamp::from_second(later).unwrap());
            assert_eq!(again.commands.len(), 0, "seed {seed}: {:?}", again.commands);
            assert_eq!(again.launched, 0, "seed {seed}");
        }
    }
}
