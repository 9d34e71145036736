"""Requests per second, CPU time, latency and memory of this project beside its peers, all behind the same Apache.

usage: bench.py BUILD-DIRECTORY [--rounds N] [--seconds N] [--connections N] [--only NAME,…] [--no-write]

Every server answers 13 bytes with one Python process of five threads. The servers take turns, so that a noisy machine
disturbs all of them alike; each figure is the median of the rounds. CPU time and memory are those of every process of
the server, found by a variable in its environment. Writes docs/benchmarks.md and docs/benchmarks.svg.
"""

import argparse
import glob
import os
import pathlib
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(sys.executable).parent
MODULES = "/usr/lib/apache2/modules"
PORT = 18090
MARK = "MWR_BENCH"
TICK = os.sysconf("SC_CLK_TCK")

APP = """def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello World!\\n"]
"""

DAEMON = """LoadModule wsgi_module {so}
WSGISocketPrefix {dir}/wsgi
WSGIDaemonProcess bench processes=1 threads=5
WSGIScriptAlias / {dir}/app.py process-group=bench application-group=%{{GLOBAL}}
"""
EMBEDDED = """LoadModule wsgi_module {so}
WSGIScriptAlias / {dir}/app.py
WSGIApplicationGroup %{{GLOBAL}}
"""
UWSGI = [
    *[
        "{bin}/uwsgi",
        "--socket",
        "{dir}/u.sock",
        "--chmod-socket=666",
        "--master",
        "--processes",
        "1",
        "--threads",
        "5",
    ],
    *["--disable-logging", "--chdir", "{dir}", "--module", "app:application", "--listen", "100"],
]
GUNICORN = [
    "{bin}/gunicorn",
    "-w",
    "1",
    "--threads",
    "5",
    "-b",
    "unix:{dir}/g.sock",
    "--umask",
    "0",
    "--chdir",
    "{dir}",
    "app:application",
]


def configuration(extra, modules):
    """Apache's configuration, the same for all."""
    names = ["mpm_event", "authz_core", "alias", "mime", *modules]
    load = "\n".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in names)
    user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
    return f"""ServerRoot {{dir}}
ServerName localhost
Listen 127.0.0.1:{PORT}
PidFile {{dir}}/httpd.pid
DefaultRuntimeDir {{dir}}
ErrorLog {{dir}}/error.log
LogLevel warn
{load}
TypesConfig /dev/null
{user}KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 60
ServerLimit 2
StartServers 1
ThreadLimit 64
ThreadsPerChild 64
MaxRequestWorkers 64
<Directory />
AllowOverride None
Require all granted
</Directory>
{extra}"""


def servers(build):
    """Name to (configuration, module, further commands)."""
    theirs = glob.glob(str(BIN.parent / "lib/python3*/site-packages/mod_wsgi/server/mod_wsgi*.so"))[0]
    return {
        "mod-wsgi-rs": (configuration(DAEMON, []), build / "libmod_wsgi_rs.so", []),
        "mod_wsgi daemon": (configuration(DAEMON, []), theirs, []),
        "mod_wsgi embedded": (configuration(EMBEDDED, []), theirs, []),
        "Apache + uWSGI": (
            configuration("ProxyPass / unix:{dir}/u.sock|uwsgi://localhost/\n", ["proxy", "proxy_uwsgi"]),
            "",
            [UWSGI],
        ),
        "Apache + gunicorn": (
            configuration("ProxyPass / unix:{dir}/g.sock|http://localhost/ enablereuse=on\n", ["proxy", "proxy_http"]),
            "",
            [GUNICORN],
        ),
        "Apache alone (204)": (configuration("RedirectMatch 204 .*\n", []), "", []),
    }


