"""EC2's query protocol, both ways, driven by botocore's model of the service."""

import base64
import datetime
import functools
import re
import uuid
from xml.sax.saxutils import escape

import botocore.session

NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"


class AwsError(Exception):
    """An error that the caller is answered with."""

    def __init__(self, code, message, status=400):
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status = code, message, status


def dry_run():
    """What EC2 answers to a dry run that would have succeeded."""
    return AwsError("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)


@functools.cache
def model():
    return botocore.session.get_session().get_service_model("ec2")


@functools.cache
def operation(name):
    """The model of an operation, or None."""
    return model().operation_model(name) if name in model().operation_names else None


def timestamp(seconds=None):
    now = datetime.datetime.now(datetime.timezone.utc)
    if seconds is not None:
        now = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03d}Z"


def instant(value):
    """A time of a request, in the spelling of answers; a day is its beginning."""
    text = str(value)
    if "T" not in text:
        text += "T00:00:00Z"
    try:
        return timestamp(datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())
    except ValueError as error:
        raise AwsError("InvalidParameterValue", f"not a time: {value}") from error


# ---- requests


def nest(form):
    """`A.1.B=c` becomes {"A": {"1": {"B": "c"}}}."""
    root = {}
    for key, value in form.items():
        parts = key.split(".")
        node = root
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise AwsError("MalformedQueryString", f"Unexpected parameter {key}")
        node[parts[-1]] = value
    return root


@functools.cache
def _query_name(shape_key):
    shape = _SHAPES[shape_key]
    given = shape.serialization
    if "queryName" in given:
        return given["queryName"]
    return given["name"][:1].upper() + given["name"][1:] if "name" in given else None


_SHAPES = {}


def _name(member_name, shape):
    _SHAPES.setdefault(id(shape), shape)
    return _query_name(id(shape)) or member_name[:1].upper() + member_name[1:]


def decode(shape, node):
    """A nested request as the API's own structure, types included."""
    kind = shape.type_name
    if kind == "structure":
        out = {}
        for name, member in shape.members.items():
            wire = _name(name, member)
            if wire in node:
                out[name] = decode(member, node[wire])
        return out
    if kind == "list":
        if not isinstance(node, dict):
            return []
        return [decode(shape.member, node[key]) for key in sorted(node, key=int)]
    if kind == "boolean":
        return str(node).lower() == "true"
    if kind in ("integer", "long"):
        return int(node)
    if kind in ("float", "double"):
        return float(node)
    return node


def parse(action, form):
    shape = operation(action).input_shape
    try:
        return decode(shape, nest(form)) if shape else {}
    except (ValueError, TypeError, AttributeError) as error:
        raise AwsError("InvalidParameterValue", f"cannot read the request: {error}") from error


# ---- answers


class Raw(str):
    """XML that is ready to send."""


def encode(shape, value):
    """A value as the XML that stands inside its element."""
    kind = shape.type_name
    if isinstance(value, Raw):
        return value
    if kind == "structure":
        out = []
        for name, member in shape.members.items():
            if value.get(name) is not None:
                tag = member.serialization.get("name", name)
                out.append(f"<{tag}>{encode(member, value[name])}</{tag}>")
        return "".join(out)
    if kind == "list":
        tag = shape.member.serialization.get("name", "item")
        return "".join(f"<{tag}>{encode(shape.member, item)}</{tag}>" for item in value)
    if kind == "boolean":
        return "true" if value else "false"
    if kind == "timestamp":
        if isinstance(value, datetime.datetime):
            return timestamp(value.timestamp())
        return escape(timestamp(value) if isinstance(value, (int, float)) else value)
    if kind == "blob":
        return base64.b64encode(value if isinstance(value, bytes) else value.encode()).decode()
    return escape(str(value))


def answer(action, value):
    shape = operation(action).output_shape
    body = encode(shape, value or {}) if shape else "<return>true</return>"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{action}Response xmlns="{NAMESPACE}">'
        f"<requestId>{uuid.uuid4()}</requestId>{body}</{action}Response>"
    )


def error_status(code):
    if code in ("RequestLimitExceeded", "ServiceUnavailable", "Unavailable"):
        return 503
    if code in ("InternalError", "InternalFailure"):
        return 500
    if code in ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException"):
        return 403
    return 412 if code == "DryRunOperation" else 400


# ---- filters and pages


@functools.lru_cache(maxsize=4096)
def _pattern(text):
    # EC2 knows * and ? with \ as escape; brackets are plain.
    out = []
    it = iter(text)
    for c in it:
        if c == "\\":
            out.append(re.escape(next(it, "\\")))
        else:
            out.append({"*": ".*", "?": "."}.get(c) or re.escape(c))
    return re.compile("".join(out) + r"\Z", re.S)


def matches(patterns, values):
    """Whether any value equals any pattern."""
    return any(_pattern(p).match(str(v)) for v in values for p in patterns)


def keep(filters, fields, tags):
    """Whether a resource passes every filter; `fields(name)` gives a list of values or None."""
    for item in filters or []:
        name, wanted = item.get("Name", ""), item.get("Values", [])
        if name == "tag-key":
            found = tags.keys()
        elif name == "tag-value":
            found = tags.values()
        elif name.startswith("tag:"):
            found = [tags[name[4:]]] if name[4:] in tags else []
        else:
            found = fields(name)
            if found is None:
                raise AwsError("InvalidParameterValue", f"The filter '{name}' is invalid")
        if not matches(wanted, found):
            return False
    return True


def page(items, request, default, size=None):
    """The wanted page and the token of the next; EC2 sends an empty or no token at the end."""
    size = size or request.get("MaxResults") or default
    try:
        start = int(base64.b64decode(request["NextToken"])) if request.get("NextToken") else 0
    except ValueError as error:
        raise AwsError("InvalidNextToken", "The token is not valid.") from error
    token = None
    if start + size < len(items):
        token = base64.b64encode(str(start + size).encode()).decode()
    return items[start : start + size], token


def tag_list(tags):
    return [{"Key": k, "Value": v} for k, v in tags.items()]


def tag_map(tags):
    return {t["Key"]: t.get("Value", "") for t in tags or []}
