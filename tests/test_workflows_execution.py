import os
import signal
import time
from collections import defaultdict
from itertools import pairwise
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from nipype.pipeline.engine import Node, Workflow
from nipype.pipeline.plugins.multiproc import MultiProcPlugin
from nodes import (
    Die,
    DieOnce,
    GpuNote,
    Hoard,
    HoardBeside,
    Note,
    NoteScore,
    Refuse,
    SlowerNote,
    SlowNote,
    Stumble,
    TorchNote,
)
from scipy.sparse import lil_matrix

from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.lifeline import WORKER_SCORE, start_fork_server
from bids_app.resources import Resources
from bids_app.workflows.execution import (
    SeparatedMultiProcPlugin,
    _Dependencies,
    _read_crash,
    label_nodes,
    run_graph,
)

pytestmark = pytest.mark.slow


class Run:
    """Graph of nodes that log their execution."""

    def __init__(self, folder: Path) -> None:
        self.log, self.logs, self.statuses = folder / "log", folder / "logs", []
        self.logs.mkdir(exist_ok=True)
        self.workflow = Workflow("graph", base_dir=str(folder / "work"))

    def node(self, kind, word, **resources):
        node = Node(kind(log=str(self.log), word=word), name=word, **resources)
        self.workflow.add_nodes([node])
        return node

    def visit(self, name, *kinds, **resources):
        """Add a nested graph: nodes one after the other, visit_0, visit_1 and so on."""
        graph = Workflow(name)
        nodes = [
            Node(kind(log=str(self.log), word=f"{name}_{n}"), name=f"{name}_{n}", **resources)
            for n, kind in enumerate(kinds)
        ]
        graph.add_nodes(nodes)
        for one, other in pairwise(nodes):
            graph.connect(one, "word", other, "after")
        label_nodes(graph, part=name)
        self.workflow.add_nodes([graph])
        return nodes

    def go(self, *, nprocs=2, plugin=None, **more):
        return run_graph(
            self.workflow,
            resources=Resources(nprocs, 4.0),
            plugin=plugin,
            logs=self.logs,
            on_status=lambda node, status: self.statuses.append((node.name, status)),
            **{"stop_on_first_crash": False, **more},
        )

    def noted(self):
        """Return word → ids of the processes that logged it."""
        ids = defaultdict(list)
        for line in self.log.read_text().splitlines() if self.log.exists() else []:
            word, process = line.split()
            ids[word].append(process)
        return ids


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_one_participant_that_fails_leaves_the_others_alone(run):
    refuse, stumble = run.node(Refuse, "refuse"), run.node(Stumble, "stumble")
    run.workflow.connect(refuse, "word", run.node(Note, "behind"), "after")
    run.node(Note, "beside")
    crashes = {crash.node.split(".")[-1]: crash for crash in run.go()}
    assert set(crashes) == {refuse.name, stumble.name}
    refused = crashes["refuse"]
    assert refused.sentence == "/data/sub-01_T1w.nii.gz: all voxels are equal; export it again"
    assert refused.exit_code == UnusableDataError.exit_code
    unforeseen = crashes["stumble"]
    assert unforeseen.sentence.startswith("graph.stumble: ZeroDivisionError: by zero")
    assert unforeseen.exit_code == 1
    for crash in crashes.values():
        assert crash.file.parent == run.logs
        assert "Traceback" in crash.file.read_text()
        assert str(crash.file) in unforeseen.sentence or crash is refused
    assert set(run.noted()) == {"beside"}
    assert set(run.statuses) == {
        ("beside", "start"),
        ("beside", "end"),
        ("refuse", "start"),
        ("refuse", "exception"),
        ("stumble", "start"),
        ("stumble", "exception"),
    }


def test_a_killed_process_is_reported_and_its_neighbour_completes(run):
    run.node(Die, "die")
    first, second = run.node(Note, "first"), run.node(Note, "second")
    run.workflow.connect(first, "word", second, "after")
    (crash,) = run.go()
    assert crash.node == "graph.die"
    assert "memory" in crash.sentence
    assert "--mem-gb" in crash.sentence
    assert crash.exit_code == 1
    noted = run.noted()
    assert len(noted["die"]) == 2  # tried once more, in its own process
    assert noted["second"]


