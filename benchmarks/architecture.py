"""Count what the architecture is judged by: modules, code lines, records, and what a run passes.

    python benchmarks/architecture.py [--trace LABEL MRI2PET-ARGUMENTS…]

Code lines are lines that hold code, without docstrings; records are dataclasses. ``--trace``
follows a run in this process (its nodes run in others, as always). It counts the functions of the
app that are called before the first graph (not bodies of classes and modules, nor comprehensions),
and the kinds of record whose text names LABEL: before the first graph, before the first cluster
table is written, and in the whole run:

    python benchmarks/architecture.py --trace control01 BIDS OUT participant --sloppy
    python benchmarks/architecture.py --trace sub-control01_trc BIDS OUT group --sloppy
"""

import ast
import inspect
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[1] / "bids_app"
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
TABLES = ("write_control_clusters", "write_all_clusters")  # functions of the group level


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the line numbers of all docstrings."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            lines |= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return lines


def code_lines(source: str) -> int:
    """Count the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(source)))


def records(tree: ast.Module) -> Iterator[str]:
    """List the names of the dataclasses of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names = {ast.unparse(name).partition("(")[0] for name in node.decorator_list}
            if names & {"dataclass", "dataclasses.dataclass"}:
                yield node.name


def count() -> None:
    """Print the counts of the code in the working tree."""
    sources = [path.read_text() for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    trees = [ast.parse(source) for source in sources]
    classes = Counter(
        node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)
    )
    lines = sum(map(code_lines, sources))
    found = sum(len(list(records(tree))) for tree in trees)
    print(f"modules                              {len(sources)}")
    print(f"code lines                           {lines}")
    print(f"modules per thousand lines           {1000 * len(sources) / lines:.1f}")
    print(f"records                              {found}")
    print(f"records per thousand lines           {1000 * found / lines:.1f}")
    print(f"names of classes in several modules  {sum(n > 1 for n in classes.values())}")


class Watch:
    """Profiler of a run: functions called before its first graph, and kinds of record."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.functions: set[tuple[str, str]] = set()
        self.kinds: dict[str, None] = {}  # in the order in which they appear
        self.counts: dict[str, int] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call or a return; the signature is that of :func:`sys.setprofile`."""
        code = frame.f_code
        if event == "call" and not self.counts and code.co_filename.startswith(str(ROOT)):
            if code.co_flags & inspect.CO_OPTIMIZED and code.co_name[0] != "<":
                self.functions.add((code.co_filename, code.co_qualname))
            if code.co_name == "run_graph":
                self.counts["before the first node"] = len(self.kinds)
        elif event == "return" and code.co_name in TABLES:
            self.counts.setdefault("until the first cluster table", len(self.kinds))
        elif event == "return" and (code.co_name, code.co_filename) == ("__init__", "<string>"):
            self._note_record(frame.f_locals.get("self"))

    def _note_record(self, made: object) -> None:
        name = f"{type(made).__module__}.{type(made).__name__}"
        if name.startswith("bids_app") and name not in self.kinds and self.label in repr(made):
            self.kinds[name] = None


def trace(label: str, arguments: list[str]) -> None:
    """Print what a run calls before its first graph, and the records it creates by stage."""
    from bids_app.cli import parse, run_level

    watch = Watch(label)
    sys.argv = ["mri2pet", *arguments]  # the record of a run contains the command line, hence LABEL
    sys.setprofile(watch)
    try:
        run_level(parse(arguments))
    finally:
        sys.setprofile(None)
    print(f"functions before the first node      {len(watch.functions)}")
    print(f"kinds of record that name {label}, in the order in which they appear:")
    for name in watch.kinds:
        print(f"    {name}")
    for until, number in {**watch.counts, "in all": len(watch.kinds)}.items():
        print(f"{until:36} {number}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trace"]:
        trace(sys.argv[2], sys.argv[3:])
    else:
        count()
