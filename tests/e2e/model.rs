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
    for (name, behaviour) in behaviour::ALL {
        if AssertUnwindSafe(behaviour(&server)).catch_unwind().await.is_err() {
            different.push(*name);
        }
    }
    assert!(different.is_empty(), "{different:?}");
}
