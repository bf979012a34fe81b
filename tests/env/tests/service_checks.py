"""Every other call that a node autoscaler makes, and the admin API."""

import base64
import datetime
import json
import time
import urllib.error

from .harness import CLUSTER, DISCOVERY, IMAGE, code, ids

ABSENT = "i-00000000000000000"


def types_are_paged_and_of_the_region(aws):
    filters = [
        {"Name": "supported-virtualization-type", "Values": ["hvm"]},
        {"Name": "processor-info.supported-architecture", "Values": ["x86_64", "arm64"]},
    ]

    def read():
        pages = aws.ec2.get_paginator("describe_instance_types").paginate(
            Filters=filters, PaginationConfig={"PageSize": 100}
        )
        return [p["InstanceTypes"] for p in pages]

    pages = read()
    found = {t["InstanceType"]: t for page in pages for t in page}
    assert len(pages) > 5 and all(len(p) <= 100 for p in pages)
    assert found["t3.medium"]["VCpuInfo"]["DefaultVCpus"] == 2
    assert found["t3.medium"]["MemoryInfo"]["SizeInMiB"] == 4096
    offered = aws.ec2.describe_instance_type_offerings()["InstanceTypeOfferings"]
    assert set(found) <= {o["InstanceType"] for o in offered}
    began = time.monotonic()
    read()
    assert time.monotonic() - began < 10
    assert code(aws.ec2.describe_instance_types, DryRun=True) == "DryRunOperation"
    assert code(aws.ec2.describe_instance_types, InstanceTypes=["x.y"]) == "InvalidInstanceType"
    both = [*filters, {"Name": "instance-type", "Values": ["t3.*"]}]
    both.append({"Name": "instance-type", "Values": ["*.medium"]})
    one = aws.ec2.describe_instance_types(Filters=both)["InstanceTypes"]
    assert [t["InstanceType"] for t in one] == ["t3.medium"]


def offerings_are_by_zone(aws):
    found = aws.ec2.describe_instance_type_offerings(
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": ["t3.medium"]}],
    )["InstanceTypeOfferings"]
    assert {"us-east-1a", "us-east-1b", "us-east-1c"} <= {o["Location"] for o in found}


def prices_are_listed(aws):
    wanted = {
        "regionCode": "us-east-1",
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "productFamily": "Compute Instance",
    }
    filters = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in wanted.items()]
    pages = aws.pricing.get_paginator("get_products").paginate(
        ServiceCode="AmazonEC2", Filters=filters
    )
    prices = {}
    for item in (json.loads(i) for page in pages for i in page["PriceList"]):
        [term] = item["terms"]["OnDemand"].values()
        [rate] = term["priceDimensions"].values()
        kind = item["product"]["attributes"]["instanceType"]
        prices[kind] = float(rate["pricePerUnit"]["USD"])
    assert prices["t3.medium"] == 0.0416 and len(prices) > 800
    assert not any("metal" in name for name in prices)
    assert prices["m6g.large"] < prices["m5.large"] < prices["m5.xlarge"]


def spot_prices_differ_and_can_be_set(aws):
    ask = aws.ec2.get_paginator("describe_spot_price_history").paginate
    now = datetime.datetime.now(datetime.timezone.utc)
    pages = ask(ProductDescriptions=["Linux/UNIX", "Linux/UNIX (Amazon VPC)"], StartTime=now)
    found = {
        (p["InstanceType"], p["AvailabilityZone"]): float(p["SpotPrice"])
        for page in pages
        for p in page["SpotPriceHistory"]
    }
    assert len(set(found.values())) > 200
    assert 0.28 * 0.0416 <= found["t3.medium", "us-east-1a"] <= 0.48 * 0.0416
    aws.admin("prices", {"spot": {"t3.medium/us-east-1c": 0.001}, "on-demand": {"m5.large": 9}})
    fleet = aws.fleet(aws.template(), ["t3.medium"])
    override = fleet["Instances"][0]["LaunchTemplateAndOverrides"]["Overrides"]
    assert override["AvailabilityZone"] == "us-east-1c"
    aws.admin("prices", method="DELETE")


