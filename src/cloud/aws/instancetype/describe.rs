//! Reading instance types and their zones from EC2.

use std::collections::{BTreeSet, HashMap};

use aws_sdk_ec2::types::LocationType;

use super::info::Info;
use crate::cloud::aws::clients::Clients;
use crate::cloud::aws::errors::AwsError;
use crate::cloud::aws::select::filter;

/// Every type that today's images run on: hardware virtualization, 64 bits.
pub(super) async fn types(clients: &Clients) -> Result<Vec<Info>, AwsError> {
    let mut pages = clients
        .ec2
        .describe_instance_types()
        .filters(filter("supported-virtualization-type", vec!["hvm".to_owned()]))
        .filters(filter(
            "processor-info.supported-architecture",
            vec!["x86_64".to_owned(), "arm64".to_owned()],
        ))
        .into_paginator()
        .page_size(100)
        .send();
    let mut types = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| AwsError::new("DescribeInstanceTypes", &e))?;
        types.extend(page.instance_types().iter().map(Info::from));
    }
    Ok(types)
}

/// Zones by type.
///
/// # Errors
/// When EC2 cannot be asked.
pub(super) async fn offerings(
    clients: &Clients,
) -> Result<HashMap<String, BTreeSet<String>>, AwsError> {
    let mut pages = clients
        .ec2
        .describe_instance_type_offerings()
        .location_type(LocationType::AvailabilityZone)
        .into_paginator()
        .page_size(1000)
        .send();
    let mut zones_of: HashMap<String, BTreeSet<String>> = HashMap::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| AwsError::new("DescribeInstanceTypeOfferings", &e))?;
        for offering in page.instance_type_offerings() {
            if let (Some(kind), Some(zone)) = (offering.instance_type(), offering.location()) {
                zones_of.entry(kind.as_str().to_owned()).or_default().insert(zone.to_owned());
            }
        }
    }
    Ok(zones_of)
}
