"""W16: docs/compatibility.md keeps its word: each difference from mod_wsgi names a test that exists and runs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from harness import product

PAGE = product.ROOT / "docs" / "compatibility.md"
HEAD = ["subject", "mod_wsgi", "here", "why", "test"]


def rows() -> list[list[str]]:
    """The table's rows as cells."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells[0] == HEAD and set("".join(cells[1])) == {"-"}
    return cells[2:]


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The tests that pytest finds in the files that the page names, without their parameters; none that is skipped
    whatever the machine."""
    files = sorted(set(re.findall(r"tests/[\w/]+\.py", PAGE.read_text())))
    missing = [f for f in files if not (product.ROOT / f).is_file()]
    assert not missing, missing
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    out = subprocess.run(command, cwd=product.ROOT, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stdout[-2000:] + out.stderr[-2000:]
    return {line.split("[")[0] for line in out.stdout.splitlines() if "::" in line}


def test_rows_are_complete() -> None:
    """Five cells, none empty, no difference without a reason, each subject once."""
    found = rows()
    assert len(found) > 30
    for row in found:
        assert len(row) == len(HEAD) and all(row), row
        assert row[1] != row[2], row
    subjects = [row[0] for row in found]
    assert len(set(subjects)) == len(subjects)


def test_each_row_names_a_test(collected: set[str]) -> None:
    """Each row's test is collected."""
    missing = [(row[0], row[4]) for row in rows() if row[4] not in collected]
    assert not missing, missing


def test_tests_named_in_the_text(collected: set[str]) -> None:
    """So is every other test that the page names."""
    named = set(re.findall(r"tests/[\w/]+\.py::\w+", PAGE.read_text()))
    assert named <= collected, named - collected


def test_tests_do_not_skip_themselves() -> None:
    """None of them is marked to be skipped."""
    for row in rows():
        file, name = row[4].split("::")
        text = (product.ROOT / file).read_text()
        block = text[: text.index(f"def {name}(")].rpartition("\n\n\n")[2]
        assert "mark.skip" not in block and "mark.xfail" not in block and "mark.long" not in block, row


def test_linked() -> None:
    """The page can be found from the front page."""
    assert "docs/compatibility.md" in (product.ROOT / "README.md").read_text()
