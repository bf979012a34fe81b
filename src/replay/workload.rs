//! The form of a workload file, and the load that it describes at a given time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::model::cluster::RUN_FOR;
use crate::simulate::{ScenarioError, read};

const DAY: f64 = 86_400.0;

/// A length of time such as `7d`, `1d6h`, `90m`, `30s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_span(&text).map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "expected a length of time such as 7d, 1d6h, 90m or 30s, found {text:?}"
            ))
        })
    }
}

/// Reads a length of time such as `7d`, `1d6h`, `90m`, `30s`.
#[must_use]
pub fn parse_span(text: &str) -> Option<Duration> {
    let (mut total, mut number) = (0_u64, String::new());
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            number.push(letter);
            continue;
        }
        let unit = match letter {
            'd' => 86_400,
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    (number.is_empty() && !text.is_empty()).then(|| Duration::from_secs(total))
}

/// A workload over days.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workloads {
    /// A short name.
    #[serde(default)]
    pub name: String,
    /// How long it is.
    pub duration: Span,
    /// When it begins; a Monday at midnight UTC unless it says otherwise.
    pub start: Option<Timestamp>,
    /// Seed of whatever is left to chance.
    #[serde(default)]
    pub seed: u64,
    /// How many spot interruptions a spot instance meets per day, on average.
    #[serde(default)]
    pub spot_interruptions_per_day: f64,
    /// What runs on every node.
    #[serde(default)]
    pub daemon_sets: Vec<Daemon>,
    pub workloads: Vec<Workload>,
}

/// A DaemonSet.
#[derive(Clone, Debug, Deserialize)]
pub struct Daemon {
    pub name: String,
    pub requests: BTreeMap<String, Quantity>,
    /// Whatever else its pods are; without it they run on every node.
    pub template: Option<PodTemplateSpec>,
}

/// Label of the workload that pods belong to. Their own labels may be those of others, too.
const WORKLOAD: &str = "model.karpenter.sh/workload";

fn default_namespace() -> String {
    "default".to_owned()
}

/// What a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Kind {
    Deployment,
    Job,
}

/// A Deployment whose replicas follow a curve, or a Job that comes again and again.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    pub name: String,
    #[serde(default = "default_namespace")]
    pub namespace: String,
    pub kind: Kind,
    /// What each pod requests.
    #[serde(default)]
    pub requests: BTreeMap<String, Quantity>,
    /// Whatever else its pods are.
    #[serde(default)]
    pub template: PodTemplateSpec,
    /// Of Deployments.
    pub replicas: Option<Curve>,
    /// Of Deployments.
    pub disruption_budget: Option<Budget>,
    /// Of Jobs.
    pub runs: Option<Runs>,
}

/// Replicas over time: one of `constant`, `steps` and `daily`, with bursts on top.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Curve {
    pub constant: Option<u32>,
    #[serde(default)]
    pub steps: Vec<Step>,
    pub daily: Option<Daily>,
    #[serde(default)]
    pub bursts: Vec<Burst>,
}

/// From a time on.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Step {
    pub at: Span,
    pub replicas: u32,
}

/// A day's curve between a low at night and a high.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Daily {
    pub low: u32,
    pub high: u32,
    /// When the high is, as a time since midnight.
    pub peak: Span,
    /// The share of the high that is reached on Saturdays and Sundays; all of it without.
    pub weekend: Option<f64>,
}

/// More replicas for a while.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Burst {
    pub at: Span,
    #[serde(rename = "for")]
    pub length: Span,
    pub replicas: u32,
}

/// A PodDisruptionBudget: one of the two.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    pub min_available: Option<Value>,
    pub max_unavailable: Option<Value>,
}

/// When a Job comes, and how large it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Runs {
    /// Time of the first.
    pub at: Span,
    /// Time between them; only one without.
    pub every: Option<Span>,
    /// Pods in all.
    pub pods: u32,
    /// Pods at once; all of them without.
    pub parallelism: Option<u32>,
    /// How long each pod runs.
    pub pod_runs_for: Span,
}

