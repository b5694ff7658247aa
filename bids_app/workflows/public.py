"""Workflows for other people's pipelines: what goes in and comes out are doors of theirs."""

from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bids_app.generators import find_generator
from bids_app.imaging.intensity import PERCENTILE, TIMES_MEAN
from bids_app.imaging.volume import grid_of_box
from bids_app.interfaces.synthesis import SynthesizePET
from bids_app.synthesis.card import check_space, check_weights, read_card
from bids_app.synthesis.tiling import SliceTriplets
from bids_app.templates import OWN, REGISTRATION_RESOLUTION, prepare
from bids_app.workflows.registration import Preprocessing, init_anatomical_wf
from bids_app.workflows.synthesis import carry_node

BOX = (-78.0, -112.0, -50.0, 78.0, 76.0, 85.0)  # mm; of the paper's volume (section 3.1)
COARSE = 4.0  # mm, of the template that T1w are registered to, to try things out


def init_synthesis_wf(
    *,
    generator: Path | str = "default",
    fwhm: float = 1.5,
    device: str = "cpu",
    omp_nthreads: int = 1,
    name: str = "synthesis_wf",
) -> Workflow:
    """Predict the FDG PET of a T1w that lies in MNI space.

    Parameters
    ----------
    generator : path-like
        Folder of a generator, or ``default``, the demonstration that comes with the app.
    fwhm : float
        Smoothing of the result, in mm.
    device : str
        A torch device.
    omp_nthreads : int
        Threads that torch may use.

    Inputs
    ------
    t1w
        T1w in [0, 1] on the generator's grid (a tissue model's: any of its space), brain only.
    brain_mask
        The brain on that grid.

    Outputs
    -------
    pet
        The synthetic PET in [0, 1]; its header says SYNTHETIC.
    """
    folder = find_generator(str(generator), Path(), sloppy=False)
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
        device=device,
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
    """Bring a T1w into MNI space and predict its FDG PET, there and on its own grid.

    Parameters
    ----------
    template_dir : path-like
        Gets the template on the grids that are needed, when the workflow is built.
    template : str
        As TemplateFlow spells it; the default comes with nilearn.
    resolution : float
        Voxel size of the results in template space, in mm.
    generator : path-like
        As :func:`init_synthesis_wf` has it.
    skull_strip : {"auto", "force", "skip"}
        Whether deepbet looks for the brain.
    quick : bool
        Coarse registration, to try things out.
    seed : int
        Of the voxels that are drawn to compare brains.
    omp_nthreads : int
        Threads for each node that can use them.

    Inputs
    ------
    t1w
        As acquired, ``.nii`` or ``.nii.gz``.

    Outputs
    -------
    t1w
        T1w without bias field, on its own grid.
    brain_mask
        The brain on that grid.
    t1w_in_template
        T1w in [0, 1] in MNI space, brain only.
    brain_mask_in_template
        The brain there.
    t1w_to_template
        Composite transform, ITK's HDF5.
    template_to_t1w
        Its inverse.
    synthetic_pet
        The synthetic PET in [0, 1] in MNI space.
    synthetic_pet_in_t1w
        The same on the grid of the T1w.
    """
    grid = grid_of_box(BOX, resolution)
    check_space(read_card(find_generator(str(generator), Path(), sloppy=False)), grid, template)
    prepared = prepare(
        template,
        grid,
        Path(template_dir),
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
    carry = carry_node(omp_nthreads)
    workflow = Workflow(name)
    workflow.connect(
        [
            (inputnode, anatomical, [("t1w", "inputnode.t1w")]),
            (
                anatomical,
                synthesis,
                [
                    ("outputnode.t1w_in_template", "inputnode.t1w"),
                    ("outputnode.brain_mask_in_template", "inputnode.brain_mask"),
                ],
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
