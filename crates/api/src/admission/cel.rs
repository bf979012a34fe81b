//! CEL rules, with the functions that Kubernetes adds.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::common::types::{CelBool, CelString};
use cel::{Context, Env, ExecutionError, Program, Value as Cel};
use parking_lot::Mutex;
use serde_json::Value;

use super::{Finding, member, members, pattern};

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    // They fail only if the functions exist already.
    let _ = env.add_extension(cel::extensions::strings);
    let _ = env.add_extension(|env| {
        cel::add_member_overload!(env, fn find: (CelString, CelString) -> Result<CelString>)?;
        cel::add_member_overload!(env, fn matches: (CelString, CelString) -> Result<CelBool>)
    });
    Arc::new(env)
});

/// A compiled rule, or why it does not compile.
type Compiled = Arc<Result<Program, String>>;

// Rules are those of this build's schemas, so their number is bounded.
static PROGRAMS: LazyLock<Mutex<HashMap<String, Compiled>>> = LazyLock::new(Mutex::default);

fn expression(function: &str, text: &str) -> Result<Arc<regex::Regex>, ExecutionError> {
    pattern::regex(text).ok_or_else(|| {
        ExecutionError::function_error(function, format!("invalid regular expression {text:?}"))
    })
}

/// The first part of the text that matches, else the empty text.
fn find(
    this: &CelString<'_>,
    wanted: &CelString<'_>,
) -> Result<CelString<'static>, ExecutionError> {
    let regex = expression("find", wanted.inner())?;
    let found = regex.find(this.inner()).map_or("", |m| m.as_str());
    Ok(CelString::from(found.to_owned()))
}

fn matches(this: &CelString<'_>, wanted: &CelString<'_>) -> Result<CelBool, ExecutionError> {
    let regex = expression("matches", wanted.inner())?;
    Ok(CelBool::from(regex.is_match(this.inner())))
}

/// Checks the rules of a value and of all below it; rules on changes only when there is an old
/// value.
pub(super) fn check(
    schema: &Value,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    out: &mut Vec<Finding>,
) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let text = rule["rule"].as_str().unwrap_or_default();
        let of_change = text.contains("oldSelf");
        if of_change && old.is_none() {
            continue;
        }
        let message = rule["message"].as_str().unwrap_or_default();
        match holds(text, value, old) {
            Ok(true) => {}
            Ok(false) => out.push(Finding::new(path, message)),
            Err(error) => {
                let message = format!("{message} (the rule cannot be evaluated: {error})");
                out.push(Finding::new(path, message));
            }
        }
    }
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                // Elements of our lists have no identity, so that changes of them are not seen.
                check(&schema["items"], item, None, &format!("{path}[{i}]"), out);
            }
        }
        Value::Object(fields) => {
            for (name, value, found, field) in members(schema, fields) {
                if path.is_empty() && name == "metadata" {
                    continue;
                }
                let old = old.and_then(|o| o.get(name)).filter(|o| !o.is_null());
                check(found, value, old, &member(path, name, field), out);
            }
        }
        _ => {}
    }
}

/// The rule, compiled once.
fn program(rule: &str) -> Compiled {
    let mut programs = PROGRAMS.lock();
    Arc::clone(
        programs.entry(rule.to_owned()).or_insert_with(|| {
            Arc::new(ENVIRONMENT.compile(rule).map_err(|error| error.to_string()))
        }),
    )
}

#[cfg(test)]
pub(super) fn compiles(rule: &str) -> Result<(), String> {
    program(rule).as_ref().as_ref().map(|_| ()).map_err(Clone::clone)
}

fn holds(rule: &str, value: &Value, old: Option<&Value>) -> Result<bool, String> {
    let program = program(rule);
    let program = program.as_ref().as_ref().map_err(Clone::clone)?;
    let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
    context.add_variable_from_value("self", convert(value));
    if let Some(old) = old {
        context.add_variable_from_value("oldSelf", convert(old));
    }
    match program.execute(&context) {
        Ok(Cel::Bool(holds)) => Ok(holds),
        Ok(other) => Err(format!("it gives {other:?}, expected true or false")),
        Err(error) => Err(error.to_string()),
    }
}

/// A JSON value as CEL sees it; whole numbers are signed.
fn convert(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => Cel::Int(whole),
            None => Cel::Float(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(items) => Cel::List(Arc::new(items.iter().map(convert).collect())),
        Value::Object(members) => {
            let members: HashMap<String, Cel> =
                members.iter().map(|(name, value)| (name.clone(), convert(value))).collect();
            Cel::Map(members.into())
        }
    }
}
