"""Execution of workflows, on this machine or by a nipype plugin, with reports of failures.

On this machine, ITK and torch run in separate processes. Processes are forked by a server that has
imported neither, so that none is forked while threads of theirs are running. For the queues of a
cluster, plugins request the resources that nodes need, and report why a job ended without a result.
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
from bids_app.lifeline import call_on_signal, die_before_others, start_fork_server
from bids_app.resources import THREAD_VARIABLES, Resources, measured

MORE_MEMORY = "lower --nprocs, or give the run more memory and set --mem-gb"
KILLED = (
    "bids_app.errors.Mri2petError: the process that ran it was killed, most likely because memory "
    f"ran out; {MORE_MEMORY}"
)
SERVER_GONE = 0.5  # s to wait until a killed fork server has ended; our choice
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
Output = tuple[Path, Mapping[str, object]]  # path of a result, sidecar fields known in advance


@dataclass(frozen=True)
class Crash:
    """Failure of a node.

    Parameters
    ----------
    node : str
        Full name of the node in the graph.
    sentence : str
        Explanation of the failure, and what to do.
    exit_code : int
        Exit code of the run if no results can be used.
    file : Path
        Path of the traceback.
    owner, label, part, fatal
        Labels of the node; see :func:`label_nodes`.
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
    """List the nodes of a graph and of all graphs nested in it, or a single node itself."""
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
    """Add labels to nodes; labels that a node has already, as part of a nested graph, are kept.

    Labels are attributes of nodes rather than inputs, so that results do not depend on them.

    Parameters
    ----------
    graph : Workflow or Node
        Graph whose nodes are labelled, or a single node.
    owner : str
        Unit that fails with the node: label of a participant, row of Table 1, or training set.
    label : str
        Name at the beginning of sentences about a failure; "" for none.
    part : str
        Part of the run that the node belongs to, whose progress is shown: graph of a visit, row,
        training set, or stored image.
    step : str
        Description of the step for display; "" if it is not shown.
    fatal : bool
        True, which is the default in a run, if a failure leaves the owner without essential
        results.
    """
    attributes = {"owner": owner, "label": label, "part": part, "step": step, "fatal": fatal}
    for node in nodes_of(graph):
        for name, value in attributes.items():
            if value is not None and not hasattr(node, name):
                setattr(node, name, value)


def save_node(output: Output, name: str) -> Node:
    """Create the node that saves a result, its ``in_file``, and its sidecar."""
    path, sidecar = output
    save = SaveDerivative(
        out_file=str(path), sidecar_file=str(sidecar_path(path)), sidecar=dict(sidecar)
    )
    return Node(save, name=f"save_{name}")


def save_all_node(outputs: Sequence[Output], name: str) -> Node:
    """Create the node that saves several results, its ``in_files``, and their sidecars."""
    save = SaveDerivatives(
        out_files=[str(path) for path, _ in outputs],
        sidecar_files=[str(sidecar_path(path)) for path, _ in outputs],
        sidecars=[dict(sidecar) for _, sidecar in outputs],
    )
    return Node(save, name=name)


def link(workflow: Workflow, source: Workflow, target: Workflow, **fields: str) -> None:
    """Connect outputs of a graph to inputs of another, given by name as ``input=output``."""
    doors = [(f"outputnode.{output}", f"inputnode.{into}") for into, output in fields.items()]
    workflow.connect([(source, target, doors)])


def set_nipype_verbosity(level: int) -> None:
    """Set the :mod:`logging` level of nipype's own messages."""
    for name in ("nipype.workflow", "nipype.interface", "nipype.utils"):
        logging.getLogger(name).setLevel(level)


def _limits() -> dict[str, str]:
    return {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}


def _start_worker(cwd: str, level: int, threads: Mapping[str, str]) -> None:
    """Initialize a worker, including thread limits, which may be newer than the fork server."""
    os.environ.update(threads)
    die_before_others()
    multiproc.process_initializer(cwd)
    set_nipype_verbosity(level)


def _run_measured(node: Node, updatehash: bool, taskid: int) -> dict:
    """Run a node as nipype does, and add the resources it used to its result."""
    with measured() as used:
        result: dict = multiproc.run_node(node, updatehash, taskid)
    return {**result, "used": used}


class _MeasuringPool(ProcessPoolExecutor):
    """Pool that measures the resources used by nodes."""

    def submit(self, function, /, *arguments):
        """Submit a call; calls that run a node are measured."""
        called = _run_measured if function is multiproc.run_node else function
        return super().submit(called, *arguments)


