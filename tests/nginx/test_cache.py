"""nginx's cache and store in front of applications (N3): what is kept, what is given from it, and that nothing of it
needs a worker."""

from __future__ import annotations

import contextlib
import json
import pathlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness import http, log, product
from harness.http import Response
from harness.nginx import Nginx, has_cache
from harness.wait import wait_until

pytestmark = pytest.mark.skipif(product.has_nginx() and not has_cache(), reason="this nginx has no cache")

GROUP = "wsgi_daemon_process g processes=1 threads=1 queue-limit=1;"
ZONE = "wsgi_cache_path {prefix}/cache levels=1:2 keys_zone=z:1m inactive=1h;"
CACHED = """
wsgi_process_group g;
wsgi_cache z;
wsgi_cache_valid 1h;
add_header X-Cache $upstream_cache_status always;
"""
ALL = "location / { wsgi_script {apps}/told.wsgi; }"


class Told:
    """A server in front of apps/told.wsgi."""

    def __init__(self, server: Nginx):
        self.server = server

    def does(self, **what: Any) -> None:
        """What the application answers from now on."""
        path = self.server.scratch / "does.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(what))
        new.rename(path)

    def calls(self) -> list[dict[str, str]]:
        """The environs of all requests that have reached it."""
        path = self.server.scratch / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def get(self, target: str = "/", **kw: Any) -> Response:
        return self.server.get(target, **kw)

    def says(self, target: str, status: str | None, **kw: Any) -> str:
        """The text of an answer that must have come this way."""
        r = self.get(target, **kw)
        assert (r.status, r.header("X-Cache")) == (200, status), r
        assert r.complete
        return r.text

    def expire(self, count: int) -> None:
        """Waits until so many answers are in the cache and all have expired."""
        wait_until(lambda: len(files := self.files()) == count and all(map(_past, files)), 5)

    def files(self) -> list[pathlib.Path]:
        """What lies in the cache."""
        return [p for p in (self.server.prefix / "cache").rglob("*") if p.is_file()]


@pytest.fixture
def told(nginx: Callable[..., Nginx]) -> Callable[..., Told]:
    def make(config: str = CACHED + ALL, http_config: str = GROUP + ZONE, workers: int = 1, **kw: Any) -> Told:
        return Told(nginx(config, http_config=http_config, workers=workers, **kw))

    return make


@pytest.fixture(scope="module")
def usual(shared: Callable[..., Nginx]) -> Told:
    """A server for tests that leave nothing behind; each uses paths of its own."""
    return Told(shared(CACHED + ALL, http_config=GROUP + ZONE, workers=1))


@pytest.fixture(autouse=True)
def _ordinary(request: pytest.FixtureRequest) -> Iterator[None]:
    if "usual" in request.fixturenames:
        request.getfixturevalue("usual").does()
    yield


def test_the_second_answer_comes_from_the_cache(usual: Told) -> None:
    """N3: whole, with its length, and the application is not asked."""
    first = usual.says("/first?a=b", "MISS")
    before = len(usual.calls())
    hit = usual.get("/first?a=b")
    assert (hit.text, hit.header("X-Cache"), hit.framing) == (first, "HIT", "length")
    assert usual.says("/first?a=c", "MISS") != first
    assert len(usual.calls()) == before + 1


def test_the_key_has_scheme_host_port_and_target(usual: Told) -> None:
    """N3: without wsgi_cache_key answers for different names are kept apart, and so are paths that decode alike."""
    assert usual.says("/key%2Fa", "MISS")
    assert usual.says("/key/a", "MISS")
    assert usual.says("/key/a", "MISS", host="other.example")
    assert usual.says("/key/a", "HIT", host="other.example")


@pytest.mark.parametrize("how", ["list", "blocks", "file"])
def test_bodies_of_every_kind_are_kept(usual: Told, how: str) -> None:
    """N3, N10: a list, blocks, a passed file; larger than every buffer."""
    body = "".join(map(chr, range(256)))
    usual.does(how=how, body=body, times=3000, headers=[["Content-Type", "text/x"], ["X-Own", "1"], ["X-Own", "2"]])
    for status in ("MISS", "HIT", "HIT"):
        r = usual.get(f"/body/{how}")
        assert r.header("X-Cache") == status and r.complete
        assert r.body == body.encode("latin-1") * 3000
        assert (r.header("Content-Type"), r.all("X-Own")) == ("text/x", ["1", "2"])


