//! A stand-in for EC2 and the API server, for tests of what launches make of their answers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Options, Parts, Provider};
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, NodeClaim};
use crate::clock::Clock;
use crate::cloud::aws::clients::Clients;
use crate::cloud::aws::permissions::Permissions;
use crate::cloud::aws::unavailable::UnavailableOfferings;
use crate::cloud::aws::{capacityreservation, launchtemplate, placementgroup, subnet, zonalshift};
use crate::scheduling::instance_type::{InstanceType, Offering};
use crate::scheduling::requirements::Requirement;
use crate::scheduling::resources::Name;

/// One EC2 call that was made: its parameters.
pub(super) type Call = BTreeMap<String, String>;

/// Answers calls, and remembers them.
#[derive(Debug, Default)]
pub(super) struct Stub {
    /// Answers to give, by action, each once: status and body.
    answers: Mutex<BTreeMap<&'static str, VecDeque<(u16, String)>>>,
    calls: Mutex<Vec<Call>>,
    /// The next call of this action takes so long.
    slow: Mutex<Option<(&'static str, Duration)>>,
    /// What was written to the API server.
    written: Mutex<Vec<Value>>,
    /// NodeClaims that the API server has.
    pub(super) claims: Mutex<Vec<Value>>,
}

impl Stub {
    /// The next call of that action gets this answer.
    pub(super) fn answer(&self, action: &'static str, body: &str) {
        self.push(action, 200, body.to_owned());
    }

    /// The next call of that action fails.
    pub(super) fn fail(&self, action: &'static str, status: u16, code: &str, message: &str) {
        self.push(action, status, failure(code, message));
    }

    /// The next call of that action is answered after a while.
    pub(super) fn slow(&self, action: &'static str, delay: Duration) {
        *self.slow.lock() = Some((action, delay));
    }

    fn push(&self, action: &'static str, status: u16, body: String) {
        self.answers.lock().entry(action).or_default().push_back((status, body));
    }

    /// Calls of an action so far.
    pub(super) fn calls(&self, action: &str) -> Vec<Call> {
        let calls = self.calls.lock();
        calls.iter().filter(|c| c["Action"] == action).cloned().collect()
    }

    /// Messages of the events that were written.
    pub(super) fn events(&self) -> Vec<String> {
        let text = |v: &Value| v["message"].as_str().unwrap_or_default().to_owned();
        self.written.lock().iter().map(text).collect()
    }

