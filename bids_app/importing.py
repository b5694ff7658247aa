"""``mri2pet-import``: import a generator that another program has trained.

The other program is pytorch-CycleGAN-and-pix2pix (https://github.com/junyanz). Its ResnetGenerator
is the network of Zhu et al. (2017), as is ours, but its input and output are in [-1, 1], and its
last activation is a hyperbolic tangent.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bids_app.arguments import (
    Parser,
    PrintCompletion,
    absolute_path,
    add_option,
    normalize_labels,
    not_negative,
    positive,
    read_names_as_utf8,
    refuse_inverted,
    refuse_lost_folder,
    run_program,
)
from bids_app.errors import (
    CannotCreateError,
    MissingInputError,
    ReadWriteError,
    UnusableDataError,
    UsageError,
)
from bids_app.files import file_sha256, size_of
from bids_app.imaging.volume import grid_of_box
from bids_app.lifeline import exit_with
from bids_app.settings import FULL_RESOLUTION, Settings
from bids_app.strict import is_name, is_text, refuse_shapes
from bids_app.synthesis.card import Ancestor, Card, card_from, card_values
from bids_app.synthesis.models import (
    CONDITIONED,
    OVERLAPPING,
    TRAINABLE,
    ModelSpec,
    configuration_of,
)
from bids_app.synthesis.tiling import AXES, OWN_AXES, SingleSlices, SliceTriplets

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]  # parameters of a network by name
BOX_SIDES = len(Settings.bounding_box)
TAKEN = {"default", "sloppy", *TRAINABLE, *CONDITIONED, *OVERLAPPING}  # reserved names
BLOCK = re.compile(r"model\.(\d+)\.conv_block\.(\d+)\.weight")
# Indices of both convolutions of a block, without dropout and with it
REFLECTED, ZERO_PADDED = ({1, 5}, {1, 6}), ({0, 3}, {0, 4})
LEFT_OVER = ("running_mean", "running_var", "num_batches_tracked")  # unused buffers of norms
INTENDED_USE = (
    "Predicting the FDG PET of people like those that it was trained on, from T1w scanned as "
    "theirs were; for research. No basis for decisions about a patient."
)
UNMEASURED = "Imported; mri2pet has not measured how good it is."


def read_state(path: Path) -> State:
    """Read network parameters written by ``torch.save``, without running any code in the file.

    Raises
    ------
    MissingInputError
        If there is no such file.
    UnusableDataError
        If the file holds anything but a plain dict of tensors.
    ReadWriteError
        If the file cannot be read.
    """
    from bids_app.synthesis.scoring import read_tensors

    try:
        size_of(path)
    except MissingInputError as error:
        raise MissingInputError(f"{path}: no such file; check its path") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of files that it rejects
            return read_tensors(path)
    except OSError as error:
        raise ReadWriteError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UnusableDataError(
            f"{path}: {error}; other content is never read, since it may be code: give the "
            "..._net_G.pth that training saved, or what torch.save makes of network.state_dict()"
        ) from error


def convert(
    state: State, *, axes: str = OWN_AXES, copies: bool = False, cycle: bool = False
) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Convert a ResnetGenerator of pytorch-CycleGAN-and-pix2pix to ours.

    Parameters
    ----------
    state : mapping
        Name → parameter of the network.
    axes : str
        Directions of the rows and columns of its slices; see
        :func:`bids_app.synthesis.tiling.reorient`.
    copies : bool
        Whether its three channels are copies of one slice, as in a grey image saved in colour, not
        three adjacent slices; the first output channel is used then.
    cycle : bool
        Whether it is one of the two generators of a Cycle-GAN.

    Returns
    -------
    ModelSpec
        Specification from which it is rebuilt. Training parameters are unknown and set to their
        smallest values.
    dict
        Parameters of :class:`bids_app.synthesis.networks.ResnetGenerator`, float32.

    Raises
    ------
    ValueError
        If it is another network; the message says what is needed instead.
    """
    theirs = _without_remains(state)
    _refuse_others(theirs)
    n_blocks, names = _match_layers(theirs)
    first, *_, last = names
    weights = {name: value.double() for name, value in theirs.items()}
    if copies:
        _take_one_channel(weights, first, last)
    kernel = weights[f"{first}.weight"]
    width, channels = (int(side) for side in kernel.shape[:2])
    _refuse_channels(channels, int(weights[f"{last}.weight"].shape[0]))
    _refuse_odd(weights, names, channels=channels, n_blocks=n_blocks, width=width)
    _fold_ranges(weights, first, last)
    tiling = SliceTriplets(axes=axes) if channels == SliceTriplets.channels else SingleSlices(axes)
    spec = ModelSpec(
        tiling=tiling,
        n_blocks=n_blocks,
        cycle=cycle,
        epochs=0,
        constant_epochs=0,
        batch_size=1,
        mse_weight=0.0,
        adversarial_weight=0.0,
        cycle_weight=0.0,
        learning_rate=0.0,
        pool_size=0,
        patience=0,
        width=width,
    )
    ours = {_translate(name, names): value.float() for name, value in weights.items()}
    return spec, {name: value.contiguous() for name, value in ours.items()}


