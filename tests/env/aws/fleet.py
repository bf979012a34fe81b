"""CreateFleet of type instant, as EC2 documents it."""

import json
import time
import uuid

from .patches import moto_errors
from .wire import AwsError, dry_run, tag_map

# What a repeated token may differ in without being another request.
NOT_PART_OF_A_REQUEST = ("ClientToken", "DryRun")

# IOPS and MiB/s of volumes that are asked for without them.
DEFAULT_SPEED = {"gp3": (3000, 125)}


class Candidate:
    """One override over its launch template: a pool that instances may come from."""

    def __init__(self, version, override, order):
        data = version.data
        self.version, self.data, self.override, self.order = version, data, override, order
        self.zone = None
        self.type = override.get("InstanceType") or data.get("InstanceType")
        self.subnet = override.get("SubnetId")
        self.image = override.get("ImageId") or data.get("ImageId")
        self.wish = data.get("CapacityReservationSpecification") or {}
        target = self.wish.get("CapacityReservationTarget") or {}
        self.reservation = target.get("CapacityReservationId")

    @property
    def keeps_out(self):
        """Whether its instances use no reservation that is open to all."""
        return self.wish.get("CapacityReservationPreference") == "none"

    def describe(self):
        keys = ("InstanceType", "SubnetId", "Priority", "WeightedCapacity", "MaxPrice", "ImageId")
        override = {k: self.override[k] for k in keys if k in self.override}
        if self.zone:
            override["AvailabilityZone"] = self.zone
        return {
            "LaunchTemplateSpecification": {
                "LaunchTemplateId": self.version.template.id,
                "Version": str(self.version.number),
            },
            "Overrides": override,
        }


