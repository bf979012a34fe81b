//! The body of a launch template as JSON, in the form that the AWS command line takes and shows.

use aws_sdk_ec2::types::{
    LaunchTemplateBlockDeviceMappingRequest, LaunchTemplateInstanceMetadataOptionsRequest,
    LaunchTemplateInstanceNetworkInterfaceSpecificationRequest as Interface,
    LaunchTemplatePlacementRequest, LaunchTemplateTagSpecificationRequest,
    RequestLaunchTemplateData,
};
use serde_json::{Map, Value, json};

/// Everything that is set, by EC2's names; user data stays in base64.
#[must_use]
pub fn body(data: &RequestLaunchTemplateData) -> Value {
    let list = |items: Vec<Value>| (!items.is_empty()).then_some(Value::Array(items));
    let reservation = data.capacity_reservation_specification().map(|r| {
        let target = r.capacity_reservation_target();
        object([
            (
                "CapacityReservationPreference",
                r.capacity_reservation_preference().map(|p| json!(p.as_str())),
            ),
            (
                "CapacityReservationTarget",
                target.map(|t| json!({"CapacityReservationId": t.capacity_reservation_id()})),
            ),
        ])
    });
    let market = data.instance_market_options().and_then(|m| m.market_type());
    let nested = data.cpu_options().and_then(|c| c.nested_virtualization());
    object([
        ("ImageId", data.image_id().map(Into::into)),
        ("IamInstanceProfile", data.iam_instance_profile().map(|p| json!({"Name": p.name()}))),
        ("BlockDeviceMappings", list(data.block_device_mappings().iter().map(device).collect())),
        ("NetworkInterfaces", list(data.network_interfaces().iter().map(interface).collect())),
        ("Monitoring", data.monitoring().map(|m| json!({"Enabled": m.enabled()}))),
        ("MetadataOptions", data.metadata_options().map(metadata)),
        ("Placement", data.placement().map(placement)),
        ("EnclaveOptions", data.enclave_options().map(|e| json!({"Enabled": e.enabled()}))),
        ("CpuOptions", nested.map(|n| json!({"NestedVirtualization": n.as_str()}))),
        ("CapacityReservationSpecification", reservation),
        ("InstanceMarketOptions", market.map(|m| json!({"MarketType": m.as_str()}))),
        ("TagSpecifications", list(data.tag_specifications().iter().map(tags).collect())),
        ("UserData", data.user_data().map(Into::into)),
    ])
}

/// An object of what is there.
fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let present = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(present.collect::<Map<_, _>>())
}

fn device(device: &LaunchTemplateBlockDeviceMappingRequest) -> Value {
    let ebs = device.ebs().map(|e| {
        object([
            ("DeleteOnTermination", e.delete_on_termination().map(Into::into)),
            ("Encrypted", e.encrypted().map(Into::into)),
            ("Iops", e.iops().map(Into::into)),
            ("KmsKeyId", e.kms_key_id().map(Into::into)),
            ("SnapshotId", e.snapshot_id().map(Into::into)),
            ("Throughput", e.throughput().map(Into::into)),
            ("VolumeInitializationRate", e.volume_initialization_rate().map(Into::into)),
            ("VolumeSize", e.volume_size().map(Into::into)),
            ("VolumeType", e.volume_type().map(|t| json!(t.as_str()))),
        ])
    });
    object([("DeviceName", device.device_name().map(Into::into)), ("Ebs", ebs)])
}

fn interface(interface: &Interface) -> Value {
    let tracking = interface.connection_tracking_specification().map(|t| {
        object([
            ("TcpEstablishedTimeout", t.tcp_established_timeout().map(Into::into)),
            ("UdpStreamTimeout", t.udp_stream_timeout().map(Into::into)),
            ("UdpTimeout", t.udp_timeout().map(Into::into)),
        ])
    });
    object([
        ("NetworkCardIndex", interface.network_card_index().map(Into::into)),
        ("DeviceIndex", interface.device_index().map(Into::into)),
        ("InterfaceType", interface.interface_type().map(Into::into)),
        ("Groups", Some(json!(interface.groups()))),
        ("AssociatePublicIpAddress", interface.associate_public_ip_address().map(Into::into)),
        ("Ipv4PrefixCount", interface.ipv4_prefix_count().map(Into::into)),
        ("Ipv6PrefixCount", interface.ipv6_prefix_count().map(Into::into)),
        ("Ipv6AddressCount", interface.ipv6_address_count().map(Into::into)),
        ("PrimaryIpv6", interface.primary_ipv6().map(Into::into)),
        ("ConnectionTrackingSpecification", tracking),
    ])
}

fn metadata(options: &LaunchTemplateInstanceMetadataOptionsRequest) -> Value {
    object([
        ("HttpEndpoint", options.http_endpoint().map(|v| json!(v.as_str()))),
        ("HttpProtocolIpv6", options.http_protocol_ipv6().map(|v| json!(v.as_str()))),
        ("HttpPutResponseHopLimit", options.http_put_response_hop_limit().map(Into::into)),
        ("HttpTokens", options.http_tokens().map(|v| json!(v.as_str()))),
        ("InstanceMetadataTags", options.instance_metadata_tags().map(|v| json!(v.as_str()))),
    ])
}

fn placement(placement: &LaunchTemplatePlacementRequest) -> Value {
    object([
        ("Tenancy", placement.tenancy().map(|t| json!(t.as_str()))),
        ("GroupId", placement.group_id().map(Into::into)),
        ("PartitionNumber", placement.partition_number().map(Into::into)),
    ])
}

fn tags(specification: &LaunchTemplateTagSpecificationRequest) -> Value {
    let tags = specification.tags().iter();
    let list: Vec<Value> = tags.map(|t| json!({"Key": t.key(), "Value": t.value()})).collect();
    object([
        ("ResourceType", specification.resource_type().map(|r| json!(r.as_str()))),
        ("Tags", Some(Value::Array(list))),
    ])
}
