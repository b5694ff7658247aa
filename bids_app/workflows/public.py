"""Public workflows, for use in other pipelines through their input and output nodes."""

from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bids_app.generators import find_generator
from bids_app.imaging.intensity import PERCENTILE, TIMES_MEAN, check_fwhm
from bids_app.imaging.volume import grid_of_box
from bids_app.interfaces.synthesis import SynthesizePET
from bids_app.resources import choose_device
from bids_app.synthesis.card import check_space, check_weights, read_card
from bids_app.synthesis.tiling import SliceTriplets
from bids_app.templates import OWN, REGISTRATION_RESOLUTION, prepare
from bids_app.workflows.registration import Preprocessing, add_verdict_node, init_anatomical_wf
from bids_app.workflows.synthesis import resample_to_t1w_node

BOX = (-78.0, -112.0, -50.0, 78.0, 76.0, 85.0)  # mm; volume of the paper (section 3.1)
COARSE = 4.0  # mm, resolution of the template for quick registration


def init_synthesis_wf(
    *,
    generator: Path | str = "default",
    fwhm: float = 1.5,
    device: str = "cpu",
    omp_nthreads: int = 1,
    name: str = "synthesis_wf",
) -> Workflow:
    """Predict an FDG PET from a T1w in MNI space.

    Parameters
    ----------
    generator : path-like
        Folder of a generator, or ``default``, the demonstration generator of the app.
    fwhm : float
        Smoothing of the result, in mm.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    omp_nthreads : int
        Number of threads that torch may use.

    Inputs
    ------
    t1w
        T1w in [0, 1] on the generator's grid, brain only; for a tissue model, on any grid in its
        space.
    brain_mask
        Brain mask on that grid.

    Outputs
    -------
    pet
        Synthetic PET in [0, 1]; its header says SYNTHETIC.
    """
    check_fwhm(fwhm)
    folder = find_generator(str(generator), Path(), sloppy=False, flag="generator")
    card = read_card(folder)
    check_weights(folder, card)
    inputnode = Node(IdentityInterface(["t1w", "brain_mask"]), name="inputnode")
    outputnode = Node(IdentityInterface(["pet"]), name="outputnode")
    predict = SynthesizePET(
        generator=str(folder),
        sha256=card.sha256,
        reference_sha256="",
        fwhm=fwhm,
        overlap=isinstance(card.spec.tiling, SliceTriplets),
        match_histogram=False,
        times_mean=card.pet_times_mean,
        device=choose_device(device),
        threads=omp_nthreads,
    )
    synthesize = Node(predict, name="synthesize", n_procs=omp_nthreads, mem_gb=2)
    workflow = Workflow(name)
    workflow.connect(
        [
            (inputnode, synthesize, [("t1w", "t1w"), ("brain_mask", "mask")]),
            (synthesize, outputnode, [("pet", "pet")]),
        ]
    )
    return workflow


def init_participant_wf(
    *,
    template_dir: Path | str,
    template: str = OWN,
    resolution: float = 1.0,
    generator: Path | str = "default",
    skull_strip: str = "auto",
    quick: bool = False,
    seed: int = 0,
    omp_nthreads: int = 1,
    name: str = "mri2pet_wf",
) -> Workflow:
    """Register a T1w to MNI space and predict its FDG PET, there and on its own grid.

    If the registration of the T1w failed, no PET is predicted: the node ``verdict`` ends with an
    error that says why.

    Parameters
    ----------
    template_dir : path-like
        Folder for the template on the required grids, written when the workflow is built.
    template : str
        Name of the template in TemplateFlow; the default is included in nilearn.
    resolution : float
        Voxel size of the results in template space, in mm.
    generator : path-like
        Generator; see :func:`init_synthesis_wf`.
    skull_strip : {"auto", "force", "skip"}
        Use of deepbet for brain extraction; ``auto`` skips it for stripped T1w.
    quick : bool
        If True, registration is coarse, for testing only.
    seed : int
        Seed for sampling voxels in registration.
    omp_nthreads : int
        Number of threads for each node that can use several.

    Inputs
    ------
    t1w
        T1w as acquired, ``.nii`` or ``.nii.gz``, with its absolute path.

    Outputs
    -------
    t1w
        T1w without bias field, on its own grid.
    brain_mask
        Brain mask on that grid.
    t1w_in_template
        T1w in [0, 1] in MNI space, brain only.
    brain_mask_in_template
        Brain mask in MNI space.
    t1w_to_template
        Composite transform in ITK's HDF5 format.
    template_to_t1w
        Inverse of that transform.
    synthetic_pet
        Synthetic PET in [0, 1] in MNI space.
    synthetic_pet_in_t1w
        Synthetic PET on the grid of the T1w.
    """
    grid = grid_of_box(BOX, resolution)
    folder = find_generator(str(generator), Path(), sloppy=False, flag="generator")
    check_space(read_card(folder), grid, template)
    prepared = prepare(
        template,
        grid,
        Path(template_dir).absolute(),  # each node runs in a folder of its own
        registration_resolution=COARSE if quick else REGISTRATION_RESOLUTION,
    )
    options = Preprocessing(
        template=prepared.brain,
        reference=prepared.reference,
        reference_mask=prepared.reference_mask,
        skull_strip=skull_strip,
        frames=(),
        percentile=PERCENTILE,
        times_mean=TIMES_MEAN,
        quick=quick,
        seed=seed,
        omp_nthreads=omp_nthreads,
    )
    anatomical = init_anatomical_wf(options=options)
    fields = ["t1w", "brain_mask", "t1w_in_template", "brain_mask_in_template"]
    fields += ["t1w_to_template", "template_to_t1w"]
    predicted = ["synthetic_pet", "synthetic_pet_in_t1w"]
    inputnode = Node(IdentityInterface(["t1w"]), name="inputnode")
    outputnode = Node(IdentityInterface([*fields, *predicted]), name="outputnode")
    synthesis = init_synthesis_wf(generator=generator, omp_nthreads=omp_nthreads)
    carry = resample_to_t1w_node(omp_nthreads)
    workflow = Workflow(name)
    trust = add_verdict_node(workflow, anatomical, "t1w_in_template", "t1w_in_template_measured")
    workflow.connect(
        [
            (inputnode, anatomical, [("t1w", "inputnode.t1w")]),
            (inputnode, trust, [("t1w", "source")]),
            (trust, synthesis, [("image", "inputnode.t1w")]),
            (
                anatomical,
                synthesis,
                [("outputnode.brain_mask_in_template", "inputnode.brain_mask")],
            ),
            (synthesis, carry, [("outputnode.pet", "image")]),
            (
                anatomical,
                carry,
                [("outputnode.t1w", "reference"), ("outputnode.template_to_t1w", "transforms")],
            ),
            (anatomical, outputnode, [(f"outputnode.{field}", field) for field in fields]),
            (synthesis, outputnode, [("outputnode.pet", "synthetic_pet")]),
            (carry, outputnode, [("image", "synthetic_pet_in_t1w")]),
        ]
    )
    return workflow
