//! Asks EC2 whether a launch from an EC2NodeClass would be allowed, without launching.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_sdk_ec2::types::{
    DefaultTargetCapacityType, FleetLaunchTemplateConfigRequest,
    FleetLaunchTemplateOverridesRequest, FleetLaunchTemplateSpecificationRequest, FleetType,
    InstanceNetworkInterfaceSpecification, InstanceType as Ec2Type, LaunchTemplateSpecification,
    ResourceType, TargetCapacitySpecificationRequest,
};

use super::Controller;
use crate::api::labels;
use crate::api::v1::{EC2NodeClass, NodeClaim, NodePool, Subnet};
use crate::cloud::aws::ami::{AmiFamily, Variant};
use crate::cloud::aws::errors::{self, AwsError};
use crate::cloud::aws::instancetype::requirements::compatible_with_class;
use crate::cloud::aws::launchtemplate::{Launch, LaunchTemplate, TemplateError, types_by_ami};
use crate::cloud::aws::nodeclass::Failure;
use crate::cloud::aws::tags;
use crate::cloud::aws::userdata::UserDataError;
use crate::scheduling::instance_type::InstanceType;
use crate::scheduling::requirements::{Allow, Requirement, Requirements};

/// Types to try when no NodePool says which; any account has them.
const COMMON_TYPES: [&str; 2] = ["m5.large", "m6g.large"];
const SOON: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);

/// Why the dry runs did not come to a good end.
pub(super) enum Stop {
    /// The answer is no, until something changes.
    Verdict(Failure),
    /// The answer is no for now, and is not worth keeping.
    Condition(Failure, Option<Duration>),
    /// There is no answer yet, since something that is on its way is not there.
    Again(Duration),
    /// Something went wrong that may pass: it is logged, and tried again with growing delays.
    Error(String),
}

/// An EC2 call that a launch needs.
#[derive(Clone, Copy)]
struct Call {
    name: &'static str,
    reason: &'static str,
}

const CREATE_LAUNCH_TEMPLATE: Call =
    Call { name: "CreateLaunchTemplate", reason: "CreateLaunchTemplateAuthCheckFailed" };
const CREATE_FLEET: Call = Call { name: "CreateFleet", reason: "CreateFleetAuthCheckFailed" };
const RUN_INSTANCES: Call = Call { name: "RunInstances", reason: "RunInstancesAuthCheckFailed" };

impl Call {
    /// What an error of the call means for the class.
    fn stop(self, error: &AwsError) -> Stop {
        let name = self.name;
        // Neither says anything about permissions: the verdict that was known stays.
        if error.is_rate_limited() || error.is_server_fault() {
            return Stop::Error(format!("validating ec2:{name} authorization, {error}"));
        }
        if error.is_unauthorized() {
            match name {
                "CreateFleet" => {
                    tracing::error!("error" = %error, "unauthorized to call ec2:CreateFleet")
                }
                "RunInstances" => {
                    tracing::error!("error" = %error, "unauthorized to call ec2:RunInstances")
                }
                _ => {
                    tracing::error!("error" = %error, "unauthorized to call ec2:CreateLaunchTemplate")
                }
            }
            let (_, why) = errors::launch_failure(&error.to_string());
            let message = format!("Controller isn't authorized to call ec2:{name}: {why}");
            return Stop::Verdict((self.reason, message));
        }
        let text = error.to_string();
        let (reason, why) = errors::launch_failure(&text);
        match field_of(reason) {
            Some(field) => Stop::Condition((reason, format!("{field}: {why}")), Some(MINUTE)),
            None => Stop::Error(format!("validating ec2:{name} authorization, {text}")),
        }
    }
}

/// The fields that are to blame for a reason, where it is the class's own fault.
fn field_of(reason: &str) -> Option<&'static str> {
    match reason {
        "SecurityGroupSubnetVPCMismatch" => {
            Some("spec.securityGroupSelectorTerms, spec.subnetSelectorTerms")
        }
        "InvalidAMIID" | "AMINotFound" => Some("spec.amiSelectorTerms"),
        _ => None,
    }
}

