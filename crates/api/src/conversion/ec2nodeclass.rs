//! EC2NodeClasses.

use serde_json::{Value, json};

use super::nodes::put_before_status;
use super::{
    ALIAS_VERSION, STORED_VERSION_MIGRATED, UBUNTU, annotation, put, remove_annotation,
    set_annotation_text, take,
};

/// Families whose images an alias can name: alias and family.
const ALIASES: &[(&str, &str)] = &[
    ("al2", "AL2"),
    ("al2023", "AL2023"),
    ("bottlerocket", "Bottlerocket"),
    ("windows2019", "Windows2019"),
    ("windows2022", "Windows2022"),
    ("windows2025", "Windows2025"),
];
/// What v1beta1 does not know.
const V1_FIELDS: &[&str] = &[
    "capacityReservationSelectorTerms",
    "connectionTracking",
    "cpuOptions",
    "enclaveOptions",
    "ipPrefixCount",
    "kubelet",
    "networkInterfaces",
    "placementGroupSelector",
];

fn is_empty_list(value: Option<&Value>) -> bool {
    value.is_none_or(|v| v.is_null() || v.as_array().is_some_and(Vec::is_empty))
}

pub(super) fn up(mut object: Value) -> Value {
    object["apiVersion"] = json!("karpenter.k8s.aws/v1");
    let mut spec = take(&mut object, "spec").unwrap_or(json!({}));
    let version = annotation(&object, ALIAS_VERSION).unwrap_or("latest").to_owned();
    remove_annotation(&mut object, ALIAS_VERSION);
    let family = spec["amiFamily"].as_str().unwrap_or_default().to_owned();
    let no_terms = is_empty_list(spec.get("amiSelectorTerms"));
    let alias = ALIASES.iter().find(|(_, f)| *f == family).map(|(a, _)| *a);
    if family == "Ubuntu" {
        let mut marks = vec!["amiFamily"];
        if spec.get("blockDeviceMappings").is_none_or(Value::is_null) {
            marks.push("blockDeviceMappings");
            put(
                &mut spec,
                "blockDeviceMappings",
                Some(json!([{"deviceName": "/dev/sda1", "rootVolume": true,
                    "ebs": {"encrypted": true, "volumeType": "gp3", "volumeSize": "20Gi"}}])),
            );
        }
        if no_terms {
            marks.push("incompatible");
            // v1 has no Ubuntu family and wants terms: an id that selects nothing keeps the object
            // valid without launching anything.
            put(&mut spec, "amiSelectorTerms", Some(json!([{"id": "ami-placeholder"}])));
        }
        put(&mut spec, "amiFamily", Some(json!("AL2")));
        set_annotation_text(&mut object, UBUNTU, marks.join(","));
    } else if let Some(alias) = alias {
        if no_terms {
            // The alias names the family, and its version decides about the images.
            take(&mut spec, "amiFamily");
            let term = json!([{"alias": format!("{alias}@{version}")}]);
            put(&mut spec, "amiSelectorTerms", Some(term));
        }
    } else {
        put(&mut spec, "amiFamily", Some(json!("Custom")));
        if no_terms {
            put(&mut spec, "amiSelectorTerms", Some(json!([])));
        }
    }
    put_before_status(object, spec)
}

pub(super) fn down(mut object: Value) -> Value {
    object["apiVersion"] = json!("karpenter.k8s.aws/v1beta1");
    let mut spec = take(&mut object, "spec").unwrap_or(json!({}));
    let ubuntu: Option<Vec<String>> =
        annotation(&object, UBUNTU).map(|t| t.split(',').map(str::to_owned).collect());
    for key in [UBUNTU, STORED_VERSION_MIGRATED] {
        remove_annotation(&mut object, key);
    }
    let terms = take(&mut spec, "amiSelectorTerms");
    let mut terms: Vec<Value> = match terms {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    let alias = terms.iter().find_map(|t| t["alias"].as_str()).map(str::to_owned);
    let given = spec["amiFamily"].as_str().map(str::to_owned);
    let family = if let Some(marks) = &ubuntu {
        if marks.iter().any(|m| m == "incompatible") {
            terms.clear();
        }
        if marks.iter().any(|m| m == "blockDeviceMappings") {
            take(&mut spec, "blockDeviceMappings");
        }
        "Ubuntu".to_owned()
    } else if let Some(given) = given {
        given
    } else {
        let of_alias = alias.as_deref().and_then(|a| a.split('@').next()).unwrap_or_default();
        let family = ALIASES.iter().find(|(a, _)| *a == of_alias).map(|(_, f)| *f);
        family.unwrap_or("Custom").to_owned()
    };
    put(&mut spec, "amiFamily", Some(json!(family)));
    let version = alias.as_deref().and_then(|a| a.split_once('@')).map(|(_, v)| v);
    if let Some(version) = version.filter(|v| *v != "latest") {
        set_annotation_text(&mut object, ALIAS_VERSION, version.to_owned());
    }
    for term in &mut terms {
        take(term, "alias");
        take(term, "ssmParameter");
    }
    // A term of which v1beta1 knows no field would select every image there.
    terms.retain(|t| t.as_object().is_some_and(|t| !t.is_empty()));
    if !terms.is_empty() {
        put(&mut spec, "amiSelectorTerms", Some(Value::Array(terms)));
    }
    for field in V1_FIELDS {
        take(&mut spec, field);
    }
    let devices = spec.get_mut("blockDeviceMappings").and_then(Value::as_array_mut);
    for device in devices.into_iter().flatten() {
        if let Some(ebs) = device.get_mut("ebs") {
            take(ebs, "volumeInitializationRate");
        }
    }
    put_before_status(object, spec)
}
