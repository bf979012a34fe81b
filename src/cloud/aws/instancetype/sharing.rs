//! How several claims may share a GPU: what NVIDIA's DRA driver publishes in its modes of consumable
//! capacity. How the driver is set cannot be seen, so an EC2NodeClass names it by an annotation.

use std::sync::Arc;

use crate::api::annotations::NVIDIA_CONSUMABLE_CAPACITY;
use crate::api::v1::EC2NodeClass;
use crate::scheduling::dra::device::{Amount, Capacity, Device, Policy, qualified};

/// Billionths in one.
const ONE: Amount = 1_000_000_000;
const MEBI: Amount = ONE << 20;

/// What of a GPU a claim takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Memory; all of it where a claim names none.
    Memory,
    /// Memory; nothing of it where a claim names none.
    Unlimited,
    /// One of so many shares, or as many as a claim names, and memory beside that.
    Shares(i64),
}

impl Sharing {
    /// What the annotation of a class says; nothing where each claim gets GPUs of its own.
    ///
    /// # Errors
    /// When the driver has no such mode.
    pub fn of(class: &EC2NodeClass) -> Result<Option<Self>, String> {
        let annotated = class.metadata.annotations.as_ref();
        let value =
            annotated.and_then(|all| all.get(NVIDIA_CONSUMABLE_CAPACITY)).map(String::as_str);
        match value.unwrap_or_default() {
            "" | "disabled" => Ok(None),
            "memory" => Ok(Some(Self::Memory)),
            "unlimited" => Ok(Some(Self::Unlimited)),
            number => match number.parse() {
                Ok(shares) if shares > 0 => Ok(Some(Self::Shares(shares))),
                _ => Err(format!(
                    "{number:?} is not one of \"disabled\", \"memory\", \"unlimited\", or a positive integer share count"
                )),
            },
        }
    }

    /// A GPU as the driver publishes it in this mode. One whose memory is not known stays with one
    /// claim: each mode counts memory.
    pub(super) fn apply(self, device: &Arc<Device>, driver: &str) -> Arc<Device> {
        let memory = qualified("memory", driver);
        let Some(whole) = device.capacity.get(&memory).map(|c| c.value) else {
            return Arc::clone(device);
        };
        let mut shared = (**device).clone();
        shared.shared = true;
        let (default, least) = if self == Self::Memory { (whole, MEBI) } else { (0, 0) };
        if let Some(capacity) = shared.capacity.get_mut(&memory) {
            capacity.policy = Some(policy(default, least, whole, MEBI));
        }
        if let Self::Shares(count) = self {
            let all = Amount::from(count) * ONE;
            let capacity = Capacity {
                value: all,
                text: Arc::from(count.to_string()),
                policy: Some(policy(ONE, ONE, all, ONE)),
            };
            shared.capacity.insert(qualified("shares", driver), capacity);
        }
        Arc::new(shared)
    }
}

fn policy(default: Amount, least: Amount, most: Amount, step: Amount) -> Policy {
    let range = Some((least, Some(most), Some(step)));
    Policy { default: Some(default), values: Vec::new(), range }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cloud::aws::instancetype::devices;
    use crate::operator::settings::AwsFeatureGates;

    fn class(value: Option<&str>) -> EC2NodeClass {
        let spec = json!({"amiFamily": "AL2023"});
        let mut class = EC2NodeClass::new("c", serde_json::from_value(spec).unwrap());
        let annotated = value.map(|v| (NVIDIA_CONSUMABLE_CAPACITY.to_owned(), v.to_owned()));
        class.metadata.annotations = Some(annotated.into_iter().collect());
        class
    }

    #[test]
    fn the_annotation_has_the_modes_of_the_driver() {
        let of = |value| Sharing::of(&class(value));
        for none in [None, Some(""), Some("disabled")] {
            assert_eq!(of(none), Ok(None), "{none:?}");
        }
        assert_eq!(of(Some("memory")), Ok(Some(Sharing::Memory)));
        assert_eq!(of(Some("unlimited")), Ok(Some(Sharing::Unlimited)));
        assert_eq!(of(Some("4")), Ok(Some(Sharing::Shares(4))));
        for wrong in ["0", "-1", "Memory", "1.5", "on"] {
            let error = of(Some(wrong)).unwrap_err();
            assert!(error.starts_with(&format!("{wrong:?} is not one of ")), "{error}");
        }
    }

    #[test]
    fn a_shared_gpu_has_the_amounts_that_claims_take_of_it() {
        let gates = AwsFeatureGates { dra_nvidia_gpu: true, ..AwsFeatureGates::default() };
        let gpu = |sharing| devices::of("g6.xlarge", gates, sharing)[0].devices[0].clone();
        let alone = gpu(None);
        let key = |name: &str| qualified(name, "gpu.nvidia.com");
        let whole = alone.capacity[&key("memory")].value;
        assert!(!alone.shared && alone.capacity[&key("memory")].policy.is_none());
        let taken = |sharing, name: &str, asked| {
            let gpu = gpu(Some(sharing));
            assert!(gpu.shared);
            gpu.capacity.get(&key(name)).map(|c| c.consumed(asked))
        };
        assert_eq!(taken(Sharing::Memory, "memory", None), Some(Some(whole)));
        assert_eq!(taken(Sharing::Memory, "memory", Some(1)), Some(Some(MEBI)), "whole mebibytes");
        assert_eq!(taken(Sharing::Unlimited, "memory", None), Some(Some(0)));
        assert_eq!(taken(Sharing::Unlimited, "memory", Some(whole + 1)), Some(None));
        assert_eq!(taken(Sharing::Unlimited, "shares", None), None);
        assert_eq!(taken(Sharing::Shares(4), "shares", None), Some(Some(ONE)));
        assert_eq!(taken(Sharing::Shares(4), "shares", Some(4 * ONE)), Some(Some(4 * ONE)));
        assert_eq!(taken(Sharing::Shares(4), "shares", Some(5 * ONE)), Some(None));
        assert_eq!(taken(Sharing::Shares(4), "memory", None), Some(Some(0)));
        assert_eq!(alone.attributes, gpu(Some(Sharing::Memory)).attributes);
    }
}
