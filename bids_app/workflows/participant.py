"""Workflows for one visit, from raw images to MNI-registered T1w and PET and a synthetic PET.

Paths and sidecars of results are passed in as an ``Output``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bids_app.visit import Derived
from bids_app.workflows.execution import Output, label_nodes, link, save_node
from bids_app.workflows.registration import (
    Preprocessing,
    add_verdict_node,
    init_anatomical_wf,
    init_pet_wf,
)
from bids_app.workflows.synthesis import (
    SynthesisPlan,
    init_comparison_wf,
    init_regions_wf,
    init_subtraction_wf,
    init_synthesis_wf,
)


@dataclass(frozen=True)
class PetPlan:
    """PET image, and the destinations of its results.

    Parameters
    ----------
    pet : Path
        PET as acquired, or as preprocessed by another app.
    durations : tuple of float
        Durations of its frames, in s.
    outputs : mapping
        Destinations by the names of the outputs of :func:`init_pet_wf`.
    orientation : str
        Axis code that the user asserts because the header has none; otherwise empty.
    derived : Derived or None
        Results of another app for it, if any.
    starts : tuple of float
        Starts of its frames, in s after injection; empty if unknown.
    """

    pet: Path
    durations: tuple[float, ...]
    outputs: Mapping[str, Output]
    orientation: str = ""
    derived: Derived | None = None
    starts: tuple[float, ...] = ()


def _save_all(
    workflow: Workflow, source: Workflow, outputs: Mapping[str, Output], prefix: str
) -> None:
    """Connect each output of a workflow, and its measures, to a node that saves it."""
    fields = source.get_node("outputnode").interface._fields
    for field, output in outputs.items():
        save = save_node(output, f"{prefix}{field}")
        workflow.connect(source, f"outputnode.{field}", save, "in_file")
        if f"{field}_measured" in fields:
            workflow.connect(source, f"outputnode.{field}_measured", save, "measured")


def init_preprocessing_wf(
    *,
    t1w: Path,
    outputs: Mapping[str, Output],
    pets: Sequence[PetPlan],
    options: Preprocessing,
    orientation: str = "",
    derived: Derived | None = None,
    name: str = "preprocessing_wf",
) -> Workflow:
    """Register the T1w of a visit, and its PET images, to MNI space, and save all results.

    Parameters
    ----------
    t1w : Path
        T1w as acquired, or as preprocessed by another app.
    outputs : mapping
        Destinations of the T1w's results, by the names of the outputs of
        :func:`init_anatomical_wf`.
    pets : sequence of PetPlan
        PET images of the visit; may be empty.
    options : Preprocessing
        Targets and parameters.
    orientation : str
        Axis code that the user asserts because the T1w's header has none; otherwise empty.
    derived : Derived or None
        Results of another app for the T1w, if any.

    Outputs
    -------
    t1w_in_template
        T1w in [0, 1] on the grid of the outputs, brain only; undefined if its registration failed.
    brain_mask_in_template
        Brain mask on that grid.
    pet_in_template
        First PET in [0, 1] on that grid; undefined if there is none, or if its registration failed.
    coverage_in_template
        Part of the brain that this PET covers.
    t1w
        T1w on its own grid.
    brain_mask
        Brain mask on that grid.
    template_to_t1w
        Composite transform in ITK's HDF5 format.
    pet_in_t1w
        First PET on the grid of the T1w, in its own unit, even if its registration failed.
    coverage_in_t1w
        Mask of the voxels that it covers on that grid.
    """
    workflow = Workflow(name)
    fields = ["t1w_in_template", "brain_mask_in_template", "pet_in_template"]
    fields += ["coverage_in_template", "t1w", "brain_mask", "template_to_t1w"]
    fields += ["pet_in_t1w", "coverage_in_t1w"]
    outputnode = Node(IdentityInterface(fields), name="outputnode")
    anatomical = init_anatomical_wf(options=options, orientation=orientation, derived=derived)
    anatomical.inputs.inputnode.t1w = str(t1w)
    _save_all(workflow, anatomical, outputs, "")
    trust = add_verdict_node(workflow, anatomical, "t1w_in_template", "t1w_in_template_measured")
    trust.inputs.source = str(t1w)
    workflow.connect(trust, "image", outputnode, "t1w_in_template")
    for field in ("brain_mask_in_template", "t1w", "brain_mask", "template_to_t1w"):
        workflow.connect(anatomical, f"outputnode.{field}", outputnode, field)
    onward = (
        "t1w",
        "brain_mask",
        "brain_mask_in_template",
        "t1w_to_template",
        "t1w_in_template_measured",
    )
    for number, plan in enumerate(pets):
        pet = init_pet_wf(
            pet=plan.pet,
            orientation=plan.orientation,
            durations=plan.durations,
            starts=plan.starts,
            options=options,
            derived=plan.derived,
            name=f"pet_{number}_wf",
        )
        link(workflow, anatomical, pet, **{field: field for field in onward})
        _save_all(workflow, pet, plan.outputs, f"pet_{number}_")
        verdict = f"pet_{number}_verdict"
        trust = add_verdict_node(workflow, pet, "in_template", "to_t1w_measured", name=verdict)
        trust.inputs.source = str(plan.pet)
        for optional in (pet, trust):  # a visit has results without a PET, too
            label_nodes(optional, fatal=False)
        if number == 0:
            workflow.connect(trust, "image", outputnode, "pet_in_template")
            workflow.connect(pet, "outputnode.in_t1w", outputnode, "pet_in_t1w")
            for field in ("coverage_in_template", "coverage_in_t1w"):
                workflow.connect(pet, f"outputnode.{field}", outputnode, field)
    return workflow


def init_participant_wf(
    preprocessing: Workflow,
    synthesis: SynthesisPlan,
    *,
    omp_nthreads: int,
    real: bool,
    name: str = "participant_wf",
) -> Workflow:
    """Preprocess a visit and predict its PET.

    Parameters
    ----------
    preprocessing : Workflow
        Workflow from :func:`init_preprocessing_wf`.
    synthesis : SynthesisPlan
        Generator and destinations.
    omp_nthreads : int
        Number of threads that torch may use.
    real : bool
        Whether there is real PET; the synthetic one is compared with the first of them.
    """
    workflow = Workflow(name)
    workflow.add_nodes([preprocessing])
    _add_synthesis(
        workflow,
        synthesis,
        partial(link, workflow, preprocessing),
        omp_nthreads=omp_nthreads,
        real=real,
        real_in_t1w=real,
    )
    return workflow


def init_synthesis_from_disk_wf(
    *,
    files: Mapping[str, Path],
    synthesis: SynthesisPlan,
    omp_nthreads: int,
    name: str = "participant_wf",
) -> Workflow:
    """Predict the PET of a visit that was preprocessed by an earlier run.

    Parameters
    ----------
    files : mapping
        Results of that run, by the names of the outputs of :func:`init_preprocessing_wf`. Those of
        a PET may be missing; without a coverage, a PET covers the whole brain.
    synthesis : SynthesisPlan
        Generator and destinations.
    omp_nthreads : int
        Number of threads that torch may use.
    """

    def give(graph: Workflow, **fields: str) -> None:
        for into, output in fields.items():
            if output in files:
                setattr(graph.inputs.inputnode, into, str(files[output]))

    workflow = Workflow(name)
    _add_synthesis(
        workflow,
        synthesis,
        give,
        omp_nthreads=omp_nthreads,
        real="pet_in_template" in files,
        real_in_t1w="pet_in_t1w" in files,
    )
    return workflow


def _add_synthesis(
    workflow: Workflow,
    synthesis: SynthesisPlan,
    give: Callable[..., None],
    *,
    omp_nthreads: int,
    real: bool,
    real_in_t1w: bool,
) -> None:
    """Add the prediction of a PET, and its comparison with the first real one if there is one.

    ``give(graph, field="output", …)`` gives outputs of :func:`init_preprocessing_wf` to a graph.
    """
    mask = {"brain_mask": "brain_mask_in_template"}
    of_pet = {"real": "pet_in_template", "coverage": "coverage_in_template"} if real else {}
    predicting = init_synthesis_wf(plan=synthesis, omp_nthreads=omp_nthreads)
    workflow.add_nodes([predicting])
    give(
        predicting, t1w="t1w_in_template", **mask, own_t1w="t1w", template_to_t1w="template_to_t1w"
    )
    if synthesis.regions is not None and synthesis.atlas is not None:
        measuring = init_regions_wf(output=synthesis.regions, atlas=synthesis.atlas)
        give(measuring, **mask, **of_pet)
        link(workflow, predicting, measuring, synthetic="pet")
    if real:
        comparing = init_comparison_wf()
        give(comparing, **mask, **of_pet)
        link(workflow, predicting, comparing, synthetic="pet", sidecar_file="sidecar_file")
    if real_in_t1w and synthesis.subtracted:
        subtracting = init_subtraction_wf(outputs=synthesis.subtracted)
        give(
            subtracting,
            real="pet_in_t1w",
            coverage="coverage_in_t1w",
            trusted="pet_in_template",
            brain_mask="brain_mask",
        )
        link(workflow, predicting, subtracting, synthetic="pet_in_t1w")
