//! What goes wrong with the cloud's calls, how it behaves when all is well, and defects that are
//! planted in it.

use std::time::Duration;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudError {
    NotFound(String),
    InsufficientCapacity(String),
    Throttled,
    /// The call failed, or its answer was lost.
    Failed(String),
}

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudFault {
    Throttle,
    Fail,
    /// Carried out, but the answer is lost.
    Lost,
    Delay(Duration),
    /// Not carried out, and the caller waits for ever: it is about to be killed.
    HangBefore,
    /// Carried out, and the caller waits for the answer for ever.
    HangAfter,
}

/// Decides which calls go wrong.
pub trait Plan: Send {
    /// What happens to a call: `create`, `delete`, `get`, `list` or `reboot`.
    fn fault(&mut self, call: &'static str) -> Option<CloudFault>;
}

pub(super) struct NoFaults;

impl Plan for NoFaults {
    fn fault(&mut self, _: &'static str) -> Option<CloudFault> {
        None
    }
}

/// How the cloud behaves when all is well.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Time that each call takes.
    pub latency: Duration,
    /// Time until an instance's kubelet joins: least and most.
    pub boot: (Duration, Duration),
    /// Time that an instance takes to end.
    pub shutdown: Duration,
    /// Time until lists show a new instance.
    pub consistency: Duration,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(50),
            boot: (Duration::from_secs(20), Duration::from_secs(40)),
            shutdown: Duration::from_secs(10),
            consistency: Duration::ZERO,
        }
    }
}

/// A defect of the provider or of the cloud that is planted, to show that the checks of a world find
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A launch that is asked for again is another launch.
    UnstableToken,
    /// A launch makes two instances.
    DoubleLaunch,
    /// A launch makes none.
    PhantomLaunch,
    /// What a NodeClaim requires of its instance type is not looked at.
    AnyType,
    /// The end of an instance is confirmed, but the instance runs on.
    EndIgnored,
    /// Instances that run are not found when they are asked for, or asked to end.
    NotFound,
    /// Interruptions are not announced.
    NoNotices,
    /// The largest type is shown as nearly free from ten minutes after the defect was planted on.
    WrongPrice,
}