def _without_remains(state: State) -> dict[str, Tensor]:
    """Remove unused buffers of norms, and the prefix that ``DataParallel`` adds to names.

    Instance norm kept running means in 2018 and before PyTorch 0.4. That program ignores them, too,
    when it loads such files. Batch norm uses them, but has weights and is rejected for these.
    """
    used = {n: t for n, t in state.items() if f"{n}".rpartition(".")[2] not in LEFT_OVER}
    if not all(isinstance(name, str) and _is_plain(value) for name, value in used.items()):
        raise ValueError("its content is not the parameters of a network")
    wrapped = bool(used) and all(name.startswith("module.") for name in used)
    return {name.removeprefix("module.") if wrapped else name: t for name, t in used.items()}


def _is_plain(value: Tensor) -> bool:
    return value.is_floating_point() and str(value.layout) == "torch.strided" and not value.is_meta


def _refuse_others(state: State) -> None:
    """Reject networks of that program, or of its forks, that have no equivalent in ours."""
    if any(name.endswith(".filt") for name in state):
        raise ValueError(
            "its strides are antialiased, which mri2pet does not support; train it with "
            "--no_antialias and --no_antialias_up"
        )
    if any(name.startswith("model.model.") for name in state):
        raise ValueError(
            "a U-Net, which mri2pet does not support; train it with --netG resnet_9blocks"
        )
    if any(
        name.startswith("model.") and value.ndim == 1 and name.endswith(".weight")
        for name, value in state.items()
    ):
        raise ValueError(
            "its norm has weights, as batch norm does, and mri2pet supports only instance norm "
            "without weights; train it with --norm instance"
        )
    if "model.1.weight" not in state or not any(map(BLOCK.fullmatch, state)):
        raise ValueError("not a generator with residual blocks; give the ..._net_G.pth of a ResNet")
    if state["model.1.weight"].ndim != 4:
        raise ValueError(
            "its first layer is not a 2D convolution; only networks for slices can be used"
        )
    if "model.1.bias" not in state:
        raise ValueError(
            "its convolutions have no bias, as with --norm none, and mri2pet supports only "
            "instance norm; train it with --norm instance"
        )


def _match_layers(state: State) -> tuple[int, dict[str, str]]:
    """Return the number of residual blocks, and a mapping of their layers to ours, in order."""
    found = [match for match in map(BLOCK.fullmatch, state) if match]
    blocks, places = {int(match[1]) for match in found}, {int(match[2]) for match in found}
    if places in ZERO_PADDED:
        raise ValueError(
            "its residual blocks use zero padding, but mri2pet's use reflection padding"
        )
    n_blocks, last, first = len(blocks), max(places), min(places)
    if places not in REFLECTED or blocks != set(range(10, 10 + n_blocks)):
        raise ValueError(
            "its residual blocks are not at the positions of those of a ResnetGenerator"
        )
    names = {"model.1": "layers.0", "model.4": "layers.3", "model.7": "layers.6"}
    for block in range(n_blocks):
        for place, our_place in ((first, 0), (last, 3)):
            names[f"model.{10 + block}.conv_block.{place}"] = (
                f"layers.{9 + block}.layers.{our_place}"
            )
    # Their last convolution is preceded by a separate layer of reflection padding
    for place, our_place in ((10, 9), (13, 12), (17, 15)):
        names[f"model.{place + n_blocks}"] = f"layers.{our_place + n_blocks}"
    _refuse_missing(state, names)
    return n_blocks, names


def _refuse_missing(state: State, names: Mapping[str, str]) -> None:
    for layer in names:
        for part, axes in (("weight", 4), ("bias", 1)):
            name = f"{layer}.{part}"
            if name not in state or state[name].ndim != axes:
                raise ValueError(f"{name} is missing, or does not have {axes} axes")


def _translate(name: str, names: Mapping[str, str]) -> str:
    layer, _, part = name.rpartition(".")
    return f"{names[layer]}.{part}"


