"""Exit code and summary of a whole run, given the outcomes of its parts."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bids_app.app.participant import _close
from bids_app.console import Console
from bids_app.plan.problems import Problem
from bids_app.settings import Settings

SETTINGS = Settings(Path("/bids"), Path("/out"), "participant")


def plan(name, subject="01"):
    return SimpleNamespace(name=name, visit=SimpleNamespace(subject=subject))


@pytest.mark.parametrize(
    ("plans", "done", "problems", "code"),
    [
        (["a"], [], [], 0),
        ([], ["a"], [], 0),
        (["a"], [], [("a", 65, True)], 65),
        (["a"], [], [("a", 74, True)], 74),
        (["a"], [], [("a", 65, False)], 1),  # only the PET failed; the results of the T1w remain
        (["a"], [], [(None, 65, True)], 1),  # a PET was excluded beforehand
        ([], ["a"], [(None, 65, True)], 1),  # the same in a second run
        (["a", "b"], [], [("b", 65, True)], 1),  # two sessions of one person, one of which failed
        (["a", "b"], [], [("a", 65, True), ("b", 66, True)], 65),
        (["a", "b"], [], [("a", 65, True), ("b", 1, True)], 1),
    ],
)
def test_the_exit_code(plans, done, problems, code, capsys):
    told = [Problem("01", "sentence", number, visit, fatal) for visit, number, fatal in problems]
    assert _close([*map(plan, plans)], [*map(plan, done)], told, SETTINGS, Console()) == code
    said = capsys.readouterr().out
    troubled = {visit for visit, _, _ in problems}
    made = len(set(plans) - troubled)
    assert f"{made} visit{'s' * (made != 1)} done, {len(done)} already complete" in said
