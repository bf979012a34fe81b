//! Which instance belongs to which NodeClaim, through crashes and lost answers.
//!
//! A fleet's client token is made from the UIDs of the claims it is for, so asking again gives the
//! same instances. Beside that, the launch itself writes tags that say for whom an instance is: the
//! claim's name for a fleet of one, short forms of all UIDs for a larger one, whose instances are
//! given out by a fixed rule. So an instance is found again even where the token does not help:
//! after a restart, or when the request would be another one today.

use std::collections::{BTreeMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::record::Instance;
use crate::cloud::aws::tags::NODECLAIM;

/// Tag with the short UIDs of the NodeClaims that a fleet was for, one after the other.
pub const LAUNCHED_FOR: &str = "karpenter.k8s.aws/launched-for";
/// Characters of a short UID.
const SHORT: usize = 6;
/// Claims whose short UIDs fit into one tag of 256 characters.
pub const MOST: usize = 256 / SHORT;

/// A claim in a fleet request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub uid: String,
    pub name: String,
    /// Rises with each launch that is known to have come to nothing.
    pub generation: u32,
}

/// A claim of the API server: its short UID, and the instance that it has, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    pub short: String,
    pub provider_id: Option<String>,
}

/// Six characters that stand for a UID.
#[must_use]
pub fn short(uid: &str) -> String {
    let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, uid.as_bytes());
    let mut text = URL_SAFE_NO_PAD.encode(digest.as_bytes());
    text.truncate(SHORT);
    text
}

/// The client token of a fleet for these members, in order.
#[must_use]
pub fn client_token(members: &[Member]) -> String {
    let text: Vec<String> = members.iter().map(|m| format!("{}/{}", m.uid, m.generation)).collect();
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.join(" ").as_bytes()).to_string()
}

/// The tag that says for whom a fleet's instances are.
#[must_use]
pub fn tag(members: &[Member]) -> (String, String) {
    match members {
        [one] => (NODECLAIM.to_owned(), one.name.clone()),
        _ => (LAUNCHED_FOR.to_owned(), members.iter().map(|m| short(&m.uid)).collect()),
    }
}

/// The short UIDs in a tag's value.
pub fn shorts(value: &str) -> impl Iterator<Item = &str> {
    (0..value.len() / SHORT).filter_map(|i| value.get(i * SHORT..(i + 1) * SHORT))
}

/// Whether an instance may be meant for a claim that has none yet.
#[must_use]
pub fn is_for(instance: &Instance, name: &str, uid: &str) -> bool {
    match instance.tags.get(NODECLAIM) {
        Some(claim) => claim == name,
        None => {
            let short = short(uid);
            instance.tags.get(LAUNCHED_FOR).is_some_and(|v| shorts(v).any(|s| s == short))
        }
    }
}

