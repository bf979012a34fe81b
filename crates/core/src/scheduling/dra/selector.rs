//! CEL selectors of devices, with the functions that Kubernetes adds for quantities and versions,
//! and the macro `cel.bind`.
//!
//! The variable `device` has `driver`, `attributes` and `capacity` by domain and name, and
//! `allowMultipleAllocations`. A domain that a device has nothing of reads as an empty one.

use std::any::Any;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{ComprehensionExpr, Expr, ListExpr, LiteralValue};
use cel::common::traits::{Container, Indexer};
use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelString, MAP_TYPE, Type,
};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::parser::{Macro, MacroExprHelper};
use cel::{Context, Env, ExecutionError, IdedExpr, ParseError, Program, Value};

use super::device::{Amount, Attribute, Device};
use crate::api::quantity;

/// One unit, as an [`Amount`] counts in billionths.
const ONE: Amount = 1_000_000_000;

static QUANTITY: Type = Type::new_unspecified_type("kubernetes.Quantity");
static VERSION: Type = Type::new_unspecified_type("kubernetes.Semver");

/// A quantity in CEL.
#[derive(Clone, Debug, PartialEq)]
struct CelQuantity(Amount);

/// A semantic version in CEL.
#[derive(Clone, Debug, PartialEq)]
struct CelVersion(semver::Version);

impl Val for CelQuantity {
    fn get_type(&self) -> &Type {
        &QUANTITY
    }

    fn cel_type() -> &'static Type {
        &QUANTITY
    }

    fn equals(&self, other: &dyn Val) -> bool {
        other.downcast_ref::<Self>().is_some_and(|o| o == self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for CelQuantity {}

impl Val for CelVersion {
    fn get_type(&self) -> &Type {
        &VERSION
    }

    fn cel_type() -> &'static Type {
        &VERSION
    }

    fn equals(&self, other: &dyn Val) -> bool {
        // Build metadata is no part of a version's precedence (semver.org, 10).
        other.downcast_ref::<Self>().is_some_and(|o| o.0.cmp_precedence(&self.0).is_eq())
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for CelVersion {}

/// Values by domain. A missing domain reads as an empty map, as in Kubernetes, so that selectors
/// can test for an attribute without testing for its domain first.
#[derive(Clone, Debug, Default)]
struct Domains {
    known: HashMap<String, CelMap<'static>>,
    none: CelMap<'static>,
}

impl Indexer for Domains {
    fn get<'b, 'v>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let domain = text(key).ok_or_else(|| ExecutionError::UnexpectedType {
            got: key.get_type().name().to_owned(),
            want: "string".to_owned(),
        })?;
        Ok(CowVal::Borrowed(self.known.get(domain).unwrap_or(&self.none)))
    }

    fn steal<'v>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(key).map(CowVal::into_owned)
    }
}

impl Container for Domains {
    fn contains(&self, key: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(text(key).is_some_and(|domain| self.known.contains_key(domain)))
    }
}

impl Val for Domains {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Domains {}

fn text(value: &dyn Val) -> Option<&str> {
    value.downcast_ref::<CelString<'_>>().map(|s| s.inner())
}

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    // These fail only when a function of the same name exists, which the tests would show.
    let _ = env.add_extension(cel::extensions::strings);
    let _ = env.add_extension(quantities);
    let _ = env.add_extension(versions);
    let _ = env.add_macro(Macro::receiver("bind", 3, bind));
    Arc::new(env)
});

