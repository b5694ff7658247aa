"""Run a graph: on this machine, or where a nipype plugin takes it; tell what went wrong.

On this machine, ITK and torch compute in processes of their own. Processes are started by a
server that has imported neither, so nothing is ever forked with their threads in it. Plugins for
queues of a cluster are told what nodes need, and tell why a job is gone.
"""

import gc
import getpass
import logging
import os
import re
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import cast
from uuid import uuid4

import nipype
import numpy as np
from nipype.pipeline.engine import Node, Workflow
from nipype.pipeline.plugins import multiproc
from nipype.pipeline.plugins.base import GraphPluginBase, PluginBase, SGELikeBatchManagerBase
from nipype.pipeline.plugins.multiproc import MultiProcPlugin
from scipy.sparse import lil_matrix

from bids_app import errors
from bids_app.derivatives.paths import sidecar_path
from bids_app.errors import UsageError
from bids_app.interfaces.derivatives import SaveDerivative, SaveDerivatives
from bids_app.lifeline import die_before_others, last_act, start_fork_server
from bids_app.resources import THREAD_VARIABLES, measured

MORE_MEMORY = "lower --nprocs, or give the run more memory and say so with --mem-gb"
KILLED = (
    "bids_app.errors.Mri2petError: the process that ran it was killed, most likely because memory "
    f"ran out; {MORE_MEMORY}"
)
SERVER_GONE = 0.5  # s until a killed server of processes is seen to be gone; our choice
NO_MEMORY = re.compile(
    r"MemoryError|std::bad_alloc|OutOfMemoryError|out of memory|an(?:'t|not) allocate memory", re.I
)
SUMMARY = re.compile(r"bids_app\.errors\.(\w+): (.*)")
NO_SPACE = "No space left on device"
DISK_FULL = errors.ReadWriteError.exit_code
ANY_ERROR = re.compile(r"^\s*([\w.]+(?:Error|Exception|Interrupt|Exit)\b.*)$", re.MULTILINE)

StatusCallback = Callable[[Node, str], None]
FinishedCallback = Callable[[str, "Sequence[Crash]"], None]
UsedCallback = Callable[[Node, Mapping[str, float]], None]
Output = tuple[Path, Mapping[str, object]]  # where a result goes, what its sidecar tells beforehand


@dataclass(frozen=True)
class Resources:
    """What a run may use of this machine: CPUs, and memory in GiB."""

    nprocs: int
    mem_gb: float


@dataclass(frozen=True)
class Crash:
    """A node that failed.

    Parameters
    ----------
    node : str
        Its place in the graph.
    sentence : str
        What went wrong, and what to do.
    exit_code : int
        Of the run, if nothing can be used.
    file : Path
        The traceback.
    owner, label, part, fatal
        As :func:`label_nodes` has set them.
    """

    node: str
    sentence: str
    exit_code: int
    file: Path
    owner: str = ""
    label: str = ""
    part: str = ""
    fatal: bool = True


def nodes_of(graph: Workflow | Node) -> Collection[Node]:
    """List the nodes of a graph and of all graphs within it; of a node, itself."""
    return graph._get_all_nodes() if isinstance(graph, Workflow) else (graph,)


def label_nodes(
    graph: Workflow | Node,
    *,
    owner: str | None = None,
    label: str | None = None,
    part: str | None = None,
    step: str | None = None,
    fatal: bool | None = None,
) -> None:
    """Let nodes say what they are; what a node says already, of a graph within, it keeps.

    These are attributes of nodes and no inputs: results do not depend on them.

    Parameters
    ----------
    graph : Workflow or Node
        Its nodes, or a single one.
    owner : str
        Whose failure it is: label of a participant, row of Table 1, or training set.
    label : str
        Whom sentences on its failure name first; "" for nobody.
    part : str
        What is lost with it, and is followed as one: graph of a visit, row, training set, or image
        that is stored.
    step : str
        What it does, for people who follow the run; "" if they need not know.
    fatal : bool
        Whether its owner is left without the results that matter; so it is if nothing else is said.
    """
    attributes = {"owner": owner, "label": label, "part": part, "step": step, "fatal": fatal}
    for node in nodes_of(graph):
        for name, value in attributes.items():
            if value is not None and not hasattr(node, name):
                setattr(node, name, value)


