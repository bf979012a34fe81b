#!/usr/bin/env python3
"""A proxy of the API server that loses or holds back the answers to chosen requests.

The API server has carried such a request out; its caller hears of it late, or finds the connection
closed. Rules are set under /_local/answers, as the README describes.
"""

import argparse
import base64
import http.client
import http.server
import json
import pathlib
import re
import ssl
import sys
import threading
import time
import traceback
import urllib.parse

import yaml

FIELDS = frozenset(
    "verb group resource subresource namespace name contains after times delay drop".split()
)
# Which path names what: of a resource's list, of one object, of a part of it.
PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/[^/]+(?:/namespaces/(?P<namespace>[^/]+)(?=/[^/]+))?"
    r"/(?P<resource>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<subresource>[^/]+))?)?"
)
HOP_BY_HOP = frozenset("connection keep-alive transfer-encoding te trailer upgrade".split())


class Lost(Exception):
    """The answer is not given."""


class Rules:
    """Tried in order; the first that fits a request is the one."""

    def __init__(self):
        self.lock, self.list = threading.Lock(), []

    def answer(self, method, given):
        with self.lock:
            if method == "DELETE":
                self.list.clear()
            for rule in given if isinstance(given, list) else [given] if given else []:
                unknown = set(rule) - FIELDS
                if unknown:
                    raise ValueError(f"unknown fields {sorted(unknown)}")
                self.list.append({**rule, "met": 0})
            return list(self.list)

    def find(self, request, body):
        with self.lock:
            for rule in self.list:
                keys = FIELDS - {"contains", "after", "times", "delay", "drop"}
                if any(k in rule and rule[k] != request.get(k) for k in keys):
                    continue
                if rule.get("contains", "").encode() not in body or rule.get("times", 1) <= 0:
                    continue
                if rule.get("after", 0) > 0:
                    rule["after"] -= 1
                    continue
                if "times" in rule:
                    rule["times"] -= 1
                rule["met"] += 1
                return dict(rule)
        return None


def described(method, path, query):
    """A request in the words that RBAC has for it."""
    found = PATH.fullmatch(path)
    request = {k: v or "" for k, v in found.groupdict().items()} if found else {}
    one = bool(request.get("name"))
    if method == "GET":
        watched = urllib.parse.parse_qs(query).get("watch") in (["true"], ["1"])
        verb = "get" if one else "watch" if watched else "list"
    elif method == "DELETE":
        verb = "delete" if one else "deletecollection"
    else:
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch"}.get(method, method.lower())
    return {**request, "verb": verb}


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection of a caller, with one of its own to the API server."""

    protocol_version = "HTTP/1.1"
    rules = upstream = trust = None

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.other = None

    def finish(self):
        if self.other:
            self.other.close()
        try:
            super().finish()
        except OSError:
            pass

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (Lost, OSError):
            self.close_connection = True

    def do_any(self):
        body = self._body()
        path, _, query = self.path.partition("?")
        if path == "/_local/answers":
            return self._admin(body)
        rule = self.rules.find(described(self.command, path, query), body)
        answer = self._ask(body)
        if rule:
            time.sleep(rule.get("delay", 0))
            if rule.get("drop"):
                answer.read()
                raise Lost
        return self._pass_on(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = do_any

    def _body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _ask(self, body):
        kept = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
        while True:
            fresh = self.other is None
            if fresh:
                self.other = http.client.HTTPSConnection(*self.upstream, context=self.trust)
            try:
                self.other.request(self.command, self.path, body or None, kept)
                return self.other.getresponse()
            except ConnectionError:
                # The API server closes idle connections; a request on a fresh one is not repeated.
                self.other.close()
                self.other = None
                if fresh:
                    raise

    def _pass_on(self, answer):
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        bare = self.command == "HEAD" or answer.status in (204, 304)
        whole = bare or answer.getheader("Content-Length") is not None
        if not whole:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not bare and (part := answer.read1(65536)):
            self.wfile.write(part if whole else b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()
        if not whole:
            self.wfile.write(b"0\r\n\r\n")
        answer.close()

    def _admin(self, body):
        try:
            status, value = 200, self.rules.answer(self.command, json.loads(body or b"null"))
        except (ValueError, TypeError, AttributeError) as error:
            status, value = 400, {"error": str(error)}
        text = json.dumps(value).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


class Server(http.server.ThreadingHTTPServer):
    """Shakes hands in the connection's own thread, so that a slow caller holds nobody up."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, certificate, key):
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate, key)
        super().__init__(("127.0.0.1", 0), Handler)

    def process_request_thread(self, request, client_address):
        try:
            request.settimeout(None)
            request = self.tls.wrap_socket(request, server_side=True)
        except OSError:
            request.close()
            return
        super().process_request_thread(request, client_address)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", type=pathlib.Path, required=True, help="of the API server")
    parser.add_argument("--certificate", required=True, help="PEM, as the API server's own")
    parser.add_argument("--key", required=True)
    parser.add_argument("--write", type=pathlib.Path, required=True, help="kubeconfig to write")
    settings = parser.parse_args()
    config = yaml.safe_load(settings.kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    where = urllib.parse.urlsplit(cluster["server"])
    ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
    Handler.rules = Rules()
    Handler.upstream = (where.hostname, where.port)
    Handler.trust = ssl.create_default_context(cadata=ca)
    server = Server(settings.certificate, settings.key)
    cluster["server"] = f"https://127.0.0.1:{server.server_address[1]}"
    part = settings.write.with_suffix(".part")
    part.write_text(yaml.safe_dump(config))
    part.chmod(0o600)
    part.rename(settings.write)
    print(f"ready on {cluster['server']}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
