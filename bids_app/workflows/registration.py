"""Workflows that register T1w and PET to MNI space."""

from dataclasses import dataclass
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from bids_app.interfaces.anatomy import (
    CorrectBias,
    ExtractBrain,
    RefuseGaps,
    RegisterPET,
    RegisterToTemplate,
    Resample,
    TakeBrain,
    TakePET,
    TakeTransforms,
)
from bids_app.interfaces.imaging import (
    ApplyMask,
    FindFieldOfView,
    JudgeRegistration,
    MeasureCoverage,
    RaiseT1w,
    ReadPET,
    ReadT1w,
    RefuseFailed,
    ScaleIntensity,
    TaintVerdict,
)
from bids_app.visit import Derived
from bids_app.workflows.execution import label_nodes

SMOOTH = "bSpline"  # cubic; 2 s for a T1w at 1 mm, while a windowed sinc takes 11 s
CRISP = "nearestNeighbor"
BIAS_GRID, QUICK_BIAS_GRID = 4.0, 8.0  # mm; docs/results/registration.md
LINEAR = "linear"  # no ringing around hot voxels of a PET


@dataclass(frozen=True)
class Preprocessing:
    """Targets and parameters for registering T1w and PET to MNI space.

    Parameters
    ----------
    template : Path
        Brain of the template, the target of registration.
    reference, reference_mask : Path
        Brain of the template and its mask, on the grid of the outputs.
    skull_strip : {"auto", "force", "skip"}
        Use of deepbet for brain extraction; ``auto`` skips it for stripped T1w.
    frames : tuple of int
        Frames of a PET to average, from 0; all if empty.
    percentile, times_mean : float
        Percentile of the brain's intensities that is scaled to 1; for PET, the multiple of the
        brain's mean that is scaled to 1 instead, if it is not 0.
    quick : bool
        If True, registration is coarse, for testing only.
    seed : int
        Seed for sampling voxels in registration.
    omp_nthreads : int
        Number of threads for each node that can use several.
    """

    template: Path
    reference: Path
    reference_mask: Path
    skull_strip: str
    frames: tuple[int, ...]
    percentile: float
    times_mean: float
    quick: bool
    seed: int
    omp_nthreads: int


def _brain_nodes(options: Preprocessing, derived: Derived | None) -> tuple[Node, Node]:
    """Create the nodes for brain and bias field, or those that use another app's results."""
    take_t1w = Node(RaiseT1w(), name="take_t1w", mem_gb=1)
    if derived is not None and derived.brain_mask is not None:
        take = TakeBrain(
            brain_mask=str(derived.brain_mask),
            skull_stripped=derived.skull_stripped,
            method=derived.method,
        )
        return Node(take, name="take_brain", mem_gb=1), take_t1w
    extract = Node(
        ExtractBrain(mode=options.skull_strip, threads=options.omp_nthreads),
        name="extract_brain",
        n_procs=options.omp_nthreads,
        mem_gb=3,
    )
    label_nodes(extract, step="brain extraction")
    if derived is not None:
        return extract, take_t1w
    correct = Node(
        CorrectBias(grid=QUICK_BIAS_GRID if options.quick else BIAS_GRID),
        name="correct_bias",
        n_procs=options.omp_nthreads,
        mem_gb=2,
    )
    label_nodes(correct, step="bias field")
    return extract, correct


def _to_template_node(options: Preprocessing, derived: Derived | None) -> Node:
    """Create the node that registers a T1w to the template, or uses another app's transforms."""
    template = str(options.template)
    if derived is not None and derived.is_registered:
        take = TakeTransforms(template=template)
        if derived.forward is not None:
            take.inputs.trait_set(forward=str(derived.forward), back=str(derived.back))
        return Node(take, name="take_transforms", mem_gb=3)
    register = Node(
        RegisterToTemplate(template=template, quick=options.quick, seed=options.seed),
        name="register_to_template",
        mem_gb=3,
    )
    label_nodes(register, step="T1w to template")
    return register


def _to_t1w_node(options: Preprocessing, derived: Derived | None) -> Node:
    """Create the node that registers a PET to its T1w, or uses another app's transform."""
    if derived is not None:
        take = TakePET(quick=options.quick, taken_from=derived.app)
        if derived.forward is not None:
            take.inputs.transform = str(derived.forward)
        return Node(take, name="take_pet", mem_gb=2)
    register = Node(RegisterPET(quick=options.quick), name="register_to_t1w", mem_gb=2)
    label_nodes(register, step="PET to T1w")
    return register


