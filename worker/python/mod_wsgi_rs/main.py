"""The main thread of a worker: prepares the process, loads applications, then runs signal handlers and the exit
sequence. Requests never run in it."""

import _signal
import atexit
import os
import sys
import threading
import time

from . import _worker, api, events, files, mainthread, report, scripts, streams

# Signals that mean something to a worker, and nothing to the children that its application forks.
STOP = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGUSR1)
EVENT = (_signal.SIGHUP, _signal.SIGUSR2)
# Signal on which the stacks of all threads are written to descriptor 2, also while C code holds the GIL.
STACKS = _worker.stacks_signal()


class Worker:
    def __init__(self, plan_fd):
        self.plan = _worker.start(plan_fd)
        self.wakeup_fd = self.plan["wakeup_fd"]
        self.main_thread = mainthread.MainThread(self.wakeup_fd)
        scripts.main_thread = self.main_thread

    def run(self):
        """Never returns."""
        try:
            self.prepare()
            for script, name in self.plan["preload"]:
                scripts.preload(script, name)
            for number in range(self.plan["threads"]):
                name = "wsgi-%d-%d" % (self.plan["slot"], number)
                # Daemon threads: threading._shutdown() must not wait for them.
                threading.Thread(target=self.serve, args=(number,), name=name, daemon=True).start()
            _worker.listen()
            _worker.ready(sys.version.split()[0])
        except BaseException as error:
            report.internal(error, "the start of the worker")
            _worker.flush_messages()
            os._exit(1)
        self.wait()

    def prepare(self):
        plan = self.plan
        sys.stdout = streams.LogStream(streams.STDOUT, "<stdout>", 1)
        sys.stderr = streams.LogStream(streams.STDERR, "<stderr>", 2)
        add_paths(plan["home"], plan["python_path"])
        import faulthandler

        faulthandler.enable(file=2)
        faulthandler.register(STACKS, file=2, all_threads=True, chain=False)
        _signal.set_wakeup_fd(self.wakeup_fd, warn_on_full_buffer=False)
        for number in STOP:
            _signal.signal(number, self.on_stop)
        for number in EVENT:
            _signal.signal(number, self.on_signal)
        self.forking = threading.local()
        os.register_at_fork(
            before=self.before_fork, after_in_parent=self.after_fork_in_parent, after_in_child=self.after_fork_in_child
        )
        api.install(plan)
        if plan["reload_on_changes"]:
            files.begin()
        _worker.configure(
            file_wrapper=api.FileWrapper,
            load=scripts.load,
            report=events.exception,
            missing=report.missing,
            started=events.request_started,
            finished=events.request_finished,
            request_timeout=api.RequestTimeout,
        )

    def base(self, number):
        """The entries of environ that are the same in every request of a thread. The server's own entries come on top;
        those that PEP 3333 requires are there even if a server leaves them out."""
        plan = self.plan
        return {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": "",
            "QUERY_STRING": "",
            "SERVER_NAME": "",
            "SERVER_PORT": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": None,
            "wsgi.errors": streams.errors,
            "wsgi.multithread": plan["threads"] != 1,
            "wsgi.multiprocess": plan["multiprocess"],
            "wsgi.run_once": False,
            "wsgi.file_wrapper": api.FileWrapper,
            "wsgi.input_terminated": True,
            "mod_wsgi.version": api.VERSION,
            "mod_wsgi.process_group": plan["group"],
            "mod_wsgi.application_group": plan["application"],
            "mod_wsgi.callable_object": "application",
            "mod_wsgi.request_handler": "wsgi-script",
            "mod_wsgi.handler_script": "",
            "mod_wsgi.thread_id": number,
        }

    def serve(self, number):
        base = self.base(number)
        while True:
            started = time.monotonic()
            try:
                _worker.serve(number, base)
            except BaseException as error:
                report.internal(error, "serving thread %d, which goes on" % number)
            if time.monotonic() - started < 1:
                time.sleep(1)

    def on_stop(self, number, _frame):
        if number == _signal.SIGUSR1 and _worker.evict():
            return
        reason = "graceful_signal" if number == _signal.SIGUSR1 else "shutdown_signal"
        _worker.request_exit(reason, self.plan["shutdown_timeout"])

    def on_signal(self, number, _frame):
        events.process_signal(number, "SIGHUP" if number == _signal.SIGHUP else "SIGUSR2")

    def before_fork(self):
        """A signal that reached the child before it has its own dispositions would be lost there: it has to wait."""
        self.forking.mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, STOP + EVENT)

    def after_fork_in_parent(self):
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self.forking.mask)

    def after_fork_in_child(self):
        """In a child that the application forked: nothing of ours stays open, and its signals are its own."""
        _worker.after_fork_in_child()
        other = _signal.set_wakeup_fd(-1)
        if other not in (-1, self.wakeup_fd):
            _signal.set_wakeup_fd(other)
        for number in STOP + EVENT:
            if _signal.getsignal(number) in (self.on_stop, self.on_signal):
                own = _signal.default_int_handler if number == _signal.SIGINT else _signal.SIG_DFL
                _signal.signal(number, own)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self.forking.mask)

    def wait(self):
        while True:
            try:
                files.report()
                reason = _worker.wait(files.interval)
            except BaseException as error:
                report.internal(error, "a signal handler")
                continue
            if reason is not None:
                break
            self.main_thread.run_pending()
        self.main_thread.stop()
        self.stop(reason)

    def stop(self, reason):
        """The exit sequence. The control thread ends the process at the deadline, wherever this has got to."""
        _worker.wait_idle()
        for what, step in (
            ("the subscribers of process_stopping", lambda: events.process_stopping(reason)),
            ("the end of the application's threads", threading._shutdown),
            ("atexit functions", atexit._run_exitfuncs),
            ("the flush of the standard streams", flush_streams),
        ):
            try:
                step()
            except BaseException as error:
                report.internal(error, what)
        _worker.flush_messages()
        os._exit(0)


def flush_streams():
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()


def add_paths(home, python_path):
    """python-path as site directories, with their .pth files, moved to the front in their order; home before them."""
    if python_path:
        import site

        before = list(sys.path)
        for directory in python_path:
            site.addsitedir(directory)
        added = [entry for entry in sys.path if entry not in before]
        known = [entry for entry in map(os.path.abspath, python_path) if entry in before]
        front = known + added
        sys.path[:] = front + [entry for entry in sys.path if entry not in front]
    if home:
        sys.path.insert(0, home)
