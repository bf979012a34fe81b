//! Instance profiles made from a node class's role.

use std::time::Duration;

use super::cache::TtlCache;
use super::clients::Clients;
use super::errors::AwsError;
use super::tags::CLUSTER_NAME;
use crate::api::labels;
use crate::api::v1::EC2NodeClass;
use crate::clock::Clock;

/// Makes, reads and removes instance profiles.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    cluster: String,
    /// Role of each known profile.
    roles: TtlCache<String, String>,
}

impl Provider {
    /// A provider with an empty cache.
    #[must_use]
    pub fn new(clients: Clients, clock: &Clock, cluster: &str) -> Self {
        let roles = TtlCache::new(clock.clone(), Duration::from_secs(15 * 60));
        Self { clients, cluster: cluster.to_owned(), roles }
    }

    /// Path under which all profiles of a node class lie.
    #[must_use]
    pub fn path(&self, class: &EC2NodeClass) -> String {
        let uid = class.metadata.uid.as_deref().unwrap_or("");
        format!("/karpenter/{}/{}/{uid}/", self.clients.region, self.cluster)
    }

    /// The name of the profile for a role; the same for the same role, so that a retry finds it.
    #[must_use]
    pub fn name_for(&self, class: &EC2NodeClass, role: &str) -> String {
        let seed = format!(
            "{}/{}/{}/{role}",
            self.clients.region,
            class.metadata.name.as_deref().unwrap_or(""),
            class.metadata.uid.as_deref().unwrap_or("")
        );
        let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, seed.as_bytes());
        let number = id.as_u64_pair().0;
        let room = 128_usize.saturating_sub(number.to_string().len() + 1);
        let cluster: String = self.cluster.chars().take(room).collect();
        format!("{cluster}_{number}")
    }

    /// Makes sure that a profile with the role exists; returns its name.
    ///
    /// # Errors
    /// When IAM refuses, or the role does not exist.
    pub async fn ensure(&self, class: &EC2NodeClass, role: &str) -> Result<String, AwsError> {
        let name = self.name_for(class, role);
        let wanted = role.rsplit('/').next().unwrap_or(role);
        if self.roles.get(&name).as_deref() == Some(wanted) {
            return Ok(name);
        }
        let current = match self.get(&name).await {
            Ok(role) => role,
            Err(error) if error.is_not_found() => {
                self.create(class, &name).await?;
                None
            }
            Err(error) => return Err(error),
        };
        if current.as_deref() != Some(wanted) {
            if let Some(old) = current {
                self.remove_role(&name, &old).await?;
            }
            self.clients
                .iam
                .add_role_to_instance_profile()
                .instance_profile_name(&name)
                .role_name(wanted)
                .send()
                .await
                .map_err(|e| AwsError::new("AddRoleToInstanceProfile", &e))?;
        }
        self.roles.set(name.clone(), wanted.to_owned());
        Ok(name)
    }

    async fn get(&self, name: &str) -> Result<Option<String>, AwsError> {
        let answer = self
            .clients
            .iam
            .get_instance_profile()
            .instance_profile_name(name)
            .send()
            .await
            .map_err(|e| AwsError::new("GetInstanceProfile", &e))?;
        Ok(answer
            .instance_profile()
            .and_then(|p| p.roles().first())
            .map(|r| r.role_name().to_owned()))
    }

    async fn create(&self, class: &EC2NodeClass, name: &str) -> Result<(), AwsError> {
        let mut tags = class.spec.tags.clone().unwrap_or_default();
        tags.extend([
            (format!("kubernetes.io/cluster/{}", self.cluster), "owned".to_owned()),
            (CLUSTER_NAME.to_owned(), self.cluster.clone()),
            (labels::EC2NODECLASS.to_owned(), class.metadata.name.clone().unwrap_or_default()),
            (labels::REGION.to_owned(), self.clients.region.clone()),
        ]);
        let mut request = self
            .clients
            .iam
            .create_instance_profile()
            .instance_profile_name(name)
            .path(self.path(class));
        for (key, value) in &tags {
            if let Ok(tag) = aws_sdk_iam::types::Tag::builder().key(key).value(value).build() {
                request = request.tags(tag);
            }
        }
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                let error = AwsError::new("CreateInstanceProfile", &error);
                if error.is_already_exists() { Ok(()) } else { Err(error) }
            }
        }
    }

    async fn remove_role(&self, name: &str, role: &str) -> Result<(), AwsError> {
        self.clients
            .iam
            .remove_role_from_instance_profile()
            .instance_profile_name(name)
            .role_name(role)
            .send()
            .await
            .map_err(|e| AwsError::new("RemoveRoleFromInstanceProfile", &e))?;
        Ok(())
    }

    /// Removes every profile that was made for a node class.
    ///
    /// # Errors
    /// When IAM refuses; what is gone already does not count.
    pub async fn delete_all(&self, class: &EC2NodeClass) -> Result<(), AwsError> {
        let path = self.path(class);
        let answer = self
            .clients
            .iam
            .list_instance_profiles()
            .path_prefix(&path)
            .send()
            .await
            .map_err(|e| AwsError::new("ListInstanceProfiles", &e))?;
        for profile in answer.instance_profiles().iter().filter(|p| p.path() == path) {
            let name = profile.instance_profile_name();
            for role in profile.roles() {
                self.remove_role(name, role.role_name()).await?;
            }
            let deleted =
                self.clients.iam.delete_instance_profile().instance_profile_name(name).send().await;
            if let Err(error) = deleted {
                let error = AwsError::new("DeleteInstanceProfile", &error);
                if !error.is_not_found() {
                    return Err(error);
                }
            }
            self.roles.remove(&name.to_owned());
        }
        Ok(())
    }
}