impl Controller {
    /// Makes the template of a launch, then dry runs of the calls that would use it.
    pub(super) async fn dry_run(
        &self,
        class: &EC2NodeClass,
        claim: &NodeClaim,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), Stop> {
        let all = match self.aws.instance_types.list(class) {
            Ok(all) => all,
            Err(_) => return Err(Stop::Again(SOON)),
        };
        let pools = self.pools_of(class);
        let chosen = choose_type(class, &all, &pools)?;
        let placement = match self.aws.placement_groups.get(class).await {
            Ok(group) => group,
            Err(_) => self.aws.placement_groups.known(class),
        };
        let launch = Launch {
            class,
            claim,
            types: &[chosen],
            capacity_type: labels::CAPACITY_ON_DEMAND,
            tenancy: if pools.iter().any(|p| allows_dedicated(p)) {
                "dedicated"
            } else {
                "default"
            },
            tags,
            placement: placement.as_ref(),
        };
        let templates =
            self.aws.launch_templates.ensure_all(&launch).await.map_err(template_stop)?;
        let Some(template) = templates.first() else {
            return Err(Stop::Error("no launch template was made".to_owned()));
        };
        let subnets = class.status.as_ref().map(|s| s.subnets.as_slice()).unwrap_or_default();
        self.dry_create_fleet(class, template, subnets, tags).await?;
        self.dry_run_instances(class, template, subnets, tags).await
    }

    fn pools_of(&self, class: &EC2NodeClass) -> Vec<Arc<NodePool>> {
        let name = class.metadata.name.as_deref().unwrap_or_default();
        let uses = |p: &Arc<NodePool>| p.spec.template.spec.node_class_ref.name == name;
        self.ctx.cluster.pools().into_iter().filter(uses).collect()
    }

    async fn dry_create_fleet(
        &self,
        class: &EC2NodeClass,
        template: &LaunchTemplate,
        subnets: &[Subnet],
        tags: &BTreeMap<String, String>,
    ) -> Result<(), Stop> {
        let mut config = FleetLaunchTemplateConfigRequest::builder().launch_template_specification(
            FleetLaunchTemplateSpecificationRequest::builder()
                .launch_template_name(&template.name)
                .version("$Latest")
                .build(),
        );
        for (kind, subnet) in
            template.instance_types.iter().flat_map(|t| subnets.iter().map(move |s| (t, s)))
        {
            config = config.overrides(
                FleetLaunchTemplateOverridesRequest::builder()
                    .instance_type(Ec2Type::from(&*kind.name))
                    .subnet_id(&subnet.id)
                    .build(),
            );
        }
        let mut request = self
            .aws
            .clients
            .ec2
            .create_fleet()
            .dry_run(true)
            .r#type(FleetType::Instant)
            .set_context(class.spec.context.clone())
            .launch_template_configs(config.build())
            .target_capacity_specification(
                TargetCapacitySpecificationRequest::builder()
                    .total_target_capacity(1)
                    .default_target_capacity_type(DefaultTargetCapacityType::OnDemand)
                    .build(),
            );
        for kind in [ResourceType::Instance, ResourceType::Volume, ResourceType::Fleet] {
            request = request.tag_specifications(tags::specification(kind, tags));
        }
        let answer = request.customize().config_override(once()).send().await;
        match answer.map_err(|e| AwsError::new("CreateFleet", &e)) {
            Err(error) if !error.is_dry_run_success() => Err(CREATE_FLEET.stop(&error)),
            _ => Ok(()),
        }
    }