def parameters_name_images(aws):
    eks, last = "/aws/service/eks/optimized-ami", "image_id"
    for name, arch in (
        (f"{eks}/1.35/amazon-linux-2023/x86_64/standard/recommended/{last}", "x86_64"),
        (f"{eks}/1.28/amazon-linux-2023/arm64/nvidia/recommended/{last}", "arm64"),
        (f"{eks}/1.30/amazon-linux-2/recommended/{last}", "x86_64"),
        (f"{eks}/1.30/amazon-linux-2-arm64/amazon-eks-arm64-node-1.30-v20240807/{last}", "arm64"),
        (f"{eks}/1.30/amazon-linux-2-gpu/recommended/{last}", "x86_64"),
        (f"/aws/service/bottlerocket/aws-k8s-1.33/arm64/latest/{last}", "arm64"),
        (f"/aws/service/bottlerocket/aws-k8s-1.33-nvidia/x86_64/1.20.3/{last}", "x86_64"),
        (
            "/aws/service/ami-windows-latest/"
            f"Windows_Server-2022-English-Core-EKS_Optimized-1.33/{last}",
            "x86_64",
        ),
    ):
        value = aws.ssm.get_parameter(Name=name)["Parameter"]["Value"]
        [image] = aws.ec2.describe_images(ImageIds=[value])["Images"]
        assert (image["Architecture"], image["State"]) == (arch, "available"), name
    assert code(aws.ssm.get_parameter, Name=f"{eks}/1.10/x") == "ParameterNotFound"


def images_are_found(aws):
    by_id = [{"Name": "image-id", "Values": [IMAGE]}]
    [image] = aws.ec2.describe_images(Filters=by_id)["Images"]
    assert image["Name"] == "amazon-eks-node-1.30-v20240729"
    assert image["CreationDate"].startswith("2024-07-29T")
    by_name = [{"Name": "name", "Values": ["amazon-eks-node-al2023-x86_64-standard-1.35-*"]}]
    found = aws.ec2.describe_images(Filters=by_name, Owners=["amazon"])["Images"]
    assert len(found) == 4
    assert aws.ec2.describe_images(Filters=by_name, Owners=["self"])["Images"] == []
    aws.admin("images", {"id": "ami-00000000000000abc", "name": "mine", "tags": {"team": "a"}})
    by_tag = [{"Name": "tag:team", "Values": ["a"]}]
    assert [i["Name"] for i in aws.ec2.describe_images(Filters=by_tag)["Images"]] == ["mine"]


def the_network_is_found_by_tag(aws):
    subnets = aws.ec2.describe_subnets(Filters=DISCOVERY)["Subnets"]
    assert sorted(s["AvailabilityZone"] for s in subnets) == [f"us-east-1{z}" for z in "abc"]
    assert all(s["AvailabilityZoneId"].startswith("use1-az") for s in subnets)
    twice = [*DISCOVERY, {**DISCOVERY[0], "Values": ["other"]}]
    assert aws.ec2.describe_subnets(Filters=twice[::-1])["Subnets"] == []
    keys = [{"Name": "tag-key", "Values": [k]} for k in ("absent", "Name")]
    assert aws.ec2.describe_subnets(Filters=keys)["Subnets"] == []


def missing_templates_have_their_codes(aws):
    name = aws.template()
    again = {"ImageId": IMAGE}
    make, delete = aws.ec2.create_launch_template, aws.ec2.delete_launch_template
    taken = "InvalidLaunchTemplateName.AlreadyExistsException"
    assert code(make, LaunchTemplateName=name, LaunchTemplateData=again) == taken
    describe = aws.ec2.describe_launch_templates
    by_name = "InvalidLaunchTemplateName.NotFoundException"
    by_id = "InvalidLaunchTemplateId.NotFound"
    assert code(describe, LaunchTemplateNames=["none"]) == by_name
    assert code(describe, LaunchTemplateIds=["lt-0"]) == by_id
    assert code(delete, LaunchTemplateName="none") == by_name
    assert code(delete, LaunchTemplateId="lt-0") == by_id
    delete(LaunchTemplateName=name)
    assert code(delete, LaunchTemplateName=name) == by_name


