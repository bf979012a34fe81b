//! How much a scrape of a large cluster is, and how long it takes to write.
//!
//! `cargo bench --bench scrape` prints lines, bytes and the median time for each level, at 1,000 nodes with 20,000 pods and at
//! 5,000 nodes with 100,000 pods. It fails where a scrape below the full level is 3 MB or takes 100 ms.

#![allow(clippy::disallowed_methods, reason = "real time is what is measured")]
#![allow(clippy::unwrap_used, reason = "benches may panic as tests may")]

use std::time::Instant;

use jiff::Timestamp;
use karpenter::cluster::State;
use karpenter::controllers::scrape;
use karpenter::operator::metrics::{Level, Options};

#[path = "../src/controllers/scrape/cluster.rs"]
mod cluster;

const BYTES: usize = 3_000_000;
const MILLISECONDS: u128 = 100;

fn main() {
    println!("| nodes | pods | level | lines | bytes | time |\n|---:|---:|---|---:|---:|---:|");
    let now = Timestamp::from_second(1_770_000_000).unwrap();
    let mut missed = Vec::new();
    for (nodes, pods) in [(1_000, 20_000), (5_000, 100_000)] {
        let state = cluster::state(nodes, pods);
        for (level, name) in
            [(Level::Full, "full"), (Level::Standard, "standard"), (Level::Minimal, "minimal")]
        {
            let options = Options { level, ..Options::default() };
            let mut times = Vec::new();
            let mut text = String::new();
            for _ in 0..5 {
                let begun = Instant::now();
                text = scrape::of_state(&state, &options, now);
                times.push(begun.elapsed());
            }
            times.sort_unstable();
            let (time, lines) = (times[times.len() / 2], text.lines().count());
            println!("| {nodes} | {pods} | {name} | {lines} | {} | {time:.1?} |", text.len());
            if level < Level::Full && (text.len() >= BYTES || time.as_millis() >= MILLISECONDS) {
                missed.push(format!("{name} at {nodes} nodes"));
            }
        }
    }
    assert!(missed.is_empty(), "{BYTES} bytes or {MILLISECONDS} ms are missed by {missed:?}");
}