    /// Success in any subnet is success; else the first subnet's error decides.
    async fn dry_run_instances(
        &self,
        class: &EC2NodeClass,
        template: &LaunchTemplate,
        subnets: &[Subnet],
        tags: &BTreeMap<String, String>,
    ) -> Result<(), Stop> {
        let mut first = None;
        for subnet in subnets {
            let mut request = self
                .aws
                .clients
                .ec2
                .run_instances()
                .dry_run(true)
                .min_count(1)
                .max_count(1)
                .set_instance_type(template.instance_types.first().map(|t| Ec2Type::from(&*t.name)))
                .launch_template(
                    LaunchTemplateSpecification::builder()
                        .launch_template_name(&template.name)
                        .version("$Latest")
                        .build(),
                )
                .set_network_interfaces(Some(interfaces(class, subnet)));
            for kind in
                [ResourceType::Instance, ResourceType::Volume, ResourceType::NetworkInterface]
            {
                request = request.tag_specifications(tags::specification(kind, tags));
            }
            let answer = request.customize().config_override(once()).send().await;
            match answer.map_err(|e| AwsError::new("RunInstances", &e)) {
                Err(error) if !error.is_dry_run_success() => {
                    // A throttled API is not asked for each subnet in turn.
                    let stop = error.is_rate_limited();
                    first.get_or_insert(error);
                    if stop {
                        break;
                    }
                }
                // One subnet is enough: the permission is the same for all.
                _ => return Ok(()),
            }
        }
        match first {
            None => Ok(()),
            Some(error) if is_profile_unknown(&error) => Err(unknown_profile(class)),
            Some(error) => Err(RUN_INSTANCES.stop(&error)),
        }
    }
}

/// Dry runs are answered at once; a retry would only hide what they say.
fn once() -> aws_sdk_ec2::config::Builder {
    aws_sdk_ec2::config::Builder::new().retry_config(RetryConfig::disabled())
}

fn is_profile_unknown(error: &AwsError) -> bool {
    error.code == "InvalidParameterValue"
        && error.message.contains("Invalid IAM Instance Profile name")
}

/// EC2 learns of a new profile a little later than IAM.
fn unknown_profile(class: &EC2NodeClass) -> Stop {
    match &class.spec.instance_profile {
        Some(name) => {
            let message = format!("Instance profile {name:?} not found");
            Stop::Condition(("InstanceProfileNotFound", message), Some(SOON))
        }
        None => Stop::Again(SOON),
    }
}

fn template_stop(error: TemplateError) -> Stop {
    match error {
        TemplateError::UserData(UserDataError::Custom(_)) => {
            Stop::Condition(("UserDataInvalid", error.to_string()), None)
        }
        TemplateError::Aws { error, .. }
            if error.code == "InvalidUserData.Malformed"
                && error.message.contains("User data is limited to") =>
        {
            tracing::error!("error" = %error, "ec2:CreateLaunchTemplate rejected the rendered user data as exceeding the size limit");
            let (reason, why) = errors::launch_failure(&error.to_string());
            Stop::Verdict((
                reason,
                format!(
                    "ec2:CreateLaunchTemplate rejected the rendered user data as too large: {why}"
                ),
            ))
        }
        TemplateError::Aws { error, .. } => CREATE_LAUNCH_TEMPLATE.stop(&error),
        other => Stop::Error(format!("validating ec2:CreateLaunchTemplate authorization, {other}")),
    }
}

fn interfaces(class: &EC2NodeClass, subnet: &Subnet) -> Vec<InstanceNetworkInterfaceSpecification> {
    let base = || InstanceNetworkInterfaceSpecification::builder().subnet_id(&subnet.id);
    let own = class.spec.network_interfaces.as_deref().unwrap_or_default();
    if own.is_empty() {
        return vec![base().device_index(0).build()];
    }
    own.iter()
        .map(|i| {
            base()
                .network_card_index(i.network_card_index)
                .device_index(i.device_index)
                .interface_type(&i.interface_type)
                .build()
        })
        .collect()
}

fn allows_dedicated(pool: &NodePool) -> bool {
    let requirements = Requirements::from_api(&pool.spec.template.spec.requirements);
    requirements.get(labels::INSTANCE_TENANCY).is_some_and(|r| r.has("dedicated"))
}

