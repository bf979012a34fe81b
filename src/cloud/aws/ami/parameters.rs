//! The public SSM parameters that name a family's images.

use super::AmiFamily;
use crate::api::labels;
use crate::api::v1::{AmiRequirement, Operator};
use crate::cloud::aws::ssm::{Kind, Parameter};

/// What kind of machine an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Neither GPU nor accelerator.
    Standard,
    /// With an NVIDIA GPU.
    Nvidia,
    /// With a Neuron accelerator.
    Neuron,
    /// Windows of a family.
    Windows(AmiFamily),
}

impl Variant {
    /// What an instance type must meet, the architecture aside.
    #[must_use]
    pub fn requirements(self) -> Vec<AmiRequirement> {
        let entry = |key: &str, operator, values: &[&str]| AmiRequirement {
            key: key.to_owned(),
            operator,
            values: values.iter().map(|v| (*v).to_owned()).collect(),
        };
        match self {
            Self::Standard => vec![
                entry(labels::INSTANCE_ACCELERATOR_COUNT, Operator::DoesNotExist, &[]),
                entry(labels::INSTANCE_GPU_COUNT, Operator::DoesNotExist, &[]),
            ],
            Self::Nvidia => vec![entry(labels::INSTANCE_GPU_COUNT, Operator::Exists, &[])],
            Self::Neuron => vec![entry(labels::INSTANCE_ACCELERATOR_COUNT, Operator::Exists, &[])],
            Self::Windows(family) => vec![
                entry(labels::OS, Operator::In, &["windows"]),
                entry(
                    labels::WINDOWS_BUILD,
                    Operator::In,
                    &[family.windows_build().unwrap_or_default()],
                ),
            ],
        }
    }
}

/// SSM parameters that name a family's images, with what each image is for.
#[must_use]
pub fn ssm_parameters(
    family: AmiFamily,
    kubernetes: &str,
    version: &str,
) -> Vec<(Parameter, Vec<Variant>)> {
    let kind =
        // Windows parameters name no release: AWS moves them like those of `latest`.
        if version == "latest" || family.is_windows() { Kind::Mutable } else { Kind::Immutable };
    paths(family, kubernetes, version)
        .into_iter()
        .map(|(name, variants)| (Parameter { name, kind }, variants))
        .collect()
}

