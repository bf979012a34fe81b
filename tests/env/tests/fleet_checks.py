"""CreateFleet and the life of an instance."""

import datetime
import time

from .harness import code, error_codes, ids

TWO = ["m5.xlarge", "c5.large"]


def the_cheapest_pool_is_taken(aws):
    fleet = aws.fleet(aws.template(), TWO)
    assert fleet["Instances"][0]["InstanceType"] == "c5.large"
    assert fleet["Instances"][0]["Lifecycle"] == "spot"
    assert fleet["Errors"] == []


def priority_comes_before_price(aws):
    template = aws.template()
    strategies = {"on-demand": "prioritized", "spot": "capacity-optimized-prioritized"}
    for kind, strategy in strategies.items():
        fleet = aws.fleet(template, TWO, kind, strategy=strategy)
        assert fleet["Instances"][0]["InstanceType"] == "m5.xlarge", strategy


def several_templates_compete(aws):
    one, two = aws.template(), aws.template(ImageId="ami-0a7d2c1f5e8b94d06")
    subnet = aws.state["subnets"][0]

    def config(name, kind):
        spec = {"LaunchTemplateName": name, "Version": "$Latest"}
        return {
            "LaunchTemplateSpecification": spec,
            "Overrides": [{"InstanceType": kind, "SubnetId": subnet}],
        }

    configs = [config(one, "m5.large"), config(two, "m6g.large")]
    fleet = aws.fleet(one, [], "on-demand", LaunchTemplateConfigs=configs)
    assert fleet["Instances"][0]["InstanceType"] == "m6g.large"
    configs = [config(one, "m6g.large")]
    fleet = aws.fleet(one, [], "on-demand", LaunchTemplateConfigs=configs)
    assert (ids(fleet), error_codes(fleet)) == ([], ["InvalidParameterValue"])


def instances_of_one_override_are_one_group(aws):
    fleet = aws.fleet(aws.template(), ["t3.medium"], count=3)
    assert [len(g["InstanceIds"]) for g in fleet["Instances"]] == [3]


def a_token_launches_once(aws):
    template = aws.template()
    first = aws.fleet(template, TWO, ClientToken="token-1")
    again = aws.fleet(template, TWO, ClientToken="token-1")
    assert (first["FleetId"], ids(first)) == (again["FleetId"], ids(again))
    other = code(aws.fleet, template, TWO, count=2, ClientToken="token-1")
    assert other == "IdempotentParameterMismatch"


def partitions_are_told_once_it_runs(aws):
    group = {"GroupName": "parts", "Strategy": "partition", "PartitionCount": 3}
    made = aws.admin("placement-groups", group)[0]
    template = aws.template(Placement={"GroupId": made["GroupId"], "PartitionNumber": 2})
    fleet = aws.fleet(template, ["t3.medium"])

    def placement():
        answer = aws.ec2.describe_instances(InstanceIds=ids(fleet))
        return answer["Reservations"][0]["Instances"][0]["Placement"]

    first = placement()
    assert (first["GroupId"], first.get("PartitionNumber")) == (made["GroupId"], None)
    deadline = time.monotonic() + 10
    while placement().get("PartitionNumber") != 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def an_empty_pool_is_reported(aws):
    template = aws.template()
    aws.admin("pools", {f"{t}/*/spot": 0 for t in TWO})
    fleet = aws.fleet(template, TWO)
    assert (ids(fleet), error_codes(fleet)) == ([], ["InsufficientInstanceCapacity"])
    assert len(fleet["Errors"]) == 6
    override = fleet["Errors"][0]["LaunchTemplateAndOverrides"]["Overrides"]
    assert {"InstanceType", "SubnetId", "AvailabilityZone"} <= set(override)
    aws.admin("pools", {"c5.large/us-east-1b/spot": 2})
    fleet = aws.fleet(template, TWO, count=3)
    assert len(ids(fleet)) == 2 and error_codes(fleet) == ["InsufficientInstanceCapacity"]
    aws.ec2.terminate_instances(InstanceIds=ids(fleet)[:1])
    assert aws.admin("pools")["c5.large/us-east-1b/spot"] == 1
    aws.admin("pools", method="DELETE")


