//! CEL expressions in `spec.kubelet`: the pod limit and reserved amounts worked out a type.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::common::types::{CelBool, CelString};
use cel::extractors::Arguments;
use cel::{Context, Env, ExecutionError, Program, Value};
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

/// The standard library, with `matches` by the regex crate, which is a dependency anyway.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    // It fails only if the function exists already.
    let _ = env.add_extension(
        |env| cel::add_member_overload!(env, fn matches: (CelString, CelString) -> Result<CelBool>),
    );
    Arc::new(env)
});

fn matches(this: &CelString<'_>, wanted: &CelString<'_>) -> Result<CelBool, ExecutionError> {
    let regex = regex::Regex::new(wanted.inner())
        .map_err(|error| ExecutionError::function_error("matches", error))?;
    Ok(CelBool::from(regex.is_match(this.inner())))
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
    // Old expressions of node classes that changed are never removed otherwise.
    if programs.len() >= KEPT {
        programs.clear();
    }
    let compiled: Compiled = Arc::new(ENVIRONMENT.compile(text).map_err(|e| e.to_string()));
    programs.insert(text.to_owned(), Arc::clone(&compiled));
    compiled
}

/// Names of the variables.
const VARIABLES: [&str; 6] =
    ["vcpus", "memory_mib", "default_enis", "ips_per_eni", "max_pods", "instance_type"];

/// A machine that expressions are tried on before there is any.
const SAMPLE: Variables<'static> = Variables {
    instance_type: "m5.large",
    vcpus: 2,
    memory_mib: 8192,
    default_enis: 3,
    ips_per_eni: 10,
    max_pods: 29,
};

