//! What every end-to-end test uses: a world, a controller in it, and patience.

pub mod controller;
mod manifests;
pub mod world;

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

pub use controller::Controller;
pub use manifests::node_class;
pub use world::World;

/// How long anything may take: machines here are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again until there is an answer.
///
/// # Panics
/// When there is none in time.
pub async fn until<T, F>(what: &str, ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    within(PATIENCE, what, ask).await
}

/// Asks again until there is an answer, for so long.
///
/// # Panics
/// When there is none in time.
pub async fn within<T, F>(limit: Duration, what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Checks for a while that something stays as it is.
///
/// # Panics
/// When it does not.
pub async fn stays<T, F>(time: Duration, what: &str, expected: T, mut ask: impl FnMut() -> F)
where
    T: PartialEq + Debug,
    F: Future<Output = T>,
{
    let start = Instant::now();
    while start.elapsed() < time {
        assert_eq!(ask().await, expected, "{what} changed after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
