//! Fleet requests: equal ones are made together, and their instances given out one each.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use aws_sdk_ec2::operation::RequestId as _;
use aws_sdk_ec2::operation::create_fleet::CreateFleetOutput;
use aws_sdk_ec2::types::{
    CreateFleetError, DefaultTargetCapacityType, FleetLaunchTemplateConfigRequest,
    FleetLaunchTemplateOverrides, FleetLaunchTemplateOverridesRequest,
    FleetLaunchTemplateSpecificationRequest, FleetOnDemandAllocationStrategy, FleetReservationType,
    FleetType, InstanceType as Ec2Type, OnDemandOptionsRequest, ReservedCapacityOptionsRequest,
    ResourceType, SpotAllocationStrategy, SpotOptionsRequest, TargetCapacitySpecificationRequest,
};

use super::identity::{self, Member};
use crate::api::labels;
use crate::cloud::aws::clients::Clients;
use crate::cloud::aws::errors::AwsError;
use crate::cloud::aws::launchtemplate::LaunchTemplate;
use crate::cloud::aws::subnet::Chosen;
use crate::cloud::aws::tags;
use crate::scheduling::requirements::{Requirement, Requirements};

/// Most overrides that EC2 takes in one request.
const MAX_OVERRIDES: usize = 300;
/// The error of a request that got fewer instances than it asked for, when EC2 gives no reason.
const TOO_FEW: &str = "too few instances returned";

/// What a fleet is asked for: requests of equal content are made together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Content {
    pub market: Market,
    /// Use the offering of least priority number instead of EC2's own choice.
    pub prioritized: bool,
    /// `spec.context` of the node class.
    pub context: Option<String>,
    pub configs: Vec<Config>,
    pub tags: BTreeMap<String, String>,
}

/// What kind of capacity a fleet takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Market {
    Spot,
    OnDemand,
    /// Reserved capacity is taken through on-demand's options; the template names the reservation.
    Reserved,
    CapacityBlock,
    InterruptibleReservation,
}

impl Market {
    /// The capacity type's market; `templates` have the kind of the reservation.
    #[must_use]
    pub fn of(capacity_type: &str, templates: &[LaunchTemplate]) -> Self {
        let reservation = templates.iter().find_map(|t| t.reservation.as_ref());
        match (capacity_type, reservation) {
            (labels::CAPACITY_SPOT, _) => Self::Spot,
            (labels::CAPACITY_RESERVED, Some(r)) if r.kind == "capacity-block" => {
                Self::CapacityBlock
            }
            (labels::CAPACITY_RESERVED, Some(r)) if r.interruptible => {
                Self::InterruptibleReservation
            }
            (labels::CAPACITY_RESERVED, _) => Self::Reserved,
            _ => Self::OnDemand,
        }
    }
}

/// A launch template and where it may launch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    pub template: String,
    pub overrides: Vec<Override>,
}

/// A pool that an instance may come from.
#[derive(Clone, Debug)]
pub struct Override {
    pub instance_type: String,
    pub subnet: String,
    pub image: String,
    pub zone: String,
    /// The offering's price.
    pub priority: f64,
}

impl Override {
    fn key(&self) -> (&str, &str, &str, &str, u64) {
        (&self.instance_type, &self.subnet, &self.image, &self.zone, self.priority.to_bits())
    }
}

impl PartialEq for Override {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Override {}

impl Hash for Override {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// Overrides of every template: each type's available offerings that meet the requirements, one a
/// zone; the dearest are left out where EC2 would not take all.
#[must_use]
pub fn configs(
    templates: &[LaunchTemplate],
    requirements: &Requirements,
    subnets: &BTreeMap<String, Chosen>,
) -> Vec<Config> {
    let mut list: Vec<Config> = templates
        .iter()
        .map(|template| Config {
            template: template.name.clone(),
            overrides: overrides(template, requirements, subnets),
        })
        .collect();
    let mut prices: Vec<f64> = list.iter().flat_map(|c| &c.overrides).map(|o| o.priority).collect();
    if prices.len() > MAX_OVERRIDES {
        prices.sort_by(f64::total_cmp);
        // The price alone does not cut exactly: several overrides may have the price of the last
        // that fits. `left` keeps the first of those.
        let limit = prices[MAX_OVERRIDES - 1];
        let mut left = MAX_OVERRIDES;
        for config in &mut list {
            config.overrides.retain(|o| {
                let keep = o.priority <= limit && left > 0;
                left -= usize::from(keep);
                keep
            });
        }
    }
    list.retain(|c| !c.overrides.is_empty());
    list
}

fn overrides(
    template: &LaunchTemplate,
    requirements: &Requirements,
    subnets: &BTreeMap<String, Chosen>,
) -> Vec<Override> {
    let mut requirements = requirements.clone();
    if let Some(reservation) = &template.reservation {
        requirements.add(Requirement::is(labels::CAPACITY_RESERVATION_ID, &reservation.id));
    }
    let mut list: Vec<Override> = Vec::new();
    for kind in &template.instance_types {
        let from = list.len();
        for offering in kind.compatible_offerings(&requirements) {
            let zone = offering.zone();
            let Some(choice) = subnets.get(zone) else { continue };
            // EC2 refuses two overrides of the same type and zone.
            if list[from..].iter().any(|o| o.zone == zone) {
                continue;
            }
            list.push(Override {
                instance_type: kind.name.to_string(),
                subnet: choice.subnet.id.clone(),
                image: template.image_id.clone(),
                zone: zone.to_owned(),
                priority: offering.price,
            });
        }
    }
    list
}

/// A launch that waits to be made with others.
#[derive(Clone, Debug)]
pub struct Ask {
    pub content: Arc<Content>,
    pub member: Member,
}

/// What came of a launch.
#[derive(Clone, Debug)]
pub struct Answer {
    /// `None` when there is no instance.
    pub fleet: Option<String>,
    pub placed: Option<Placed>,
    /// Refusals of the whole fleet, also when there is an instance.
    pub errors: Arc<[Refused]>,
    /// AWS's id of the request.
    pub request_id: String,
}

/// A launched instance, as the fleet's answer describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    pub id: String,
    pub place: Place,
}

/// Where an override leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub instance_type: String,
    pub zone: String,
    pub subnet: String,
    pub image: String,
}