    /// What EC2 says of an action that no answer was given for.
    fn usual(action: &str) -> (u16, String) {
        match action {
            "DescribeLaunchTemplates" => {
                (400, failure("InvalidLaunchTemplateName.NotFoundException", "none"))
            }
            "CreateLaunchTemplate" => (
                200,
                "<CreateLaunchTemplateResponse><launchTemplate><launchTemplateId>lt-1\
                 </launchTemplateId></launchTemplate></CreateLaunchTemplateResponse>"
                    .to_owned(),
            ),
            "DescribeInstances" => (
                200,
                "<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>"
                    .to_owned(),
            ),
            _ => (400, failure("InvalidAction", action)),
        }
    }
}

fn failure(code: &str, message: &str) -> String {
    format!(
        "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
         <RequestID>r-1</RequestID></Response>"
    )
}

/// A fleet's answer: ids of its instances, all m5.large in zone a.
pub(super) fn fleet(ids: &[&str]) -> String {
    let ids: String = ids.iter().map(|id| format!("<item>{id}</item>")).collect();
    format!(
        "<CreateFleetResponse><fleetId>fleet-1</fleetId><fleetInstanceSet><item>\
         <launchTemplateAndOverrides><overrides><instanceType>m5.large</instanceType>\
         <subnetId>subnet-a</subnetId><availabilityZone>a</availabilityZone></overrides>\
         </launchTemplateAndOverrides><instanceIds>{ids}</instanceIds>\
         <instanceType>m5.large</instanceType></item></fleetInstanceSet></CreateFleetResponse>"
    )
}

async fn serve(State(stub): State<Arc<Stub>>, method: Method, uri: Uri, body: Bytes) -> Response {
    if uri.path() != "/" {
        if method == Method::GET {
            let items = stub.claims.lock().clone();
            return axum::Json(json!({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaimList",
                "metadata": {}, "items": items}))
            .into_response();
        }
        let object: Value = serde_json::from_slice(&body).unwrap_or_default();
        stub.written.lock().push(object.clone());
        return axum::Json(object).into_response();
    }
    let axum::extract::Query(call) = axum::extract::Query::<Call>::try_from_uri(
        &format!("/?{}", String::from_utf8_lossy(&body)).parse().unwrap(),
    )
    .unwrap();
    let action = call["Action"].clone();
    stub.calls.lock().push(call);
    let delay = stub.slow.lock().take_if(|(slow, _)| *slow == action);
    if let Some((_, delay)) = delay {
        tokio::time::sleep(delay).await;
    }
    let given = stub.answers.lock().get_mut(action.as_str()).and_then(VecDeque::pop_front);
    let (status, text) = given.unwrap_or_else(|| Stub::usual(&action));
    let status = axum::http::StatusCode::from_u16(status).unwrap();
    (status, [("content-type", "text/xml")], text).into_response()
}

/// A provider whose EC2 and API server are the stub's.
pub(super) struct World {
    pub(super) stub: Arc<Stub>,
    pub(super) provider: Provider,
    pub(super) unavailable: Arc<UnavailableOfferings>,
    pub(super) subnets: Arc<subnet::Provider>,
    pub(super) reservations: Arc<capacityreservation::Provider>,
    pub(super) shifts: Arc<zonalshift::Provider>,
    pub(super) kube: kube::Client,
    pub(super) clock: Clock,
}

impl World {
    pub(super) async fn new() -> Self {
        let stub = Arc::<Stub>::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(serve).with_state(Arc::clone(&stub));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let credentials = aws_sdk_ec2::config::Credentials::new("id", "secret", None, None, "test");
        let config = aws_config::defaults(aws_config::BehaviorVersion::latest())
            .region(aws_config::Region::new("us-east-1"))
            .credentials_provider(credentials)
            .endpoint_url(&url)
            .retry_config(aws_config::retry::RetryConfig::disabled())
            .load()
            .await;
        let clients = Clients::new(&config);
        let kube = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let clock = Clock::manual(Timestamp::from_second(1_000_000).unwrap());
        let unavailable = Arc::new(UnavailableOfferings::new(&clock));
        let permissions = Arc::new(Permissions::new(&clock));
        let subnets =
            Arc::new(subnet::Provider::new(clients.clone(), &clock, Duration::from_secs(60)));
        let reservations =
            Arc::new(capacityreservation::Provider::new(clients.clone(), &clock, &permissions));
        let cluster = launchtemplate::Cluster {
            name: "weasel-eks".to_owned(),
            region: "us-east-1".to_owned(),
            endpoint: "https://k.example".to_owned(),
            cidr: Some("10.100.0.0/16".to_owned()),
            reserved_capacity: true,
            ..launchtemplate::Cluster::default()
        };
        let shifts = Arc::new(zonalshift::Provider::new(clients.clone(), &clock, true));
        let parts = Parts {
            kube: kube.clone(),
            clock: clock.clone(),
            unavailable: Arc::clone(&unavailable),
            subnets: Arc::clone(&subnets),
            templates: Arc::new(launchtemplate::Provider::new(clients.clone(), &clock, cluster)),
            placement_groups: Arc::new(placementgroup::Provider::new(
                clients.clone(),
                &clock,
                &permissions,
            )),
            reservations: Arc::clone(&reservations),
            shifts: Arc::clone(&shifts),
            clients,
        };
        let options = Options {
            cluster: "weasel-eks".to_owned(),
            reserved_capacity: true,
            best_effort_min_values: false,
        };
        let provider = Provider::new(parts, options);
        // Launches of an earlier process have settled.
        clock.advance(Duration::from_secs(60));
        Self { stub, provider, unavailable, subnets, reservations, shifts, kube, clock }
    }
}

/// A node class that can be launched from.
pub(super) fn class() -> EC2NodeClass {
    let spec = json!({"amiFamily": "AL2023", "role": "r"});
    let mut class = EC2NodeClass::new("default", serde_json::from_value(spec).unwrap());
    class.status = Some(
        serde_json::from_value(json!({
            "instanceProfile": "profile-1",
            "securityGroups": [{"id": "sg-1"}],
            "subnets": [
                {"id": "subnet-a", "zone": "a", "zoneID": "id-a"},
                {"id": "subnet-b", "zone": "b", "zoneID": "id-b"},
            ],
            "amis": [{"id": "ami-1", "requirements": []}]}))
        .unwrap(),
    );
    class
}

/// A claim for one of these capacity types.
pub(super) fn claim(clock: &Clock, capacity_types: &[&str]) -> NodeClaim {
    serde_json::from_value(json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
        "metadata": {"name": "claim-1", "uid": "uid-1",
            "creationTimestamp": clock.now().to_string(),
            "labels": {labels::NODEPOOL: "default"}},
        "spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
            "requirements": [{"key": labels::CAPACITY_TYPE, "operator": "In", "values": capacity_types}],
        },
    }))
    .unwrap()
}

/// A type that is available everywhere, also reserved in zone a.
pub(super) fn kind(name: &str) -> Arc<InstanceType> {
    let offering = |capacity_type: &str, zone: &str, price: f64| Offering {
        requirements: [
            Requirement::is(labels::CAPACITY_TYPE, capacity_type),
            Requirement::is(labels::ZONE, zone),
        ]
        .into_iter()
        .collect(),
        price,
        available: true,
        ..Offering::default()
    };
    let mut reserved = offering("reserved", "a", 0.0001);
    for (key, value) in [
        (labels::CAPACITY_RESERVATION_ID, "cr-1"),
        (labels::CAPACITY_RESERVATION_TYPE, "default"),
        (labels::CAPACITY_RESERVATION_INTERRUPTIBLE, "false"),
    ] {
        reserved.requirements.add(Requirement::is(key, value));
    }
    reserved.reservation_capacity = 3;
    let mut offerings = vec![reserved];
    for zone in ["a", "b"] {
        offerings.push(offering("spot", zone, 0.05));
        offerings.push(offering("on-demand", zone, 0.1));
    }
    Arc::new(InstanceType {
        name: name.into(),
        requirements: [
            Requirement::is(labels::INSTANCE_TYPE, name),
            Requirement::is(labels::ARCH, "amd64"),
            Requirement::new(
                labels::CAPACITY_TYPE,
                crate::api::v1::Operator::In,
                ["reserved", "spot", "on-demand"],
            ),
        ]
        .into_iter()
        .collect(),
        offerings,
        capacity: [(Name::Pods, 29)].into_iter().collect(),
        ..InstanceType::default()
    })
}
