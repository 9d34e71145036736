"""Server-sent events: one number a second, each sent as soon as it is yielded.

Every open stream keeps one thread of the worker busy; give the worker as many threads as there may be streams.
"""

import time

PAGE = b"""<!doctype html>
<meta charset="utf-8">
<title>Server-sent events</title>
<h1>Server-sent events</h1>
<ul id="events"></ul>
<script>
const source = new EventSource("events");
source.onmessage = (event) => {
  const item = document.createElement("li");
  item.textContent = event.data;
  document.getElementById("events").append(item);
};
source.addEventListener("end", () => source.close());
</script>
"""


def events(count, interval):
    for number in range(1, count + 1):
        yield f"id: {number}\ndata: event {number} of {count}\n\n".encode()
        time.sleep(interval)
    yield b"event: end\ndata: that was all\n\n"


def number(query, name, default, limit):
    """A number of the query string such as count=3."""
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if key == name:
            try:
                return min(max(float(value), 0), limit)
            except ValueError:
                break
    return default


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/events":
        query = environ["QUERY_STRING"]
        count = int(number(query, "count", 10, 1000))
        interval = number(query, "interval", 1.0, 60.0)
        start_response("200 OK", [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")])
        return events(count, interval)
    if path == "/":
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(PAGE)))])
        return [PAGE]
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"not found\n"]
