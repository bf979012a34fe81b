//! SSM parameters, read once and kept.

use std::time::Duration;

use super::cache::TtlCache;
use super::clients::Clients;
use super::errors::AwsError;
use crate::clock::Clock;

/// How long AWS's own parameters are kept.
const PUBLIC_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long a user's parameters are kept.
const CUSTOM_TTL: Duration = Duration::from_secs(300);

/// Who may change a parameter's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// AWS does, with every release of an image.
    Mutable,
    /// Nobody: the name says which release it is.
    Immutable,
    /// Its owner does, whenever.
    Custom,
}

/// A parameter to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name or ARN.
    pub name: String,
    /// Who may change it.
    pub kind: Kind,
}

/// Reads parameters.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    public: TtlCache<String, (Kind, String)>,
    custom: TtlCache<String, String>,
    /// One call at a time, so that node classes with the same alias share its answer.
    asking: tokio::sync::Mutex<()>,
}

impl Provider {
    /// A provider with empty caches.
    #[must_use]
    pub fn new(clients: Clients, clock: &Clock) -> Self {
        Self {
            clients,
            public: TtlCache::new(clock.clone(), PUBLIC_TTL),
            custom: TtlCache::new(clock.clone(), CUSTOM_TTL),
            asking: tokio::sync::Mutex::new(()),
        }
    }

    /// The value of a parameter. Failures are not kept.
    ///
    /// # Errors
    /// When SSM refuses; a parameter that does not exist is "not found".
    pub async fn get(&self, parameter: &Parameter) -> Result<String, AwsError> {
        let _one_at_a_time = self.asking.lock().await;
        let name = &parameter.name;
        let cached = if parameter.kind == Kind::Custom {
            self.custom.get(name)
        } else {
            self.public.get(name).map(|(_, value)| value)
        };
        if let Some(value) = cached {
            return Ok(value);
        }
        let answer = self
            .clients
            .ssm
            .get_parameter()
            .name(name)
            .send()
            .await
            .map_err(|e| AwsError::new("GetParameter", &e))?;
        let value = answer.parameter().and_then(|p| p.value()).unwrap_or_default().to_owned();
        tracing::info!("parameter" = name, "value" = value, "discovered ssm parameter");
        if parameter.kind == Kind::Custom {
            self.custom.set(name.clone(), value.clone());
        } else {
            self.public.set(name.clone(), (parameter.kind, value.clone()));
        }
        Ok(value)
    }

    /// The kept parameters that AWS may have moved, with their values.
    #[must_use]
    pub fn mutable(&self) -> Vec<(String, String)> {
        let moves = |(name, (kind, value)): (String, (Kind, String))| {
            (kind == Kind::Mutable).then_some((name, value))
        };
        self.public.entries().into_iter().filter_map(moves).collect()
    }

    /// Forgets a parameter, so that it is read again.
    pub fn forget(&self, name: &str) {
        self.public.remove(&name.to_owned());
    }
}
