//! Whether instances of a node class can be of a type at all.

use super::info::{Info, Network};
use super::requirements::compatible_with_class;
use crate::api::v1::{EC2NodeClass, NetworkInterface};
use crate::cloud::aws::placementgroup::PlacementGroup;

/// True when the type has all that the node class asks of a machine.
pub(super) fn compatible(
    info: &Info,
    class: &EC2NodeClass,
    group: Option<&PlacementGroup>,
) -> bool {
    let spec = &class.spec;
    let nested = spec.cpu_options.as_ref().and_then(|o| o.nested_virtualization.as_deref());
    let nested_ok = nested != Some("enabled")
        || info
            .processor_info
            .as_ref()
            .is_some_and(|p| p.supported_features.iter().any(|f| f == "nested-virtualization"));
    let strategies = &info.placement_group_info.supported_strategies;
    let interfaces = spec.network_interfaces.as_deref().unwrap_or_default();
    compatible_with_class(&info.instance_type, class)
        && nested_ok
        && (!class.wants_enclaves() || info.nitro_enclaves_support.as_deref() == Some("supported"))
        && group.is_none_or(|g| strategies.contains(&g.strategy))
        // EC2 has configurable connection tracking on Nitro instances only.
        && (spec.connection_tracking.is_none() || info.hypervisor.as_deref() == Some("nitro"))
        && (interfaces.is_empty()
            || info.network_info.as_ref().is_some_and(|n| has_room(n, class, interfaces)))
}

/// True when the type's network cards take all interfaces.
fn has_room(network: &Network, class: &EC2NodeClass, interfaces: &[NetworkInterface]) -> bool {
    let prefixes = i64::from(class.spec.ip_prefix_count.unwrap_or(0));
    let fabric = interfaces.iter().filter(|i| i.interface_type == "efa-only").count();
    let adapters = network.efa_info.as_ref().map_or(0, |e| e.maximum_efa_interfaces);
    !matches!(network.ena_support.as_str(), "" | "unsupported")
        && interfaces.iter().all(|i| {
            let card = i64::from(i.network_card_index);
            card < network.network_cards.len() as i64
                && network.network_cards.iter().any(|c| {
                    c.network_card_index == card
                        && c.maximum_network_interfaces > i64::from(i.device_index)
                })
        })
        // A prefix takes the place of a secondary address, and the primary address stays.
        && (prefixes <= 0 || prefixes < network.ipv4_addresses_per_interface)
        && fabric as i64 <= adapters
}