def save_node(output: Output, name: str) -> Node:
    """Make the node that puts a result, its ``in_file``, and its sidecar in their place."""
    path, sidecar = output
    save = SaveDerivative(
        out_file=str(path), sidecar_file=str(sidecar_path(path)), sidecar=dict(sidecar)
    )
    return Node(save, name=f"save_{name}")


def save_all_node(outputs: Sequence[Output], name: str) -> Node:
    """Make the node that puts several results, its ``in_files``, in their places."""
    save = SaveDerivatives(
        out_files=[str(path) for path, _ in outputs],
        sidecar_files=[str(sidecar_path(path)) for path, _ in outputs],
        sidecars=[dict(sidecar) for _, sidecar in outputs],
    )
    return Node(save, name=name)


def link(workflow: Workflow, source: Workflow, target: Workflow, **fields: str) -> None:
    """Connect outputs of a graph to inputs of another: ``input=output``, by their names."""
    doors = [(f"outputnode.{output}", f"inputnode.{into}") for into, output in fields.items()]
    workflow.connect([(source, target, doors)])


def quiet(level: int) -> None:
    """Let nipype's own messages through from this level of :mod:`logging` on."""
    for name in ("nipype.workflow", "nipype.interface", "nipype.utils"):
        logging.getLogger(name).setLevel(level)


def _limits() -> dict[str, str]:
    return {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}


def _start_worker(cwd: str, level: int, threads: Mapping[str, str]) -> None:
    """Begin a worker: the server that forked it may be older than the limits of this run."""
    os.environ.update(threads)
    die_before_others()
    multiproc.process_initializer(cwd)
    quiet(level)


def _run_measured(node: Node, updatehash: bool, taskid: int) -> dict:
    """Run a node as nipype does, and give beside its result what it has used."""
    with measured() as used:
        result: dict = multiproc.run_node(node, updatehash, taskid)
    return {**result, "used": used}


class _MeasuringPool(ProcessPoolExecutor):
    """A pool that measures what nodes use."""

    def submit(self, function, /, *arguments):
        """Submit a call; if it runs a node, it is measured."""
        called = _run_measured if function is multiproc.run_node else function
        return super().submit(called, *arguments)


class _Dependencies(lil_matrix):
    """Which node waits for which, counted: nipype sums the matrix twenty times a second."""

    def __init__(self, matrix: lil_matrix) -> None:
        super().__init__(matrix)
        self.waiting = np.bincount(
            np.concatenate([[], *self.rows]).astype(int), minlength=self.shape[1]
        )

    def sum(self, axis=None, dtype=None, out=None):
        """Count what each node still waits for, or sum as any matrix does."""
        if axis == 0:
            return self.waiting[np.newaxis]
        return super().sum(axis, dtype, out)

    def finish(self, node: int) -> None:
        """Let no node wait for this one any more, before nipype empties its row."""
        self.waiting[self.rows[node]] -= 1