def a_missing_subnet_and_image_are_errors_of_the_pool(aws):
    subnets = ["subnet-00000000000000000"]
    fleet = aws.fleet(aws.template(), ["t3.medium"], subnets=subnets)
    assert (ids(fleet), error_codes(fleet)) == ([], ["InvalidSubnetID.NotFound"])
    fleet = aws.fleet(aws.template(ImageId="ami-00000000000000000"), ["t3.medium"])
    assert error_codes(fleet) == ["InvalidAMIID.NotFound"]
    assert code(aws.fleet, "none", TWO) == "InvalidLaunchTemplateName.NotFoundException"


def a_dry_run_launches_nothing(aws):
    before = len(aws.admin("instances"))
    assert code(aws.fleet, aws.template(), TWO, DryRun=True) == "DryRunOperation"
    assert len(aws.admin("instances")) == before


def the_template_is_honoured(aws):
    tags = [{"ResourceType": "volume", "Tags": [{"Key": "of", "Value": "template"}]}]
    fleet = aws.fleet(aws.template(TagSpecifications=tags), ["t3.medium"])
    one = aws.instance(ids(fleet)[0])
    assert [g["GroupId"] for g in one["SecurityGroups"]] == [aws.state["security-group"]]
    assert one["IamInstanceProfile"]["Arn"].endswith("/profile")
    assert one["ImageId"] == "ami-09c00c2e93ce7bd23" and one["EbsOptimized"]
    assert one["MetadataOptions"]["HttpTokens"] == "required"
    assert one["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
    assert one["Monitoring"]["State"] == "enabled" and one["InstanceLifecycle"] == "spot"
    assert one["Placement"]["AvailabilityZoneId"].startswith("use1-az")
    assert one["PrivateDnsName"] == f"ip-{one['PrivateIpAddress'].replace('.', '-')}.ec2.internal"
    assert {"karpenter.sh/nodepool", "aws:ec2:fleet-id", "aws:ec2launchtemplate:id"} <= {
        t["Key"] for t in one["Tags"]
    }
    [disk] = one["BlockDeviceMappings"]
    [volume] = aws.ec2.describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
    assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (20, "gp3", True)
    assert {"of", "karpenter.sh/nodepool"} <= {t["Key"] for t in volume["Tags"]}
    nic = one["NetworkInterfaces"][0]["NetworkInterfaceId"]
    [nic] = aws.ec2.describe_network_interfaces(NetworkInterfaceIds=[nic])["NetworkInterfaces"]
    assert "karpenter.sh/nodepool" in {t["Key"] for t in nic["TagSet"]}


def an_instance_lives_by_the_clock(aws):
    [iid] = ids(aws.fleet(aws.template(), ["t3.medium"]))

    def state():
        return aws.instance(iid)["State"]["Name"]

    def until(wanted):
        limit = time.time() + 5
        while state() != wanted:
            assert time.time() < limit, f"{state()} is not {wanted}"
            time.sleep(0.1)

    assert state() == "pending"
    until("running")
    change = aws.ec2.terminate_instances(InstanceIds=[iid])["TerminatingInstances"][0]
    assert change["PreviousState"]["Name"] == "running"
    assert change["CurrentState"]["Name"] == state() == "shutting-down"
    until("terminated")
    again = aws.ec2.terminate_instances(InstanceIds=[iid])["TerminatingInstances"][0]
    assert again["CurrentState"]["Name"] == "terminated"
    absent, not_found = "i-00000000000000000", "InvalidInstanceID.NotFound"
    assert code(aws.ec2.terminate_instances, InstanceIds=[iid, absent]) == not_found
    assert code(aws.ec2.describe_instances, InstanceIds=[absent]) == not_found


def filters_are_anded(aws):
    [iid] = ids(aws.fleet(aws.template(), ["t3.medium"]))

    def listed(*filters):
        given = [{"Name": n, "Values": v} for n, v in filters]
        pages = aws.ec2.get_paginator("describe_instances").paginate(
            Filters=given, PaginationConfig={"PageSize": 5}
        )
        return [i["InstanceId"] for p in pages for r in p["Reservations"] for i in r["Instances"]]

    pool, klass = "karpenter.sh/nodepool", "karpenter.k8s.aws/ec2nodeclass"
    assert iid in listed(("tag-key", [pool]), ("tag-key", [klass]))
    assert listed(("tag-key", ["absent"]), ("tag-key", [klass])) == []
    assert iid in listed(("tag-key", ["absent", klass]), ("tag:" + pool, ["def*"]))
    assert listed(("tag:" + pool, ["other"])) == []
    assert iid in listed(("instance-state-name", ["pending", "running"]))
    assert code(listed, ("no-such-filter", ["x"])) == "InvalidParameterValue"


def tags_can_be_added(aws):
    [iid] = ids(aws.fleet(aws.template(), ["t3.medium"]))
    aws.ec2.create_tags(Resources=[iid], Tags=[{"Key": "Name", "Value": "n"}])
    assert {"Key": "Name", "Value": "n"} in aws.instance(iid)["Tags"]
    found = aws.ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [iid]}])["Tags"]
    assert "Name" in {t["Key"] for t in found}
    missing = ["i-00000000000000000"]
    tags = [{"Key": "a", "Value": "b"}]
    assert code(aws.ec2.create_tags, Resources=missing, Tags=tags) == "InvalidInstanceID.NotFound"


