"""A Flask application with a form, a session and an upload."""

import hashlib

from flask import Flask, jsonify, redirect, request, session

application = Flask(__name__, static_folder="static")
application.secret_key = "only for tests"


@application.get("/")
def index():
    return "flask index"


@application.post("/form")
def form():
    return jsonify(name=request.form["name"], tags=request.form.getlist("tag"), query=request.args.get("q"))


@application.get("/count")
def count():
    session["n"] = session.get("n", 0) + 1
    return str(session["n"])


@application.post("/upload")
def upload():
    f = request.files["file"]
    data = f.read()
    return jsonify(name=f.filename, size=len(data), sha=hashlib.sha256(data).hexdigest())


@application.post("/json")
def json():
    return jsonify(request.get_json())


@application.get("/redirect")
def go():
    return redirect("/flask/")


@application.get("/stream")
def stream():
    return application.response_class((f"{i}\n" for i in range(1000)), mimetype="text/plain")
