//! SSM parameters, read once and kept.

use std::time::Duration;

use super::clients::Clients;
use super::errors::AwsError;
use super::flight::Memo;
use crate::clock::Clock;

/// How long AWS's own parameters are kept. Those that may move are checked for deprecated images by
/// [`Provider::mutable`] before that.
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
    public: Memo<String, (Kind, String), AwsError>,
    custom: Memo<String, (Kind, String), AwsError>,
}

impl Provider {
    /// A provider with empty caches.
    #[must_use]
    pub fn new(clients: Clients, clock: &Clock) -> Self {
        Self { clients, public: Memo::new(clock, PUBLIC_TTL), custom: Memo::new(clock, CUSTOM_TTL) }
    }

    /// The value of a parameter. Node classes that need the same one share a call; failures are
    /// not kept.
    ///
    /// # Errors
    /// When SSM refuses; a parameter that does not exist is "not found".
    pub async fn get(&self, parameter: &Parameter) -> Result<String, AwsError> {
        let kept = if parameter.kind == Kind::Custom { &self.custom } else { &self.public };
        let found = kept.get(&parameter.name, || self.read(parameter)).await?;
        Ok(found.1)
    }

    async fn read(&self, parameter: &Parameter) -> Result<(Kind, String), AwsError> {
        let name = &parameter.name;
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
        Ok((parameter.kind, value))
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
        self.public.forget(&name.to_owned());
    }
}
