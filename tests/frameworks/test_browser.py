"""W14: Django's admin, driven by headless Chromium: login, add with an upload, search, change, delete, logout."""

from __future__ import annotations

import hashlib
import os

import pytest

from harness import browser, product
from harness.example import place
from harness.plan import Plan, Script
from harness.server import Server

READ_LINK = """
const done = arguments[arguments.length - 1];
fetch(arguments[0]).then(r => r.arrayBuffer().then(b => crypto.subtle.digest('SHA-256', b).then(h => done(
    [r.status, b.byteLength, Array.from(new Uint8Array(h)).map(x => x.toString(16).padStart(2, '0')).join('')]))))
    .catch(e => done(String(e)));
"""


def test_admin(serve) -> None:
    """W14, N1, N16: a person's way through Django's admin; pages with their style, a 3 MB upload and its download."""
    why = browser.missing()
    if why:
        pytest.skip(why)
    server: Server = serve(start=False)
    where = place("django", server.apps / "examples")
    server.plan(
        Plan(
            f"python-home={product.venv()} home={where} processes=2 threads=5 env=DJANGO_DATA={where}/data",
            Script(f"{where}/project/wsgi.py"),
            files={"/static/": f"{where}/data/static"},
            own={"apache": "AddType text/javascript .js\nAddType image/svg+xml .svg"},
        )
    )
    server.start()
    data = os.urandom(3_000_000)
    upload = server.prefix / "attached file.bin"
    upload.write_bytes(data)
    site = f"http://127.0.0.1:{server.port}"
    with browser.browser() as b:
        b.open(f"{site}/admin/")
        assert "/admin/login/" in b.url and "Log in" in b.title
        b.type("#id_username", "boss")
        b.type("#id_password", "wrong")
        b.click("input[type=submit]")
        b.expect(".errornote", "correct username and password")
        b.clear("#id_username")
        b.type("#id_username", "boss")
        b.type("#id_password", "only-for-tests")
        b.click("input[type=submit]")
        b.expect("#content h1", "Site administration")
        assert b.url == f"{site}/admin/"
        # the style sheet has come: the header has its colour
        colour = b.run("return getComputedStyle(document.querySelector('#header')).backgroundColor")
        assert colour not in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)"), colour

        b.click(".model-note .addlink")
        b.type("#id_title", "Gr\u00fc\u00dfe \u2603 from a browser")
        b.type("#id_text", "first line\nsecond line <b>&amp;")
        b.type("#id_attachment", str(upload))
        b.click("input[name=_continue]")
        b.expect(".messagelist", "was added successfully")
        assert b.run("return document.querySelector('#id_text').value") == "first line\nsecond line <b>&amp;"
        pk = b.url.split("/")[-3]
        status, size, sha = b.fetch(READ_LINK, f"{site}/attachment/{pk}/")
        assert (status, size, sha) == (200, len(data), hashlib.sha256(data).hexdigest())

        b.open(f"{site}/admin/notes/note/")
        b.type("#searchbar", "Gr\u00fc\u00dfe")
        b.click("#changelist-search input[type=submit]")
        b.expect(".paginator", "1 note")
        b.expect("#result_list", "\u2603")
        b.click("#result_list tbody th a")
        b.clear("#id_title")
        b.type("#id_title", "Changed")
        b.click("input[name=_save]")
        b.expect(".messagelist", "was changed successfully")
        b.open(f"{site}/admin/notes/note/")
        b.expect("#result_list", "Changed")
        b.click("#result_list tbody th a")
        b.click(".deletelink")
        b.click("#content form input[type=submit]")
        b.expect(".messagelist", "was deleted successfully")
        assert not b.run("return document.querySelector('#result_list')")
        b.click("#logout-form button")
        b.expect("#content h1", "Logged out")
        b.open(f"{site}/admin/")
        assert "/admin/login/" in b.url
        complaints = [c for c in b.complaints() if "/favicon.ico" not in c]
    assert not complaints, complaints
