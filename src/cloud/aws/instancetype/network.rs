//! Network facts: bandwidth, addresses for pods, branch interfaces.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::info::Info;

/// Types whose baseline bandwidth the rule below does not give, in Mbit/s.
static BANDWIDTHS: LazyLock<HashMap<&'static str, i64>> =
    LazyLock::new(|| table(include_str!("../../../../data/network-bandwidth.csv")));

/// Types whose number of branch interfaces the rule below does not give.
static BRANCHES: LazyLock<HashMap<&'static str, i64>> =
    LazyLock::new(|| table(include_str!("../../../../data/branch-interfaces.csv")));

/// Names and numbers of a file with a heading; `data/README.md` tells where it comes from.
fn table(text: &'static str) -> HashMap<&'static str, i64> {
    text.lines()
        .skip(1)
        .filter_map(|line| line.split_once(','))
        .filter_map(|(name, number)| Some((name, number.trim().parse().ok()?)))
        .collect()
}

/// Baseline bandwidth in Mbit/s; nothing where EC2 has only a word such as "Moderate".
#[must_use]
pub fn bandwidth(info: &Info) -> Option<i64> {
    if let Some(known) = BANDWIDTHS.get(info.instance_type.as_str()) {
        return Some(*known);
    }
    let network = info.network_info.as_ref()?;
    let advertised = gigabits(&network.network_performance)?;
    let gbps = match network.network_cards.as_slice() {
        [] | [_] => info.default_card()?.baseline_bandwidth_in_gbps,
        _ => advertised,
    };
    let mbps = (gbps * 1000.0).round() as i64;
    (mbps > 0).then_some(mbps)
}

/// Reads `10 Gigabit`, `Up to 12.5 Gigabit` or `4x 100 Gigabit`.
fn gigabits(text: &str) -> Option<f64> {
    let mut words = text.strip_suffix(" Gigabit")?.split(' ').rev();
    let each: f64 = words.next()?.parse().ok()?;
    let times = words.next().and_then(|w| w.strip_suffix('x')?.parse::<f64>().ok());
    Some(times.unwrap_or(1.0) * each)
}

/// Pods that the default network card has addresses for, with `taken` of its interfaces away.
#[must_use]
pub fn eni_limited_pods(info: &Info, taken: i64) -> i64 {
    let interfaces = info.default_card().map_or(0, |c| c.maximum_network_interfaces);
    let usable = interfaces - taken;
    if usable <= 0 {
        return 0;
    }
    let addresses = info.network_info.as_ref().map_or(0, |n| n.ipv4_addresses_per_interface);
    usable * (addresses - 1) + 2
}

/// Families on Nitro that cannot trunk interfaces.
const NO_TRUNKING: &[&str] = &["t1", "t2", "t3", "t3a", "t4g", "u-6tb1"];

/// Branch interfaces for pods with security groups of their own; 0 where there is no trunking.
#[must_use]
pub fn branch_interfaces(info: &Info) -> i64 {
    if let Some(known) = BRANCHES.get(info.instance_type.as_str()) {
        return *known;
    }
    let family = info.family();
    if info.hypervisor.as_deref() == Some("xen") || NO_TRUNKING.contains(&family) {
        return 0;
    }
    if family.starts_with("mac") {
        return 6;
    }
    let Some(network) = info.network_info.as_ref() else { return 0 };
    let mut cores = info.v_cpu_info.default;
    if family.contains("-flex") {
        cores /= 2;
    }
    let total = match cores {
        ..=1 => 6,
        2 => 12,
        3..=4 => 22,
        5..=8 => 42,
        9..=16 => 62,
        17..=48 if is_older(info) => 62,
        17..=32 => 92,
        _ => 122,
    };
    let interfaces: i64 = network.network_cards.iter().map(|c| c.maximum_network_interfaces).sum();
    (total - interfaces).clamp(0, 120)
}

/// Graviton, and everything up to the fifth generation.
fn is_older(info: &Info) -> bool {
    let arm = info
        .processor_info
        .as_ref()
        .is_some_and(|p| p.supported_architectures.iter().any(|a| a == "arm64"));
    let (_, generation) = super::requirements::category_and_generation(&info.instance_type);
    arm || generation.and_then(|g| g.parse::<i64>().ok()).is_none_or(|g| g <= 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advertised_bandwidth_is_read() {
        for (text, want) in [
            ("10 Gigabit", Some(10.0)),
            ("Up to 12.5 Gigabit", Some(12.5)),
            ("8x 400 Gigabit", Some(3200.0)),
            ("Low to Moderate", None),
            ("High", None),
        ] {
            assert_eq!(gigabits(text), want, "{text}");
        }
    }

    #[test]
    fn the_tables_are_read() {
        assert_eq!(BANDWIDTHS["i7ie.48xlarge"], 100_000);
        assert_eq!(BRANCHES["p5.48xlarge"], 120);
        assert!(BRANCHES.len() > 100);
    }
}