def profiles_are_listed_by_path(aws):
    aws.iam.create_instance_profile(InstanceProfileName="p1", Path="/karpenter/us-east-1/a/u/")
    listed = aws.iam.list_instance_profiles(PathPrefix="/karpenter/us-east-1/")
    assert [p["InstanceProfileName"] for p in listed["InstanceProfiles"]] == ["p1"]
    assert aws.iam.list_instance_profiles(PathPrefix="/other/")["InstanceProfiles"] == []
    role = f"KarpenterNodeRole-{CLUSTER}"
    aws.iam.add_role_to_instance_profile(InstanceProfileName="p1", RoleName=role)
    assert code(aws.iam.delete_instance_profile, InstanceProfileName="p1") == "DeleteConflict"
    assert code(aws.iam.get_instance_profile, InstanceProfileName="p0") == "NoSuchEntity"
    aws.iam.remove_role_from_instance_profile(InstanceProfileName="p1", RoleName=role)
    aws.iam.delete_instance_profile(InstanceProfileName="p1")
    fleet = aws.fleet(aws.template(IamInstanceProfile={"Name": "p1"}), ["t3.medium"])
    assert ids(fleet) == [] and "p1" in fleet["Errors"][0]["ErrorMessage"]


def instances_can_be_run_without_a_fleet(aws):
    subnet = aws.state["subnets"][0]
    given = {"ImageId": IMAGE, "MinCount": 1, "MaxCount": 1, "InstanceType": "t3.medium"}
    given |= {"SubnetId": subnet, "IamInstanceProfile": {"Name": "profile"}}
    assert code(aws.ec2.run_instances, **given, DryRun=True) == "DryRunOperation"
    iid = aws.ec2.run_instances(**given, UserData="hello")["Instances"][0]["InstanceId"]
    assert aws.instance(iid)["IamInstanceProfile"]["Arn"].endswith("/profile")
    [seen] = [i for i in aws.admin("instances") if i["id"] == iid]
    assert base64.b64decode(seen["user-data"]) == b"hello"
    assert seen["role"] == f"KarpenterNodeRole-{CLUSTER}"
    aws.ec2.terminate_instances(InstanceIds=[iid])


def status_is_filtered(aws):
    [iid] = ids(aws.fleet(aws.template(), ["t3.medium"]))
    time.sleep(0.6)

    def listed(name, value):
        found = aws.ec2.describe_instance_status(Filters=[{"Name": name, "Values": [value]}])
        return [s["InstanceId"] for s in found["InstanceStatuses"]]

    assert listed("system-status.status", "impaired") == []
    event = {"code": "instance-retirement", "description": "soon"}
    aws.admin("status", {iid: {"system": "impaired", "events": [event]}})
    assert listed("system-status.status", "impaired") == [iid]
    assert listed("event.code", "instance-retirement") == [iid]
    aws.admin("status", method="DELETE")


def the_cluster_is_described(aws):
    cluster = aws.eks.describe_cluster(name=CLUSTER)["cluster"]
    assert cluster["kubernetesNetworkConfig"]["serviceIpv4Cidr"] == "10.100.0.0/16"
    assert cluster["status"] == "ACTIVE" and cluster["version"] == "1.30"
    assert code(aws.eks.describe_cluster, name="none") == "ResourceNotFoundException"


def interruptions_arrive(aws):
    [iid] = ids(aws.fleet(aws.template(), ["t3.medium"]))
    queue = aws.sqs.get_queue_url(QueueName=CLUSTER)["QueueUrl"]
    kinds = {
        "spot": "EC2 Spot Instance Interruption Warning",
        "rebalance": "EC2 Instance Rebalance Recommendation",
        "state": "EC2 Instance State-change Notification",
        "scheduled": "AWS Health Event",
        "capacity-block": "EC2 Capacity Block Reservation Expiration Warning",
    }
    for kind, title in kinds.items():
        aws.admin("interrupt", {"kind": kind, "instance": iid})
        [message] = aws.sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=2)["Messages"]
        assert json.loads(message["Body"])["detail-type"] == title
        aws.sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    aws.admin("vanish", {"instances": [iid]})
    assert aws.instance(iid)["State"]["Name"] == "terminated"