class _Dependencies(lil_matrix):
    """Matrix of dependencies with cached sums, which nipype requests twenty times per second."""

    def __init__(self, matrix: lil_matrix) -> None:
        super().__init__(matrix)
        self.waiting = np.bincount(
            np.concatenate([[], *self.rows]).astype(int), minlength=self.shape[1]
        )

    def sum(self, axis=None, dtype=None, out=None):
        """Return the number of nodes that each node waits for (axis 0), or any other sum."""
        if axis == 0:
            return self.waiting[np.newaxis]
        return super().sum(axis, dtype, out)

    def finish(self, node: int) -> None:
        """Update the counts when a node has finished, before nipype clears its row."""
        self.waiting[self.rows[node]] -= 1


class SeparatedMultiProcPlugin(MultiProcPlugin):
    """MultiProc plugin of nipype with one pool of processes for torch and another for the rest.

    A killed process does not stall the run: its node, and the others that fail with its pool, are
    run once more, each in a pool of one process, and reported if that process is killed too.

    Parameters
    ----------
    plugin_args : dict
        Arguments of nipype's plugin.
    order : sequence of str
        Parts of the workflow in order of priority. A node runs only if no node of an earlier part
        is ready, so that with few processes, one part is done before the next begins. If empty,
        nodes run as they become ready.
    on_finished : callable or None
        Callback that receives the name of each of these parts when it is finished.
    on_used : callable or None
        Callback that receives each node and the resources it used; see
        :func:`bids_app.resources.measured`.
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
        self.pool.shutdown(wait=False)  # created by nipype, not used
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
        except (EOFError, OSError):  # the fork server was killed, and its workers end with it
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
        """Return the position of a node's part in the order, or the last one if it has none."""
        return self._order.get(self.procs[jobid].part, len(self._order))

    def _sort_jobs(self, jobids: Sequence[int], scheduler: str | None = "tsort") -> Sequence[int]:
        ready: Sequence[int] = super()._sort_jobs(jobids, scheduler)
        if not self._order:
            return ready
        return self._hold_back(sorted(ready, key=self._place))

    def _hold_back(self, ready: Sequence[int]) -> Sequence[int]:
        """Leave out nodes of later parts if one of an earlier part can run, or waits for resources.

        Cached nodes, and nodes that run in this process, finish at once, but their successors are
        found ready only at the next poll; nodes of later parts would take their resources in
        between. Nodes of later parts may run beside one that waits for the GPU.
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
        """Submit nodes that are ready, unless nothing has changed since none was found.

        Otherwise, nipype searches twenty times per second, and collects garbage each time.
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
        if isinstance(self.depidx, _Dependencies):  # nipype replaces it when it expands a MapNode
            self.depidx.finish(jobid)
        super()._task_finished_cb(jobid, cached)
        self._report_finished(self.procs[jobid].part)

    def _remove_node_deps(self, jobid: int, crashfile: str, graph: object) -> dict:
        removed: dict = super()._remove_node_deps(jobid, crashfile, graph)
        self._report_finished(self.procs[jobid].part)
        return removed

    def _report_finished(self, name: str) -> None:
        """Report a part once all its nodes have run, have failed, or cannot run."""
        if self._on_finished is None or name in self._finished or name not in self._order:
            return
        if self._counted != len(self.procs):  # the first time, and after a MapNode was expanded
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
        """Have a worker of each pool import the modules its nodes need while the first ones run."""
        super()._prerun_check(graph)
        gc.freeze()  # exempts modules and nodes from nipype's frequent garbage collection
        needed: dict[str, bool] = {}
        for node in graph:
            engine: str | None = getattr(node.interface, "engine", None)
            if engine is not None:
                needed[engine] = getattr(node.interface, "uses_torch", False)
        for engine, needs_torch in needed.items():
            self._pools[needs_torch].submit(import_module, engine)

    def close(self) -> None:
        """End all processes, and cancel nodes that have not started."""
        gc.unfreeze()
        for pool in (*self._pools.values(), *self._alone.values()):
            pool.shutdown(cancel_futures=True)

    def _postrun_check(self) -> None:
        self.close()


def _explain(name: str, text: str, file: Path) -> tuple[str, int]:
    """Derive the sentence and the exit code from the traceback of a node."""
    summaries = SUMMARY.findall(text)
    if summaries:
        kind, sentence = summaries[-1]
        return sentence.strip(), getattr(errors, kind).exit_code
    if NO_SPACE in text or not text:  # a full disk leaves an empty file
        return f"{NO_SPACE}; free some space, or choose another --work-dir", DISK_FULL
    if NO_MEMORY.search(text):
        return f"{name}: memory ran out; {MORE_MEMORY}", 1
    others = ANY_ERROR.findall(text)
    last = others[-1].strip() if others else "failed without a message"
    return f"{name}: {last}; its traceback is in {file}", 1


