use super::*;

/// Text of a failure, and the reason and message that it is reported with: all that there are.
const REPORTED: &[(&str, &str, &str)] = &[
    (
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted: no",
        "SpotSLRCreationFailed",
        "User does not have sufficient permission to create the Spot ServiceLinkedRole to launch spot instances",
    ),
    (
        "UnauthorizedOperation: not allowed, with an explicit deny in a permissions boundary",
        "Unauthorized",
        "User is not authorized to perform this operation due to a permission boundary",
    ),
    (
        "AccessDenied: not allowed, with an explicit deny in a service control policy",
        "Unauthorized",
        "User is not authorized to perform this operation due to a service control policy",
    ),
    (
        "AuthFailure: Not authorized for images: [ami-1]",
        "AMIAuthorizationFailure",
        "User is not authorized for AMI used in instance launch",
    ),
    (
        "UnauthorizedOperation: no identity-based policy allows it",
        "Unauthorized",
        "User is not authorized to perform this operation because no identity-based policy allows it",
    ),
    (
        "AccessDenied: no",
        "Unauthorized",
        "User is not authorized to perform this operation because no identity-based policy allows it",
    ),
    (
        "AuthFailure: no",
        "Unauthorized",
        "User is not authorized to perform this operation because no identity-based policy allows it",
    ),
    (
        "InvalidParameter: sg-1 and subnet-1 belong to different networks.",
        "SecurityGroupSubnetVPCMismatch",
        "Security groups and subnets must be in the same VPC.",
    ),
    (
        "InvalidParameterValue: Value (p) for parameter iamInstanceProfile.name is invalid.",
        "InstanceProfileNameInvalid",
        "Instance profile name used from EC2NodeClass status does not exist",
    ),
    (
        "InvalidLaunchTemplateId.NotFound: lt-1",
        "LaunchTemplateNotFound",
        "Launch template used for instance launch wasn't found",
    ),
    (
        "InvalidUserData.Malformed: User data is limited to 16384 bytes",
        "UserDataSizeLimitExceeded",
        "Rendered user data exceeds the EC2 user data size limit",
    ),
    ("InvalidAMIID.Malformed: ami", "InvalidAMIID", "AMI used for instance launch is invalid"),
    (
        "InvalidAMIID.NotFound: ami-1",
        "AMINotFound",
        "AMI used for instance launch either does not exist or you don't have permissions to use it",
    ),
    ("RequestLimitExceeded: slow down", "RequestLimitExceeded", "Request limit exceeded"),
    ("InternalError: sorry", "InternalError", "An internal error has occurred"),
    (
        "InvalidParameterCombination: The type is not eligible for Free Tier.",
        "FreeTierIneligible",
        "The specified instance type is not eligible for Free Tier",
    ),
    (
        "MaxFleetCountExceeded: too many",
        "FleetQuotaExceeded",
        "A fleet launch was requested but this would exceed your fleet request quota",
    ),
    (
        "PendingVerification: wait",
        "AccountPendingVerification",
        "An instance launch was requested but the request for launching resources in this region is still being verified",
    ),
    (
        "MaxSpotInstanceCountExceeded: too many",
        "SpotQuotaExceeded",
        "A spot instance launch was requested but this would exceed your spot instance quota",
    ),
    (
        "VcpuLimitExceeded: too many",
        "VCPULimitExceeded",
        "An instance was requested that would exceed your VCPU quota",
    ),
    (
        "InsufficientFreeAddressesInSubnet: none left",
        "InsufficientFreeAddressesInSubnet",
        "There are not enough free IP addresses to launch an instance in this subnet",
    ),
    ("InvalidLaunchTemplateName.NotFoundException: lt", "LaunchFailed", "Instance launch failed"),
    ("Whatever: x", "LaunchFailed", "Instance launch failed"),
];

#[test]
fn launch_failures_are_reported_by_their_text() {
    for (text, reason, message) in REPORTED {
        assert_eq!(launch_failure(text), (*reason, *message), "{text}");
    }
    // Where a text fits twice, the first one counts.
    let both = "InvalidAMIID.NotFound: x; UnauthorizedOperation: y";
    assert_eq!(launch_failure(both).0, "Unauthorized");
    let quotas = "MaxSpotInstanceCountExceeded: x; VcpuLimitExceeded: y";
    assert_eq!(launch_failure(quotas).0, "SpotQuotaExceeded");
}

