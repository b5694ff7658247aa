"""Every promise of README.md, docs/usage.md and docs/errors.md is checked by an existing test."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (.+) \| `(tests/[\w/]+\.py)::(\w+)` \|$", re.MULTILINE)
PROMISES = ROW.findall((ROOT / "docs" / "promises.md").read_text(encoding="utf-8"))


@cache
def names_in(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@cache
def promised():
    files = (ROOT / "README.md", ROOT / "docs" / "usage.md", ROOT / "docs" / "errors.md")
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return " ".join(text.replace("\n> ", " ").split())


def test_every_row_is_understood():
    table = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    assert len(PROMISES) == table.count("\n| ") - 1  # without the header
    assert len(PROMISES) > 30


@pytest.mark.parametrize(("promise", "file", "test"), PROMISES)
def test_a_promise_stands_there_and_so_does_its_test(promise, file, test):
    assert promise in promised()
    assert test.startswith("test_")
    assert test in names_in(file)
