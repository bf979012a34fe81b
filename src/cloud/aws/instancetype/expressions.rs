//! CEL expressions in `spec.kubelet`: the pod limit and reserved amounts worked out a type.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::extractors::Arguments;
use cel::{Context, ExecutionError, Program, Value};
use parking_lot::Mutex;

/// What an expression may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variables<'a> {
    pub instance_type: &'a str,
    pub vcpus: i64,
    pub memory_mib: i64,
    /// Interfaces of the default network card.
    pub default_enis: i64,
    pub ips_per_eni: i64,
    /// The pod limit so far.
    pub max_pods: i64,
}

type Compiled = Arc<Result<Program, String>>;

/// Compiled expressions by their text; few are ever in use.
static PROGRAMS: LazyLock<Mutex<HashMap<String, Compiled>>> = LazyLock::new(Mutex::default);
/// More than this many are not kept.
const KEPT: usize = 1000;

fn program(text: &str) -> Compiled {
    let mut programs = PROGRAMS.lock();
    if let Some(known) = programs.get(text) {
        return Arc::clone(known);
    }
    if programs.len() >= KEPT {
        programs.clear();
    }
    let compiled: Compiled = Arc::new(Program::compile(text).map_err(|e| e.to_string()));
    programs.insert(text.to_owned(), Arc::clone(&compiled));
    compiled
}

/// The number that an expression gives.
///
/// # Errors
/// When it cannot be read or evaluated, or gives no finite number.
pub fn evaluate(text: &str, variables: &Variables<'_>) -> Result<i64, String> {
    let program = program(text);
    let program = program.as_ref().as_ref().map_err(Clone::clone)?;
    let mut context = Context::default();
    for (name, value) in [
        ("vcpus", variables.vcpus),
        ("memory_mib", variables.memory_mib),
        ("default_enis", variables.default_enis),
        ("ips_per_eni", variables.ips_per_eni),
        ("max_pods", variables.max_pods),
    ] {
        context.add_variable_from_value(name, value);
    }
    context.add_variable_from_value("instance_type", variables.instance_type.to_owned());
    // These fail only for functions that are there already.
    let _ = context.add_function("min", |Arguments(args): Arguments| extreme(&args, f64::lt));
    let _ = context.add_function("max", |Arguments(args): Arguments| extreme(&args, f64::gt));
    let result = program.execute(&context).map_err(|e| e.to_string())?;
    match result {
        Value::Int(number) => Ok(number),
        Value::UInt(number) => i64::try_from(number).map_err(|e| e.to_string()),
        Value::Float(number) if number.is_finite() && number.abs() < i64::MAX as f64 => {
            Ok(number.trunc() as i64)
        }
        other => Err(format!("expected a number, got {other:?}")),
    }
}

fn number(value: &Value) -> Result<f64, ExecutionError> {
    match value {
        Value::Int(n) => Ok(*n as f64),
        Value::UInt(n) => Ok(*n as f64),
        Value::Float(n) => Ok(*n),
        other => Err(ExecutionError::function_error("min/max", format!("no number: {other:?}"))),
    }
}

fn extreme(args: &[Value], better: impl Fn(&f64, &f64) -> bool) -> Result<Value, ExecutionError> {
    let mut best: Option<(&Value, f64)> = None;
    for value in args {
        let n = number(value)?;
        if best.is_none_or(|(_, known)| better(&n, &known)) {
            best = Some((value, n));
        }
    }
    best.map(|(value, _)| value.clone())
        .ok_or_else(|| ExecutionError::function_error("min/max", "no argument"))
}

/// The pod limit that an expression gives.
///
/// # Errors
/// As [`evaluate`], or when the limit is no count of pods.
pub fn max_pods(text: &str, variables: &Variables<'_>) -> Result<i64, String> {
    match evaluate(text, variables) {
        Ok(count) if (0..=i64::from(i32::MAX)).contains(&count) => Ok(count),
        Ok(count) => Err(format!("resolving maxPods, {count} is not between 0 and {}", i32::MAX)),
        Err(error) => Err(format!("resolving maxPods, {error}")),
    }
}

/// A reserved amount as a quantity, in steps that keep the number of launch templates low; nothing,
/// with a word in the log, where the expression fails or gives a negative amount.
pub fn reserved(resource: &str, text: &str, variables: &Variables<'_>) -> Option<String> {
    let amount = match evaluate(text, variables) {
        Ok(amount) if amount >= 0 => amount,
        other => {
            let error = other.map_or_else(|e| e, |n| format!("negative amount {n}"));
            tracing::error!(
                "resource" = resource,
                "expression" = text,
                "instance-type" = variables.instance_type,
                "error" = error,
                "failed to evaluate kubelet resource expression"
            );
            return None;
        }
    };
    let up_to = |step: i64| amount.saturating_add(step - 1) / step * step;
    Some(match resource {
        "cpu" => format!("{}m", up_to(10)),
        "memory" => format!("{}Mi", up_to(16)),
        "ephemeral-storage" => format!("{amount}Gi"),
        _ => amount.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables<'static> {
        Variables {
            instance_type: "m5.large",
            vcpus: 2,
            memory_mib: 8192,
            default_enis: 3,
            ips_per_eni: 10,
            max_pods: 29,
        }
    }

    #[test]
    fn expressions_see_the_type() {
        for (text, want) in [
            ("default_enis * (ips_per_eni - 1) + 2", 29),
            ("min(110, max_pods)", 29),
            ("max(vcpus, 2.5)", 2),
            ("instance_type.startsWith('m5') ? 7 : 8", 7),
            ("memory_mib / 1024", 8),
            ("double(vcpus) * -0.75", -1),
        ] {
            assert_eq!(evaluate(text, &variables()), Ok(want), "{text}");
        }
        for bad in ["vcpus +", "'x'", "unknown", "1.0 / 0.0", "min()"] {
            assert!(evaluate(bad, &variables()).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_and_amounts_are_checked() {
        assert_eq!(max_pods("vcpus * 10", &variables()), Ok(20));
        assert!(max_pods("-1", &variables()).unwrap_err().starts_with("resolving maxPods, "));
        let amount = |name, text| reserved(name, text, &variables());
        assert_eq!(amount("cpu", "51").as_deref(), Some("60m"));
        assert_eq!(amount("memory", "11 * max_pods + 255").as_deref(), Some("576Mi"));
        assert_eq!(amount("ephemeral-storage", "2").as_deref(), Some("2Gi"));
        assert_eq!(amount("pid", "1000").as_deref(), Some("1000"));
        assert_eq!(amount("cpu", "-5"), None);
        assert_eq!(amount("cpu", "nonsense("), None);
    }
}
