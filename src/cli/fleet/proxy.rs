//! What the running controller answers, asked through the API server with the user's own rights.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::api::v1::NodePool;
use crate::fleet::{Fleet, SCHEMA};
use crate::operator::fleet_api::Saving;

/// Label that the chart puts on the controller's Service.
const SELECTOR: &str = "app.kubernetes.io/name=karpenter";
/// Name of the Service's port, if the API is exposed.
const PORT: &str = "api";
/// How long the controller may take to answer; then the answer is computed here, which takes
/// longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the controller answered, and the NodePools.
pub(super) struct Answer {
    pub(super) fleet: Fleet,
    pub(super) pools: Vec<Arc<NodePool>>,
    pub(super) savings: Vec<Saving>,
}

/// The part of the time line that is used here.
#[derive(Deserialize)]
struct Saved {
    #[serde(default)]
    savings: Vec<Saving>,
}

/// The controller's figures, and the NodePools.
///
/// # Errors
/// One line that says why no controller answered.
pub(super) fn ask() -> Result<Answer, String> {
    block_on(async {
        let client = Client::try_default().await.map_err(|e| e.to_string())?;
        let services: Api<Service> = Api::all(client.clone());
        let found = services
            .list(&ListParams::default().labels(SELECTOR))
            .await
            .map_err(|e| e.to_string())?;
        let service = found.items.into_iter().find(|s| {
            let ports = s.spec.as_ref().and_then(|s| s.ports.as_ref());
            ports.is_some_and(|ports| ports.iter().any(|p| p.name.as_deref() == Some(PORT)))
        });
        let service = service.ok_or("no Service of the controller has a port named \"api\"")?;
        // Through the API server's proxy, so that access to the cluster is enough: the user needs
        // no port of the controller.
        let base = format!(
            "/api/v1/namespaces/{}/services/{}:{PORT}/proxy/v1",
            service.metadata.namespace.unwrap_or_default(),
            service.metadata.name.unwrap_or_default()
        );
        let fleet: Fleet = get(&client, format!("{base}/fleet")).await?;
        // A controller of another release may serve another schema.
        if fleet.schema != SCHEMA {
            return Err(format!("it answers in {:?}, expected {SCHEMA:?}", fleet.schema));
        }
        let Saved { savings } = get(&client, format!("{base}/timeline")).await?;
        let pools: Api<NodePool> = Api::all(client);
        let pools = pools.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
        Ok(Answer { fleet, pools: pools.items.into_iter().map(Arc::new).collect(), savings })
    })
}

async fn get<T: DeserializeOwned>(client: &Client, path: String) -> Result<T, String> {
    let request = axum::http::Request::get(path).body(Vec::new()).map_err(|e| e.to_string())?;
    client.request(request).await.map_err(|e| e.to_string())
}

/// The node of a pod that exists: `None` for no such pod, `Some(None)` for one without a node.
///
/// # Errors
/// One line that says why the API server could not be asked.
pub(super) fn node_of_pod(namespace: &str, name: &str) -> Result<Option<Option<String>>, String> {
    block_on(async {
        let client = Client::try_default().await.map_err(|e| e.to_string())?;
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let pod = pods.get_opt(name).await.map_err(|e| e.to_string())?;
        Ok(pod.map(|p| p.spec.and_then(|s| s.node_name).filter(|n| !n.is_empty())))
    })
}

fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let patient = tokio::time::timeout(PATIENCE, work).await;
        patient.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
    })
}