@pytest.mark.parametrize(
    ("headers", "second"),
    [
        ([["Set-Cookie", "a=b"]], "MISS"),
        ([["Cache-Control", "private"]], "MISS"),
        ([["Cache-Control", "no-store"]], "MISS"),
        ([["Cache-Control", "max-age=0"]], "MISS"),
        ([["X-Accel-Expires", "60"], ["Cache-Control", "no-cache"]], "HIT"),
        ([["X-Accel-Expires", "0"]], "MISS"),
        ([["Expires", "Thu, 01 Jan 1970 00:00:01 GMT"]], "MISS"),
        ([["Vary", "*"]], "MISS"),
        ([["Cache-Control", "max-age=60"]], "HIT"),
    ],
)
def test_the_application_decides_by_its_headers(usual: Told, headers: list[list[str]], second: str) -> None:
    """N3: Set-Cookie, Cache-Control, Expires, X-Accel-Expires and Vary mean what they mean to uwsgi_cache."""
    usual.does(headers=headers)
    target = "/headers/" + "-".join(v for pair in headers for v in pair).replace(" ", "").replace("*", "any")
    usual.says(target, "MISS")
    usual.says(target, second)
    r = usual.get(target)
    assert r.header("X-Accel-Expires") is None


def test_vary_keeps_variants_apart(usual: Told) -> None:
    """N3: one answer for each value of the field that Vary names."""
    usual.does(headers=[["Vary", "Accept-Language"]])
    by = {lang: usual.says("/vary", "MISS", headers=[("Accept-Language", lang)]) for lang in ("de", "en")}
    for lang, text in by.items():
        assert usual.says("/vary", "HIT", headers=[("Accept-Language", lang)]) == text


def test_head_asks_for_the_whole(usual: Told) -> None:
    """N3: a HEAD fills the cache by a GET; the client gets no body, and a length from the cache."""
    r = usual.get("/head", method="HEAD")
    assert (r.status, r.body, r.header("X-Cache")) == (200, b"", "MISS")
    assert usual.calls()[-1]["REQUEST_METHOD"] == "GET"
    text = usual.says("/head", "HIT")
    r = usual.get("/head", method="HEAD")
    assert (r.body, r.header("X-Cache"), r.header("Content-Length")) == (b"", "HIT", str(len(text)))


def test_head_alone(told: Callable[..., Told]) -> None:
    """N3: wsgi_cache_convert_head off, with a key that has the method."""
    t = told(CACHED + "wsgi_cache_convert_head off; wsgi_cache_key $request_method$request_uri;" + ALL)
    assert t.get("/", method="HEAD").header("X-Cache") == "MISS"
    assert t.calls()[-1]["REQUEST_METHOD"] == "HEAD"
    assert t.get("/", method="HEAD").header("X-Cache") == "HIT"
    assert t.says("/", "MISS") == t.says("/", "HIT")


def test_what_one_client_has_does_not_decide(usual: Told) -> None:
    """N3: ranges and conditions are not passed on for an answer that is to be kept; nginx serves them from it."""
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    usual.does(headers=[["ETag", '"one"'], ["Last-Modified", date], ["Accept-Ranges", "bytes"]])
    ask = [("Range", "bytes=0-1"), ("If-Match", '"one"'), ("If-Range", '"one"'), ("If-Unmodified-Since", date)]
    usual.get("/conditions", headers=ask)
    seen = usual.calls()[-1]
    assert not {"HTTP_RANGE", "HTTP_IF_MATCH", "HTTP_IF_RANGE", "HTTP_IF_UNMODIFIED_SINCE"} & set(seen)
    whole = usual.says("/conditions", "HIT")
    r = usual.get("/conditions", headers=[("Range", "bytes=2-4")])
    assert (r.status, r.text, r.header("X-Cache")) == (206, whole[2:5], "HIT")
    r = usual.get("/conditions", headers=[("If-None-Match", '"one"')])
    assert (r.status, r.header("X-Cache")) == (304, "HIT")
    # a request that no cache serves keeps them
    usual.get("/conditions", method="POST", headers=ask[:1])
    assert usual.calls()[-1]["HTTP_RANGE"] == "bytes=0-1"


