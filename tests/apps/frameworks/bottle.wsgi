"""A Bottle application with the same pages."""

import hashlib
import os

from bottle import Bottle, redirect, request, response, static_file

application = Bottle()
HERE = os.path.dirname(os.path.abspath(__file__))


@application.get("/")
def index():
    return "bottle index"


@application.post("/form")
def form():
    return {"name": request.forms.getunicode("name"), "tags": request.forms.getall("tag"), "query": request.query.q or None}


@application.get("/count")
def count():
    n = int(request.get_cookie("n", default="0", secret="only for tests")) + 1
    response.set_cookie("n", str(n), secret="only for tests")
    return str(n)


@application.post("/upload")
def upload():
    f = request.files["file"]
    data = f.file.read()
    return {"name": f.raw_filename, "size": len(data), "sha": hashlib.sha256(data).hexdigest()}


@application.post("/json")
def json():
    return request.json


@application.get("/redirect")
def go():
    redirect("/bottle/")


@application.get("/static/<name>")
def static(name):
    return static_file(name, os.path.join(HERE, "static"))


@application.get("/stream")
def stream():
    return (f"{i}\n" for i in range(1000))