impl Workloads {
    /// Reads a workload, YAML or JSON.
    ///
    /// # Errors
    /// Names the place in the document and what was expected there.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let value: Value = serde_saphyr::from_str(text)
            .map_err(|e| ScenarioError::new("", e.to_string().trim_end()))?;
        // Strictly, since a misspelled field would silently replay another workload.
        let read: Self = read::strict(&value, "")?;
        read.check()?;
        Ok(read)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let wrong = |path: String, message: &str| Err(ScenarioError::new(path, message));
        if self.duration.0.is_zero() {
            return wrong("duration".to_owned(), "expected more than nothing");
        }
        let rate = self.spot_interruptions_per_day;
        if !rate.is_finite() || rate < 0.0 {
            let message = format!("expected zero or more, found {rate}");
            return wrong("spotInterruptionsPerDay".to_owned(), &message);
        }
        let mut daemons = BTreeSet::new();
        for (at, one) in self.daemon_sets.iter().enumerate() {
            if one.name.is_empty() || !daemons.insert(&one.name) {
                let message = format!("expected a name of its own, found {:?}", one.name);
                return wrong(format!("daemonSets[{at}].name"), &message);
            }
        }
        let mut names = BTreeSet::new();
        for (at, one) in self.workloads.iter().enumerate() {
            let path = format!("workloads[{at}]");
            if one.name.is_empty() || !names.insert((&one.namespace, &one.name)) {
                let message = format!("expected a name of its own, found {:?}", one.name);
                return wrong(format!("{path}.name"), &message);
            }
            one.check(&path)?;
        }
        Ok(())
    }
}

impl Workload {
    fn check(&self, path: &str) -> Result<(), ScenarioError> {
        let wrong = |field: &str, message: String| {
            Err(ScenarioError::new(format!("{path}.{field}"), message))
        };
        let has_containers =
            self.template.spec.as_ref().is_some_and(|spec| !spec.containers.is_empty());
        if self.requests.is_empty() && !has_containers {
            return wrong("requests", "expected amounts, or a template with containers".to_owned());
        }
        match (self.kind, &self.replicas, &self.runs) {
            (Kind::Deployment, Some(curve), None) => curve.check(&format!("{path}.replicas"))?,
            (Kind::Deployment, None, _) => {
                return wrong("replicas", "expected a curve, as this is a Deployment".to_owned());
            }
            (Kind::Deployment, _, Some(_)) => {
                return wrong("runs", "expected of Jobs only".to_owned());
            }
            (Kind::Job, None, Some(runs)) => {
                if runs.every.is_some_and(|e| e.0.is_zero()) {
                    return wrong("runs.every", "expected more than nothing".to_owned());
                }
            }
            (Kind::Job, _, None) => {
                return wrong("runs", "expected when it runs, as this is a Job".to_owned());
            }
            (Kind::Job, Some(_), _) => {
                return wrong("replicas", "expected of Deployments only".to_owned());
            }
        }
        if let Some(budget) = &self.disruption_budget
            && budget.min_available.is_some() == budget.max_unavailable.is_some()
        {
            let message = "expected one of minAvailable and maxUnavailable".to_owned();
            return wrong("disruptionBudget", message);
        }
        Ok(())
    }

    /// The template of its pods.
    fn template(&self) -> Value {
        template_of(&self.name, &self.requests, &self.template)
    }

    /// The objects that are there from the start, which is so long after a Monday's midnight.
    #[must_use]
    pub fn objects(&self, start: Duration) -> Vec<Value> {
        let Some(curve) = &self.replicas else { return Vec::new() };
        let selector = json!({ "matchLabels": { WORKLOAD: self.name } });
        let metadata = json!({ "name": self.name, "namespace": self.namespace });
        let mut all = vec![json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": { "replicas": curve.at(Duration::ZERO, start), "selector": selector,
                "template": self.template() },
        })];
        if let Some(budget) = &self.disruption_budget {
            let mut spec = json!({ "selector": selector });
            if let Some(least) = &budget.min_available {
                spec["minAvailable"] = least.clone();
            }
            if let Some(most) = &budget.max_unavailable {
                spec["maxUnavailable"] = most.clone();
            }
            all.push(json!({ "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
                "metadata": metadata, "spec": spec }));
        }
        all
    }

    /// The name of the Job's n-th run.
    #[must_use]
    pub fn job_name(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    /// The Job's n-th run.
    #[must_use]
    pub fn job(&self, runs: &Runs, number: usize) -> Value {
        let mut template = self.template();
        template["metadata"]["annotations"][RUN_FOR] =
            json!(runs.pod_runs_for.0.as_secs().to_string());
        template["spec"]["restartPolicy"] = json!("Never");
        json!({ "apiVersion": "batch/v1", "kind": "Job",
            "metadata": { "name": self.job_name(number), "namespace": self.namespace },
            "spec": { "completions": runs.pods, "template": template,
                "parallelism": runs.parallelism.unwrap_or(runs.pods) } })
    }
}

