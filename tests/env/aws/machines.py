"""Instances: their life by the clock, and the calls about them."""

import dataclasses
import time

from . import ACCOUNT
from .wire import AwsError, dry_run, keep, page, tag_list, tag_map

STATES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48}
STATES |= {"stopping": 64, "stopped": 80}
GONE_WITH_THE_INSTANCE = (
    "PrivateIpAddress",
    "PublicIpAddress",
    "SubnetId",
    "VpcId",
    "NetworkInterfaces",
)
# EC2 shows a terminated instance for about an hour.
REMEMBERED_SECONDS = 3600


@dataclasses.dataclass
class Machine:
    """An instance: moto's object and what moto does not keep."""

    moto: object
    region: str
    reservation: str
    born: float
    user_data: str = ""
    ended: float | None = None
    reason: str = ""
    lifecycle: str = "on-demand"
    pool: str | None = None
    profile: str | None = None
    template: tuple | None = None
    capacity_reservation: str | None = None
    # How it was launched into its reservation, whatever has become of that.
    reservation_wish: dict | None = None
    placement_group: dict | None = None
    partition: int = 0
    tenancy: str = "default"
    metadata: dict = dataclasses.field(default_factory=dict)
    interfaces: list = dataclasses.field(default_factory=list)
    cpu: dict = dataclasses.field(default_factory=dict)
    spot_tags: dict = dataclasses.field(default_factory=dict)
    # When it was stopped, and what state that is.
    halted: float | None = None
    started: float | None = None
    fixed: dict | None = None

    @property
    def id(self):
        return self.moto.id

    @property
    def dns(self):
        domain = "ec2.internal"
        if self.region != "us-east-1":
            domain = f"{self.region}.compute.internal"
        return f"ip-{self.moto.private_ip.replace('.', '-')}.{domain}"

    @property
    def spot_request(self):
        return f"sir-{self.id[2:10]}"

    @property
    def zone(self):
        return self.moto.availability_zone


