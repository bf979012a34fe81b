"""Capacity reservations and placement groups, made through the admin API."""

import uuid

from . import ACCOUNT
from .wire import AwsError, dry_run, keep, page, tag_list


class Reservations:
    """Both kinds, by id and by name."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.capacity, self.groups = {}, {}

    def add_capacity(self, given):
        """A reservation in the API's own words; what is left out takes EC2's defaults."""
        total = given.get("TotalInstanceCount", 1)
        one = {
            "OwnerId": ACCOUNT,
            "InstancePlatform": "Linux/UNIX",
            "Tenancy": "default",
            "TotalInstanceCount": total,
            "AvailableInstanceCount": total,
            "EbsOptimized": False,
            "EphemeralStorage": False,
            "State": "active",
            "EndDateType": "unlimited",
            "InstanceMatchCriteria": "targeted",
            "ReservationType": "default",
            **given,
        }
        if isinstance(one.get("Tags"), dict):
            one["Tags"] = tag_list(one["Tags"])
        self.capacity[one["CapacityReservationId"]] = one
        return one

    def take(self, rid, instance_type, zone):
        """Uses one instance of a reservation, or tells why not."""
        one = self.capacity.get(rid)
        if one is None or one["State"] != "active":
            code = "InvalidCapacityReservationId.NotFound"
            return code, f"The capacity reservation '{rid}' does not exist"
        fits = (one.get("InstanceType"), one.get("AvailabilityZone")) == (instance_type, zone)
        if not fits or one["AvailableInstanceCount"] <= 0:
            return (
                "ReservationCapacityExceeded",
                "The requested reservation does not have sufficient compatible and available "
                "capacity for this request.",
            )
        one["AvailableInstanceCount"] -= 1
        return None

    def give_back(self, rid):
        if rid in self.capacity:
            self.capacity[rid]["AvailableInstanceCount"] += 1

    def describe_capacity(self, _region, request):
        if request.get("DryRun"):
            raise dry_run()
        ids = request.get("CapacityReservationIds") or []
        for rid in ids:
            if rid not in self.capacity:
                raise AwsError(
                    "InvalidCapacityReservationId.NotFound",
                    f"The capacity reservation '{rid}' does not exist",
                )
        names = {
            "state": "State",
            "owner-id": "OwnerId",
            "instance-type": "InstanceType",
            "availability-zone": "AvailabilityZone",
            "instance-match-criteria": "InstanceMatchCriteria",
            "tenancy": "Tenancy",
        }

        def fields(one):
            return lambda name: [one.get(names[name])] if name in names else None

        found = [
            one
            for rid, one in self.capacity.items()
            if (not ids or rid in ids)
            and keep(
                request.get("Filters"),
                fields(one),
                {t["Key"]: t["Value"] for t in one.get("Tags", [])},
            )
        ]
        chosen, token = page(found, request, 1000)
        return {"CapacityReservations": chosen, "NextToken": token}

    def add_group(self, given):
        one = {"State": "available", "Strategy": "cluster", **given}
        made_up = uuid.uuid5(uuid.NAMESPACE_DNS, one["GroupName"]).hex[:16]
        one.setdefault("GroupId", f"pg-0{made_up}")
        self.groups[one["GroupName"]] = one
        return one

    def group(self, wanted):
        """The group of that name or id, if there is one."""
        found = [g for g in self.groups.values() if wanted in (g["GroupName"], g["GroupId"])]
        return found[0] if found else None

    def describe_groups(self, _region, request):
        if request.get("DryRun"):
            raise dry_run()
        names, ids = request.get("GroupNames") or [], request.get("GroupIds") or []
        known_ids = {g["GroupId"] for g in self.groups.values()}
        for name in names:
            if name not in self.groups:
                raise AwsError(
                    "InvalidPlacementGroup.Unknown", f"The Placement Group '{name}' is unknown."
                )
        for gid in ids:
            if gid not in known_ids:
                raise AwsError(
                    "InvalidPlacementGroupId.Unknown", f"The Placement Group '{gid}' is unknown."
                )
        fields = {"group-name": "GroupName", "state": "State", "strategy": "Strategy"}
        found = [
            g
            for g in self.groups.values()
            if (not names or g["GroupName"] in names)
            and (not ids or g["GroupId"] in ids)
            and keep(
                request.get("Filters"),
                lambda name, g=g: [g.get(fields[name])] if name in fields else None,
                {t["Key"]: t["Value"] for t in g.get("Tags", [])},
            )
        ]
        return {"PlacementGroups": found}