def test_what_was_killed_once_is_tried_again(run):
    run.workflow.connect(run.node(DieOnce, "once"), "word", run.node(Note, "behind"), "after")
    assert run.go() == []
    assert set(run.noted()) == {"once", "behind"}


def test_where_memory_runs_out_a_worker_is_killed_and_not_the_run(run):
    run.node(NoteScore, "score")
    assert run.go() == []
    assert int(run.log.read_text().split()[0].removeprefix("score")) >= WORKER_SCORE


def test_what_a_node_uses_is_measured_and_not_what_the_one_before_it_did(run):
    """One process runs them all, so its peak memory would never decrease."""
    used = {}
    nodes = run.visit("visit", Hoard, Note, HoardBeside, SlowNote)
    run.go(nprocs=1, on_used=lambda node, told: used.update({node.name: told}))
    assert len({process for ids in run.noted().values() for process in ids}) == 1
    hoard, note, beside, slow = (used[node.name] for node in nodes)
    assert 0.29 < hoard["peak_rss_gb"] - note["peak_rss_gb"] < 0.6
    assert 0.29 < beside["peak_rss_gb"] - note["peak_rss_gb"] < 0.6
    assert abs(slow["peak_rss_gb"] - note["peak_rss_gb"]) < 0.2
    assert beside["cpu_seconds"] > 1
    assert slow["cpu_seconds"] < beside["cpu_seconds"] / 2
    assert slow["wall_seconds"] > 0.3


def test_a_node_that_fails_is_measured_and_one_that_was_done_is_not(run):
    used = []
    run.node(Refuse, "refuse")
    run.node(Note, "note")
    for _ in range(2):
        run.go(on_used=lambda node, _: used.append(node.name))
    assert sorted(used) == ["note", "refuse", "refuse"]


def test_steps_that_want_the_gpu_wait_for_one_another(run, monkeypatch):
    """All of them want the same GPU, whatever their number."""
    monkeypatch.setattr("nipype.pipeline.plugins.multiproc.gpu_count", lambda: 4)
    for word in ("a", "b"):
        run.node(GpuNote, word)
    assert run.go() == []
    (_, end), (begin, _) = sorted(
        tuple(map(float, line.split()[0].split("-")[1:]))
        for line in run.log.read_text().splitlines()
    )
    assert end <= begin


def test_torch_computes_in_processes_of_its_own_and_nothing_is_done_twice(run, tmp_path):
    (tmp_path / "image").write_text("a picture")

    def build(run):
        for word in "ab":
            itk, torch = run.node(Note, word), run.node(TorchNote, f"torch_{word}")
            itk.inputs.file = str(tmp_path / "image")
            run.workflow.connect(itk, "word", torch, "after")
        return run

    assert build(run).go() == []
    noted = run.noted()
    assert {word: len(ids) for word, ids in noted.items()} == dict.fromkeys(
        ("a", "b", "torch_a", "torch_b"), 1
    )
    others, torchs = ({noted[start + word][0] for word in "ab"} for start in ("", "torch_"))
    assert others.isdisjoint(torchs)
    os.utime(tmp_path / "image", (0, 0))  # as if the dataset had been copied
    assert build(Run(tmp_path)).go() == []
    assert run.noted() == noted


class Told:
    """Recorder of finished graphs, of what had run before them, and of failures."""

    def __init__(self, run):
        self.run, self.names, self.done, self.failed = run, [], {}, {}

    def __call__(self, name, crashes):
        self.names.append(name)
        self.done[name] = set(self.run.noted())
        self.failed[name] = [crash.node.split(".")[-1] for crash in crashes]


@pytest.mark.parametrize("nprocs", [1, 2])
def test_one_participant_is_done_before_the_next_but_one_begins(run, nprocs):
    names = ("s3", "s1", "s4", "s2")  # in the order of the selection, independent of names
    for name in names:
        run.visit(name, SlowNote, TorchNote, SlowNote)
    told = Told(run)
    assert run.go(nprocs=nprocs, on_finished=told) == []
    noted = [line.split()[0] for line in run.log.read_text().splitlines()]
    first = [noted.index(f"{name}_0") for name in names]
    last = [noted.index(f"{name}_2") for name in names]
    assert first == sorted(first)
    for done, begun in zip(last, first[nprocs:], strict=False):
        assert done < begun
    assert sorted(told.names) == sorted(names)
    assert told.names[0] in names[:nprocs]
    for name in names:
        assert {f"{name}_{n}" for n in range(3)} <= told.done[name]
    assert f"{names[-1]}_0" not in told.done[told.names[0]]  # the first graph is reported early