/// The type that the launch is tried with: one that a NodePool may use, else a common one.
fn choose_type(
    class: &EC2NodeClass,
    all: &[Arc<InstanceType>],
    pools: &[Arc<NodePool>],
) -> Result<Arc<InstanceType>, Stop> {
    let mut usable: Vec<Arc<InstanceType>> =
        all.iter().filter(|t| compatible_with_class(&t.name, class)).cloned().collect();
    // Types that the class's interfaces or placement group rule out are nowhere available.
    let offered = |t: &Arc<InstanceType>| t.offerings.iter().any(|o| o.available);
    if usable.iter().any(offered) {
        usable.retain(offered);
    }
    let allowed = allowed_by(pools, &usable);
    let amis = class.status.as_ref().map(|s| s.amis.as_slice()).unwrap_or_default();
    let candidates = if allowed.is_empty() || AmiFamily::of(class).is_windows() {
        common(&usable)
    } else {
        allowed
    };
    let mapped = types_by_ami(amis, &candidates);
    let standard: Requirements = Variant::Standard
        .requirements()
        .iter()
        .map(|r| Requirement::new(&r.key, r.operator, &r.values))
        .collect();
    let is_standard =
        |t: &&Arc<InstanceType>| t.requirements.compatible(&standard, Allow::WellKnown).is_ok();
    let types = || mapped.iter().flat_map(|(_, types)| types);
    types().find(is_standard).or_else(|| types().next()).cloned().ok_or_else(|| {
        let ids: Vec<&str> = amis.iter().map(|a| a.id.as_str()).collect();
        let message = format!(
            "spec.amiSelectorTerms: none of the selected AMIs [{}] suits an instance type that the NodePools of this class allow",
            ids.join(" ")
        );
        Stop::Condition(("AMINotCompatible", message), Some(MINUTE))
    })
}

fn allowed_by(pools: &[Arc<NodePool>], types: &[Arc<InstanceType>]) -> Vec<Arc<InstanceType>> {
    let wanted: Vec<Requirements> = pools
        .iter()
        .map(|pool| {
            let template = &pool.spec.template;
            let mut all = Requirements::from_api(&template.spec.requirements);
            all.merge(&Requirements::from_labels(template.metadata.labels.iter().flatten()));
            all
        })
        .collect();
    let fits = |t: &&Arc<InstanceType>| wanted.iter().any(|w| t.requirements.intersects(w).is_ok());
    types.iter().filter(fits).cloned().collect()
}

