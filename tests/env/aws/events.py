"""EventBridge's messages to the queue: those that tests send, and those of instances' states."""

import datetime
import json
import threading
import time
import traceback
import uuid

from . import ACCOUNT
from .wire import timestamp

# Seconds between two looks at the instances' states.
EVERY = 0.1


def message(kind, given, region):
    """The message of a kind, as EventBridge's rules would send it."""
    iid = given.get("instance")
    kinds = {
        "spot": (
            "aws.ec2",
            "EC2 Spot Instance Interruption Warning",
            {"instance-id": iid, "instance-action": given.get("action", "terminate")},
        ),
        "rebalance": (
            "aws.ec2",
            "EC2 Instance Rebalance Recommendation",
            {"instance-id": iid},
        ),
        "state": (
            "aws.ec2",
            "EC2 Instance State-change Notification",
            {"instance-id": iid, "state": given.get("state", "stopping")},
        ),
        "capacity-block": (
            "aws.ec2",
            "EC2 Capacity Block Reservation Expiration Warning",
            {"capacity-reservation-id": given.get("reservation")},
        ),
        "scheduled": (
            "aws.health",
            "AWS Health Event",
            {
                "service": given.get("service", "EC2"),
                "eventTypeCategory": given.get("category", "scheduledChange"),
                "eventTypeCode": given.get("code", "AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED"),
                "startTime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
                "affectedEntities": [{"entityValue": iid}],
            },
        ),
    }
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}")
    source, title, detail = kinds[kind]
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": title,
        "source": source,
        "account": ACCOUNT,
        "time": timestamp().split(".")[0] + "Z",
        "region": region,
        "resources": [f"arn:aws:ec2:{region}:{ACCOUNT}:instance/{iid}"] if iid else [],
        "detail": detail,
    }


def send(content, region, queue):
    from moto.sqs.models import sqs_backends

    sqs_backends[ACCOUNT][region].send_message(queue, json.dumps(content))


class StateChanges:
    """Sends a message for each change of an instance's state, once a test has asked for them."""

    def __init__(self, world):
        self.world = world
        # The states that are reported; nothing while this is empty.
        self.states = frozenset()
        self.seen = {}
        self.thread = None

    def set(self, states):
        known = {"pending", "running", "stopping", "stopped", "shutting-down", "terminated"}
        if set(states) - known:
            raise ValueError(f"a state is one of {', '.join(sorted(known))}")
        self.states = frozenset(states)
        # What is there already has not changed.
        self.seen = self._now()
        if self.states and self.thread is None:
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()

    def _now(self):
        machines = self.world.machines
        return {m.id: machines.state(m) for m in list(machines.by_id.values())}

    def _watch(self):
        while True:
            time.sleep(EVERY)
            try:
                with self.world.lock:
                    self._look()
            except Exception:  # noqa: BLE001 - the next look may go well
                traceback.print_exc()

    def _look(self):
        if not self.states:
            return
        now = self._now()
        for iid, state in now.items():
            if self.seen.get(iid) != state and state in self.states:
                region = self.world.machines.by_id[iid].region
                content = message("state", {"instance": iid, "state": state}, region)
                send(content, region, self.world.settings.cluster)
        self.seen = now