def changes_of_state_are_reported(aws):
    [iid] = ids(aws.fleet(aws.template(), ["m5.large"], "on-demand"))
    queue = aws.sqs.get_queue_url(QueueName=CLUSTER)["QueueUrl"]
    assert "a state is one of" in refusal(aws, "state-changes", ["asleep"])
    aws.admin("state-changes", ["stopping", "stopped", "shutting-down", "terminated"])

    def next_state():
        answer = aws.sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=3)
        [message] = answer["Messages"]
        aws.sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        body = json.loads(message["Body"])
        assert body["detail-type"] == "EC2 Instance State-change Notification"
        assert body["detail"]["instance-id"] == iid
        return body["detail"]["state"]

    aws.ec2.stop_instances(InstanceIds=[iid])
    assert [next_state(), next_state()] == ["stopping", "stopped"]
    aws.ec2.terminate_instances(InstanceIds=[iid])
    assert [next_state(), next_state()] == ["shutting-down", "terminated"]
    aws.admin("state-changes", method="DELETE")
    [iid] = ids(aws.fleet(aws.template(), ["m5.large"], "on-demand"))
    aws.ec2.terminate_instances(InstanceIds=[iid])
    assert "Messages" not in aws.sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=1)


def refusal(aws, path, body):
    """What the admin API complains of."""
    try:
        aws.admin(path, body)
    except urllib.error.HTTPError as error:
        return json.load(error)["error"]
    return ""


def images_can_be_deprecated(aws):
    own = {"id": "ami-000000000000000aa", "name": "mine-1", "owner": "602401143452"}
    aws.admin("images", [own, {**own, "id": "ami-000000000000000ab", "name": "mine-2"}])
    by_name = [{"Name": "name", "Values": ["mine-*"]}]

    def listed(**more):
        found = aws.ec2.describe_images(Filters=by_name, **more)["Images"]
        return {i["Name"]: i.get("DeprecationTime") for i in found}

    assert listed() == {"mine-1": None, "mine-2": None}
    aws.ec2.enable_image_deprecation(ImageId=own["id"], DeprecateAt="2099-01-01")
    assert listed() == {"mine-1": "2099-01-01T00:00:00.000Z", "mine-2": None}
    aws.ec2.enable_image_deprecation(ImageId=own["id"], DeprecateAt="2026-01-01T12:00:00Z")
    assert listed() == {"mine-2": None}
    assert listed(IncludeDeprecated=True)["mine-1"] == "2026-01-01T12:00:00.000Z"
    [one] = aws.ec2.describe_images(ImageIds=[own["id"]])["Images"]
    assert one["DeprecationTime"] == "2026-01-01T12:00:00.000Z"
    aws.ec2.disable_image_deprecation(ImageId=own["id"])
    assert listed() == {"mine-1": None, "mine-2": None}
    missing = code(aws.ec2.disable_image_deprecation, ImageId="ami-00000000000000000")
    assert missing == "InvalidAMIID.NotFound"


def groups_and_subnets_are_several_and_have_names(aws):
    groups = aws.ec2.describe_security_groups(Filters=DISCOVERY)["SecurityGroups"]
    assert {g["GroupId"] for g in groups} == set(aws.state["security-groups"])
    assert {g["GroupName"] for g in groups} == {f"{CLUSTER}-node", f"{CLUSTER}-shared"}
    by_name = [{"Name": "group-name", "Values": [f"{CLUSTER}-shared"]}]
    assert len(aws.ec2.describe_security_groups(Filters=by_name)["SecurityGroups"]) == 1
    subnets = aws.ec2.describe_subnets(Filters=DISCOVERY)["Subnets"]
    names = {t["Value"] for s in subnets for t in s["Tags"] if t["Key"] == "Name"}
    assert names == {f"{CLUSTER}-private-us-east-1{zone}" for zone in "abc"}
    by_name = [{"Name": "tag:Name", "Values": [f"{CLUSTER}-private-us-east-1b"]}]
    [one] = aws.ec2.describe_subnets(Filters=by_name)["Subnets"]
    assert one["AvailabilityZone"] == "us-east-1b"