fn quantities(env: &mut Env) -> Result<(), cel::DeclarationError> {
    type Q = CelQuantity;
    fn parse(text: &CelString<'_>) -> Result<Q, ExecutionError> {
        quantity::parse(text.inner())
            .map(|q| CelQuantity(q.nanos))
            .map_err(|e| ExecutionError::function_error("quantity", e))
    }
    fn is(text: &CelString<'_>) -> CelBool {
        quantity::parse(text.inner()).is_ok().into()
    }
    fn greater(a: &Q, b: &Q) -> CelBool {
        (a.0 > b.0).into()
    }
    fn less(a: &Q, b: &Q) -> CelBool {
        (a.0 < b.0).into()
    }
    fn compare(a: &Q, b: &Q) -> CelInt {
        sign(a.0.cmp(&b.0))
    }
    fn sign_of(a: &Q) -> CelInt {
        sign(a.0.cmp(&0))
    }
    fn is_integer(a: &Q) -> CelBool {
        (a.0 % ONE == 0 && i64::try_from(a.0 / ONE).is_ok()).into()
    }
    fn as_integer(a: &Q) -> Result<CelInt, ExecutionError> {
        let whole = i64::try_from(a.0 / ONE).ok().filter(|_| a.0 % ONE == 0);
        let error = || ExecutionError::function_error("asInteger", "not a 64-bit integer");
        whole.map(CelInt::from).ok_or_else(error)
    }
    fn as_float(a: &Q) -> CelDouble {
        (a.0 as f64 / ONE as f64).into()
    }
    fn add(a: &Q, b: &Q) -> Q {
        CelQuantity(a.0.saturating_add(b.0))
    }
    fn add_int(a: &Q, b: &CelInt) -> Q {
        CelQuantity(a.0.saturating_add(Amount::from(*b.inner()) * ONE))
    }
    fn sub(a: &Q, b: &Q) -> Q {
        CelQuantity(a.0.saturating_sub(b.0))
    }
    fn sub_int(a: &Q, b: &CelInt) -> Q {
        CelQuantity(a.0.saturating_sub(Amount::from(*b.inner()) * ONE))
    }
    cel::add_overload!(env, fn parse: (CelString) -> Result<CelQuantity>, name = "quantity")?;
    cel::add_overload!(env, fn is: (CelString) -> CelBool, name = "isQuantity")?;
    cel::add_member_overload!(env, fn greater: (Q, Q) -> CelBool, name = "isGreaterThan")?;
    cel::add_member_overload!(env, fn less: (Q, Q) -> CelBool, name = "isLessThan")?;
    cel::add_member_overload!(env, fn compare: (Q, Q) -> CelInt, name = "compareTo")?;
    cel::add_member_overload!(env, fn sign_of: (Q) -> CelInt, name = "sign")?;
    cel::add_member_overload!(env, fn is_integer: (Q) -> CelBool)?;
    cel::add_member_overload!(env, fn as_integer: (Q) -> Result<CelInt>)?;
    cel::add_member_overload!(env, fn as_float: (Q) -> CelDouble, name = "asApproximateFloat")?;
    cel::add_member_overload!(env, fn add: (Q, Q) -> CelQuantity)?;
    cel::add_member_overload!(env, fn add_int: (Q, CelInt) -> CelQuantity, name = "add")?;
    cel::add_member_overload!(env, fn sub: (Q, Q) -> CelQuantity)?;
    cel::add_member_overload!(env, fn sub_int: (Q, CelInt) -> CelQuantity, name = "sub")
}

fn versions(env: &mut Env) -> Result<(), cel::DeclarationError> {
    type V = CelVersion;
    fn parse(text: &CelString<'_>) -> Result<V, ExecutionError> {
        version(text.inner()).map_err(|e| ExecutionError::function_error("semver", e))
    }
    fn is(text: &CelString<'_>) -> CelBool {
        version(text.inner()).is_ok().into()
    }
    fn greater(a: &V, b: &V) -> CelBool {
        a.0.cmp_precedence(&b.0).is_gt().into()
    }
    fn less(a: &V, b: &V) -> CelBool {
        a.0.cmp_precedence(&b.0).is_lt().into()
    }
    fn compare(a: &V, b: &V) -> CelInt {
        sign(a.0.cmp_precedence(&b.0))
    }
    fn major(a: &V) -> CelInt {
        i64::try_from(a.0.major).unwrap_or(i64::MAX).into()
    }
    fn minor(a: &V) -> CelInt {
        i64::try_from(a.0.minor).unwrap_or(i64::MAX).into()
    }
    fn patch(a: &V) -> CelInt {
        i64::try_from(a.0.patch).unwrap_or(i64::MAX).into()
    }
    cel::add_overload!(env, fn parse: (CelString) -> Result<CelVersion>, name = "semver")?;
    cel::add_overload!(env, fn is: (CelString) -> CelBool, name = "isSemver")?;
    cel::add_member_overload!(env, fn greater: (V, V) -> CelBool, name = "isGreaterThan")?;
    cel::add_member_overload!(env, fn less: (V, V) -> CelBool, name = "isLessThan")?;
    cel::add_member_overload!(env, fn compare: (V, V) -> CelInt, name = "compareTo")?;
    cel::add_member_overload!(env, fn major: (V) -> CelInt)?;
    cel::add_member_overload!(env, fn minor: (V) -> CelInt)?;
    cel::add_member_overload!(env, fn patch: (V) -> CelInt)
}

