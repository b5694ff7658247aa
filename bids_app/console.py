"""Output of a run on the terminal, or line by line in a log."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bids_app.errors import count_noun
from bids_app.visit import Selection

WIDEST = 1_000_000  # characters per line: in a file, cells are not wrapped
USUAL = 80  # characters per line of a terminal
NONE = "—"  # empty cell of a table
HOUR = 60  # min


class LabelledNode(Protocol):
    """Node with labels for display; see :func:`bids_app.workflows.execution.label_nodes`."""

    name: str
    part: str
    step: str


StatusCallback = Callable[[LabelledNode, str], None]


class Console:
    """Messages on standard error, and one closing line on standard output."""

    def __init__(self) -> None:
        # File names may look like markup ([bold]) or the name of an emoji (:cat:)
        plain = partial(RichConsole, soft_wrap=True, highlight=False, markup=False, emoji=False)
        self.console, self.out = plain(stderr=True), plain()
        for console in (self.console, self.out):
            if console.width == 0:  # as COLUMNS=0 says; rich would then print nothing
                console.width = USUAL

    def say(self, text: str) -> None:
        """Print a message about normal progress."""
        self.console.print(text)

    def warn(self, text: str) -> None:
        """Print a warning that a reader of the results should know."""
        self.console.print(f"warning: {text}", style="yellow")

    def fail(self, text: str) -> None:
        """Print an error, in one sentence."""
        self.console.print(f"error: {text}", style="bold red")

    def close(self, text: str) -> None:
        """Print the closing line of a run."""
        self.out.print(text)

    def report_estimate(self, text: str) -> None:
        """Print the resources that a run would need, on standard output like the tables."""
        self.out.print(text)

    def report_selection(self, selection: Selection, root: Path) -> None:
        """Print tables of the images that are used, and of those that are not, with the reason."""

        def name(path: Path | None) -> str:
            return NONE if path is None else str(path.relative_to(root.absolute()))

        used = [
            (
                visit.subject,
                visit.session or NONE,
                name(visit.t1w.path),
                "\n".join(name(pet.path) for pet in visit.pets) or NONE,
                "\n".join(visit.notes),
            )
            for visit in selection.visits
        ]
        self._print_table("Used", ("participant", "session", "T1w", "PET", "remarks"), used)
        if selection.unused:
            unused = [(entry.subject, name(entry.path), entry.reason) for entry in selection.unused]
            self._print_table("Not used", ("participant", "image", "why"), unused)

    def report_used(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str | Path | None]],
        notes: Sequence[str],
        root: Path,
    ) -> None:
        """Print a table of participants and the images that are used, and notes on the others.

        Paths lie in ``root``; a session or an image that is None is not there.
        """

        def cell(value: str | Path | None) -> str:
            return str(value.relative_to(root)) if isinstance(value, Path) else value or NONE

        self._print_table("Used", columns, [[cell(value) for value in row] for row in rows])
        for note in notes:
            self.out.print(note)

    def _print_table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Print a table, or a list if the terminal is too narrow; names are never truncated."""
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*map(Text, row))
        before, self.out.width = self.out.width, WIDEST
        width = self.out.measure(table).maximum
        if not self.out.is_terminal or width <= before:
            self.out.width = width
            self.out.print(table)
            self.out.width = before
            return
        self.out.width = before
        self.out.print(title)
        for row in rows:
            cells = (
                (name, line)
                for name, cell in zip(columns, row, strict=True)
                for line in cell.split("\n")
                if line
            )
            for place, (name, line) in enumerate(cells):
                self.out.print(f"{'-' if place == 0 else ' '} {name}: {line}")

    @contextmanager
    def progress(
        self, labels: Mapping[str, str], steps: Mapping[str, int]
    ) -> Iterator[StatusCallback]:
        """Show the progress of each part of a run until the block ends.

        Nodes without a description of their step are shown only if they fail.

        Parameters
        ----------
        labels : mapping
            Display names of the parts; other parts are not shown.
        steps : mapping
            Number of nodes of each part.

        Yields
        ------
        callable
            Callback for (node, status), as :func:`run_graph` calls it.
        """
        if self.console.is_terminal:
            yield from self._bars(labels, steps)
        else:
            yield self._lines(labels, steps)

    def _bars(
        self, labels: Mapping[str, str], steps: Mapping[str, int]
    ) -> Iterator[StatusCallback]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[step]}"),
        )
        with Progress(*columns, console=self.console) as bars:
            tasks = {
                part: bars.add_task(label, total=steps[part], step="", start=False)
                for part, label in labels.items()
            }

            def report(node: LabelledNode, status: str) -> None:
                if node.part not in tasks:
                    return
                task = tasks[node.part]
                if status == "start":
                    bars.start_task(task)
                    if node.step:
                        bars.update(task, step=node.step)
                elif status == "end":
                    bars.advance(task)
                else:
                    bars.update(task, step=f"failed: {node.step or node.name}")

            yield report

    def _lines(self, labels: Mapping[str, str], steps: Mapping[str, int]) -> StatusCallback:
        remaining, started = {part: steps[part] for part in labels}, time.monotonic()

        def report(node: LabelledNode, status: str) -> None:
            if node.part not in labels:
                return
            if node.step or status == "exception":
                word = {"start": "started", "end": "done", "exception": "FAILED"}[status]
                self.say(f"{labels[node.part]}: {node.step or node.name} {word}")
            if status == "end":
                remaining[node.part] -= 1
                if not remaining[node.part] and len(labels) > 1:
                    done = sum(not count for count in remaining.values())
                    seconds = (time.monotonic() - started) * (len(labels) - done) / done
                    self.say(f"{done} of {len(labels)} done{describe_left(seconds)}")

        return report


def describe_left(seconds: float) -> str:
    """Format the estimated remaining time as the end of a progress message.

    Examples
    --------
    >>> describe_left(0.0), describe_left(40.0), describe_left(200.0), describe_left(9000.0)
    ('', ', less than a minute left', ', about 3 min left', ', about 2.5 h left')
    """
    if not seconds:
        return ""
    minutes = seconds / 60
    if minutes < 1:
        return ", less than a minute left"
    return (
        f", about {minutes:.0f} min left"
        if minutes < HOUR
        else f", about {minutes / 60:.1f} h left"
    )


def list_troubled(labels: Sequence[str]) -> str:
    """Count and list the participants with images that a dry run finds unusable.

    Examples
    --------
    >>> list_troubled([]), list_troubled(["sub-01"]), list_troubled(["sub-01", "sub-02"])
    ('0 have problems', '1 has problems (sub-01)', '2 have problems (sub-01, sub-02)')
    """
    verb = "has" if len(labels) == 1 else "have"
    return f"{len(labels)} {verb} problems" + (f" ({', '.join(labels)})" if labels else "")


def count_line(done: int, skipped: int, failed: Sequence[str], output_dir: Path) -> str:
    """Write the closing line of a participant run.

    Examples
    --------
    >>> count_line(2, 1, [], Path("/out"))
    'mri2pet: 2 visits done, 1 already complete, 0 failed; reports are in /out'
    """
    names = f" ({', '.join(failed)})" if failed else ""
    return (
        f"mri2pet: {count_noun(done, 'visit')} done, {skipped} already complete, "
        f"{len(failed)} failed{names}; "
        f"reports are in {output_dir}"
    )