def policies_of_aws_can_be_attached(aws):
    role = f"KarpenterNodeRole-{CLUSTER}"
    listed = aws.iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
    names = {p["PolicyName"] for p in listed}
    assert {"AmazonEKSWorkerNodePolicy", "AmazonSSMManagedInstanceCore"} <= names
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}}
    trust = {"Version": "2012-10-17", "Statement": [{**trust, "Action": "sts:AssumeRole"}]}
    aws.iam.create_role(RoleName="other", AssumeRolePolicyDocument=json.dumps(trust))
    arn = "arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy"
    aws.iam.attach_role_policy(RoleName="other", PolicyArn=arn)
    listed = aws.iam.list_attached_role_policies(RoleName="other")["AttachedPolicies"]
    assert [p["PolicyArn"] for p in listed] == [arn]
    aws.iam.detach_role_policy(RoleName="other", PolicyArn=arn)
    aws.iam.delete_role(RoleName="other")


def parameters_are_found_by_arn_and_images_by_older_releases(aws):
    eks = "/aws/service/eks/optimized-ami/1.33/amazon-linux-2023/x86_64/standard"
    bottlerocket = "/aws/service/bottlerocket/aws-k8s-1.33/x86_64"
    names = [f"{eks}/recommended/image_id"]
    names += [
        f"{eks}/amazon-eks-node-al2023-x86_64-standard-1.33-{release}/image_id"
        for release in ("v20240807", "v20241024", "v20250301", "v20261101")
    ]
    names += [f"{bottlerocket}/{v}/image_id" for v in ("1.20.3", "1.21.1", "1.32.0", "latest")]
    found = {}
    for name in names:
        found[name] = aws.ssm.get_parameter(Name=name)["Parameter"]["Value"]
        for owner in ("", "123456789012"):
            arn = f"arn:aws:ssm:us-east-1:{owner}:parameter{name}"
            assert aws.ssm.get_parameter(Name=arn)["Parameter"]["Value"] == found[name], arn
    assert len(set(found.values())) == len(names) - 1
    arn = "arn:aws:ssm:us-east-1::parameter/aws/service/none"
    assert code(aws.ssm.get_parameter, Name=arn) == "ParameterNotFound"


def faults_are_injected(aws):
    template = aws.template()
    throttle = {"service": "ec2", "action": "CreateFleet", "code": "RequestLimitExceeded"}
    aws.admin("faults", {**throttle, "after": 1, "times": 1})
    aws.fleet(template, ["t3.medium"])
    assert code(aws.fleet, template, ["t3.medium"]) == "RequestLimitExceeded"
    aws.fleet(template, ["t3.medium"])
    aws.admin("faults", method="DELETE")
    refused = {"action": "CreateFleet", "contains": "DryRun=true", "code": "UnauthorizedOperation"}
    aws.admin("faults", refused)
    assert code(aws.fleet, template, ["t3.medium"], DryRun=True) == "UnauthorizedOperation"
    assert ids(aws.fleet(template, ["t3.medium"]))
    aws.admin("faults", method="DELETE")
    aws.admin("faults", [{"service": "iam", "code": "Throttling", "times": 1}])
    assert code(aws.iam.get_role, RoleName="r") == "Throttling"
    aws.admin("faults", [{"service": "ssm", "code": "ThrottlingException", "times": 1}])
    assert code(aws.ssm.get_parameter, Name="x") == "ThrottlingException"
    before = len(aws.admin("instances"))
    aws.admin("faults", {**throttle, "times": 1, "lose": True, "code": "InternalError"})
    assert code(aws.fleet, template, ["t3.medium"], ClientToken="lost") == "InternalError"
    assert len(aws.admin("instances")) == before + 1
    aws.fleet(template, ["t3.medium"], ClientToken="lost")
    assert len(aws.admin("instances")) == before + 1
    aws.admin("faults", {"action": "DescribeInstances", "delay": 0.4, "times": 1})
    began = time.monotonic()
    assert code(aws.ec2.describe_instances, InstanceIds=[ABSENT]) == "InvalidInstanceID.NotFound"
    assert time.monotonic() - began >= 0.4
    aws.admin("faults", method="DELETE")


