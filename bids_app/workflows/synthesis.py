"""From a T1w in template space to a synthetic PET, and to what tells how far to trust it."""

from dataclasses import dataclass

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from bids_app.generators import GeneratorChoice
from bids_app.interfaces.derivatives import AddToSidecar
from bids_app.interfaces.imaging import ComparePET
from bids_app.interfaces.synthesis import MeasureNovelty, MeasureSpread, SynthesizePET
from bids_app.workflows.execution import Output, label_nodes, save_node


@dataclass(frozen=True)
class SynthesisPlan:
    """A generator, how to use it, and where the synthetic PET goes.

    Parameters
    ----------
    generator : GeneratorChoice
        What predicts, and what is done beyond that.
    fwhm : float
        Smoothing of the result, in mm.
    times_mean : float
        Scale of real PET in this run, as :func:`bids_app.imaging.intensity.scale_to_unit` has it.
    device : str
        A torch device.
    output : Output
        Where the result goes.
    uncertainty : Output or None
        Where the standard deviation of what the generators of folds predict goes, if it is wanted.
    """

    generator: GeneratorChoice
    fwhm: float
    times_mean: float
    device: str
    output: Output
    uncertainty: Output | None = None


def _synthesize(plan: SynthesisPlan, generator: GeneratorChoice, threads: int, name: str) -> Node:
    options, card = plan.generator.options, generator.card
    synthesize = SynthesizePET(
        generator=str(generator.folder),
        sha256=card.sha256,
        fwhm=plan.fwhm,
        reference_sha256=card.reference_sha256 if options.match_histogram else "",
        overlap=options.overlap,
        match_histogram=options.match_histogram,
        times_mean=plan.times_mean,
        device=plan.device,
        threads=threads,
    )
    return Node(synthesize, name=name, n_procs=threads, mem_gb=2)


def init_synthesis_wf(
    *, plan: SynthesisPlan, omp_nthreads: int, name: str = "synthesis_wf"
) -> Workflow:
    """Predict the PET of a T1w that lies in MNI space, and save it.

    Parameters
    ----------
    plan : SynthesisPlan
        Generator and destination.
    omp_nthreads : int
        Threads that torch may use.

    Inputs
    ------
    t1w
        T1w in [0, 1] on the generator's grid, brain only.
    brain_mask
        The brain on that grid.

    Outputs
    -------
    pet
        The synthetic PET in [0, 1].
    sidecar_file
        Its sidecar, in its place.
    """
    inputnode = Node(IdentityInterface(["t1w", "brain_mask"]), name="inputnode")
    outputnode = Node(IdentityInterface(["pet", "sidecar_file"]), name="outputnode")
    synthesize = _synthesize(plan, plan.generator, omp_nthreads, "synthesize")
    label_nodes(synthesize, step="synthetic PET")
    save = save_node(plan.output, "synthetic_pet")
    workflow = Workflow(name)
    workflow.connect(
        [
            (inputnode, synthesize, [("t1w", "t1w"), ("brain_mask", "mask")]),
            (synthesize, save, [("pet", "in_file")]),
            (synthesize, outputnode, [("pet", "pet")]),
            (save, outputnode, [("sidecar_file", "sidecar_file")]),
        ]
    )
    if plan.generator.options.novelty:
        compare = MeasureNovelty(
            generator=str(plan.generator.folder),
            reference_sha256=plan.generator.card.reference_sha256,
        )
        node = Node(compare, name="measure_novelty")
        workflow.connect(
            [(inputnode, node, [("t1w", "t1w")]), (node, save, [("sidecar", "measured")])]
        )
    if plan.uncertainty is not None:
        measuring = init_uncertainty_wf(
            plan=plan, output=plan.uncertainty, omp_nthreads=omp_nthreads
        )
        doors = [("t1w", "inputnode.t1w"), ("brain_mask", "inputnode.brain_mask")]
        workflow.connect([(inputnode, measuring, doors)])
    return workflow


def init_uncertainty_wf(
    *, plan: SynthesisPlan, output: Output, omp_nthreads: int, name: str = "uncertainty_wf"
) -> Workflow:
    """Predict the PET of a T1w by the generator of each fold, and save how far they are apart.

    Parameters
    ----------
    plan : SynthesisPlan
        How generators are used.
    output : Output
        Where the result goes.
    omp_nthreads : int
        Threads that torch may use.

    Inputs
    ------
    t1w
        T1w in [0, 1] on the generators' grid, brain only.
    brain_mask
        The brain on that grid.
    """
    inputnode = Node(IdentityInterface(["t1w", "brain_mask"]), name="inputnode")
    pets = Node(Merge(len(plan.generator.folds)), name="pets", run_without_submitting=True)
    spread = Node(MeasureSpread(), name="spread")
    label_nodes(spread, step="uncertainty")
    save = save_node(output, "uncertainty")
    workflow = Workflow(name)
    for number, generator in enumerate(plan.generator.folds, start=1):
        synthesize = _synthesize(plan, generator, omp_nthreads, f"synthesize_{number}")
        workflow.connect(
            [
                (inputnode, synthesize, [("t1w", "t1w"), ("brain_mask", "mask")]),
                (synthesize, pets, [("pet", f"in{number}")]),
            ]
        )
    workflow.connect([(pets, spread, [("out", "images")]), (spread, save, [("spread", "in_file")])])
    label_nodes(workflow, fatal=False)
    return workflow


def init_comparison_wf(*, name: str = "comparison_wf") -> Workflow:
    """Measure a synthetic PET against the real one, and tell it in its sidecar.

    Inputs
    ------
    synthetic
        Synthetic PET in [0, 1].
    sidecar_file
        Its sidecar, in its place.
    real
        Real PET in [0, 1] on the same grid.
    brain_mask
        The brain on that grid.
    coverage
        What the real PET covers; all, if nothing is given.
    """
    inputnode = Node(
        IdentityInterface(["synthetic", "sidecar_file", "real", "brain_mask", "coverage"]),
        name="inputnode",
    )
    compare = Node(ComparePET(), name="compare")
    tell = Node(AddToSidecar(), name="tell")
    workflow = Workflow(name)
    workflow.connect(
        [
            (
                inputnode,
                compare,
                [
                    ("synthetic", "synthetic"),
                    ("real", "real"),
                    ("brain_mask", "mask"),
                    ("coverage", "coverage"),
                ],
            ),
            (inputnode, tell, [("sidecar_file", "sidecar_file")]),
            (compare, tell, [("sidecar", "measured")]),
        ]
    )
    label_nodes(workflow, fatal=False)
    return workflow
