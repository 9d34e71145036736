"""L14: the list of clauses in tests/lifecycle names tests that exist."""

from __future__ import annotations

import re

from harness import product

HERE = product.ROOT / "tests" / "lifecycle"


def test_named_tests_exist() -> None:
    """Each row names a test, each test that is named is there, and each file of this directory is named."""
    text = (HERE / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| L")]
    assert len(rows) > 40
    assert all("test_" in row.split("|")[2] for row in rows)
    for file, name in re.findall(r"`([\w./]+\.py)(?:::(\w+))?`", text):
        source = (HERE / file).read_text()
        assert not name or re.search(rf"^def {name}\(", source, re.M), (file, name)
    # these show requirements of other lists
    unnamed = {p.name for p in HERE.glob("test_*.py") if p.name not in text} - {
        "test_brisk.py",
        "test_logs.py",
        "test_readiness.py",
    }
    assert not unnamed