def policies_are_enforced(aws):
    owned = {"StringEquals": {"aws:RequestTag/owned": "yes"}}
    tagged = {"StringLike": {"ec2:ResourceTag/team": "*"}}
    document = {
        "Statement": [
            {"Effect": "Allow", "Action": ["ec2:Describe*", "ec2:CreateFleet"], "Resource": "*"},
            {"Effect": "Allow", "Action": "iam:CreateInstanceProfile", "Condition": owned},
            {"Effect": "Allow", "Action": "ec2:TerminateInstances", "Condition": tagged},
        ]
    }
    template = aws.template()
    named = [ids(aws.fleet(template, ["t3.medium"]))[0] for _ in range(2)]
    tags = [{"Key": "team", "Value": "a"}]
    aws.ec2.create_tags(Resources=named[:1], Tags=tags)
    aws.admin("policy", {"document": document, "principal": "other"})
    assert aws.sts.get_caller_identity()["Account"] == "123456789012"
    aws.admin("policy", {"document": document, "principal": "test"})
    aws.ec2.describe_instances()
    assert code(aws.sts.get_caller_identity) == "AccessDenied"
    assert code(aws.ec2.create_tags, Resources=named, Tags=tags) == "UnauthorizedOperation"
    assert code(aws.pricing.get_products, ServiceCode="AmazonEC2") == "AccessDeniedException"
    create = aws.iam.create_instance_profile
    assert code(create, InstanceProfileName="p") == "AccessDenied"
    create(InstanceProfileName="p", Tags=[{"Key": "owned", "Value": "yes"}])
    assert code(aws.ec2.terminate_instances, InstanceIds=named) == "UnauthorizedOperation"
    aws.ec2.terminate_instances(InstanceIds=named[:1])
    aws.admin("policy", method="DELETE")
    aws.ec2.terminate_instances(InstanceIds=named)


def calls_are_logged(aws):
    aws.admin("calls", method="DELETE")
    aws.fleet(aws.template(), ["t3.medium"], count=2)
    code(aws.ec2.describe_instances, InstanceIds=[ABSENT])
    aws.ssm.get_parameters(Names=["a"])
    [fleet] = aws.admin("calls?action=CreateFleet")
    capacity = fleet["parameters"]["TargetCapacitySpecification"]
    assert capacity["TotalTargetCapacity"] == 2 and fleet["status"] == 200
    [failed] = aws.admin("calls?action=DescribeInstances")
    assert (failed["error"], failed["status"]) == ("InvalidInstanceID.NotFound", 400)
    assert len(aws.admin(f"calls?after={failed['number']}")) == 1


def the_rest_answers(aws):
    arn = f"arn:aws:eks:us-east-1:123456789012:cluster/{CLUSTER}"
    shift = aws.arc_zonal_shift.get_managed_resource
    assert shift(resourceIdentifier=arn)["zonalShifts"] == []
    assert aws.sts.get_caller_identity()["Account"] == "123456789012"
    groups = aws.ec2.describe_placement_groups
    assert code(groups, GroupNames=["g"]) == "InvalidPlacementGroup.Unknown"
    aws.admin("placement-groups", {"GroupName": "g", "Strategy": "spread"})
    assert groups(GroupNames=["g"])["PlacementGroups"][0]["Strategy"] == "spread"
    aws.admin("reset", {})
    assert code(groups, GroupNames=["g"]) == "InvalidPlacementGroup.Unknown"


CHECKS = [
    types_are_paged_and_of_the_region,
    offerings_are_by_zone,
    prices_are_listed,
    spot_prices_differ_and_can_be_set,
    parameters_name_images,
    images_are_found,
    the_network_is_found_by_tag,
    missing_templates_have_their_codes,
    profiles_are_listed_by_path,
    instances_can_be_run_without_a_fleet,
    status_is_filtered,
    the_cluster_is_described,
    interruptions_arrive,
    changes_of_state_are_reported,
    images_can_be_deprecated,
    groups_and_subnets_are_several_and_have_names,
    policies_of_aws_can_be_attached,
    parameters_are_found_by_arn_and_images_by_older_releases,
    faults_are_injected,
    policies_are_enforced,
    calls_are_logged,
    the_rest_answers,
]
