"""The WSGI application: faults and the call log first, then our answers, then moto's."""

import io
import json
import re
import sys
import threading
import time
import traceback
import urllib.parse
import uuid
from xml.sax.saxutils import escape

from . import ACCOUNT, wire
from .admin import Admin
from .catalog import Catalog
from .events import StateChanges
from .faults import CallLog, Faults
from .fleet import Fleets
from .machines import Machines
from .policy import Policy
from .reservations import Reservations
from .spot import SpotRequests
from .wire import AwsError

JSON_SERVICES = ("pricing", "ssm", "sqs", "eks", "arc-zonal-shift")


class World:
    """All state besides moto's own."""

    def __init__(self, settings):
        self.settings = settings
        self.lock = threading.RLock()
        self.faults, self.calls, self.policy = Faults(), CallLog(), Policy()
        self.catalog = Catalog(self.backend)
        self.machines = Machines(self.backend, settings)
        self.reservations = Reservations()
        self.fleets = Fleets(self.catalog, self.machines, self.reservations)
        self.spot = SpotRequests(self.machines, self.catalog)
        self.machines.detail = lambda name: self.catalog.types.get(name, {})
        self.reservations.on_end = self.machines.leave_reservation
        self.state_changes = StateChanges(self)
        self.zonal_shifts = []
        self.ec2 = {
            "CancelCapacityReservation": self.reservations.cancel_capacity,
            "CreateCapacityReservation": self.reservations.create_capacity,
            "CreateFleet": self.fleets.create,
            "CreateTags": self.machines.create_tags,
            "DisableImageDeprecation": self._enable_image,
            "EnableImageDeprecation": self._deprecate_image,
            "DescribeCapacityReservations": self.reservations.describe_capacity,
            "DescribeInstanceStatus": self.machines.describe_status,
            "DescribeInstanceTypeOfferings": self.catalog.describe_offerings,
            "DescribeInstanceTypes": self.catalog.describe_types,
            "DescribeInstances": self.machines.describe,
            "DescribeSpotInstanceRequests": self.spot.describe,
            "DescribePlacementGroups": self.reservations.describe_groups,
            "DescribeSpotPriceHistory": self.catalog.spot_history,
            "ModifyCapacityReservation": self.reservations.modify_capacity,
            "StartInstances": self.machines.start_call,
            "StopInstances": self.machines.stop_call,
            "TerminateInstances": self.machines.terminate_call,
        }

    def _deprecate_image(self, region, request):
        self._image(region, request).deprecation_time = wire.instant(request["DeprecateAt"])
        return {"Return": True}

    def _enable_image(self, region, request):
        self._image(region, request).deprecation_time = None
        return {"Return": True}

    def _image(self, region, request):
        wanted = request.get("ImageId")
        image = self.backend(region).amis.get(wanted)
        if image is None:
            raise AwsError("InvalidAMIID.NotFound", f"The image id '[{wanted}]' does not exist")
        if request.get("DryRun"):
            raise wire.dry_run()
        return image

    def resource_tags(self, request, parameters):
        """Tags of every resource that a call is about, as far as policies ask for them."""
        if request.service == "ec2":
            machines = [self.machines.by_id.get(i) for i in parameters.get("InstanceIds") or []]
            return [self.machines.tags(m) for m in machines if m]
        if request.service == "iam" and "InstanceProfileName" in parameters:
            from moto.iam.models import iam_backends

            profiles = iam_backends[ACCOUNT]["aws"].instance_profiles.values()
            wanted = parameters["InstanceProfileName"]
            return [dict(_pairs(p.tags)) for p in profiles if p.name == wanted]
        return []

    @staticmethod
    def backend(region):
        from moto.ec2.models import ec2_backends

        return ec2_backends[ACCOUNT][region]


def _pairs(tags):
    # moto keeps a profile's tags as a map of entries, or as a list of them.
    entries = tags.values() if isinstance(tags, dict) else tags or []
    for entry in entries:
        yield (entry["Key"], entry["Value"])


class Request:
    """What is being asked of which service."""

    def __init__(self, environ):
        length = int(environ.get("CONTENT_LENGTH") or 0)
        self.body = environ["wsgi.input"].read(length) if length else b""
        environ["wsgi.input"] = io.BytesIO(self.body)
        self.method, self.path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/")
        self.query = dict(urllib.parse.parse_qsl(environ.get("QUERY_STRING", "")))
        signed = re.search(
            r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/", environ.get("HTTP_AUTHORIZATION", "")
        )
        nobody = ("", "us-east-1", "sts")
        self.principal, self.region, self.service = signed.groups() if signed else nobody
        self.is_json = self.service in JSON_SERVICES
        target = environ.get("HTTP_X_AMZ_TARGET")
        self.form = self.unreadable = None
        if target:
            self.is_json, self.action = True, target.rsplit(".", 1)[-1]
        elif b"Action=" in self.body or "Action" in self.query:
            pairs = urllib.parse.parse_qsl(self.body.decode(), keep_blank_values=True)
            self.form = {**self.query, **dict(pairs)}
            self.action = self.form.get("Action", "")
        else:
            self.action = _rest_action(self.service, self.method, self.path)

    def parameters(self):
        """The request in the API's words, as far as it can be read."""
        try:
            if self.service == "ec2" and wire.operation(self.action):
                return wire.parse(self.action, self.form)
            if self.form is not None:
                return {k: v for k, v in self.form.items() if k not in ("Action", "Version")}
            return json.loads(self.body) if self.body else {"path": self.path, **self.query}
        except AwsError as error:
            self.unreadable = error
        except ValueError:
            pass
        return {}