class Server:
    """A running server; the context ends it."""

    def __init__(self, name, configuration, so, commands):
        self.name = name
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="mwr-bench-"))
        self.dir.chmod(0o755)
        values = {"dir": self.dir, "so": so, "bin": BIN}
        (self.dir / "app.py").write_text(APP)
        (self.dir / "httpd.conf").write_text(configuration.format(**values))
        httpd = shutil.which("apache2") or "/usr/sbin/apache2"
        self.mark = f"{MARK}={self.dir.name}".encode()
        environment = {**os.environ, MARK: self.dir.name}
        lines = [[word.format(**values) for word in command] for command in commands]
        lines.append([httpd, "-f", str(self.dir / "httpd.conf"), "-DFOREGROUND"])
        with open(self.dir / "output", "ab") as output:
            self.processes = [
                subprocess.Popen(
                    line, cwd=self.dir, env=environment, stdout=output, stderr=output, start_new_session=True
                )
                for line in lines
            ]

    def __enter__(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5) as answer:
                    if answer.status in (200, 204):
                        return self
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.05)
        said = (self.dir / "output").read_text()[-500:]
        self.__exit__()
        raise SystemExit(f"bench: {self.name} does not answer: {said}")

    def __exit__(self, *_):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while self.pids() and time.monotonic() < deadline:
            for process in self.processes:
                process.poll()
            time.sleep(0.05)
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()
        shutil.rmtree(self.dir)

    def pids(self):
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if self.mark in file.read().split(b"\0"):
                        found.append(int(entry))
            except OSError:
                continue
        return found

    def usage(self):
        """CPU seconds so far and memory in MiB (PSS), over all processes."""
        ticks = kib = 0
        for pid in self.pids():
            try:
                with open(f"/proc/{pid}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                with open(f"/proc/{pid}/smaps_rollup") as file:
                    kib += int(re.search(r"^Pss:\s+(\d+)", file.read(), re.M)[1])
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICK, kib / 1024


def load(connections, seconds):
    """Runs wrk: requests, requests per second, p99 in ms."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", f"http://127.0.0.1:{PORT}/"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    problems = re.search(r"Socket errors:.*|Non-2xx.*", text)
    if problems:
        raise SystemExit(f"bench: {problems[0]}")
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", text).groups()
    p99 = float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
    return int(re.search(r"(\d+) requests in", text)[1]), float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]), p99


def measure(table, options):
    rounds = {name: [] for name in table}
    for number in range(options.rounds):
        for name, (text, so, commands) in table.items():
            with Server(name, text, so, commands) as server:
                load(options.connections, 1)
                before, _ = server.usage()
                requests, rate, p99 = load(options.connections, options.seconds)
                after, memory = server.usage()
            rounds[name].append((rate, (after - before) / requests * 1e6, p99, memory))
            print(f"round {number + 1}: {name}: {rate:.0f} requests/s, {rounds[name][-1][1]:.0f} µs", flush=True)
    return {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in rounds.items()}


def chart(results):
    """Bars of CPU time for each request, as SVG."""
    longest = max(row[1] for row in results.values())
    height = 34 * len(results) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" font-family="sans-serif" font-size="14">',
        f'<rect width="720" height="{height}" fill="#fff"/>',
        '<text x="10" y="22" font-weight="bold">CPU µs for each request (less is better)</text>',
    ]
    for number, (name, row) in enumerate(results.items()):
        y = 40 + 34 * number
        width = row[1] / longest * 460
        colour = "#2a6fb0" if name == "mod-wsgi-rs" else "#b8c4d0"
        parts.append(f'<text x="10" y="{y + 17}">{name}</text>')
        parts.append(f'<rect x="170" y="{y}" width="{width:.0f}" height="24" fill="{colour}"/>')
        parts.append(f'<text x="{178 + width:.0f}" y="{y + 17}">{row[1]:.0f}</text>')
    return "\n".join([*parts, "</svg>\n"])


def document(results, options):
    httpd = subprocess.run(["/usr/sbin/apache2", "-v"], capture_output=True, text=True).stdout.split("\n")[0]
    lines = [
        "# Benchmarks",
        "",
        "<!-- Written by `make bench`. -->",
        "",
        "A WSGI application that answers 13 bytes; one Python process with five threads;"
        f" {options.connections} keep-alive connections from wrk on the same machine;"
        f" medians of {options.rounds} rounds of {options.seconds} s, in which the servers took turns."
        " CPU time and memory (PSS) are those of every process of the server, Apache included."
        " Compare the rows of one table, not tables of different machines.",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release().split('-')[0]},"
        f" {httpd.partition(': ')[2]}, Python {platform.python_version()}.",
        "",
        "| server | requests/s | CPU µs/request | p99 ms | memory MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (rate, cpu, p99, memory) in results.items():
        lines.append(f"| {name} | {rate:,.0f} | {cpu:.0f} | {p99:.1f} | {memory:.0f} |")
    return "\n".join([*lines, "", "![CPU time for each request](benchmarks.svg)", ""])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    options = parser.parse_args()
    table = servers(options.build.resolve())
    if options.only:
        table = {name: table[name] for name in options.only.split(",")}
    results = measure(table, options)
    text = document(results, options)
    print(text)
    if not options.no_write:
        (ROOT / "docs/benchmarks.md").write_text(text)
        (ROOT / "docs/benchmarks.svg").write_text(chart(results))


if __name__ == "__main__":
    main()
