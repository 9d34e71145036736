"""Requests per second, CPU time, latency and memory of this project beside its peers, all behind the same Apache or nginx.

usage: bench.py BUILD-DIRECTORY [--work NAME,…] [--rounds N] [--seconds N] [--only SERVER,…] [--no-write]

One Python process of five threads behind each server. The servers take turns, so that a noisy machine disturbs all of them
alike; each figure is the median of the rounds. CPU time and memory are those of every process of the server, found by a
variable in its environment or below the process started here. Writes docs/benchmarks.md and docs/benchmarks.svg; with --work only the named tables are
measured again, the others are kept. The tables of nginx need the module for nginx in the build directory.
"""

import argparse
import dataclasses
import glob
import json
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

APP = """FILE = {file!r}
BLOCK = b"x" * 10240

def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello World!\\n"]

def block(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "10240")])
    return [BLOCK]

def stream(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(1024):
        yield BLOCK

def drops(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(1000000):
        yield b"0123456789"

def file(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return environ["wsgi.file_wrapper"](open(FILE, "rb"))

def upload(environ, start_response):
    body, n = environ["wsgi.input"], 0
    while piece := body.read(65536):
        n += len(piece)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(n).encode()]

ROUTES = {{"/block": block, "/stream": stream, "/drops": drops, "/file": file, "/upload": upload}}

def application(environ, start_response):
    return ROUTES.get(environ["PATH_INFO"], hello)(environ, start_response)
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


#: As `str.format` reads it; `@name@` is put in before.
NGINX = f"""@top@
worker_processes @workers@; daemon off; pid {{dir}}/nginx.pid; error_log {{dir}}/error.log warn; @user@
events {{{{ worker_connections 1024; }}}}
http {{{{
    access_log off; keepalive_requests 100000000; keepalive_timeout 60; sendfile on; client_max_body_size 0;
    default_type text/plain; client_body_temp_path {{dir}}/body; proxy_temp_path {{dir}}/proxy;
    uwsgi_temp_path {{dir}}/uwsgi; fastcgi_temp_path {{dir}}/fastcgi; scgi_temp_path {{dir}}/scgi;
    @http@
    server {{{{ listen 127.0.0.1:{PORT} backlog=1024; @server@ }}}}
}}}}
"""
ON_NGINX = "wsgi_script {dir}/app.py; wsgi_process_group bench;"
UWSGI_PARAMS = " ".join(
    f"uwsgi_param {name} ${variable};"
    for name, variable in {
        "QUERY_STRING": "query_string",
        "REQUEST_METHOD": "request_method",
        "CONTENT_TYPE": "content_type",
        "CONTENT_LENGTH": "content_length",
        "REQUEST_URI": "request_uri",
        "PATH_INFO": "document_uri",
        "DOCUMENT_ROOT": "document_root",
        "SERVER_PROTOCOL": "server_protocol",
        "REQUEST_SCHEME": "scheme",
        "REMOTE_ADDR": "remote_addr",
        "REMOTE_PORT": "remote_port",
        "SERVER_PORT": "server_port",
        "SERVER_NAME": "server_name",
    }.items()
)


def nginx(location, http="", server="", top="", workers=1):
    """nginx's configuration, the same for all."""
    user = "user www-data;" if os.geteuid() == 0 else ""
    server = f"{server} location / {{{{ {location} }}}}"
    text = NGINX
    for name, value in {"top": top, "workers": str(workers), "user": user, "http": http, "server": server}.items():
        text = text.replace(f"@{name}@", value)
    return text


def alone(program):
    """A server of its own in one Python process, of the installed package."""
    return ["{bin}/python", "-c", program]


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


@dataclasses.dataclass
class Work:
    """One table: what is asked for, how, and by how much this project may differ from another server."""

    title: str
    path: str
    servers: list
    connections: int = 32
    #: Fixed number of requests, one after the other, instead of as many as possible for a while.
    requests: int = 0
    body: int = 0
    #: (column, server, largest or smallest ratio)
    aims: tuple = ()
    #: Which row is this project.
    ours: str = "mod-wsgi-rs"


