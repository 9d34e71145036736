"""A small Flask application: a page, a JSON answer, a form and a log record."""

from flask import Flask, jsonify, render_template_string, request

app = Flask(__name__)

PAGE = """<!doctype html>
<title>Flask</title>
<h1>Hello, {{ name }}</h1>
<form method="post"><input name="name" value="{{ name }}"> <button>Greet</button></form>
"""


@app.route("/", methods=["GET", "POST"])
def index():
    name = request.form.get("name", "world")
    app.logger.info("greeting %s", name)
    return render_template_string(PAGE, name=name)


@app.route("/api/echo", methods=["POST"])
def echo():
    return jsonify(received=request.get_json(), agent=request.headers.get("User-Agent", ""))
