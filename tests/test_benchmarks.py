"""Check that what the benchmarks, which are run by hand, use of the app exists."""

import ast
import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def imported(tree):
    """Return the objects of the app that a benchmark imports at the top, by their names there."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bids_app"):
            for alias in node.names:
                module = import_module(node.module)
                if not hasattr(module, alias.name):
                    import_module(f"{node.module}.{alias.name}")
                if node in tree.body:
                    found[alias.asname or alias.name] = getattr(module, alias.name)
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_uses_of_the_app_is_there(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known = imported(tree)
    modules = {name: one for name, one in known.items() if isinstance(one, ModuleType)}
    for node in ast.walk(tree):
        own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if own and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f"{path}:{node.lineno}"
        if isinstance(node, ast.Call):
            refuse_other_arguments(path, node, known)


def refuse_other_arguments(path, call, known):
    """Fail if a function of the app is called with arguments that it does not accept."""
    function = call.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        called = getattr(known.get(function.value.id), function.attr, None)
    else:
        called = known.get(function.id) if isinstance(function, ast.Name) else None
    spread = any(isinstance(one, ast.Starred) for one in call.args)
    if not inspect.isfunction(called) or spread or any(k.arg is None for k in call.keywords):
        return
    keywords = {keyword.arg: None for keyword in call.keywords}
    try:
        inspect.signature(called).bind(*call.args, **keywords)
    except TypeError as error:
        pytest.fail(f"{path}:{call.lineno}: {called.__name__}: {error}")