def test_other_methods_go_to_the_application(told: Callable[..., Told]) -> None:
    """N3: wsgi_cache_methods; a kept POST is asked with its body."""
    t = told(
        CACHED
        + """
        wsgi_cache_methods POST;
        wsgi_cache_key $request_method$request_uri$request_body;
        """
        + ALL
    )
    one = [t.says("/", s, method="POST", body=b"one") for s in ("MISS", "HIT")]
    assert one[0] == one[1] and t.calls()[-1]["body"] == "one"
    assert t.says("/", "MISS", method="POST", body=b"two") != one[0]
    assert t.get("/", method="PUT", body=b"x").header("X-Cache") is None


def test_bypass_and_no_cache(told: Callable[..., Told]) -> None:
    """N3: wsgi_cache_bypass renews what is kept, wsgi_no_cache keeps nothing, wsgi_cache_min_uses waits."""
    t = told(
        CACHED
        + """
        location / { wsgi_script {apps}/told.wsgi; wsgi_cache_bypass $arg_fresh; wsgi_no_cache $arg_secret;
                     wsgi_cache_key $uri; }
        location /often { wsgi_script {apps}/told.wsgi; wsgi_cache_min_uses 3; }
        """
    )
    old = t.says("/a", "MISS")
    new = t.says("/a?fresh=1", "BYPASS")
    assert new != old and t.says("/a", "HIT") == new
    t.says("/b?secret=1", "MISS")
    t.says("/b?secret=1", "MISS")
    assert [t.get("/often").header("X-Cache") for _ in range(4)] == ["MISS", "MISS", "MISS", "HIT"]


def test_a_hit_takes_no_row_and_waits_for_nobody(told: Callable[..., Told]) -> None:
    """N8: while the only thread is busy and the queue full, what is kept is served; a miss is 503 with Retry-After."""
    t = told()
    text = t.says("/kept", "MISS")
    with full(t):
        refused = t.get("/other")
        assert (refused.status, refused.header("Retry-After")) == (503, "1")
        for _ in range(20):
            assert t.says("/kept", "HIT") == text


@contextlib.contextmanager
def full(t: Told) -> Iterator[None]:
    """The only thread runs a request, another one waits for it, and there is room for no third."""
    t.does(how="wait")
    t.server.expect_log("MWR0205")
    before = len(t.calls())
    with t.server.connect() as running, t.server.connect() as waiting:
        running.send(http.build(target="/wait1"))
        wait_until(lambda: len(t.calls()) == before + 1)
        # one process of nginx takes requests in the order they come
        waiting.send(http.build(target="/wait2"))
        yield
        (t.server.scratch / "go").touch()
        assert [c.response("GET").status for c in (running, waiting)] == [200, 200]


def test_failures_of_ours_are_not_kept(told: Callable[..., Told]) -> None:
    """N3: where every status is kept, those are that the application gives, and none that stands for a failure: a full
    queue, an exception, an answer that is none."""
    t = told(CACHED.replace("wsgi_cache_valid 1h;", "wsgi_cache_valid any 1h;") + ALL)
    t.does(status="503 Own")
    for kept in ("MISS", "HIT"):
        own = t.get("/own")
        assert (own.status, own.header("X-Cache"), own.text[:2]) == (503, kept, "1 ")
    with full(t):
        assert [t.get("/full").status for _ in range(2)] == [503, 503]
    t.server.allow_log(log.EXCEPTION)
    for how in ("raise", "text"):
        t.does(how=how)
        before = len(t.calls())
        assert [t.get(f"/{how}").status for _ in range(2)] == [500, 500]
        assert len(t.calls()) == before + 2
    t.does()
    for target in ("/full", "/raise", "/text"):
        assert t.says(target, "MISS") == t.says(target, "HIT")


STALE = CACHED.replace("wsgi_cache_valid 1h;", "wsgi_cache_valid 1s;")


def expired(t: Told, target: str) -> str:
    """What is kept of `target`, and has expired."""
    t.does()
    count = len(t.files())
    text = t.says(target, "MISS")
    t.expire(count + 1)
    return text


def _past(path: pathlib.Path) -> bool:
    """Whether a file of the cache is no longer good: the second of its numbers is the time until which it is."""
    return struct.unpack_from("<qq", path.read_bytes())[1] < int(time.time())


