//! The body of a launch template, as EC2 takes it.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{
    CapacityReservationPreference, CapacityReservationTarget,
    LaunchTemplateBlockDeviceMappingRequest, LaunchTemplateCapacityReservationSpecificationRequest,
    LaunchTemplateCpuOptionsRequest, LaunchTemplateEbsBlockDeviceRequest,
    LaunchTemplateEnclaveOptionsRequest, LaunchTemplateHttpTokensState,
    LaunchTemplateIamInstanceProfileSpecificationRequest,
    LaunchTemplateInstanceMarketOptionsRequest, LaunchTemplateInstanceMetadataEndpointState,
    LaunchTemplateInstanceMetadataOptionsRequest, LaunchTemplateInstanceMetadataProtocolIpv6,
    LaunchTemplateInstanceMetadataTagsState, LaunchTemplatePlacementRequest,
    LaunchTemplateTagSpecificationRequest, LaunchTemplatesMonitoringRequest, MarketType,
    NestedVirtualizationSpecification, RequestLaunchTemplateData, ResourceType, Tenancy,
    VolumeType,
};

use super::super::ami::AmiFamily;
use super::super::tags::to_ec2;
use super::network;
use super::options::{Group, Launch, Reservation};
use super::{Cluster, PREFIX};
use crate::api::labels;
use crate::api::v1::{BlockDevice, EC2NodeClass, MetadataOptions};
use crate::scheduling::quantity;

/// Regions whose EC2 does not know the metadata option for IPv6.
const WITHOUT_METADATA_IPV6: &[&str] = &[
    "us-iso-east-1",
    "us-iso-west-1",
    "us-isob-east-1",
    "us-isob-west-1",
    "us-isof-south-1",
    "us-isof-east-1",
];

/// The name is made from everything that the template contains.
///
/// User data is added by hand: the request's own debug form hides it.
pub(super) fn name(
    cluster: &Cluster,
    class: &EC2NodeClass,
    data: &RequestLaunchTemplateData,
    user_data: &str,
) -> String {
    let class = class.metadata.name.as_deref().unwrap_or("");
    let text = format!("{}|{class}|{user_data}|{data:?}", cluster.name);
    let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes());
    format!("{PREFIX}{}", id.as_u64_pair().0)
}

/// The whole body.
pub(super) fn data(
    cluster: &Cluster,
    launch: &Launch<'_>,
    group: &Group<'_>,
    user_data: &str,
) -> RequestLaunchTemplateData {
    let class = launch.class;
    let spec = &class.spec;
    let profile = class.status.as_ref().and_then(|s| s.instance_profile.as_ref());
    let mut data = RequestLaunchTemplateData::builder()
        .image_id(&group.ami.id)
        .user_data(user_data)
        .set_block_device_mappings(block_devices(class))
        .set_iam_instance_profile(profile.map(|name| {
            LaunchTemplateIamInstanceProfileSpecificationRequest::builder().name(name).build()
        }))
        .monitoring(
            LaunchTemplatesMonitoringRequest::builder()
                .enabled(spec.detailed_monitoring.unwrap_or(false))
                .build(),
        )
        .metadata_options(metadata_options(cluster, class))
        .set_cpu_options(cpu_options(class))
        .set_network_interfaces(Some(network::interfaces(cluster, class, group.efa)))
        .placement(placement(launch))
        .enclave_options(
            LaunchTemplateEnclaveOptionsRequest::builder().enabled(launch.enclave()).build(),
        )
        .tag_specifications(tags(ResourceType::NetworkInterface, launch.tags));
    // EC2 refuses tags for a resource that the launch does not create.
    if launch.capacity_type == labels::CAPACITY_SPOT {
        data = data.tag_specifications(tags(ResourceType::SpotInstancesRequest, launch.tags));
    }
    if cluster.reserved_capacity {
        let reservation = group.reservation.as_ref();
        data = data
            .capacity_reservation_specification(reservation_specification(reservation))
            .set_instance_market_options(market_options(reservation));
    }
    data.build()
}

fn tags(
    kind: ResourceType,
    tags: &BTreeMap<String, String>,
) -> LaunchTemplateTagSpecificationRequest {
    LaunchTemplateTagSpecificationRequest::builder()
        .resource_type(kind)
        .set_tags(Some(to_ec2(tags)))
        .build()
}

fn cpu_options(class: &EC2NodeClass) -> Option<LaunchTemplateCpuOptionsRequest> {
    let nested = class.spec.cpu_options.as_ref()?.nested_virtualization.as_deref()?;
    Some(
        LaunchTemplateCpuOptionsRequest::builder()
            .nested_virtualization(NestedVirtualizationSpecification::from(nested))
            .build(),
    )
}

fn placement(launch: &Launch<'_>) -> LaunchTemplatePlacementRequest {
    LaunchTemplatePlacementRequest::builder()
        .tenancy(Tenancy::from(launch.tenancy))
        .set_group_id(launch.placement.map(|p| p.id.clone()))
        .set_partition_number(Some(launch.partition()).filter(|n| *n != 0))
        .build()
}

