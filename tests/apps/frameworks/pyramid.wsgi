"""A Pyramid application with the same pages."""

import hashlib
import os

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPFound
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory

HERE = os.path.dirname(os.path.abspath(__file__))


def index(request):
    return Response("pyramid index")


def form(request):
    return {"name": request.POST["name"], "tags": request.POST.getall("tag"), "query": request.GET.get("q")}


def count(request):
    request.session["n"] = request.session.get("n", 0) + 1
    return Response(str(request.session["n"]))


def upload(request):
    f = request.POST["file"]
    data = f.file.read()
    return {"name": f.filename, "size": len(data), "sha": hashlib.sha256(data).hexdigest()}


def json(request):
    return request.json_body


def go(request):
    return HTTPFound(location="/pyramid/")


def stream(request):
    return Response(app_iter=(b"%d\n" % i for i in range(1000)), content_type="text/plain")


with Configurator(session_factory=SignedCookieSessionFactory("only for tests")) as config:
    for name, view, renderer in (("", index, None), ("form", form, "json"), ("count", count, None), ("upload", upload, "json"),
                                 ("json", json, "json"), ("redirect", go, None), ("stream", stream, None)):
        config.add_route(name or "index", "/" + name)
        config.add_view(view, route_name=name or "index", renderer=renderer)
    config.add_static_view("static", os.path.join(HERE, "static"))
    application = config.make_wsgi_app()