OURS, THEIRS, EMBEDDED_ONE, UWSGI_ONE = "mod-wsgi-rs", "mod_wsgi daemon", "mod_wsgi embedded", "Apache + uWSGI"
ALONE = "Apache alone"
OURS_ON_NGINX, NGINX_UWSGI, NGINX_GUNICORN = "mod-wsgi-rs on nginx", "nginx + uWSGI", "nginx + gunicorn"
NGINX_TWICE, NGINX_ALONE = "nginx + nginx", "nginx alone"
GRANIAN, BJOERN, FASTWSGI = "granian", "bjoern", "fastwsgi"
#: Columns of a measurement.
RATE, CPU, MIDDLE, P99, MEMORY = range(5)
WORK = {
    "hello": Work(
        "13 bytes",
        "/",
        [OURS, THEIRS, EMBEDDED_ONE, UWSGI_ONE, "Apache + gunicorn", ALONE],
        aims=((CPU, THEIRS, 0.25), (CPU, UWSGI_ONE, 0.55), (RATE, THEIRS, 3.5)),
    ),
    "block": Work("10 KiB in one piece", "/block", [OURS, THEIRS, EMBEDDED_ONE, UWSGI_ONE]),
    "one": Work("13 bytes, one connection", "/", [OURS, THEIRS, UWSGI_ONE], 1, aims=((MIDDLE, THEIRS, 0.6),)),
    "stream": Work(
        "10 MiB in 1,024 blocks from a generator",
        "/stream",
        [OURS, THEIRS, EMBEDDED_ONE],
        4,
        aims=((CPU, THEIRS, 0.75),),
    ),
    "drops": Work(
        "1,000,000 blocks of 10 bytes from a generator",
        "/drops",
        [OURS, THEIRS, EMBEDDED_ONE],
        1,
        requests=1,
        aims=((CPU, EMBEDDED_ONE, 1.0),),
    ),
    "file": Work(
        "100 MiB with wsgi.file_wrapper (Apache alone: the same file)",
        "/file",
        [OURS, THEIRS, ALONE],
        1,
        requests=20,
        aims=((CPU, ALONE, 1.2), (MIDDLE, ALONE, 1.2)),
    ),
    "upload": Work("upload of 10 MiB", "/upload", [OURS, THEIRS], 4, body=10 << 20, aims=((CPU, THEIRS, 0.8),)),
    "nginx-hello": Work(
        "nginx: 13 bytes (granian, bjoern and fastwsgi without a server before them)",
        "/",
        [OURS_ON_NGINX, NGINX_UWSGI, NGINX_GUNICORN, NGINX_TWICE, NGINX_ALONE, GRANIAN, BJOERN, FASTWSGI],
        aims=((CPU, NGINX_UWSGI, 0.38), (CPU, NGINX_TWICE, 1.25), (RATE, NGINX_UWSGI, 2.4), (RATE, GRANIAN, 1.5)),
        ours=OURS_ON_NGINX,
    ),
    "nginx-one": Work(
        "nginx: 13 bytes, one connection",
        "/",
        [OURS_ON_NGINX, NGINX_UWSGI, NGINX_TWICE],
        1,
        aims=((MIDDLE, NGINX_UWSGI, 1.0),),
        ours=OURS_ON_NGINX,
    ),
    "nginx-stream": Work(
        "nginx: 10 MiB in 1,024 blocks from a generator",
        "/stream",
        [OURS_ON_NGINX, NGINX_UWSGI],
        4,
        aims=((CPU, NGINX_UWSGI, 0.75),),
        ours=OURS_ON_NGINX,
    ),
    "nginx-file": Work(
        "nginx: 100 MiB with wsgi.file_wrapper (nginx alone: the same file)",
        "/file",
        [OURS_ON_NGINX, NGINX_UWSGI, NGINX_ALONE],
        1,
        requests=20,
        aims=((CPU, NGINX_ALONE, 1.2), (MIDDLE, NGINX_ALONE, 1.2)),
        ours=OURS_ON_NGINX,
    ),
    "nginx-upload": Work(
        "nginx: upload of 10 MiB",
        "/upload",
        [OURS_ON_NGINX, NGINX_UWSGI],
        4,
        body=10 << 20,
        aims=((CPU, NGINX_UWSGI, 0.8),),
        ours=OURS_ON_NGINX,
    ),
}