class SeparatedMultiProcPlugin(MultiProcPlugin):
    """nipype's MultiProc with a pool of processes for torch and another for all else.

    A killed process does not stall the run: what it ran, and what broke with its pool, is tried
    once more, each in a pool of one, and reported if that is killed too.

    Parameters
    ----------
    plugin_args : dict
        As nipype's.
    order : sequence of str
        Parts of the workflow. A node of one runs only where no node of those before it is ready
        to: with few processes, one part is done before the next begins. Empty: nodes run as they
        become ready.
    on_finished : callable or None
        Is told the name of each of these parts when nothing of it is left to do.
    on_used : callable or None
        Is told of each node what it has used, as :func:`bids_app.resources.measured` measures it.
    """

    def __init__(
        self,
        plugin_args: dict,
        order: Sequence[str] = (),
        on_finished: Callable[[str], None] | None = None,
        on_used: UsedCallback | None = None,
    ) -> None:
        super().__init__(plugin_args=plugin_args)
        self._on_used = on_used
        self._order = {name: place for place, name in enumerate(order)}
        self._on_finished = on_finished
        self._finished: set[str] = set()
        self._members: dict[str, list[int]] = {}
        self._counted = 0
        self._idle: tuple[int, int, int] | None = None
        self.depidx: lil_matrix
        self.pool: ProcessPoolExecutor
        self.pool.shutdown(wait=False)  # nipype's own; nothing has been submitted
        start_fork_server()
        self._level = logging.getLogger("nipype.workflow").level
        self._pools = {
            False: self._new_pool(self.processors),
            True: self._new_pool(self.processors),
        }
        self._submitted: dict[int, tuple[Node, bool]] = {}
        self._alone: dict[int, ProcessPoolExecutor] = {}

    def _new_pool(self, workers: int) -> ProcessPoolExecutor:
        kind = ProcessPoolExecutor if self._on_used is None else _MeasuringPool
        return kind(
            max_workers=workers,
            initializer=_start_worker,
            initargs=(self._cwd, self._level, _limits()),
            mp_context=get_context("forkserver"),
        )

    def _submit_job(self, node: Node, updatehash: bool = False) -> int:
        needs_torch = getattr(node.interface, "uses_torch", False)
        if self._pools[needs_torch]._broken:
            self._pools[needs_torch] = self._new_pool(self.processors)
        self.pool = self._pools[needs_torch]
        try:
            taskid = super()._submit_job(node, updatehash)
        except (EOFError, OSError):  # the server of processes was killed; all that it forked ends
            time.sleep(SERVER_GONE)
            self.pool = self._pools[needs_torch] = self._new_pool(self.processors)
            taskid = super()._submit_job(node, updatehash)
        self._submitted[taskid] = (node, updatehash)
        return taskid

    def _async_callback(self, args: Future) -> None:
        if args.exception() is None:
            super()._async_callback(args)

    def _get_result(self, taskid: int) -> dict | None:
        future = self._task_obj[taskid]
        error = future.exception() if future.done() else None
        if error is None:
            return super()._get_result(taskid)
        if isinstance(error, BrokenProcessPool) and taskid not in self._alone:
            self._alone[taskid] = self._new_pool(1)
            node, updatehash = self._submitted[taskid]
            again = self._alone[taskid].submit(multiproc.run_node, node, updatehash, taskid)
            again.add_done_callback(self._async_callback)
            self._task_obj[taskid] = again
            return None
        text = KILLED if isinstance(error, BrokenProcessPool) else f"{error!r}"
        return {"result": None, "traceback": [f"{text}\n"], "taskid": taskid}

    def _clear_task(self, taskid: int) -> None:
        super()._clear_task(taskid)
        node, _ = self._submitted.pop(taskid)
        used = self._taskresult.get(taskid, {}).get("used")
        if self._on_used is not None and used is not None:
            self._on_used(node, used)

    def _place(self, jobid: int) -> int:
        """Say where in the order a node's part stands; behind it, if it has no place."""
        return self._order.get(self.procs[jobid].part, len(self._order))

    def _sort_jobs(self, jobids: Sequence[int], scheduler: str | None = "tsort") -> Sequence[int]:
        ready: Sequence[int] = super()._sort_jobs(jobids, scheduler)
        if not self._order:
            return ready
        return self._hold_back(sorted(ready, key=self._place))

    def _hold_back(self, ready: Sequence[int]) -> Sequence[int]:
        """Leave out nodes of later parts where one of an earlier part can run, or waits for room.

        What was run before, or runs in this process, is done at once, and what follows it is ready
        at the next look only: else nodes of later parts would take its room in between. Nodes of
        later parts may run beside one that waits for the GPU.
        """
        gpus = self._check_resources(self.pending_tasks)[2]
        for number, jobid in enumerate(ready):
            node = self.procs[jobid]
            if not node.is_gpu_node() or min(node.n_procs, self.n_gpu_procs) <= gpus:
                return [
                    other
                    for n, other in enumerate(ready)
                    if n <= number or self._place(other) == self._place(jobid)
                ]
        return ready

    def _send_procs_to_workers(self, updatehash: bool = False, graph: object = None) -> None:
        """Look for nodes that can run, if anything has changed since none was found.

        nipype does so twenty times a second, and collects garbage each time.
        """
        before = self._progress()
        if before != self._idle:
            super()._send_procs_to_workers(updatehash, graph)
            self._idle = before if self._progress() == before else None

    def _progress(self) -> tuple[int, int, int]:
        done, pending = int(self.proc_done.sum()), int(self.proc_pending.sum())
        return done, pending, len(self.pending_tasks)

    def _generate_dependency_list(self, graph: object) -> None:
        super()._generate_dependency_list(graph)
        self.depidx = _Dependencies(self.depidx)

    def _task_finished_cb(self, jobid: int, cached: bool = False) -> None:
        if isinstance(self.depidx, _Dependencies):  # nipype's own after a MapNode was expanded
            self.depidx.finish(jobid)
        super()._task_finished_cb(jobid, cached)
        self._report_finished(self.procs[jobid].part)

    def _remove_node_deps(self, jobid: int, crashfile: str, graph: object) -> dict:
        removed: dict = super()._remove_node_deps(jobid, crashfile, graph)
        self._report_finished(self.procs[jobid].part)
        return removed

    def _report_finished(self, name: str) -> None:
        """Tell of a part once all its nodes have run, or failed, or cannot run."""
        if self._on_finished is None or name in self._finished or name not in self._order:
            return
        if self._counted != len(self.procs):  # at first, and when a MapNode was expanded
            self._counted = len(self.procs)
            members = defaultdict(list)
            for jobid, node in enumerate(self.procs):
                members[node.part].append(jobid)
            self._members = dict(members)
        jobs = self._members[name]
        if self.proc_done[jobs].all() and not self.proc_pending[jobs].any():
            self._finished.add(name)
            self._on_finished(name)

    def _prerun_check(self, graph: Iterable[Node]) -> None:
        """Let a worker of each pool import what its nodes need while the first ones run."""
        super()._prerun_check(graph)
        gc.freeze()  # nipype collects garbage at each look: not of all imports, nor of these nodes
        needed: dict[str, bool] = {}
        for node in graph:
            engine: str | None = getattr(node.interface, "engine", None)
            if engine is not None:
                needed[engine] = getattr(node.interface, "uses_torch", False)
        for engine, needs_torch in needed.items():
            self._pools[needs_torch].submit(import_module, engine)

    def close(self) -> None:
        """End all processes; what they have not begun is dropped."""
        gc.unfreeze()
        for pool in (*self._pools.values(), *self._alone.values()):
            pool.shutdown(cancel_futures=True)

    def _postrun_check(self) -> None:
        self.close()


