"""Run the graphs of visits, and say in sentences what failed."""

import shutil
from collections.abc import Callable, Sequence

from nipype.pipeline.engine import Workflow

from bids_app.app.intake import Problem, problem_of
from bids_app.app.preparation import read_plugin, work_dir_of
from bids_app.console import Voice
from bids_app.files import remove_partials
from bids_app.planning import Run, VisitPlan, init_visit_wf
from bids_app.settings import Settings
from bids_app.workflows.execution import Crash, FinishedCallback, Resources, run_graph

# Parts of a graph without which a visit still has results
BESIDES = (".pet_", ".comparison_wf", ".uncertainty_wf")


def compute(
    plans: Sequence[VisitPlan],
    run: Run,
    resources: Resources,
    settings: Settings,
    voice: Voice,
    *,
    on_finished: Callable[[str, Sequence[Problem]], None],
) -> list[Problem]:
    """Run the graphs of visits, one participant's before the next's; tell and return what failed.

    Parameters
    ----------
    plans : sequence of VisitPlan
        Of all visits, those of a participant beside one another.
    run, resources, settings, voice
        Of the run.
    on_finished : callable
        Is told a participant's label, and what has failed so far, when nothing is left to be done
        for that participant. Not where another plugin runs the graphs.
    """
    problems, graphs = [], {}
    for plan in plans:
        try:
            graphs[plan.name] = init_visit_wf(plan, run)
            results = (*plan.paths.preprocessed, *plan.paths.synthesized)
            for folder in {path.parent for path in results}:
                remove_partials(folder)
        except Exception as error:  # of any kind: it is this visit's, and no one else's
            logs = settings.output_dir / "logs"
            problems.append(problem_of(error, plan.visit.subject, plan.label, logs, plan.name))
    if graphs:
        unbuilt, left = tuple(problems), set(graphs)

        def tell_finished(name: str, crashes: Sequence[Crash]) -> None:
            left.discard(name)
            (subject,) = {plan.visit.subject for plan in plans if plan.name == name}
            if not any(plan.name in left for plan in plans if plan.visit.subject == subject):
                on_finished(subject, [*unbuilt, *(_problem(crash, plans) for crash in crashes)])

        crashes = _run_graphs(graphs, plans, resources, settings, voice, on_finished=tell_finished)
        problems += [_problem(crash, plans) for crash in crashes]
    for problem in problems:
        voice.fail(problem.sentence)
    return problems


def clean(plans: Sequence[VisitPlan], problems: Sequence[Problem], settings: Settings) -> None:
    """Delete intermediate files of visits in which nothing failed."""
    failed = {problem.visit for problem in problems}
    for plan in plans:
        if plan.name not in failed:
            shutil.rmtree(work_dir_of(settings) / "mri2pet" / plan.name, ignore_errors=True)


def _run_graphs(
    graphs: dict[str, Workflow],
    plans: Sequence[VisitPlan],
    resources: Resources,
    settings: Settings,
    voice: Voice,
    *,
    on_finished: FinishedCallback,
) -> list[Crash]:
    workflow = Workflow("mri2pet", base_dir=str(work_dir_of(settings)))
    workflow.add_nodes(list(graphs.values()))
    labels = {plan.name: plan.label for plan in plans if plan.name in graphs}
    steps = {name: len(graph.list_node_names()) for name, graph in graphs.items()}
    with voice.progress(labels, steps) as on_status:
        return run_graph(
            workflow,
            resources=resources,
            plugin=read_plugin(settings.use_plugin),
            logs=settings.output_dir / "logs",
            stop_on_first_crash=settings.stop_on_first_crash,
            on_status=on_status,
            on_finished=on_finished,
        )


def _problem(crash: Crash, plans: Sequence[VisitPlan]) -> Problem:
    parts = crash.node.split(".")
    for plan in plans:
        if plan.name in parts:
            told = f"{plan.label}: {crash.sentence}"
            fatal = not any(part in crash.node for part in BESIDES)
            return Problem(plan.visit.subject, told, crash.exit_code, plan.name, fatal)
    return Problem("?", crash.sentence, crash.exit_code)