def _take_one_channel(weights: dict[str, Tensor], first: str, last: str) -> None:
    """Reduce a network of copies of a slice to one channel, exactly, by linearity."""
    weights[f"{first}.weight"] = weights[f"{first}.weight"].sum(1, keepdim=True)
    for part in ("weight", "bias"):
        weights[f"{last}.{part}"] = weights[f"{last}.{part}"][:1]


def _refuse_channels(n_in: int, n_out: int) -> None:
    if n_in != n_out:
        raise ValueError(
            f"it has {n_in} input and {n_out} output channels, but mri2pet needs equal numbers; "
            "if they are copies of one slice, give --copies"
        )
    if n_in not in (SingleSlices.channels, SliceTriplets.channels):
        raise ValueError(
            f"it has {n_in} input channels, but mri2pet needs 1 slice or 3 adjacent ones"
        )


def _refuse_odd(
    weights: State, names: Mapping[str, str], *, channels: int, n_blocks: int, width: int
) -> None:
    """Reject parameters that do not fit our network or are not finite."""
    import torch

    from bids_app.synthesis.networks import ResnetGenerator

    with torch.device("meta"):
        parameters = ResnetGenerator(2, channels, n_blocks, width).state_dict()
    expected = {
        f"{layer}.{part}": ("tensor", tuple(parameters[f"{ours}.{part}"].shape))
        for layer, ours in names.items()
        for part in ("weight", "bias")
    }
    found = {name: ("tensor", tuple(value.shape)) for name, value in weights.items()}
    refuse_shapes(found, expected)
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} contains NaN or infinity")


def _fold_ranges(weights: dict[str, Tensor], first: str, last: str) -> None:
    """Convert a network from [-1, 1] to [-1, 1] to one from [0, 1] to [0, 1], exactly.

    The input of the first layer is ``2x - 1``; its convolution with w equals that of x with 2w,
    minus the sum of w, also at the borders, which are reflected. Their output ``tanh z``, where z
    is the output of the last convolution, is mapped to ``(tanh z + 1) / 2``, which is the logistic
    function of ``2z``, as in ours.
    """
    kernel = weights[f"{first}.weight"]
    weights[f"{first}.bias"] = weights[f"{first}.bias"] - kernel.sum((1, 2, 3))
    weights[f"{first}.weight"] = 2 * kernel
    for part in ("weight", "bias"):
        weights[f"{last}.{part}"] = 2 * weights[f"{last}.{part}"]


def _text(text: str) -> str:
    if not text.strip() or not is_text(text):
        raise argparse.ArgumentTypeError("the text is empty, too long, or not UTF-8")
    return text.strip()


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be a folder name")
    return text


def _axes(text: str) -> str:
    if text.upper() not in AXES:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(AXES)}")
    return text.upper()


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="mri2pet-import",
        allow_abbrev=False,
        description="Import a generator trained with pytorch-CycleGAN-and-pix2pix, for mri2pet "
        "participant --generator FOLDER. docs/training.md says which networks can be used.",
        epilog="Exit codes: 0 done; 64 usage; 65 unusable data; 66 input missing; 73 cannot create "
        "output; 74 read or write error.",
    )
    parser.add_argument(
        "file",
        type=absolute_path,
        metavar="FILE",
        help="..._net_G.pth; of a CycleGAN, whichever of _G_A and _G_B predicts PET from T1w",
    )
    parser.add_argument(
        "generator_dir", type=absolute_path, metavar="FOLDER", help="a new or empty folder"
    )
    add = partial(add_option, parser)
    add(
        "--trained-on TEXT",
        "description of its training data, shown in all reports; required",
        _text,
        required=True,
    )
    add("--name NAME", "name of the generator; default: the name of FOLDER", _name)
    add("--licence --license TEXT", "licence of the weights", _text)
    add(
        "--intended-use TEXT",
        "its intended use; default: for research, on people like those that it was trained on",
        _text,
    )
    add("--dataset NAME", "name or DOI of the BIDS dataset it was trained on", _text)
    add(
        "--participant-label LABEL",
        "participants of --dataset that it was trained on, so that they are recognized as training "
        "data; or a text file with one label per line",
        nargs="+",
        default=[],
    )
    add(
        "--template NAME",
        "template space of its images; default %(default)s",
        _name,
        default=Settings.template,
    )
    add("--resolution MM", "voxel size of its images; default 1", positive, default=FULL_RESOLUTION)
    add(
        "--bounding-box MM",
        "x0 y0 z0 x1 y1 z1 in mm, RAS+, of the images that it will be used on; default "
        f"{' '.join(f'{side:g}' for side in Settings.bounding_box)}",
        float,
        nargs=BOX_SIDES,
        default=Settings.bounding_box,
    )
    add(
        "--slice-axes CODE",
        "directions of the first axis of its slices (rows, from the top) and of the second "
        "(columns, from the left): PR or PL if slices are displayed as usual, with the front on "
        "top; default RA, as for slices of RAS images in nibabel",
        _axes,
        default=OWN_AXES,
    )
    add(
        "--copies",
        "its three channels are copies of one slice, as in greyscale images, not adjacent slices",
    )
    add(
        "--pet-times-mean X",
        "in its PET, X times the mean of the brain was scaled to 1 (2.5 if mri2pet scaled them); "
        "default: unknown, so each predicted PET is scaled by its own mean",
        not_negative,
        default=0.0,
    )
    add(
        "--print-completion",
        "print the completion script for a shell, and exit",
        action=PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"mri2pet {version('mri2pet')}")
    return parser


