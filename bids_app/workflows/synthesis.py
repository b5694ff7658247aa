"""Workflows that predict a PET from a T1w in template space, and compare it with the real one."""

from dataclasses import dataclass
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from bids_app.detection.clusters import names_beside
from bids_app.generators import GeneratorChoice
from bids_app.interfaces.anatomy import Resample
from bids_app.interfaces.derivatives import AddToSidecar
from bids_app.interfaces.imaging import ComparePET, MeasureRegions, SubtractPET
from bids_app.interfaces.synthesis import MeasureNovelty, PredictError, SynthesizePET
from bids_app.nifti import SYNTHETIC_PET
from bids_app.workflows.execution import Output, label_nodes, save_node


def resample_to_t1w_node(omp_nthreads: int) -> Node:
    """Create the node that resamples a synthetic PET, its input ``image``, to the T1w's grid."""
    resample = Resample(interpolation="linear", description=SYNTHETIC_PET)
    return Node(resample, name="carry_to_t1w", n_procs=omp_nthreads, mem_gb=2)


@dataclass(frozen=True)
class SynthesisPlan:
    """Settings of the synthesis of one PET, and the destinations of its results.

    Parameters
    ----------
    generator : GeneratorChoice
        Generator and its options.
    fwhm : float
        Smoothing of the result, in mm.
    times_mean : float
        Scale of real PET in this run; see :func:`bids_app.imaging.intensity.scale_to_unit`.
    device : str
        A torch device.
    output : Output
        Destination of the result.
    in_t1w : Output or None
        Destination of the result on the T1w's own grid; None if there is no such T1w, or no
        transform to it.
    uncertainty : Output or None
        Destination of the standard deviation of its error; None if it is not requested.
    subtracted : tuple of Output
        Destinations of the synthetic PET in the unit of the first real one, and of their
        difference, on the T1w's grid; empty without a real PET or that grid.
    regions : Output or None
        Destination of the table of uptake by region; None in a space without an atlas.
    atlas : Path or None
        Label image of the atlas; the names of its labels are in the ``.tsv`` file beside it.
    """

    generator: GeneratorChoice
    fwhm: float
    times_mean: float
    device: str
    output: Output
    in_t1w: Output | None
    uncertainty: Output | None = None
    subtracted: tuple[Output, ...] = ()
    regions: Output | None = None
    atlas: Path | None = None


def init_synthesis_wf(
    *, plan: SynthesisPlan, omp_nthreads: int, name: str = "synthesis_wf"
) -> Workflow:
    """Predict the PET of a T1w in MNI space, and save it.

    Parameters
    ----------
    plan : SynthesisPlan
        Generator and destinations.
    omp_nthreads : int
        Number of threads that torch may use.

    Inputs
    ------
    t1w
        T1w in [0, 1] on the generator's grid, brain only.
    brain_mask
        Brain mask on that grid.
    own_t1w
        T1w on its own grid.
    template_to_t1w
        Transform in ITK's HDF5 format.

    Outputs
    -------
    pet
        Synthetic PET in [0, 1].
    sidecar_file
        Sidecar of the saved PET.
    pet_in_t1w
        Synthetic PET on the grid of the T1w; undefined if the plan does not request it.
    """
    inputnode = Node(
        IdentityInterface(["t1w", "brain_mask", "own_t1w", "template_to_t1w"]), name="inputnode"
    )
    outputnode = Node(IdentityInterface(["pet", "sidecar_file", "pet_in_t1w"]), name="outputnode")
    options, card = plan.generator.options, plan.generator.card
    predict_pet = SynthesizePET(
        generator=str(plan.generator.folder),
        sha256=card.sha256,
        fwhm=plan.fwhm,
        reference_sha256=card.reference_sha256 if options.match_histogram else "",
        overlap=options.overlap,
        match_histogram=options.match_histogram,
        times_mean=plan.times_mean,
        device=plan.device,
        threads=omp_nthreads,
    )
    synthesize = Node(predict_pet, name="synthesize", n_procs=omp_nthreads, mem_gb=2)
    label_nodes(synthesize, step="synthetic PET")
    measured = Node(Merge(2), name="measured_of_synthesis", run_without_submitting=True)
    save = save_node(plan.output, "synthetic_pet")
    workflow = Workflow(name)
    workflow.connect(
        [
            (inputnode, synthesize, [("t1w", "t1w"), ("brain_mask", "mask")]),
            (synthesize, save, [("pet", "in_file")]),
            (synthesize, measured, [("sidecar", "in1")]),
            (measured, save, [("out", "measured")]),
            (synthesize, outputnode, [("pet", "pet")]),
            (save, outputnode, [("sidecar_file", "sidecar_file")]),
        ]
    )
    if plan.in_t1w is not None:
        carry = resample_to_t1w_node(omp_nthreads)
        save_extra = save_node(plan.in_t1w, "synthetic_pet_in_t1w")
        workflow.connect(
            [
                (inputnode, carry, [("own_t1w", "reference"), ("template_to_t1w", "transforms")]),
                (synthesize, carry, [("pet", "image")]),
                (carry, save_extra, [("image", "in_file")]),
                (carry, outputnode, [("image", "pet_in_t1w")]),
            ]
        )
    if options.novelty:
        compare = MeasureNovelty(
            generator=str(plan.generator.folder), reference_sha256=card.reference_sha256
        )
        node = Node(compare, name="measure_novelty")
        workflow.connect(
            [(inputnode, node, [("t1w", "t1w")]), (node, measured, [("sidecar", "in2")])]
        )
    if plan.uncertainty is not None:
        predict = PredictError(
            generator=str(plan.generator.folder), uncertainty_sha256=card.uncertainty_sha256
        )
        error = Node(predict, name="predict_error", mem_gb=1)
        save_extra = save_node(plan.uncertainty, "uncertainty")
        label_nodes(error, step="uncertainty", fatal=False)
        label_nodes(save_extra, fatal=False)
        workflow.connect(
            [
                (inputnode, error, [("t1w", "t1w"), ("brain_mask", "mask")]),
                (synthesize, error, [("pet", "pet")]),
                (error, save_extra, [("deviation", "in_file"), ("sidecar", "measured")]),
            ]
        )
    return workflow