impl Daemon {
    /// The DaemonSet.
    #[must_use]
    pub fn object(&self) -> Value {
        let mut template =
            template_of(&self.name, &self.requests, self.template.as_ref().unwrap_or(&DEFAULT));
        template["spec"]["priorityClassName"] = json!("system-node-critical");
        if self.template.is_none() {
            template["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
        }
        json!({ "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": { "name": self.name, "namespace": "kube-system" },
            "spec": { "selector": { "matchLabels": { WORKLOAD: self.name } },
                "template": template } })
    }
}

static DEFAULT: PodTemplateSpec = PodTemplateSpec { metadata: None, spec: None };

/// The template of a workload's pods: its own with the requests as one container more.
fn template_of(
    name: &str,
    requests: &BTreeMap<String, Quantity>,
    template: &PodTemplateSpec,
) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    let labels = &mut template["metadata"]["labels"];
    labels[WORKLOAD] = json!(name);
    if labels["app"].is_null() {
        labels["app"] = json!(name);
    }
    if !requests.is_empty() {
        let mut containers = template["spec"]["containers"].as_array().cloned().unwrap_or_default();
        containers.push(json!({ "name": "main", "image": "image",
            "resources": { "requests": requests } }));
        template["spec"]["containers"] = json!(containers);
    }
    template
}

impl Curve {
    fn check(&self, path: &str) -> Result<(), ScenarioError> {
        let forms = [self.constant.is_some(), !self.steps.is_empty(), self.daily.is_some()];
        if forms.iter().filter(|f| **f).count() != 1 {
            return Err(ScenarioError::new(path, "expected one of constant, steps and daily"));
        }
        // In ascending order, because `at` takes the last step of the list that has begun.
        for (at, pair) in self.steps.windows(2).enumerate() {
            if pair[1].at <= pair[0].at {
                let message = format!(
                    "expected a time after that of the step before ({:?}), found {:?}",
                    pair[0].at.0, pair[1].at.0
                );
                return Err(ScenarioError::new(format!("{path}.steps[{}].at", at + 1), message));
            }
        }
        let Some(daily) = &self.daily else { return Ok(()) };
        let wrong = |field: &str, message: String| {
            Err(ScenarioError::new(format!("{path}.daily.{field}"), message))
        };
        if daily.high < daily.low {
            let message =
                format!("expected {} or more, as low says, found {}", daily.low, daily.high);
            return wrong("high", message);
        }
        if daily.peak.0.as_secs_f64() >= DAY {
            return wrong("peak", "expected less than a day".to_owned());
        }
        match daily.weekend {
            Some(share) if !(0.0..=1.0).contains(&share) => {
                wrong("weekend", format!("expected a share between 0 and 1, found {share}"))
            }
            _ => Ok(()),
        }
    }

    /// Replicas after some time since the start, which is so long after a Monday's midnight.
    #[must_use]
    pub fn at(&self, time: Duration, start: Duration) -> u32 {
        let base = match (&self.constant, &self.daily) {
            (Some(constant), _) => *constant,
            (None, Some(daily)) => daily.at(start + time),
            _ => self.steps.iter().rev().find(|s| s.at.0 <= time).map_or(0, |s| s.replicas),
        };
        let more = self.bursts.iter().filter(|b| b.at.0 <= time && time - b.at.0 < b.length.0);
        more.fold(base, |sum, b| sum.saturating_add(b.replicas))
    }
}