class Machines:
    """Every instance, by id."""

    def __init__(self, backend_of, settings):
        self.backend_of, self.settings = backend_of, settings
        self.by_id = {}
        self.health = {}
        self.on_end = lambda machine: None
        self.detail = lambda name: {}

    def adopt(self, backend, instance, reservation, asked):
        """moto has made an instance, as it was asked to by these arguments."""
        machine = Machine(instance, backend.region_name, reservation, time.time())
        machine.user_data = str(instance.user_data or "")
        if instance.lifecycle:
            machine.lifecycle = instance.lifecycle
        machine.profile = asked.get("iam_instance_profile_name")
        machine.profile = machine.profile or asked.get("iam_instance_profile_arn")
        machine.metadata = dict(asked.get("metadata_options") or {})
        self.by_id[instance.id] = machine

    def get_all(self, region, ids):
        """All or nothing, as EC2 does it."""
        missing = [i for i in ids if not self._known(region, i)]
        if missing:
            what = f"ID '{missing[0]}' does"
            if len(missing) > 1:
                what = f"IDs '{', '.join(missing)}' do"
            raise AwsError("InvalidInstanceID.NotFound", f"The instance {what} not exist")
        return [self.by_id[i] for i in dict.fromkeys(ids)]

    def _known(self, region, iid):
        machine = self.by_id.get(iid)
        return machine and machine.region == region and not self.forgotten(machine)

    def forgotten(self, machine):
        return machine.ended is not None and time.time() > machine.ended + REMEMBERED_SECONDS

    def tags(self, machine):
        return self.backend_of(machine.region).tags.get(machine.id, {})

    def state(self, machine):
        now = time.time()
        if machine.ended is not None:
            gone = now >= machine.ended + self.settings.shutting
            return "terminated" if gone else "shutting-down"
        name = machine.moto.state
        if name == "terminated":
            return self._end(machine, "User initiated") or "shutting-down"
        if machine.halted is not None:
            gone = now >= machine.halted + self.settings.shutting
            return "stopped" if gone else "stopping"
        if name == "running" and now < (machine.started or machine.born) + self.settings.pending:
            return "pending"
        return name

    def _end(self, machine, reason):
        machine.ended, machine.reason = time.time(), reason
        self.on_end(machine)

    def terminate(self, machine, reason="User initiated"):
        if machine.ended is None:
            if machine.moto.state != "terminated":
                machine.moto.terminate()
            backend = self.backend_of(machine.region)
            for nic in list(machine.moto.nics.values()):
                backend.enis.pop(nic.id, None)
            self._end(machine, reason)

    def leave_reservation(self, rid, kind):
        """A reservation is over: its instances run on as on-demand ones; a block's are ended."""
        for machine in self.by_id.values():
            if machine.capacity_reservation == rid and machine.ended is None:
                if kind == "capacity-block":
                    self.terminate(machine, "Server.CapacityBlockExpired")
                machine.capacity_reservation = machine.fixed = None

    # ---- calls

    def describe(self, region, request):
        if request.get("DryRun"):
            raise dry_run()
        ids = request.get("InstanceIds")
        if ids and request.get("MaxResults"):
            raise AwsError(
                "InvalidParameterCombination",
                "The parameter instancesSet cannot be used with the parameter maxResults",
            )
        machines = self.get_all(region, ids) if ids else list(self.by_id.values())
        filters = request.get("Filters")
        found = [
            m
            for m in machines
            if m.region == region
            and not self.forgotten(m)
            and keep(filters, lambda name, m=m: self.field(m, name), self.tags(m))
        ]
        chosen, token = page(found, request, 1000)
        reservations = [
            {
                "ReservationId": m.reservation,
                "OwnerId": ACCOUNT,
                "Instances": [self.as_instance(m)],
            }
            for m in chosen
        ]
        return {"Reservations": reservations, "NextToken": token}

    def field(self, m, name):
        """The values of a field that a filter may name, or None for a name that EC2 has not."""
        groups = [g.id for g in m.moto.security_groups]
        template = m.template or (None, None, None)
        values = {
            "instance-state-name": [self.state(m)],
            "instance-state-code": [STATES[self.state(m)]],
            "instance-type": [m.moto.instance_type],
            "instance-id": [m.id],
            "instance-lifecycle": [m.lifecycle] if m.lifecycle != "on-demand" else [],
            "image-id": [m.moto.image_id],
            "subnet-id": [m.moto.subnet_id],
            "vpc-id": [m.moto.vpc_id],
            "availability-zone": [m.zone],
            "availability-zone-id": [self.zone_id(m)],
            "private-dns-name": [m.dns],
            "private-ip-address": [m.moto.private_ip],
            "architecture": [m.moto.architecture],
            "reservation-id": [m.reservation],
            "owner-id": [ACCOUNT],
            "tenancy": [m.tenancy],
            "placement-group-name": [m.placement_group["GroupName"]] if m.placement_group else [],
            "capacity-reservation-id": [m.capacity_reservation] if m.capacity_reservation else [],
            "instance.group-id": groups,
            "network-interface.group-id": groups,
            "network-interface.attachment.status": ["attached"],
            "network-interface.subnet-id": [m.moto.subnet_id],
            "iam-instance-profile.arn": [self.profile(m)["Arn"]] if m.profile else [],
            "launch-template-id": [template[0]] if m.template else [],
            "launch-template-name": [template[1]] if m.template else [],
        }
        return values.get(name)

    def zone_id(self, m):
        zones = {z.name: z.zone_id for z in self.backend_of(m.region).describe_availability_zones()}
        return zones.get(m.zone, "")

    def find_profile(self, name_or_arn):
        """IAM's instance profile, or None."""
        from moto.iam.models import iam_backends

        known = iam_backends[ACCOUNT]["aws"].instance_profiles.values()
        return next((p for p in known if name_or_arn in (p.name, p.arn)), None)

    def profile(self, m):
        found = self.find_profile(m.profile)
        if found:
            return {"Arn": found.arn, "Id": found.id}
        arn = m.profile
        if not arn.startswith("arn:"):
            arn = f"arn:aws:iam::{ACCOUNT}:instance-profile/{arn}"
        return {"Arn": arn, "Id": "AIPAUNKNOWN"}

    def as_instance(self, m):
        if m.fixed is None:
            m.fixed = self._fixed(m)
        state = self.state(m)
        out = {
            **m.fixed,
            "State": {"Code": STATES[state], "Name": state},
            "Tags": tag_list(self.tags(m)),
        }
        if m.partition and state != "pending":
            out["Placement"] = {**m.fixed["Placement"], "PartitionNumber": m.partition}
        if m.capacity_reservation:
            out["CapacityReservationId"] = m.capacity_reservation
        if m.ended is not None:
            when = time.strftime("%F %T GMT", time.gmtime(m.ended))
            out["StateTransitionReason"] = f"{m.reason} ({when})"
            if state == "terminated":
                for key in GONE_WITH_THE_INSTANCE:
                    out.pop(key, None)
                out |= {"PrivateDnsName": "", "BlockDeviceMappings": [], "SecurityGroups": []}
        return out

    def _fixed(self, m):
        i = m.moto
        groups = [{"GroupId": g.id, "GroupName": g.name} for g in i.security_groups]
        disks = [
            {
                "DeviceName": device,
                "Ebs": {
                    "VolumeId": disk.volume_id,
                    "Status": "attached",
                    "AttachTime": m.born,
                    "DeleteOnTermination": bool(disk.delete_on_termination),
                },
            }
            for device, disk in i.block_device_mapping.items()
        ]
        out = {
            "InstanceId": i.id,
            "ImageId": i.image_id,
            "InstanceType": i.instance_type,
            "LaunchTime": m.born,
            "PrivateDnsName": m.dns,
            "PrivateIpAddress": i.private_ip,
            "SubnetId": i.subnet_id,
            "VpcId": i.vpc_id,
            "Architecture": i.architecture,
            "RootDeviceName": i.root_device_name,
            "RootDeviceType": "ebs",
            "VirtualizationType": "hvm",
            "EbsOptimized": bool(i.ebs_optimized),
            "Monitoring": {"State": i.monitoring_state},
            "SecurityGroups": groups,
            "BlockDeviceMappings": disks,
            "NetworkInterfaces": self._interfaces(m, groups),
            "Placement": {
                "AvailabilityZone": m.zone,
                "AvailabilityZoneId": self.zone_id(m),
                "Tenancy": m.tenancy,
                "GroupName": (m.placement_group or {}).get("GroupName", ""),
                "GroupId": (m.placement_group or {}).get("GroupId", ""),
            },
            "CpuOptions": self._cpu_options(m),
            "MetadataOptions": {
                "State": "applied",
                "HttpTokens": "optional",
                "HttpPutResponseHopLimit": 1,
                "HttpEndpoint": "enabled",
                "HttpProtocolIpv6": "disabled",
                "InstanceMetadataTags": "disabled",
                **m.metadata,
            },
        }
        if i.platform:
            out["Platform"] = i.platform
        if m.profile:
            out["IamInstanceProfile"] = self.profile(m)
        if m.lifecycle == "spot":
            out["InstanceLifecycle"] = "spot"
            out["SpotInstanceRequestId"] = m.spot_request
        elif m.lifecycle == "capacity-block":
            out["InstanceLifecycle"] = "capacity-block"
        if m.reservation_wish:
            out["CapacityReservationSpecification"] = m.reservation_wish
        if i.public_ip:
            out |= {"PublicIpAddress": i.public_ip, "PublicDnsName": i.public_dns_name}
        return out

    def _cpu_options(self, m):
        default = self.detail(m.moto.instance_type).get("VCpuInfo", {})
        asked = dict(m.cpu)
        out = {
            "CoreCount": int(asked.pop("CoreCount", default.get("DefaultCores", 1))),
            "ThreadsPerCore": int(
                asked.pop("ThreadsPerCore", default.get("DefaultThreadsPerCore", 1))
            ),
        }
        return out | asked

    def _interfaces(self, m, groups):
        i = m.moto
        wanted = m.interfaces or [{}]
        made = [i.nics[k] for k in sorted(i.nics)]
        out = []
        for index, spec in enumerate(wanted):
            first = made[0].id if made else "eni-0"
            more = {}
            if index == 0 and i.public_ip:
                more["Association"] = {
                    "PublicIp": i.public_ip,
                    "PublicDnsName": i.public_dns_name,
                    "IpOwnerId": "amazon",
                }
            tracking = spec.get("ConnectionTrackingSpecification")
            if tracking:
                more["ConnectionTrackingConfiguration"] = {k: int(v) for k, v in tracking.items()}
            out.append(
                {
                    **more,
                    "NetworkInterfaceId": first if index == 0 else f"{first[:-2]}{index:02x}",
                    "SubnetId": i.subnet_id,
                    "VpcId": i.vpc_id,
                    "Status": "in-use",
                    "Groups": groups,
                    "InterfaceType": spec.get("InterfaceType", "interface"),
                    "PrivateIpAddress": i.private_ip,
                    "Attachment": {
                        "DeviceIndex": int(spec.get("DeviceIndex", 0)),
                        "NetworkCardIndex": int(spec.get("NetworkCardIndex", 0)),
                        "Status": "attached",
                        "DeleteOnTermination": True,
                    },
                }
            )
        return out

    def terminate_call(self, region, request):
        return {"TerminatingInstances": self._change(region, request, self.terminate)}

    def stop_call(self, region, request):
        return {"StoppingInstances": self._change(region, request, self._stop, _may_stop)}

    def start_call(self, region, request):
        return {"StartingInstances": self._change(region, request, self._start, self._may_start)}

    def _change(self, region, request, change, check=lambda machine: None):
        machines = self.get_all(region, request.get("InstanceIds") or [])
        for m in machines:
            check(m)
        if request.get("DryRun"):
            raise dry_run()
        changes = []
        for m in machines:
            before = self.state(m)
            change(m)
            after = self.state(m)
            changes.append(
                {
                    "InstanceId": m.id,
                    "PreviousState": {"Code": STATES[before], "Name": before},
                    "CurrentState": {"Code": STATES[after], "Name": after},
                }
            )
        return changes

    def _stop(self, machine):
        if machine.ended is None and machine.halted is None:
            machine.halted = time.time()

    def _may_start(self, machine):
        if self.state(machine) not in ("stopped", "running", "pending"):
            raise AwsError(
                "IncorrectInstanceState",
                f"The instance '{machine.id}' is not in a state from which it can be started.",
            )

    def _start(self, machine):
        if machine.halted is not None:
            machine.halted, machine.started = None, time.time()

    def create_tags(self, region, request):
        backend = self.backend_of(region)
        ids = request.get("Resources") or []
        self.get_all(region, [i for i in ids if i.startswith("i-")])
        if request.get("DryRun"):
            raise dry_run()
        tags = tag_map(request.get("Tags"))
        if any(key.startswith("aws:") for key in tags):
            raise AwsError(
                "InvalidParameterValue",
                "Tag keys starting with 'aws:' are reserved for internal use",
            )
        backend.create_tags(ids, tags)

    def describe_status(self, region, request):
        if request.get("DryRun"):
            raise dry_run()
        ids = request.get("InstanceIds")
        machines = self.get_all(region, ids) if ids else list(self.by_id.values())
        everything = request.get("IncludeAllInstances")
        found = []
        for m in machines:
            state = self.state(m)
            if m.region != region or not (everything or state == "running"):
                continue
            health = self.health.get(m.id, {})
            if keep(request.get("Filters"), _status_fields(m, state, health), self.tags(m)):
                found.append(_status(m, state, health))
        chosen, token = page(found, request, 1000)
        return {"InstanceStatuses": chosen, "NextToken": token}


