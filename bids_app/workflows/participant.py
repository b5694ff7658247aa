"""Workflows for one visit, from raw images to MNI-registered T1w and PET and a synthetic PET.

Paths and sidecars of results are passed in as an ``Output``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """

    pet: Path
    durations: tuple[float, ...]
    outputs: Mapping[str, Output]
    orientation: str = ""
    derived: Derived | None = None


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
    mask = "brain_mask_in_template"
    workflow.connect(
        [
            (trust, outputnode, [("image", "t1w_in_template")]),
            (anatomical, outputnode, [(f"outputnode.{mask}", mask)]),
            (
                anatomical,
                outputnode,
                [(f"outputnode.{n}", n) for n in ("t1w", "brain_mask", "template_to_t1w")],
            ),
        ]
    )
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
            cover = "coverage_in_template"
            workflow.connect(
                [
                    (trust, outputnode, [("image", "pet_in_template")]),
                    (pet, outputnode, [(f"outputnode.{cover}", cover)]),
                    (pet, outputnode, [("outputnode.in_t1w", "pet_in_t1w")]),
                    (pet, outputnode, [("outputnode.coverage_in_t1w", "coverage_in_t1w")]),
                ]
            )
    return workflow


def init_participant_wf(
    *,
    t1w: Path,
    outputs: Mapping[str, Output],
    pets: Sequence[PetPlan],
    options: Preprocessing,
    orientation: str = "",
    derived: Derived | None = None,
    synthesis: SynthesisPlan,
    name: str = "participant_wf",
) -> Workflow:
    """Preprocess a visit and predict its PET.

    If there are real PET, the synthetic one is compared with the first of them.

    Parameters
    ----------
    t1w, outputs, pets, options, orientation, derived
        See :func:`init_preprocessing_wf`.
    synthesis : SynthesisPlan
        Generator and destinations.
    """
    preprocessing = init_preprocessing_wf(
        t1w=t1w,
        outputs=outputs,
        pets=pets,
        options=options,
        orientation=orientation,
        derived=derived,
    )
    synthesizing = init_synthesis_wf(plan=synthesis, omp_nthreads=options.omp_nthreads)
    workflow = Workflow(name)
    brain_mask = "brain_mask_in_template"
    link(
        workflow,
        preprocessing,
        synthesizing,
        t1w="t1w_in_template",
        brain_mask=brain_mask,
        own_t1w="t1w",
        template_to_t1w="template_to_t1w",
    )
    for output, atlas in _regions_of(synthesis):
        measuring = init_regions_wf(output=output, atlas=atlas)
        link(workflow, preprocessing, measuring, brain_mask=brain_mask)
        link(workflow, synthesizing, measuring, synthetic="pet")
        if pets:
            of_pet = {"real": "pet_in_template", "coverage": "coverage_in_template"}
            link(workflow, preprocessing, measuring, **of_pet)
    for _ in pets[:1]:
        comparing = init_comparison_wf()
        link(
            workflow,
            preprocessing,
            comparing,
            real="pet_in_template",
            coverage="coverage_in_template",
            brain_mask=brain_mask,
        )
        link(workflow, synthesizing, comparing, synthetic="pet", sidecar_file="sidecar_file")
    if pets and synthesis.subtracted:
        subtracting = init_subtraction_wf(outputs=synthesis.subtracted)
        link(
            workflow,
            preprocessing,
            subtracting,
            real="pet_in_t1w",
            coverage="coverage_in_t1w",
            trusted="pet_in_template",
            brain_mask="brain_mask",
        )
        link(workflow, synthesizing, subtracting, synthetic="pet_in_t1w")
    return workflow


def _regions_of(synthesis: SynthesisPlan) -> list[tuple[Output, Path]]:
    """Return the destination of the table of regions and the atlas, or nothing without an atlas."""
    if synthesis.regions is None or synthesis.atlas is None:
        return []
    return [(synthesis.regions, synthesis.atlas)]


def init_synthesis_from_disk_wf(
    *,
    t1w: Path,
    brain_mask: Path,
    own_t1w: Path,
    template_to_t1w: Path,
    synthesis: SynthesisPlan,
    omp_nthreads: int,
    real: Path | None = None,
    coverage: Path | None = None,
    in_t1w: Mapping[str, Path] | None = None,
    name: str = "participant_wf",
) -> Workflow:
    """Predict the PET of a visit that was preprocessed by an earlier run.

    Parameters
    ----------
    t1w, brain_mask : Path
        T1w in [0, 1] and brain mask, on the generator's grid.
    own_t1w, template_to_t1w : Path
        T1w on its own grid, and the transform to it.
    synthesis : SynthesisPlan
        Generator and destinations.
    omp_nthreads : int
        Number of threads that torch may use.
    real : Path, optional
        First real PET in [0, 1] on the generator's grid, which the synthetic one is compared with.
    coverage : Path, optional
        Part of the brain that it covers; all by default.
    in_t1w : mapping, optional
        Paths of ``real``, ``brain_mask`` and ``coverage`` of that PET, on the grid of the T1w.
    """
    synthesizing = init_synthesis_wf(plan=synthesis, omp_nthreads=omp_nthreads)
    synthesizing.inputs.inputnode.t1w = str(t1w)
    synthesizing.inputs.inputnode.brain_mask = str(brain_mask)
    synthesizing.inputs.inputnode.own_t1w = str(own_t1w)
    synthesizing.inputs.inputnode.template_to_t1w = str(template_to_t1w)
    workflow = Workflow(name)
    workflow.add_nodes([synthesizing])
    for output, atlas in _regions_of(synthesis):
        measuring = init_regions_wf(output=output, atlas=atlas)
        measuring.inputs.inputnode.brain_mask = str(brain_mask)
        if real is not None:
            measuring.inputs.inputnode.real = str(real)
        if coverage is not None:
            measuring.inputs.inputnode.coverage = str(coverage)
        link(workflow, synthesizing, measuring, synthetic="pet")
    if real is not None:
        comparing = init_comparison_wf()
        comparing.inputs.inputnode.real = str(real)
        if coverage is not None:
            comparing.inputs.inputnode.coverage = str(coverage)
        comparing.inputs.inputnode.brain_mask = str(brain_mask)
        link(workflow, synthesizing, comparing, synthetic="pet", sidecar_file="sidecar_file")
    if in_t1w and synthesis.subtracted:
        subtracting = init_subtraction_wf(outputs=synthesis.subtracted)
        for field, path in in_t1w.items():
            setattr(subtracting.inputs.inputnode, field, str(path))
        link(workflow, synthesizing, subtracting, synthetic="pet_in_t1w")
    return workflow
