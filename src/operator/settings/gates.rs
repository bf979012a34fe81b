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
        }
    }
}

impl FeatureGates {
    /// Gates left out keep their defaults, unknown ones are ignored.
    pub(super) fn parse(text: &str) -> Result<Self, SettingsError> {
        let mut gates = Self::default();
        for (key, on) in pairs(text)? {
            match key {
                "NodeRepair" => gates.node_repair = on,
                "ReservedCapacity" => gates.reserved_capacity = on,
                "SpotToSpotConsolidation" => gates.spot_to_spot_consolidation = on,
                "NodeOverlay" => gates.node_overlay = on,
                "StaticCapacity" => gates.static_capacity = on,
                "CapacityBuffer" => gates.capacity_buffer = on,
                _ => {}
            }
        }
        Ok(gates)
    }
}

/// Features of the EC2 provider that can be switched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AwsFeatureGates {
    /// CEL expressions in an EC2NodeClass's `spec.kubelet` (alpha).
    pub node_class_cel: bool,
}

impl AwsFeatureGates {
    /// Gates left out keep their defaults, unknown ones are ignored.
    pub(super) fn parse(text: &str) -> Result<Self, SettingsError> {
        let mut gates = Self::default();
        for (key, on) in pairs(text)? {
            if key == "NodeClassCEL" {
                gates.node_class_cel = on;
            }
        }
        Ok(gates)
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
