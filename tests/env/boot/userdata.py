"""Reads user data as the image of each family would; what it does not understand, it refuses."""

import base64
import email
import email.policy
import gzip
import re
import shlex
import tomllib
from dataclasses import dataclass, field

import yaml


class Refused(Exception):
    """The instance boots, but does not join."""


@dataclass
class Kubelet:
    """What the kubelet is started with."""

    cluster: str = ""
    endpoint: str = ""
    ca: str = ""
    labels: dict = field(default_factory=dict)
    taints: list = field(default_factory=list)
    max_pods: int | None = None
    pods_per_core: int | None = None
    kube_reserved: dict | None = None
    system_reserved: dict = field(default_factory=dict)
    eviction_hard: dict | None = None
    cluster_dns: list = field(default_factory=list)
    local_disks: bool = False
    # Pages that are set aside at boot, by size: 2Mi and 1Gi.
    hugepages: dict = field(default_factory=dict)


def family(image_name):
    """The family of an image, by the names that AWS gives them."""
    if "al2023" in image_name:
        return "al2023"
    if image_name.startswith("amazon-eks-"):
        return "al2"
    if image_name.startswith("bottlerocket"):
        return "bottlerocket"
    if image_name.startswith("Windows"):
        return "windows"
    return "custom"


def read(encoded, image_name):
    """The kubelet that this user data starts on this image."""
    if not encoded:
        raise Refused("there is no user data")
    try:
        raw = base64.b64decode(encoded, validate=True)
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        text = raw.decode()
    except (ValueError, OSError) as error:
        raise Refused(f"the user data cannot be decoded: {error}") from error
    readers = {
        "al2": _al2,
        "al2023": _al2023,
        "bottlerocket": _bottlerocket,
        "windows": _windows,
        "custom": _any,
    }
    kubelet = readers[family(image_name)](text)
    kubelet.hugepages = _hugepages(text)
    return kubelet


# Where a script, a sysctl file or Bottlerocket's settings name a number of huge pages.
HUGEPAGES = (
    ("2Mi", r"vm\.nr_hugepages['\"]?\s*=\s*['\"]?(\d+)"),
    ("2Mi", r"echo\s+(\d+)\s*(?:>|\|\s*(?:sudo\s+)?tee)\s*/proc/sys/vm/nr_hugepages"),
    ("2Mi", r"echo\s+(\d+)\s*(?:>|\|\s*(?:sudo\s+)?tee)\s*\S*/hugepages-2048kB/nr_hugepages"),
    ("1Gi", r"echo\s+(\d+)\s*(?:>|\|\s*(?:sudo\s+)?tee)\s*\S*/hugepages-1048576kB/nr_hugepages"),
)


def _hugepages(text):
    """The last number of pages that is named for each size."""
    found = {}
    for size, pattern in HUGEPAGES:
        for match in re.finditer(pattern, text):
            found[size] = int(match[1])
    return found


def _any(text):
    """A custom image: whichever way it is spoken to."""
    for reader in (_al2023, _al2, _bottlerocket, _windows):
        try:
            return reader(text)
        except Refused:
            continue
    raise Refused("no bootstrap of any known family in the user data")


# ---- cloud-init


def _parts(text):
    """(content type, body) of each part; text that is no archive is one part."""
    if not re.match(r"\s*(MIME-Version|Content-Type):", text, re.I):
        kind = "text/x-shellscript" if text.lstrip().startswith("#!") else "text/plain"
        return [(kind, text)]
    message = email.message_from_string(text.lstrip(), policy=email.policy.default)
    if not message.is_multipart():
        raise Refused("the user data's MIME archive has no parts")
    found = []
    for part in message.iter_parts():
        body = part.get_payload(decode=True) or b""
        found.append((part.get_content_type(), body.decode(errors="replace")))
    return found


def _al2(text):
    kubelet = None
    for kind, body in _parts(text):
        if kind == "text/x-shellscript" or body.lstrip().startswith("#!"):
            for words in _bootstrap_calls(body):
                kubelet = _bootstrap(words)
    if kubelet is None:
        raise Refused("the user data does not call /etc/eks/bootstrap.sh")
    return kubelet


