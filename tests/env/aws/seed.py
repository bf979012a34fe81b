"""What is in the account before anything runs: network, role, cluster, queue, images."""

import datetime
import hashlib
import json

from . import ACCOUNT
from .wire import instant

KUBERNETES = [f"1.{minor}" for minor in range(28, 36)]
# The image that the sample EC2NodeClass names.
SAMPLE_IMAGE = "ami-09c00c2e93ce7bd23"
SAMPLE_IMAGE_ARM = "ami-0a7d2c1f5e8b94d06"
# (version, when) of each family's releases, oldest first; the last is the recommended one.
EKS_RELEASES = (
    ("v20240807", "2024-08-07"),
    ("v20241024", "2024-10-24"),
    ("v20250301", "2025-03-01"),
    ("v20261101", "2026-11-01"),
)
BOTTLEROCKET_RELEASES = (
    ("1.20.3", "2024-05-10"),
    ("1.21.1", "2024-08-20"),
    ("1.32.0", "2025-01-28"),
    ("1.50.0", "2026-10-20"),
)
# Policies of AWS's own that node roles have.
MANAGED_POLICIES = (
    "AmazonEC2ContainerRegistryPullOnly",
    "AmazonEC2ContainerRegistryReadOnly",
    "AmazonEKSWorkerNodePolicy",
    "AmazonEKS_CNI_Policy",
    "AmazonSSMManagedInstanceCore",
)
OWNERS = {"eks": "602401143452", "bottlerocket": "092701018921", "windows": "801119661308"}
SECURITY_GROUPS = (("node", "Nodes of the cluster"), ("shared", "Control plane and nodes"))
SUBNETS = (
    ("us-east-1a", "10.10.64.0/18"),
    ("us-east-1b", "10.10.192.0/18"),
    ("us-east-1c", "10.10.128.0/18"),
)


def image_id(name):
    """The same id for the same name in every run."""
    return f"ami-0{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def add_image(world, region, id, name, architecture="x86_64", owner=None, **more):  # noqa: A002
    """Puts an image into moto, whose RegisterImage forgets half of it."""
    from moto.ec2.models.amis import Ami

    backend = world.backend(region)
    created = datetime.datetime.fromisoformat(more.get("created", "2026-11-01"))
    image = Ami(
        backend,
        id,
        name=name,
        description=more.get("description", name),
        owner_id=owner or OWNERS["eks"],
        owner_alias=more.get("alias", "amazon"),
        public=True,
        virtualization_type="hvm",
        architecture=architecture,
        hypervisor="xen",
        root_device_type="ebs",
        root_device_name=more.get("root", "/dev/xvda"),
        region_name=f"{region}a",
        creation_date=created,
        platform=more.get("platform"),
        tags=more.get("tags") or {},
    )
    if more.get("deprecated"):
        image.deprecation_time = instant(more["deprecated"])
    backend.amis[id] = image
    return image


def set_parameter(region, name, value):
    """Puts an SSM parameter into moto, which refuses those under /aws to its callers."""
    from moto.ssm.models import Parameter, ssm_backends

    held = ssm_backends[ACCOUNT][region]._parameters[name]
    now = datetime.datetime.now(datetime.timezone.utc)
    held.append(
        Parameter(
            account_id=ACCOUNT,
            name=name,
            value=value,
            parameter_type="String",
            description=None,
            allowed_pattern=None,
            keyid=None,
            last_modified_date=now,
            version=len(held) + 1,
            data_type="text",
        )
    )


def published_images():
    """(name, architecture, owner, created, extra, parameters) of every image AWS would publish."""
    for kubernetes in KUBERNETES:
        yield from _eks_images(kubernetes)
        yield from _bottlerocket_images(kubernetes)
        for year in ("2019", "2022", "2025"):
            base = f"Windows_Server-{year}-English-Core-EKS_Optimized-{kubernetes}"
            extra = {"platform": "windows", "root": "/dev/sda1"}
            parameter = f"/aws/service/ami-windows-latest/{base}/image_id"
            yield f"{base}-2026.11.11", "x86_64", "windows", "2026-11-11", extra, [parameter]


def _eks_images(kubernetes):
    eks = f"/aws/service/eks/optimized-ami/{kubernetes}"
    lines = [
        ("amazon-linux-2", "x86_64", "amazon-eks-node-"),
        ("amazon-linux-2-arm64", "arm64", "amazon-eks-arm64-node-"),
        ("amazon-linux-2-gpu", "x86_64", "amazon-eks-gpu-node-"),
    ]
    al2023 = {"x86_64": ("standard", "nvidia", "neuron"), "arm64": ("standard", "nvidia")}
    for arch, kinds in al2023.items():
        lines += [
            (f"amazon-linux-2023/{arch}/{kind}", arch, f"amazon-eks-node-al2023-{arch}-{kind}-")
            for kind in kinds
        ]
    for folder, arch, prefix in lines:
        for version, when in EKS_RELEASES:
            name = f"{prefix}{kubernetes}-{version}"
            parameters = [f"{eks}/{folder}/{name}/image_id"]
            if version == EKS_RELEASES[-1][0]:
                parameters.append(f"{eks}/{folder}/recommended/image_id")
            yield name, arch, "eks", when, {}, parameters