/// A pool that EC2 refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    pub code: String,
    pub message: String,
    /// `None` when EC2 does not say which pool.
    pub place: Option<Place>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl Place {
    fn of(place: Option<&FleetLaunchTemplateOverrides>) -> Option<Self> {
        let place = place?;
        let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
        Some(Self {
            instance_type: place.instance_type().map_or("", Ec2Type::as_str).to_owned(),
            zone: text(place.availability_zone()),
            subnet: text(place.subnet_id()),
            image: text(place.image_id()),
        })
    }
}

/// Makes one call for launches of equal content; answers in their order.
pub async fn create(clients: Clients, asks: Vec<Ask>) -> Vec<Result<Answer, AwsError>> {
    let Some(first) = asks.first() else { return Vec::new() };
    let content = Arc::clone(&first.content);
    let mut members: Vec<Member> = asks.iter().map(|a| a.member.clone()).collect();
    // Token and tags depend on the order, and a retry collects the same launches in another one.
    members.sort();
    match send(&clients, &content, &members).await {
        Err(error) => asks.iter().map(|_| Err(error.clone())).collect(),
        Ok(output) => {
            let (mut dealt, errors) = deal(&output, &members);
            let request_id = output.request_id().unwrap_or_default();
            asks.iter()
                .map(|ask| {
                    let placed = dealt.remove(&ask.member.uid);
                    let fleet = placed.as_ref().and(output.fleet_id().map(str::to_owned));
                    let request_id = request_id.to_owned();
                    Ok(Answer { fleet, placed, errors: Arc::clone(&errors), request_id })
                })
                .collect()
        }
    }
}

/// Gives instances to members, both in order: the rule by which [`identity::find`] finds them again.
fn deal(
    output: &CreateFleetOutput,
    members: &[Member],
) -> (BTreeMap<String, Placed>, Arc<[Refused]>) {
    let mut launched: Vec<Placed> = output
        .instances()
        .iter()
        .flat_map(|group| {
            let place = group.launch_template_and_overrides().and_then(|l| l.overrides());
            let mut place = Place::of(place).unwrap_or_default();
            if let Some(kind) = group.instance_type() {
                place.instance_type = kind.as_str().to_owned();
            }
            let ids = group.instance_ids().iter();
            ids.map(move |id| Placed { id: id.clone(), place: place.clone() })
        })
        .collect();
    // EC2 gives no order, and a repeated call may return another one.
    launched.sort_by(|a, b| a.id.cmp(&b.id));
    let mut errors: Vec<Refused> = output.errors().iter().map(refused).collect();
    if launched.len() < members.len() && errors.is_empty() {
        errors.push(Refused { code: String::new(), message: TOO_FEW.to_owned(), place: None });
    }
    for surplus in launched.iter().skip(members.len()) {
        tracing::error!(
            "instance-id" = surplus.id,
            "received more instances than requested, ignoring instance"
        );
    }
    let dealt = members.iter().map(|m| m.uid.clone()).zip(launched).collect();
    (dealt, errors.into())
}

fn refused(error: &CreateFleetError) -> Refused {
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    Refused {
        code: text(error.error_code()),
        message: text(error.error_message()),
        place: Place::of(error.launch_template_and_overrides().and_then(|l| l.overrides())),
    }
}