/// The claim's instance among those that live.
///
/// An instance that carries the claim's name is its own. The instances of a fleet for several
/// claims that no claim has yet go to those members that have none, both in their order. So all
/// members agree on who gets which, whenever they ask.
#[must_use]
pub fn find<'a>(
    name: &str,
    uid: &str,
    instances: &'a [Instance],
    claims: &[Claimed],
) -> Option<&'a Instance> {
    let live = || instances.iter().filter(|i| !i.terminating());
    if let Some(own) = live().find(|i| i.tags.get(NODECLAIM).is_some_and(|n| n == name)) {
        return Some(own);
    }
    let taken: HashSet<&str> = claims.iter().filter_map(|c| c.provider_id.as_deref()).collect();
    let waiting: HashSet<&str> =
        claims.iter().filter(|c| c.provider_id.is_none()).map(|c| c.short.as_str()).collect();
    let mut fleets: BTreeMap<&str, Vec<&Instance>> = BTreeMap::new();
    for instance in live().filter(|i| !i.tags.contains_key(NODECLAIM)) {
        if let Some(fleet) = instance.tags.get(LAUNCHED_FOR)
            && !taken.contains(instance.provider_id().as_str())
        {
            fleets.entry(fleet).or_default().push(instance);
        }
    }
    let own = short(uid);
    fleets.into_iter().find_map(|(fleet, mut free)| {
        free.sort_by(|a, b| a.id.cmp(&b.id));
        let place = shorts(fleet).filter(|s| waiting.contains(s)).position(|s| s == own)?;
        free.get(place).copied()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(n: usize) -> Member {
        Member { uid: format!("uid-{n}"), name: format!("claim-{n}"), generation: 0 }
    }

    fn instance(n: usize, tag: &(String, String)) -> Instance {
        Instance {
            id: format!("i-{n:03}"),
            zone: "a".to_owned(),
            state: "running".to_owned(),
            tags: [tag.clone()].into(),
            ..Instance::default()
        }
    }

    fn claimed(n: usize, instance: Option<&Instance>) -> Claimed {
        Claimed {
            short: short(&format!("uid-{n}")),
            provider_id: instance.map(Instance::provider_id),
        }
    }

    #[test]
    fn tokens_depend_on_claims_and_their_attempts_alone() {
        let members: Vec<_> = (0..3).map(member).collect();
        assert_eq!(client_token(&members), client_token(&members));
        assert_ne!(client_token(&members), client_token(&members[..2]));
        let mut again = members.clone();
        again[1].generation = 1;
        assert_ne!(client_token(&members), client_token(&again));
        assert!(client_token(&members).len() <= 64);
    }

    #[test]
    fn tags_fit_and_name_everybody() {
        let members: Vec<_> = (0..MOST).map(member).collect();
        let (key, value) = tag(&members);
        assert_eq!(key, LAUNCHED_FOR);
        assert!(value.len() <= 256);
        let all: Vec<String> = members.iter().map(|m| short(&m.uid)).collect();
        assert_eq!(shorts(&value).collect::<Vec<_>>(), all);
        assert_eq!(tag(&members[..1]), (NODECLAIM.to_owned(), "claim-0".to_owned()));
    }

    #[test]
    fn an_instance_with_the_claims_name_is_its_own() {
        let own = instance(1, &tag(&[member(1)]));
        let list = [instance(0, &tag(&[member(0)])), own.clone()];
        assert_eq!(find("claim-1", "uid-1", &list, &[]), Some(&own));
        assert_eq!(find("claim-2", "uid-2", &list, &[]), None);
        let mut ending = own;
        ending.state = "shutting-down".to_owned();
        assert_eq!(find("claim-1", "uid-1", &[ending], &[]), None);
    }

    proptest! {
        /// Whatever number of instances a fleet got, and whichever claims found theirs already: no
        /// claim gets an instance of another, and none goes without while one is left.
        #[test]
        fn a_fleets_instances_go_to_its_members_one_each(
            members in 2_usize..12,
            launched in 0_usize..12,
            resolved in prop::collection::vec(any::<bool>(), 12),
            order in prop::collection::vec(0_usize..12, 12),
        ) {
            let all: Vec<_> = (0..members).map(member).collect();
            let tag = tag(&all);
            let instances: Vec<_> = (0..launched).map(|n| instance(n, &tag)).collect();
            let mut claims: Vec<Claimed> = (0..members).map(|n| claimed(n, None)).collect();
            // Some have taken theirs before the crash, by the rule of the launch itself.
            for n in 0..members.min(launched) {
                if resolved[n] {
                    claims[n] = claimed(n, Some(&instances[n]));
                }
            }
            let mut got = HashSet::new();
            for claim in &claims {
                if let Some(id) = &claim.provider_id {
                    prop_assert!(got.insert(id.clone()));
                }
            }
            // The others look for theirs in any order, some before the others' are written down.
            let mut waiting: Vec<usize> = (0..members).filter(|n| claims[*n].provider_id.is_none()).collect();
            waiting.sort_by_key(|n| order[*n]);
            for (i, n) in waiting.iter().enumerate() {
                let uid = format!("uid-{n}");
                let found = find(&format!("claim-{n}"), &uid, &instances, &claims).cloned();
                if let Some(found) = &found {
                    prop_assert!(got.insert(found.provider_id()));
                    if i % 2 == 0 {
                        claims[*n] = claimed(*n, Some(found));
                    }
                }
            }
            prop_assert!(got.len() <= members.min(launched));
        }
    }
}
