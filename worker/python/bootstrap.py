"""Starts a worker: checks the interpreter, loads the extension and the package mod_wsgi_rs, hands over to them.

Runs inside `python -c PROGRAM` (mod_wsgi_wire::plan::PROGRAM) with `plan_fd` and `bootstrap_fd` among its globals. It
is one file that imports no sibling, so that no name of ours can shadow a module of the application. Everything about
the interpreter is checked before the extension is loaded: loading it into another kind of interpreter would corrupt
memory rather than fail.
"""

import os
import sys

MINIMUM = (3, 10)


def fail(code, text):
    """Ends the process with one line that names both sides."""
    line = "%s: %s (interpreter %s)\n" % (code, " ".join(text.split()), sys.executable or "unknown")
    os.write(2, line.encode("utf-8", "backslashreplace"))
    os._exit(1)


def machine(path):
    """Word size and processor of an ELF file."""
    with open(path, "rb", 0) as f:
        head = f.read(20)
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return None
    return (64 if head[4] == 2 else 32), int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")


def check_interpreter():
    name = sys.implementation.name
    if name != "cpython":
        fail("MWR0401", "this is %s, the worker needs CPython %d.%d or later" % ((name,) + MINIMUM))
    if sys.version_info[:2] < MINIMUM:
        found = "%d.%d" % sys.version_info[:2]
        fail("MWR0402", "this is CPython %s, the worker needs %d.%d or later" % ((found,) + MINIMUM))
    if "t" in sys.abiflags:
        fail("MWR0403", "this is a free-threaded build of CPython, the worker needs one with the GIL")
    if sys.maxsize < 2**32:
        fail("MWR0404", "this interpreter has 32-bit words, the worker has 64-bit words")
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        libc = None
    if not (libc or "").startswith("glibc"):
        fail("MWR0405", "this interpreter uses another C library, the worker needs glibc")


def plan_number(text, name):
    """The number of a descriptor in the plan. The name in quotes cannot occur inside a JSON string: there, quotes are
    escaped. The `json` module would cost each worker a megabyte."""
    at = text.index(b'"%s"' % name.encode()) + len(name) + 2
    digits = text[at:].lstrip(b" \t\r\n:")
    end = 0
    while digits[end : end + 1].isdigit():
        end += 1
    return int(digits[:end])


def worker_directory(fd):
    """A path to the worker's files: the real one if this user can reach it, else through the descriptor."""
    through = "/proc/self/fd/%d" % fd
    try:
        real = os.readlink(through)
        same = os.path.samestat(os.stat(real), os.stat(through))
        if same and os.access(os.path.join(real, "_worker.abi3.so"), os.R_OK):
            return real
    except OSError:
        pass
    return through


def load(directory):
    from _frozen_importlib import _load
    from _frozen_importlib_external import ExtensionFileLoader, SourceFileLoader, spec_from_file_location

    extension = os.path.join(directory, "_worker.abi3.so")
    package = os.path.join(directory, "mod_wsgi_rs")
    init = os.path.join(package, "__init__.py")
    try:
        found, wanted = machine("/proc/self/exe"), machine(extension)
    except OSError as e:
        fail("MWR0406", "the worker's files cannot be read: %s" % e)
    if wanted is None or found is not None and found != wanted:
        fail("MWR0404", "this interpreter is for machine %s, the worker for %s" % (found, wanted))
    try:
        loader = SourceFileLoader("mod_wsgi_rs", init)
        spec = spec_from_file_location("mod_wsgi_rs", init, loader=loader, submodule_search_locations=[package])
        parent = _load(spec)
        loader = ExtensionFileLoader("mod_wsgi_rs._worker", extension)
        spec = spec_from_file_location("mod_wsgi_rs._worker", extension, loader=loader)
        parent._worker = _load(spec)
        from mod_wsgi_rs import main
    except Exception as e:
        fail("MWR0407", "the worker's files in %s cannot be loaded: %s: %s" % (directory, type(e).__name__, e))
    return main


def start():
    check_interpreter()
    # `-c` puts the working directory first; home and python-path take its place.
    if sys.path and sys.path[0] == "":
        del sys.path[0]
    sys.argv[:] = ["mod_wsgi"]
    try:
        directory_fd = plan_number(os.pread(plan_fd, 1 << 24, 0), "worker_dir")  # noqa: F821
    except (OSError, ValueError) as e:
        fail("MWR0408", "the plan of this worker cannot be read: %s" % e)
    directory = worker_directory(directory_fd)
    main = load(directory)
    # The package imports all its modules at once: nothing is looked up through the directory later.
    os.close(bootstrap_fd)  # noqa: F821
    os.close(directory_fd)
    try:
        worker = main.Worker(plan_fd)  # noqa: F821
    except Exception as e:
        fail("MWR0408", "the worker cannot start: %s: %s" % (type(e).__name__, e))
    worker.run()


start()