fn version(text: &str) -> Result<CelVersion, semver::Error> {
    semver::Version::parse(text).map(CelVersion)
}

fn sign(order: Ordering) -> CelInt {
    (order as i64).into()
}

/// `cel.bind(name, value, expression)`, built as cel-go does it: a loop over an empty list whose
/// accumulator has the name and value, and whose result is the expression.
fn bind(
    helper: &mut MacroExprHelper<'_>,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
) -> Result<Option<IdedExpr>, ParseError> {
    let on_cel = target.as_ref().is_some_and(|t| matches!(&t.expr, Expr::Ident(n) if n == "cel"));
    if !on_cel || args.len() != 3 {
        return Ok(None);
    }
    let name = match &args[0].expr {
        Expr::Ident(name) => name.clone(),
        _ => return Err(helper.new_error(args[0].id, "cel.bind expects a name first")),
    };
    let (Some(result), Some(value)) = (args.pop(), args.pop()) else { return Ok(None) };
    let step = helper.next_expr(Expr::Ident(name.clone()));
    let bound = ComprehensionExpr {
        iter_range: helper.next_expr(Expr::List(ListExpr::new(Vec::new()))),
        iter_var: "#unused".to_owned(),
        iter_var2: None,
        accu_var: name,
        accu_init: value,
        loop_cond: helper.next_expr(Expr::Literal(LiteralValue::Boolean(false.into()))),
        loop_step: step,
        result,
    };
    Ok(Some(helper.next_expr(Expr::Comprehension(Box::new(bound)))))
}

/// Compiles a selector.
///
/// # Errors
/// What is wrong with it.
pub fn compile(text: &str) -> Result<Program, String> {
    ENVIRONMENT.compile(text).map_err(|e| e.to_string())
}

/// Whether a selector holds for a device.
///
/// # Errors
/// When it cannot be evaluated, or is neither true nor false.
pub fn holds(program: &Program, device: &Device, driver: &str) -> Result<bool, String> {
    let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
    context.add_variable_as_val("device", Box::new(describe(device, driver)?));
    match program.execute(&context) {
        Ok(Value::Bool(holds)) => Ok(holds),
        Ok(other) => Err(format!("it gives {other:?}, expected true or false")),
        Err(error) => Err(error.to_string()),
    }
}

fn describe(device: &Device, driver: &str) -> Result<CelMap<'static>, String> {
    let mut attributes: HashMap<&str, Fields> = HashMap::new();
    for ((domain, name), value) in &device.attributes {
        let value = attribute(value)
            .map_err(|e| format!("attribute {domain}/{name} of device {}: {e}", device.name))?;
        attributes.entry(domain).or_default().insert(key(name), value);
    }
    let mut capacity: HashMap<&str, Fields> = HashMap::new();
    for ((domain, name), value) in &device.capacity {
        let value = Box::new(CelQuantity(value.value));
        capacity.entry(domain).or_default().insert(key(name), value);
    }
    let mut fields = Fields::new();
    fields.insert(key("driver"), Box::new(CelString::from(driver.to_owned())));
    fields.insert(key("attributes"), Box::new(domains(attributes)));
    fields.insert(key("capacity"), Box::new(domains(capacity)));
    fields.insert(key("allowMultipleAllocations"), Box::new(CelBool::from(device.shared)));
    Ok(CelMap::from(fields))
}

