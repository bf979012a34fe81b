#!/usr/bin/env python3
"""Builds the controller's image as an OCI layout, without a container daemon.

    image.py build --binary [ARCH=]FILE ... --output DIR   amd64 unless ARCH says arm64
    image.py check --layout DIR                            unpacks the image, and runs it as its user (as root, on Linux)

The base is three Debian packages: the loader, the C libraries that the binary needs, and the certificates. They are
downloaded with apt, which checks their signatures; --packages names a folder that has them already. Equal inputs give
equal digests: files are sorted, owned by root and dated by SOURCE_DATE_EPOCH (the last commit's date by default).
"""
import argparse
import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

import dependencies

ROOT = dependencies.ROOT
USER = 65532
TRIPLES = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
LOADERS = {"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}
EMULATORS = {"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static"}
TARGETS = dict(zip(("amd64", "arm64"), dependencies.TARGETS))
PACKAGES = ("ca-certificates", "libc6", "libgcc-s1")
PORTS = (8080, 8081, 8443)
INDEX, MANIFEST, CONFIG = (f"application/vnd.oci.image.{t}.v1+json" for t in ("index", "manifest", "config"))
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
ETC = {
    "etc/passwd": f"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/:/sbin/nologin\n",
    "etc/group": f"root:x:0:\nnonroot:x:{USER}:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


def output(*words, **options):
    return subprocess.run(words, check=True, capture_output=True, **options).stdout


def git(*words):
    return output("git", *words, cwd=ROOT, text=True).strip()


def epoch():
    return int(os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct"))


def version():
    return re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)


def debian(arch, folder):
    """The Debian packages of an architecture as files; apt brings what the folder lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    own = output("dpkg", "--print-architecture", text=True).strip()
    known = {own, *output("dpkg", "--print-foreign-architectures", text=True).split()}
    for name in PACKAGES:
        if not list(folder.glob(f"{name}_*_*.deb")) or not package(folder, name, arch):
            if arch not in known:
                sys.exit(f"apt does not know {arch} packages here: run dpkg --add-architecture {arch} && apt-get update, or put them into {folder}")
            wanted = name if name == "ca-certificates" or arch == own else f"{name}:{arch}"
            output("apt-get", "download", wanted, cwd=folder)
    return [package(folder, name, arch) for name in PACKAGES]


def package(folder, name, arch):
    found = [f for f in folder.glob(f"{name}_*.deb") if f.stem.rsplit("_", 1)[-1] in (arch, "all")]
    return max(found, default=None)


def contents(deb):
    """The files and links of a Debian package, by path."""
    with tarfile.open(fileobj=io.BytesIO(output("dpkg-deb", "--fsys-tarfile", str(deb)))) as archive:
        for member in archive:
            path = member.name.removeprefix("./")
            if member.isfile():
                yield path, archive.extractfile(member).read()
            elif member.issym():
                yield path, member.linkname


def needed(binary):
    """Names of the libraries that a program asks its loader for."""
    text = output("readelf", "--dynamic", str(binary), text=True)
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", text))


def base(arch, debs, binary):
    """Paths of the base layer and what is there: bytes, or the target of a link."""
    libraries = needed(binary)
    files, certificates = {path: text.encode() for path, text in ETC.items()}, []
    everything = {path.removeprefix("usr/") if path.startswith("usr/lib/") else path: data for deb in debs for path, data in contents(deb)}
    for path, data in everything.items():
        if path.startswith("usr/share/ca-certificates/mozilla/") and isinstance(data, bytes):
            certificates.append((path, data))
        elif path.startswith("usr/share/doc/") and path.endswith("/copyright") and isinstance(data, bytes):
            files[path] = data
    for name in sorted(libraries | {pathlib.Path(LOADERS[arch]).name}):
        path = f"lib/{TRIPLES[arch]}/{name}"
        if path not in everything:
            sys.exit(f"{binary} needs {name}, which none of {', '.join(PACKAGES)} has")
        while isinstance(everything[path], str):
            path = f"lib/{TRIPLES[arch]}/{everything[path].rsplit('/', 1)[-1]}"
        files[f"lib/{TRIPLES[arch]}/{name}"] = everything[path]
    # The program names its loader by this path.
    files[LOADERS[arch]] = files[f"lib/{TRIPLES[arch]}/{pathlib.Path(LOADERS[arch]).name}"]
    files["etc/ssl/certs/ca-certificates.crt"] = b"".join(data.rstrip() + b"\n" for _, data in sorted(certificates))
    return files


def layer(files, date, directories=()):
    """A layer: its compressed bytes and the digest of its plain ones."""
    plain = io.BytesIO()
    parents = {str(p) for path in files for p in pathlib.PurePosixPath(path).parents if str(p) != "."}
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(parents | set(files) | set(directories)):
            entry = tarfile.TarInfo(path)
            entry.mtime = date
            if path in files:
                entry.size, entry.mode = len(files[path]), 0o755 if is_program(files[path]) else 0o644
                archive.addfile(entry, io.BytesIO(files[path]))
            else:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if path in directories else 0o755
                archive.addfile(entry)
    return gzip.compress(plain.getvalue(), compresslevel=6, mtime=0), "sha256:" + hashlib.sha256(plain.getvalue()).hexdigest()


def is_program(data):
    return data.startswith(b"\x7fELF")


class Layout:
    """An OCI layout in a folder."""

    def __init__(self, folder):
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def add(self, data, kind, **more):
        """Writes a blob; returns its descriptor."""
        if not isinstance(data, bytes):
            data = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data), **more}

    def attach(self, subject, document, kind):
        """Attaches a document to a manifest, as registries list it under its referrers."""
        empty = self.add(b"{}", "application/vnd.oci.empty.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": empty,
                    "layers": [self.add(document, kind)], "subject": {k: subject[k] for k in ("mediaType", "digest", "size")}}
        return self.add(manifest, MANIFEST, artifactType=kind)


def image(layout, arch, binary, debs, date):
    """Adds the image of an architecture with its bill of materials and provenance; returns their descriptors."""
    documents = {"usr/share/doc/karpenter/LICENSE": (ROOT / "LICENSE").read_bytes(),
                 "usr/share/doc/karpenter/NOTICE": dependencies.notice().encode(),
                 "usr/share/doc/karpenter/LICENSES": dependencies.licenses().encode()}
    parts = [layer(base(arch, debs, binary), date, directories=("tmp",)),
             layer({**documents, "usr/local/bin/karpenter": binary.read_bytes()}, date)]
    revision = git("rev-parse", "HEAD")
    labels = {"org.opencontainers.image.title": "karpenter", "org.opencontainers.image.version": version(),
              "org.opencontainers.image.revision": revision, "org.opencontainers.image.licenses": "Apache-2.0"}
    created = subprocess.run(["date", "-u", "-d", f"@{date}", "+%Y-%m-%dT%H:%M:%SZ"], check=True, capture_output=True, text=True).stdout.strip()
    config = {"architecture": arch, "os": "linux", "created": created,
              "config": {"User": f"{USER}:{USER}", "Entrypoint": ["/usr/local/bin/karpenter"], "WorkingDir": "/", "Labels": labels,
                         "Env": ["PATH=/usr/local/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
                         "ExposedPorts": {f"{p}/tcp": {} for p in PORTS}},
              "rootfs": {"type": "layers", "diff_ids": [diff for _, diff in parts]},
              "history": [{"created": created, "created_by": "deploy/image/image.py", "comment": text}
                          for text in ("loader, C libraries and certificates of Debian", "karpenter")]}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": layout.add(config, CONFIG),
                "layers": [layout.add(data, LAYER) for data, _ in parts], "annotations": labels}
    main = layout.add(manifest, MANIFEST, platform={"os": "linux", "architecture": arch})
    bases = [{"name": d.name, "digest": {"sha256": hashlib.sha256(d.read_bytes()).hexdigest()}} for d in debs]
    purl = lambda d: "pkg:deb/debian/{}@{}?arch={}".format(*d.stem.split("_"))
    more = [{"type": "library", "bom-ref": purl(d), "name": d.stem.split("_")[0], "version": d.stem.split("_")[1], "purl": purl(d)} for d in debs]
    provenance = {"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1",
                  "subject": [{"name": "karpenter", "digest": {"sha256": main["digest"].split(":")[1]}}],
                  "predicate": {"buildDefinition": {"buildType": "https://github.com/karpenter-rs/karpenter/blob/main/deploy/image/image.py",
                                                    "externalParameters": {"platform": f"linux/{arch}", "target": TARGETS[arch], "sourceDateEpoch": date},
                                                    "resolvedDependencies": [{"uri": "git+https://github.com/karpenter-rs/karpenter", "digest": {"gitCommit": revision}}, *bases]},
                                "runDetails": {"builder": {"id": "make images"}}}}
    bill = dependencies.sbom(TARGETS[arch], more)
    return [main, layout.attach(main, bill, "application/vnd.cyclonedx+json"), layout.attach(main, provenance, "application/vnd.in-toto+json")]


def build(arguments):
    layout, date = Layout(arguments.output), epoch()
    images, attached = [], []
    for word in arguments.binary:
        arch, separator, file = word.partition("=")
        arch, file = (arch, file) if separator else ("amd64", word)
        if arch not in TRIPLES:
            sys.exit(f"--binary {word}: expected amd64=FILE or arm64=FILE")
        debs = debian(arch, arguments.packages / arch)
        main, *more = image(layout, arch, pathlib.Path(file), debs, date)
        images.append(main)
        attached += more
    index = layout.add({"schemaVersion": 2, "mediaType": INDEX, "manifests": images}, INDEX,
                       annotations={"org.opencontainers.image.ref.name": version()})
    (layout.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [index, *attached]}, sort_keys=True))
    print(f"{index['digest']} {layout.folder}")


def check(arguments):
    """Unpacks each image, and runs it as its user without anything else; one of another architecture in Debian's emulator."""
    blob = lambda descriptor: (arguments.layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
    read = lambda descriptor: json.loads(blob(descriptor))
    for file in (arguments.layout / "blobs/sha256").iterdir():
        if hashlib.sha256(file.read_bytes()).hexdigest() != file.name:
            sys.exit(f"{file.name} has other content than its name says")
    own = output("dpkg", "--print-architecture", text=True).strip()
    listed = json.loads((arguments.layout / "index.json").read_text())["manifests"]
    for descriptor in read(listed[0])["manifests"]:
        arch, manifest = descriptor["platform"]["architecture"], read(descriptor)
        attached = sorted(d["artifactType"] for d in listed[1:] if read(d)["subject"]["digest"] == descriptor["digest"])
        config = read(manifest["config"])["config"]
        size = sum(d["size"] for d in manifest["layers"])
        print(f"{arch}: {descriptor['digest']}, {size / 1e6:.1f} MB compressed, user {config['User']}, attached {', '.join(attached)}")
        emulator = None if arch == own else shutil.which(EMULATORS[arch])
        if os.geteuid() != 0 or (arch != own and not emulator):
            print(f"{arch}: not run: only as root, and on a machine of that architecture or with {EMULATORS[arch]} (Debian's qemu-user-static)")
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            for part in manifest["layers"]:
                with tarfile.open(fileobj=io.BytesIO(blob(part)), mode="r:gz") as archive:
                    archive.extractall(folder, filter="fully_trusted")
            program = config["Entrypoint"][0]
            inside = ["chroot", f"--userspec={config['User']}", folder]
            if emulator:
                shutil.copy(emulator, folder)
                inside.append("/" + EMULATORS[arch])
            run = lambda *words: output(*inside, *words, text=True).strip()
            libraries = run(f"/{LOADERS[arch]}", "--list", program)
            if "not found" in libraries:
                sys.exit(f"{arch}: {libraries}")
            print(f"{arch}: {run(program, '--version')}{' in ' + EMULATORS[arch] if emulator else ''}")
            run(program, "--help")
            scenario = (ROOT / "examples/scenarios/shop.yaml").read_text()
            print(f"{arch}: " + output(*inside, program, "simulate", "--scenario", "-", input=scenario, text=True).strip().splitlines()[-1])
            pools = (ROOT / "examples/weasel-eks/manifests.yaml").read_text()
            output(*inside, program, "validate", "-f", "-", input=pools, text=True)
            writable = [f for f in pathlib.Path(folder).rglob("*") if f.stat(follow_symlinks=False).st_mode & 0o022 and f.name != "tmp"]
            if writable:
                sys.exit(f"{arch}: {writable[0]} is writable for others")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build")
    command.add_argument("--binary", action="append", required=True, metavar="[ARCH=]FILE")
    command.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR")
    command.add_argument("--packages", type=pathlib.Path, required=True, metavar="DIR", help="where Debian's packages are kept")
    command.set_defaults(run=build)
    command = commands.add_parser("check")
    command.add_argument("--layout", type=pathlib.Path, required=True, metavar="DIR")
    command.set_defaults(run=check)
    arguments = parser.parse_args()
    arguments.run(arguments)


main()
