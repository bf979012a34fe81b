"""Makes a Node older than it is. The API server lets nobody choose when an object was created, so the
stored object is changed in etcd itself; watches see it as any other change.
"""

import base64
import datetime
import json
import urllib.request

KEY = "/registry/minions/"
ATTEMPTS = 20


def varint(number):
    """A number as protobuf writes it."""
    text = bytearray()
    while number > 0x7F:
        text.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(text + bytes([number]))


def created(seconds):
    """`metadata.creationTimestamp` as it is stored: field 8, a message whose field 1 has the seconds."""
    inner = b"\x08" + varint(seconds) + b"\x10\x00"
    return b"\x42" + bytes([len(inner)]) + inner


class Etcd:
    """Calls of etcd's JSON gateway."""

    def __init__(self, url):
        self.url = url
        self.open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def call(self, path, body):
        request = urllib.request.Request(f"{self.url}/v3/kv/{path}", json.dumps(body).encode())
        with self.open(request, timeout=30) as answer:
            return json.load(answer)


def make_older(etcd_url, api, node, seconds):
    """Moves the creation of a Node so many seconds back."""
    etcd, path = Etcd(etcd_url), f"/api/v1/nodes/{node}"
    key = base64.b64encode(f"{KEY}{node}".encode()).decode()
    for _ in range(ATTEMPTS):
        stamp = api.call("GET", path)["metadata"]["creationTimestamp"]
        then = int(datetime.datetime.fromisoformat(stamp).timestamp())
        stored = etcd.call("range", {"key": key})["kvs"][0]
        value = base64.b64decode(stored["value"])
        if created(then) not in value:
            raise SystemExit(f"the stored Node {node} has no creation time of {stamp}")
        older = value.replace(created(then), created(then - seconds), 1)
        change = {
            "compare": [{"key": key, "target": "MOD", "modRevision": stored["mod_revision"]}],
            "success": [{"requestPut": {"key": key, "value": base64.b64encode(older).decode()}}],
        }
        if etcd.call("txn", change).get("succeeded"):
            return
    raise SystemExit(f"the Node {node} changed all the time")
