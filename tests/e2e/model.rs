//! The API server of the model world and a real one behave alike: the same behaviours run here
//! that `crates/model/tests/api.rs` runs in process.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;

use crate::support::World;

#[path = "../../crates/model/tests/behaviour/mod.rs"]
mod behaviour;

#[tokio::test]
async fn a_real_api_server_behaves_as_the_one_in_process() {
    let world = World::up().await;
    let server = behaviour::Server { client: world.kube.clone(), forget: Box::new(|| ()) };
    let mut different = Vec::new();
    // A real server forgets old versions when etcd is compacted, every five minutes.
    let waits = |name: &str| name == "a_watch_from_a_forgotten_version_has_expired";
    for (name, behaviour) in behaviour::ALL.iter().filter(|(name, _)| !waits(name)) {
        if AssertUnwindSafe(behaviour(&server)).catch_unwind().await.is_err() {
            different.push(*name);
        }
    }
    assert!(different.is_empty(), "{different:?}");
}
