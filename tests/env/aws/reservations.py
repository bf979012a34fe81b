"""Capacity reservations and placement groups, made through EC2's own calls or the admin API."""

import datetime
import uuid

from . import ACCOUNT
from .wire import AwsError, dry_run, keep, page, tag_list, tag_map

FILTERS = {
    "state": "State",
    "owner-id": "OwnerId",
    "instance-type": "InstanceType",
    "availability-zone": "AvailabilityZone",
    "instance-match-criteria": "InstanceMatchCriteria",
    "tenancy": "Tenancy",
}
# What CreateCapacityReservation takes over from its request as it is.
ASKED = (
    "InstanceType",
    "InstancePlatform",
    "AvailabilityZone",
    "Tenancy",
    "EbsOptimized",
    "EphemeralStorage",
    "EndDate",
    "EndDateType",
    "InstanceMatchCriteria",
)


class Reservations:
    """Both kinds, by id and by name."""

    def __init__(self):
        # Called with the id and type of each reservation that is over.
        self.on_end = lambda rid, kind: None
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

    # ---- use

    def take(self, rid, instance_type, zone):
        """Uses one instance of a reservation; the code and message of an error where it cannot."""
        self.expire()
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

    def take_open(self, instance_type, zone):
        """The id of an open reservation that an instance without a target falls into, or None."""
        self.expire()
        for rid, one in self.capacity.items():
            if one["InstanceMatchCriteria"] == "open":
                if self.take(rid, instance_type, zone) is None:
                    return rid
        return None

    def give_back(self, rid):
        one = self.capacity.get(rid)
        if one and one["State"] == "active":
            one["AvailableInstanceCount"] += 1

    def expire(self):
        """Ends the reservations whose time is over."""
        now = datetime.datetime.now(datetime.timezone.utc)
        for one in list(self.capacity.values()):
            if one["State"] == "active" and one["EndDateType"] == "limited":
                if one.get("EndDate") and _time(one["EndDate"]) <= now:
                    self._end(one, "expired")

    def _end(self, one, state):
        one["State"] = state
        one["AvailableInstanceCount"] = 0
        self.on_end(one["CapacityReservationId"], one["ReservationType"])

    # ---- calls

    def create_capacity(self, region, request):
        if request.get("InstanceMatchCriteria", "open") not in ("open", "targeted"):
            raise AwsError("InvalidParameterValue", "InstanceMatchCriteria is open or targeted.")
        for name in ("InstanceType", "InstancePlatform", "InstanceCount"):
            if name not in request:
                raise AwsError(
                    "MissingParameter", f"The request must contain the parameter {name}"
                )
        if request.get("EndDateType") == "limited" and "EndDate" not in request:
            raise AwsError("InvalidParameterCombination", "A limited reservation has an EndDate.")
        if request.get("DryRun"):
            raise dry_run()
        tags = {}
        for specification in request.get("TagSpecifications") or []:
            tags |= tag_map(specification.get("Tags"))
        rid = f"cr-{uuid.uuid4().hex[:17]}"
        arn = f"arn:aws:ec2:{region}:{ACCOUNT}:capacity-reservation/{rid}"
        one = self.add_capacity(
            {
                "CapacityReservationId": rid,
                "CapacityReservationArn": arn,
                "InstanceMatchCriteria": "open",
                **{name: request[name] for name in ASKED if name in request},
                "TotalInstanceCount": request["InstanceCount"],
                "Tags": tags,
                "CreateDate": datetime.datetime.now(datetime.timezone.utc),
            }
        )
        return {"CapacityReservation": one}

    def modify_capacity(self, _region, request):
        """Changes the size or the end; instances that run in it stay."""
        one = self._active(request)
        used = one["TotalInstanceCount"] - one["AvailableInstanceCount"]
        count = request.get("InstanceCount", one["TotalInstanceCount"])
        if count < used:
            raise AwsError("InvalidInstanceCount", f"{used} instances use the reservation.")
        one |= {"TotalInstanceCount": count, "AvailableInstanceCount": count - used}
        one |= {k: request[k] for k in ("EndDate", "EndDateType") if k in request}
        self.expire()
        return {"Return": True}

    def cancel_capacity(self, _region, request):
        """Ends a reservation; its instances run on outside of it."""
        self._end(self._active(request), "cancelled")
        return {"Return": True}

    def _active(self, request):
        self.expire()
        rid = request.get("CapacityReservationId")
        one = self.capacity.get(rid)
        if one is None:
            raise _not_found(rid)
        if request.get("DryRun"):
            raise dry_run()
        if one["State"] != "active":
            raise AwsError(
                "InvalidCapacityReservationState",
                f"The capacity reservation '{rid}' is {one['State']}.",
            )
        return one

    def describe_capacity(self, _region, request):
        if request.get("DryRun"):
            raise dry_run()
        self.expire()
        ids = request.get("CapacityReservationIds") or []
        for rid in ids:
            if rid not in self.capacity:
                raise _not_found(rid)

        def fields(one):
            return lambda name: [one.get(FILTERS[name])] if name in FILTERS else None

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


def _not_found(rid):
    return AwsError(
        "InvalidCapacityReservationId.NotFound",
        f"The capacity reservation '{rid}' does not exist",
    )


def _time(value):
    if isinstance(value, datetime.datetime):
        return value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
    found = datetime.datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    return found if found.tzinfo else found.replace(tzinfo=datetime.timezone.utc)
