//! Reads that go to the API server although a watch shows the same: each is one whose answer must not
//! be older than the question. ARCHITECTURE.md lists them with their reasons.

use kube::api::ListParams;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::operator::readable::{Readable, Unreadable};

/// Objects of a page.
const PAGE: u32 = 500;

/// Everything of a kind at one moment.
#[derive(Debug)]
pub struct Live<K> {
    /// The objects.
    pub objects: Vec<K>,
    /// Those that cannot be understood.
    pub unreadable: Vec<Unreadable>,
}

/// Lists a kind in the whole cluster, page by page.
///
/// # Errors
/// When the API server refuses.
pub async fn list<K>(client: &Client) -> Result<Live<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
{
    let api = Api::<Readable<K>>::all(client.clone());
    let mut page = ListParams::default().limit(PAGE);
    let mut live = Live { objects: Vec::new(), unreadable: Vec::new() };
    loop {
        let list = api.list(&page).await?;
        for item in list.items {
            match item {
                Readable::Object(object) => live.objects.push(object),
                Readable::Unreadable(found) => live.unreadable.push(*found),
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(live),
        }
    }
}

/// Reads one object of a kind without namespaces; nothing when it is gone or cannot be understood.
///
/// # Errors
/// When the API server refuses.
pub async fn get<K>(client: &Client, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
{
    let api = Api::<Readable<K>>::all(client.clone());
    Ok(api.get_opt(name).await?.and_then(|found| match found {
        Readable::Object(object) => Some(object),
        Readable::Unreadable(_) => None,
    }))
}
