"""Instance types, where they are offered, and what they cost."""

import functools
import hashlib
import json
import time

from .wire import AwsError, Raw, dry_run, encode, keep, operation, page

# On-demand prices of us-east-1 that are worth having to the letter; a formula gives the others.
KNOWN_PRICES = {
    "t3.nano": 0.0052,
    "t3.micro": 0.0104,
    "t3.small": 0.0208,
    "t3.medium": 0.0416,
    "t3.large": 0.0832,
    "t3.xlarge": 0.1664,
    "t3.2xlarge": 0.3328,
    "t4g.medium": 0.0336,
    "m5.large": 0.096,
    "m5.xlarge": 0.192,
    "m6g.large": 0.077,
    "c5.large": 0.085,
    "c5.xlarge": 0.17,
    "r5.large": 0.126,
}
BURSTABLE_PER_GIB = {"t2": 0.0116, "t3": 0.0104, "t3a": 0.0094, "t4g": 0.0084}
GPU_HOURLY = {"T4": 0.35, "A10G": 0.75, "L4": 0.55, "V100": 2.6, "A100": 3.4, "H100": 9.5}
LINUX = ("Linux/UNIX", "Linux/UNIX (Amazon VPC)")


class Catalog:
    """Answers about instance types, and the prices that tests may set."""

    def __init__(self, backend_of):
        self.backend_of = backend_of
        self._lists, self._fragments = {}, {}
        self.reset()

    def reset(self):
        """Back to the list's own prices, which are those of every region alike."""
        self.on_demand, self.spot = {}, {}
        self.on_demand_hidden, self.spot_hidden = set(), set()

    # ---- types and offerings

    @functools.cached_property
    def types(self):
        from moto.ec2.models.instance_types import INSTANCE_TYPES

        return INSTANCE_TYPES

    def offerings(self, region, location_type="availability-zone"):
        from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS

        return INSTANCE_TYPE_OFFERINGS.get(location_type, {}).get(region, [])

    def offered(self, region):
        return {o["InstanceType"] for o in self.offerings(region)}

    def zones(self, region, instance_type):
        key = ("zones", region)
        if key not in self._lists:
            table = {}
            for o in self.offerings(region):
                table.setdefault(o["InstanceType"], set()).add(o["Location"])
            self._lists[key] = table
        return self._lists[key].get(instance_type, set())

    def describe_types(self, region, request):
        if request.get("DryRun"):
            raise dry_run()
        names = request.get("InstanceTypes") or []
        filters = request.get("Filters") or []
        key = (region, json.dumps([names, filters], sort_keys=True))
        if key not in self._lists:
            # One filter at a time, since moto keeps only the last of those of one name.
            from .patches import moto_errors

            backend = self.backend_of(region)
            with moto_errors():
                found = backend.describe_instance_types(names or None, {})
                for item in filters:
                    one = {item["Name"]: item.get("Values", [])}
                    kept = backend.describe_instance_types(names or None, one)
                    kept = {t["InstanceType"] for t in kept}
                    found = [t for t in found if t["InstanceType"] in kept]
            offered = self.offered(region)
            self._lists[key] = [t["InstanceType"] for t in found if t["InstanceType"] in offered]
        if names and request.get("MaxResults"):
            raise AwsError(
                "InvalidParameterCombination",
                "The parameter instanceTypes cannot be used with the parameter maxResults",
            )
        chosen, token = page(self._lists[key], request, 10_000)
        return {"InstanceTypes": [self._fragment(name) for name in chosen], "NextToken": token}

    def _fragment(self, name):
        if name not in self._fragments:
            shape = operation("DescribeInstanceTypes").output_shape.members["InstanceTypes"].member
            self._fragments[name] = Raw(encode(shape, self.types[name]))
        return self._fragments[name]

    def describe_offerings(self, region, request):
        if request.get("DryRun"):
            raise dry_run()
        kind = request.get("LocationType", "region")
        fields = {"location": "Location", "instance-type": "InstanceType"}
        found = [
            o
            for o in self.offerings(region, kind)
            if keep(
                request.get("Filters"),
                lambda name, o=o: [o[fields[name]]] if name in fields else None,
                {},
            )
        ]
        chosen, token = page(found, request, 10_000)
        return {"InstanceTypeOfferings": chosen, "NextToken": token}

    # ---- prices

    def on_demand_price(self, name):
        if name in self.on_demand:
            return self.on_demand[name]
        return KNOWN_PRICES.get(name) or _formula(name, self.types.get(name))

    def spot_price(self, name, zone):
        if f"{name}/{zone}" in self.spot:
            return self.spot[f"{name}/{zone}"]
        if name in self.spot:
            return self.spot[name]
        # Between 28 and 48 per cent of on-demand, the same in every run.
        share = 28 + hashlib.sha256(f"{name}/{zone}".encode()).digest()[0] % 21
        return round(self.on_demand_price(name) * share / 100, 6)

    def spot_history(self, region, request):
        if request.get("DryRun"):
            raise dry_run()
        wanted = set(request.get("InstanceTypes") or [])
        products = [p for p in request.get("ProductDescriptions") or LINUX[:1] if p in LINUX]
        zone = request.get("AvailabilityZone")

        def fields(o):
            values = {
                "instance-type": [o["InstanceType"]],
                "availability-zone": [o["Location"]],
                "product-description": list(LINUX),
            }
            return values.get

        found = [
            (o["InstanceType"], o["Location"])
            for o in self.offerings(region)
            if (not wanted or o["InstanceType"] in wanted)
            and zone in (None, o["Location"])
            and f"{o['InstanceType']}/{o['Location']}" not in self.spot_hidden
            and "spot" in self.types.get(o["InstanceType"], {}).get("SupportedUsageClasses", [])
            and keep(request.get("Filters"), fields(o), {})
        ]
        chosen, token = page(found if products else [], request, 1000)
        now = time.time() - 60
        records = [
            {
                "InstanceType": name,
                "AvailabilityZone": where,
                "ProductDescription": products[0],
                "SpotPrice": f"{self.spot_price(name, where):.6f}",
                "Timestamp": now,
            }
            for name, where in chosen
        ]
        # EC2 ends this list with an empty token, not with none.
        return {"SpotPriceHistory": records, "NextToken": token or ""}

    def products(self, request):
        """Pricing's GetProducts, for on-demand Linux."""
        wanted = {f["Field"]: f["Value"] for f in request.get("Filters", [])}
        region = wanted.get("regionCode", "us-east-1")
        family, tenancy = wanted.get("productFamily"), wanted.get("tenancy")
        one = wanted.get("instanceType")
        chosen = []
        for name in sorted(self.offered(region) - self.on_demand_hidden):
            bare = bool(self.types.get(name, {}).get("BareMetal"))
            is_family = "Compute Instance (bare metal)" if bare else "Compute Instance"
            is_tenancy = "Dedicated" if bare else "Shared"
            if family not in (None, is_family) or tenancy not in (None, is_tenancy):
                continue
            if one in (None, name):
                chosen.append((name, is_family, is_tenancy))
        chosen, token = page(chosen, request, 100)
        listed = [json.dumps(self._product(region, *item)) for item in chosen]
        answer = {"FormatVersion": "aws_v1", "PriceList": listed}
        return {**answer, "NextToken": token} if token else answer

    def _product(self, region, name, family, tenancy):
        sku = hashlib.sha256(f"{region}/{name}".encode()).hexdigest()[:16].upper()
        term = f"{sku}.JRTCKXETXF"
        rate = f"{term}.6YS6EN2CT7"
        detail = self.types.get(name, {})
        currency = "CNY" if region.startswith("cn-") else "USD"
        price = {
            "unit": "Hrs",
            "rateCode": rate,
            "beginRange": "0",
            "endRange": "Inf",
            "description": f"{name} Linux on demand",
            "appliesTo": [],
            "pricePerUnit": {currency: f"{self.on_demand_price(name):.10f}"},
        }
        attributes = {
            "instanceType": name,
            "regionCode": region,
            "operatingSystem": "Linux",
            "preInstalledSw": "NA",
            "capacitystatus": "Used",
            "marketoption": "OnDemand",
            "tenancy": tenancy,
            "servicecode": "AmazonEC2",
            "vcpu": str(detail.get("VCpuInfo", {}).get("DefaultVCpus", "")),
            "memory": f"{detail.get('MemoryInfo', {}).get('SizeInMiB', 0) / 1024:g} GiB",
        }
        return {
            "product": {"productFamily": family, "attributes": attributes, "sku": sku},
            "serviceCode": "AmazonEC2",
            "terms": {
                "OnDemand": {
                    term: {
                        "priceDimensions": {rate: price},
                        "sku": sku,
                        "effectiveDate": "2026-01-01T00:00:00Z",
                        "offerTermCode": "JRTCKXETXF",
                        "termAttributes": {},
                    }
                }
            },
            "version": "20260101000000",
            "publicationDate": "2026-01-01T00:00:00Z",
        }


def _formula(name, detail):
    """Near the public list: so much a vCPU, a GiB and a GPU, less for Graviton and AMD."""
    if not detail:
        return 99.0
    family = name.split(".")[0]
    gib = detail["MemoryInfo"]["SizeInMiB"] / 1024
    if family in BURSTABLE_PER_GIB and gib <= 32:
        return round(BURSTABLE_PER_GIB[family] * gib, 6)
    price = 0.037 * detail["VCpuInfo"]["DefaultVCpus"] + 0.0028 * gib
    traits = family.lstrip("abcdefghijklmnopqrstuvwxyz").lstrip("0123456789")
    if "g" in traits:
        price *= 0.8
    if "a" in traits:
        price *= 0.9
    if "d" in traits:
        price *= 1.18
    if "n" in traits:
        price *= 1.25
    for gpu in detail.get("GpuInfo", {}).get("Gpus", []):
        price += gpu.get("Count", 1) * GPU_HOURLY.get(gpu.get("Name"), 1.1)
    if detail.get("NeuronInfo") or detail.get("InferenceAcceleratorInfo"):
        price *= 1.5
    return round(price, 6)