fn error(code: &str, status: u16) -> AwsError {
    AwsError { status, ..AwsError::local("CreateFleet", code, "x") }
}

/// The classes that a code belongs to.
fn classes(code: &str, status: u16) -> Vec<&'static str> {
    let error = error(code, status);
    let all = [
        (error.is_not_found(), "not found"),
        (error.is_already_exists(), "already exists"),
        (error.is_launch_template_not_found(), "launch template not found"),
        (error.is_token_mismatch(), "token used"),
        (error.is_unauthorized(), "unauthorized"),
        (error.is_rate_limited(), "rate limited"),
        (error.is_server_fault(), "server fault"),
        (error.is_dry_run_success(), "dry run"),
        (is_unfulfillable(code), "unfulfillable"),
        (code == SPOT_ROLE_MISSING, "no spot role"),
    ];
    all.into_iter().filter_map(|(is, name)| is.then_some(name)).collect()
}

#[test]
fn every_code_has_its_classes() {
    let template = &["not found", "launch template not found"][..];
    for (code, status, want) in [
        ("InvalidCapacityReservationId.NotFound", 400, &["not found"][..]),
        ("InvalidInstanceID.NotFound", 400, &["not found"]),
        ("InvalidLaunchTemplateName.NotFoundException", 400, template),
        ("InvalidLaunchTemplateId.NotFound", 400, &["not found"]),
        ("QueueDoesNotExist", 400, &["not found"]),
        ("AWS.SimpleQueueService.NonExistentQueue", 400, &["not found"]),
        ("NoSuchEntity", 404, &["not found"]),
        ("ParameterNotFound", 400, &["not found"]),
        ("EntityAlreadyExists", 409, &["already exists"]),
        ("InvalidLaunchTemplateName.AlreadyExistsException", 400, &["already exists"]),
        ("DryRunOperation", 412, &["dry run"]),
        ("UnauthorizedOperation", 403, &["unauthorized"]),
        ("AccessDenied", 403, &["unauthorized"]),
        ("AccessDeniedException", 400, &["unauthorized"]),
        ("IdempotentParameterMismatch", 400, &["token used"]),
        // EC2 throttles with a server's status; nothing was done all the same.
        ("RequestLimitExceeded", 503, &["rate limited"]),
        ("Throttling", 503, &["rate limited"]),
        ("ThrottlingException", 400, &["rate limited"]),
        ("EC2ThrottledException", 503, &["rate limited"]),
        ("TooManyRequestsException", 429, &["rate limited"]),
        ("InternalError", 500, &["server fault"]),
        ("InternalFailure", 500, &["server fault"]),
        ("ServiceUnavailable", 503, &["server fault"]),
        ("Unavailable", 503, &["server fault"]),
        ("SomethingNew", 502, &["server fault"]),
        ("RequestTimeout", 0, &["server fault"]),
        ("ConnectionFailed", 0, &["server fault"]),
        ("UnreadableAnswer", 200, &["server fault"]),
        ("RequestNotBuilt", 0, &[]),
        ("InsufficientInstanceCapacity", 400, &["unfulfillable"]),
        ("MaxSpotInstanceCountExceeded", 400, &["unfulfillable"]),
        ("VcpuLimitExceeded", 400, &["unfulfillable"]),
        ("UnfulfillableCapacity", 400, &["unfulfillable"]),
        ("Unsupported", 400, &["unfulfillable"]),
        ("MaxFleetCountExceeded", 400, &["unfulfillable"]),
        ("ReservationCapacityExceeded", 400, &["unfulfillable"]),
        ("InsufficientFreeAddressesInSubnet", 400, &["unfulfillable"]),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", 403, &["no spot role"]),
        ("AuthFailure", 403, &[]),
        ("InvalidParameterValue", 400, &[]),
        ("PendingVerification", 400, &[]),
    ] {
        assert_eq!(classes(code, status), want, "{code}");
    }
}