def test_what_this_process_does_itself_does_not_let_the_next_participant_in(run):
    for name in ("s1", "s2", "s3"):
        nodes = run.visit(name, SlowNote, Note, SlowNote)
        nodes[1].run_without_submitting = True
    assert run.go(nprocs=1, on_finished=Told(run)) == []
    noted = [line.split()[0] for line in run.log.read_text().splitlines()]
    assert noted == [f"s{visit}_{n}" for visit in (1, 2, 3) for n in range(3)]


def test_a_killed_server_of_processes_does_not_end_a_run(run, monkeypatch):
    read = forkserver.read_signed

    def killed(handle):
        monkeypatch.setattr(forkserver, "read_signed", read)
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        raise EOFError("unexpected EOF")  # raised if the process ends while it forks

    monkeypatch.setattr(forkserver, "read_signed", killed)
    for name in ("s1", "s2", "s3"):
        run.visit(name, SlowNote, TorchNote)
    assert run.go(on_finished=Told(run)) == []
    assert {f"s{visit}_{n}" for visit in (1, 2, 3) for n in range(2)} == set(run.noted())


def test_a_participant_that_failed_is_told_of_with_what_failed(run):
    run.visit("bad", Note, Refuse, Note)
    run.visit("good", Note, Note)
    told = Told(run)
    (crash,) = run.go(nprocs=1, on_finished=told)
    assert told.names == ["bad", "good"]
    assert told.failed == {"bad": ["bad_1"], "good": ["bad_1"]}
    assert told.done["bad"] == {"bad_0"}
    assert crash.exit_code == UnusableDataError.exit_code
    assert crash.file.parent == run.logs


def test_participants_whose_nodes_were_all_done_before_are_told_of(run, tmp_path):
    def build(run):
        run.visit("s1", Note, Note)
        run.visit("s2", Note)
        return run

    assert build(run).go() == []
    again = build(Run(tmp_path))
    told = Told(again)
    assert again.go(on_finished=told) == []
    assert set(told.names) == {"s1", "s2"}
    assert again.noted() == run.noted()


def test_nodes_run_again_where_their_folder_was_moved_and_other_files_stay(run, tmp_path):
    """Nipype keeps absolute paths of outputs, which lie elsewhere after a move."""

    def again():
        later = Run(tmp_path)
        later.workflow.base_dir = str(tmp_path / "moved")
        later.node(Note, "a")
        assert later.go() == []
        return len(later.noted()["a"])

    run.node(Note, "a")
    assert run.go() == []
    checkpoint = tmp_path / "work" / "graph" / "checkpoint"
    checkpoint.touch()
    (tmp_path / "work").rename(tmp_path / "moved")
    assert again() == 2
    assert again() == 2  # nothing was moved
    assert (tmp_path / "moved" / "graph" / "checkpoint").exists()


def test_a_step_that_wants_all_processes_does_not_wait_for_later_participants(run):
    _, wide = run.visit("s1", SlowNote, Note)
    wide.n_procs = 2
    for n in range(2, 8):
        run.visit(f"s{n}", SlowerNote)
    assert run.go(on_finished=Told(run)) == []
    noted = [line.split()[0] for line in run.log.read_text().splitlines()]
    assert noted.index("s1_1") <= 3


def test_a_plugin_of_nipype_takes_the_run_elsewhere(run):
    run.node(Note, "good"), run.node(Refuse, "refuse")
    (crash,) = run.go(plugin={"plugin": "Linear", "plugin_args": {}})
    assert crash.exit_code == UnusableDataError.exit_code
    assert set(run.noted()) == {"good"}
    assert ("good", "end") in run.statuses


PLUGINS = {"here": None, "MultiProc": {"plugin": "MultiProc"}, "Linear": {"plugin": "Linear"}}


