"""The command line of every part, and the files that they read."""

import base64
import pathlib
import secrets
import socket
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent.parent
CLUSTER = "weasel-eks"
REGION = "us-east-1"
SERVICE_CIDR = "10.100.0.0/16"
USERS = {
    "admin": ("admin", "system:masters"),
    "joiner": ("local-world-joiner", "system:masters"),
    "kwok": ("local-world-kwok", "system:masters"),
    "runner": ("local-world-runner", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}


def free_ports(count):
    """Ports that nobody listens on just now."""
    held = []
    for _ in range(count):
        one = socket.socket()
        one.bind(("127.0.0.1", 0))
        held.append(one)
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class World:
    """Where everything of one world is."""

    def __init__(self, folder, binaries, settings):
        self.folder, self.bin, self.settings = folder, binaries, settings
        self.logs, self.pki = folder / "logs", folder / "pki"
        for path in (self.logs, self.pki, folder / "kubeconfigs"):
            path.mkdir(parents=True, exist_ok=True)
        self.etcd_port, self.peer_port, self.api_port = free_ports(3)
        self.api = f"https://127.0.0.1:{self.api_port}"
        self.etcd_url = f"http://127.0.0.1:{self.etcd_port}"
        self.aws_state = folder / "aws.json"
        self.aws_state.unlink(missing_ok=True)

    def kubeconfig(self, user):
        if user == "admin":
            return self.folder / "kubeconfig"
        return self.folder / "kubeconfigs" / user

    def write_access(self):
        """The static token file and a kubeconfig for everyone."""
        lines = []
        ca = base64.b64encode((self.pki / "ca.crt").read_bytes()).decode()
        for key, (user, group) in USERS.items():
            token = secrets.token_hex(16)
            lines.append(f'{token},{user},{user},"{group}"' if group else f"{token},{user},{user}")
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {
                        "name": CLUSTER,
                        "cluster": {"server": self.api, "certificate-authority-data": ca},
                    }
                ],
                "users": [{"name": key, "user": {"token": token}}],
                "contexts": [
                    {"name": CLUSTER, "context": {"cluster": CLUSTER, "user": key}},
                ],
                "current-context": CLUSTER,
            }
            path = self.kubeconfig(key)
            path.write_text(yaml.safe_dump(config))
            path.chmod(0o600)
            if key == "admin":
                self.admin_token = token
        tokens = self.pki / "tokens.csv"
        tokens.write_text("\n".join(lines) + "\n")
        tokens.chmod(0o600)
        return ca

    def etcd(self):
        client, peer = self.etcd_url, f"http://127.0.0.1:{self.peer_port}"
        return [
            str(self.bin / "etcd"),
            f"--data-dir={self.folder / 'etcd'}",
            "--name=local",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=local={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def apiserver(self):
        return [
            str(self.bin / "kube-apiserver"),
            f"--etcd-servers={self.etcd_url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={self.api_port}",
            f"--tls-cert-file={self.pki / 'apiserver.crt'}",
            f"--tls-private-key-file={self.pki / 'apiserver.key'}",
            f"--token-auth-file={self.pki / 'tokens.csv'}",
            f"--service-account-key-file={self.pki / 'service-accounts.key'}",
            f"--service-account-signing-key-file={self.pki / 'service-accounts.key'}",
            f"--service-account-issuer={self.api}",
            "--authorization-mode=RBAC",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--allow-privileged=true",
            "--max-requests-inflight=2000",
            "--max-mutating-requests-inflight=1000",
            "--v=1",
        ]

    def controller_manager(self):
        config = self.kubeconfig("controller-manager")
        return [
            str(self.bin / "kube-controller-manager"),
            f"--kubeconfig={config}",
            f"--root-ca-file={self.pki / 'ca.crt'}",
            f"--service-account-private-key-file={self.pki / 'service-accounts.key'}",
            f"--cluster-signing-cert-file={self.pki / 'ca.crt'}",
            f"--cluster-signing-key-file={self.pki / 'ca.key'}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=300",
            "--kube-api-burst=600",
            "--v=1",
        ]

    def scheduler(self):
        return [
            str(self.bin / "kube-scheduler"),
            f"--kubeconfig={self.kubeconfig('scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=300",
            "--kube-api-burst=600",
            "--v=1",
        ]

    def aws(self):
        return [
            sys.executable,
            "-m",
            "aws",
            f"--state-file={self.aws_state}",
            f"--region={REGION}",
            f"--cluster={CLUSTER}",
            f"--cluster-endpoint={self.api}",
            f"--cluster-ca-file={self.pki / 'ca.crt'}",
            f"--service-cidr={SERVICE_CIDR}",
            f"--pending={self.settings.pending}",
            f"--shutting={self.settings.shutting}",
        ]

    def joiner(self, aws_endpoint):
        return [
            sys.executable,
            str(HERE / "joiner.py"),
            f"--aws={aws_endpoint}",
            f"--kubeconfig={self.kubeconfig('joiner')}",
            f"--cluster={CLUSTER}",
            f"--boot={self.settings.boot}",
            *(["--pod-eni"] if self.settings.pod_eni else []),
            *(["--csi"] if self.settings.csi else []),
        ]

    @property
    def proxied(self):
        """The kubeconfig of the API server behind the proxy; there once the proxy serves."""
        return self.kubeconfig("proxied")

    def apiproxy(self):
        return [
            sys.executable,
            str(HERE / "apiproxy.py"),
            f"--kubeconfig={self.kubeconfig('admin')}",
            f"--certificate={self.pki / 'apiserver.crt'}",
            f"--key={self.pki / 'apiserver.key'}",
            f"--write={self.proxied}",
        ]

    def runner(self):
        return [
            sys.executable,
            str(HERE / "runner.py"),
            f"--kubeconfig={self.kubeconfig('runner')}",
            f"--env={self.folder / 'env'}",
            f"--logs={self.logs}",
            f"--binary={self.settings.controller.resolve()}",
        ]

    def kwok(self):
        return [
            str(self.bin / "kwok"),
            f"--kubeconfig={self.kubeconfig('kwok')}",
            f"--config={HERE / 'stages.yaml'}",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
            "--cidr=10.11.0.0/16",
            "--node-ip=127.0.0.1",
        ]