def add_verdict_node(
    workflow: Workflow, graph: Workflow, image: str, measured: str, *, name: str = "verdict"
) -> Node:
    """Add a node that passes on a registered image of a graph unless its registration failed.

    Its input ``source``, the original file, is left open.
    """
    verdict = Node(RefuseFailed(), name=name, run_without_submitting=True)
    doors = [(f"outputnode.{image}", "image"), (f"outputnode.{measured}", "measured")]
    workflow.connect([(graph, verdict, doors)])
    return verdict


def init_anatomical_wf(
    *,
    options: Preprocessing,
    orientation: str = "",
    derived: Derived | None = None,
    name: str = "anatomical_wf",
) -> Workflow:
    """Register a T1w to MNI space: brain extraction, bias field, registration, scaling.

    Parameters
    ----------
    options : Preprocessing
        Targets and parameters.
    orientation : str
        Axis code that the user asserts because the T1w's header has none; otherwise empty.
    derived : Derived or None
        Results of another app for the T1w, used instead of computing them.

    Inputs
    ------
    t1w
        T1w as acquired, or as preprocessed by another app.

    Outputs
    -------
    t1w
        T1w without bias field, on its own grid; ``t1w_measured`` belongs in its sidecar.
    t1w_measured
        Method of brain extraction, and notes on how the T1w was read.
    brain_mask
        Brain mask on that grid.
    t1w_in_template
        T1w in [0, 1] on the grid of the outputs, brain only.
    t1w_in_template_measured
        Quality of the registration, and scaling.
    brain_mask_in_template
        Brain mask on that grid.
    t1w_to_template
        Composite transform in ITK's HDF5 format.
    template_to_t1w
        Inverse of that transform.
    """
    inputnode = Node(IdentityInterface(["t1w"]), name="inputnode")
    read = Node(ReadT1w(orientation=orientation), name="read", mem_gb=1)
    extract, correct = _brain_nodes(options, derived)
    mask = Node(ApplyMask(), name="mask", mem_gb=1)
    register = _to_template_node(options, derived)
    grid = {"reference": str(options.reference)}
    before = Node(Resample(**grid, interpolation=LINEAR), name="before")
    resample = Node(Resample(**grid, interpolation=SMOOTH), name="resample")
    resample_mask = Node(Resample(**grid, interpolation=CRISP), name="resample_mask")
    scale = Node(ScaleIntensity(percentile=options.percentile, times_mean=0.0), name="scale")
    judge = Node(
        JudgeRegistration(fixed=str(options.reference), fixed_mask=str(options.reference_mask)),
        name="judge",
    )
    if derived is not None and derived.is_registered:
        judge.inputs.taken_from = derived.app
    measured = Node(Merge(2), name="measured", run_without_submitting=True)
    of_t1w = Node(Merge(2), name="measured_of_t1w", run_without_submitting=True)
    outputnode = Node(
        IdentityInterface(
            [
                "t1w",
                "t1w_measured",
                "brain_mask",
                "t1w_in_template",
                "t1w_in_template_measured",
                "brain_mask_in_template",
                "t1w_to_template",
                "template_to_t1w",
            ]
        ),
        name="outputnode",
    )
    workflow = Workflow(name)
    workflow.connect(
        [
            (inputnode, read, [("t1w", "t1w")]),
            (inputnode, extract, [("t1w", "source")]),
            (read, extract, [("t1w", "t1w"), ("valid", "valid")]),
            (read, correct, [("t1w", "t1w")]),
            (extract, correct, [("mask", "mask")]),
            (correct, mask, [("t1w", "image")]),
            (extract, mask, [("mask", "mask")]),
            (mask, register, [("image", "brain")]),
            (mask, before, [("image", "image")]),
            (mask, resample, [("image", "image")]),
            (register, resample, [("t1w_to_template", "transforms")]),
            (extract, resample_mask, [("mask", "image")]),
            (register, resample_mask, [("t1w_to_template", "transforms")]),
            (resample, scale, [("image", "image")]),
            (resample_mask, scale, [("image", "mask")]),
            (before, judge, [("image", "before")]),
            (register, judge, [("start", "start"), ("behind", "behind")]),
            (resample, judge, [("image", "after")]),
            (resample_mask, judge, [("image", "mask_after")]),
            (correct, judge, [("t1w", "t1w")]),
            (extract, judge, [("mask", "brain_mask")]),
            (judge, measured, [("sidecar", "in1")]),
            (scale, measured, [("sidecar", "in2")]),
            (extract, of_t1w, [("sidecar", "in1")]),
            (read, of_t1w, [("sidecar", "in2")]),
            (correct, outputnode, [("t1w", "t1w")]),
            (of_t1w, outputnode, [("out", "t1w_measured")]),
            (extract, outputnode, [("mask", "brain_mask")]),
            (scale, outputnode, [("image", "t1w_in_template")]),
            (measured, outputnode, [("out", "t1w_in_template_measured")]),
            (resample_mask, outputnode, [("image", "brain_mask_in_template")]),
            (
                register,
                outputnode,
                [("t1w_to_template", "t1w_to_template"), ("template_to_t1w", "template_to_t1w")],
            ),
        ]
    )
    return workflow