type Fields = HashMap<CelMapKey<'static>, Box<dyn Val>>;

fn key(name: &str) -> CelMapKey<'static> {
    CelMapKey::from(name.to_owned())
}

fn domains(known: HashMap<&str, Fields>) -> Domains {
    let known = known.into_iter().map(|(d, f)| (d.to_owned(), CelMap::from(f))).collect();
    Domains { known, none: CelMap::default() }
}

fn attribute(value: &Attribute) -> Result<Box<dyn Val>, String> {
    fn values<T>(
        list: &[T],
        many: bool,
        one: impl Fn(&T) -> Result<Box<dyn Val>, String>,
    ) -> Result<Box<dyn Val>, String> {
        match list {
            [single] if !many => one(single),
            _ => {
                let all: Vec<Box<dyn Val>> = list.iter().map(one).collect::<Result<_, _>>()?;
                Ok(Box::new(CelList::from(all)))
            }
        }
    }
    match value {
        Attribute::Ints(v, many) => values(v, *many, |n| Ok(Box::new(CelInt::from(*n)))),
        Attribute::Bools(v, many) => values(v, *many, |b| Ok(Box::new(CelBool::from(*b)))),
        Attribute::Strings(v, many) => {
            values(v, *many, |s| Ok(Box::new(CelString::from(s.to_string()))))
        }
        Attribute::Versions(v, many) => values(v, *many, |s| {
            version(s).map(|v| Box::new(v) as Box<dyn Val>).map_err(|e| e.to_string())
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn device() -> Device {
        let object = json!({"name": "gpu-0",
            "attributes": {"model": {"string": "a100"}, "index": {"int": 3},
                "ready": {"bool": true}, "driverVersion": {"version": "12.4.1"},
                "other.example.com/numa": {"int": 1}},
            "capacity": {"memory": {"value": "40Gi"}}});
        Device::new(&serde_json::from_value(object).unwrap(), "gpu.example.com")
    }

    fn check(text: &str) -> Result<bool, String> {
        holds(&compile(text)?, &device(), "gpu.example.com")
    }

    #[test]
    fn selectors_see_the_device() {
        for text in [
            "device.driver == 'gpu.example.com'",
            "device.attributes['gpu.example.com'].model == 'a100'",
            "device.attributes['gpu.example.com'].index > 2",
            "device.attributes['gpu.example.com'].ready",
            "device.attributes['other.example.com'].numa == 1",
            "!('model' in device.attributes['nothing.example.com'])",
            "!has(device.attributes['gpu.example.com'].nothing)",
            "has(device.attributes['gpu.example.com'].model)",
            "device.capacity['gpu.example.com'].memory.compareTo(quantity('40Gi')) == 0",
            "device.capacity['gpu.example.com'].memory.isGreaterThan(quantity('39Gi'))",
            "quantity('1500m').isLessThan(quantity('2')) && !isQuantity('x')",
            "quantity('3').add(quantity('1')).sub(2).asInteger() == 2",
            "device.attributes['gpu.example.com'].driverVersion.isGreaterThan(semver('12.3.0'))",
            "device.attributes['gpu.example.com'].driverVersion.major() == 12",
            "cel.bind(gpu, device.attributes['gpu.example.com'], gpu.model == 'a100' && gpu.ready)",
            "device.attributes['gpu.example.com'].?nothing.orValue('x') == 'x'",
            "!device.allowMultipleAllocations",
            "device.attributes['gpu.example.com'].model.lowerAscii().startsWith('a')",
        ] {
            assert_eq!(check(text), Ok(true), "{text}");
        }
        assert_eq!(check("device.driver == 'x'"), Ok(false));
    }

    #[test]
    fn what_cannot_be_evaluated_is_an_error() {
        assert!(compile("device.driver ==").is_err());
        assert!(check("device.attributes['gpu.example.com'].nothing == 'x'").is_err());
        assert!(check("device.driver").is_err());
        assert!(check("device.unknown").is_err());
    }
}