def _explain(name: str, text: str, file: Path) -> tuple[str, int]:
    """Give the sentence and the exit code for the traceback of a node."""
    summaries = SUMMARY.findall(text)
    if summaries:
        kind, sentence = summaries[-1]
        return sentence.strip(), getattr(errors, kind).exit_code
    if NO_SPACE in text:
        return f"{NO_SPACE}; make room, or choose another --work-dir", DISK_FULL
    if NO_MEMORY.search(text):
        return f"{name}: memory ran out; {MORE_MEMORY}", 1
    others = ANY_ERROR.findall(text)
    last = others[-1].strip() if others else "failed without a message"
    return f"{name}: {last}; its traceback is in {file}", 1


def _read_crash(file: Path, failed: Mapping[str, Node]) -> Crash:
    """Read the file that nipype wrote of one of the nodes that failed, given by full name."""
    text = file.read_text(errors="replace")
    name = text.partition("\n")[0].removeprefix("Node: ").strip()
    crash = Crash(name, *_explain(name, text, file), file)
    node = failed.get(name)
    if node is None:  # a disk was so full that the file is empty
        return crash
    return replace(crash, owner=node.owner, label=node.label, part=node.part, fatal=node.fatal)


def _collect(folder: Path, logs: Path, failed: Mapping[str, Node]) -> list[Crash]:
    crashes = []
    for file in sorted(folder.glob("crash-*.txt")):
        kept = logs / file.name
        shutil.move(file, kept)
        crashes.append(_read_crash(kept, failed))
    return crashes


