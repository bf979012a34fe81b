//! Instance profiles made from a node class's role.

use std::sync::Arc;
use std::time::Duration;

use super::cache::TtlCache;
use super::clients::Clients;
use super::errors::AwsError;
use super::permissions::{Feature, Permissions};
use super::tags::CLUSTER_NAME;
use crate::api::hash::fnv1;
use crate::api::labels;
use crate::api::v1::EC2NodeClass;
use crate::clock::Clock;

// Karpenter's value: profiles hardly ever change, and IAM's rate limits are low.
const PROFILE_TTL: Duration = Duration::from_secs(15 * 60);
/// How long IAM is not asked again about a role that it did not know.
const MISSING_ROLE_TTL: Duration = Duration::from_secs(60);
/// How long a profile that was just in use is kept from collection.
const PROTECTION: Duration = Duration::from_secs(3600);

/// What IAM has of an instance profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Profile {
    path: String,
    /// Its role's name, without a path.
    role: Option<String>,
}

/// Makes, reads and removes instance profiles.
#[derive(Debug)]
pub struct Provider {
    clients: Clients,
    permissions: Arc<Permissions>,
    cluster: String,
    profiles: TtlCache<String, Profile>,
    missing_roles: TtlCache<String, AwsError>,
    protected: TtlCache<String, ()>,
}

impl Provider {
    /// A provider with empty caches.
    #[must_use]
    pub fn new(
        clients: Clients,
        clock: &Clock,
        permissions: &Arc<Permissions>,
        cluster: &str,
    ) -> Self {
        Self {
            clients,
            permissions: Arc::clone(permissions),
            cluster: cluster.to_owned(),
            profiles: TtlCache::new(clock.clone(), PROFILE_TTL),
            missing_roles: TtlCache::new(clock.clone(), MISSING_ROLE_TTL),
            protected: TtlCache::new(clock.clone(), PROTECTION),
        }
    }

    /// Path under which all profiles of this cluster lie.
    #[must_use]
    pub fn cluster_path(&self) -> String {
        format!("/karpenter/{}/{}/", self.clients.region, self.cluster)
    }

    /// Path under which all profiles of a node class lie.
    #[must_use]
    pub fn path(&self, class: &EC2NodeClass) -> String {
        format!("{}{}/", self.cluster_path(), class.metadata.uid.as_deref().unwrap_or(""))
    }

    /// The name of the profile that comes after `before` for a role.
    ///
    /// Each change of role gets a name of its own, but one that a retry works out again: a process
    /// that dies before it wrote the name down leaves nothing behind.
    fn next_name(&self, class: &EC2NodeClass, role: &str, before: Option<&str>) -> String {
        let seed = [
            self.clients.region.as_str(),
            class.metadata.name.as_deref().unwrap_or(""),
            class.metadata.uid.as_deref().unwrap_or(""),
            role,
            before.unwrap_or(""),
        ];
        format!("{}_{}", self.cluster, fnv1(seed.join("/").as_bytes()))
    }

    /// The name that releases before profile paths gave, if IAM could have taken it.
    ///
    /// # Errors
    /// The name, when IAM never took it.
    pub fn legacy_name(&self, class: &EC2NodeClass) -> Result<String, String> {
        let name = class.metadata.name.as_deref().unwrap_or("");
        let name = legacy_name(&self.cluster, &self.clients.region, name);
        if is_valid_name(&name) { Ok(name) } else { Err(name) }
    }

    /// Makes sure that a profile with the role exists; returns its name.
    ///
    /// The profile in use (`current`) is kept while it has the role and was made for the class;
    /// else a new one is made and both are protected from collection. One of the user's, which the
    /// class had before, is not the class's to keep: its owner may change or remove it.
    ///
    /// # Errors
    /// When IAM refuses, or the role does not exist.
    pub async fn ensure(
        &self,
        class: &EC2NodeClass,
        role: &str,
        current: Option<&str>,
    ) -> Result<String, ProfileError> {
        if let Some(name) = current {
            let has = match self.get(name).await {
                Ok(has) => has,
                Err(error) if error.is_not_found() => Profile::default(),
                Err(error) => return Err(ProfileError::Get(name.to_owned(), error)),
            };
            if has.role.as_deref() == Some(bare(role)) && self.is_own(class, name, &has) {
                return Ok(name.to_owned());
            }
        }
        if let Some(error) = self.missing_roles.get(&bare(role).to_owned()) {
            return Err(ProfileError::RoleNotFound(error));
        }
        let name = self.next_name(class, role, current);
        // Before it is there, so that no collection comes between.
        self.protect(&name);
        if let Err(error) = self.create(class, &name, role).await {
            // Best effort: what cannot be removed now is collected later.
            let _ = self.delete(&name).await;
            return Err(if self.missing_roles.get(&bare(role).to_owned()).is_some() {
                ProfileError::RoleNotFound(error)
            } else {
                ProfileError::Create(error)
            });
        }
        if let Some(old) = current {
            self.protect(old);
        }
        Ok(name)
    }

