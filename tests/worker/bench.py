"""CPU per request of one worker alone: `PYTHONPATH=tests python tests/worker/bench.py [seconds] [connections] [threads]`.

The load comes from one event loop in another process; it is slower than the worker, so requests per second say little.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from worker import driver


def cpu(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def switches(pid):
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


def pss(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])


def main(seconds=3.0, connections=32, threads=5, python=sys.executable):
    root = Path(tempfile.mkdtemp())
    script = Path(__file__).with_name("hello.wsgi")
    with driver.Worker(root, python=python, preload=[(script, "application")], threads=threads, rows=64) as w:
        w.wait_ready()
        time.sleep(0.3)
        bare = subprocess.Popen([python, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        time.sleep(0.3)
        print(f"memory: worker {pss(w.process.pid)} KiB PSS, bare interpreter {pss(bare.pid)} KiB")
        bare.stdin.close()
        bare.wait()
        code = (
            "from worker.load import saturate\n"
            f"print(saturate({w.table.fd}, {w.table.slots}, {w.table.rows}, {str(w.address)!r}, {w.token.hex()!r},"
            f" {str(script)!r}, {connections}, {seconds}))"
        )
        environment = {**os.environ, "PYTHONPATH": str(driver.ROOT / "tests")}
        before, n, s, begun = cpu(w.process.pid), w.table.requests, switches(w.process.pid), time.monotonic()
        subprocess.run(
            [sys.executable, "-c", code], pass_fds=[w.table.fd], env=environment, stdout=subprocess.DEVNULL, check=True
        )
        n = w.table.requests - n
        used, took = cpu(w.process.pid) - before, time.monotonic() - begun
        switched = (switches(w.process.pid) - s) / n
        print(
            f"{n / took:.0f} requests/s, {used / n * 1e6:.1f} us CPU in the worker, {switched:.2f} context switches each"
        )


if __name__ == "__main__":
    main(*(kind(a) for kind, a in zip((float, int, int, str), sys.argv[1:], strict=False)))
