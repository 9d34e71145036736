"""Checks licence and source of every Rust dependency: python3 scripts/check_licenses.py < METADATA

METADATA is what `cargo metadata --format-version 1 --locked` prints. Every package must come from the workspace or from
the one registry, and its licence must be satisfied by the licences below.
"""

import json
import re
import sys

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    # Public domain; it waives no patents and asks for nothing, so it goes with Apache-2.0. notify has it.
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}


def satisfied(expression: str) -> bool:
    """Whether an SPDX expression can be satisfied by allowed licences; `/` is the old way to write OR."""
    tokens = re.findall(r"[()]|[^\s()/]+|/", expression)
    position = 0

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def take() -> str:
        nonlocal position
        token = peek()
        position += 1
        return token

    def either() -> bool:
        result = both()
        while peek() in ("OR", "/"):
            take()
            result = both() or result
        return result

    def both() -> bool:
        result = single()
        while peek() == "AND":
            take()
            result = single() and result
        return result

    def single() -> bool:
        if peek() == "(":
            take()
            result = either()
            return take() == ")" and result
        name = take()
        if peek() == "WITH":
            take()
            name = f"{name} WITH {take()}"
        return name in ALLOWED

    return either() and position == len(tokens)


def main() -> int:
    metadata = json.load(sys.stdin)
    members = set(metadata["workspace_members"])
    problems = []
    registries = set()
    for package in metadata["packages"]:
        name = f"{package['name']} {package['version']}"
        source = package["source"]
        if source is None:
            if package["id"] not in members:
                problems.append(f"{name}: from a path outside the workspace")
        elif source.startswith(("registry+", "sparse+")):
            registries.add(source)
        else:
            problems.append(f"{name}: from {source.split('+')[0]}, not from a registry")
        if not satisfied(package["license"] or ""):
            problems.append(f"{name}: licence {package['license']!r} is not allowed")
    if len(registries) > 1:
        problems.append(f"packages come from {len(registries)} registries, not one")
    for problem in problems:
        print(f"check_licenses: {problem}", file=sys.stderr)
    print(f"check_licenses: {len(metadata['packages'])} packages, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