@pytest.mark.parametrize(
    ("case", "how", "messages"),
    [
        ("error", "exit", "MWR0207|MWR0306"),
        ("http_500", "raise", log.EXCEPTION),
        ("invalid_header", "text", log.EXCEPTION),
    ],
)
def test_stale_answers_take_the_place_of_failures(
    told: Callable[..., Told], case: str, how: str, messages: str
) -> None:
    """N3: wsgi_cache_use_stale, case by case, and not for another case."""
    t = told(
        STALE
        + f"""
        location /yes {{ wsgi_script {{apps}}/told.wsgi; wsgi_cache_use_stale {case}; }}
        location /no {{ wsgi_script {{apps}}/told.wsgi; wsgi_cache_use_stale http_403; }}
        """
    )
    old = {target: expired(t, target) for target in ("/yes", "/no")}
    t.server.allow_log(messages)
    t.does(how=how)
    assert t.says("/yes", "STALE") == old["/yes"]
    assert t.get("/no").status >= 500
    t.does()
    assert wait_until(lambda: (r := t.get("/yes")).header("X-Cache") == "EXPIRED" and r, 10).text != old["/yes"]


def test_stale_while_no_worker_can_be_had(told: Callable[..., Told]) -> None:
    """N8, N3: all rows taken, later no worker that can be started: expired answers are given, without Retry-After."""
    t = told(STALE + "wsgi_cache_use_stale error timeout;" + ALL)
    old = expired(t, "/kept")
    with full(t):
        assert t.get("/other").status == 503
        r = t.get("/kept")
        assert (r.status, r.text, r.header("X-Cache"), r.header("Retry-After")) == (200, old, "STALE", None)


def test_the_cache_serves_without_a_supervisor(told: Callable[..., Told]) -> None:
    """N8: where no supervisor could be started, what an earlier one left in the cache is served, and the rest is 503."""
    t = told(
        STALE
        + "wsgi_cache_use_stale error;"
        + ALL
        + "location /long { wsgi_script {apps}/told.wsgi; wsgi_cache_valid 1h; }"
    )
    good, old = t.says("/long", "MISS"), t.says("/kept", "MISS")
    t.server.stop()
    t.server.http_config = t.server.http_config + "wsgi_supervisor /nowhere/mod-wsgi-rs;"
    t.server.allow_log("MWR0110|MWR0210")
    t.server.start()
    wait_until(lambda: t.get("/kept").header("X-Cache") == "STALE", 5)
    assert t.says("/long", "HIT") == good and t.says("/kept", "STALE") == old
    r = t.get("/unknown")
    assert (r.status, r.header("Retry-After")) == (503, "5")


@pytest.mark.parametrize("how", ["short", "broken", "killed"])
def test_what_broke_off_is_not_kept(told: Callable[..., Told], how: str) -> None:
    """N3 (pitfall N18): too short a body, an exception amid the body, a worker that dies: nothing is kept."""
    t = told()
    t.server.allow_log(log.CUT + "|MWR0207|MWR0208|MWR0306|MWR0421|upstream prematurely closed")
    t.does(how=how, body="x" * 100, times=1000)
    r = t.get("/cut")
    assert r.truncated, r
    wait_until(lambda: not t.files())
    t.does()
    assert wait_until(lambda: (r := t.get("/cut")).status == 200 and r, 10).header("X-Cache") == "MISS"
    t.says("/cut", "HIT")


def test_too_large_a_head_is_not_kept(usual: Told) -> None:
    """N3: nginx could not read it back; it is passed on and not kept, without an error."""
    usual.does(headers=[["X-Big", "b" * 9000]])
    for _ in range(2):
        r = usual.get("/big-head")
        assert (r.header("X-Cache"), len(r.header("X-Big") or "")) == ("MISS", 9000)


def test_records_of_the_log_are_not_kept(usual: Told) -> None:
    """N3: what the application logs before its head is logged once."""
    usual.does(how="log")
    usual.server.expect_log("said before the head")
    usual.says("/log", "MISS")
    usual.says("/log", "HIT")
    wait_until(lambda: usual.server.log.find("said before the head"))
    usual.says("/log", "HIT")
    assert len(usual.server.log.find("said before the head")) == 1


