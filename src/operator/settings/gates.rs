//! Feature gates: what is not on for everybody.

use super::SettingsError;
use super::flags::parse_bool;

/// Features that can be switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureGates {
    /// Nodes that are unhealthy for long are replaced (alpha).
    pub node_repair: bool,
    /// Capacity reservations are used (beta).
    pub reserved_capacity: bool,
    /// Spot nodes are consolidated to cheaper spot nodes (alpha).
    pub spot_to_spot_consolidation: bool,
    /// NodeOverlays change prices and capacities (alpha).
    pub node_overlay: bool,
    /// NodePools may have replicas (alpha).
    pub static_capacity: bool,
    /// CapacityBuffers keep room free (alpha).
    pub capacity_buffer: bool,
    /// A drifted node in a capacity reservation may go before its replacement comes (alpha).
    pub terminate_first_drift: bool,
    /// So may an unhealthy one; needs NodeRepair (alpha).
    pub terminate_first_repair: bool,
    /// Pods of nodes that consolidation would remove get a low deletion cost (alpha).
    pub pod_deletion_cost_management: bool,
}

impl Default for FeatureGates {
    fn default() -> Self {
        Self {
            node_repair: false,
            reserved_capacity: true,
            spot_to_spot_consolidation: false,
            node_overlay: false,
            static_capacity: false,
            capacity_buffer: false,
            terminate_first_drift: false,
            terminate_first_repair: false,
            pod_deletion_cost_management: false,
        }
    }
}

impl FeatureGates {
    /// The gates, and the names among them that no gate has; those left out keep their defaults.
    pub(super) fn parse(text: &str) -> Result<(Self, Vec<String>), SettingsError> {
        let (mut gates, mut unknown) = (Self::default(), Vec::new());
        for (key, on) in pairs(text)? {
            match key {
                "NodeRepair" => gates.node_repair = on,
                "ReservedCapacity" => gates.reserved_capacity = on,
                "SpotToSpotConsolidation" => gates.spot_to_spot_consolidation = on,
                "NodeOverlay" => gates.node_overlay = on,
                "StaticCapacity" => gates.static_capacity = on,
                "CapacityBuffer" => gates.capacity_buffer = on,
                "TerminateFirstDrift" => gates.terminate_first_drift = on,
                "TerminateFirstRepair" => gates.terminate_first_repair = on,
                "PodDeletionCostManagement" => gates.pod_deletion_cost_management = on,
                // On for everybody since 1.0; manifests of 0.37 still name it.
                "Drift" => {}
                _ => unknown.push(key.to_owned()),
            }
        }
        Ok((gates, unknown))
    }
}

/// Features of the EC2 provider that can be switched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AwsFeatureGates {
    /// CEL expressions in an EC2NodeClass's `spec.kubelet` (alpha).
    pub node_class_cel: bool,
    /// Instance types come with the devices that NVIDIA's DRA driver publishes on them (alpha).
    pub dra_nvidia_gpu: bool,
    /// Instance types come with the EFA devices that the DRA network driver publishes (alpha).
    pub dra_efa: bool,
    /// Repair may reboot an instance instead of replacing it; needs NodeRepair (alpha).
    pub reboot_for_repair: bool,
}

impl AwsFeatureGates {
    /// Every feature that an EC2NodeClass can use is on, for who looks at a class without a controller.
    pub const ALL: Self =
        Self { node_class_cel: true, dra_nvidia_gpu: true, dra_efa: true, reboot_for_repair: true };

    /// The gates, and the names among them that no gate has; those left out keep their defaults.
    pub(super) fn parse(text: &str) -> Result<(Self, Vec<String>), SettingsError> {
        let (mut gates, mut unknown) = (Self::default(), Vec::new());
        for (key, on) in pairs(text)? {
            match key {
                "NodeClassCEL" => gates.node_class_cel = on,
                "DRANVIDIAGPU" => gates.dra_nvidia_gpu = on,
                "DRAEFA" => gates.dra_efa = on,
                "RebootForRepair" => gates.reboot_for_repair = on,
                _ => unknown.push(key.to_owned()),
            }
        }
        Ok((gates, unknown))
    }

    /// Either gate makes devices known that pods' resource claims can be held against.
    #[must_use]
    pub fn dynamic_resources(self) -> bool {
        self.dra_nvidia_gpu || self.dra_efa
    }
}

/// `Name=bool` pairs, comma separated.
fn pairs(text: &str) -> Result<Vec<(&str, bool)>, SettingsError> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                SettingsError::Invalid(format!(
                    "parsing feature gates, malformed pair, expect string=bool, got {pair:?}"
                ))
            })?;
            let (key, value) = (key.trim(), value.trim());
            let on = parse_bool(value).ok_or_else(|| {
                SettingsError::Invalid(format!(
                    "parsing feature gates, invalid value of {key}: {value:?}, expected true or false"
                ))
            })?;
            Ok((key, on))
        })
        .collect()
}