impl Daily {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two u32")]
    fn at(&self, since_monday: Duration) -> u32 {
        let seconds = since_monday.as_secs_f64();
        // A cosine with its high at the peak and its low twelve hours later.
        let phase = (seconds - self.peak.0.as_secs_f64()) / DAY * std::f64::consts::TAU;
        let share = f64::midpoint(phase.cos(), 1.0);
        let day = since_monday.as_secs() / 86_400;
        let most = if day % 7 >= 5 { self.weekend.unwrap_or(1.0) } else { 1.0 };
        let (low, high) = (f64::from(self.low), most * f64::from(self.high));
        (low + (high - low).max(0.0) * share).round() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::expected::assert_documented;

    #[test]
    fn the_reference_page_lists_every_field_of_a_workload() {
        const PAGE: &str = "workloads.md";
        assert_documented::<Workloads>(PAGE, "Workload file");
        assert_documented::<Daemon>(PAGE, "DaemonSet");
        assert_documented::<Workload>(PAGE, "Workload");
        assert_documented::<Curve>(PAGE, "Replicas");
        assert_documented::<Step>(PAGE, "Step");
        assert_documented::<Daily>(PAGE, "Daily");
        assert_documented::<Burst>(PAGE, "Burst");
        assert_documented::<Budget>(PAGE, "Budget");
        assert_documented::<Runs>(PAGE, "Runs");
    }

    fn wrong(text: &str) -> String {
        Workloads::parse(text).unwrap_err().to_string()
    }

    const WEB: &str = "duration: 2d\nworkloads:\n- name: web\n  kind: Deployment\n  requests: {cpu: 1}\n  replicas: ";

    #[test]
    fn a_daily_curve_is_low_at_night_and_lower_at_weekends() {
        let text = format!("{WEB}{{daily: {{low: 2, high: 10, peak: 14h, weekend: 0.5}}}}");
        let curve = Workloads::parse(&text).unwrap().workloads[0].replicas.clone().unwrap();
        let hours = |h: u64| Duration::from_secs(h * 3600);
        let after = |h: u64| curve.at(hours(h), Duration::ZERO);
        assert_eq!((after(2), after(14), after(20)), (2, 10, 6));
        assert_eq!(after(5 * 24 + 14), 5);
        // What begins on a Saturday at noon has its high two hours later.
        let saturday = hours(5 * 24 + 12);
        assert_eq!((curve.at(hours(2), saturday), curve.at(hours(2 * 24 + 2), saturday)), (5, 10));
    }

    #[test]
    fn steps_hold_until_the_next_and_bursts_come_on_top() {
        let text = format!(
            "{WEB}{{steps: [{{at: 1h, replicas: 3}}, {{at: 1d2h30m, replicas: 1}}], bursts: [{{at: 2h, for: 30m, replicas: 7}}]}}"
        );
        let curve = Workloads::parse(&text).unwrap().workloads[0].replicas.clone().unwrap();
        let at = |m: u64| curve.at(Duration::from_secs(m * 60), Duration::ZERO);
        assert_eq!((at(0), at(60), at(120), at(150), at(26 * 60 + 30)), (0, 3, 10, 3, 1));
    }

    #[test]
    fn bad_input_is_named_by_its_place() {
        let unknown = wrong(&format!("{WEB}{{constant: 1, steady: 2}}"));
        assert!(unknown.starts_with("workloads[0].replicas.steady: unknown field"), "{unknown}");
        let negative = wrong(&format!("{WEB}{{steps: [{{at: 0s, replicas: -3}}]}}"));
        assert!(negative.starts_with("workloads[0].replicas.steps[0].replicas: "), "{negative}");
        assert!(negative.contains("-3"), "{negative}");
        let backwards =
            wrong(&format!("{WEB}{{steps: [{{at: 2h, replicas: 1}}, {{at: 1h, replicas: 2}}]}}"));
        assert!(backwards.starts_with("workloads[0].replicas.steps[1].at: expected a time after"));
        assert!(wrong(&format!("{WEB}{{}}")).starts_with("workloads[0].replicas: expected one of"));
        let span = wrong("duration: 5 days\nworkloads: []");
        assert!(span.starts_with("duration: expected a length of time"), "{span}");
        let job = "duration: 1d\nworkloads:\n- {name: j, kind: Job, requests: {cpu: 1}}";
        assert!(wrong(job).starts_with("workloads[0].runs: expected when it runs"));
    }
}
