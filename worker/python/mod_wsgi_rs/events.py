"""Subscribers of events: requests, signals, the end of the process. Without subscribers a request costs nothing here."""

import os
import time

from . import _worker, report

event_callbacks = []
shutdown_callbacks = []
signal_callbacks = []


def subscribe_events(callback):
    """Calls `callback(name, **payload)` for every event; returns it, so that it can be used as a decorator."""
    event_callbacks.append(callback)
    _worker.want_events(True)
    return callback


def subscribe_shutdown(callback):
    """Calls `callback(name, **payload)` when the process is about to end."""
    shutdown_callbacks.append(callback)
    return callback


def subscribe_signals(callback):
    """Calls `callback(name, **payload)` in the main thread for SIGHUP and SIGUSR2."""
    signal_callbacks.append(callback)
    return callback


def publish(callbacks, name, payload):
    """Calls each in order; a dictionary that one returns is merged into what later ones see."""
    for callback in list(callbacks):
        try:
            result = callback(name, **payload)
        except BaseException as error:
            report.internal(error, "a subscriber of the event %s" % name)
            continue
        if isinstance(result, dict):
            payload.update(result)
    return payload


def request_started(environ, application, thread):
    """Returns the application to call: a subscriber may have wrapped it."""
    now = time.time()
    data = _worker.request_data()
    payload = {
        "request_id": environ.get("mod_wsgi.request_id", ""),
        "thread_id": thread,
        "server_pid": environ.get("mod_wsgi.server_pid", ""),
        "request_start": _number(environ.get("mod_wsgi.request_start")),
        "queue_start": _number(environ.get("mod_wsgi.queue_start")),
        "daemon_start": now,
        "application_start": now,
        "application_object": application,
        "callable_object": environ.get("mod_wsgi.callable_object", ""),
        "request_environ": environ,
        "request_data": data,
    }
    payload = publish(event_callbacks, "request_started", payload)
    data["mod_wsgi.application_start"] = now
    return payload["application_object"]


def request_finished(environ, status, reads, input_length, writes, output_length):
    now = time.time()
    data = _worker.request_data()
    payload = {
        "request_id": environ.get("mod_wsgi.request_id", ""),
        "request_environ": environ,
        "request_data": data,
        "status": status,
        "input_reads": reads,
        "input_length": input_length,
        "output_writes": writes,
        "output_length": output_length,
        "application_finish": now,
        "application_time": now - data.pop("mod_wsgi.application_start", now),
    }
    publish(event_callbacks, "request_finished", payload)


def exception(error, script):
    """What left an application: to the log, and to subscribers."""
    report.exception(error, script)
    if not event_callbacks:
        return
    try:
        data = _worker.request_data()
    except RuntimeError:
        return
    payload = {"exception_info": (type(error), error, error.__traceback__), "request_data": data}
    publish(event_callbacks, "request_exception", payload)


def process_signal(number, name):
    payload = {"signal": number, "signal_name": name, "process_id": os.getpid()}
    publish(signal_callbacks, "process_signal", payload)
    publish(event_callbacks, "process_signal", payload)


def process_stopping(reason):
    payload = {"shutdown_reason": reason}
    publish(event_callbacks, "process_stopping", payload)
    publish(shutdown_callbacks, "process_stopping", payload)


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return 0.0
