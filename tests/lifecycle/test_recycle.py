"""Workers are replaced on requests, age, idleness, processor time and memory (L1): new first, one at a time, nothing
lost; each reason works alone, with every other at its default."""

from __future__ import annotations

import pytest

from harness.life import in_background, server
from harness.load import Load
from harness.plan import Plan
from harness.server import Server
from harness.wait import wait_until

pytestmark = pytest.mark.ours


def reasons(one: Server) -> list[str]:
    """Why workers have stopped, as their subscribers were told."""
    path = one.scratch / "stopping"
    return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []


def replaced(one: Server, before: set[int], reason: str) -> None:
    """Waits until none of the workers is left, and all were told why."""
    wait_until(lambda: one.ready() and not one.ready() & before, 10, f"other workers than {before}")
    wait_until(lambda: len(reasons(one)) >= len(before), 10, "subscribers are told")
    assert set(reasons(one)) == {reason}


@pytest.mark.everywhere
def test_maximum_requests(serve) -> None:
    """L1: under load no worker serves many more requests than it may, and no request is lost."""
    one = server(serve, "maximum-requests=200 maximum-requests-jitter=50", processes=2)
    with Load(one.port, "/sleep?0.005", clients=4) as load:
        wait_until(lambda: len({r.text for r in load.results}) >= 6, 60, "the third generation serves")
    assert not load.bad, load.bad[:5]
    served: dict[str, int] = {}
    for r in load.results:
        served[r.text] = served.get(r.text, 0) + 1
    # the time a successor takes to start is served by the old one
    assert max(served.values()) < 1500, served
    wait_until(lambda: "maximum_requests" in reasons(one))
    assert set(reasons(one)) == {"maximum_requests"}


def test_maximum_requests_is_exact_in_its_count(serve) -> None:
    """L1: a worker is due with its last request, not before; health checks do not count."""
    one = server(serve, "maximum-requests=5 health-check-path=/live health-check-path=/other")
    before = one.ready()
    for _ in range(4):
        one.get("/")
    for _ in range(20):
        assert one.get("/live?deep").status == 200
        assert one.get("/other").status == 200
    assert not one.log.find("is replaced") and one.ready() == before
    one.get("/live/not")
    one.log.wait("is replaced: it has served 5 requests")
    replaced(one, before, "maximum_requests")


def test_restart_interval(serve) -> None:
    """L1: workers are replaced at their age, each at its own, also when nothing is asked of them."""
    one = server(serve, "restart-interval=1 restart-interval-jitter=0.5", processes=2)
    before = one.ready()
    assert not reasons(one)
    replaced(one, before, "restart_interval")


def test_inactivity(serve) -> None:
    """L1: armed by the first request, re-armed by each, not by health checks; a request under way is activity."""
    one = server(serve, "inactivity-timeout=1 health-check-path=/live")
    before = one.ready()
    one.get("/live")
    one.get("/sleep?1.6")
    assert one.ready() == before, "a request that runs is activity; before the first there is nothing to time"
    # nothing but health checks, which go on and on: they hold nothing up
    wait_until(lambda: one.get("/live") and not one.ready() & before, 10, "replaced although it is asked")
    replaced(one, before, "inactivity_timeout")
    fresh = one.ready()
    one.get("/sleep?1.5")
    assert one.ready() == fresh


def test_inactivity_waits_for_the_first_request(serve) -> None:
    """L1: a worker that nobody has asked anything but whether it lives is not replaced."""
    one = server(serve, "inactivity-timeout=0.3 health-check-path=/live")
    before = one.ready()
    one.get("/sleep?0")
    replaced(one, before, "inactivity_timeout")
    idle = one.ready()
    one.get("/live")
    with pytest.raises(AssertionError):
        wait_until(lambda: one.ready() != idle, 1.5)


def test_cpu_time_limit(serve) -> None:
    """L1: processor time counts, waiting does not; the application sees no signal."""
    one = server(serve, "cpu-time-limit=1.5")
    before = one.ready()
    one.get("/sleep?1.8")
    assert one.ready() == before
    r = one.get("/spin?1.6")
    assert r.status == 200 and int(r.text.split()[0]) in before, "the request that used it up ends well"
    replaced(one, before, "cpu_time_limit")


def test_max_rss(serve) -> None:
    """L1: a worker that has grown is replaced; the request that made it grow ends well."""
    one = server(serve, "max-rss=100M")
    before = one.ready()
    assert one.get("/grow?20").status == 200
    assert one.ready() == before
    assert one.get("/grow?100").status == 200
    replaced(one, before, "memory_limit")


@pytest.mark.parametrize("option", ["memory-limit", "virtual-memory-limit"])
def test_memory_limits(serve, option: str) -> None:
    """L1: as in mod_wsgi an allocation beyond the limit fails; the worker goes on."""
    one = server(serve, f"{option}=600M")
    before = one.ready()
    assert one.get("/alloc?50").text.endswith(" allocated")
    assert one.get("/alloc?700").text.endswith(" MemoryError")
    assert one.ready() == before


def test_one_at_a_time(serve) -> None:
    """L1: four workers due at once are replaced one after the other: never fewer than four are ready, and never more
    than one (reload-surge) runs or starts besides them."""
    one = server(serve, "maximum-requests=30", processes=4)
    before = one.ready()
    few, many = [], []

    def gone() -> bool:
        states = [w["state"] for w in one.workers()]
        few.append(states.count("ready"))
        many.append(states.count("ready") + states.count("starting"))
        return not one.ready() & before

    with Load(one.port, "/sleep?0.01", clients=8) as load:
        wait_until(gone, 30, "all are replaced")
    assert not load.bad, load.bad[:5]
    assert min(few) >= 4, few
    assert max(many) == 5, many


