"""Execution of participants in order, with each report written as soon as possible."""

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nipype.pipeline.engine import Node, Workflow
from nodes import Note, Refuse
from phantoms import add_t1w, write_dataset

from bids_app.app import group, participant, run, train
from bids_app.cli import main
from bids_app.console import Console
from bids_app.errors import ReadWriteError
from bids_app.plan.problems import Problem
from bids_app.settings import Settings


def plan(subject, session, *kinds):
    """Return the plan of a visit whose graph has nodes of these kinds, one after the other."""
    return SimpleNamespace(
        name=f"sub_{subject}_ses_{session}_wf",
        label=f"sub-{subject} ses-{session}",
        kinds=kinds,
        visit=SimpleNamespace(subject=subject),
        paths=SimpleNamespace(preprocessed=(), synthesized=()),
    )


def test_a_participant_is_told_of_after_the_last_visit_and_before_the_next_one(
    tmp_path, monkeypatch
):
    log = tmp_path / "log"

    def build(plan, _run):
        graph = Workflow(plan.name)
        graph.add_nodes(
            [Node(kind(log=str(log), word=plan.name), name="note") for kind in plan.kinds]
        )
        return graph

    def finished(subject, problems):
        noted = [line.split()[0] for line in log.read_text().splitlines()]
        told.append((subject, noted, [problem.visit for problem in problems]))

    told = []
    monkeypatch.setattr(run, "init_visit_wf", build)
    (tmp_path / "logs").mkdir()
    plans = [plan("b", 1, Note), plan("b", 2, Refuse), plan("b", 3, Note), plan("a", 1, Note)]
    settings = Settings(
        Path("/bids"), tmp_path, "participant", work_dir=tmp_path / "work", nprocs=1, mem_gb=4.0
    )
    runner = run.Runner(settings, Console(), "mri2pet", len(plans))
    run.compute(plans, None, runner, on_finished=finished)
    first, second, third = (plans[n].name for n in (0, 2, 3))
    assert told == [
        ("b", [first, second], [plans[1].name]),
        ("a", [first, second, third], [plans[1].name]),
    ]


@pytest.mark.parametrize("given", [True, False])
def test_no_release_goes_on_with_the_intermediate_files_of_another(tmp_path, monkeypatch, given):
    """Neither with nodes nor with checkpoints, which do not depend on the release otherwise."""
    out, root = tmp_path / "out", tmp_path / ("work" if given else "out/.work")
    settings = Settings(Path("/bids"), out, "train", work_dir=root if given else None)
    own = run.work_dir_of(settings)
    assert own == root / version("mri2pet").rpartition(".")[0]
    own.mkdir(parents=True)
    (root / "mine").mkdir()
    (root / "1.2").touch()  # not a folder
    assert run.describe_old_work(settings) == []
    monkeypatch.setattr(run, "RELEASE", "9.9")
    assert run.work_dir_of(settings) == root / "9.9"
    (note,) = run.describe_old_work(settings)
    assert note.startswith(f"{own}: contains intermediate files of another version, which")
    assert str(root / "9.9") in note


def test_steps_with_words_and_all_that_fail_are_told_of_line_by_line(capsys):
    def node(name, step, part="s1"):
        return SimpleNamespace(name=name, step=step, part=part)

    with Console().progress({"s1": "sub-01"}, {"s1": 3}) as tell:
        for one, status in [
            (node("encoder_1", "encoder of fold 1"), "start"),
            (node("mask", ""), "start"),
            (node("encoder_1", "encoder of fold 1"), "end"),
            (node("mask", ""), "exception"),
            (node("slab_1_2", "slab 2"), "exception"),
            (node("aside", "aside", "s2"), "exception"),
        ]:
            tell(one, status)
    assert capsys.readouterr().err.splitlines() == [
        "sub-01: encoder of fold 1 started",
        "sub-01: encoder of fold 1 done",
        "sub-01: mask FAILED",
        "sub-01: slab 2 FAILED",
    ]


@pytest.fixture
def raw(tmp_path):
    root = write_dataset(tmp_path / "raw")
    for subject in ("01", "02"):
        add_t1w(root, subject, np.random.default_rng(1))
    return root


def test_report_and_tables_are_written_when_a_participant_is_done(raw, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []

    def compute(plans, *_, on_finished):
        on_finished("01", [Problem("01", "sub-01: broken", 65, plans[0].name)])
        seen.extend(sorted(path.name for path in out.glob("*.html")))
        seen.append((out / "participants.tsv").exists())
        (out / "sub-01.html").rename(out / "kept.html")
        return [Problem("01", "sub-01: broken", 65, plans[0].name)]

    monkeypatch.setattr(participant, "compute", compute)
    words = ("participant", "--sloppy", "--skip-bids-validation")
    assert main([str(raw), str(out), *words]) == 1
    assert seen == ["sub-01.html", True]
    assert "sub-01: broken" in (out / "kept.html").read_text()
    assert (out / "sub-02.html").exists()
    assert not (out / "sub-01.html").exists()  # it is not written twice


def test_a_report_that_cannot_be_written_does_not_keep_others_from_being_computed(
    raw, tmp_path, monkeypatch
):
    write, failing = participant.write_subject_report, [True]

    def write_second_time(*args, **told):
        if failing.pop() if failing else False:
            raise ReadWriteError("/out/sub-01.html: cannot be written")
        return write(*args, **told)

    def compute(plans, *_, on_finished):
        on_finished("01", [])
        return []

    monkeypatch.setattr(participant, "write_subject_report", write_second_time)
    monkeypatch.setattr(participant, "compute", compute)
    words = ("participant", "--sloppy", "--skip-bids-validation")
    assert main([str(raw), str(tmp_path / "out"), *words]) == 0
    assert (tmp_path / "out" / "sub-01.html").exists()


@pytest.mark.parametrize("level", ["train", "group"])
def test_reports_that_are_written_again_can_fail_and_a_dry_run_writes_none(
    raw, tmp_path, monkeypatch, capsys, level
):
    out, failing = tmp_path / "out", []

    def write(output_dir, **_):
        if failing:
            raise ReadWriteError("a table is damaged")
        (output_dir / "page.html").write_text("")
        return output_dir / "page.html"

    monkeypatch.setattr(train, "write_training_report", write)
    monkeypatch.setattr(group, "write_group_report", write)
    monkeypatch.setattr(group, "_report_patients", lambda *_: [])
    out.mkdir()
    (out / run.RESULTS[level]).write_text("")
    before = set(out.rglob("*"))
    command = [str(raw), str(out), level, "--reports-only"]
    assert main([*command, "--dry-run"]) == 0
    assert f"the report would be written to {out / level}.html" in capsys.readouterr().out
    assert set(out.rglob("*")) == before
    assert main(command) == 0
    assert (out / "page.html").exists()
    failing.append(True)
    capsys.readouterr()
    assert main(command) == 1
    said = "".join(capsys.readouterr())
    assert f"{level}.html: a table is damaged" in said
    assert "reports written, 1 failed" in said