def servers(build):
    """Name to (the front server, its configuration, module, further commands)."""
    theirs = glob.glob(str(BIN.parent / "lib/python3*/site-packages/mod_wsgi/server/mod_wsgi*.so"))[0]
    httpd = shutil.which("apache2") or "/usr/sbin/apache2"
    found = {
        OURS: (configuration(DAEMON, []), build / "libmod_wsgi_rs.so", []),
        THEIRS: (configuration(DAEMON, []), theirs, []),
        EMBEDDED_ONE: (configuration(EMBEDDED, []), theirs, []),
        UWSGI_ONE: (
            configuration("ProxyPass / unix:{dir}/u.sock|uwsgi://localhost/\n", ["proxy", "proxy_uwsgi"]),
            "",
            [UWSGI],
        ),
        "Apache + gunicorn": (
            configuration("ProxyPass / unix:{dir}/g.sock|http://localhost/ enablereuse=on\n", ["proxy", "proxy_http"]),
            "",
            [GUNICORN],
        ),
        ALONE: (configuration('RedirectMatch 204 "^/$"\nAlias /file "{file}"\n', []), "", []),
    }
    table = {n: ([httpd, "-DFOREGROUND", "-f"], *row) for n, row in found.items()}
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    kept = 'proxy_http_version 1.1; proxy_set_header Connection "";'
    hello = 'return 200 "Hello World!\\n";'
    behind = f"server {{{{ listen unix:{{dir}}/b.sock; location / {{{{ {hello} }}}} }}}}"
    found = {
        OURS_ON_NGINX: (
            nginx(ON_NGINX, "wsgi_daemon_process bench processes=1 threads=5;", top="load_module {so};"),
            build / "libngx_http_wsgi_rs_module.so",
            [],
        ),
        NGINX_UWSGI: (
            nginx(f"{UWSGI_PARAMS} uwsgi_pass u;", "upstream u {{ server unix:{dir}/u.sock; }}"),
            "",
            [UWSGI],
        ),
        NGINX_GUNICORN: (
            nginx(f"proxy_pass http://u; {kept}", "upstream u {{ server unix:{dir}/g.sock; keepalive 32; }}"),
            "",
            [GUNICORN],
        ),
        NGINX_TWICE: (
            nginx(
                f"proxy_pass http://b; {kept}",
                "upstream b {{ server unix:{dir}/b.sock; keepalive 64; keepalive_requests 100000000; }} " + behind,
                workers=2,
            ),
            "",
            [],
        ),
        NGINX_ALONE: (nginx(hello, server="location = /file {{ alias {file}; }}"), "", []),
    }
    table |= {n: ([program, "-p", "{dir}", "-c"], *row) for n, row in found.items()}
    address = f"'127.0.0.1', {PORT}"
    granian = ["{bin}/granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", str(PORT), "--workers", "1"]
    granian += ["--no-ws", "--log-level", "error", "--http", "1", "app:application"]
    for n, command in {
        GRANIAN: granian,
        BJOERN: alone(f"import bjoern, app; bjoern.run(app.application, {address})"),
        FASTWSGI: alone(f"import fastwsgi, app; fastwsgi.run(wsgi_app=app.application, host='127.0.0.1', port={PORT})"),
    }.items():
        table[n] = ([], "", "", [command])
    return table