def _bottlerocket_images(kubernetes):
    for arch in ("x86_64", "arm64"):
        for flavour in ("", "-nvidia"):
            line = f"aws-k8s-{kubernetes}{flavour}"
            for version, when in BOTTLEROCKET_RELEASES:
                name = f"bottlerocket-{line}-{arch}-v{version}-{_commit(version)}"
                base = f"/aws/service/bottlerocket/{line}/{arch}"
                parameters = [f"{base}/{version}/image_id"]
                if version == BOTTLEROCKET_RELEASES[-1][0]:
                    parameters.append(f"{base}/latest/image_id")
                yield name, arch, "bottlerocket", when, {}, parameters


def _commit(version):
    return hashlib.sha256(version.encode()).hexdigest()[:8]


def seed_images(world):
    """The published images, their parameters, and those the sample manifests name."""
    region = world.settings.region
    for name, arch, owner, when, extra, parameters in published_images():
        iid = image_id(name)
        add_image(world, region, iid, name, arch, OWNERS[owner], created=when, **extra)
        for parameter in parameters:
            set_parameter(region, parameter, iid)
    for iid, arch, name in (
        (SAMPLE_IMAGE, "x86_64", "amazon-eks-node-1.30-v20240729"),
        (SAMPLE_IMAGE_ARM, "arm64", "amazon-eks-arm64-node-1.30-v20240729"),
    ):
        add_image(world, region, iid, name, arch, created="2024-07-29")


def seed_account(endpoint, settings):
    """Network, role, cluster and queue, by the ordinary API."""
    import boto3

    session = boto3.session.Session("test", "test", region_name=settings.region)
    ec2, iam, eks, sqs = (
        session.client(s, endpoint_url=endpoint) for s in ("ec2", "iam", "eks", "sqs")
    )
    tags = [{"Key": "karpenter.sh/discovery", "Value": settings.cluster}]

    def tagged(kind, name):
        return [{"ResourceType": kind, "Tags": [*tags, {"Key": "Name", "Value": name}]}]

    vpc = ec2.create_vpc(CidrBlock="10.10.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(
            VpcId=vpc,
            CidrBlock=cidr,
            AvailabilityZone=zone,
            TagSpecifications=tagged("subnet", f"{settings.cluster}-private-{zone}"),
        )["Subnet"]["SubnetId"]
        for zone, cidr in SUBNETS
    ]
    groups = [
        ec2.create_security_group(
            GroupName=f"{settings.cluster}-{name}",
            Description=description,
            VpcId=vpc,
            TagSpecifications=tagged("security-group", f"{settings.cluster}-{name}"),
        )["GroupId"]
        for name, description in SECURITY_GROUPS
    ]
    for role, service in (
        (f"KarpenterNodeRole-{settings.cluster}", "ec2.amazonaws.com"),
        (f"{settings.cluster}-cluster", "eks.amazonaws.com"),
    ):
        trust = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
        policy = {"Version": "2012-10-17", "Statement": [trust]}
        iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(policy))
    _managed_policies(settings, f"KarpenterNodeRole-{settings.cluster}")
    eks.create_cluster(
        name=settings.cluster,
        version=settings.kubernetes,
        roleArn=f"arn:aws:iam::{ACCOUNT}:role/{settings.cluster}-cluster",
        resourcesVpcConfig={"subnetIds": subnets, "securityGroupIds": groups},
        kubernetesNetworkConfig={"serviceIpv4Cidr": settings.service_cidr},
    )
    _point_cluster(settings)
    sqs.create_queue(QueueName=settings.cluster)
    return {
        "vpc": vpc,
        "subnets": subnets,
        "security-group": groups[0],
        "security-groups": groups,
    }


def _managed_policies(settings, role):
    """AWS's own policies, of which moto makes all 1,300 or none; a node's role has them."""
    from moto.iam.aws_managed_policies import aws_managed_policies_data
    from moto.iam.models import AWSManagedPolicy, iam_backends

    known = json.loads(aws_managed_policies_data)
    backend = iam_backends[ACCOUNT]["aws"]
    for name in MANAGED_POLICIES:
        policy = AWSManagedPolicy.from_data(name, ACCOUNT, settings.region, known[name])
        backend.managed_policies[policy.arn] = policy
        backend.attach_role_policy(policy.arn, role)


def _point_cluster(settings):
    """moto invents the endpoint and the CA; the world has real ones."""
    from moto.eks.models import eks_backends

    cluster = eks_backends[ACCOUNT][settings.region].clusters[settings.cluster]
    if settings.cluster_endpoint:
        cluster.endpoint = settings.cluster_endpoint
    if settings.cluster_ca:
        cluster.certificate_authority = {"data": settings.cluster_ca}
