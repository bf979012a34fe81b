//! The `karpenter` binary as a child process, with its log.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{World, until};

/// A running controller; killed when dropped.
pub struct Controller {
    child: Child,
    log: PathBuf,
    /// Port of the Prometheus endpoint.
    pub metrics_port: u16,
    /// Port of the health endpoints.
    pub health_port: u16,
}

/// A port that nothing listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Controller {
    /// Starts the controller in a world.
    pub fn start(world: &World) -> Self {
        Self::with(world, &[])
    }

    /// Starts the controller in a world with more settings (`NAME`, value).
    pub fn with(world: &World, settings: &[(&str, &str)]) -> Self {
        let (metrics, health, webhook) = (free_port(), free_port(), free_port());
        let number = std::fs::read_dir(world.dir.join("logs")).map_or(0, Iterator::count);
        let log = world.dir.join("logs").join(format!("karpenter-{number}.log"));
        let out = std::fs::File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_karpenter"))
            .env_clear()
            .envs(
                std::env::vars().filter(|(k, _)| matches!(k.as_str(), "PATH" | "HOME" | "TMPDIR")),
            )
            .envs(&world.env)
            .env("METRICS_PORT", metrics.to_string())
            .env("HEALTH_PROBE_PORT", health.to_string())
            .env("WEBHOOK_PORT", webhook.to_string())
            .env("WEBHOOK_URL", format!("https://127.0.0.1:{webhook}"))
            .env("DISABLE_LEADER_ELECTION", "true")
            .env("LOG_LEVEL", "debug")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Self { child, log, metrics_port: metrics, health_port: health }
    }

    /// Kills it as the kernel would: no clean-up of its own.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Keeps it from running, or lets it run on.
    pub fn hold(&self, still: bool) {
        let signal = if still { "-STOP" } else { "-CONT" };
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// True as long as the process lives.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its exit code once it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().and_then(|status| status.code())
    }

    /// Asks it to stop and waits for it; gives the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        self.child.wait().ok().and_then(|s| s.code())
    }

    /// Every line of its log so far that is whole.
    pub fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    /// Its log so far; lines that are not JSON are left out.
    pub fn log(&self) -> Vec<Value> {
        self.lines().iter().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    /// Lines with that message.
    pub fn logged(&self, message: &str) -> Vec<Value> {
        self.log().into_iter().filter(|l| l["message"] == message).collect()
    }

    /// Waits for a line whose text has all of these in it.
    pub async fn says(&self, parts: &[&str]) -> String {
        until(&format!("a log line with {parts:?}"), || async {
            self.lines().into_iter().find(|l| parts.iter().all(|p| l.contains(p)))
        })
        .await
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.kill();
    }
}