def _bootstrap_calls(script):
    """The argument lists of every call of bootstrap.sh, simple variables filled in."""
    known = {}
    for line in script.replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        for name, value in known.items():
            stripped = re.sub(rf"\$(\{{{name}\}}|{name}\b)", lambda _, v=value: v, stripped)
        assigned = re.fullmatch(r"(?:export\s+)?(\w+)=(\S+|'[^']*'|\"[^\"]*\")", stripped)
        if assigned:
            known[assigned[1]] = assigned[2].strip("'\"")
        elif "/etc/eks/bootstrap.sh" in stripped:
            try:
                words = shlex.split(stripped, comments=True)
            except ValueError as error:
                raise Refused(f"the shell cannot read the script: {error}") from error
            yield words[words.index("/etc/eks/bootstrap.sh") + 1 :]


# Options of bootstrap.sh, all of which take a value.
BOOTSTRAP_OPTIONS = frozenset(
    """--use-max-pods --b64-cluster-ca --apiserver-endpoint --kubelet-extra-args
    --enable-docker-bridge --aws-api-retry-attempts --docker-config-json --dns-cluster-ip
    --pause-container-account --pause-container-version --container-runtime --ip-family
    --service-ipv6-cidr --enable-local-outpost --cluster-id --mount-bpf-fs --local-disks
    --containerd-config-file""".split()
)


def _bootstrap(words):
    options, plain = {}, []
    rest = iter(words)
    for word in rest:
        if word in BOOTSTRAP_OPTIONS:
            options[word] = next(rest, "")
        elif word.startswith("--"):
            raise Refused(f"bootstrap.sh does not know {word}")
        else:
            plain.append(word)
    if len(plain) != 1:
        raise Refused(f"bootstrap.sh wants one cluster name, not {plain}")
    kubelet = Kubelet(plain[0], options.get("--apiserver-endpoint", ""))
    kubelet.ca = options.get("--b64-cluster-ca", "")
    kubelet.local_disks = options.get("--local-disks") == "raid0"
    if "--dns-cluster-ip" in options:
        kubelet.cluster_dns = [options["--dns-cluster-ip"]]
    _flags(kubelet, options.get("--kubelet-extra-args", ""))
    return kubelet


# ---- kubelet flags


def _flags(kubelet, line):
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise Refused(f"the kubelet's arguments cannot be read: {error}") from error
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            raise Refused(f"the kubelet does not understand {word!r}")
        name, equals, value = word.partition("=")
        _flag(kubelet, name, value if equals else next(rest, ""))


def _flag(kubelet, name, value):
    if name == "--node-labels":
        kubelet.labels |= _pairs(value)
    elif name == "--register-with-taints":
        kubelet.taints = [_taint(t) for t in value.split(",") if t]
    elif name == "--max-pods":
        kubelet.max_pods = int(value)
    elif name == "--pods-per-core":
        kubelet.pods_per_core = int(value)
    elif name == "--kube-reserved":
        kubelet.kube_reserved = _pairs(value)
    elif name == "--system-reserved":
        kubelet.system_reserved = _pairs(value)
    elif name == "--eviction-hard":
        kubelet.eviction_hard = _pairs(value, "<")
    elif name == "--cluster-dns":
        kubelet.cluster_dns = value.split(",")


def _pairs(text, sign="="):
    found = {}
    for item in filter(None, text.split(",")):
        key, _, value = item.partition(sign)
        found[key.strip()] = value.strip()
    return found


def _taint(text):
    """`key=value:Effect`, or `key:Effect` where there is no value."""
    head, _, effect = text.rpartition(":")
    key, _, value = head.partition("=")
    return _checked_taint(key, value, effect)


def _checked_taint(key, value, effect):
    if not key or effect not in ("NoSchedule", "NoExecute", "PreferNoSchedule"):
        raise Refused(f"not a taint: key {key!r}, effect {effect!r}")
    taint = {"key": key, "effect": effect}
    return {**taint, "value": value} if value else taint


# ---- Amazon Linux 2023


