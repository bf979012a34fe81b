//! Which image a group's nodes run, and of which family it is.

use serde_json::{Value, json};

use super::group::Group;
use super::{template, userdata};
use crate::cloud::aws::ami::AmiFamily;

/// Reads the image and the user data of a launch template whose nodes join the cluster by themselves,
/// or, where the family is settled already, of one that EKS completes.
pub fn read(group: &mut Group, image: Option<&str>, user_data: Option<&str>) {
    let settled = family(group);
    let text = user_data.and_then(|text| template::decoded(group, text));
    let by_path = image.and_then(|i| i.strip_prefix("resolve:ssm:")).and_then(family_of_path);
    let found = settled
        .or(by_path)
        .or_else(|| text.as_deref().map(userdata::family))
        .unwrap_or(AmiFamily::Custom);
    // EKS adds the joining part itself where it knows the family of a managed node group.
    let joins = settled.is_none();
    if let Some(image) = image {
        let term = match image.strip_prefix("resolve:ssm:") {
            // A version of the parameter, or a label of it, may follow.
            Some(path) => json!({"ssmParameter": path.split(':').next().unwrap_or(path)}),
            None => json!({"id": image}),
        };
        let mut terms = vec![term];
        let more = std::mem::take(&mut group.images).into_iter().map(|id| json!({"id": id}));
        terms.extend(more.filter(|t| !terms.contains(t)).collect::<Vec<_>>());
        group.set("amiSelectorTerms", terms);
    }
    if joins {
        group.set("amiFamily", found.as_str());
    }
    if let Some(text) = text {
        userdata::read(group, found, &text, joins);
    }
}

/// The family that the group's class has so far.
fn family(group: &Group) -> Option<AmiFamily> {
    AmiFamily::parse(group.class.get("amiFamily")?.as_str()?)
}

fn family_of_path(path: &str) -> Option<AmiFamily> {
    // The first match counts: `amazon-linux-2` is part of the paths of AL2023, too.
    const MARKS: [(&str, AmiFamily); 6] = [
        ("amazon-linux-2023", AmiFamily::Al2023),
        ("amazon-linux-2", AmiFamily::Al2),
        ("bottlerocket", AmiFamily::Bottlerocket),
        ("Windows_Server-2019", AmiFamily::Windows2019),
        ("Windows_Server-2022", AmiFamily::Windows2022),
        ("Windows_Server-2025", AmiFamily::Windows2025),
    ];
    MARKS.iter().find(|(mark, _)| path.contains(mark)).map(|(_, family)| *family)
}

/// Sets family and images for the AMI type of a managed node group. `release` is the version of the
/// image, `kubernetes` the minor version of the node group.
pub fn of_type(group: &mut Group, kind: &str, release: &str, kubernetes: &str) {
    let family = match kind {
        t if t.starts_with("AL2023_") => AmiFamily::Al2023,
        t if t.starts_with("AL2_") => AmiFamily::Al2,
        t if t.starts_with("BOTTLEROCKET_") => AmiFamily::Bottlerocket,
        t if t.starts_with("WINDOWS_") && t.contains("2019") => AmiFamily::Windows2019,
        t if t.starts_with("WINDOWS_") && t.contains("2022") => AmiFamily::Windows2022,
        t if t.starts_with("WINDOWS_") && t.contains("2025") => AmiFamily::Windows2025,
        _ => return,
    };
    group.set("amiFamily", family.as_str());
    let term = images(group, family, kind, release, kubernetes);
    group.set("amiSelectorTerms", json!([term]));
}

fn images(
    group: &mut Group,
    family: AmiFamily,
    kind: &str,
    release: &str,
    kubernetes: &str,
) -> Value {
    let arch = if kind.contains("ARM_64") { "arm64" } else { "x86_64" };
    if kind.contains("FIPS") && family == AmiFamily::Bottlerocket {
        let version = release.split('-').next().filter(|v| !v.is_empty()).unwrap_or("latest");
        return json!({"ssmParameter":
            format!("/aws/service/bottlerocket/aws-k8s-{kubernetes}-fips/{arch}/{version}/image_id")});
    }
    if kind.contains("WINDOWS_FULL") {
        let year = &family.as_str()["Windows".len()..];
        return json!({"ssmParameter": format!(
            "/aws/service/ami-windows-latest/Windows_Server-{year}-English-Full-EKS_Optimized-{kubernetes}/image_id")});
    }
    let name = family.as_str().to_ascii_lowercase();
    // `1.31.2-20250103` of Amazon Linux is the image v20250103; `1.19.2-29cc92cc` of Bottlerocket v1.19.2.
    let version = match family {
        AmiFamily::Al2 | AmiFamily::Al2023 => release.rsplit_once('-').map(|(_, date)| date),
        AmiFamily::Bottlerocket => release.split('-').next().filter(|v| !v.is_empty()),
        _ => None,
    };
    match version {
        Some(version) => {
            group.note(format!(
                "release {release}: pinned as {name}@v{version}; set {name}@latest to follow new images"
            ));
            json!({"alias": format!("{name}@v{version}")})
        }
        None => json!({"alias": format!("{name}@latest")}),
    }
}