def test_surge_nothing(serve) -> None:
    """L1: reload-surge=0: the old worker ends first, never is there one more, on its way out or not; one at a time."""
    one = server(serve, "maximum-requests=50 reload-surge=0", processes=2)
    before = one.ready()
    most, few = [], []

    def gone() -> bool:
        states = [w["state"] for w in one.workers()]
        most.append(len(states))
        few.append(states.count("ready"))
        return not one.ready() & before

    with Load(one.port, "/sleep?0.005", clients=4) as load:
        wait_until(gone, 30, "all are replaced")
    assert not load.bad, load.bad[:5]
    assert max(most) == 2 and min(few) == 1, (most, few)


def test_surge_nothing_waits_for_the_old(serve) -> None:
    """L1: two of them may not fit into memory: as long as the old worker has a request to finish no other one starts;
    what comes meanwhile waits."""
    one = server(serve, "reload-surge=0")
    (old,) = one.ready()
    slow = in_background(lambda: one.get("/sleep?1.5", timeout=20))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    ordered = in_background(lambda: one.ctl("reload", "g"))
    wait_until(lambda: [w["state"] for w in one.workers()] == ["draining"])
    waits = in_background(lambda: one.get("/", timeout=20))
    most = []
    wait_until(lambda: most.append(len(one.workers())) or ordered, 30, "the reload has ended")
    assert max(most) == 1, most
    assert wait_until(lambda: slow, 5)[0].status == 200 and int(slow[0].text.split()[0]) == old
    assert wait_until(lambda: waits, 10)[0].status == 200 and int(waits[0].text.split()[0]) != old


def test_surge_nothing_of_one_process(serve) -> None:
    """L1: the same with a single process: requests wait while there is none."""
    one = server(serve, "maximum-requests=40 reload-surge=0")
    with Load(one.port, clients=4) as load:
        wait_until(lambda: len({r.text for r in load.results}) >= 3, 60, "the third worker serves")
    assert not load.bad, load.bad[:5]


def test_a_dead_worker_is_replaced_while_a_reload_is_refused(serve) -> None:
    """L5: a broken new version leaves the old one serving; when one of the old workers dies its place is tried again
    without the traceback being repeated, and taken once the code is mended."""
    one = serve(Plan("processes=2 threads=3"))
    wait_until(lambda: len(one.ready()) == 2)
    good = (one.apps / "life.wsgi").read_text()
    one.expect_log("MWR0308")
    one.expect_log("MWR0306")
    one.log.allow(r"MWR0433|Traceback|  File |ValueError|    \S")
    before = one.ready()
    one.write("life.wsgi", "raise ValueError('deliberate')\n")
    one.get("/")
    one.log.wait("MWR0308")
    assert one.ready() == before
    victim = min(before)
    next(p for p in one.processes() if p.pid == victim).kill()
    one.log.wait("has 1 of 2 workers; one is tried again")
    assert len(one.log.find("ValueError: deliberate")) <= 2, "once in the worker's lines, once in MWR0308"
    assert one.get("/").status == 200
    one.write("life.wsgi", good)
    one.get("/")
    wait_until(lambda: len(one.ready()) == 2 and not one.ready() & before, 15, "all new")


def refuses(one: Server) -> None:
    """Orders a reload of code that cannot be loaded."""
    one.expect_log("MWR0308")
    one.log.allow(r"MWR0433|Traceback|  File |ValueError|    \S")
    one.write("life.wsgi", "raise ValueError('deliberate')\n")
    assert "MWR0618" in one.ctl("reload", "g", ok=False)


def starts(one: Server) -> list[int]:
    """How many workers the group's pools have started so far."""
    return [p["starts"] for p in one.pools() if p["group"] == "g"]


def test_a_refused_reload_holds_up_recycling(serve) -> None:
    """L1, L5: a worker that is due is kept, and nothing is tried beside it, while its successor could not load the code;
    with the code mended it goes, and the next one is due in its turn."""
    one = server(serve, "maximum-requests=5")
    good = (one.apps / "life.wsgi").read_text()
    refuses(one)
    before, started = one.ready(), starts(one)
    for _ in range(20):
        assert one.get("/").status == 200
    wait_until(lambda: any(w["due"] == "maximum_requests" for w in one.workers()))
    with pytest.raises(AssertionError):
        wait_until(lambda: starts(one) != started, 1.5)
    assert one.ready() == before and one.pools()[0]["blocked"]
    one.write("life.wsgi", good)
    one.ctl("reload", "g")
    after = one.ready()
    assert after and not after & before and not one.pools()[0]["blocked"]
    wait_until(lambda: one.get("/").status == 200 and not one.ready() & after, 20, "recycling goes on")


def test_a_version_that_loads_again_takes_over(serve) -> None:
    """L5: a worker that took a dead one's place and could load the mended code shows that it can be: the others follow,
    though nobody has asked for anything."""
    one = server(serve, processes=3)
    good = (one.apps / "life.wsgi").read_text()
    before = one.ready()
    refuses(one)
    one.expect_log("MWR0306")
    victim = min(before)
    next(p for p in one.processes() if p.pid == victim).kill()
    one.log.wait("has 2 of 3 workers; one is tried again")
    one.write("life.wsgi", good)
    wait_until(lambda: len(one.ready()) == 3 and not one.ready() & before, 20, "all are new")
    assert not any(p["blocked"] for p in one.pools())