def test_one_request_asks_for_all(told: Callable[..., Told]) -> None:
    """N3: wsgi_cache_lock."""
    t = told(CACHED + "wsgi_cache_lock on;" + ALL, http_config="wsgi_daemon_process g threads=5;" + ZONE)
    t.does(how="wait")
    got: list[str | None] = []
    clients = [threading.Thread(target=lambda: got.append(t.get("/").header("X-Cache"))) for _ in range(4)]
    for c in clients:
        c.start()
    wait_until(lambda: len(t.calls()) == 1)
    (t.server.scratch / "go").touch()
    for c in clients:
        c.join(20)
    assert sorted(map(str, got)) == ["HIT", "HIT", "HIT", "MISS"] and len(t.calls()) == 1


def test_an_expired_answer_is_given_while_it_is_renewed(told: Callable[..., Told]) -> None:
    """N3, N11: wsgi_cache_background_update: a subrequest asks with the client's method and body; nobody waits for it."""
    t = told(
        STALE
        + """
        wsgi_cache_use_stale updating;
        wsgi_cache_background_update on;
        wsgi_cache_methods POST;
        """
        + ALL
    )
    old = t.says("/kept", "MISS")
    posted = t.says("/posted", "MISS", method="POST", body=b"with a body")
    t.expire(2)
    t.does(how="wait")
    before = len(t.calls())
    assert t.says("/kept", "STALE") == old
    wait_until(lambda: len(t.calls()) == before + 1)
    assert t.says("/kept", "UPDATING") == old
    (t.server.scratch / "go").touch()
    wait_until(lambda: t.get("/kept").text != old, 10)
    assert t.says("/posted", "STALE", method="POST", body=b"with a body") == posted
    again = wait_until(lambda: [c for c in t.calls()[before:] if c["PATH_INFO"] == "/posted"])
    assert (again[0]["REQUEST_METHOD"], again[0]["body"]) == ("POST", "with a body")


def test_an_expired_answer_is_asked_for_by_its_tag(told: Callable[..., Told]) -> None:
    """N3: wsgi_cache_revalidate: 304 makes it good again, and the connection to the worker is kept."""
    t = told(STALE + "wsgi_cache_revalidate on;" + ALL)
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    t.does(headers=[["ETag", '"t"'], ["Last-Modified", date]])
    text = t.says("/", "MISS")
    for age in (1, 60):
        t.expire(1)
        t.does(status="304 Not Modified", headers=[["ETag", '"t"'], ["Cache-Control", f"max-age={age}"]], body="")
        assert t.says("/", "REVALIDATED") == text
        # nginx notes it in the file after the client has its answer
        wait_until(lambda: not any(map(_past, t.files())), 5)
        seen = t.calls()[-1]
        assert (seen["HTTP_IF_NONE_MATCH"], seen["HTTP_IF_MODIFIED_SINCE"]) == ('"t"', date)
    assert t.says("/", "HIT") == text


def test_zones_by_variable_and_inheritance(told: Callable[..., Told]) -> None:
    """N3: the zone may be a variable, an inner block may turn the cache off, have another zone or a store."""
    t = told(
        CACHED
        + """
        location / { wsgi_script {apps}/told.wsgi; }
        location /off { wsgi_script {apps}/told.wsgi; wsgi_cache off; }
        location /other { wsgi_script {apps}/told.wsgi; wsgi_cache $arg_zone; }
        location /store { wsgi_script {apps}/told.wsgi; wsgi_store {scratch}/stored$uri; }
        """,
        http_config=GROUP + ZONE + "wsgi_cache_path {prefix}/second keys_zone=second:1m;",
    )
    t.says("/", "MISS")
    t.says("/", "HIT")
    t.says("/off", None)
    t.says("/other?zone=second", "MISS")
    t.says("/other?zone=second", "HIT")
    assert len([p for p in (t.server.prefix / "second").rglob("*") if p.is_file()]) == 1
    assert t.get("/other?zone=").header("X-Cache") is None
    text = t.says("/store", None)
    stored = t.server.scratch / "stored/store"
    wait_until(stored.exists)
    assert stored.read_text() == text
    t.server.expect_log('cache "third" not found')
    assert t.get("/other?zone=third").status == 500


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("wsgi_cache nowhere;", "wsgi_cache zone 'nowhere' is unknown"),
        ("wsgi_cache_key '';", "an empty key"),
        ("wsgi_cache z; wsgi_cache off;", '"wsgi_cache" directive is duplicate'),
        ("wsgi_cache z; wsgi_store on;", 'is incompatible with "wsgi_cache"'),
        ("wsgi_store on; wsgi_cache z;", 'is incompatible with "wsgi_store"'),
        ("wsgi_cache_valid some 1h;", "invalid status"),
        ("wsgi_cache_use_stale http_200;", 'invalid value "http_200"'),
    ],
)
def test_mistakes_fail_the_configuration_test(nginx: Callable[..., Nginx], config: str, message: str) -> None:
    """N13: with file, line and what is wrong."""
    server = nginx(config + ALL, http_config=ZONE, start=False)
    code, said = server.configtest()
    assert code != 0 and message in said and "nginx.conf:" in said, said