def _read_crash(file: Path, failed: Mapping[str, Node]) -> Crash:
    """Read nipype's crash file of a node; ``failed`` maps full names to the nodes that failed."""
    text = file.read_text(errors="replace")
    name = text.partition("\n")[0].removeprefix("Node: ").strip()
    crash = Crash(name, *_explain(name, text, file), file)
    node = failed.get(name)
    if node is None:
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
    """Remove locks that a killed run left for the same nodes."""
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
    """Run a graph by :class:`SeparatedMultiProcPlugin`, as nipype's own would mix ITK and torch."""
    arguments = {
        "n_procs": resources.cpus,
        "memory_gb": resources.mem_gb,
        "raise_insufficient": False,
        "n_gpu_procs": 1,  # all nodes that use a GPU use the same one
        "mp_context": "forkserver",
        "status_callback": on_status,
    }
    arguments |= _arguments_of(plugin or {})
    with closing(SeparatedMultiProcPlugin(arguments, order, on_finished, on_used)) as local_plugin:
        workflow.run(plugin=local_plugin)


def _run_by_plugin(
    workflow: Workflow, plugin: Mapping[str, object], on_status: StatusCallback
) -> None:
    """Run a graph by a plugin other than MultiProc."""
    name = str(plugin["plugin"])
    arguments = _arguments_of(plugin)
    workflow.config["execution"] |= {
        "poll_sleep_duration": POLLING,
        "job_finished_timeout": WAITING,
    }
    name_user(os.environ)
    ask_for_needs(workflow, name, arguments)
    chosen = make_plugin(name, arguments | {"status_callback": on_status})
    with call_on_signal(partial(cancel_jobs, chosen, name)):
        workflow.run(plugin=chosen)


PLACE = "place.txt"  # in the folder of a graph, where its nodes were computed


def _forget_if_moved(workflow: Workflow) -> None:
    """Let all nodes run again if their folder was moved or copied, as nipype keeps absolute paths.

    Their outputs would be looked for where the folder was. Other files, such as checkpoints, stay.
    """
    root = (Path(workflow.base_dir) / workflow.name).absolute()
    place, here = root / PLACE, str(root)
    before = place.read_text(encoding="utf-8") if place.is_file() else here
    root.mkdir(parents=True, exist_ok=True)
    place.write_text(here, encoding="utf-8")
    if before == here:
        return
    for pattern in ("_0x*.json", "result_*.pklz"):
        for path in root.rglob(pattern):
            path.unlink(missing_ok=True)


def _make_ready(workflow: Workflow, crashes: Path, *, stop_on_first_crash: bool) -> None:
    """Configure nipype for a run; ``crashes`` is the folder for its tracebacks."""
    crashes.mkdir(parents=True)
    _remove_stale_locks(workflow)
    _forget_if_moved(workflow)
    label_nodes(workflow, owner="", label="", part="", step="", fatal=True)
    workflow.config["execution"] = {
        "crashdump_dir": str(crashes),
        "crashfile_format": "txt",
        "stop_on_first_crash": stop_on_first_crash,
        "poll_sleep_duration": 0.05,
        "create_report": False,
        "remove_unnecessary_outputs": False,
        "hash_method": "content",  # so that a copied dataset, or a rewritten template, is unchanged
    }
    nipype.config.set_default_config()  # not what a nipype.cfg in the current folder says
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
        Workflow with a ``base_dir``.
    resources : Resources
        Resources of this machine that it may use.
    plugin : mapping or None
        ``plugin`` and ``plugin_args`` of nipype, to run elsewhere; None for this machine.
    logs : Path
        Folder for tracebacks, as ``crash-*``.
    stop_on_first_crash : bool
        If True, the run stops at the first failure.
    on_status : callable
        Callback for each node: (node, "start"), (node, "end") or (node, "exception").
    on_finished : callable or None
        Callback for each finished part of the graph: its name, and all failures of any part so far.
        If given, each part is done before the next begins, as long as no process is idle. Not used
        by other plugins.
    on_used : callable or None
        Callback for each node that has run: the node and the resources it used, see
        :func:`bids_app.resources.measured`. Not used by other plugins, nor for nodes whose process
        was killed.

    Returns
    -------
    list of Crash
        One entry per failed node; empty if there is none.

    Raises
    ------
    Mri2petError
        If the run stops without a failed node.
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
POLLING = 2.0  # s between polls, each of which queries the server of the queue for each job
WAITING = 20.0  # s for the result of a finished job to appear on a shared disk
LOG_LINES = 200
SUBMITTING = {"SLURM": "sbatch", "SGE": "qsub", "PBS": "qsub", "LSF": "bsub", "OAR": "oarsub"}
GPU_OPTION = re.compile(r"--(gres|gpus)|-G\b")  # options of sbatch that request a GPU
CANCEL = {"SLURM": "scancel", "SGE": "qdel", "PBS": "qdel", "LSF": "bkill", "OAR": "oardel"}
CANCELLING = 2.0  # s, of the 5 s that a run has to end; our choice
OWN_MEMORY = 1.0  # GiB for Python and its libraries in a job; 0.25 to 0.7 were observed