@pytest.mark.parametrize("plugin", PLUGINS.values(), ids=PLUGINS)
def test_a_crash_carries_what_its_node_says_it_is(run, plugin):
    here, aside = run.visit("s1", Note, Refuse)[1], run.visit("s2", Refuse)[0]
    aside.run_without_submitting = True
    label_nodes(here, owner="01", label="sub-01 ses-a", fatal=False)
    label_nodes(run.workflow, owner="semi3d-gan", label="a row")  # it has a label already
    crashes = {crash.part: crash for crash in run.go(plugin=plugin)}
    fields = {
        part: (crash.node, crash.owner, crash.label, crash.fatal) for part, crash in crashes.items()
    }
    assert fields == {
        "s1": ("graph.s1.s1_1", "01", "sub-01 ses-a", False),
        "s2": ("graph.s2.s2_0", "semi3d-gan", "a row", True),
    }


def test_what_nodes_say_does_not_change_what_they_compute(run, tmp_path):
    run.visit("s1", Note)
    assert run.go() == []
    again = Run(tmp_path)
    (other,) = again.visit("s1", Note)
    label_nodes(other, owner="01", label="sub-01", step="noted", fatal=False)
    assert again.go() == []
    assert again.noted() == run.noted()  # nothing is run again
    assert len(again.noted()["s1_0"]) == 1


def test_a_full_disk_is_said_in_a_sentence(run, monkeypatch):
    def run_out_of_space(self, runtime):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Note, "_run_interface", run_out_of_space)
    run.node(Note, "full")
    (crash,) = run.go(plugin={"plugin": "Linear"})  # in this process, where the patch applies
    assert crash.sentence.startswith("No space left on device")
    assert crash.exit_code == ReadWriteError.exit_code


def test_an_empty_traceback_says_that_the_disk_is_full(tmp_path):
    (tmp_path / "crash-node.txt").touch()
    crash = _read_crash(tmp_path / "crash-node.txt", {})
    assert crash.sentence.startswith("No space left on device; free some space")
    assert crash.exit_code == ReadWriteError.exit_code


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3.0 GiB for an array"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_said_with_what_to_change(run, monkeypatch, error):
    """As by ulimit -v, which makes allocations fail and kills nothing."""

    def run_out_of_memory(self, runtime):
        raise error

    monkeypatch.setattr(Note, "_run_interface", run_out_of_memory)
    run.node(Note, "large")
    (crash,) = run.go(plugin={"plugin": "Linear"})
    assert crash.sentence.startswith("graph.large: memory ran out; lower --nprocs")
    assert "--mem-gb" in crash.sentence
    assert crash.exit_code == 1


@pytest.mark.parametrize("threads", ["1", "3"])
def test_workers_heed_limits_younger_than_the_server_that_forks_them(monkeypatch, threads):
    start_fork_server()
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", threads)
    plugin = SeparatedMultiProcPlugin({"n_procs": 1})
    for pool in plugin._pools.values():
        told = pool.submit(os.getenv, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS").result()
        pool.shutdown()
        assert told == threads


def test_what_nodes_wait_for_is_counted_as_the_matrix_has_it(rng):
    size = 60
    matrix = lil_matrix((size, size), dtype=int)
    for node in range(size - 1):  # later nodes depend on earlier ones
        matrix[
            node, rng.choice(np.arange(node + 1, size), 1 + node % 2, replace=node > size - 3)
        ] = 1
    counted = _Dependencies(matrix)
    for node in rng.permutation(size):
        for _ in range(2):  # nipype finishes a node twice if it fails in its own process
            counted.finish(node)
            row = counted.getrowview(node)
            row[row.nonzero()] = 0
        assert counted.sum(axis=0).tolist() == counted.toarray().sum(axis=0, keepdims=True).tolist()
    assert not counted.sum(0).any()


def test_nodes_are_looked_for_only_where_something_has_changed(run, monkeypatch):
    """Each search triggers garbage collection over all nodes."""
    looks, look = [], MultiProcPlugin._send_procs_to_workers
    monkeypatch.setattr(
        MultiProcPlugin,
        "_send_procs_to_workers",
        lambda plugin, *how: looks.append(1) or look(plugin, *how),
    )
    run.visit("one", SlowerNote, SlowerNote)
    started = time.monotonic()
    assert run.go() == []
    assert time.monotonic() - started > 1.6  # asleep; looking every 0.05 s would be 32
    assert 3 <= len(looks) <= 8
