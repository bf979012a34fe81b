//! `go tool pprof` reads the profiles of a controller that works.

use std::process::Command;

use crate::chain::one_initialized;
use crate::operator::get;
use crate::support::{Controller, World, until};

/// What pprof shows of a profile of the controller.
fn top(controller: &Controller, path: &str, words: &[&str]) -> String {
    let url = format!("http://127.0.0.1:{}/debug/pprof/{path}", controller.metrics_port);
    let done = Command::new("go")
        .args(["tool", "pprof", "-symbolize=none", "-top", "-nodecount=1000"])
        .args(words)
        .arg(url)
        .env("PPROF_TMPDIR", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .expect("Go reads profiles");
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{text}{}", String::from_utf8_lossy(&done.stderr));
    println!("{}", text.lines().take(16).collect::<Vec<_>>().join("\n"));
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn pprof_reads_cpu_and_heap_of_a_controller_that_launches_a_node() {
    let world = World::up().await;
    let controller = Controller::with(&world, &[("ENABLE_PROFILING", "true")]);
    until("the index of profiles", || {
        let page = get(controller.metrics_port, "/debug/pprof/");
        std::future::ready(page.filter(|(_, text)| text.contains("go tool pprof")))
    })
    .await;
    world.apply_file("examples/weasel-eks/manifests.yaml").await;
    world.deploy("web", 1, "1", "1Gi").await;
    let cpu = top(&controller, "profile?seconds=20", &["-sample_index=cpu"]);
    assert!(cpu.contains("Type: cpu") && cpu.contains("Duration: 20s"), "{cpu}");
    assert!(cpu.contains("karpenter"), "functions of the controller: {cpu}");
    one_initialized(&world).await;
    let heap = top(&controller, "heap", &["-sample_index=inuse_space", "-cum"]);
    assert!(heap.contains("Type: inuse_space") && heap.contains("karpenter"), "{heap}");
}
