"""Just enough of a Kubernetes client for the world's own processes."""

import base64
import json
import pathlib
import ssl
import urllib.error
import urllib.request

import yaml

MERGE = "application/merge-patch+json"


class Api:
    """Calls of the API server that a kubeconfig names."""

    def __init__(self, kubeconfig):
        config = yaml.safe_load(pathlib.Path(kubeconfig).read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server, self.token = cluster["server"], user["token"]
        self.ca = cluster["certificate-authority-data"]
        self.trust = ssl.create_default_context(cadata=base64.b64decode(self.ca).decode())
        self.open = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.trust)
        ).open

    def call(self, method, path, body=None, kind="application/json"):
        """The answer, decoded; raises urllib.error.HTTPError for a refusal."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        request = urllib.request.Request(self.server + path, data, headers, method=method)
        with self.open(request, timeout=30) as answer:
            return json.load(answer)

    def find(self, path):
        """An object, or None where there is none."""
        try:
            return self.call("GET", path)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def items(self, path):
        return self.call("GET", path)["items"]

    def patch(self, path, body):
        """A merge patch; None where the object is gone."""
        try:
            return self.call("PATCH", path, body, MERGE)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