class Server:
    """A running server; the context ends it."""

    def __init__(self, name, front, configuration, so, commands, file):
        self.name = name
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="mwr-bench-"))
        self.dir.chmod(0o755)
        values = {"dir": self.dir, "so": so, "bin": BIN, "file": file}
        (self.dir / "app.py").write_text(APP.format(file=str(file)))
        (self.dir / "server.conf").write_text(configuration.format(**values))
        self.mark = f"{MARK}={self.dir.name}".encode()
        environment = {**os.environ, MARK: self.dir.name}
        lines = [[word.format(**values) for word in command] for command in commands]
        if front:
            lines.append([word.format(**values) for word in front] + [str(self.dir / "server.conf")])
        with open(self.dir / "output", "ab") as output:
            self.processes = [
                subprocess.Popen(
                    line, cwd=self.dir, env=environment, stdout=output, stderr=output, start_new_session=True
                )
                for line in lines
            ]

    def __enter__(self):
        deadline = time.monotonic() + 20
        # A server that ends at once is not the one that answers.
        while time.monotonic() < deadline and all(process.poll() is None for process in self.processes):
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
        """Processes that have the mark, and those below the ones started here: nginx writes its title over the mark."""
        found, children = {p.pid for p in self.processes if p.poll() is None}, {}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/stat") as file:
                    children.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(entry))
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if self.mark in file.read().split(b"\0"):
                        found.add(int(entry))
            except OSError:
                continue
        below = list(found)
        while below:
            below = [c for pid in below for c in children.get(pid, []) if c not in found]
            found.update(below)
        return sorted(found)

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


def milliseconds(text):
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(value) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}[unit]


