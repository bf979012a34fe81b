//! The server: a `tower` service that answers what [`kube::Client`] asks.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::hash::Hasher as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::sleep;
use tower::{BoxError, Service};

use super::distort;
use super::failure::Failure;
use super::fault::{Call, Fault, FaultPlan, Lens, NoFaults};
use super::kinds::KINDS;
use super::list;
use super::merge;
use super::ops::Deletion;
use super::request::{Target, parameters};
use super::selector::Selector;
use super::store::Store;
use super::watch::{self, Watch};
use super::write::time;

/// Lines of the journal that are kept.
const LINES: usize = 10_000;

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What was asked of the server and the cloud, in order: the last lines, and a hash of all.
#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<Written>>);

#[derive(Default)]
struct Written {
    lines: VecDeque<String>,
    hash: u64,
    count: u64,
}

impl Journal {
    /// Writes a line.
    pub fn write(&self, line: String) {
        let mut written = self.0.lock();
        #[allow(deprecated, reason = "its values do not change between versions of Rust")]
        let mut hasher = std::hash::SipHasher::new();
        // A chain: the hash covers all lines, although only the last are kept.
        hasher.write_u64(written.hash);
        hasher.write(line.as_bytes());
        written.hash = hasher.finish();
        written.count += 1;
        if written.lines.len() == LINES {
            written.lines.pop_front();
        }
        written.lines.push_back(line);
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self, most: usize) -> Vec<String> {
        let written = self.0.lock();
        let skip = written.lines.len().saturating_sub(most);
        written.lines.iter().skip(skip).cloned().collect()
    }

    /// How many lines were written, and the hash of all of them.
    #[must_use]
    pub fn digest(&self) -> (u64, u64) {
        let written = self.0.lock();
        (written.count, written.hash)
    }
}

/// An API server in process.
#[derive(Clone)]
pub struct ApiServer {
    store: Arc<Store>,
    plan: Arc<Mutex<Box<dyn FaultPlan>>>,
    cuts: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
    lens: distort::Shared,
    journal: Journal,
    /// Time that each request takes.
    latency: Duration,
}

impl ApiServer {
    /// A server of a store; each request takes a while.
    #[must_use]
    pub fn new(store: Arc<Store>, journal: Journal, latency: Duration) -> Self {
        let plan: Box<dyn FaultPlan> = Box::new(NoFaults);
        let plan = Arc::new(Mutex::new(plan));
        Self { store, plan, cuts: Arc::default(), lens: Arc::default(), journal, latency }
    }

    /// What the server stores.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Lets requests go wrong from now on.
    pub fn set_faults(&self, plan: impl FaultPlan + 'static) {
        *self.plan.lock() = Box::new(plan);
    }

    /// Distorts requests and answers from now on.
    pub fn set_lens(&self, lens: impl Lens + 'static) {
        *self.lens.lock() = Some(Box::new(lens));
    }

    /// Ends every watch of a user's clients.
    pub fn cut_watches(&self, user: &str) {
        self.cuts_of(user).fetch_add(1, Ordering::SeqCst);
        self.store.wake_all();
    }

    fn cuts_of(&self, user: &str) -> Arc<AtomicU64> {
        Arc::clone(self.cuts.lock().entry(user.to_owned()).or_default())
    }

    /// A client that asks in a user's name. Has to be called in a runtime of tokio.
    #[must_use]
    pub fn client(&self, user: &str) -> Client {
        Client::new(Connection { server: self.clone(), user: user.to_owned() }, "default")
    }

