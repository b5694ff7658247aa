"""Run graphs as the settings say, and tell how far they are, and of the run."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from nipype.pipeline.engine import Workflow

from bids_app.app.preparation import KEPT, read_plugin, share_resources, work_dir_of
from bids_app.claims import claimed
from bids_app.console import Voice
from bids_app.files import remove_partials
from bids_app.provenance import Stamp
from bids_app.report.runs import Told
from bids_app.settings import Settings
from bids_app.workflows.execution import Crash, run_graph


def told_of(stamp: Stamp, started: float) -> Told:
    """Gather what reports tell of a run that ends now; it started at this monotonic time."""
    return Told(
        versions=stamp.versions, date=stamp.date, command=stamp.command,
        duration=time.monotonic() - started,
    )  # fmt: skip


@contextmanager
def hold(
    settings: Settings,
    stamp: Stamp,
    voice: Voice,
    *,
    results: Collection[str],
    intermediate: Collection[str],
) -> Iterator[None]:
    """Keep other runs from what this one works on, for as long as the block lasts.

    What a run that was killed has left half-written beside the folders of subjects is removed.

    Parameters
    ----------
    settings, stamp : Settings, Stamp
        Of the run.
    voice : Voice
        Is told where a disk knows no locks.
    results, intermediate : collection of str
        What is claimed in the output folder, and in the work folder.

    Raises
    ------
    CannotCreateError
        If another run works on the same.
    """
    places = {
        settings.output_dir.resolve(): results, work_dir_of(settings).resolve(): intermediate
    }  # fmt: skip
    with ExitStack() as stack:
        for folder, names in places.items():
            claim = claimed(folder, names, command=stamp.command, date=stamp.date)
            if not stack.enter_context(claim):
                voice.warn(f"{folder}: its disk knows no locks; start no second run into it")
        remove_partials(settings.output_dir)
        for name in KEPT:
            remove_partials(settings.output_dir / name, below=True)
        yield


@dataclass(frozen=True)
class Runner:
    """Runs the graphs of one level.

    Parameters
    ----------
    settings : Settings
        Of the run.
    voice : Voice
        Is told.
    name : str
        Of the folder of intermediate files, in the work folder.
    jobs : int
        That can run side by side, at most.
    """

    settings: Settings
    voice: Voice
    name: str
    jobs: int

    @property
    def threads(self) -> int:
        """Threads of a node."""
        return share_resources(self.settings, self.jobs)[1]

    def run(
        self, graphs: Sequence[Workflow], labels: Mapping[str, str], words: Mapping[str, str]
    ) -> list[Crash]:
        """Run graphs side by side; what failed is returned.

        Parameters
        ----------
        graphs : sequence of Workflow
            Names differ.
        labels, words : mapping
            As :meth:`bids_app.console.Voice.progress` wants them.
        """
        settings = self.settings
        workflow = Workflow(self.name, base_dir=str(work_dir_of(settings)))
        workflow.add_nodes(list(graphs))
        steps = {graph.name: len(graph.list_node_names()) for graph in graphs}
        resources, _ = share_resources(settings, self.jobs)
        with self.voice.progress(labels, steps, words) as on_status:
            return run_graph(
                workflow,
                resources=resources,
                plugin=read_plugin(settings.use_plugin),
                logs=settings.output_dir / "logs",
                stop_on_first_crash=settings.stop_on_first_crash,
                on_status=on_status,
            )
