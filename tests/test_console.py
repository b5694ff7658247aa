"""Lines that a run prints."""

from types import SimpleNamespace

from bids_app.console import Console


def test_how_many_are_done_is_told_with_the_time_that_is_left(capsys):
    parts = {"a": "sub-01", "b": "sub-02", "c": "sub-03"}
    with Console().progress(parts, {"a": 2, "b": 1, "c": 1, "d": 1}) as tell:
        for part, step, status in (
            ("a", "brain extraction", "start"),
            ("a", "brain extraction", "end"),
            ("d", "something else", "end"),
            ("a", "", "end"),
            ("b", "bias field", "exception"),
            ("c", "", "end"),
        ):
            tell(SimpleNamespace(part=part, step=step, name="node"), status)
    assert capsys.readouterr().err.splitlines() == [
        "sub-01: brain extraction started",
        "sub-01: brain extraction done",
        "1 of 3 done, less than a minute left",
        "sub-02: bias field FAILED",
        "2 of 3 done, less than a minute left",
    ]


def test_a_terminal_without_width_loses_no_messages(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    console = Console()
    console.fail("broken")
    console.close("done")
    assert capsys.readouterr() == ("done\n", "error: broken\n")


def test_of_one_part_no_count_is_told(capsys):
    with Console().progress({"a": "sub-01"}, {"a": 1}) as tell:
        tell(SimpleNamespace(part="a", step="", name="node"), "end")
    assert capsys.readouterr().err == ""
