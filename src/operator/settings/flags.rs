//! The table of flags, and their syntax: that of Go's flag package, which users' manifests are written for.

use std::collections::BTreeMap;
use std::iter::Peekable;

use super::SettingsError;
use crate::api::duration::parse_go;

mod table;

use table::FLAGS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Int,
    Float,
    Bool,
    Time,
}

struct Flag {
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
    /// The chart's value that sets it; empty where there is none.
    chart: &'static str,
}

const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
    chart: &'static str,
) -> Flag {
    Flag { name, kind, default, help, chart }
}

/// Default of `--feature-gates`.
pub(super) const GATES: &str = "NodeRepair=false,ReservedCapacity=true,SpotToSpotConsolidation=false,NodeOverlay=false,StaticCapacity=false,CapacityBuffer=false,TerminateFirstDrift=false,TerminateFirstRepair=false,PodDeletionCostManagement=false";

/// Default of `--aws-feature-gates`.
const AWS_GATES: &str = "NodeClassCEL=false,DRANVIDIAGPU=false,DRAEFA=false,RebootForRepair=false";

/// Environment variables of earlier releases' settings that are gone.
const GONE: &[&str] = &[
    "ASSUME_ROLE_ARN",
    "ASSUME_ROLE_DURATION",
    "AWS_ENABLE_ENI_LIMITED_POD_DENSITY",
    "AWS_ENABLE_POD_ENI",
    "CLUSTER_CA_BUNDLE_FILE",
    "LEADER_ELECT",
    "WEBHOOK_METRICS_PORT",
];

/// The values of all flags, each readable as its kind.
pub(super) struct Values {
    values: BTreeMap<&'static str, String>,
    /// Flags of the command line that no setting has.
    pub(super) unknown: Vec<String>,
}

impl Values {
    /// Reads flags (without the program's name) over an environment over defaults.
    pub(super) fn read(
        args: &[String],
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let (mut values, mut unknown) = (BTreeMap::new(), Vec::new());
        for f in FLAGS {
            // Karpenter falls back to the default for an unreadable variable, but refuses such a
            // flag.
            let from_env = env(&env_name(f.name)).filter(|v| f.kind.check_env(v));
            values.insert(f.name, from_env.unwrap_or_else(|| f.default.to_owned()));
        }
        let mut rest = args.iter().peekable();
        while let Some(arg) = rest.next() {
            match next_flag(arg, &mut rest)? {
                Next::End => break,
                Next::Unknown(name) => unknown.push(name.to_owned()),
                Next::Flag(f, value) => {
                    if let Err(expected) = f.kind.check_flag(&value) {
                        return Err(SettingsError::Flags(format!(
                            "invalid value {value:?} for flag -{}: {value:?} is not a valid value, must be {expected}",
                            f.name
                        )));
                    }
                    values.insert(f.name, value);
                }
            }
        }
        Ok(Self { values, unknown })
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.values.get(name).cloned().unwrap_or_default()
    }

    pub(super) fn int(&self, name: &str) -> i64 {
        parse_int(&self.text(name)).unwrap_or_default()
    }

    pub(super) fn float(&self, name: &str) -> f64 {
        self.text(name).parse().unwrap_or_default()
    }

    pub(super) fn boolean(&self, name: &str) -> bool {
        parse_bool(&self.text(name)).unwrap_or_default()
    }

    pub(super) fn time(&self, name: &str) -> std::time::Duration {
        parse_go(&self.text(name)).unwrap_or_default()
    }
}

/// What an argument of the command line is.
enum Next<'a> {
    Flag(&'static Flag, String),
    Unknown(&'a str),
    /// No flag: the flags end here.
    End,
}

fn next_flag<'a>(
    arg: &'a str,
    rest: &mut Peekable<impl Iterator<Item = &'a String>>,
) -> Result<Next<'a>, SettingsError> {
    if arg.len() < 2 || !arg.starts_with('-') || arg == "--" {
        return Ok(Next::End);
    }
    let body = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).unwrap_or(arg);
    if body.starts_with(['-', '=']) {
        return Err(SettingsError::Flags(format!("bad flag syntax: {arg}")));
    }
    let (name, value) = body.split_once('=').map_or((body, None), |(n, v)| (n, Some(v)));
    let Some(f) = FLAGS.iter().find(|f| f.name == name) else {
        // Its value, if it stands by itself; a switch of the unknown kind is followed by a flag.
        if value.is_none() {
            let _ = rest.next_if(|next| !next.starts_with('-'));
        }
        return Ok(Next::Unknown(name));
    };
    let value = match (value, f.kind) {
        (Some(value), _) => value.to_owned(),
        (None, Kind::Bool) => "true".to_owned(),
        (None, _) => rest
            .next()
            .cloned()
            .ok_or_else(|| SettingsError::Flags(format!("flag needs an argument: -{name}")))?,
    };
    Ok(Next::Flag(f, value))
}

/// The setting with the most similar name, if any is similar at all.
fn nearest(name: &str) -> Option<&'static str> {
    let all = FLAGS.iter().map(|f| (strsim::damerau_levenshtein(name, f.name), f.name));
    // One wrong letter in four at most: beyond that a hint misleads more often than it helps.
    all.filter(|(distance, _)| distance * 4 <= name.len()).min().map(|(_, name)| name)
}

/// What to log about a flag that no setting has.
pub(super) fn unknown_flag(name: &str) -> String {
    let hint = nearest(name).map(|n| format!(", did you mean --{n}?")).unwrap_or_default();
    format!("flag --{name} is not known and has no effect{hint}")
}