def _may_stop(machine):
    if machine.ended is not None:
        raise AwsError(
            "IncorrectInstanceState",
            f"This instance '{machine.id}' is not in a state from which it can be stopped.",
        )
    if machine.lifecycle == "spot":
        raise AwsError(
            "UnsupportedOperation",
            f"You can't stop the Spot Instance '{machine.id}' because it is associated with a "
            "one-time Spot Instance request. You can only stop Spot Instances associated with "
            "persistent Spot Instance requests.",
        )


PARTS = {"SystemStatus": "system", "InstanceStatus": "instance", "AttachedEbsStatus": "ebs"}


def _status_fields(m, state, health):
    values = {
        "availability-zone": [m.zone],
        "instance-state-name": [state],
        "event.code": [e["code"] for e in health.get("events", [])],
    }
    for prefix, key in zip(
        ("system-status", "instance-status", "attached-ebs-status"), PARTS.values(), strict=True
    ):
        value = health.get(key, "ok")
        values[f"{prefix}.status"] = [value]
        values[f"{prefix}.reachability"] = ["failed" if value == "impaired" else "passed"]
    return values.get


def _status(m, state, health):
    out = {
        "InstanceId": m.id,
        "AvailabilityZone": m.zone,
        "InstanceState": {"Code": STATES[state], "Name": state},
    }
    for part, key in PARTS.items():
        value = health.get(key, "ok")
        detail = {"Name": "reachability", "Status": "failed" if value == "impaired" else "passed"}
        if value == "impaired":
            detail["ImpairedSince"] = health.get("since", m.born)
        out[part] = {"Status": value, "Details": [detail]}
    out["Events"] = [
        {
            "InstanceEventId": f"instance-event-{m.id[2:]}{n}",
            "Code": e["code"],
            "Description": e.get("description", ""),
            **({"NotBefore": e["not-before"]} if "not-before" in e else {}),
        }
        for n, e in enumerate(health.get("events", []))
    ]
    return out
