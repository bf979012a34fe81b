//! CPU and heap profiles that `go tool pprof` reads, as paths of an HTTP server.
//!
//! The CPU is sampled by a timer while a profile is asked for, and not otherwise. The heap is sampled from the process's
//! first allocation on, or a profile would miss what was allocated before: the allocator reads an environment variable
//! then, and [`sample_heap`] starts the process over with it. Without that, the allocator is the system's.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use axum::Router;
use axum::extract::Query;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pprof::ProfilerGuardBuilder;
pub use pprof_alloc::PprofAlloc as Allocator;
use pprof_alloc::{DEFAULT_PPROF_SAMPLE_RATE, PPROF_SAMPLE_RATE_ENV};
use serde::Deserialize;
use tokio::sync::Semaphore;

mod encode;

/// Samples of the CPU per second, as Go takes them.
const FREQUENCY: i32 = 100;
/// Go's default length of a CPU profile.
const SECONDS: u64 = 30;
const MOST_SECONDS: u64 = 300;
/// Libraries in which a stack must not be walked from a signal handler: they may hold the lock that this needs.
const NOT_WALKED: &[&str] = &["libc", "libgcc", "pthread", "vdso"];

const INDEX: &str = "\
/debug/pprof/

profile?seconds=30  CPU
heap                allocations that are in use, and all since the start
cmdline             the command line

Read one with: go tool pprof http://ADDRESS/debug/pprof/heap
";

/// The allocator for `#[global_allocator]`: the system's, which samples where [`sample_heap`] asked for it.
#[must_use]
pub const fn allocator() -> Allocator {
    Allocator::new().with_pprof_sample_rate_from_env(0)
}

/// Whether the allocator samples what is allocated.
fn heap_is_sampled() -> bool {
    std::env::var_os(PPROF_SAMPLE_RATE_ENV).is_some_and(|rate| rate != "0")
}

/// Starts the process over, by the same name and number, with an allocator that samples. Does nothing where it
/// does already.
///
/// # Errors
/// When the process cannot be started over; it goes on as it is.
pub fn sample_heap() -> std::io::Result<()> {
    if std::env::var_os(PPROF_SAMPLE_RATE_ENV).is_some() {
        return Ok(());
    }
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_else(|| OsString::from("karpenter"));
    let mut again = Command::new(std::env::current_exe()?);
    again.arg0(name).args(words).env(PPROF_SAMPLE_RATE_ENV, DEFAULT_PPROF_SAMPLE_RATE.to_string());
    Err(again.exec())
}

/// The paths of the profiles.
pub fn router() -> Router {
    Router::new()
        .route("/debug/pprof/", get(|| async { INDEX }))
        .route("/debug/pprof/profile", get(cpu))
        .route("/debug/pprof/heap", get(heap))
        .route("/debug/pprof/allocs", get(heap))
        .route("/debug/pprof/cmdline", get(command_line))
}

fn failed(status: StatusCode, why: impl std::fmt::Display) -> Response {
    (status, format!("{why}\n")).into_response()
}

fn profile(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response()
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    seconds: Option<String>,
}

/// How long a profile shall take.
fn length(seconds: Option<&str>) -> Result<u64, String> {
    let Some(text) = seconds else { return Ok(SECONDS) };
    text.parse()
        .ok()
        .filter(|n| (1..=MOST_SECONDS).contains(n))
        .ok_or_else(|| format!("seconds={text}: expected 1 to {MOST_SECONDS}"))
}

async fn cpu(Query(asked): Query<Asked>) -> Response {
    // One timer per process.
    static FREE: Semaphore = Semaphore::const_new(1);
    let seconds = match length(asked.seconds.as_deref()) {
        Ok(seconds) => seconds,
        Err(why) => return failed(StatusCode::BAD_REQUEST, why),
    };
    let Ok(_held) = FREE.try_acquire() else {
        return failed(StatusCode::CONFLICT, "another CPU profile is being taken");
    };
    let sampling =
        ProfilerGuardBuilder::default().frequency(FREQUENCY).blocklist(NOT_WALKED).build();
    let guard = match sampling {
        Ok(guard) => guard,
        Err(error) => return failed(StatusCode::INTERNAL_SERVER_ERROR, error),
    };
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    // Finding the names takes a while: not on the threads that everything else needs.
    let read = tokio::task::spawn_blocking(move || {
        let report = guard.report().build()?;
        let started = report.timing.start_time;
        Ok::<_, pprof::Error>(encode::profile(&report.data, started, FREQUENCY, seconds))
    });
    match read.await {
        Ok(Ok(bytes)) => profile(bytes),
        Ok(Err(error)) => failed(StatusCode::INTERNAL_SERVER_ERROR, error),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

async fn heap() -> Response {
    if !heap_is_sampled() {
        let why = "the heap is not sampled: the process could not be started over, see its log";
        return failed(StatusCode::SERVICE_UNAVAILABLE, why);
    }
    match tokio::task::spawn_blocking(pprof_alloc::generate_pprof).await {
        Ok(Ok(bytes)) => profile(bytes),
        Ok(Err(error)) => failed(StatusCode::INTERNAL_SERVER_ERROR, error),
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

/// Words apart by zero bytes, as Go shows them.
async fn command_line() -> String {
    let words: Vec<_> = std::env::args_os().map(|w| w.to_string_lossy().into_owned()).collect();
    words.join("\0")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(path: &str) -> (StatusCode, Vec<u8>) {
        let request = axum::http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        let answer = router().oneshot(request).await.unwrap();
        let status = answer.status();
        (status, axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap().to_vec())
    }

    #[tokio::test]
    async fn a_length_that_is_no_number_of_seconds_is_refused_by_name() {
        for seconds in ["0", "301", "-1", "x", ""] {
            let (status, text) = ask(&format!("/debug/pprof/profile?seconds={seconds}")).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{seconds}");
            let text = String::from_utf8(text).unwrap();
            assert_eq!(text, format!("seconds={seconds}: expected 1 to 300\n"));
        }
        assert_eq!(length(None), Ok(30));
    }

    #[tokio::test]
    async fn without_an_allocator_that_samples_a_heap_profile_is_an_error() {
        let (status, text) = ask("/debug/pprof/heap").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(String::from_utf8(text).unwrap().contains("the heap is not sampled"));
        assert_eq!(ask("/debug/pprof/nothing").await.0, StatusCode::NOT_FOUND);
    }
}
