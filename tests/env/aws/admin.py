"""The admin API under /_local/: what tests steer and look at."""

from . import events
from .wire import AwsError, timestamp


class Admin:
    """One method a path; the whole runs under the world's lock."""

    def __init__(self, world):
        self.world = world

    def answer(self, method, what, given, query):
        name = "do_" + what.replace("-", "_")
        if not hasattr(self, name):
            known = sorted(n[3:].replace("_", "-") for n in dir(self) if n.startswith("do_"))
            raise AwsError("NotFound", f"no such path; there are: {', '.join(known)}", 404)
        return getattr(self, name)(method, given, query)

    def do_health(self, _method, _given, _query):
        return {"ok": True, "time": timestamp()}

    def do_pools(self, method, given, _query):
        pools = self.world.fleets.pools
        if method == "DELETE":
            pools.clear()
        for key, left in (given or {}).items():
            if key.count("/") != 2:
                raise ValueError(f"{key}: a pool is TYPE/ZONE/CAPACITY-TYPE")
            for one in self._expand(key):
                if left is None:
                    pools.pop(one, None)
                else:
                    pools[one] = int(left)
        return pools

    def _expand(self, key):
        """A pool, or all pools that a * in one of its parts stands for."""
        if "*" not in key:
            return [key]
        kind, zone, capacity = key.split("/")
        region = self.world.settings.region
        return [
            f"{o['InstanceType']}/{o['Location']}/{c}"
            for o in self.world.catalog.offerings(region)
            for c in ("spot", "on-demand")
            if kind in ("*", o["InstanceType"])
            and zone in ("*", o["Location"])
            and capacity in ("*", c)
        ]

    def do_faults(self, method, given, _query):
        faults = self.world.faults
        if method == "DELETE":
            faults.clear()
        for rule in given if isinstance(given, list) else [given] if given else []:
            faults.add(rule)
        return faults.rules

    def do_policy(self, method, given, _query):
        policy = self.world.policy
        if method == "DELETE":
            policy.clear()
        elif given is not None:
            policy.set(given["document"], given.get("principal"))
        return {"principal": policy.principal, "document": policy.document}

    def do_calls(self, method, _given, query):
        found = self.world.calls.select(query)
        if method == "DELETE":
            self.world.calls.records.clear()
        return found

    def do_prices(self, method, given, _query):
        catalog = self.world.catalog
        if method == "DELETE":
            catalog.reset()
        for key, table, hidden in (
            ("on-demand", catalog.on_demand, catalog.on_demand_hidden),
            ("spot", catalog.spot, catalog.spot_hidden),
        ):
            for name, price in ((given or {}).get(key) or {}).items():
                if price is None:
                    hidden.add(name)
                else:
                    hidden.discard(name)
                    table[name] = float(price)
        return {"on-demand": catalog.on_demand, "spot": catalog.spot}

    def do_status(self, method, given, _query):
        health = self.world.machines.health
        if method == "DELETE":
            health.clear()
        health.update(given or {})
        return health

    def do_vanish(self, _method, given, _query):
        """Instances terminated by someone else."""
        reason = given.get("reason", "Server.SpotInstanceTermination")
        machines = self.world.machines
        for iid in given["instances"]:
            if iid not in machines.by_id:
                raise ValueError(f"no instance {iid}")
            machine = machines.by_id[iid]
            machines.terminate(machine, reason)
            if given.get("at-once", True):
                machine.ended -= self.world.settings.shutting
        return {"instances": given["instances"]}

    def do_capacity_reservations(self, _method, given, _query):
        reservations = self.world.reservations
        for one in given if isinstance(given, list) else [given] if given else []:
            reservations.add_capacity(one)
        return list(reservations.capacity.values())

    def do_placement_groups(self, _method, given, _query):
        if given:
            self.world.reservations.add_group(given)
        return list(self.world.reservations.groups.values())

    def do_zonal_shifts(self, method, given, _query):
        if method == "DELETE":
            self.world.zonal_shifts = []
        elif given is not None:
            self.world.zonal_shifts = given
        return self.world.zonal_shifts

    def do_images(self, _method, given, _query):
        """Adds an AMI: id, name, architecture, owner, created, deprecated, tags, platform."""
        from .seed import add_image

        for one in given if isinstance(given, list) else [given] if given else []:
            add_image(self.world, self.world.settings.region, **one)
        return sorted(self.world.backend(self.world.settings.region).amis)

    def do_parameters(self, _method, given, _query):
        """Sets SSM parameters, those under /aws included."""
        from .seed import set_parameter

        for name, value in (given or {}).items():
            set_parameter(self.world.settings.region, name, value)
        return given or {}

    def do_reset(self, _method, _given, _query):
        """Forgets what tests have set; what was launched stays."""
        world = self.world
        world.faults.clear()
        world.policy.clear()
        world.catalog.reset()
        world.fleets.pools.clear()
        world.machines.health.clear()
        world.reservations.reset()
        world.zonal_shifts = []
        world.state_changes.set([])
        world.calls.records.clear()
        return {}

    def do_instances(self, _method, _given, query):
        machines = self.world.machines
        found = [self._instance(m) for m in machines.by_id.values() if not machines.forgotten(m)]
        wanted = query.get("state")
        return [i for i in found if wanted in (None, i["state"])]

    def _instance(self, m):
        backend, i = self.world.backend(m.region), m.moto
        image = backend.amis.get(i.image_id)
        detail = self.world.catalog.types.get(i.instance_type, {})
        profile = self.world.machines.find_profile(m.profile) if m.profile else None
        role = profile.roles[0].name if profile and profile.roles else None
        volumes = [backend.volumes.get(d.volume_id) for d in i.block_device_mapping.values()]
        return {
            "id": m.id,
            "state": self.world.machines.state(m),
            "region": m.region,
            "zone": m.zone,
            "zone-id": self.world.machines.zone_id(m),
            "instance-type": i.instance_type,
            "capacity-type": "spot" if m.lifecycle == "spot" else "on-demand",
            "lifecycle": m.lifecycle,
            "image": i.image_id,
            "image-name": image.name if image else "",
            "architecture": i.architecture,
            "subnet": i.subnet_id,
            "private-ip": i.private_ip,
            "private-dns": m.dns,
            "security-groups": [g.id for g in i.security_groups],
            "profile": m.profile,
            "role": role,
            "launch-template": m.template,
            "user-data": m.user_data,
            "tags": self.world.machines.tags(m),
            "launched": m.born,
            "ended": m.ended,
            "metadata": m.metadata,
            "capacity-reservation": m.capacity_reservation,
            "interfaces": m.interfaces,
            "price": self._price(m),
            "volumes": [
                {"device": d, "gib": v.size, "type": v.volume_type, "encrypted": v.encrypted}
                for d, v in zip(i.block_device_mapping, volumes, strict=True)
                if v is not None
            ],
            "hardware": {
                "vcpus": detail.get("VCpuInfo", {}).get("DefaultVCpus", 1),
                "memory-mib": detail.get("MemoryInfo", {}).get("SizeInMiB", 1024),
                "enis": detail.get("NetworkInfo", {}).get("MaximumNetworkInterfaces", 2),
                "ips-per-eni": detail.get("NetworkInfo", {}).get("Ipv4AddressesPerInterface", 2),
                "gpus": detail.get("GpuInfo", {}).get("Gpus", []),
                "hypervisor": detail.get("Hypervisor", "nitro"),
                "neurons": detail.get("NeuronInfo", {}).get("NeuronDevices", []),
                "instance-store-gb": detail.get("InstanceStorageInfo", {}).get("TotalSizeInGB", 0),
            },
        }

    def _price(self, m):
        catalog, name = self.world.catalog, m.moto.instance_type
        if m.lifecycle == "spot":
            return catalog.spot_price(name, m.zone)
        return catalog.on_demand_price(name)

    def do_interrupt(self, _method, given, _query):
        """Puts an EventBridge message in the queue, as its rules would."""
        region = given.get("region", self.world.settings.region)
        message = events.message(given["kind"], given, region)
        events.send(message, region, given.get("queue", self.world.settings.cluster))
        return message

    def do_state_changes(self, method, given, _query):
        """Which changes of state EventBridge reports: a list of states, of all instances."""
        changes = self.world.state_changes
        if method == "DELETE":
            changes.set([])
        elif given is not None:
            changes.set(given)
        return sorted(changes.states)