def reservations_run_out(aws):
    one = {"CapacityReservationId": "cr-1", "InstanceType": "m5.large"}
    one |= {"AvailabilityZone": "us-east-1a", "Tags": {"team": "a"}}
    aws.admin("capacity-reservations", one)
    by_tag = [{"Name": "tag:team", "Values": ["a"]}, {"Name": "state", "Values": ["active"]}]
    found = aws.ec2.describe_capacity_reservations(Filters=by_tag)["CapacityReservations"]
    assert [r["AvailableInstanceCount"] for r in found] == [1]
    target = {"CapacityReservationTarget": {"CapacityReservationId": "cr-1"}}
    template = aws.template(CapacityReservationSpecification=target)
    subnets = aws.state["subnets"][:1]
    assert len(ids(aws.fleet(template, ["m5.large"], "on-demand", subnets=subnets))) == 1
    fleet = aws.fleet(template, ["m5.large"], "on-demand", subnets=subnets)
    assert (ids(fleet), error_codes(fleet)) == ([], ["ReservationCapacityExceeded"])
    ask = aws.ec2.describe_capacity_reservations
    assert code(ask, CapacityReservationIds=["cr-0"]) == "InvalidCapacityReservationId.NotFound"


def placed(aws, kind="m5.large", **data):
    """An on-demand instance in the first subnet, from a template of these; its id."""
    subnets = aws.state["subnets"][:1]
    return ids(aws.fleet(aws.template(**data), [kind], "on-demand", subnets=subnets))[0]