def load(work, seconds, directory):
    """Asks for a while: requests, requests per second, median and p99 in ms."""
    url = f"http://127.0.0.1:{PORT}{work.path}"
    if work.requests:
        took = []
        for _ in range(work.requests):
            begun = time.monotonic()
            subprocess.run(["curl", "-sfo", os.devnull, url], check=True)
            took.append((time.monotonic() - begun) * 1000)
        return work.requests, 1000 * len(took) / sum(took), statistics.median(took), max(took)
    command = ["wrk", "-t1", f"-c{work.connections}", f"-d{seconds}", "--timeout", "30", "--latency", url]
    if work.body:
        script = directory / "body.lua"
        script.write_text(f'wrk.method = "POST"\nwrk.body = string.rep("x", {work.body})\n')
        command += ["-s", str(script)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    problems = re.search(r"Socket errors:.*|Non-2xx.*", text)
    if problems:
        raise SystemExit(f"bench: {problems[0]}")
    middle, p99 = (milliseconds(re.search(rf"^ +{n}% +(\S+)", text, re.M)[1]) for n in (50, 99))
    return int(re.search(r"(\d+) requests in", text)[1]), float(re.search(r"/sec:\s+([\d.]+)", text)[1]), middle, p99


def measure(name, work, table, options, file):
    names = [n for n in work.servers if not options.only or n in options.only.split(",")]
    rounds = {n: [] for n in names}
    for number in range(options.rounds):
        for n in names:
            with Server(n, *table[n], file) as server:
                if not work.requests:
                    load(work, 1, server.dir)
                before, _ = server.usage()
                requests, rate, middle, p99 = load(work, options.seconds, server.dir)
                after, memory = server.usage()
            rounds[n].append((rate, (after - before) / requests * 1e6, middle, p99, memory))
            print(f"{name} {number + 1}: {n}: {rate:.1f} requests/s, {rounds[n][-1][CPU]:.0f} µs", flush=True)
    return {n: [statistics.median(column) for column in zip(*rows, strict=True)] for n, rows in rounds.items()}


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
        colour = "#2a6fb0" if name.startswith(OURS) else "#b8c4d0"
        parts.append(f'<text x="10" y="{y + 17}">{name}</text>')
        parts.append(f'<rect x="170" y="{y}" width="{width:.0f}" height="24" fill="{colour}"/>')
        parts.append(f'<text x="{178 + width:.0f}" y="{y + 17}">{row[1]:.0f}</text>')
    return "\n".join([*parts, "</svg>\n"])


def duration(milliseconds):
    return f"{milliseconds:,.2f}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def table_of(name, work, results):
    lines = [
        f"## {work.title}",
        "",
        f"{work.connections} connection{'s' if work.connections > 1 else ''}.",
        "",
        "| server | requests/s | CPU ms/request | median ms | p99 ms | memory MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for n, (rate, cpu, middle, p99, memory) in results.items():
        many = f"{rate:,.0f}" if rate >= 100 else f"{rate:.2f}"
        spent = f"{cpu / 1000:,.3f}" if cpu < 10000 else f"{cpu / 1000:,.0f}"
        lines.append(f"| {n} | {many} | {spent} | {duration(middle)} | {duration(p99)} | {memory:.0f} |")
    ratios = []
    for column, other, aim in work.aims:
        if work.ours in results and other in results:
            ratio = results[work.ours][column] / results[other][column]
            what = {RATE: "requests/s", CPU: "CPU", MIDDLE: "median time"}[column]
            bound = f"at least {aim}" if column == RATE else f"at most {aim}"
            met = ratio >= aim if column == RATE else ratio <= aim
            ratios.append(f"{what} {ratio:.2f} times {other} (aim: {bound}{'' if met else '; missed'})")
    return [*lines, "", *([f"{work.ours}: {'; '.join(ratios)}.", ""] if ratios else [])]


def document(results, options):
    httpd = subprocess.run(["/usr/sbin/apache2", "-v"], capture_output=True, text=True).stdout.split("\n")[0]
    nginx_version = subprocess.run(["/usr/sbin/nginx", "-v"], capture_output=True, text=True).stderr.strip()
    lines = [
        "# Benchmarks",
        "",
        "<!-- Written by `make bench`. -->",
        "",
        "One Python process with five threads behind each server; the load comes from wrk or curl on the same machine over"
        f" kept connections; medians of {options.rounds} rounds of {options.seconds} s, in which the servers took turns."
        " CPU time and memory (PSS) are those of every process of the server, Apache or nginx included."
        " Compare the rows of one table, not tables of different machines.",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release().split('-')[0]},"
        f" {httpd.partition(': ')[2]}, {nginx_version.partition(': ')[2]}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}.",
        "",
        "![CPU time for each request of 13 bytes](benchmarks.svg)",
        "",
    ]
    for name, work in WORK.items():
        if name in results:
            lines += table_of(name, work, results[name])
            if name == "nginx-hello":
                lines += [f"![CPU time for each request of 13 bytes, on nginx]({PICTURES[name]})", ""]
    return "\n".join(lines)


PICTURES = {"hello": "benchmarks.svg", "nginx-hello": "benchmarks-nginx.svg"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--work", help=f"names, separated by commas: {', '.join(WORK)}")
    parser.add_argument("--only", help="servers, separated by commas")
    parser.add_argument("--no-write", action="store_true", help="print the tables only")
    options = parser.parse_args()
    # Whoever ends this ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: ended by a signal"))
    table = servers(options.build.resolve())
    has_nginx = (options.build / "libngx_http_wsgi_rs_module.so").exists()
    if not has_nginx and not options.work:
        print("bench: no module for nginx in the build: its tables are left as they were", flush=True)
    every = [name for name, work in WORK.items() if has_nginx or work.ours != OURS_ON_NGINX]
    wanted = options.work.split(",") if options.work else every
    kept = ROOT / "build/bench/results.json"
    results = json.loads(kept.read_text()) if wanted != list(WORK) and kept.exists() else {}
    with tempfile.NamedTemporaryFile(prefix="mwr-bench-", suffix=".txt") as file:
        os.chmod(file.name, 0o644)
        for _ in range(100):
            file.write(os.urandom(1 << 20))
        file.flush()
        for name in wanted:
            results[name] = measure(name, WORK[name], table, options, file.name)
    if options.no_write:
        print("\n".join(line for name in wanted for line in table_of(name, WORK[name], results[name])))
        return
    kept.write_text(json.dumps(results))
    text = document(results, options)
    print(text)
    (ROOT / "docs/benchmarks.md").write_text(text)
    for name, picture in PICTURES.items():
        if name in results:
            (ROOT / "docs" / picture).write_text(chart(results[name]))


if __name__ == "__main__":
    main()