def _rest_action(service, method, path):
    if service == "eks" and method == "GET" and re.fullmatch(r"/clusters/[^/]+", path):
        return "DescribeCluster"
    if service == "arc-zonal-shift" and path.startswith("/managedresources/"):
        return "GetManagedResource"
    return f"{method} {path}"


class Application:
    """The entry point of every request."""

    def __init__(self, inner, settings):
        self.inner = inner
        self.world = World(settings)
        self.admin = Admin(self.world)

    def __call__(self, environ, start):
        if environ.get("PATH_INFO", "").startswith("/_local/"):
            return self._admin(environ, start)
        request = Request(environ)
        began = time.time()
        parameters = request.parameters()
        record = self.world.calls.add(request, parameters)
        fault = self.world.faults.find(request)
        if fault and not fault.get("lose"):
            time.sleep(fault.get("delay", 0))
            if fault.get("code"):
                return self._fail(start, request, record, _injected(fault))
        try:
            self.world.policy.check(
                request, parameters, lambda: self.world.resource_tags(request, parameters)
            )
            answer = self._answer(request, parameters, environ, start, fault, record)
        except AwsError as error:
            answer = self._fail(start, request, record, error)
        except Exception as error:  # noqa: BLE001 - the caller must see that we are broken
            traceback.print_exc(file=sys.stderr)
            answer = self._fail(
                start, request, record, AwsError("InternalError", f"local world: {error!r}", 500)
            )
        record["seconds"] = round(time.time() - began, 4)
        return answer

    def _answer(self, request, parameters, environ, start, fault, record):
        lost = fault and fault.get("lose")

        def begin(status, headers, exc_info=None):
            record["status"] = int(status.split()[0])
            if not lost:
                return start(status, headers, exc_info) if exc_info else start(status, headers)
            return None

        answer = self._perform(request, parameters, environ, begin)
        if lost:
            # The call is done, but its caller does not hear so.
            time.sleep(fault.get("delay", 0))
            return self._fail(start, request, record, _injected(fault))
        return answer

    def _perform(self, request, parameters, environ, start):
        world = self.world
        if request.service == "ec2" and request.action in world.ec2:
            if request.unreadable:
                raise request.unreadable
            with world.lock:
                value = world.ec2[request.action](request.region, parameters)
                text = wire.answer(request.action, value)
            return _reply(start, 200, text, "text/xml;charset=UTF-8")
        if request.service == "pricing":
            return _reply_json(start, self.world.catalog.products(parameters))
        if request.service == "arc-zonal-shift":
            return _reply_json(start, self._managed_resource(request.path))
        if request.service == "sqs":
            # A long poll must not hold the others up.
            return self.inner(environ, start)
        with world.lock:
            return list(self.inner(environ, start))

    def _managed_resource(self, path):
        return {
            "arn": urllib.parse.unquote(path.removeprefix("/managedresources/")),
            "name": "cluster",
            "appliedWeights": {},
            "zonalShifts": self.world.zonal_shifts,
            "autoshifts": [],
            "zonalAutoshiftStatus": "DISABLED",
        }

    def _admin(self, environ, start):
        try:
            request = Request(environ)
            given = json.loads(request.body) if request.body else None
            what = request.path.removeprefix("/_local/").strip("/")
            with self.world.lock:
                answer = self.admin.answer(request.method, what, given, request.query)
            return _reply_json(start, answer)
        except (AwsError, KeyError, ValueError, TypeError) as error:
            return _reply_json(start, {"error": f"{type(error).__name__}: {error}"}, 400)

    def _fail(self, start, request, record, error):
        record["error"], record["status"] = error.code, error.status
        return _reply_error(start, request, error)


def _injected(fault):
    code = fault.get("code", "InternalError")
    status = fault.get("status") or wire.error_status(code)
    return AwsError(code, fault.get("message", "injected by a test"), status)


def _reply(start, status, text, kind, headers=()):
    body = text.encode()
    all_headers = [
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("x-amzn-RequestId", str(uuid.uuid4())),
        *headers,
    ]
    start(f"{status} {'OK' if status < 300 else 'Error'}", all_headers)
    return [body]


def _reply_json(start, value, status=200):
    return _reply(start, status, json.dumps(value, default=str), "application/x-amz-json-1.1")


def _reply_error(start, request, error):
    code, message = escape(error.code), escape(error.message)
    if request.is_json:
        body = json.dumps({"__type": error.code, "message": error.message})
        kind = "application/x-amz-json-1.1"
        return _reply(start, error.status, body, kind, [("x-amzn-errortype", error.code)])
    inner = f"<Code>{code}</Code><Message>{message}</Message>"
    if request.service == "ec2":
        body = f"<Errors><Error>{inner}</Error></Errors><RequestID>{uuid.uuid4()}</RequestID>"
        body = f"<Response>{body}</Response>"
    else:
        kind = "Sender" if error.status < 500 else "Receiver"
        body = f"<Error><Type>{kind}</Type>{inner}</Error><RequestId>{uuid.uuid4()}</RequestId>"
        body = f"<ErrorResponse>{body}</ErrorResponse>"
    return _reply(start, error.status, body, "text/xml;charset=UTF-8")