async fn send(
    clients: &Clients,
    content: &Content,
    members: &[Member],
) -> Result<CreateFleetOutput, AwsError> {
    let count = i32::try_from(members.len()).unwrap_or(i32::MAX);
    let mut of_instances = content.tags.clone();
    of_instances.extend([identity::tag(members)]);
    let mut request = clients
        .ec2
        .create_fleet()
        .r#type(FleetType::Instant)
        .client_token(identity::client_token(members))
        .set_context(content.context.clone())
        .set_launch_template_configs(Some(content.configs.iter().map(config).collect()))
        .target_capacity_specification(
            TargetCapacitySpecificationRequest::builder()
                .total_target_capacity(count)
                .default_target_capacity_type(match content.market {
                    Market::Spot => DefaultTargetCapacityType::Spot,
                    Market::OnDemand | Market::Reserved => DefaultTargetCapacityType::OnDemand,
                    Market::CapacityBlock => DefaultTargetCapacityType::CapacityBlock,
                    Market::InterruptibleReservation => DefaultTargetCapacityType::ReservedCapacity,
                })
                .build(),
        );
    // For whom an instance is stands on the instance alone: there it is looked for.
    request = request
        .tag_specifications(tags::specification(ResourceType::Instance, &of_instances))
        .tag_specifications(tags::specification(ResourceType::Volume, &content.tags))
        .tag_specifications(tags::specification(ResourceType::Fleet, &content.tags));
    request = match content.market {
        Market::Spot => request.spot_options(spot_options(content.prioritized)),
        Market::OnDemand | Market::Reserved => {
            request.on_demand_options(on_demand_options(content.prioritized))
        }
        Market::InterruptibleReservation => request.reserved_capacity_options(
            ReservedCapacityOptionsRequest::builder()
                .reservation_types(FleetReservationType::InterruptibleCapacityReservation)
                .build(),
        ),
        Market::CapacityBlock => request,
    };
    request.send().await.map_err(|e| AwsError::new("CreateFleet", &e))
}

fn spot_options(prioritized: bool) -> SpotOptionsRequest {
    let strategy = if prioritized {
        SpotAllocationStrategy::CapacityOptimizedPrioritized
    } else {
        SpotAllocationStrategy::PriceCapacityOptimized
    };
    SpotOptionsRequest::builder().allocation_strategy(strategy).build()
}

fn on_demand_options(prioritized: bool) -> OnDemandOptionsRequest {
    let strategy = if prioritized {
        FleetOnDemandAllocationStrategy::Prioritized
    } else {
        FleetOnDemandAllocationStrategy::LowestPrice
    };
    OnDemandOptionsRequest::builder().allocation_strategy(strategy).build()
}

fn config(config: &Config) -> FleetLaunchTemplateConfigRequest {
    let overrides = config.overrides.iter().map(|o| {
        FleetLaunchTemplateOverridesRequest::builder()
            .instance_type(Ec2Type::from(o.instance_type.as_str()))
            .subnet_id(&o.subnet)
            .image_id(&o.image)
            .availability_zone(&o.zone)
            .priority(o.priority)
            .build()
    });
    FleetLaunchTemplateConfigRequest::builder()
        .launch_template_specification(
            FleetLaunchTemplateSpecificationRequest::builder()
                .launch_template_name(&config.template)
                // A template only ever has one version: its name is a hash of its content.
                .version("$Latest")
                .build(),
        )
        .set_overrides(Some(overrides.collect()))
        .build()
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::CreateFleetInstance;

    use super::*;

    fn members(n: usize) -> Vec<Member> {
        let member = |n| Member { uid: format!("u{n}"), name: format!("c{n}"), generation: 0 };
        (0..n).map(member).collect()
    }

    fn output(ids: &[&[&str]], errors: &[&str]) -> CreateFleetOutput {
        let group = |ids: &&[&str]| {
            let ids = ids.iter().map(|i| (*i).to_owned()).collect();
            CreateFleetInstance::builder().set_instance_ids(Some(ids)).build()
        };
        let error = |code: &&str| CreateFleetError::builder().error_code(*code).build();
        CreateFleetOutput::builder()
            .fleet_id("fleet-1")
            .set_instances(Some(ids.iter().map(group).collect()))
            .set_errors(Some(errors.iter().map(error).collect()))
            .build()
    }

    #[test]
    fn instances_are_dealt_in_order() {
        let (dealt, errors) = deal(&output(&[&["i-3", "i-1"], &["i-2"]], &[]), &members(3));
        let ids: Vec<&str> = dealt.values().map(|p| p.id.as_str()).collect();
        assert_eq!(ids, ["i-1", "i-2", "i-3"]);
        assert!(errors.is_empty());
    }

    #[test]
    fn too_few_and_too_many_instances() {
        let (dealt, errors) = deal(&output(&[&["i-1"]], &[]), &members(2));
        assert_eq!(dealt.keys().collect::<Vec<_>>(), ["u0"]);
        assert_eq!(errors[0].message, TOO_FEW);
        let (_, errors) = deal(&output(&[&["i-1"]], &["Unsupported"]), &members(2));
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].code, "Unsupported");
        let (dealt, errors) = deal(&output(&[&["i-1", "i-2"]], &[]), &members(1));
        assert_eq!((dealt.len(), errors.len()), (1, 0));
    }
}
