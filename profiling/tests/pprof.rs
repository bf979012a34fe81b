//! `go tool pprof` reads the profiles, and finds in them what the process did.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// MiB that are kept while the heap is looked at.
const KEPT: usize = 64;
const CHUNK: usize = 32 << 10;

#[global_allocator]
static ALLOCATOR: karpenter_profiling::Allocator = karpenter_profiling::allocator();

static STOP: AtomicBool = AtomicBool::new(false);

#[inline(never)]
fn work_that_takes_time() {
    let mut sum = 0_u64;
    while !STOP.load(Ordering::Relaxed) {
        for n in 0..100_000_u64 {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(n));
        }
    }
    black_box(sum);
}

#[inline(never)]
fn memory_that_is_kept() -> Vec<Vec<u8>> {
    (0..(KEPT << 20) / CHUNK).map(|_| Vec::with_capacity(CHUNK)).collect()
}

/// The body of a page of this process.
fn get(address: SocketAddr, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    assert!(answer.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&answer));
    answer.split_off(head + 4)
}

/// What pprof shows of a profile.
fn top(profile: &[u8], words: &[&str]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(profile).unwrap();
    let done = Command::new("go")
        .args(["tool", "pprof", "-symbolize=none", "-top"])
        .args(words)
        .arg(file.path())
        .output()
        .expect("Go reads profiles");
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{text}{}", String::from_utf8_lossy(&done.stderr));
    text
}

/// The columns flat, flat%, sum%, cum, cum% of a function.
fn row(table: &str, function: &str) -> Vec<String> {
    let found = table.lines().find(|line| line.contains(function));
    let found = found.unwrap_or_else(|| panic!("no {function} in {table}"));
    found.split_whitespace().take(5).map(str::to_owned).collect()
}

#[test]
fn pprof_finds_what_took_time_and_what_keeps_memory() {
    karpenter_profiling::sample_heap().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, karpenter_profiling::router()).await });

    let busy = std::thread::spawn(work_that_takes_time);
    let cpu = get(address, "/debug/pprof/profile?seconds=2");
    STOP.store(true, Ordering::Relaxed);
    busy.join().unwrap();
    let table = top(&cpu, &["-sample_index=cpu"]);
    assert!(table.contains("Type: cpu") && table.contains("Duration: 2s"), "{table}");
    let share =
        row(&table, "work_that_takes_time")[4].trim_end_matches('%').parse::<f64>().unwrap();
    assert!(share > 80.0, "{table}");

    let kept = memory_that_is_kept();
    let heap = get(address, "/debug/pprof/heap");
    let table = top(&heap, &["-sample_index=inuse_space", "-unit=MB"]);
    let found =
        row(&table, "memory_that_is_kept")[3].trim_end_matches("MB").parse::<f64>().unwrap();
    // A sample for each 512 KiB on average: some 128 of them.
    let expected = f64::from(u32::try_from(KEPT).unwrap());
    assert!((expected * 0.6..expected * 1.5).contains(&found), "{found} MB: {table}");
    drop(kept);
    let table = top(&get(address, "/debug/pprof/heap"), &["-sample_index=inuse_space", "-unit=MB"]);
    assert!(!table.contains("memory_that_is_kept"), "what was freed is not in use: {table}");
    let table = top(&get(address, "/debug/pprof/heap"), &["-sample_index=alloc_space"]);
    assert!(table.contains("memory_that_is_kept"), "but was allocated: {table}");
    assert!(String::from_utf8(get(address, "/debug/pprof/")).unwrap().contains("go tool pprof"));
    assert!(!get(address, "/debug/pprof/cmdline").is_empty());
}