/// Whether an expression can be read, refers to what there is, and gives a number.
///
/// Types are known only where something is evaluated, so that is tried; arithmetic that fails for
/// the machine of the trial may well succeed for others and is no reason to refuse.
///
/// # Errors
/// What is wrong with it.
pub fn check(text: &str) -> Result<(), String> {
    let program = program(text);
    let program = program.as_ref().as_ref().map_err(Clone::clone)?;
    let references = program.references();
    let mut unknown: Vec<&str> = references.variables();
    unknown.retain(|name| !VARIABLES.contains(name) && !is_bound(text, name));
    unknown.sort_unstable();
    if let Some(name) = unknown.first() {
        return Err(format!(
            "undeclared reference to {name:?}, expected one of {}",
            VARIABLES.join(", ")
        ));
    }
    match program.execute(&context(&SAMPLE)) {
        Ok(value) => match value {
            Value::Int(_) | Value::Float(_) => Ok(()),
            other => Err(format!("expected an int or a double, got {other:?}")),
        },
        Err(
            ExecutionError::DivisionByZero(_)
            | ExecutionError::RemainderByZero(_)
            | ExecutionError::Overflow(..)
            | ExecutionError::IndexOutOfBounds(_),
        ) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// True for the variable of a macro such as `[1, 2].exists(x, x > 1)`, and for those it expands to.
fn is_bound(text: &str, name: &str) -> bool {
    let bare: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    name.starts_with('@') || bare.contains(&format!("({name},"))
}

fn context(variables: &Variables<'_>) -> Context<'static, 'static> {
    let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
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
    // They fail only if the functions exist already.
    let _ = context.add_function("min", |Arguments(args): Arguments| extreme(&args, f64::lt));
    let _ = context.add_function("max", |Arguments(args): Arguments| extreme(&args, f64::gt));
    context
}

/// The number that an expression gives.
///
/// # Errors
/// When it cannot be read or evaluated, or gives no finite number.
pub fn evaluate(text: &str, variables: &Variables<'_>) -> Result<i64, String> {
    let program = program(text);
    let program = program.as_ref().as_ref().map_err(Clone::clone)?;
    let result = program.execute(&context(variables)).map_err(|e| e.to_string())?;
    match result {
        Value::Int(number) => Ok(number),
        Value::Float(number) if number.is_finite() && number.abs() < i64::MAX as f64 => {
            Ok(number.trunc() as i64)
        }
        other => Err(format!("expected a finite number, got {other:?}")),
    }
}

/// The lesser or greater of two numbers: an int of two ints, else a double.
fn extreme(args: &[Value], better: impl Fn(&f64, &f64) -> bool) -> Result<Value, ExecutionError> {
    let number = |value: &Value| match value {
        Value::Int(n) => Ok(*n as f64),
        Value::Float(n) => Ok(*n),
        other => Err(ExecutionError::function_error("min/max", format!("no number: {other:?}"))),
    };
    let [a, b] = args else {
        return Err(ExecutionError::invalid_argument_count(2, args.len()));
    };
    let (x, y) = (number(a)?, number(b)?);
    Ok(match (a, b) {
        (Value::Int(_), Value::Int(_)) => if better(&y, &x) { b } else { a }.clone(),
        _ => Value::Float(if better(&y, &x) { y } else { x }),
    })
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

/// A reserved amount as a quantity, in steps that keep the number of launch templates low.
///
/// # Errors
/// As [`evaluate`], or when the amount is negative.
pub fn reserved(resource: &str, text: &str, variables: &Variables<'_>) -> Result<String, String> {
    let amount = evaluate(text, variables)?;
    if amount < 0 {
        return Err(format!("{NEGATIVE} {amount}"));
    }
    let up_to = |step: i64| amount.saturating_add(step - 1) / step * step;
    Ok(match resource {
        "cpu" => format!("{}m", up_to(10)),
        "memory" => format!("{}Mi", up_to(16)),
        "ephemeral-storage" => format!("{amount}Gi"),
        _ => amount.to_string(),
    })
}

/// How the error of a negative amount begins.
const NEGATIVE: &str = "negative amount";

/// As [`reserved`]; an expression that fails is logged and left out.
pub fn reserved_or_nothing(
    resource: &str,
    text: &str,
    variables: &Variables<'_>,
) -> Option<String> {
    let error = match reserved(resource, text, variables) {
        Ok(amount) => return Some(amount),
        Err(error) => error,
    };
    let instance_type = variables.instance_type;
    if error.starts_with(NEGATIVE) {
        tracing::error!(
            "resource" = resource,
            "expression" = text,
            "instance-type" = instance_type,
            "error" = error,
            "kubelet resource expression evaluated to an invalid value"
        );
    } else {
        tracing::error!(
            "resource" = resource,
            "expression" = text,
            "instance-type" = instance_type,
            "error" = error,
            "failed to evaluate kubelet resource expression"
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(evaluate(text, &SAMPLE), Ok(want), "{text}");
        }
        for bad in ["vcpus +", "'x'", "unknown", "1.0 / 0.0", "min()", "min(1)", "min(1, 2, 3)"] {
            assert!(evaluate(bad, &SAMPLE).is_err(), "{bad}");
        }
        // An int and a double make a double: nothing is lost before the end.
        assert_eq!(evaluate("min(3, 4.0) / 2.0 * 2.0", &SAMPLE), Ok(3));
        assert_eq!(evaluate("min(3, 4) / 2 * 2", &SAMPLE), Ok(2));
    }

    #[test]
    fn what_cannot_give_a_number_is_refused_before_there_are_machines() {
        for good in [
            "vcpus * 10",
            "max_pods / (vcpus - 2)",
            "instance_type.startsWith('m5.') ? 20 : max_pods",
            "instance_type.matches('^m[0-9]+[.]') ? 20 : max_pods",
            "[1, 2, 3].exists(x, x == vcpus) ? 1 : 2",
            "double(memory_mib) * 0.02",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, part) in [
            ("vcpus *", ""),
            ("vcpu * 2", "\"vcpu\""),
            ("vcpus > 2 ? cores : 1", "\"cores\""),
            ("instance_type", "expected an int or a double"),
            ("vcpus > 2", "expected an int or a double"),
            ("instance_type * 2", ""),
            ("half(vcpus)", "half"),
            ("min('a', 2)", ""),
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[test]
    fn limits_and_amounts_are_checked() {
        assert_eq!(max_pods("vcpus * 10", &SAMPLE), Ok(20));
        assert!(max_pods("-1", &SAMPLE).unwrap_err().starts_with("resolving maxPods, "));
        let amount = |name, text| reserved(name, text, &SAMPLE);
        assert_eq!(amount("cpu", "51").as_deref(), Ok("60m"));
        assert_eq!(amount("memory", "11 * max_pods + 255").as_deref(), Ok("576Mi"));
        assert_eq!(amount("ephemeral-storage", "2").as_deref(), Ok("2Gi"));
        assert_eq!(amount("pid", "1000").as_deref(), Ok("1000"));
        assert_eq!(amount("cpu", "-5"), Err("negative amount -5".to_owned()));
        assert!(amount("cpu", "nonsense(").is_err());
        assert_eq!(reserved_or_nothing("cpu", "-5", &SAMPLE), None);
    }
}
