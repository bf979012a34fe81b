//! What is asked of the API server between a pending pod and its instance.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use karpenter::clock::Clock;
use karpenter::model::api::{Call, Fault, FaultPlan};
use parking_lot::Mutex;

use crate::support::*;

/// Each write takes this long.
const WRITE: Duration = Duration::from_millis(50);

/// When, what and of which kind.
type Asked = Arc<Mutex<Vec<(Timestamp, &'static str, &'static str)>>>;

/// Records what the controllers ask for, and answers writes late.
struct Recorded {
    clock: Clock,
    asked: Asked,
}

impl FaultPlan for Recorded {
    fn fault(&mut self, call: &Call) -> Option<Fault> {
        // Nobody waits for events, and the lease is renewed whatever happens.
        if call.user != "karpenter" || matches!(call.kind.plural, "events" | "leases") {
            return None;
        }
        self.asked.lock().push((self.clock.now(), call.verb, call.kind.plural));
        call.writes().then_some(Fault::Delay(WRITE))
    }
}

#[test]
fn between_a_batch_and_its_launches_there_is_one_request_for_each_node_and_nothing_else() {
    scenario(async |w| {
        w.apply(calm("default", |_| ()));
        w.start();
        w.apply(deployment("first", 1, "1", |_| ()));
        runs(w, "first", 1).await;
        w.pass(MINUTE).await;
        let before: Vec<String> = w.instances().iter().map(|i| i.provider_id.clone()).collect();
        let asked = Asked::default();
        w.server.set_faults(Recorded { clock: w.clock.clone(), asked: Arc::clone(&asked) });
        let came = w.clock.now();
        w.apply(deployment("web", 20, "1500m", apart("web")));
        until(w, MINUTE, "every instance", |w| w.instances().len() == before.len() + 20).await;
        let new = w.instances().into_iter().filter(|i| !before.contains(&i.provider_id));
        let launched: Vec<Timestamp> = new.map(|i| i.launched).collect();
        let (first, last) = (*launched.iter().min().unwrap(), *launched.iter().max().unwrap());
        let asked = asked.lock().clone();
        let until_launch: Vec<_> = asked.iter().filter(|(at, _, _)| *at < first).collect();
        assert_eq!(until_launch.len(), 20, "{until_launch:?}");
        assert!(
            until_launch
                .iter()
                .all(|(_, verb, plural)| (*verb, *plural) == ("create", "nodeclaims")),
            "{until_launch:?}"
        );
        let closed = until_launch[0].0;
        let since = |from: Timestamp, to: Timestamp| to.duration_since(from).unsigned_abs();
        // One quiet second closes the batch.
        assert!(since(came, closed) <= Duration::from_millis(1200), "{:?}", since(came, closed));
        // All are created side by side, and each launch begins as soon as its claim is there.
        assert!(since(closed, last) <= 2 * WRITE, "{:?}", since(closed, last));
    });
}
