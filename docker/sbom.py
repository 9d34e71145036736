#!/usr/bin/env python3
"""What is in an image, as CycloneDX 1.5 on standard output: docker/sbom.py IMAGE

Debian's packages and the Python packages are asked of the image itself; the crates are those of Cargo.lock that the programs
and libraries in it are made of."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCKER = os.environ.get("DOCKER", "docker")
PYTHON = """
import importlib.metadata as m
for d in sorted(m.distributions(), key=lambda d: d.metadata["Name"].lower()):
    print(d.metadata["Name"], d.version, sep="\\t")
"""


def inside(image: str, *command: str) -> list[list[str]]:
    """The lines that a program in the image prints, in fields."""
    line = [DOCKER, "run", "--rm", "--network", "none", "--entrypoint", command[0], image, *command[1:]]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"sbom.py: {' '.join(command[:2])} in {image}: {done.stderr.strip()}")
    return [text.split("\t") for text in done.stdout.splitlines()]


def crates() -> list[dict[str, object]]:
    """The crates that are part of what is built, without those that only build or test it."""
    line = ["cargo", "tree", "--locked", "--workspace", "--edges", "normal", "--prefix", "none", "--format", "{p}\t{l}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"sbom.py: cargo tree: {done.stderr.strip()}")
    found = {}
    for text in filter(None, done.stdout.splitlines()):
        package, _, licence = text.partition("\t")
        words = package.split()
        name, version = words[0], words[1].lstrip("v")
        part: dict[str, object] = {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:cargo/{name}@{version}",
        }
        if licence.strip(" (*)"):
            part["licenses"] = [{"expression": licence.replace(" (*)", "").replace("/", " OR ")}]
        found.setdefault((name, version), part)
    return [found[key] for key in sorted(found)]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: docker/sbom.py IMAGE")
    image = sys.argv[1]
    label = subprocess.run(
        [DOCKER, "image", "inspect", "-f", "{{.Id}}\t{{json .Config.Labels}}", image], capture_output=True, text=True
    )
    if label.returncode:
        sys.exit(f"sbom.py: {label.stderr.strip()}")
    identity, _, labels = label.stdout.strip().partition("\t")
    suite = inside(image, "sh", "-c", '. /etc/os-release && printf "%s\\t%s\\n" "$ID" "$VERSION_ID"')[0]
    parts: list[dict[str, object]] = []
    for name, version, architecture in inside(
        image, "dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Architecture}\n"
    ):
        purl = f"pkg:deb/{suite[0]}/{name}@{version}?arch={architecture}&distro={suite[0]}-{suite[1]}"
        parts.append({"type": "library", "name": name, "version": version, "purl": purl})
    for name, version in inside(image, "python3", "-c", PYTHON):
        purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
        parts.append({"type": "library", "name": name, "version": version, "purl": purl})
    parts += crates()
    version = (json.loads(labels) or {}).get("org.opencontainers.image.version", "")
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # From the content, so that the same image has the same document.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, identity)}",
        "version": 1,
        "metadata": {
            "component": {"type": "container", "name": image.split(":")[0], "version": version, "bom-ref": identity}
        },
        "components": parts,
    }
    json.dump(document, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
