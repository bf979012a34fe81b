//! What goes wrong while a schedule is played, and what the requests tell about who acts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use karpenter::model::api::{Call, Fault, FaultPlan};
use karpenter::model::cloud::{CloudFault, Plan};
use parking_lot::Mutex;

/// What the controllers asked of the API server that the checks want to know of.
#[derive(Default)]
pub struct Seen {
    /// Pods that were deleted without asking, by name.
    pub deleted: BTreeSet<String>,
    /// Whose writes came since the last look, in order; several of one user in a row are one.
    pub writers: Vec<String>,
    /// Calls until the controllers hang, to be killed there.
    pub fuse: Option<u32>,
    /// They hang.
    pub hangs: bool,
}

impl Seen {
    /// True when the controllers hang at this call, which does something.
    fn burns_out(&mut self) -> bool {
        let Some(left) = self.fuse else { return false };
        self.fuse = left.checked_sub(1);
        self.hangs |= left == 0;
        left == 0
    }
}

/// Requests to the API server that go wrong.
pub struct Weather {
    pub random: fastrand::Rng,
    /// Of a thousand.
    pub bad: u32,
    pub seen: Arc<Mutex<Seen>>,
}

impl Weather {
    fn note(&self, call: &Call) -> Option<Fault> {
        let mut seen = self.seen.lock();
        if !call.writes() || matches!(call.kind.plural, "events" | "leases") {
            return None;
        }
        if seen.writers.last() != Some(&call.user) {
            seen.writers.push(call.user.clone());
        }
        if call.kind.plural == "pods" && call.verb == "delete" {
            seen.deleted.insert(call.name.clone());
        }
        if !seen.burns_out() {
            return None;
        }
        Some(if call.name.len().is_multiple_of(2) { Fault::HangBefore } else { Fault::HangAfter })
    }
}

impl FaultPlan for Weather {
    fn fault(&mut self, call: &Call) -> Option<Fault> {
        if !call.user.starts_with("karpenter") {
            return None;
        }
        if let Some(hang) = self.note(call) {
            return Some(hang);
        }
        if self.random.u32(0..1000) >= self.bad {
            return None;
        }
        Some(match self.random.u32(0..7) {
            0 => Fault::Delay(Duration::from_millis(self.random.u64(10..20_000))),
            1 if call.writes() => Fault::Lost,
            2 if call.writes() && call.verb != "create" => Fault::Refuse(409),
            3 => Fault::Refuse(429),
            4 => Fault::Refuse(500),
            5 => Fault::Refuse(503),
            _ => Fault::Unreachable,
        })
    }

    fn staleness(&mut self, _call: &Call) -> u64 {
        if self.bad > 0 { self.random.u64(0..20) } else { 0 }
    }

    fn lag(&mut self, call: &Call) -> Duration {
        let slow = call.user.starts_with("karpenter") && self.bad > 0;
        if slow && self.random.u32(0..20) == 0 {
            return Duration::from_millis(self.random.u64(0..5000));
        }
        Duration::ZERO
    }
}

/// Calls of the cloud that go wrong.
pub struct CloudWeather {
    pub random: fastrand::Rng,
    /// Of a thousand.
    pub bad: u32,
    pub seen: Arc<Mutex<Seen>>,
}

impl Plan for CloudWeather {
    fn fault(&mut self, call: &'static str) -> Option<CloudFault> {
        let acts = matches!(call, "create" | "delete" | "reboot");
        if acts && self.seen.lock().burns_out() {
            let before = self.random.bool();
            return Some(if before { CloudFault::HangBefore } else { CloudFault::HangAfter });
        }
        if self.random.u32(0..1000) >= self.bad {
            return None;
        }
        Some(match self.random.u32(0..4) {
            0 => CloudFault::Throttle,
            1 => CloudFault::Fail,
            2 => CloudFault::Lost,
            _ => CloudFault::Delay(Duration::from_secs(self.random.u64(1..60))),
        })
    }
}
