//! EC2 error codes and what they mean for a launch.

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::operation::RequestId as _;

use crate::cloud::FailedCall;

/// An AWS call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {code}: {message}")]
pub struct AwsError {
    /// The call.
    pub operation: &'static str,
    /// The API's error code, or a word for what failed before an answer came.
    pub code: String,
    /// The API's message.
    pub message: String,
    /// Status of the answer; 0 without one.
    pub status: u16,
    /// AWS's id of the request; empty without an answer.
    pub request_id: String,
}

impl AwsError {
    /// Reads an SDK error.
    pub fn new<E>(operation: &'static str, error: &SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let meta = error.as_service_error().map(ProvideErrorMetadata::meta);
        let code = meta.and_then(|m| m.code()).map_or_else(
            || {
                match error {
                    SdkError::TimeoutError(_) => "RequestTimeout",
                    SdkError::DispatchFailure(_) => "ConnectionFailed",
                    SdkError::ConstructionFailure(_) => "RequestNotBuilt",
                    _ => "UnreadableAnswer",
                }
                .to_owned()
            },
            str::to_owned,
        );
        let message = meta.and_then(|m| m.message()).map_or_else(
            || aws_smithy_types::error::display::DisplayErrorContext(error).to_string(),
            str::to_owned,
        );
        let request_id = meta.and_then(|m| m.request_id()).unwrap_or_default().to_owned();
        let status = error.raw_response().map_or(0, |r| r.status().as_u16());
        Self { operation, code, message, status, request_id }
    }

    /// An error that AWS knows nothing of: there was no call, or its answer made no sense.
    pub fn local(operation: &'static str, code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        Self { operation, code, message, status: 0, request_id: String::new() }
    }

    /// The call, as the log names it.
    #[must_use]
    pub fn call(&self) -> FailedCall {
        FailedCall {
            service: service_of(self.operation),
            operation: self.operation,
            status: self.status,
            code: self.code.clone(),
            request_id: self.request_id.clone(),
        }
    }

    /// The IAM action that the call needs, such as `ec2:DescribeImages`.
    #[must_use]
    pub fn action(&self) -> String {
        let prefix = match service_of(self.operation) {
            "ARC - Zonal Shift" => "arc-zonal-shift".to_owned(),
            service => service.to_ascii_lowercase(),
        };
        format!("{prefix}:{}", self.operation)
    }

    /// What a call that the policy does not allow is reported with.
    #[must_use]
    pub fn denial(&self) -> String {
        let (_, why) = launch_failure(&self.to_string());
        format!("Controller isn't authorized to call {}: {why}", self.action())
    }

    /// The resource does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.code.as_str(),
            "InvalidCapacityReservationId.NotFound"
                | "InvalidInstanceID.NotFound"
                | "InvalidLaunchTemplateName.NotFoundException"
                | "InvalidLaunchTemplateId.NotFound"
                | "QueueDoesNotExist"
                | "AWS.SimpleQueueService.NonExistentQueue"
                | "NoSuchEntity"
                | "ParameterNotFound"
        )
    }

    /// The resource exists already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.code == "EntityAlreadyExists"
            || self.code == "InvalidLaunchTemplateName.AlreadyExistsException"
    }

    /// The launch template vanished between its creation and its use.
    #[must_use]
    pub fn is_launch_template_not_found(&self) -> bool {
        self.code == "InvalidLaunchTemplateName.NotFoundException"
    }

    /// The client token was used before with other parameters.
    #[must_use]
    pub fn is_token_mismatch(&self) -> bool {
        self.code == "IdempotentParameterMismatch"
    }

    /// The policy does not allow the call.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        matches!(
            self.code.as_str(),
            "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException"
        )
    }

    /// Too many calls.
    #[must_use]
    pub fn is_rate_limited(&self) -> bool {
        matches!(
            self.code.as_str(),
            "RequestLimitExceeded"
                | "Throttling"
                | "ThrottlingException"
                | "ThrottledException"
                | "EC2ThrottledException"
                | "RequestThrottled"
                | "RequestThrottledException"
                | "TooManyRequestsException"
                | "SlowDown"
        )
    }

    /// The service's own failure, or no answer at all: whether the request took effect is unknown.
    #[must_use]
    pub fn is_server_fault(&self) -> bool {
        let by_code = matches!(
            self.code.as_str(),
            "InternalError"
                | "InternalFailure"
                | "InternalServerError"
                | "ServiceUnavailable"
                | "Unavailable"
                | "ServerException"
                | "RequestTimeout"
                | "ConnectionFailed"
                | "UnreadableAnswer"
        );
        // EC2 throttles with a server's status too.
        by_code || (self.status >= 500 && !self.is_rate_limited())
    }

    /// A dry run that would have succeeded.
    #[must_use]
    pub fn is_dry_run_success(&self) -> bool {
        self.code == "DryRunOperation"
    }
}