def reservations_are_made_and_cancelled_and_their_instances_follow(aws):
    tags = [{"ResourceType": "capacity-reservation", "Tags": [{"Key": "team", "Value": "b"}]}]
    asked = {"InstanceType": "m5.large", "InstancePlatform": "Linux/UNIX", "InstanceCount": 2}
    asked |= {"AvailabilityZone": "us-east-1a", "InstanceMatchCriteria": "targeted"}
    create = aws.ec2.create_capacity_reservation
    assert code(create, InstanceType="m5.large", InstanceCount=1) == "MissingParameter"
    assert code(create, **asked, DryRun=True) == "DryRunOperation"
    made = create(**asked, TagSpecifications=tags)["CapacityReservation"]
    rid = made["CapacityReservationId"]
    assert (made["State"], made["AvailableInstanceCount"]) == ("active", 2)
    by_tag = [{"Name": "tag:team", "Values": ["b"]}]
    [found] = aws.ec2.describe_capacity_reservations(Filters=by_tag)["CapacityReservations"]
    assert found["CapacityReservationId"] == rid
    wish = {"CapacityReservationPreference": "capacity-reservations-only"}
    wish |= {"CapacityReservationTarget": {"CapacityReservationId": rid}}
    iid = placed(aws, CapacityReservationSpecification=wish)
    assert aws.instance(iid)["CapacityReservationId"] == rid
    modify, cancel = aws.ec2.modify_capacity_reservation, aws.ec2.cancel_capacity_reservation
    assert code(modify, CapacityReservationId=rid, InstanceCount=0) == "InvalidInstanceCount"
    modify(CapacityReservationId=rid, InstanceCount=1)
    cancel(CapacityReservationId=rid)
    [found] = aws.ec2.describe_capacity_reservations(CapacityReservationIds=[rid])[
        "CapacityReservations"
    ]
    assert (found["State"], found["AvailableInstanceCount"]) == ("cancelled", 0)
    left = aws.instance(iid)
    assert left["State"]["Name"] in ("pending", "running") and "CapacityReservationId" not in left
    assert left["CapacityReservationSpecification"] == wish
    assert code(cancel, CapacityReservationId=rid) == "InvalidCapacityReservationState"
    assert code(cancel, CapacityReservationId="cr-0") == "InvalidCapacityReservationId.NotFound"
    aws.ec2.terminate_instances(InstanceIds=[iid])


def open_reservations_take_in_instances_that_do_not_keep_out(aws):
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1.5)
    made = aws.ec2.create_capacity_reservation(
        InstanceType="m5.xlarge",
        InstancePlatform="Linux/UNIX",
        InstanceCount=2,
        AvailabilityZone="us-east-1a",
        EndDateType="limited",
        EndDate=soon,
    )["CapacityReservation"]
    rid = made["CapacityReservationId"]
    assert made["InstanceMatchCriteria"] == "open"
    kept_out = {"CapacityReservationPreference": "none"}
    out = placed(aws, "m5.xlarge", CapacityReservationSpecification=kept_out)
    inside = placed(aws, "m5.xlarge")
    assert "CapacityReservationId" not in aws.instance(out)
    assert aws.instance(inside)["CapacityReservationId"] == rid
    describe = aws.ec2.describe_capacity_reservations
    while describe(CapacityReservationIds=[rid])["CapacityReservations"][0]["State"] == "active":
        assert datetime.datetime.now(datetime.timezone.utc) < soon + datetime.timedelta(seconds=5)
        time.sleep(0.1)
    [found] = describe(CapacityReservationIds=[rid])["CapacityReservations"]
    assert found["State"] == "expired"
    assert "CapacityReservationId" not in aws.instance(inside)
    aws.ec2.terminate_instances(InstanceIds=[out, inside])


def instances_of_a_capacity_block_end_with_it(aws):
    block = {"CapacityReservationId": "cr-block", "InstanceType": "m5.large"}
    block |= {"AvailabilityZone": "us-east-1a", "ReservationType": "capacity-block"}
    aws.admin("capacity-reservations", block)
    wish = {"CapacityReservationTarget": {"CapacityReservationId": "cr-block"}}
    iid = placed(aws, CapacityReservationSpecification=wish)
    aws.ec2.cancel_capacity_reservation(CapacityReservationId="cr-block")
    assert aws.instance(iid)["State"]["Name"] == "shutting-down"