class _LostJobs:
    """Mixin for plugins of nipype that explains a job without a result in a sentence."""

    _batch_jobs: dict[int, tuple[str, Path]]

    def _submit_batchtask(self, scriptfile: str, node: Node) -> int:
        taskid: int = super()._submit_batchtask(scriptfile, node)  # type: ignore[misc]  # nipype's
        self._batch_jobs[taskid] = (node.fullname, Path(scriptfile).parent)
        return taskid

    def _get_result(self, taskid: int) -> dict | None:
        result: dict | None = super()._get_result(taskid)  # type: ignore[misc]  # nipype's
        if result is None or not isinstance(result["traceback"], str):
            return result
        name, folder = self._batch_jobs[taskid]  # nipype expects a list, but returned a string
        return {**result, "traceback": [f"{_sentence(taskid, name, folder)}\n"]}


def _sentence(taskid: int, name: str, folder: Path) -> str:
    """Describe a job that ended without a result, with the last error in its log."""
    lines: list[str] = []
    for log in folder.glob(f"*{taskid}*.out"):
        lines += log.read_text(errors="replace").split("\n")[-LOG_LINES:]
    said = [line.strip() for line in lines if "error" in line.lower()]
    last = f" ({said[-1]})" if said else ""
    return (
        f"bids_app.errors.Mri2petError: {name}: job {taskid} ended without a result{last}: it was "
        "cancelled, or ran out of memory or time; run the same command again to resume, with "
        f"more of both in the file of --use-plugin if necessary; its log is in {folder}"
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
    """Check, before a run begins, that it can use a plugin.

    Raises
    ------
    UsageError
        If there is no such plugin, if it does not wait for its jobs, or if its command for
        submitting them is not installed.
    """
    _class_of(name)
    command = SUBMITTING.get(name)
    if command is not None and shutil.which(command) is None:
        raise UsageError(
            f"--use-plugin: {command}, which submits jobs to {name}, is not installed here; run on "
            "a machine that has it, or leave the option out"
        )


def make_plugin(name: str, arguments: Mapping[str, object]) -> PluginBase:
    """Create a plugin of nipype.

    Parameters
    ----------
    name : str
        ``plugin`` in the file of ``--use-plugin``: SLURM, SGE, PBS, LSF, OAR, Condor, …
    arguments : mapping
        ``plugin_args`` of the plugin.

    Raises
    ------
    UsageError
        If there is no such plugin, or if it does not wait for its jobs.
    """
    kind = _class_of(name)
    if not issubclass(kind, SGELikeBatchManagerBase):
        return kind(plugin_args=dict(arguments))
    plugin = type(f"LostJobs{name}", (_LostJobs, kind), {})(plugin_args=dict(arguments))
    plugin._batch_jobs = {}
    return plugin


def cancel_jobs(plugin: PluginBase, name: str) -> None:
    """Cancel the jobs that are waiting or running.

    Otherwise, they would continue beside those of the next run, in the same folders.

    Parameters
    ----------
    plugin : PluginBase
        Plugin created by :func:`make_plugin`.
    name : str
        Name of the plugin; jobs of queues without a command in ``CANCEL`` continue.
    """
    jobs = [str(taskid) for taskid in getattr(plugin, "_pending", ())]
    if jobs and name in CANCEL:
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [CANCEL[name], *jobs], check=False, capture_output=True, timeout=CANCELLING
            )


def ask_for_needs(workflow: Workflow, name: str, arguments: Mapping[str, object]) -> None:
    """Request from SLURM the CPUs, memory and GPU of each node, unless the plugin file sets them.

    Parameters
    ----------
    workflow : Workflow
        Workflow whose nodes receive ``plugin_args``.
    name : str
        Name of the plugin.
    arguments : mapping
        ``plugin_args`` of the plugin.
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
    """Set LOGNAME, which nipype requires for the names of jobs, if the account has none."""
    if not environment.get("LOGNAME"):
        try:
            environment["LOGNAME"] = getpass.getuser()
        except (KeyError, OSError):
            environment["LOGNAME"] = f"uid{os.getuid()}"