def init_subtraction_wf(*, outputs: tuple[Output, ...], name: str = "subtraction_wf") -> Workflow:
    """Scale the synthetic PET to the real one, subtract it, and save both results.

    Parameters
    ----------
    outputs : tuple of Output
        Destinations of the scaled synthetic PET and of the difference.

    Inputs
    ------
    synthetic
        Synthetic PET on the grid of the T1w.
    real
        Real PET on that grid, in its own unit.
    brain_mask
        Brain mask on that grid.
    coverage
        Mask of the voxels covered by the real PET; all, if undefined.
    trusted
        File that is passed on only if the registration of the real PET did not fail.
    """
    fields = ["synthetic", "real", "brain_mask", "coverage", "trusted"]
    inputnode = Node(IdentityInterface(fields), name="inputnode")
    subtract = Node(SubtractPET(), name="subtract", mem_gb=1)
    doors = [(field, "mask" if field == "brain_mask" else field) for field in fields]
    workflow = Workflow(name)
    workflow.connect([(inputnode, subtract, doors)])
    for field, output in zip(("scaled", "difference"), outputs, strict=True):
        save = save_node(output, field)
        workflow.connect([(subtract, save, [(field, "in_file"), ("sidecar", "measured")])])
    label_nodes(workflow, fatal=False)
    return workflow


def init_regions_wf(*, output: Output, atlas: Path, name: str = "regions_wf") -> Workflow:
    """Measure uptake by region in the synthetic and the real PET, and save the table.

    Parameters
    ----------
    output : Output
        Destination of the table, with the description of its columns.
    atlas : Path
        Label image in the space of the PET; the names of its labels are in the ``.tsv`` file
        beside it.

    Inputs
    ------
    synthetic
        Synthetic PET in [0, 1].
    real
        Real PET in [0, 1] on the same grid, if there is one.
    brain_mask
        Brain mask on that grid.
    coverage
        Mask of the voxels covered by the real PET; all, if undefined.
    """
    fields = ["synthetic", "real", "brain_mask", "coverage"]
    inputnode = Node(IdentityInterface(fields), name="inputnode")
    measuring = MeasureRegions(atlas=str(atlas), names=str(names_beside(atlas)))
    measure = Node(measuring, name="measure_regions", mem_gb=1)
    save = save_node(output, "regions")
    doors = [("synthetic", "synthetic"), ("real", "real"), ("brain_mask", "mask")]
    workflow = Workflow(name)
    workflow.connect(
        [
            (inputnode, measure, [*doors, ("coverage", "coverage")]),
            (measure, save, [("table", "in_file")]),
        ]
    )
    label_nodes(workflow, fatal=False)
    return workflow


def init_comparison_wf(*, name: str = "comparison_wf") -> Workflow:
    """Compare a synthetic PET with the real one, and add the measures to its sidecar.

    Inputs
    ------
    synthetic
        Synthetic PET in [0, 1].
    sidecar_file
        Sidecar of the saved synthetic PET.
    real
        Real PET in [0, 1] on the same grid.
    brain_mask
        Brain mask on that grid.
    coverage
        Mask of the voxels covered by the real PET; all, if undefined.
    """
    inputnode = Node(
        IdentityInterface(["synthetic", "sidecar_file", "real", "brain_mask", "coverage"]),
        name="inputnode",
    )
    compare = Node(ComparePET(), name="compare")
    add = Node(AddToSidecar(), name="tell")
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
            (inputnode, add, [("sidecar_file", "sidecar_file")]),
            (compare, add, [("sidecar", "measured")]),
        ]
    )
    label_nodes(workflow, fatal=False)
    return workflow