/// The service that has an operation.
fn service_of(operation: &str) -> &'static str {
    match operation {
        "DescribeCluster" => "EKS",
        "GetManagedResource" => "ARC - Zonal Shift",
        "GetParameter" => "SSM",
        "GetProducts" => "Pricing",
        "GetQueueUrl" | "ReceiveMessage" | "DeleteMessage" => "SQS",
        _ if operation.ends_with("InstanceProfile") || operation.ends_with("InstanceProfiles") => {
            "IAM"
        }
        _ => "EC2",
    }
}

/// Fleet error codes that mean: this offering is not available now. The list is Karpenter's.
const UNFULFILLABLE: &[&str] = &[
    "InsufficientInstanceCapacity",
    "MaxSpotInstanceCountExceeded",
    "VcpuLimitExceeded",
    "UnfulfillableCapacity",
    "Unsupported",
    "MaxFleetCountExceeded",
    "ReservationCapacityExceeded",
    "InsufficientFreeAddressesInSubnet",
];

/// Spot needs a service-linked role that the caller may not create.
pub const SPOT_ROLE_MISSING: &str = "AuthFailure.ServiceLinkedRoleCreationNotPermitted";

/// True for a fleet error that another offering may avoid.
#[must_use]
pub fn is_unfulfillable(code: &str) -> bool {
    UNFULFILLABLE.contains(&code)
}

/// The condition reason and message that a failed launch is reported with.
#[must_use]
pub fn launch_failure(text: &str) -> (&'static str, &'static str) {
    let has = |part: &str| text.contains(part);
    // By text, since CreateFleet reports errors of single overrides only inside messages. The order
    // matters: this code also contains AuthFailure.
    if has(SPOT_ROLE_MISSING) {
        return (
            "SpotSLRCreationFailed",
            "User does not have sufficient permission to create the Spot ServiceLinkedRole to launch spot instances",
        );
    }
    if has("UnauthorizedOperation") || has("AccessDenied") || has("AuthFailure") {
        return if has("with an explicit deny in a permissions boundary") {
            (
                "Unauthorized",
                "User is not authorized to perform this operation due to a permission boundary",
            )
        } else if has("with an explicit deny in a service control policy") {
            (
                "Unauthorized",
                "User is not authorized to perform this operation due to a service control policy",
            )
        } else if has("Not authorized for images") {
            ("AMIAuthorizationFailure", "User is not authorized for AMI used in instance launch")
        } else {
            (
                "Unauthorized",
                "User is not authorized to perform this operation because no identity-based policy allows it",
            )
        };
    }
    if has("InvalidParameter") && has("belong to different networks") {
        return (
            "SecurityGroupSubnetVPCMismatch",
            "Security groups and subnets must be in the same VPC.",
        );
    }
    LAUNCH_FAILURES
        .iter()
        .find(|(part, _, _)| has(part))
        .map_or(("LaunchFailed", "Instance launch failed"), |(_, reason, message)| {
            (reason, message)
        })
}

// Part of the error, condition reason and message; reasons and messages are Karpenter's.
const LAUNCH_FAILURES: &[(&str, &str, &str)] = &[
    (
        "iamInstanceProfile.name is invalid",
        "InstanceProfileNameInvalid",
        "Instance profile name used from EC2NodeClass status does not exist",
    ),
    (
        "InvalidLaunchTemplateId.NotFound",
        "LaunchTemplateNotFound",
        "Launch template used for instance launch wasn't found",
    ),
    (
        "User data is limited to",
        "UserDataSizeLimitExceeded",
        "Rendered user data exceeds the EC2 user data size limit",
    ),
    ("InvalidAMIID.Malformed", "InvalidAMIID", "AMI used for instance launch is invalid"),
    (
        "InvalidAMIID.NotFound",
        "AMINotFound",
        "AMI used for instance launch either does not exist or you don't have permissions to use it",
    ),
    ("RequestLimitExceeded", "RequestLimitExceeded", "Request limit exceeded"),
    ("InternalError", "InternalError", "An internal error has occurred"),
    (
        "not eligible for Free Tier",
        "FreeTierIneligible",
        "The specified instance type is not eligible for Free Tier",
    ),
    (
        "MaxFleetCountExceeded",
        "FleetQuotaExceeded",
        "A fleet launch was requested but this would exceed your fleet request quota",
    ),
    (
        "PendingVerification",
        "AccountPendingVerification",
        "An instance launch was requested but the request for launching resources in this region is still being verified",
    ),
    (
        "MaxSpotInstanceCountExceeded",
        "SpotQuotaExceeded",
        "A spot instance launch was requested but this would exceed your spot instance quota",
    ),
    (
        "VcpuLimitExceeded",
        "VCPULimitExceeded",
        "An instance was requested that would exceed your VCPU quota",
    ),
    (
        "InsufficientFreeAddressesInSubnet",
        "InsufficientFreeAddressesInSubnet",
        "There are not enough free IP addresses to launch an instance in this subnet",
    ),
];

#[cfg(test)]
mod tests;
