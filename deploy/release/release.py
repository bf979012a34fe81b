#!/usr/bin/env python3
"""What a release consists of besides the image and the charts. Each command is a make target.

    release.py check TAG        fails unless the tag is the version of Cargo.toml, the charts and the changelog
    release.py archive BINARY   target/dist/karpenter-OS-ARCH.tar.gz of this machine, with licence and NOTICE, and its checksum
    release.py notes            the version's section of CHANGELOG.md
    release.py krew             the manifest of the kubectl plugin, with the checksums of target/dist
    release.py checksums        target/dist/SHA256SUMS of everything there

Equal inputs give equal archives: entries are owned by root and dated by SOURCE_DATE_EPOCH (the last commit's date by default).
"""
import gzip
import hashlib
import io
import os
import pathlib
import platform
import re
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIST = ROOT / "target/dist"
SUMS = "SHA256SUMS"
ARCHES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def version():
    return re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)


def section(wanted):
    """The changelog's text for a version; nothing where it has none."""
    parts = re.split(r"^## \[(.*?)\].*$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2])).get(wanted, "").strip()


def check(tag):
    wanted = tag.removeprefix("v")
    problems = [] if wanted == version() else [f"Cargo.toml has version {version()}"]
    for path in sorted(ROOT.glob("charts/*/Chart.yaml")):
        for key, found in re.findall(r"^(version|appVersion): (.*)$", path.read_text(), re.M):
            if found != wanted:
                problems.append(f"{path.relative_to(ROOT)} has {key} {found}")
    if not section(wanted):
        problems.append(f"CHANGELOG.md has no section [{wanted}]")
    if problems:
        sys.exit(f"{tag} cannot be released: " + "; ".join(problems))


def archive(binary):
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or
                subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    files = {"karpenter": pathlib.Path(binary), "LICENSE": ROOT / "LICENSE", "NOTICE": ROOT / "NOTICE"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in files.items():
            entry = tarfile.TarInfo(name)
            data = path.read_bytes()
            entry.size, entry.mtime, entry.mode = len(data), epoch, 0o755 if name == "karpenter" else 0o644
            tar.addfile(entry, io.BytesIO(data))
    DIST.mkdir(parents=True, exist_ok=True)
    target = DIST / f"karpenter-{platform.system().lower()}-{ARCHES[platform.machine().lower()]}.tar.gz"
    target.write_bytes(gzip.compress(packed.getvalue(), mtime=0))
    (DIST / f"{target.name}.sha256").write_text(f"{digest(target)}  {target.name}\n")
    print(target.relative_to(ROOT))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checksums():
    files = sorted(p for p in DIST.iterdir() if p.name != SUMS and p.suffix != ".sha256")
    (DIST / SUMS).write_text("".join(f"{digest(p)}  {p.name}\n" for p in files))


def krew():
    """The manifest with this version's addresses; a platform without an archive is an error."""
    text = (ROOT / "deploy/krew/karpenter.yaml").read_text()
    text = re.sub(r"\bv\d+\.\d+\.\d+\b", f"v{version()}", text)

    def filled(match):
        if not (DIST / match.group(2)).exists():
            sys.exit(f"target/dist has no {match.group(2)}: the manifest needs the archives of all platforms")
        return match.group(1) + digest(DIST / match.group(2)) + '"'

    return re.sub(r'(uri: \S+/(karpenter-\S+\.tar\.gz)\n\s+sha256: ")0+"', filled, text)


def main():
    match sys.argv[1:]:
        case ["check", tag]:
            check(tag)
        case ["archive", binary]:
            archive(binary)
        case ["notes"]:
            print(section(version()) or section("Unreleased"))
        case ["krew"]:
            sys.stdout.write(krew())
        case ["checksums"]:
            checksums()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
