//! Network interfaces of a launch template.

use aws_sdk_ec2::types::{
    ConnectionTrackingSpecificationRequest,
    LaunchTemplateInstanceNetworkInterfaceSpecificationRequest as Interface,
    builders::LaunchTemplateInstanceNetworkInterfaceSpecificationRequestBuilder as Builder,
};

use super::Cluster;
use crate::api::v1::EC2NodeClass;

/// An interface that carries fabric traffic and no IP address.
const EFA_ONLY: &str = "efa-only";

/// The node class's own interfaces, else one a fabric adapter, else a single plain one.
pub(super) fn interfaces(cluster: &Cluster, class: &EC2NodeClass, efa: i64) -> Vec<Interface> {
    let own = class.spec.network_interfaces.as_deref().unwrap_or_default();
    if !own.is_empty() {
        return own
            .iter()
            .map(|i| {
                let request = with_groups(class)
                    .network_card_index(i.network_card_index)
                    .device_index(i.device_index)
                    .interface_type(&i.interface_type);
                if i.interface_type == EFA_ONLY {
                    return request.build();
                }
                addressed(request, cluster, class).build()
            })
            .collect();
    }
    let efa = i32::try_from(efa).unwrap_or(0);
    if efa > 0 {
        return (0..efa)
            .map(|card| {
                let request = with_groups(class)
                    .network_card_index(card)
                    // Device index 0 is the primary interface, on the first card; EC2 wants 1 on
                    // every other card.
                    .device_index(i32::from(card != 0))
                    .interface_type("efa");
                addressed(request, cluster, class).build()
            })
            .collect();
    }
    vec![addressed(with_groups(class).device_index(0), cluster, class).build()]
}

fn with_groups(class: &EC2NodeClass) -> Builder {
    let groups = class.status.iter().flat_map(|s| &s.security_groups);
    Interface::builder().set_groups(Some(groups.map(|g| g.id.clone()).collect()))
}

/// Everything about addresses and connections.
fn addressed(request: Builder, cluster: &Cluster, class: &EC2NodeClass) -> Builder {
    let prefixes = class.spec.ip_prefix_count;
    let request = request
        .set_associate_public_ip_address(class.spec.associate_public_ip_address)
        .set_connection_tracking_specification(tracking(class));
    if cluster.is_ipv6() {
        request.set_ipv6_prefix_count(prefixes).ipv6_address_count(1).primary_ipv6(true)
    } else {
        request.set_ipv4_prefix_count(prefixes)
    }
}

fn tracking(class: &EC2NodeClass) -> Option<ConnectionTrackingSpecificationRequest> {
    let own = class.spec.connection_tracking.as_ref()?;
    let (tcp, stream, udp) = (own.tcp_established_timeout, own.udp_stream_timeout, own.udp_timeout);
    (tcp.is_some() || stream.is_some() || udp.is_some()).then(|| {
        ConnectionTrackingSpecificationRequest::builder()
            .set_tcp_established_timeout(tcp)
            .set_udp_stream_timeout(stream)
            .set_udp_timeout(udp)
            .build()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn class(spec: serde_json::Value) -> EC2NodeClass {
        let mut class = EC2NodeClass::new("c", serde_json::from_value(spec).unwrap());
        class.status =
            Some(serde_json::from_value(json!({"securityGroups": [{"id": "sg-1"}]})).unwrap());
        class
    }

    fn cluster(dns: &str) -> Cluster {
        Cluster { dns_ip: Some(dns.to_owned()), ..Cluster::default() }
    }

    #[test]
    fn a_plain_node_has_one_interface() {
        let class = class(json!({"ipPrefixCount": 2, "associatePublicIPAddress": false}));
        let list = interfaces(&cluster("10.0.0.10"), &class, 0);
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].device_index(), Some(0));
        assert_eq!(list[0].groups(), ["sg-1"]);
        assert_eq!(list[0].associate_public_ip_address(), Some(false));
        assert_eq!((list[0].ipv4_prefix_count(), list[0].primary_ipv6()), (Some(2), None));
        assert_eq!((list[0].network_card_index(), list[0].interface_type()), (None, None));
        assert!(list[0].connection_tracking_specification().is_none());
        let list = interfaces(&cluster("fd00::a"), &class, 0);
        assert_eq!(list[0].ipv6_prefix_count(), Some(2));
        assert_eq!((list[0].ipv6_address_count(), list[0].primary_ipv6()), (Some(1), Some(true)));
        assert_eq!(list[0].ipv4_prefix_count(), None);
    }

    #[test]
    fn fabric_adapters_take_a_card_each() {
        let class = class(json!({"connectionTracking": {"udpTimeout": 30}}));
        let list = interfaces(&cluster("10.0.0.10"), &class, 3);
        let places: Vec<_> =
            list.iter().map(|i| (i.network_card_index(), i.device_index())).collect();
        assert_eq!(places, [(Some(0), Some(0)), (Some(1), Some(1)), (Some(2), Some(1))]);
        for interface in &list {
            assert_eq!(interface.interface_type(), Some("efa"));
            let tracking = interface.connection_tracking_specification().unwrap();
            assert_eq!(tracking.udp_timeout(), Some(30));
        }
    }

    #[test]
    fn the_classs_own_interfaces_win() {
        let class = class(json!({"associatePublicIPAddress": true, "networkInterfaces": [
            {"networkCardIndex": 0, "deviceIndex": 0, "interfaceType": "interface"},
            {"networkCardIndex": 1, "deviceIndex": 1, "interfaceType": "efa-only"}]}));
        let list = interfaces(&cluster("10.0.0.10"), &class, 3);
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].associate_public_ip_address(), Some(true));
        assert_eq!(list[1].associate_public_ip_address(), None);
        assert_eq!((list[1].network_card_index(), list[1].device_index()), (Some(1), Some(1)));
        assert_eq!(list[1].groups(), ["sg-1"]);
    }
}
