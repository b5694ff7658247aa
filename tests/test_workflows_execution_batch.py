"""Graph on a cluster: SLURM's commands are replaced by shell scripts, but jobs are real."""

import os
from pathlib import Path

import pytest
from nipype.pipeline.plugins import SLURMPlugin
from nodes import Die, GpuNote, Note, Refuse, TorchNote
from test_workflows_execution import Run

from bids_app import lifeline
from bids_app.errors import UsageError
from bids_app.workflows import execution
from bids_app.workflows.execution import label_nodes

pytestmark = pytest.mark.slow
SBATCH = """#!/bin/bash
echo "$@" >> {folder}/asked
while [ $# -gt 1 ]; do case $1 in -o) out=$2; shift;; esac; shift; done
bash "$1" > "$out" 2>&1 &
mv "$out" "${{out//%j/$!}}" 2> /dev/null
echo "Submitted batch job $!"
"""
SQUEUE = """#!/bin/bash
kill -0 "$2" 2> /dev/null && echo "$2 debug running"
true
"""
SLURM = {"plugin": "SLURM", "plugin_args": {"sbatch_args": "--partition=debug"}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in (("sbatch", SBATCH.format(folder=tmp_path)), ("squeue", SQUEUE)):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.delenv("LOGNAME", raising=False)
    monkeypatch.setattr(execution, "POLLING", 0.1)
    monkeypatch.setattr(execution, "WAITING", 1.0)
    return Run(tmp_path)


@pytest.fixture
def asked(tmp_path):
    return lambda: (tmp_path / "asked").read_text().splitlines()


def test_nodes_are_jobs_that_ask_for_what_they_need(run, asked):
    first = run.node(Note, "first", n_procs=3, mem_gb=1.5)
    run.workflow.connect(first, "word", run.node(TorchNote, "second"), "after")
    assert run.go(plugin=SLURM) == []
    assert set(run.noted()) == {"first", "second"}
    assert [str(os.getpid())] not in run.noted().values()
    one, other = asked()
    assert one.startswith("--partition=debug --cpus-per-task=3 --mem=2560M ")
    assert "--cpus-per-task=1 " in other
    assert ("second", "end") in run.statuses


@pytest.mark.parametrize(
    ("told", "times"),
    [("", 1), ("--gres=gpu:a100:1", 1), ("--gpus-per-task=1", 0), ("-G 1", 0), ("--mem=4G", 1)],
)
def test_a_step_that_wants_a_gpu_asks_for_one(run, asked, told, times):
    run.node(GpuNote, "trains")
    run.node(Note, "beside")
    assert run.go(plugin={"plugin": "SLURM", "plugin_args": {"sbatch_args": told}}) == []
    lines = {("trains" in line): line for line in asked()}
    assert lines[True].count("--gres=gpu") == times
    assert lines[False].count("--gres=gpu:1") == 0


def test_what_the_file_asks_for_is_left_alone(run, asked):
    run.node(Note, "first", n_procs=3)
    arguments = {"sbatch_args": "--mem=8G -c 2"}
    assert run.go(plugin={"plugin": "SLURM", "plugin_args": arguments}) == []
    (line,) = asked()
    assert line.startswith("--mem=8G -c 2 ")
    assert "--cpus-per-task" not in line
    assert line.count("--mem") == 1


def test_a_job_that_is_gone_is_told_and_the_others_go_on(run):
    died = run.node(Die, "die")
    run.workflow.connect(died, "word", run.node(Note, "behind"), "after")
    run.node(Note, "beside")
    (crash,) = run.go(plugin=SLURM)
    assert crash.node == "graph.die"
    assert crash.exit_code == 1
    assert crash.sentence.startswith("graph.die: job ")
    assert "ended without a result" in crash.sentence
    assert "memory or time" in crash.sentence
    assert "\n" not in crash.sentence
    assert set(run.noted()) == {"die", "beside"}
    assert ("die", "exception") in run.statuses


def test_bad_data_is_told_as_on_one_machine(run):
    label_nodes(run.node(Refuse, "refuse"), owner="01", label="sub-01", part="s1", fatal=False)
    (crash,) = run.go(plugin=SLURM)
    assert (crash.owner, crash.label, crash.part, crash.fatal) == ("01", "sub-01", "s1", False)
    assert crash.sentence == "/data/sub-01_T1w.nii.gz: all voxels are equal; export it again"
    assert crash.exit_code == 65


def test_a_run_goes_on_where_a_cluster_left_it(run):
    """After a lost job, the same nodes are run on one machine."""
    run.workflow.connect(run.node(Note, "first"), "word", run.node(Note, "second"), "after")
    assert run.go(plugin=SLURM) == []
    assert run.go() == []
    assert {word: len(ids) for word, ids in run.noted().items()} == {"first": 1, "second": 1}


def test_jobs_are_cancelled_when_the_run_is_told_to_end(run, tmp_path, monkeypatch):
    """Otherwise, they would run in parallel with those of the next run, in the same folders."""
    scancel = tmp_path / "bin" / "scancel"
    scancel.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/cancelled\n')
    scancel.chmod(0o755)
    look = SLURMPlugin._is_pending

    def end_while_a_job_is_pending(plugin, taskid):
        for act in lifeline._last_acts:
            act()
        return look(plugin, taskid)

    monkeypatch.setattr(SLURMPlugin, "_is_pending", end_while_a_job_is_pending)
    run.node(Note, "first")
    assert run.go(plugin=SLURM) == []
    cancelled = set((tmp_path / "cancelled").read_text().split())
    assert len(cancelled) == 1
    assert cancelled.pop().isdigit()
    assert not lifeline._last_acts


def test_the_last_error_of_its_log_is_told(tmp_path):
    (tmp_path / "slurm-7.out").write_text("a\nslurmstepd: error: Detected 1 oom_kill event\nb\n")
    (tmp_path / "slurm-8.out").write_text("error: of another job\n")
    told = execution._sentence(7, "graph.node", tmp_path)
    assert "(slurmstepd: error: Detected 1 oom_kill event)" in told
    assert "another" not in told
    assert "()" not in execution._sentence(9, "graph.node", tmp_path)


@pytest.mark.parametrize(
    ("name", "said"), [("SLURMGraph", "before its jobs"), ("Slurmy", "no plugin 'Slurmy'")]
)
def test_plugins_that_cannot_do_are_refused(run, name, said):
    run.node(Note, "first")
    with pytest.raises(UsageError, match=said):
        run.go(plugin={"plugin": name, "plugin_args": {}})


def test_accounts_without_a_name_have_one(monkeypatch):
    def nobody():
        raise KeyError("uid not found")

    environment = {}
    monkeypatch.setattr("getpass.getuser", nobody)
    execution.name_user(environment)
    assert environment == {"LOGNAME": f"uid{os.getuid()}"}
    environment["LOGNAME"] = "me"
    execution.name_user(environment)
    assert environment == {"LOGNAME": "me"}