fn paths(family: AmiFamily, kubernetes: &str, version: &str) -> Vec<(String, Vec<Variant>)> {
    use Variant::{Neuron, Nvidia, Standard, Windows};
    let latest = version == "latest";
    let eks = format!("/aws/service/eks/optimized-ami/{kubernetes}");
    match family {
        // One parameter for both kinds of accelerators: the GPU image of AL2 has the drivers of
        // NVIDIA and Neuron.
        AmiFamily::Al2 => [
            ("amazon-linux-2", "node", vec![Standard]),
            ("amazon-linux-2-arm64", "arm64-node", vec![Standard]),
            ("amazon-linux-2-gpu", "gpu-node", vec![Neuron, Nvidia]),
        ]
        .into_iter()
        .map(|(folder, infix, variants)| {
            let image = if latest {
                "recommended".to_owned()
            } else {
                format!("amazon-eks-{infix}-{kubernetes}-{version}")
            };
            (format!("{eks}/{folder}/{image}/image_id"), variants)
        })
        .collect(),
        AmiFamily::Al2023 => [
            ("x86_64", "standard", Standard),
            ("x86_64", "nvidia", Nvidia),
            ("x86_64", "neuron", Neuron),
            ("arm64", "standard", Standard),
            ("arm64", "nvidia", Nvidia),
        ]
        .into_iter()
        .map(|(arch, name, variant)| {
            let image = if latest {
                "recommended".to_owned()
            } else {
                format!("amazon-eks-node-al2023-{arch}-{name}-{kubernetes}-{version}")
            };
            (format!("{eks}/amazon-linux-2023/{arch}/{name}/{image}/image_id"), vec![variant])
        })
        .collect(),
        AmiFamily::Bottlerocket => {
            // Bottlerocket's releases are known as `v1.20.1`, but the parameters leave the `v` out.
            let release = version.trim_start_matches('v');
            [
                ("", "x86_64", vec![Standard, Neuron]),
                ("", "arm64", vec![Standard]),
                ("-nvidia", "x86_64", vec![Nvidia]),
                ("-nvidia", "arm64", vec![Nvidia]),
            ]
            .into_iter()
            .map(|(flavour, arch, variants)| {
                let base = format!("/aws/service/bottlerocket/aws-k8s-{kubernetes}{flavour}");
                (format!("{base}/{arch}/{release}/image_id"), variants)
            })
            .collect()
        }
        // Only the latest Windows image has a public parameter. The CRD refuses other versions.
        AmiFamily::Windows2019 | AmiFamily::Windows2022 | AmiFamily::Windows2025 => {
            let year = &family.as_str()["Windows".len()..];
            vec![(
                format!(
                    "/aws/service/ami-windows-latest/Windows_Server-{year}-English-Core-EKS_Optimized-{kubernetes}/image_id"
                ),
                vec![Windows(family)],
            )]
        }
        AmiFamily::Custom => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(family: AmiFamily, kubernetes: &str, version: &str) -> Vec<String> {
        let list = ssm_parameters(family, kubernetes, version);
        list.into_iter().map(|(p, _)| p.name).collect()
    }

    #[test]
    fn parameters_follow_version_and_variant() {
        assert_eq!(
            names(AmiFamily::Al2023, "1.35", "latest")[0],
            "/aws/service/eks/optimized-ami/1.35/amazon-linux-2023/x86_64/standard/recommended/image_id"
        );
        assert_eq!(
            names(AmiFamily::Al2023, "1.35", "v20261101")[4],
            "/aws/service/eks/optimized-ami/1.35/amazon-linux-2023/arm64/nvidia/amazon-eks-node-al2023-arm64-nvidia-1.35-v20261101/image_id"
        );
        assert_eq!(
            names(AmiFamily::Al2, "1.30", "v20240807"),
            [
                "/aws/service/eks/optimized-ami/1.30/amazon-linux-2/amazon-eks-node-1.30-v20240807/image_id",
                "/aws/service/eks/optimized-ami/1.30/amazon-linux-2-arm64/amazon-eks-arm64-node-1.30-v20240807/image_id",
                "/aws/service/eks/optimized-ami/1.30/amazon-linux-2-gpu/amazon-eks-gpu-node-1.30-v20240807/image_id",
            ]
        );
        assert_eq!(
            names(AmiFamily::Bottlerocket, "1.35", "v1.20.3"),
            [
                "/aws/service/bottlerocket/aws-k8s-1.35/x86_64/1.20.3/image_id",
                "/aws/service/bottlerocket/aws-k8s-1.35/arm64/1.20.3/image_id",
                "/aws/service/bottlerocket/aws-k8s-1.35-nvidia/x86_64/1.20.3/image_id",
                "/aws/service/bottlerocket/aws-k8s-1.35-nvidia/arm64/1.20.3/image_id",
            ]
        );
        assert_eq!(
            names(AmiFamily::Windows2022, "1.35", "latest"),
            [
                "/aws/service/ami-windows-latest/Windows_Server-2022-English-Core-EKS_Optimized-1.35/image_id"
            ]
        );
        assert!(names(AmiFamily::Custom, "1.35", "latest").is_empty());
    }

    #[test]
    fn only_the_latest_images_may_move() {
        let kind = |family, version| ssm_parameters(family, "1.35", version)[0].0.kind;
        assert_eq!(kind(AmiFamily::Al2023, "latest"), Kind::Mutable);
        assert_eq!(kind(AmiFamily::Al2023, "v20261101"), Kind::Immutable);
        assert_eq!(kind(AmiFamily::Windows2019, "latest"), Kind::Mutable);
    }
}