def _al2023(text):
    merged, flags = {}, []
    for kind, body in _parts(text):
        if kind == "application/node.eks.aws" or "apiVersion: node.eks.aws/" in body:
            try:
                documents = list(yaml.safe_load_all(body))
            except yaml.YAMLError as error:
                raise Refused(f"a NodeConfig cannot be read: {error}") from error
            for document in filter(None, documents):
                if document.get("kind") != "NodeConfig":
                    raise Refused(f"nodeadm does not know the kind {document.get('kind')!r}")
                flags += _at(document, "spec", "kubelet", "flags") or []
                _merge(merged, document)
    if not merged:
        raise Refused("there is no NodeConfig in the user data")
    cluster = _at(merged, "spec", "cluster") or {}
    if not cluster.get("cidr"):
        raise Refused("nodeadm: CIDR is missing in cluster configuration")
    kubelet = Kubelet(
        cluster.get("name", ""),
        cluster.get("apiServerEndpoint", ""),
        cluster.get("certificateAuthority", ""),
    )
    kubelet.local_disks = _at(merged, "spec", "instance", "localStorage", "strategy") == "RAID0"
    _config(kubelet, _at(merged, "spec", "kubelet", "config") or {})
    for line in flags:
        _flags(kubelet, line)
    return kubelet


def _config(kubelet, config):
    """A KubeletConfiguration."""
    kubelet.max_pods = config.get("maxPods")
    kubelet.pods_per_core = config.get("podsPerCore")
    kubelet.kube_reserved = _strings(config.get("kubeReserved"))
    kubelet.system_reserved = _strings(config.get("systemReserved")) or {}
    kubelet.eviction_hard = _strings(config.get("evictionHard"))
    kubelet.cluster_dns = config.get("clusterDNS") or []
    kubelet.taints = [
        _checked_taint(t.get("key"), t.get("value", ""), t.get("effect"))
        for t in config.get("registerWithTaints") or []
    ]


def _strings(table):
    return None if table is None else {k: str(v) for k, v in table.items()}


def _at(node, *path):
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _merge(into, more):
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


# ---- Bottlerocket


def _bottlerocket(text):
    try:
        settings = tomllib.loads(text).get("settings", {}).get("kubernetes")
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"the settings cannot be read: {error}") from error
    if not settings:
        raise Refused("there is no settings.kubernetes in the user data")
    kubelet = Kubelet(
        settings.get("cluster-name", ""),
        settings.get("api-server", ""),
        settings.get("cluster-certificate", ""),
    )
    kubelet.labels = dict(settings.get("node-labels", {}))
    for key, values in settings.get("node-taints", {}).items():
        for value in [values] if isinstance(values, str) else values:
            head, _, effect = value.rpartition(":")
            kubelet.taints.append(_checked_taint(key, head, effect))
    kubelet.max_pods = settings.get("max-pods")
    kubelet.kube_reserved = _strings(settings.get("kube-reserved"))
    kubelet.system_reserved = _strings(settings.get("system-reserved")) or {}
    kubelet.eviction_hard = _strings(settings.get("eviction-hard"))
    dns = settings.get("cluster-dns-ip")
    kubelet.cluster_dns = dns if isinstance(dns, list) else [dns] if dns else []
    kubelet.local_disks = "bootstrap-commands" in tomllib.loads(text)["settings"]
    return kubelet


# ---- Windows


def _windows(text):
    if not re.search(r"<powershell>.*</powershell>", text, re.S | re.I):
        raise Refused("there is no <powershell> in the user data")
    calls = re.findall(r"^\s*&\s*\$EKSBootstrapScriptFile\s+(.*)$", text, re.M)
    if not calls:
        raise Refused("the user data does not call Start-EKSBootstrap.ps1")
    # In PowerShell '' within quotes is a quote.
    found = re.findall(r"-(\w+)\s+'((?:[^']|'')*)'", calls[-1])
    options = {name.lower(): value.replace("''", "'") for name, value in found}
    kubelet = Kubelet(
        options.get("eksclustername", ""),
        options.get("apiserverendpoint", ""),
        options.get("base64clusterca", ""),
    )
    if options.get("dnsclusterip"):
        kubelet.cluster_dns = [options["dnsclusterip"]]
    _flags(kubelet, options.get("kubeletextraargs", ""))
    return kubelet
