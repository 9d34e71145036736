#!/usr/bin/env python3
"""The soak test for real, and its graph: scripts/soak.py [REQUESTS [KIND…]] runs tests/faults/test_soak.py against the build in
target/<MWR_PROFILE> (release) and writes docs/soak.svg. Kinds: event, prefork, nginx; without any, event alone.

scripts/soak.py --draw KIND=FILE… only draws what MWR_SOAK_SAMPLES has left (FILE.KIND of a run)."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLOURS = {"server": "#1b6ac9", "largest worker": "#c9501b", "supervise": "#2c8a3d", "keeper": "#8a2c7d"}
LABELS = {
    "server": "processes of the server",
    "largest worker": "largest worker",
    "supervise": "supervisor",
    "keeper": "keeper",
}

Samples = list[tuple[int, dict[str, int]]]


def panel(kind: str, samples: Samples, top: int) -> str:
    """One kind of server: memory on the left, descriptors on the right, over requests."""
    parts = [f'<text x="60" y="{top - 10}" font-weight="bold">{kind}</text>']
    for x, unit in ((60, "KiB"), (430, "descriptors")):
        names = [k for k in samples[0][1] if k.endswith(" " + unit) and all(k in s for _, s in samples)]
        most = max(s[k] for _, s in samples for k in names) * 1.1
        scale = f"{most / 1024:.0f} MiB" if unit == "KiB" else f"{most:.0f} descriptors"
        parts.append(f'<path d="M{x} {top}V{top + 160}H{x + 300}" fill="none" stroke="#888"/>')
        parts.append(f'<text x="{x + 4}" y="{top + 10}">{scale}</text>')
        parts.append(f'<text x="{x + 300}" y="{top + 175}" text-anchor="end">{samples[-1][0]:,} requests</text>')
        for name in names:
            who = next(c for c in COLOURS if name.startswith(c))
            points = " ".join(
                f"{x + 300 * n / samples[-1][0]:.0f},{top + 160 - 160 * s[name] / most:.0f}" for n, s in samples
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[who]}" stroke-width="1.5"/>')
    return "".join(parts)


def draw(runs: dict[str, Samples]) -> None:
    """All runs below each other."""
    height = 60 + 220 * len(runs)
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" font-size="12">'
    ]
    text += ['<rect width="100%" height="100%" fill="white"/>']
    for i, (kind, samples) in enumerate(runs.items()):
        text.append(panel(kind, samples, 40 + 220 * i))
    for i, (who, label) in enumerate(LABELS.items()):
        text.append(f'<text x="{60 + 170 * i}" y="{height - 12}" fill="{COLOURS[who]}">{label}</text>')
    (ROOT / "docs" / "soak.svg").write_text("".join(text) + "</svg>\n")


def main() -> int:
    words = sys.argv[1:]
    if words[:1] == ["--draw"]:
        draw({kind: json.loads(pathlib.Path(path).read_text()) for kind, path in (w.split("=", 1) for w in words[1:])})
        return 0
    total, kinds = (words[0] if words else "1000000"), words[1:] or ["event"]
    with tempfile.TemporaryDirectory() as where:
        env = os.environ | {"MWR_SOAK": total, "MWR_SOAK_SAMPLES": f"{where}/samples"}
        command = [
            str(ROOT / "build/venv/bin/python"),
            "-m",
            "pytest",
            "-q",
            "-s",
            "-m",
            "long",
            "--override-ini=timeout=7200",
        ]
        command += ["tests/faults/test_soak.py", "-k", " or ".join(f"{kind}-long" for kind in kinds)]
        code = subprocess.run(command, cwd=ROOT, env=env).returncode
        left = {kind: pathlib.Path(f"{where}/samples.{kind}") for kind in kinds}
        draw({kind: json.loads(path.read_text()) for kind, path in left.items() if path.exists()})
    return code


if __name__ == "__main__":
    sys.exit(main())