def _remove_stale_locks(workflow: Workflow) -> None:
    """Remove locks that a killed run left on results of the same nodes."""
    for member in workflow._graph.nodes():
        folder = Path(workflow.base_dir) / workflow.name / member.name
        for lock in folder.rglob("*.lock"):
            lock.unlink(missing_ok=True)


def _arguments_of(plugin: Mapping[str, object]) -> dict:
    return dict(cast("Mapping[str, object]", plugin.get("plugin_args", {})))


def _run_by_multiproc(
    workflow: Workflow,
    resources: Resources,
    plugin: Mapping[str, object] | None,
    on_status: StatusCallback,
    *,
    order: Sequence[str],
    on_finished: Callable[[str], None],
    on_used: UsedCallback | None,
) -> None:
    """Run a graph by :class:`SeparatedMultiProcPlugin`: nipype's own mixes ITK and torch."""
    arguments = {
        "n_procs": resources.nprocs,
        "memory_gb": resources.mem_gb,
        "raise_insufficient": False,
        "n_gpu_procs": 1,  # all nodes that want a GPU want the same one
        "mp_context": "forkserver",
        "status_callback": on_status,
    }
    arguments |= _arguments_of(plugin or {})
    with closing(SeparatedMultiProcPlugin(arguments, order, on_finished, on_used)) as local_plugin:
        workflow.run(plugin=local_plugin)


def _run_by_plugin(
    workflow: Workflow, plugin: Mapping[str, object], on_status: StatusCallback
) -> None:
    """Run a graph by another plugin than MultiProc."""
    name = str(plugin["plugin"])
    arguments = _arguments_of(plugin)
    workflow.config["execution"] |= {
        "poll_sleep_duration": POLLING,
        "job_finished_timeout": WAITING,
    }
    name_user(os.environ)
    ask_for_needs(workflow, name, arguments)
    chosen = make_plugin(name, arguments | {"status_callback": on_status})
    with last_act(partial(cancel_jobs, chosen, name)):
        workflow.run(plugin=chosen)


def _make_ready(workflow: Workflow, crashes: Path, *, stop_on_first_crash: bool) -> None:
    """Tell nipype how to run; ``crashes`` is where it writes tracebacks."""
    crashes.mkdir(parents=True)
    _remove_stale_locks(workflow)
    label_nodes(workflow, owner="", label="", part="", step="", fatal=True)
    workflow.config["execution"] = {
        "crashdump_dir": str(crashes),
        "crashfile_format": "txt",
        "stop_on_first_crash": stop_on_first_crash,
        "poll_sleep_duration": 0.05,
        "create_report": False,
        "remove_unnecessary_outputs": False,
        "hash_method": "content",  # a copied dataset, or a template written anew, is the same
    }
    nipype.config.update_config({"execution": {"check_version": "false"}})


def _parts_of(workflow: Workflow) -> list[str]:
    """List the parts of a workflow, in the order in which its graphs were added."""
    members = workflow._graph.nodes()
    return list(dict.fromkeys(node.part for member in members for node in nodes_of(member)))