    /// Whether a profile was made for a class, by this release or an earlier one.
    fn is_own(&self, class: &EC2NodeClass, name: &str, profile: &Profile) -> bool {
        profile.path == self.path(class) || self.legacy_name(class).is_ok_and(|own| own == name)
    }

    /// Keeps a profile from collection for a while: instances may still be starting with it.
    pub fn protect(&self, name: &str) {
        self.protected.set(name.to_owned(), ());
    }

    /// True while a profile is kept from collection.
    #[must_use]
    pub fn is_protected(&self, name: &str) -> bool {
        self.protected.get(&name.to_owned()).is_some()
    }

    /// A profile, from the cache if it is known.
    async fn get(&self, name: &str) -> Result<Profile, AwsError> {
        if let Some(known) = self.profiles.get(&name.to_owned()) {
            return Ok(known);
        }
        let profile = self.read(name).await?;
        self.profiles.set(name.to_owned(), profile.clone());
        Ok(profile)
    }

    async fn read(&self, name: &str) -> Result<Profile, AwsError> {
        let answer = self
            .clients
            .iam
            .get_instance_profile()
            .instance_profile_name(name)
            .send()
            .await
            .map_err(|e| AwsError::new("GetInstanceProfile", &e))?;
        let profile = answer.instance_profile();
        Ok(Profile {
            path: profile.map(|p| p.path().to_owned()).unwrap_or_default(),
            role: profile.and_then(|p| p.roles().first()).map(|r| r.role_name().to_owned()),
        })
    }

    async fn create(&self, class: &EC2NodeClass, name: &str, role: &str) -> Result<(), AwsError> {
        let bare = bare(role);
        // Not from the cache: an earlier attempt may have stopped between the steps below.
        let has = match self.read(name).await {
            Ok(has) => has,
            Err(error) if error.is_not_found() => {
                self.create_empty(class, name).await?;
                Profile { path: self.path(class), role: None }
            }
            Err(error) => return Err(error),
        };
        if has.role.as_deref() != Some(bare) {
            // An instance profile holds at most one role.
            if let Some(old) = has.role {
                self.remove_role(name, &old).await?;
            }
            self.add_role(name, bare).await.inspect_err(|error| {
                if is_role_missing(error) {
                    self.missing_roles.set(bare.to_owned(), error.clone());
                }
            })?;
        }
        let profile = Profile { path: has.path, role: Some(bare.to_owned()) };
        self.profiles.set(name.to_owned(), profile);
        Ok(())
    }