def import_generator(argv: Sequence[str] | None) -> str:
    """Import the generator given on the command line, and return the closing line."""
    arguments = build_parser().parse_args(argv)
    refuse_lost_folder()
    _refuse(arguments)
    from bids_app.synthesis.inference import save_generator
    from bids_app.synthesis.losses import build_generator

    path: Path = arguments.file
    state = read_state(path)
    cycle = path.stem.endswith(("_G_A", "_G_B"))  # its names; the content does not show it
    try:
        spec, weights = convert(
            state, axes=arguments.slice_axes, copies=arguments.copies, cycle=cycle
        )
        card = card_from(
            card_values(describe(spec, arguments))
        )  # checked before anything is written
    except ValueError as error:
        raise UnusableDataError(f"{path}: cannot be imported ({error})") from error
    generator = build_generator(spec)
    generator.load_state_dict(weights)
    save_generator(generator, card, arguments.generator_dir)
    blocks = f"{spec.n_blocks} residual blocks, width {spec.width}"
    return f"generator {card.name} ({configuration_of(spec)}, {blocks}): {arguments.generator_dir}"


def _refuse(arguments: argparse.Namespace) -> None:
    """Check that arguments are compatible, and that the folder is new or empty."""
    folder: Path = arguments.generator_dir
    name = folder.name if arguments.name is None else arguments.name
    if name in TAKEN:
        raise UsageError(
            f"{name}: is the name of one of mri2pet's own generators; give another with --name"
        )
    refuse_inverted(arguments.bounding_box)
    if arguments.participant_label and arguments.dataset is None:
        raise UsageError("--participant-label: also give the --dataset that these labels belong to")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CannotCreateError(f"{folder}: not an empty folder; choose a new one, or empty it")


def describe(spec: ModelSpec, arguments: argparse.Namespace) -> Card:
    """Create the card of an imported generator, without scores, reference or error model."""
    import torch

    path: Path = arguments.file
    name = arguments.generator_dir.name if arguments.name is None else arguments.name
    participants = normalize_labels(arguments.participant_label, "sub-")
    grid = grid_of_box(arguments.bounding_box, arguments.resolution)
    dataset = "" if arguments.dataset is None else arguments.dataset
    origin = Ancestor(path.name, file_sha256(path), dataset, participants)
    use = INTENDED_USE if arguments.intended_use is None else arguments.intended_use
    licence = "" if arguments.licence is None else f" Licence: {arguments.licence}."
    return Card(
        name=name,
        version=version("mri2pet"),
        spec=spec,
        template=arguments.template,
        shape=grid.shape,
        affine=tuple(tuple(row) for row in grid.affine.tolist()),
        sha256="",
        trained_on=f"{arguments.trained_on} (imported from {path.name}, SHA-256 {origin.sha256})",
        intended_use=f"{use} {UNMEASURED}{licence}",
        participants=participants,
        dataset=dataset,
        seed=-1,
        versions={"mri2pet": version("mri2pet"), "torch": torch.__version__},
        pet_times_mean=arguments.pet_times_mean,
        initialized_from=(origin,),
    )


def _run(argv: Sequence[str] | None) -> int:
    sys.stdout.write(f"{import_generator(argv)}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Import a generator, and return the exit code defined in BEP027."""
    if argv is None:
        read_names_as_utf8()
    return run_program(
        lambda: _run(argv), interrupted="stopped; empty the folder before another try"
    )


if __name__ == "__main__":
    exit_with(main())
