#!/usr/bin/env python3
"""Stands for the controller: logs its environment, and is ready."""

import http.server
import json
import os


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


print(json.dumps({**os.environ, "pid": os.getpid()}), flush=True)
port = int(os.environ["HEALTH_PROBE_PORT"])
http.server.HTTPServer(("127.0.0.1", port), Ready).serve_forever()