def what_ec2_describes_of_an_instance_is_whole(aws):
    tracking = {"TcpEstablishedTimeout": 432000, "UdpTimeout": 30}
    nic = {"DeviceIndex": 0, "AssociatePublicIpAddress": True}
    nic |= {"Groups": [aws.state["security-group"]], "ConnectionTrackingSpecification": tracking}
    disk = {"VolumeSize": 30, "VolumeType": "io2", "Iops": 4000, "DeleteOnTermination": True}
    iid = placed(
        aws,
        SecurityGroupIds=[],
        NetworkInterfaces=[nic],
        CpuOptions={"CoreCount": 1, "ThreadsPerCore": 1},
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": disk}],
    )
    one = aws.instance(iid)
    assert one["CpuOptions"] == {"CoreCount": 1, "ThreadsPerCore": 1}
    interface = one["NetworkInterfaces"][0]
    assert interface["ConnectionTrackingConfiguration"] == tracking
    assert interface["Association"]["PublicIp"] == one["PublicIpAddress"]
    assert one["PublicDnsName"].startswith("ec2-")
    volume = one["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    [volume] = aws.ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
    assert (volume["VolumeType"], volume["Iops"]) == ("io2", 4000)
    plain = aws.instance(placed(aws))
    assert plain["CpuOptions"] == {"CoreCount": 1, "ThreadsPerCore": 2}
    assert "PublicIpAddress" not in plain
    assert "ConnectionTrackingConfiguration" not in plain["NetworkInterfaces"][0]


def spot_instances_have_their_requests(aws):
    [iid] = ids(aws.fleet(aws.template(), ["t3.medium"]))
    rid = aws.instance(iid)["SpotInstanceRequestId"]
    ask = aws.ec2.describe_spot_instance_requests
    [found] = ask(SpotInstanceRequestIds=[rid])["SpotInstanceRequests"]
    assert (found["State"], found["InstanceId"]) == ("active", iid)
    assert found["Status"]["Code"] == "fulfilled"
    mine = [{"Name": "instance-id", "Values": [iid]}, {"Name": "state", "Values": ["active"]}]
    assert [r["SpotInstanceRequestId"] for r in ask(Filters=mine)["SpotInstanceRequests"]] == [rid]
    aws.ec2.terminate_instances(InstanceIds=[iid])
    [found] = ask(SpotInstanceRequestIds=[rid])["SpotInstanceRequests"]
    closed = ("closed", "instance-terminated-by-user")
    assert (found["State"], found["Status"]["Code"]) == closed
    missing = "InvalidSpotInstanceRequestID.NotFound"
    assert code(ask, SpotInstanceRequestIds=["sir-0"]) == missing


def an_instance_is_stopped_and_started(aws):
    iid = placed(aws)
    change = aws.ec2.stop_instances(InstanceIds=[iid])["StoppingInstances"][0]
    assert change["CurrentState"]["Name"] == "stopping"
    until_state(aws, iid, "stopped")
    aws.ec2.start_instances(InstanceIds=[iid])
    assert aws.instance(iid)["State"]["Name"] == "pending"
    until_state(aws, iid, "running")
    aws.ec2.terminate_instances(InstanceIds=[iid])
    assert code(aws.ec2.stop_instances, InstanceIds=[iid]) == "IncorrectInstanceState"
    spot = ids(aws.fleet(aws.template(), ["t3.medium"]))
    assert code(aws.ec2.stop_instances, InstanceIds=spot) == "UnsupportedOperation"


def until_state(aws, iid, wanted):
    deadline = time.monotonic() + 10
    while aws.instance(iid)["State"]["Name"] != wanted:
        assert time.monotonic() < deadline, f"{iid} is not {wanted}"
        time.sleep(0.1)


CHECKS = [
    the_cheapest_pool_is_taken,
    priority_comes_before_price,
    several_templates_compete,
    instances_of_one_override_are_one_group,
    a_token_launches_once,
    partitions_are_told_once_it_runs,
    an_empty_pool_is_reported,
    a_missing_subnet_and_image_are_errors_of_the_pool,
    a_dry_run_launches_nothing,
    the_template_is_honoured,
    an_instance_lives_by_the_clock,
    filters_are_anded,
    tags_can_be_added,
    reservations_run_out,
    reservations_are_made_and_cancelled_and_their_instances_follow,
    open_reservations_take_in_instances_that_do_not_keep_out,
    instances_of_a_capacity_block_end_with_it,
    what_ec2_describes_of_an_instance_is_whole,
    spot_instances_have_their_requests,
    an_instance_is_stopped_and_started,
]
