"""N1: the configuration that the project promises, word for word but for paths and account, serves the Django example."""

from __future__ import annotations

import pathlib
import re

import pytest

from harness import product
from harness.example import own, place
from harness.nginx import Nginx
from harness.server import running

PROMISED = """
load_module modules/ngx_http_wsgi_rs_module.so;
http {
    wsgi_daemon_process blog processes=2 threads=15 python-home=/srv/blog/venv user=blog group=blog;
    server {
        location / { wsgi_script /srv/blog/app.wsgi; wsgi_process_group blog; }
        location /static/ { alias /srv/blog/static/; }
    }
}
"""
SCRIPT = """
import os, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from project.wsgi import application
"""


class Blog(Nginx):
    """nginx with that configuration, and with what any nginx needs that is not the machine's only one: a port and files
    of its own. It is root, and its worker processes are nobody's but nginx's default user's."""

    def text(self) -> str:
        where = self.apps / "blog"
        user, group = product.server_user()
        text = PROMISED
        for promised, here in (
            ("modules/ngx_http_wsgi_rs_module.so", str(product.nginx_module())),
            ("/srv/blog/venv", str(product.venv())),
            ("/srv/blog/static/", f"{where}/data/static/"),
            ("/srv/blog/", f"{where}/"),
            ("user=blog group=blog", f"user={user} group={group}"),
        ):
            assert promised in text
            text = text.replace(promised, here)
        paths = (f"{n}_temp_path {self.prefix}/tmp-{n};" for n in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        files = f"access_log {self.logs}/access.log; types {{ text/css css; }} wsgi_temp_path {self.prefix}/tmp-wsgi;"
        main = f"daemon off;\npid {self.run}/nginx.pid;\nerror_log {self.error_log} info;\nevents {{ }}\n"
        # without this line nginx's user is the one it was built for, which need not be there
        main += f"user {user} {group};\n"
        text = text.replace("http {", f"{main}http {{ {' '.join(paths)} {files}")
        return text.replace("server {", f"server {{ listen 127.0.0.1:{self.port};")


@pytest.mark.root
def test_the_promised_configuration() -> None:
    """N1: pages, a form with its token and an upload, static files; the workers are the group's user's."""
    server = Blog()
    where = place("django", server.apps)
    where = where.rename(server.apps / "blog")
    (where / "app.wsgi").write_text(SCRIPT)
    own(where / "data")
    with running(server):
        page = server.get("/")
        assert page.status == 200 and page.complete, page.text
        cookies = [("Cookie", v.split(";")[0]) for v in page.all("Set-Cookie")]
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
        assert token and cookies
        names = set(re.findall(r'<(?:input|textarea)[^>]* name="(\w+)"', page.text)) - {
            "csrfmiddlewaretoken",
            "attachment",
        }
        data = bytes(range(256)) * 1000
        edge = "mwr-boundary-77a"
        body = b""
        for name, value in {**dict.fromkeys(names, "a note"), "csrfmiddlewaretoken": token[1]}.items():
            body += f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        body += f'--{edge}\r\nContent-Disposition: form-data; name="attachment"; filename="f.bin"\r\n\r\n'.encode()
        body += data + f"\r\n--{edge}--\r\n".encode()
        kind = ("Content-Type", f"multipart/form-data; boundary={edge}")
        assert server.get("/", method="POST", headers=[*cookies, kind], body=body).status == 302
        page = server.get("/")
        link = re.search(r'href="(/attachment/\d+/)"', page.text)
        assert "a note" in page.text and link
        assert server.get(link[1]).body == data
        styles = re.findall(r'href="(/static/[^"]+\.css)"', page.text)
        assert styles
        for style in styles:
            r = server.get(style)
            assert r.status == 200 and r.header("Content-Type") == "text/css"
            assert r.body == (where / "data" / style.lstrip("/")).read_bytes()
        user, _ = product.server_user()
        workers = server.ready("blog")
        assert len(workers) == 2 and {pathlib.Path(f"/proc/{pid}").owner() for pid in workers} == {user}