def init_pet_wf(
    *,
    pet: Path,
    orientation: str = "",
    durations: tuple[float, ...],
    starts: tuple[float, ...] = (),
    options: Preprocessing,
    derived: Derived | None = None,
    name: str = "pet_wf",
) -> Workflow:
    """Register a PET image to MNI space through its participant's T1w.

    The PET is registered rigidly to the T1w, and then transformed to MNI space like the T1w. The
    PET and its field of view are resampled once per grid.

    Parameters
    ----------
    pet : Path
        PET as acquired, or as preprocessed by another app: one volume, or frames.
    orientation : str
        Axis code that the user asserts because the header has none; otherwise empty.
    durations : tuple of float
        Durations of the frames, in s; empty if there is one volume.
    starts : tuple of float
        Starts of the frames, in s after injection; empty if unknown.
    options : Preprocessing
        Targets and parameters.
    derived : Derived or None
        Results of another app for the PET, if any.

    Inputs
    ------
    t1w
        T1w of the same participant, without bias field, on its own grid.
    brain_mask
        Brain mask on that grid.
    brain_mask_in_template
        Brain mask on the grid of the outputs.
    t1w_to_template
        Composite transform in ITK's HDF5 format.
    t1w_in_template_measured
        Measures of the T1w, including the quality of that transform.

    Outputs
    -------
    in_t1w
        PET on the grid of the T1w, in its own unit.
    in_t1w_measured
        Averaged frames, notes on how the PET was read, and the covered part of the brain.
    coverage_in_t1w
        Mask of the voxels that the PET covers, on that grid.
    coverage_in_t1w_measured
        Covered part of the brain.
    in_template
        PET in [0, 1] on the grid of the outputs, brain only.
    in_template_measured
        Quality of the registration, scaling, frames, and the covered part of the brain.
    coverage_in_template
        Mask of the brain that the PET covers, on that grid.
    coverage_in_template_measured
        Covered part of the brain.
    to_t1w
        Rigid transform from PET to T1w, in ITK's text format.
    to_t1w_measured
        Quality of the registration.
    """
    inputnode = Node(
        IdentityInterface(
            [
                "t1w",
                "brain_mask",
                "brain_mask_in_template",
                "t1w_to_template",
                "t1w_in_template_measured",
            ]
        ),
        name="inputnode",
    )
    read = Node(
        ReadPET(
            pet=str(pet),
            orientation=orientation,
            durations=list(durations),
            starts=list(starts),
            frames=list(options.frames),
        ),
        name="read",
        mem_gb=1,
    )
    find = Node(FindFieldOfView(), name="field_of_view")
    register = _to_t1w_node(options, derived)
    gaps = Node(RefuseGaps(source=str(pet)), name="refuse_gaps")
    to_t1w = Node(Resample(interpolation=LINEAR), name="resample_to_t1w")
    field_to_t1w = Node(Resample(interpolation=LINEAR), name="field_to_t1w")
    cover_t1w = Node(MeasureCoverage(), name="coverage_in_t1w")
    path = Node(Merge(2), name="path", run_without_submitting=True)  # the last is applied first
    grid = {"reference": str(options.reference), "interpolation": LINEAR}
    to_template = Node(Resample(**grid), name="resample_to_template")
    field_to_template = Node(Resample(**grid), name="field_to_template")
    cover_template = Node(MeasureCoverage(), name="coverage_in_template")
    scale = Node(
        ScaleIntensity(percentile=options.percentile, times_mean=options.times_mean), name="scale"
    )
    taint = Node(TaintVerdict(), name="taint", run_without_submitting=True)
    in_t1w_measured = Node(Merge(3), name="in_t1w_measured", run_without_submitting=True)
    measured = Node(Merge(5), name="measured", run_without_submitting=True)
    outputnode = Node(
        IdentityInterface(
            [
                "in_t1w",
                "in_t1w_measured",
                "coverage_in_t1w",
                "coverage_in_t1w_measured",
                "in_template",
                "in_template_measured",
                "coverage_in_template",
                "coverage_in_template_measured",
                "to_t1w",
                "to_t1w_measured",
            ]
        ),
        name="outputnode",
    )
    workflow = Workflow(name)
    workflow.connect(
        [
            (read, register, [("pet", "pet")]),
            (inputnode, register, [("t1w", "t1w"), ("brain_mask", "mask")]),
            (read, gaps, [("valid", "valid")]),
            (register, gaps, [("pet_to_t1w", "pet_to_t1w")]),
            (inputnode, gaps, [("brain_mask", "mask")]),
            (read, to_t1w, [("pet", "image")]),
            (inputnode, to_t1w, [("t1w", "reference")]),
            (register, to_t1w, [("pet_to_t1w", "transforms")]),
            (read, find, [("pet", "pet"), ("valid", "valid")]),
            (find, field_to_t1w, [("field_of_view", "image")]),
            (inputnode, field_to_t1w, [("t1w", "reference")]),
            (register, field_to_t1w, [("pet_to_t1w", "transforms")]),
            (to_t1w, cover_t1w, [("image", "image")]),
            (field_to_t1w, cover_t1w, [("image", "field_of_view")]),
            (inputnode, cover_t1w, [("brain_mask", "mask")]),
            (inputnode, path, [("t1w_to_template", "in1")]),
            (register, path, [("pet_to_t1w", "in2")]),
            (read, to_template, [("pet", "image")]),
            (path, to_template, [("out", "transforms")]),
            (find, field_to_template, [("field_of_view", "image")]),
            (path, field_to_template, [("out", "transforms")]),
            (to_template, cover_template, [("image", "image")]),
            (field_to_template, cover_template, [("image", "field_of_view")]),
            (inputnode, cover_template, [("brain_mask_in_template", "mask")]),
            (cover_template, scale, [("image", "image"), ("covered_brain", "mask")]),
            (register, taint, [("sidecar", "sidecar")]),
            (inputnode, taint, [("t1w_in_template_measured", "t1w_measured")]),
            (taint, measured, [("sidecar", "in1")]),
            (scale, measured, [("sidecar", "in2")]),
            (read, measured, [("sidecar", "in3")]),
            (gaps, measured, [("sidecar", "in4")]),
            (cover_template, measured, [("sidecar", "in5")]),
            (read, in_t1w_measured, [("sidecar", "in1")]),
            (gaps, in_t1w_measured, [("sidecar", "in2")]),
            (cover_t1w, in_t1w_measured, [("sidecar", "in3")]),
            (
                cover_t1w,
                outputnode,
                [
                    ("image", "in_t1w"),
                    ("coverage", "coverage_in_t1w"),
                    ("sidecar", "coverage_in_t1w_measured"),
                ],
            ),
            (in_t1w_measured, outputnode, [("out", "in_t1w_measured")]),
            (scale, outputnode, [("image", "in_template")]),
            (
                cover_template,
                outputnode,
                [
                    ("covered_brain", "coverage_in_template"),
                    ("sidecar", "coverage_in_template_measured"),
                ],
            ),
            (measured, outputnode, [("out", "in_template_measured")]),
            (register, outputnode, [("pet_to_t1w", "to_t1w"), ("sidecar", "to_t1w_measured")]),
        ]
    )
    return workflow
