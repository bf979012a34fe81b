//! A control plane and an AWS of one test's own.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aws_config::{BehaviorVersion, Region};
use aws_sdk_ec2::config::Credentials;
use aws_sdk_ec2::types::Instance;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use karpenter::api::v1::NodeClaim;
use kube::api::ListParams;
use kube::{Api, Client, Config};
use serde_json::{Value, json};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The local world of `tests/env`, taken down when dropped.
pub struct World {
    folder: Option<tempfile::TempDir>,
    pub dir: PathBuf,
    /// What a controller's environment has to have.
    pub env: BTreeMap<String, String>,
    pub kube: Client,
    pub ec2: aws_sdk_ec2::Client,
    pub aws: aws_config::SdkConfig,
    admin: Client,
}

impl World {
    /// Brings a world up with the CRDs in it; instances boot within about two seconds.
    pub async fn up() -> Self {
        Self::with(&[]).await
    }

    /// Brings a world up, with more options for `tests/env/world up`.
    pub async fn with(options: &[&str]) -> Self {
        let world = Self::bare(options).await;
        world.kubectl(&["apply", "--server-side", "-f", &root().join("crds").to_string_lossy()]);
        world.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]);
        world
    }

    /// Brings a world up that has no CRDs yet.
    pub async fn bare(options: &[&str]) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::Builder::new().prefix("karpenter-e2e-").tempdir().unwrap();
        let dir = folder.path().to_path_buf();
        let watched = std::process::id().to_string();
        let up = Command::new(root().join("tests/env/world"))
            .args(["up", "--watch-pid", &watched, "--dir"])
            .arg(&dir)
            .args(options)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(up.status.success(), "the world did not come up: {up:?}");
        let text = std::fs::read_to_string(dir.join("env")).unwrap();
        let env: BTreeMap<String, String> = text
            .lines()
            .filter_map(|l| l.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        let config = kube::config::Kubeconfig::read_from(&env["KUBECONFIG"]).unwrap();
        let config = Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
        let aws = aws_config::defaults(BehaviorVersion::latest())
            .endpoint_url(&env["AWS_ENDPOINT_URL"])
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
            .load()
            .await;
        Self {
            folder: Some(folder),
            kube: Client::try_from(config).unwrap(),
            ec2: aws_sdk_ec2::Client::new(&aws),
            admin: Client::try_from(Config::new(env["AWS_ENDPOINT_URL"].parse().unwrap())).unwrap(),
            aws,
            dir,
            env,
        }
    }

    /// Lets a Node have been created so many seconds earlier than it was.
    pub fn make_older(&self, node: &str, seconds: i64) {
        let done = Command::new(root().join("tests/env/world"))
            .args(["age", node, &seconds.to_string(), "--dir"])
            .arg(&self.dir)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    /// Runs kubectl as the administrator.
    ///
    /// # Panics
    /// When it fails.
    pub fn kubectl(&self, words: &[&str]) -> String {
        self.kubectl_with(words, "").unwrap_or_else(|e| panic!("kubectl {words:?}: {e}"))
    }

    /// Runs kubectl with text on its standard input; gives its output, or what it complained of.
    pub fn kubectl_with(&self, words: &[&str], input: &str) -> Result<String, String> {
        let mut child = Command::new(&self.env["KUBECTL"])
            .args(["--kubeconfig", &self.env["KUBECONFIG"]])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let done = child.wait_with_output().unwrap();
        if done.status.success() {
            return Ok(String::from_utf8(done.stdout).unwrap());
        }
        Err(String::from_utf8_lossy(&done.stderr).into_owned())
    }

    /// Applies manifests, retried while the conversion webhook is on its way up.
    pub async fn apply(&self, manifests: &str) {
        let mut last = String::new();
        for _ in 0..60 {
            match self.kubectl_with(&["apply", "-f", "-"], manifests) {
                Ok(_) => return,
                Err(error) => last = error,
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
        panic!("applying failed: {last}");
    }

    /// Applies a file of the repository as it is.
    pub async fn apply_file(&self, path: &str) {
        self.apply(&std::fs::read_to_string(root().join(path)).unwrap()).await;
    }

    /// Calls the local AWS's admin API (`tests/env/README.md`): POST with a body, GET without.
    pub async fn admin(&self, path: &str, body: Option<Value>) -> Value {
        self.admin_call(if body.is_some() { "POST" } else { "GET" }, path, body).await
    }

    /// Calls the local AWS's admin API.
    pub async fn admin_call(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let bytes = body.map(|b| serde_json::to_vec(&b).unwrap()).unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(format!("/_local/{path}"))
            .body(bytes)
            .unwrap();
        let text = self.admin.request_text(request).await.unwrap();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Makes calls fail, or slow; see `faults` of the admin API.
    pub async fn fault(&self, rule: Value) {
        self.admin("faults", Some(rule)).await;
    }

    /// Takes every fault back.
    pub async fn heal(&self) {
        self.admin_call("DELETE", "faults", None).await;
    }

    /// Calls that the local AWS was asked, by action.
    pub async fn calls(&self, action: &str) -> Vec<Value> {
        match self.admin(&format!("calls?action={action}"), None).await {
            Value::Array(calls) => calls,
            _ => Vec::new(),
        }
    }

    /// Instances that Karpenter launched and that are not gone.
    pub async fn instances(&self) -> Vec<Instance> {
        let found = self.ec2.describe_instances().send().await.unwrap();
        found
            .reservations
            .unwrap_or_default()
            .into_iter()
            .flat_map(|r| r.instances.unwrap_or_default())
            .filter(|i| i.tags().iter().any(|t| t.key() == Some("karpenter.sh/nodepool")))
            .filter(|i| {
                let state = i.state().and_then(|s| s.name()).map(|n| n.as_str().to_owned());
                !matches!(state.as_deref(), Some("terminated" | "shutting-down"))
            })
            .collect()
    }

    /// Names of the launch templates that are there.
    pub async fn launch_templates(&self) -> Vec<String> {
        let found = self.ec2.describe_launch_templates().send().await.unwrap();
        let names = found.launch_templates().iter();
        names.filter_map(|t| t.launch_template_name.clone()).collect()
    }

    /// Every NodeClaim.
    pub async fn claims(&self) -> Vec<NodeClaim> {
        Api::all(self.kube.clone()).list(&ListParams::default()).await.unwrap().items
    }

    /// Every Node.
    pub async fn nodes(&self) -> Vec<Node> {
        Api::all(self.kube.clone()).list(&ListParams::default()).await.unwrap().items
    }

    /// Pods of all namespaces.
    pub async fn pods(&self) -> Vec<Pod> {
        Api::all(self.kube.clone()).list(&ListParams::default()).await.unwrap().items
    }

    /// How many pods run.
    pub async fn running(&self) -> usize {
        let phase = |p: &Pod| p.status.as_ref().and_then(|s| s.phase.clone());
        self.pods().await.iter().filter(|p| phase(p).as_deref() == Some("Running")).count()
    }

    /// Texts of the events with that reason.
    pub async fn events(&self, reason: &str) -> Vec<String> {
        let all: Vec<Event> =
            Api::all(self.kube.clone()).list(&ListParams::default()).await.unwrap().items;
        let wanted = all.into_iter().filter(|e| e.reason.as_deref() == Some(reason));
        wanted.filter_map(|e| e.message).collect()
    }

    /// A Deployment of pods that do nothing.
    pub async fn deploy(&self, name: &str, replicas: i32, cpu: &str, memory: &str) {
        let manifest = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
                        "name": "pause", "image": "pause",
                        "resources": {"requests": {"cpu": cpu, "memory": memory}}}]},
                },
            },
        });
        self.apply(&manifest.to_string()).await;
    }

    /// Sets a Deployment's replicas.
    pub fn scale(&self, name: &str, replicas: i32) {
        self.kubectl(&["scale", "deployment", name, &format!("--replicas={replicas}")]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let keep = std::env::var_os("E2E_KEEP").is_some() || std::thread::panicking();
        let _ = Command::new(root().join("tests/env/world"))
            .args(["down", "--dir"])
            .arg(&self.dir)
            .stdin(Stdio::null())
            .output();
        if keep && let Some(folder) = self.folder.take() {
            eprintln!("logs kept in {}", folder.keep().display());
        }
    }
}