/// What to log about environment variables that look like settings and are none: those of earlier
/// releases, and misspelled ones.
pub fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let names: Vec<String> = names.collect();
    // Kubernetes gives each Service of the namespace a handful of variables, NAME_SERVICE_HOST and others.
    let services: Vec<&str> =
        names.iter().filter_map(|n| n.strip_suffix("_SERVICE_HOST")).collect();
    let of_service = |name: &str| {
        let rest = |service: &&str| name.strip_prefix(*service);
        let mut rests = services.iter().filter_map(rest);
        rests.any(|rest| rest.starts_with("_SERVICE_") || rest.starts_with("_PORT"))
    };
    let mut found: Vec<String> = names
        .iter()
        .filter(|name| name.contains('_') && FLAGS.iter().all(|f| env_name(f.name) != **name))
        .filter(|name| !of_service(name))
        .filter_map(|name| {
            if GONE.contains(&name.as_str()) {
                return Some(format!(
                    "environment variable {name} is of an earlier release and has no effect"
                ));
            }
            let near = nearest(&name.to_lowercase().replace('_', "-"))?;
            Some(format!(
                "environment variable {name} is not known and has no effect, did you mean {}?",
                env_name(near)
            ))
        })
        .collect();
    found.sort_unstable();
    found
}

impl Kind {
    /// True for a text that an environment variable may hold: decimal numbers, Go's many bools.
    fn check_env(self, text: &str) -> bool {
        match self {
            Self::Int => text.parse::<i64>().is_ok(),
            Self::Bool => parse_bool(text).is_some(),
            _ => self.check_flag(text).is_ok(),
        }
    }

    /// Checks a text that a flag may hold; the error says what is expected.
    fn check_flag(self, text: &str) -> Result<(), &'static str> {
        let (valid, expected) = match self {
            Self::Text => (true, "text"),
            Self::Int => (parse_int(text).is_some(), "an integer"),
            Self::Float => (text.parse::<f64>().is_ok(), "a number"),
            Self::Bool => (matches!(text, "true" | "false"), "true or false"),
            Self::Time => (parse_go(text).is_ok(), "a duration such as 10s or 1m30s"),
        };
        if valid { Ok(()) } else { Err(expected) }
    }
}

/// Go's integer literals: a sign, a base prefix, underscores between digits.
fn parse_int(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, body) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        _ if lower.len() > 1 && lower.starts_with('0') => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let misplaced = body.is_empty() || body.ends_with('_') || body.contains("__");
    if misplaced || (radix == 10 && body.starts_with('_')) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{}", body.replace('_', "")), radix).ok()
}

/// The words for truth and falsehood that Go knows.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// The environment variable of a flag.
pub(super) fn env_name(flag: &str) -> String {
    flag.to_uppercase().replace('-', "_")
}

/// Each setting's environment variable and the chart's value that sets it, where one does.
pub fn chart_values() -> impl Iterator<Item = (String, &'static str)> {
    FLAGS.iter().filter(|f| !f.chart.is_empty()).map(|f| (env_name(f.name), f.chart))
}

/// The table of the reference page.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from("| flag | default | chart value | |\n|---|---|---|---|\n");
    for f in FLAGS {
        let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
        // A list of gates would be one long word.
        let default = code(f.default).replace(',', "`, `");
        text.push_str(&format!("| `{}` | {default} | {} | {} |\n", f.name, code(f.chart), f.help));
    }
    text
}

/// The usage text.
#[must_use]
pub fn usage() -> String {
    let mut text = String::from(
        "Settings of the controller: --flag=value over ENVIRONMENT_VARIABLE over default\n",
    );
    for f in FLAGS {
        let default = if f.default.is_empty() { "\"\"" } else { f.default };
        text.push_str(&format!(
            "  --{} ({})\n        {} (default {default})\n",
            f.name,
            env_name(f.name),
            f.help,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_go_literals() {
        let good = [("0x1F", 31), ("1_000", 1000), ("-5", -5), ("0b11", 3), ("0o17", 15), ("0", 0)];
        for (text, value) in good {
            assert_eq!(parse_int(text), Some(value), "{text}");
        }
        for text in ["", "-", "1__0", "_1", "1_", "0x", "1.5", "x"] {
            assert_eq!(parse_int(text), None, "{text}");
        }
    }

    #[test]
    fn variables_that_look_like_settings_are_named() {
        let names = [
            "PATH",
            "HOME_DIR",
            "KUBERNETES_SERVICE_HOST",
            "KARPENTER_SERVICE_HOST",
            "KARPENTER_PORT_8080_TCP",
            "CLUSTER_NAME",
            "BATCH_IDLE_DURATIONS",
            "ASSUME_ROLE_ARN",
            "SYSTEM_NAMESPACE",
            "KUBERNETES_MIN_VERSION",
            "AWS_REGION",
            "AWS_ROLE_ARN",
        ];
        let found = unknown_variables(names.iter().map(|n| (*n).to_owned()));
        assert_eq!(
            found,
            [
                "environment variable ASSUME_ROLE_ARN is of an earlier release and has no effect",
                "environment variable BATCH_IDLE_DURATIONS is not known and has no effect, did you mean BATCH_IDLE_DURATION?",
            ]
        );
    }

    #[test]
    fn defaults_are_values_of_their_kind() {
        for f in FLAGS {
            assert_eq!(f.kind.check_flag(f.default), Ok(()), "{}", f.name);
        }
    }
}
