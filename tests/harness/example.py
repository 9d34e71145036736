"""The projects of examples/, made ready as their README says."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

from . import product


def own(where: pathlib.Path) -> None:
    """Gives a directory to the user that serves."""
    if product.IS_ROOT:
        user, group = product.server_user()
        for p in [where, *where.rglob("*")]:
            shutil.chown(p, user, group)


def place(name: str, where: pathlib.Path) -> pathlib.Path:
    """A copy of the example, with what its README tells to do before the start."""
    target = where / name
    ignore = shutil.ignore_patterns("__pycache__", "data", ".venv", "*.pyc")
    shutil.copytree(product.ROOT / "examples" / name, target, ignore=ignore)
    if name == "django":
        python = str(product.venv() / "bin" / "python")
        env = {**os.environ, "DJANGO_SUPERUSER_PASSWORD": "only-for-tests"}
        env.pop("DJANGO_DATA", None)
        for command in (
            ["migrate"],
            ["collectstatic", "--noinput"],
            ["createsuperuser", "--noinput", "--username", "boss", "--email", "boss@example.org"],
        ):
            subprocess.run([python, "manage.py", *command], cwd=target, env=env, check=True, capture_output=True)
        own(target / "data")
    return target
