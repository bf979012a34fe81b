//! Network facts: bandwidth, addresses for pods, branch interfaces.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::info::Info;

/// Types whose published baseline bandwidth the rule below does not give, or may not give, in
/// Mbit/s; nothing for those whose figure is not published.
static BANDWIDTHS: LazyLock<HashMap<&'static str, Option<i64>>> =
    LazyLock::new(|| table(include_str!("../../../../data/network-bandwidth.csv")));

/// What the VPC resource controller, which makes branch interfaces and hands out addresses to
/// Windows pods, knows of each type. It does neither on types that it does not know.
static LIMITS: LazyLock<HashMap<&'static str, Limits>> = LazyLock::new(|| {
    let text: &'static str = include_str!("../../../../data/network-limits.csv");
    let limits = |line: &'static str| {
        let mut cells = line.split(',');
        let name = cells.next()?;
        let mut number = || cells.next()?.parse().ok();
        Some((name, Limits { branches: number()?, addresses: number()? }))
    };
    text.lines().skip(1).filter_map(limits).collect()
});

/// Limits of a type's network interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Limits {
    /// Branch interfaces; 0 where there is no trunking.
    branches: i64,
    /// IPv4 addresses of each interface.
    addresses: i64,
}

fn limits(info: &Info) -> Limits {
    LIMITS.get(info.instance_type.as_str()).copied().unwrap_or_default()
}

/// Names and numbers of a file with a heading; `data/README.md` says where it comes from.
fn table(text: &'static str) -> HashMap<&'static str, Option<i64>> {
    text.lines()
        .skip(1)
        .filter_map(|line| line.split_once(','))
        .map(|(name, number)| (name, number.trim().parse().ok()))
        .collect()
}

/// Baseline bandwidth in Mbit/s; `None` where EC2 has only a word such as "Moderate".
#[must_use]
pub fn bandwidth(info: &Info) -> Option<i64> {
    if let Some(known) = BANDWIDTHS.get(info.instance_type.as_str()) {
        return *known;
    }
    let network = info.network_info.as_ref()?;
    let advertised = gigabits(&network.network_performance)?;
    let gbps = match network.network_cards.as_slice() {
        // With several cards, EC2 gives the baseline of each; what is advertised is their sum.
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
    // Each interface keeps one address for itself. Two pods, the VPC CNI's and kube-proxy's, use
    // the host's network and need none.
    usable * (addresses - 1) + 2
}

/// Branch interfaces for pods with security groups of their own; 0 where there is no trunking.
#[must_use]
pub fn branch_interfaces(info: &Info) -> i64 {
    limits(info).branches
}

/// Addresses for Windows pods: those of one interface but its own.
#[must_use]
pub fn windows_addresses(info: &Info) -> i64 {
    (limits(info).addresses - 1).max(0)
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
        assert_eq!(BANDWIDTHS["i7ie.48xlarge"], Some(100_000));
        assert_eq!(BANDWIDTHS["r9g.large"], None);
        assert_eq!(LIMITS["p5.48xlarge"].branches, 120);
        assert!(LIMITS.len() > 1400);
    }

    #[test]
    fn the_bandwidth_of_every_type_is_the_published_figure_or_unknown() {
        let published = table(include_str!("../../../../tests/data/network-bandwidth.csv"));
        let catalog = super::super::tests::catalog();
        assert!(catalog.len() > 1300 && published.len() > 1300);
        let differs = |i: &Info| {
            let want = published.get(i.instance_type.as_str()).copied().flatten();
            (bandwidth(i) != want).then(|| (i.instance_type.clone(), bandwidth(i), want))
        };
        assert_eq!(catalog.iter().filter_map(differs).collect::<Vec<_>>(), []);
        // Types that the catalog lacks have their figure whatever EC2 describes.
        let known: std::collections::HashSet<_> =
            catalog.iter().map(|i| i.instance_type.as_str()).collect();
        for (name, want) in published.iter().filter(|(name, _)| !known.contains(*name)) {
            let info = Info { instance_type: (*name).to_owned(), ..Info::default() };
            assert_eq!(bandwidth(&info), *want, "{name}");
        }
    }

    #[test]
    fn types_that_the_vpc_resource_controller_does_not_know_have_none_of_its_interfaces() {
        let of = |name: &str| {
            let info = Info { instance_type: name.to_owned(), ..Info::default() };
            (branch_interfaces(&info), windows_addresses(&info))
        };
        assert_eq!(of("hpc6a.48xlarge"), (0, 0));
        assert_eq!(of("x99.large"), (0, 0));
        assert_eq!(of("m5.large"), (9, 9));
        assert_eq!(of("t3.medium"), (0, 5));
    }
}