/// Launches outside a reservation must not use up open ones.
fn reservation_specification(
    reservation: Option<&Reservation>,
) -> LaunchTemplateCapacityReservationSpecificationRequest {
    let specification = LaunchTemplateCapacityReservationSpecificationRequest::builder();
    match reservation {
        None => specification.capacity_reservation_preference(CapacityReservationPreference::None),
        Some(reservation) => specification
            .capacity_reservation_preference(
                CapacityReservationPreference::CapacityReservationsOnly,
            )
            .capacity_reservation_target(
                CapacityReservationTarget::builder()
                    .capacity_reservation_id(&reservation.id)
                    .build(),
            ),
    }
    .build()
}

fn market_options(
    reservation: Option<&Reservation>,
) -> Option<LaunchTemplateInstanceMarketOptionsRequest> {
    let market = match reservation? {
        r if r.kind == "capacity-block" => MarketType::CapacityBlock,
        r if r.interruptible => MarketType::InterruptibleCapacityReservation,
        _ => return None,
    };
    Some(LaunchTemplateInstanceMarketOptionsRequest::builder().market_type(market).build())
}

fn block_devices(class: &EC2NodeClass) -> Option<Vec<LaunchTemplateBlockDeviceMappingRequest>> {
    let own = class.spec.block_device_mappings.clone().filter(|l| !l.is_empty());
    let mappings = own.unwrap_or_else(|| AmiFamily::of(class).default_block_devices());
    let list: Vec<_> = mappings
        .iter()
        .map(|m| {
            LaunchTemplateBlockDeviceMappingRequest::builder()
                .set_device_name(m.device_name.clone())
                .set_ebs(m.ebs.as_ref().map(volume))
                .build()
        })
        .collect();
    (!list.is_empty()).then_some(list)
}

fn volume(ebs: &BlockDevice) -> LaunchTemplateEbsBlockDeviceRequest {
    // EC2 refuses 0; in manifests it means "not set".
    let non_zero = |n: Option<i64>| n.filter(|n| *n != 0).and_then(|n| i32::try_from(n).ok());
    LaunchTemplateEbsBlockDeviceRequest::builder()
        .set_delete_on_termination(ebs.delete_on_termination)
        .set_encrypted(ebs.encrypted)
        .set_volume_type(ebs.volume_type.as_deref().map(VolumeType::from))
        .set_iops(non_zero(ebs.iops))
        .set_throughput(non_zero(ebs.throughput))
        .set_kms_key_id(ebs.kms_key_id.clone())
        .set_snapshot_id(ebs.snapshot_id.clone())
        .set_volume_initialization_rate(ebs.volume_initialization_rate)
        .set_volume_size(ebs.volume_size.as_deref().and_then(gib))
        .build()
}

/// A quantity in GiB, rounded up.
fn gib(size: &str) -> Option<i32> {
    let bytes = quantity::parse(size).ok()?.value();
    i32::try_from((bytes + (1 << 30) - 1) >> 30).ok()
}

fn metadata_options(
    cluster: &Cluster,
    class: &EC2NodeClass,
) -> LaunchTemplateInstanceMetadataOptionsRequest {
    let options = class.spec.metadata_options.clone().unwrap_or_else(|| MetadataOptions {
        http_endpoint: Some("disabled".to_owned()),
        http_protocol_ipv6: Some(if cluster.is_ipv6() { "enabled" } else { "disabled" }.to_owned()),
        http_put_response_hop_limit: Some(2),
        http_tokens: Some("required".to_owned()),
    });
    let ipv6 = options
        .http_protocol_ipv6
        .as_deref()
        .filter(|_| !WITHOUT_METADATA_IPV6.contains(&cluster.region.as_str()));
    LaunchTemplateInstanceMetadataOptionsRequest::builder()
        .set_http_endpoint(
            options.http_endpoint.as_deref().map(LaunchTemplateInstanceMetadataEndpointState::from),
        )
        .set_http_protocol_ipv6(ipv6.map(LaunchTemplateInstanceMetadataProtocolIpv6::from))
        .set_http_put_response_hop_limit(
            options.http_put_response_hop_limit.and_then(|n| i32::try_from(n).ok()),
        )
        .set_http_tokens(options.http_tokens.as_deref().map(LaunchTemplateHttpTokensState::from))
        // Set explicitly, because the account's default may be on: tags in the metadata allow no
        // `/` in keys, so that every launch with Karpenter's tags would fail.
        .instance_metadata_tags(LaunchTemplateInstanceMetadataTagsState::Disabled)
        .build()
}

#[cfg(test)]
mod tests {
    use super::gib;

    #[test]
    fn volumes_are_rounded_up_to_whole_gib() {
        for (size, want) in [("20Gi", 20), ("20G", 19), ("1T", 932), ("1", 1), ("0", 0)] {
            assert_eq!(gib(size), Some(want), "{size}");
        }
        assert_eq!(gib("many"), None);
    }
}