def test_stored_files(told: Callable[..., Told]) -> None:
    """N3: wsgi_store keeps whole answers of status 200 as files, with the mode of wsgi_store_access."""
    t = told(
        """
        wsgi_process_group g;
        wsgi_store on;
        wsgi_store_access user:rw group:rw all:r;
        location / { wsgi_script {apps}/told.wsgi; root {scratch}/www; }
        """
    )
    www = t.server.scratch / "www"
    for how in ("list", "file", "blocks"):
        t.does(how=how, body="x" * 100, times=1000)
        assert t.get(f"/dir/{how}").status == 200
        stored = wait_until(lambda how=how: (p := www / "dir" / how).exists() and p)
        assert stored.read_bytes() == b"x" * 100_000 and stored.stat().st_mode & 0o777 == 0o664
    t.does(status="404 Not Found")
    assert t.get("/none").status == 404
    t.server.allow_log(log.CUT)
    t.does(how="short", body="x" * 100, times=1000)
    assert t.get("/cut").truncated
    assert {p.name for p in www.rglob("*") if p.is_file()} == {"list", "file", "blocks"}


def test_what_is_passed_of_a_request(told: Callable[..., Told]) -> None:
    """N3: wsgi_pass_request_headers, wsgi_pass_request_body, wsgi_force_ranges."""
    t = told(
        """
        wsgi_process_group g;
        location / { wsgi_script {apps}/told.wsgi; }
        location /bare { wsgi_script {apps}/told.wsgi; wsgi_pass_request_headers off; }
        location /empty { wsgi_script {apps}/told.wsgi; wsgi_pass_request_body off; }
        location /ranges { wsgi_script {apps}/told.wsgi; wsgi_force_ranges on; }
        """
    )
    ask = {"method": "POST", "body": b"text", "headers": [("X-Own", "1"), ("Content-Type", "a/b")]}
    seen = {target: (t.get(target, **ask), t.calls()[-1])[1] for target in ("/", "/bare", "/empty")}
    assert [s["body"] for s in seen.values()] == ["text", "text", ""]
    assert ["HTTP_X_OWN" in s for s in seen.values()] == [True, False, True]
    assert [k for k in seen["/bare"] if k.startswith("HTTP_")] == []
    assert [s.get("CONTENT_LENGTH") for s in seen.values()] == ["4", "4", None]
    assert {s.get("CONTENT_TYPE") for s in seen.values()} == {"a/b"}
    t.does(body="0123456789")
    assert t.get("/", headers=[("Range", "bytes=1-3")]).status == 200
    r = t.get("/ranges", headers=[("Range", "bytes=1-3")])
    assert (r.status, r.text) == (206, "123")


def test_a_rate_of_reading(told: Callable[..., Told]) -> None:
    """N3: wsgi_limit_rate bounds what is read of an answer in a second."""
    t = told("wsgi_process_group g; wsgi_limit_rate 100k;" + ALL)
    t.does(how="blocks", body="x" * 1024, times=300)
    since = time.monotonic()
    assert len(t.get("/").body) == 300 * 1024
    assert time.monotonic() - since > 1.5


def test_far_ranges_are_the_applications(told: Callable[..., Told]) -> None:
    """N3: wsgi_cache_max_range_offset."""
    t = told(CACHED + "wsgi_cache_max_range_offset 100;" + ALL)
    t.get("/near", headers=[("Range", "bytes=50-60")])
    t.says("/near", "HIT")
    t.get("/far", headers=[("Range", "bytes=200-300")])
    assert t.calls()[-1]["HTTP_RANGE"] == "bytes=200-300"
    t.says("/far", "MISS")
