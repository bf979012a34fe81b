"""Spot requests: one for each Spot instance, as its fleet makes it."""

import time

from .wire import AwsError, dry_run, keep, page, tag_list

# EC2's status codes of a request whose instance is gone, by who ended it.
USER, SERVICE = "instance-terminated-by-user", "instance-terminated-no-capacity"


class SpotRequests:
    """Answers DescribeSpotInstanceRequests from the instances."""

    def __init__(self, machines, catalog):
        self.machines, self.catalog = machines, catalog

    def describe(self, region, request):
        if request.get("DryRun"):
            raise dry_run()
        spot = [
            m
            for m in self.machines.by_id.values()
            if m.lifecycle == "spot" and m.region == region and not self.machines.forgotten(m)
        ]
        found = {m.spot_request: m for m in spot}
        ids = request.get("SpotInstanceRequestIds") or []
        for rid in ids:
            if rid not in found:
                raise AwsError(
                    "InvalidSpotInstanceRequestID.NotFound",
                    f"The spot instance request ID '{rid}' does not exist",
                )
        listed = [self._request(m) for rid, m in found.items() if not ids or rid in ids]
        kept = [
            r
            for r in listed
            if keep(request.get("Filters"), _fields(r), {t["Key"]: t["Value"] for t in r["Tags"]})
        ]
        chosen, token = page(kept, request, 1000)
        return {"SpotInstanceRequests": chosen, "NextToken": token}

    def _request(self, m):
        over = m.ended is not None
        by_user = m.reason.startswith(("User", "Client"))
        code = "fulfilled" if not over else USER if by_user else SERVICE
        when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(m.ended or m.born))
        return {
            "SpotInstanceRequestId": m.spot_request,
            "State": "closed" if over else "active",
            "Status": {"Code": code, "Message": m.reason or "fulfilled", "UpdateTime": when},
            "Type": "one-time",
            "InstanceId": m.id,
            "InstanceInterruptionBehavior": "terminate",
            "LaunchedAvailabilityZone": m.zone,
            "ProductDescription": "Windows" if m.moto.platform else "Linux/UNIX",
            "SpotPrice": f"{self.catalog.on_demand_price(m.moto.instance_type):.6f}",
            "CreateTime": m.born,
            "LaunchSpecification": {
                "ImageId": m.moto.image_id,
                "InstanceType": m.moto.instance_type,
                "SubnetId": m.moto.subnet_id,
            },
            "Tags": tag_list(m.spot_tags),
        }


def _fields(one):
    values = {
        "instance-id": [one["InstanceId"]],
        "spot-instance-request-id": [one["SpotInstanceRequestId"]],
        "state": [one["State"]],
        "status-code": [one["Status"]["Code"]],
        "launch.instance-type": [one["LaunchSpecification"]["InstanceType"]],
        "launched-availability-zone": [one["LaunchedAvailabilityZone"]],
    }
    return values.get