    async fn create_empty(&self, class: &EC2NodeClass, name: &str) -> Result<(), AwsError> {
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
        match request.send().await.map_err(|e| AwsError::new("CreateInstanceProfile", &e)) {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    async fn add_role(&self, name: &str, role: &str) -> Result<(), AwsError> {
        let request = self.clients.iam.add_role_to_instance_profile();
        let request = request.instance_profile_name(name).role_name(role);
        request.send().await.map_err(|e| AwsError::new("AddRoleToInstanceProfile", &e))?;
        Ok(())
    }

    async fn remove_role(&self, name: &str, role: &str) -> Result<(), AwsError> {
        let request = self.clients.iam.remove_role_from_instance_profile();
        let request = request.instance_profile_name(name).role_name(role);
        request.send().await.map_err(|e| AwsError::new("RemoveRoleFromInstanceProfile", &e))?;
        Ok(())
    }

    /// Removes a profile; one that is gone is fine.
    ///
    /// # Errors
    /// When IAM refuses.
    pub async fn delete(&self, name: &str) -> Result<(), AwsError> {
        let role = match self.read(name).await {
            Ok(profile) => profile.role,
            Err(error) if error.is_not_found() => {
                self.forget(name);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        // IAM refuses to delete a profile that still has a role.
        if let Some(role) = role {
            self.remove_role(name, &role).await?;
        }
        let answer =
            self.clients.iam.delete_instance_profile().instance_profile_name(name).send().await;
        match answer.map_err(|e| AwsError::new("DeleteInstanceProfile", &e)) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        self.forget(name);
        Ok(())
    }

    fn forget(&self, name: &str) {
        self.profiles.remove(&name.to_owned());
        self.protected.remove(&name.to_owned());
    }

    /// Names of the profiles under a path; nothing where the policy does not allow to ask.
    ///
    /// # Errors
    /// When IAM cannot be asked.
    pub async fn list(&self, path: &str) -> Result<Option<Vec<String>>, AwsError> {
        self.permissions.ask(Feature::InstanceProfileCollection, self.list_under(path)).await
    }

    async fn list_under(&self, path: &str) -> Result<Vec<String>, AwsError> {
        let mut pages =
            self.clients.iam.list_instance_profiles().path_prefix(path).into_paginator().send();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| AwsError::new("ListInstanceProfiles", &e))?;
            let own = page.instance_profiles().iter().filter(|p| p.path().starts_with(path));
            names.extend(own.map(|p| p.instance_profile_name().to_owned()));
        }
        Ok(names)
    }

    /// Removes every profile that was made for a node class, those of old releases too; where IAM
    /// may not be asked for them, the one that the class has now.
    ///
    /// # Errors
    /// When IAM refuses; what is gone already does not count.
    pub async fn delete_all(&self, class: &EC2NodeClass) -> Result<(), AwsError> {
        let own = || {
            let made = class.spec.role.is_some().then_some(class.status.as_ref()).flatten();
            made.and_then(|s| s.instance_profile.clone()).into_iter().collect()
        };
        for name in self.list(&self.path(class)).await?.unwrap_or_else(own) {
            self.delete(&name).await?;
        }
        match self.legacy_name(class) {
            Ok(name) => self.delete(&name).await,
            Err(name) => {
                tracing::debug!(
                    "instance-profile" = name,
                    "skipping legacy instance profile cleanup, synthesized name is not IAM-valid"
                );
                Ok(())
            }
        }
    }
}

/// Why there is no instance profile.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProfileError {
    /// The one in use cannot be read.
    #[error("getting instance profile {0:?}, {1}")]
    Get(String, AwsError),
    /// A new one cannot be made.
    #[error("creating instance profile, {0}")]
    Create(AwsError),
    /// IAM does not know the role.
    #[error("creating instance profile, role not found, {0}")]
    RoleNotFound(AwsError),
}

/// True when it is the role that IAM does not know, and not the profile.
fn is_role_missing(error: &AwsError) -> bool {
    error.is_not_found() && error.message.to_ascii_lowercase().contains("role")
}

/// A role without its path, as IAM wants it.
fn bare(role: &str) -> &str {
    role.rsplit('/').next().unwrap_or(role)
}

fn legacy_name(cluster: &str, region: &str, class: &str) -> String {
    format!("{cluster}_{}", fnv1(format!("{region}{class}").as_bytes()))
}

/// IAM's rule for names of instance profiles.
fn is_valid_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_names_are_those_of_old_releases() {
        assert_eq!(legacy_name("weasel", "us-west-2", "default"), "weasel_4067990795380418201");
        assert!(is_valid_name("weasel_4067990795380418201"));
        assert!(!is_valid_name("weasel eks_1"));
        assert!(!is_valid_name(&"x".repeat(129)));
    }

    #[test]
    fn a_missing_role_is_distinguished_from_a_missing_profile() {
        let error = |message: &str| AwsError {
            operation: "AddRoleToInstanceProfile",
            code: "NoSuchEntity".to_owned(),
            message: message.to_owned(),
            status: 404,
            request_id: String::new(),
        };
        assert!(is_role_missing(&error("The role with name nobody cannot be found.")));
        assert!(is_role_missing(&error("Role nobody not found")));
        assert!(!is_role_missing(&error("Instance Profile nodes cannot be found.")));
    }

    #[test]
    fn each_change_of_role_has_its_own_name() {
        let config = aws_config::SdkConfig::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .build();
        let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
        let permissions = Arc::new(Permissions::new(&clock));
        let provider = Provider::new(Clients::new(&config), &clock, &permissions, "weasel");
        let class = EC2NodeClass::new("c", Default::default());
        let first = provider.next_name(&class, "a", None);
        assert_eq!(first, provider.next_name(&class, "a", None));
        let second = provider.next_name(&class, "b", Some(&first));
        let third = provider.next_name(&class, "a", Some(&second));
        assert_ne!(first, second);
        assert_ne!(first, third);
    }
}
