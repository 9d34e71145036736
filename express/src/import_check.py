# Run by mod-wsgi-rs express before anything is started: loads the application as a worker will, and fetches its callable.
# Ends with status 87 when all is well; any other end means failure, with the reason on standard error.
import json
import os
import site
import sys

plan = json.loads(os.environ.pop("MOD_WSGI_RS_CHECK"))
# As a worker's: python-path first, then the working directory.
if "" in sys.path:
    sys.path.remove("")
sys.path.insert(0, plan["home"])
before = list(sys.path)
for entry in plan["python_path"]:
    site.addsitedir(entry)
added = [entry for entry in sys.path if entry not in before]
named = [os.path.abspath(entry) for entry in plan["python_path"]]
added = [entry for entry in named if entry in sys.path] + [entry for entry in added if entry not in named]
sys.path[:] = added + [entry for entry in sys.path if entry not in added]


def load():
    if plan["module"]:
        import importlib

        module = importlib.import_module(plan["module"])
        where = "module " + plan["module"]
    else:
        import types

        module = types.ModuleType("_mod_wsgi_rs_check")
        module.__file__ = plan["script"]
        sys.modules[module.__name__] = module
        where = plan["script"]
        with open(plan["script"], "rb") as file:
            exec(compile(file.read(), plan["script"], "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    found = module
    for name in plan["callable"].split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            names = ", ".join(sorted(filter(is_candidate(module), vars(module))))
            hint = f"; it has {names} (choose with --callable-object)" if names else ""
            sys.stderr.write(f"{where} has no callable '{plan['callable']}'{hint}\n")
            return False
    if not callable(found):
        kind = type(found).__name__
        sys.stderr.write(f"'{plan['callable']}' in {where} is not callable: it is of type {kind}\n")
        return False
    return True


def is_candidate(module):
    """A test for names of a module that its author may have meant: its own functions, and what is called app."""

    def test(name):
        value = vars(module)[name]
        if not callable(value) or isinstance(value, type) or name.startswith("_"):
            return False
        return name in ("app", "wsgi", "wsgi_app") or getattr(value, "__module__", None) == module.__name__

    return test


status = 1
try:
    if load():
        status = 87
except BaseException:
    import traceback

    kind, error, trace = sys.exc_info()
    import importlib

    # What leads to the application is of no interest; a module that cannot be found at all has nothing else.
    ours = ("<string>", importlib.__file__)
    while trace is not None and (
        trace.tb_frame.f_code.co_filename in ours or trace.tb_frame.f_code.co_filename.startswith("<frozen importlib")
    ):
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)
try:
    sys.stdout.flush()
    sys.stderr.flush()
    if status == 87:
        # The launcher reads this last line; a system that does not say it leaves it out.
        with open("/proc/self/smaps_rollup", "rb") as file:
            share = [line.split()[1] for line in file if line.startswith(b"Pss:")]
        os.write(1, b"\nmod-wsgi-rs-check: " + share[0] + b"\n")
except (OSError, LookupError, ValueError):
    pass
finally:
    # Threads and exit functions of the application are not waited for.
    os._exit(status)
