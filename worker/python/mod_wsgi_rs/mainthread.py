"""Work that belongs into the main thread: scripts that a request loads may set signal handlers, start event loops and do
whatever else Python allows only there."""

import _thread
import os
from _collections import deque


class _Job:
    def __init__(self, function):
        self.function = function
        # Whoever gets it runs the job.
        self.claim = _thread.allocate_lock()
        self.done = _thread.allocate_lock()
        self.done.acquire()
        self.result = self.error = None

    def run(self):
        try:
            self.result = self.function()
        except BaseException as error:
            self.error = error
        self.done.release()


class MainThread:
    """The queue of such work. The main thread calls `run_pending` whenever it is woken, `stop` when it ends."""

    # How often a waiting thread looks whether the main thread still takes work, seconds.
    LOOK = 0.25

    def __init__(self, wakeup_fd):
        self._wakeup_fd = wakeup_fd
        self._ident = _thread.get_ident()
        self._jobs = deque()
        self._stopped = False

    def call(self, function):
        """What `function()` returns in the main thread, or raises there. A main thread that ends takes no more work:
        then it runs here."""
        if _thread.get_ident() == self._ident or self._stopped:
            return function()
        job = _Job(function)
        self._jobs.append(job)
        try:  # noqa: SIM105 - contextlib is not loaded in every worker
            os.write(self._wakeup_fd, b"\0")
        except BlockingIOError:
            # It is full of wake-ups.
            pass
        while not job.done.acquire(timeout=self.LOOK):
            if self._stopped and job.claim.acquire(blocking=False):
                return function()
        if job.error is not None:
            raise job.error
        return job.result

    def run_pending(self):
        while self._jobs:
            job = self._jobs.popleft()
            if job.claim.acquire(blocking=False):
                job.run()

    def stop(self):
        self._stopped = True