class Fleets:
    """Answers CreateFleet; remembers client tokens and the capacity that tests left."""

    def __init__(self, catalog, machines, reservations):
        self.catalog, self.machines, self.reservations = catalog, machines, reservations
        self.reset()
        machines.on_end = self.released

    def reset(self):
        self.pools, self.tokens = {}, {}

    def released(self, machine):
        """An instance has ended: its capacity is there again."""
        if machine.capacity_reservation:
            self.reservations.give_back(machine.capacity_reservation)
        elif machine.pool in self.pools:
            self.pools[machine.pool] += 1

    def create(self, region, request):
        token = request.get("ClientToken")
        content = {k: v for k, v in request.items() if k not in NOT_PART_OF_A_REQUEST}
        print_of = json.dumps(content, sort_keys=True)
        if token and (region, token) in self.tokens:
            known, answer = self.tokens[region, token]
            if known != print_of:
                raise AwsError(
                    "IdempotentParameterMismatch",
                    "The client token you have provided is associated with a fleet that was "
                    "created with other parameters.",
                )
            return answer
        self._check(request)
        candidates, errors = self._candidates(region, request)
        if request.get("DryRun"):
            raise dry_run()
        answer = self._launch(region, request, candidates, errors)
        if token:
            self.tokens[region, token] = (print_of, answer)
        return answer

    def _check(self, request):
        if request.get("Type", "maintain") != "instant":
            raise AwsError("UnsupportedOperation", "Only instant fleets are made here.")
        if not request.get("LaunchTemplateConfigs"):
            raise AwsError(
                "MissingParameter", "The request must contain the parameter LaunchTemplateConfigs"
            )
        count = sum(len(c.get("Overrides") or [{}]) for c in request["LaunchTemplateConfigs"])
        if count > 300:
            raise AwsError("InvalidParameterValue", "A fleet takes at most 300 overrides.")
        if request["TargetCapacitySpecification"].get("TotalTargetCapacity", 0) < 1:
            raise AwsError("InvalidParameterValue", "TotalTargetCapacity must be positive.")

    def _candidates(self, region, request):
        backend = self.machines.backend_of(region)
        candidates, errors = [], []
        known_groups = {g for groups in backend.groups.values() for g in groups}
        for config in request["LaunchTemplateConfigs"]:
            spec = config["LaunchTemplateSpecification"]
            with moto_errors():
                version = backend._get_template_from_args(spec)
            for override in config.get("Overrides") or [{}]:
                one = Candidate(version, override, len(candidates))
                problem = self._problem(region, backend, one, known_groups)
                if problem:
                    errors.append((one, *problem))
                else:
                    candidates.append(one)
        self._sort(request, candidates)
        return candidates, errors

    def _problem(self, region, backend, one, known_groups):
        """Finds the zone; what makes a candidate one that cannot be launched at all, or None."""
        try:
            with moto_errors():
                one.zone = backend.get_subnet(one.subnet).availability_zone
        except AwsError as error:
            return error.code, error.message
        detail = self.catalog.types.get(one.type)
        if detail is None:
            return "InvalidParameterValue", f"Invalid value '{one.type}' for InstanceType."
        if one.zone not in self.catalog.zones(region, one.type):
            return (
                "Unsupported",
                f"Your requested instance type ({one.type}) is not supported in your requested "
                f"Availability Zone ({one.zone}).",
            )
        image = backend.amis.get(one.image)
        if image is None:
            return "InvalidAMIID.NotFound", f"The image id '[{one.image}]' does not exist"
        if image.architecture not in detail["ProcessorInfo"]["SupportedArchitectures"]:
            return (
                "InvalidParameterValue",
                f"The architecture '{image.architecture}' of the specified AMI does not match "
                f"that of the specified instance type '{one.type}'.",
            )
        profile = one.data.get("IamInstanceProfile") or {}
        profile = profile.get("Name") or profile.get("Arn")
        if profile and self.machines.find_profile(profile) is None:
            return (
                "InvalidParameterValue",
                f"Value ({profile}) for parameter iamInstanceProfile.name is invalid. "
                "Invalid IAM Instance Profile name",
            )
        for group in _groups(one.data):
            if group not in known_groups:
                return "InvalidGroup.NotFound", f"The security group '{group}' does not exist"
        return None

    def _sort(self, request, candidates):
        spot = _capacity_type(request) == "spot"
        options = request.get("SpotOptions" if spot else "OnDemandOptions") or {}
        strategy = options.get("AllocationStrategy", "lowest-price").replace("_", "-")
        by_price = {c.order: self._price(c, spot) for c in candidates}
        if "prioritized" in strategy:
            last = float("inf")
            candidates.sort(
                key=lambda c: (c.override.get("Priority", last), by_price[c.order], c.order)
            )
        elif strategy in ("capacity-optimized", "diversified"):
            candidates.sort(key=lambda c: c.order)
        else:
            candidates.sort(key=lambda c: (by_price[c.order], c.order))
        ceiling = [float(c.override["MaxPrice"]) for c in candidates if "MaxPrice" in c.override]
        if ceiling:
            candidates[:] = [
                c
                for c in candidates
                if by_price[c.order] <= float(c.override.get("MaxPrice", "inf"))
            ]

    def _price(self, one, spot):
        if spot:
            return self.catalog.spot_price(one.type, one.zone)
        return self.catalog.on_demand_price(one.type)

    # ---- launching

    def _launch(self, region, request, candidates, errors):
        fleet = f"fleet-{uuid.uuid4()}"
        kind = _capacity_type(request)
        tags = {
            t["ResourceType"]: tag_map(t.get("Tags")) for t in request.get("TagSpecifications", [])
        }
        tags.setdefault("instance", {})["aws:ec2:fleet-id"] = fleet
        launched, exhausted = {}, {}
        for _ in range(request["TargetCapacitySpecification"]["TotalTargetCapacity"]):
            for one in candidates:
                if one.order in exhausted:
                    continue
                pool = f"{one.type}/{one.zone}/{'spot' if kind == 'spot' else 'on-demand'}"
                problem = self._take(region, one, pool)
                if problem:
                    exhausted[one.order] = (one, *problem)
                    continue
                machine = self._start(region, one, kind, pool, tags)
                launched.setdefault(one.order, (one, []))[1].append(machine.id)
                break
        lifecycle = "spot" if kind == "spot" else "on-demand"
        seen, reported = set(), []
        for one, code, message in [*errors, *exhausted.values()]:
            key = (one.type, one.zone, one.subnet, code)
            if key not in seen:
                seen.add(key)
                reported.append(
                    {
                        "LaunchTemplateAndOverrides": one.describe(),
                        "Lifecycle": lifecycle,
                        "ErrorCode": code,
                        "ErrorMessage": message,
                    }
                )
        groups = []
        for one, ids in launched.values():
            group = {
                "LaunchTemplateAndOverrides": one.describe(),
                "Lifecycle": lifecycle,
                "InstanceIds": ids,
                "InstanceType": one.type,
            }
            platform = self.machines.by_id[ids[0]].moto.platform
            groups.append({**group, "Platform": platform} if platform else group)
        return {"FleetId": fleet, "Errors": reported, "Instances": groups}

    def _take(self, region, one, pool):
        if one.reservation:
            return self.reservations.take(one.reservation, one.type, one.zone)
        if self.pools.get(pool, 1) <= 0:
            return (
                "InsufficientInstanceCapacity",
                f"We currently do not have sufficient {one.type} capacity in the Availability "
                f"Zone you requested ({one.zone}). Our system will be working on provisioning "
                "additional capacity.",
            )
        subnet = self.machines.backend_of(region).get_subnet(one.subnet)
        if subnet.available_ip_address_count <= 0:
            return (
                "InsufficientFreeAddressesInSubnet",
                f"There are not enough free addresses in subnet '{one.subnet}' to satisfy the "
                "requested number of instances.",
            )
        if pool in self.pools:
            self.pools[pool] -= 1
        return None

    def _start(self, region, one, kind, pool, tags):
        backend, data = self.machines.backend_of(region), one.data
        of_template = {
            t.get("ResourceType"): tag_map(t.get("Tags")) for t in data.get("TagSpecifications", [])
        }

        def merged(what):
            return {**(of_template.get(what) or {}), **tags.get(what, {})}

        version = one.version
        instance_tags = merged("instance") | {
            "aws:ec2launchtemplate:id": version.template.id,
            "aws:ec2launchtemplate:version": str(version.number),
        }
        nics = data.get("NetworkInterfaces") or []
        public = nics[0].get("AssociatePublicIpAddress") if nics else None
        disks = [
            {**d, "Ebs": _typed_disk(d["Ebs"])}
            for d in data.get("BlockDeviceMappings") or []
            if "Ebs" in d
        ]
        root = backend.amis[one.image].root_device_name
        if not any(d.get("DeviceName") == root for d in disks):
            plain = {"VolumeSize": 20, "VolumeType": "gp3", "DeleteOnTermination": True}
            disks.insert(0, {"DeviceName": root, "Ebs": plain})
        with moto_errors():
            reservation = backend.run_instances(
                one.image,
                1,
                data.get("UserData"),
                [],
                instance_type=one.type,
                is_instance_type_default=False,
                region_name=region,
                subnet_id=one.subnet,
                security_group_ids=_groups(data),
                ebs_optimized=_yes(data.get("EbsOptimized")),
                associate_public_ip=None if public is None else _yes(public),
                monitoring_state="enabled"
                if _yes((data.get("Monitoring") or {}).get("Enabled"))
                else "disabled",
                metadata_options=data.get("MetadataOptions") or {},
                block_device_mappings=[
                    {**d, "Ebs": {**d["Ebs"], "VolumeType": "gp3"}} for d in disks
                ],
                key_name=data.get("KeyName"),
                tags={"instance": instance_tags, "volume": merged("volume")},
            )
        machine = self.machines.by_id[reservation.instances[0].id]
        _type_volumes(backend, machine, disks)
        machine.born = time.time()
        machine.lifecycle = {"spot": "spot", "capacity-block": "capacity-block"}.get(
            kind, "on-demand"
        )
        machine.moto.lifecycle = "spot" if kind == "spot" else None
        profile = data.get("IamInstanceProfile") or {}
        machine.profile = profile.get("Name") or profile.get("Arn")
        machine.template = (version.template.id, version.template.name, str(version.number))
        machine.pool, machine.capacity_reservation = pool, one.reservation
        if one.reservation is None and machine.lifecycle == "on-demand" and not one.keeps_out:
            machine.capacity_reservation = self.reservations.take_open(one.type, one.zone)
        machine.reservation_wish = _described_wish(one.wish)
        placement = data.get("Placement") or {}
        group = self.reservations.group(placement.get("GroupName") or placement.get("GroupId"))
        machine.placement_group = group
        if group and group["Strategy"] == "partition":
            # Without a wish EC2 spreads instances over the partitions.
            wish = int(placement.get("PartitionNumber") or 0)
            machine.partition = wish or len(self.machines.by_id) % group["PartitionCount"] + 1
        machine.tenancy = placement.get("Tenancy", "default")
        machine.metadata = dict(data.get("MetadataOptions") or {})
        machine.cpu = dict(data.get("CpuOptions") or {})
        machine.spot_tags = merged("spot-instances-request")
        machine.interfaces = [n for n in nics if isinstance(n, dict)]
        for nic in machine.moto.nics.values():
            backend.create_tags([nic.id], merged("network-interface"))
        return machine