def run_graph(
    workflow: Workflow,
    *,
    resources: Resources,
    plugin: Mapping[str, object] | None,
    logs: Path,
    stop_on_first_crash: bool,
    on_status: StatusCallback,
    on_finished: FinishedCallback | None = None,
    on_used: UsedCallback | None = None,
) -> list[Crash]:
    """Run all nodes of a graph that are not done yet.

    Parameters
    ----------
    workflow : Workflow
        With a ``base_dir``.
    resources : Resources
        What it may use of this machine.
    plugin : mapping or None
        ``plugin`` and ``plugin_args`` of nipype, to run elsewhere; None for this machine.
    logs : Path
        Where tracebacks go, as ``crash-*``.
    stop_on_first_crash : bool
        Do not go on with other participants.
    on_status : callable
        Is told of each node: (node, "start"), (node, "end") or (node, "exception").
    on_finished : callable or None
        Is told of each part of the graph when nothing of it is left to do: its name, and what has
        failed so far, of all parts. If given, each is done before the next begins, as far as
        processes do not lie idle. Not on other plugins.
    on_used : callable or None
        Is told of each node that has run what it has used, as
        :func:`bids_app.resources.measured` measures it. Not on other plugins, nor of a node whose
        process was killed.

    Returns
    -------
    list of Crash
        One a node that failed; empty if all went well.
    """
    base = Path(workflow.base_dir)
    crash_folder = base / f"crashes-{uuid4().hex}"
    _make_ready(workflow, crash_folder, stop_on_first_crash=stop_on_first_crash)
    failure, crashes, failed = None, list[Crash](), dict[str, Node]()

    def note_status(node: Node, status: str) -> None:
        if status == "exception":
            failed[node.fullname] = node
        on_status(node, status)

    def report_finished(name: str) -> None:
        crashes.extend(_collect(crash_folder, logs, failed))
        if on_finished is not None:
            on_finished(name, crashes)

    try:
        if plugin is None or plugin["plugin"] == "MultiProc":
            order = () if on_finished is None else _parts_of(workflow)
            _run_by_multiproc(
                workflow,
                resources,
                plugin,
                note_status,
                order=order,
                on_finished=report_finished,
                on_used=on_used,
            )
        else:
            _run_by_plugin(workflow, plugin, note_status)
    except (RuntimeError, AttributeError, TypeError, OSError, ValueError, EOFError) as error:
        failure = error
    crashes += _collect(crash_folder, logs, failed)
    shutil.rmtree(crash_folder, ignore_errors=True)
    if failure is not None and not crashes:
        raise errors.Mri2petError(f"the run stopped: {failure}") from failure
    return crashes


PLUGINS = "nipype.pipeline.plugins"
POLLING = 2.0  # s between two looks at the queue: each asks its server about each job
WAITING = 20.0  # s for the result of a job that has left the queue, while a shared disk settles
LOG_LINES = 200
SUBMITTING = {"SLURM": "sbatch", "SGE": "qsub", "PBS": "qsub", "LSF": "bsub", "OAR": "oarsub"}
GPU_OPTION = re.compile(r"--(gres|gpus)|-G\b")  # sbatch's ways to ask for a GPU
CANCEL = {"SLURM": "scancel", "SGE": "qdel", "PBS": "qdel", "LSF": "bkill", "OAR": "oardel"}
CANCELLING = 2.0  # s, of the 5 s that a run has to end; our choice
OWN_MEMORY = 1.0  # GiB that Python and its libraries take in a job of their own; seen: 0.25 to 0.7


class _LostJobs:
    """Mixed into a plugin of nipype: a job that ended without a result is told in a sentence."""

    _batch_jobs: dict[int, tuple[str, Path]]

    def _submit_batchtask(self, scriptfile: str, node: Node) -> int:
        taskid: int = super()._submit_batchtask(scriptfile, node)  # type: ignore[misc]  # nipype's
        self._batch_jobs[taskid] = (node.fullname, Path(scriptfile).parent)
        return taskid

    def _get_result(self, taskid: int) -> dict | None:
        result: dict | None = super()._get_result(taskid)  # type: ignore[misc]  # nipype's
        if result is None or not isinstance(result["traceback"], str):
            return result
        name, folder = self._batch_jobs[taskid]  # nipype would choke on what it made itself
        return {**result, "traceback": [f"{_sentence(taskid, name, folder)}\n"]}


def _sentence(taskid: int, name: str, folder: Path) -> str:
    """Say that a job is gone, and the last that its log has."""
    lines: list[str] = []
    for log in folder.glob(f"*{taskid}*.out"):
        lines += log.read_text(errors="replace").split("\n")[-LOG_LINES:]
    said = [line.strip() for line in lines if "error" in line.lower()]
    last = f" ({said[-1]})" if said else ""
    return (
        f"bids_app.errors.Mri2petError: {name}: job {taskid} ended without a result{last}: it was "
        "cancelled, or ran out of memory or time; run the same command again to go on, with more "
        f"of both in the file of --use-plugin if need be; its log is in {folder}"
    )


