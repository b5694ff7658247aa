"""nipype's plugins for queues of a cluster, told what nodes need, and telling why a job is gone."""

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from nipype.pipeline.engine import Node, Workflow
from nipype.pipeline.plugins.base import GraphPluginBase, PluginBase, SGELikeBatchManagerBase

from bids_app.errors import UsageError

PLUGINS = "nipype.pipeline.plugins"
POLLING = 2.0  # s between two looks at the queue: each asks its server about each job
WAITING = 20.0  # s for the result of a job that has left the queue, while a shared disk settles
LOG_LINES = 200
SUBMITTING = {"SLURM": "sbatch", "SGE": "qsub", "PBS": "qsub", "LSF": "bsub", "OAR": "oarsub"}
GPU_OPTION = re.compile(r"--(gres|gpus)|-G\b")  # sbatch's ways to ask for a GPU
CANCEL = {"SLURM": "scancel", "SGE": "qdel", "PBS": "qdel", "LSF": "bkill", "OAR": "oardel"}
CANCELLING = 2.0  # s, of the 5 s that a run has to end; our choice
OWN_MEMORY = 1.0  # GiB that Python and its libraries take in a job of their own; seen: 0.25 to 0.7


class _Telling:
    """Mixed into a plugin of nipype: a job that ended without a result is told in a sentence."""

    _own_jobs: dict[int, tuple[str, Path]]

    def _submit_batchtask(self, scriptfile: str, node: Node) -> int:
        taskid: int = super()._submit_batchtask(scriptfile, node)  # type: ignore[misc]
        self._own_jobs[taskid] = (node.fullname, Path(scriptfile).parent)
        return taskid

    def _get_result(self, taskid: int) -> dict | None:
        result: dict | None = super()._get_result(taskid)  # type: ignore[misc]
        if result is None or not isinstance(result["traceback"], str):
            return result
        name, folder = self._own_jobs[taskid]  # nipype would choke on what it made itself
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
    plugin = type(f"Telling{name}", (_Telling, kind), {})(plugin_args=dict(arguments))
    plugin._own_jobs = {}
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
    told = str(arguments.get("sbatch_args", ""))
    for node in workflow._get_all_nodes():
        wanted = []
        if not ("--cpus-per-task" in told or "-c " in told):
            wanted.append(f"--cpus-per-task={node.n_procs}")
        if "--mem" not in told:
            wanted.append(f"--mem={round(1024 * (node.mem_gb + OWN_MEMORY))}M")
        if node.is_gpu_node() and not GPU_OPTION.search(told):
            wanted.append("--gres=gpu:1")
        node.plugin_args = {"sbatch_args": " ".join(wanted)}


def name_user(environment: MutableMapping[str, str]) -> None:
    """Set LOGNAME, which nipype wants for the names of jobs; accounts without a name lack it."""
    if not environment.get("LOGNAME"):
        try:
            environment["LOGNAME"] = getpass.getuser()
        except (KeyError, OSError):
            environment["LOGNAME"] = f"uid{os.getuid()}"