def _capacity_type(request):
    return request["TargetCapacitySpecification"].get("DefaultTargetCapacityType", "on-demand")


def _groups(data):
    if data.get("SecurityGroupIds"):
        return list(data["SecurityGroupIds"])
    found = []
    for nic in data.get("NetworkInterfaces") or []:
        found += nic.get("Groups") or nic.get("SecurityGroupId") or []
    return list(dict.fromkeys(found))


def _described_wish(wish):
    """What DescribeInstances shows of a template's CapacityReservationSpecification."""
    target = wish.get("CapacityReservationTarget")
    preference = "capacity-reservations-only" if target else "open"
    out = {"CapacityReservationPreference": wish.get("CapacityReservationPreference", preference)}
    return {**out, "CapacityReservationTarget": target} if target else out


def _yes(value):
    return str(value).lower() == "true"


def _type_volumes(backend, machine, disks):
    """Gives volumes their type and speed, which moto does not take from an instance's mapping."""
    mapping = machine.moto.block_device_mapping
    for disk in disks:
        ebs, volume = disk["Ebs"], backend.volumes[mapping[disk["DeviceName"]].volume_id]
        volume.volume_type = ebs.get("VolumeType", "gp2")
        iops, throughput = DEFAULT_SPEED.get(volume.volume_type, (None, None))
        volume.iops = ebs.get("Iops", iops)
        volume.throughput = ebs.get("Throughput", throughput)


def _typed_disk(ebs):
    out = dict(ebs)
    for key in ("Encrypted", "DeleteOnTermination"):
        if key in out:
            out[key] = _yes(out[key])
    for key in ("VolumeSize", "Iops", "Throughput"):
        if key in out:
            out[key] = int(out[key])
    # EC2 fills the size in from the image's snapshot.
    out.setdefault("VolumeSize", 20)
    return out