def _class_of(name: str) -> type[PluginBase]:
    kind = getattr(import_module(PLUGINS), f"{name}Plugin", None)
    if not (isinstance(kind, type) and issubclass(kind, PluginBase)):
        raise UsageError(f"--use-plugin: nipype has no plugin {name!r}; try SLURM or MultiProc")
    if issubclass(kind, GraphPluginBase):
        raise UsageError(
            f"--use-plugin: {name} returns before its jobs are done; use another, such as SLURM"
        )
    return kind


def refuse_plugin(name: str) -> None:
    """Refuse a plugin that a run could not use, before it begins.

    Raises
    ------
    UsageError
        If there is no such plugin, it does not wait for its jobs, or the command by which it
        submits them is not on this machine.
    """
    _class_of(name)
    command = SUBMITTING.get(name)
    if command is not None and shutil.which(command) is None:
        raise UsageError(
            f"--use-plugin: there is no {command} here, by which {name} takes jobs; run where "
            "there is one, or leave the option out"
        )


def make_plugin(name: str, arguments: Mapping[str, object]) -> PluginBase:
    """Make a plugin of nipype.

    Parameters
    ----------
    name : str
        As ``plugin`` of the file of ``--use-plugin``: SLURM, SGE, PBS, LSF, OAR, Condor, …
    arguments : mapping
        Its ``plugin_args``.

    Raises
    ------
    UsageError
        If there is no such plugin, or it does not wait for its jobs.
    """
    kind = _class_of(name)
    if not issubclass(kind, SGELikeBatchManagerBase):
        return kind(plugin_args=dict(arguments))
    plugin = type(f"LostJobs{name}", (_LostJobs, kind), {})(plugin_args=dict(arguments))
    plugin._batch_jobs = {}
    return plugin


def cancel_jobs(plugin: PluginBase, name: str) -> None:
    """Cancel the jobs that are waiting or running, since nobody will see to their results.

    They would go on beside those of the next run, in the same folders.

    Parameters
    ----------
    plugin : PluginBase
        As :func:`make_plugin` makes it.
    name : str
        Of the plugin; jobs of queues without a command in ``CANCEL`` go on.
    """
    jobs = [str(taskid) for taskid in getattr(plugin, "_pending", ())]
    if jobs and name in CANCEL:
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [CANCEL[name], *jobs], check=False, capture_output=True, timeout=CANCELLING
            )


def ask_for_needs(workflow: Workflow, name: str, arguments: Mapping[str, object]) -> None:
    """Have SLURM give each node the CPUs, memory and GPU it needs, where the file does not say.

    Parameters
    ----------
    workflow : Workflow
        Its nodes get ``plugin_args``.
    name : str
        Of the plugin.
    arguments : mapping
        Its ``plugin_args``.
    """
    if name != "SLURM":
        return
    sbatch_args = str(arguments.get("sbatch_args", ""))
    for node in workflow._get_all_nodes():
        options = []
        if not ("--cpus-per-task" in sbatch_args or "-c " in sbatch_args):
            options.append(f"--cpus-per-task={node.n_procs}")
        if "--mem" not in sbatch_args:
            options.append(f"--mem={round(1024 * (node.mem_gb + OWN_MEMORY))}M")
        if node.is_gpu_node() and not GPU_OPTION.search(sbatch_args):
            options.append("--gres=gpu:1")
        node.plugin_args = {"sbatch_args": " ".join(options)}


def name_user(environment: MutableMapping[str, str]) -> None:
    """Set LOGNAME, which nipype wants for the names of jobs; accounts without a name lack it."""
    if not environment.get("LOGNAME"):
        try:
            environment["LOGNAME"] = getpass.getuser()
        except (KeyError, OSError):
            environment["LOGNAME"] = f"uid{os.getuid()}"