    async fn answer(&self, user: &str, request: Request<Body>) -> Result<Answer, BoxError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        if !self.latency.is_zero() {
            sleep(self.latency).await;
        }
        let query = parameters(head.uri.query().unwrap_or_default());
        let target = match Target::parse(head.uri.path()) {
            Ok(target) => target,
            Err(failure) => return Ok(refusal(&failure)),
        };
        let Target::Objects { kind, namespace, name, subresource } = target else {
            return Ok(match discovery(&target) {
                Ok(found) => json_answer(200, &found),
                Err(failure) => refusal(&failure),
            });
        };
        let watches = query.get("watch").is_some_and(|w| matches!(w.as_str(), "true" | "1"));
        let verb = match (&head.method, name.is_empty()) {
            (&Method::GET, _) if watches => "watch",
            (&Method::GET, true) => "list",
            (&Method::GET, false) => "get",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            (&Method::DELETE, true) => "deletecollection",
            (&Method::DELETE, false) => "delete",
            _ => return Ok(refusal(&Failure::method())),
        };
        let call = Call { user: user.to_owned(), verb, kind, subresource, namespace, name };
        let content_type = head.headers.get(http::header::CONTENT_TYPE);
        let content_type = content_type.and_then(|v| v.to_str().ok()).unwrap_or_default();
        let mut asked = Asked { call, query, body, content_type: content_type.to_owned() };
        let fault = self.plan.lock().fault(&asked.call);
        if self.lens.lock().is_none() {
            return self.with_fault(&asked, fault).await;
        }
        if !distort::send(&self.lens, &mut asked) {
            return Ok(self.pretended(&asked));
        }
        let answer = self.with_fault(&asked, fault).await?;
        distort::show(&self.lens, &asked.call, answer).await
    }

    /// The answer to a request that is not carried out.
    fn pretended(&self, asked: &Asked) -> Answer {
        let Call { kind, namespace, name, subresource, .. } = &asked.call;
        match self.store.get(kind, namespace, name) {
            Some(found) if subresource != "eviction" => json_answer(200, &found),
            _ => json_answer(
                201,
                &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {},
                "status": "Success", "code": 201 }),
            ),
        }
    }

    async fn with_fault(&self, asked: &Asked, fault: Option<Fault>) -> Result<Answer, BoxError> {
        match fault {
            None => {}
            Some(Fault::Delay(by)) => sleep(by).await,
            Some(Fault::Refuse(code)) => {
                let failure = Failure::planned(code);
                self.note(&asked.call, &format!("{code} planned"));
                return Ok(refusal(&failure));
            }
            Some(Fault::Unreachable) => {
                self.note(&asked.call, "unreachable");
                return Err("planned fault: connection refused".into());
            }
            Some(Fault::HangBefore) => {
                self.note(&asked.call, "hangs");
                return std::future::pending().await;
            }
            Some(Fault::Lost | Fault::HangAfter) => {
                // The request takes effect, but the client never learns of it.
                let answer = self.execute(asked);
                let code = answer.as_ref().map_or_else(|f| f.code, |a| a.status().as_u16());
                self.note(&asked.call, &format!("{code} lost"));
                if fault == Some(Fault::HangAfter) {
                    return std::future::pending().await;
                }
                return Err("planned fault: connection reset by peer".into());
            }
        }
        let answer = self.execute(asked).unwrap_or_else(|failure| refusal(&failure));
        self.note(&asked.call, answer.status().as_str());
        Ok(answer)
    }

    /// Writes down what changes something.
    fn note(&self, call: &Call, outcome: &str) {
        if !call.writes() {
            return;
        }
        let slash = if call.namespace.is_empty() { "" } else { "/" };
        let sub = if call.subresource.is_empty() { "" } else { "/" };
        self.journal.write(format!(
            "{} {} {} {} {}{slash}{}{sub}{} -> {outcome}",
            time(self.store.now()),
            call.user,
            call.verb,
            call.kind.plural,
            call.namespace,
            call.name,
            call.subresource
        ));
    }

    fn execute(&self, asked: &Asked) -> Result<Answer, Failure> {
        let Asked { call, .. } = asked;
        match call.verb {
            "watch" => self.watch(asked),
            "list" => {
                let list = self.store.list(call.kind, &self.list_query(asked)?)?;
                Ok(bytes_answer(200, list))
            }
            "get" => {
                let found = self.store.get(call.kind, &call.namespace, &call.name);
                let found = found.ok_or_else(|| Failure::not_found(call.kind, &call.name))?;
                Ok(json_answer(200, &found))
            }
            "create" => self.create(asked),
            "update" | "patch" => self.change(asked),
            "delete" => {
                let how = Deletion::from_options(&asked.json_or_empty()?);
                let (namespace, name) = (&call.namespace, &call.name);
                let deleted = self.store.delete(call.kind, namespace, name, &how)?;
                // For pods, the API server always returns the object.
                if deleted.gone && call.kind.plural != "pods" {
                    return Ok(json_answer(200, &success(&deleted.object)));
                }
                Ok(json_answer(200, &deleted.object))
            }
            _ => self.delete_collection(asked),
        }
    }

    fn list_query(&self, asked: &Asked) -> Result<list::Query, Failure> {
        let text = |key: &str| asked.query.get(key).cloned().unwrap_or_default();
        Ok(list::Query {
            namespace: asked.call.namespace.clone(),
            selector: asked.selector()?,
            limit: text("limit").parse().unwrap_or(0),
            resume: text("continue"),
            version: text("resourceVersion"),
            exact: text("resourceVersionMatch") == "Exact",
            stale: self.plan.lock().staleness(&asked.call),
        })
    }

    fn watch(&self, asked: &Asked) -> Result<Answer, Failure> {
        let text = |key: &str| asked.query.get(key).cloned().unwrap_or_default();
        let mut selector = asked.selector()?;
        if !asked.call.name.is_empty() {
            selector = Selector::parse("", &format!("metadata.name={}", asked.call.name))
                .unwrap_or_default();
        }
        let query = watch::Query {
            namespace: asked.call.namespace.clone(),
            selector,
            version: text("resourceVersion"),
            bookmarks: text("allowWatchBookmarks") == "true",
            initial_events: text("sendInitialEvents") == "true",
            timeout: text("timeoutSeconds").parse().ok(),
        };
        let cuts = self.cuts_of(&asked.call.user);
        let watch = Watch::new(&self.store, query, &cuts, &self.plan, &asked.call)?;
        let lines = futures::stream::unfold(watch, |mut watch| async move {
            let line = watch.next().await?;
            Some((line, watch))
        });
        let body = StreamBody::new(lines.map(|line| Ok::<_, Infallible>(Frame::data(line))));
        Ok(answer(200, body.boxed_unsync()))
    }

    fn create(&self, asked: &Asked) -> Result<Answer, Failure> {
        let Call { kind, namespace, name, subresource, .. } = &asked.call;
        let body = asked.json()?;
        match subresource.as_str() {
            "" if name.is_empty() => {
                let made = self.store.create(kind, namespace, body)?;
                Ok(json_answer(201, &made))
            }
            "eviction" if kind.plural == "pods" => {
                let how = Deletion::from_options(&body["deleteOptions"]);
                self.store.evict(namespace, name, &how)?;
                Ok(json_answer(
                    201,
                    &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {},
                    "status": "Success", "code": 201 }),
                ))
            }
            "binding" if kind.plural == "pods" => {
                let node = body["target"]["name"].as_str().unwrap_or_default();
                self.store.bind(namespace, name, node)?;
                Ok(json_answer(
                    201,
                    &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {},
                    "status": "Success", "code": 201 }),
                ))
            }
            _ => Err(Failure::no_such_path()),
        }
    }

    fn change(&self, asked: &Asked) -> Result<Answer, Failure> {
        let Call { kind, namespace, name, subresource, verb, .. } = &asked.call;
        let served = match subresource.as_str() {
            "" => true,
            "status" => kind.status,
            _ => false,
        };
        if !served {
            return Err(Failure::no_such_path());
        }
        let body = asked.json()?;
        let version = body["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        // Most built-in kinds allow updates without a version, custom ones do not.
        if *verb == "update" && kind.custom && version.is_empty() {
            let why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
            return Err(Failure::invalid(kind, name, why));
        }
        let stored = self.store.modify(kind, namespace, name, subresource, |object| {
            if *verb == "update" {
                *object = body;
                return Ok(());
            }
            merge::apply(object, &asked.content_type, &body)
        })?;
        Ok(json_answer(200, &stored))
    }

    fn delete_collection(&self, asked: &Asked) -> Result<Answer, Failure> {
        let (kind, selector) = (asked.call.kind, asked.selector()?);
        let how = Deletion::from_options(&asked.json_or_empty()?);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        for object in self.store.all(kind) {
            let (namespace, name) =
                (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
            let within = asked.call.namespace.is_empty() || asked.call.namespace == namespace;
            if within && selector.matches(&object) {
                let _ = self.store.delete(kind, &namespace, &name, &how);
            }
        }
        Ok(json_answer(
            200,
            &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Success", "code": 200 }),
        ))
    }
}

/// One request about objects.
pub(super) struct Asked {
    pub(super) call: Call,
    query: BTreeMap<String, String>,
    pub(super) body: Bytes,
    content_type: String,
}

impl Asked {
    fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|e| Failure::bad_request(format!("the object provided is unrecognized: {e}")))
    }

    fn json_or_empty(&self) -> Result<Value, Failure> {
        if self.body.is_empty() { Ok(Value::Null) } else { self.json() }
    }

    fn selector(&self) -> Result<Selector, Failure> {
        let text = |key: &str| self.query.get(key).map(String::as_str).unwrap_or_default();
        Selector::parse(text("labelSelector"), text("fieldSelector"))
    }
}

