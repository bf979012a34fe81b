//! What was decided for each waiting pod, and when; kept in memory until the pod is gone or runs.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::scheduling::pod::PodKey;

/// When things happened to a pod that waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// It was first seen waiting.
    pub acknowledged: Option<Timestamp>,
    /// It was first decided on, whatever the decision.
    pub decided: Option<Timestamp>,
    /// A place was first found for it.
    pub schedulable: Option<Timestamp>,
}

/// Times of waiting pods, and why those that fit nowhere do not.
#[derive(Debug, Default)]
pub struct Decisions {
    times: Mutex<HashMap<PodKey, Times>>,
    errors: Mutex<HashMap<PodKey, String>>,
    /// NodeClaims created for pods.
    claims: Mutex<HashMap<PodKey, String>>,
}

impl Decisions {
    /// Notes that a pod waits; only the first time counts.
    pub fn acknowledge(&self, key: &PodKey, now: Timestamp) {
        let mut times = self.times.lock();
        // The first time counts: a pod is listed again and again while it waits.
        if !times.contains_key(key) {
            times.insert(key.clone(), Times { acknowledged: Some(now), ..Times::default() });
        }
    }

    /// Notes that a place was found for a pod. Returns the seconds since the pod was first seen, if
    /// this is the first decision on it.
    pub fn placed(&self, key: &PodKey, now: Timestamp) -> Option<f64> {
        self.errors.lock().remove(key);
        let mut times = self.times.lock();
        let entry = times.get_mut(key)?;
        // A pod whose node failed is placed again; the metric is about the first decision.
        entry.schedulable.get_or_insert(now);
        first(entry, now)
    }

    /// Notes why no place was found for a pod; returns as [`Decisions::placed`].
    pub fn failed(&self, key: &PodKey, error: String, now: Timestamp) -> Option<f64> {
        self.errors.lock().insert(key.clone(), error);
        first(self.times.lock().get_mut(key)?, now)
    }

    /// Notes for which NodeClaim a pod is meant.
    pub fn claimed(&self, key: &PodKey, claim: &str) {
        self.claims.lock().insert(key.clone(), claim.to_owned());
    }

    /// The NodeClaim that was created for a pod.
    #[must_use]
    pub fn claim_of(&self, key: &PodKey) -> Option<String> {
        self.claims.lock().get(key).cloned()
    }

    /// The pods for which a NodeClaim was created.
    #[must_use]
    pub fn pods_of(&self, claim: &str) -> Vec<PodKey> {
        let claims = self.claims.lock();
        claims.iter().filter(|(_, of)| *of == claim).map(|(key, _)| key.clone()).collect()
    }

    /// Why the last round found no place for a pod.
    #[must_use]
    pub fn error_of(&self, key: &PodKey) -> Option<String> {
        self.errors.lock().get(key).cloned()
    }

    /// When things happened to a pod.
    #[must_use]
    pub fn times(&self, key: &PodKey) -> Option<Times> {
        self.times.lock().get(key).copied()
    }

    /// Pods that were not decided on yet, with the time at which they were first seen.
    #[must_use]
    pub fn undecided(&self) -> Vec<(PodKey, Timestamp)> {
        let times = self.times.lock();
        let open = times.iter().filter(|(_, t)| t.decided.is_none());
        open.filter_map(|(key, t)| Some((key.clone(), t.acknowledged?))).collect()
    }

    /// Forgets a pod.
    pub fn forget(&self, key: &PodKey) {
        self.times.lock().remove(key);
        self.errors.lock().remove(key);
        self.claims.lock().remove(key);
    }

    /// Forgets all pods but these.
    pub fn retain(&self, pods: &HashSet<PodKey>) {
        self.times.lock().retain(|key, _| pods.contains(key));
        self.errors.lock().retain(|key, _| pods.contains(key));
        self.claims.lock().retain(|key, _| pods.contains(key));
    }
}

fn first(times: &mut Times, now: Timestamp) -> Option<f64> {
    if times.decided.is_some() {
        return None;
    }
    times.decided = Some(now);
    Some(now.duration_since(times.acknowledged?).as_secs_f64().max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_the_first_decision_is_timed() {
        let decisions = Decisions::default();
        let key = PodKey::new("n", "p");
        let at = |s: u64| Timestamp::UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(decisions.failed(&key, "x".to_owned(), at(0)), None);
        decisions.acknowledge(&key, at(1));
        decisions.acknowledge(&key, at(2));
        assert_eq!(decisions.failed(&key, "no room".to_owned(), at(4)), Some(3.0));
        assert_eq!(decisions.error_of(&key).as_deref(), Some("no room"));
        assert_eq!(decisions.placed(&key, at(9)), None);
        assert_eq!(decisions.error_of(&key), None);
        assert_eq!(decisions.times(&key).unwrap().schedulable, Some(at(9)));
        decisions.claimed(&key, "claim");
        assert_eq!(decisions.pods_of("claim"), std::slice::from_ref(&key));
        assert!(decisions.pods_of("other").is_empty());
        decisions.retain(&HashSet::new());
        assert_eq!(decisions.times(&key), None);
    }
}
