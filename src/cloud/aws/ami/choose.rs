//! Which of the found images are used: one for each kind of machine.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{ArchitectureValues, Image};
use jiff::Timestamp;

use super::parameters::Variant;
use crate::api::labels;
use crate::api::v1::{Ami, AmiRequirement, Operator};

struct Candidate {
    ami: Ami,
    created: i64,
}

impl Candidate {
    /// What wins over another image for the same machines.
    fn rank(&self) -> (bool, i64, &str) {
        let current = self.ami.deprecated.is_none();
        (current, self.created, self.ami.name.as_deref().unwrap_or_default())
    }
}

/// One image per set of requirements: the newest that is not deprecated, all newest first.
///
/// Images of an architecture that Kubernetes has no name for are left out.
pub(super) fn choose(
    images: impl Iterator<Item = Image>,
    known: &BTreeMap<String, Vec<Variant>>,
    now: Timestamp,
) -> Vec<Ami> {
    let mut winners: Vec<Candidate> = Vec::new();
    for image in images {
        let Some(arch) = arch_of(&image) else { continue };
        let id = image.image_id().unwrap_or_default();
        let variants = known.get(id).map_or_else(
            // An image found by tags, name or id suits every machine of its architecture.
            || vec![Vec::new()],
            |list| list.iter().map(|v| v.requirements()).collect(),
        );
        for requirements in variants {
            let candidate = candidate(&image, arch, requirements, now);
            match winners.iter_mut().find(|w| w.ami.requirements == candidate.ami.requirements) {
                Some(winner) if candidate.rank() > winner.rank() => *winner = candidate,
                Some(_) => {}
                None => winners.push(candidate),
            }
        }
    }
    winners.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.ami.id.cmp(&b.ami.id)));
    winners.into_iter().map(|c| c.ami).collect()
}

fn candidate(
    image: &Image,
    arch: &str,
    mut requirements: Vec<AmiRequirement>,
    now: Timestamp,
) -> Candidate {
    requirements.push(AmiRequirement {
        key: labels::ARCH.to_owned(),
        operator: Operator::In,
        values: vec![arch.to_owned()],
    });
    // A fixed order, in which equal sets compare equal.
    requirements.sort_by(|a, b| a.key.len().cmp(&b.key.len()).then_with(|| a.key.cmp(&b.key)));
    Candidate {
        ami: Ami {
            deprecated: is_deprecated(image, now).then_some(true),
            id: image.image_id().unwrap_or_default().to_owned(),
            name: image.name().map(str::to_owned),
            requirements,
        },
        created: seconds(image.creation_date()).unwrap_or(i64::MIN),
    }
}

fn arch_of(image: &Image) -> Option<&'static str> {
    match image.architecture().map(ArchitectureValues::as_str) {
        Some("x86_64") => Some(labels::ARCH_AMD64),
        Some("arm64") => Some(labels::ARCH_ARM64),
        _ => None,
    }
}

/// True once the image's deprecation time has come.
pub(super) fn is_deprecated(image: &Image, now: Timestamp) -> bool {
    seconds(image.deprecation_time()).is_some_and(|at| at <= now.as_second())
}

fn seconds(text: Option<&str>) -> Option<i64> {
    text?.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, arch: &str, created: &str, deprecated: Option<&str>) -> Image {
        Image::builder()
            .image_id(id)
            .name(id)
            .architecture(arch.into())
            .creation_date(created)
            .set_deprecation_time(deprecated.map(str::to_owned))
            .build()
    }

    fn ids(images: Vec<Image>, known: &[(&str, Vec<Variant>)]) -> Vec<String> {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let known = known.iter().map(|(id, v)| ((*id).to_owned(), v.clone())).collect();
        choose(images.into_iter(), &known, now).into_iter().map(|a| a.id).collect()
    }

    #[test]
    fn the_newest_image_that_is_not_deprecated_wins() {
        let old = image("ami-old", "x86_64", "2024-01-01T00:00:00Z", None);
        let new = image("ami-new", "x86_64", "2025-01-01T00:00:00Z", None);
        let gone =
            image("ami-gone", "x86_64", "2025-06-01T00:00:00Z", Some("2025-12-01T00:00:00Z"));
        assert_eq!(ids(vec![old, new, gone.clone()], &[]), ["ami-new"]);
        // A deprecated image is better than none.
        assert_eq!(ids(vec![gone], &[]), ["ami-gone"]);
    }

    #[test]
    fn equal_dates_are_decided_by_the_greater_name() {
        let at = "2025-01-01T00:00:00Z";
        let images =
            || vec![image("ami-b", "x86_64", at, None), image("ami-a", "x86_64", at, None)];
        assert_eq!(ids(images(), &[]), ["ami-b"]);
        assert_eq!(ids(images().into_iter().rev().collect(), &[]), ["ami-b"]);
    }

    #[test]
    fn each_kind_of_machine_has_its_image() {
        let list = ids(
            vec![
                image("ami-std", "x86_64", "2025-01-01T00:00:00Z", None),
                image("ami-arm", "arm64", "2025-03-01T00:00:00Z", None),
                image("ami-gpu", "x86_64", "2025-02-01T00:00:00Z", None),
                image("ami-odd", "i386", "2025-02-01T00:00:00Z", None),
            ],
            &[
                ("ami-std", vec![Variant::Standard]),
                ("ami-arm", vec![Variant::Standard]),
                ("ami-gpu", vec![Variant::Nvidia, Variant::Neuron]),
            ],
        );
        assert_eq!(list, ["ami-arm", "ami-gpu", "ami-gpu", "ami-std"]);
    }

    #[test]
    fn requirements_are_sorted_by_the_length_of_their_key() {
        let at = "2025-01-01T00:00:00Z";
        let known = [("a".to_owned(), vec![Variant::Standard])].into();
        let list = choose([image("a", "x86_64", at, None)].into_iter(), &known, Timestamp::MIN);
        let keys: Vec<&str> = list[0].requirements.iter().map(|r| r.key.as_str()).collect();
        assert_eq!(
            keys,
            [labels::ARCH, labels::INSTANCE_GPU_COUNT, labels::INSTANCE_ACCELERATOR_COUNT]
        );
    }
}