fn discovery(target: &Target) -> Result<Value, Failure> {
    match target {
        Target::Version => Ok(json!({ "major": "1", "minor": "36", "gitVersion": "v1.36.0" })),
        Target::CoreVersions => Ok(json!({ "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [] })),
        Target::Groups => {
            let mut groups: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
            for kind in KINDS.iter().filter(|k| !k.group.is_empty()) {
                let version =
                    json!({ "groupVersion": kind.api_version(), "version": kind.version });
                let known = groups.entry(kind.group).or_default();
                if !known.contains(&version) {
                    known.push(version);
                }
            }
            let list: Vec<Value> = groups
                .into_iter()
                .map(|(name, versions)| {
                    json!({ "name": name, "preferredVersion": versions[0], "versions": versions })
                })
                .collect();
            Ok(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": list }))
        }
        Target::Kinds(group, version) => {
            let list: Vec<Value> = KINDS
                .iter()
                .filter(|k| k.group == group && k.version == version)
                .map(|k| {
                    json!({ "name": k.plural, "singularName": k.kind.to_lowercase(),
                        "namespaced": k.namespaced, "kind": k.kind,
                        "verbs": ["create", "delete", "deletecollection", "get", "list", "patch",
                            "update", "watch"] })
                })
                .collect();
            if list.is_empty() {
                return Err(Failure::no_such_path());
            }
            let name =
                if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
            Ok(json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name,
                "resources": list }))
        }
        Target::Objects { .. } => Err(Failure::no_such_path()),
    }
}

fn success(object: &Value) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": { "name": object["metadata"]["name"], "uid": object["metadata"]["uid"] } })
}

fn answer(code: u16, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    answer
}

fn bytes_answer(code: u16, body: Bytes) -> Answer {
    answer(code, Full::new(body).boxed_unsync())
}

fn json_answer(code: u16, body: &Value) -> Answer {
    bytes_answer(code, Bytes::from(body.to_string()))
}

fn refusal(failure: &Failure) -> Answer {
    json_answer(failure.code, &failure.body())
}

/// One client's connection.
#[derive(Clone)]
struct Connection {
    server: ApiServer,
    user: String,
}

impl Service<Request<Body>> for Connection {
    type Response = Answer;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.server.answer(&this.user, request).await })
    }
}