fn common(types: &[Arc<InstanceType>]) -> Vec<Arc<InstanceType>> {
    let found: Vec<_> =
        types.iter().filter(|t| COMMON_TYPES.contains(&&*t.name)).cloned().collect();
    if found.is_empty() { types.to_vec() } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::v1::Operator;
    use serde_json::{Value, json};

    fn kind(name: &str, arch: &str, gpu: bool) -> Arc<InstanceType> {
        let mut requirements: Requirements =
            [Requirement::is(labels::INSTANCE_TYPE, name), Requirement::is(labels::ARCH, arch)]
                .into_iter()
                .collect();
        requirements.add(if gpu {
            Requirement::is(labels::INSTANCE_GPU_COUNT, "1")
        } else {
            Requirement::new::<&str>(labels::INSTANCE_GPU_COUNT, Operator::DoesNotExist, [])
        });
        Arc::new(InstanceType { name: name.into(), requirements, ..InstanceType::default() })
    }

    fn class(arch: &str) -> EC2NodeClass {
        let mut class = EC2NodeClass::new("c", Default::default());
        class.status = Some(
            serde_json::from_value(json!({"amis": [{"id": "ami-1", "requirements": [
                {"key": labels::ARCH, "operator": "In", "values": [arch]}]}]}))
            .unwrap(),
        );
        class
    }

    fn pool(requirements: Value) -> Arc<NodePool> {
        let spec = json!({"template": {"spec": {"requirements": requirements,
            "nodeClassRef": {"name": "c", "kind": "EC2NodeClass", "group": "karpenter.k8s.aws"}}}});
        Arc::new(NodePool::new("p", serde_json::from_value(spec).unwrap()))
    }

    fn name(chosen: Result<Arc<InstanceType>, Stop>) -> String {
        match chosen {
            Ok(kind) => kind.name.to_string(),
            Err(Stop::Condition((reason, message), Some(_))) => format!("{reason}: {message}"),
            Err(_) => "other".to_owned(),
        }
    }

    #[test]
    fn a_type_that_a_pool_allows_is_tried() {
        let all = [
            kind("g5.xlarge", "amd64", true),
            kind("c5.large", "amd64", false),
            kind("m5.large", "amd64", false),
            kind("m6g.large", "arm64", false),
        ];
        let any = pool(json!([]));
        assert_eq!(
            name(choose_type(&class("amd64"), &all, std::slice::from_ref(&any))),
            "c5.large"
        );
        assert_eq!(name(choose_type(&class("amd64"), &all, &[])), "m5.large");
        assert_eq!(name(choose_type(&class("arm64"), &all, &[any])), "m6g.large");
        let gpu = pool(json!([{"key": labels::INSTANCE_GPU_COUNT, "operator": "Exists"}]));
        assert_eq!(name(choose_type(&class("amd64"), &all, &[gpu])), "g5.xlarge");
    }

    #[test]
    fn an_image_of_the_wrong_architecture_is_reported() {
        let all = [kind("c5.large", "amd64", false), kind("m6g.large", "arm64", false)];
        let amd = pool(json!([{"key": labels::ARCH, "operator": "In", "values": ["amd64"]}]));
        let text = name(choose_type(&class("arm64"), &all, &[amd]));
        assert!(text.starts_with("AMINotCompatible: spec.amiSelectorTerms"), "{text}");
        assert!(text.contains("ami-1"));
    }

    #[test]
    fn errors_of_dry_runs_are_distinguished() {
        let error = |code: &str, message: &str| AwsError::local("CreateFleet", code, message);
        for code in ["RequestLimitExceeded", "InternalError", "InvalidSubnetID.NotFound"] {
            assert!(matches!(CREATE_FLEET.stop(&error(code, "")), Stop::Error(_)), "{code}");
        }
        let Stop::Verdict((reason, message)) =
            CREATE_FLEET.stop(&error("UnauthorizedOperation", ""))
        else {
            panic!("an unauthorized call is a verdict");
        };
        assert_eq!(reason, "CreateFleetAuthCheckFailed");
        assert_eq!(
            message,
            "Controller isn't authorized to call ec2:CreateFleet: User is not authorized to perform this operation because no identity-based policy allows it"
        );
        let mismatch = error(
            "InvalidParameter",
            "Security group sg-1 and subnet subnet-1 belong to different networks.",
        );
        let Stop::Condition((reason, message), Some(_)) = RUN_INSTANCES.stop(&mismatch) else {
            panic!("what the class's own fields do is told");
        };
        assert_eq!(reason, "SecurityGroupSubnetVPCMismatch");
        assert_eq!(
            message,
            "spec.securityGroupSelectorTerms, spec.subnetSelectorTerms: Security groups and subnets must be in the same VPC."
        );
        let large = TemplateError::Aws {
            attempt: "creating launch template",
            error: error("InvalidUserData.Malformed", "User data is limited to 16384 bytes"),
        };
        assert!(matches!(template_stop(large), Stop::Verdict(("UserDataSizeLimitExceeded", _))));
        let broken = TemplateError::UserData(UserDataError::Custom("x".to_owned()));
        let Stop::Condition((reason, message), None) = template_stop(broken) else {
            panic!("broken user data is told");
        };
        assert_eq!((reason, message.as_str()), ("UserDataInvalid", "spec.userData: x"));
    }
}
