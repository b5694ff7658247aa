"""The rows of Table 1, as data."""

from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import TypeAlias

from bids_app.files import Json
from bids_app.strict import Check, is_flag, is_list, is_number, is_whole, refuse_odd
from bids_app.synthesis.tiling import (
    AXES,
    CubicPatches,
    SingleSlices,
    SliceTriplets,
    Tiling,
    WholeVolume,
)

WHOLE = "whole"
TILINGS: dict[
    str, type[SliceTriplets] | type[CubicPatches] | type[SingleSlices] | type[WholeVolume]
] = {"semi3d": SliceTriplets, "patch3d": CubicPatches, "slices": SingleSlices, WHOLE: WholeVolume}
# Tiling → the paper's term; the last two are ours
CONFIGURATIONS = {"semi3d": "semi-3D", "patch3d": "3D-patch", "slices": "2D", WHOLE: "tissue model"}
CONDITIONED_WORD = "conditioned"  # for a row that starts from a tissue model
CUBE = 3.0  # mm; a tissue model's coefficients are smoother than that; our choice
FEWEST = 2  # controls, to fit a tissue model: one to fit, one to leave out
TISSUE = "tissue"  # name of the tissue model among those of the rows
WIDEST, DEEPEST = 1024, 256  # feature maps, blocks: far more than is ever trained; our choice
_CHECKS: dict[str, Check] = {
    "tiling": lambda value: isinstance(value, dict),
    "n_blocks": is_whole(0, DEEPEST),
    "width": is_whole(1, WIDEST),
    "cycle": is_flag,
    "epochs": is_whole(0, 1_000_000),
    "constant_epochs": is_whole(0, 1_000_000),
    "batch_size": is_whole(1, 100_000),
    **dict.fromkeys(("mse_weight", "adversarial_weight", "cycle_weight"), is_number(0, 1e9)),
    "learning_rate": is_number(0, 10),
    "beta1": is_number(0, 1),
    "beta2": is_number(0, 1),
    "pool_size": is_whole(0, 1_000_000),
    "tiles_per_volume": is_whole(0, 10_000_000),
    "validation_interval": is_whole(1, 1_000_000),
    "patience": is_whole(0, 1_000_000),
    "condition": lambda value: isinstance(value, dict),
}
_TISSUE_CHECKS: dict[str, Check] = {
    "tiling": lambda value: value == {"kind": WHOLE},
    "sides": is_list(is_whole(1, 64), 3, 3),
    "cubes": is_list(is_whole(1, 1024), 3, 3),
}
_TILING_CHECKS: dict[str, dict[str, Check]] = {
    "semi3d": {"step": is_whole(1, SliceTriplets.channels), "axes": AXES.__contains__},
    "patch3d": {"size": is_whole(1, 512), "stride": is_whole(1, 512)},
    "slices": {"axes": AXES.__contains__},
}


@dataclass(frozen=True)
class TissueSpec:
    """Specification of a tissue model, :class:`bids_app.synthesis.tissue.TissueModel`.

    Parameters
    ----------
    sides : tuple of int
        Voxels along each edge of a cube; each cube has its own coefficients.
    cubes : tuple of int
        Number of cubes along each axis of the grid.
    """

    sides: tuple[int, int, int]
    cubes: tuple[int, int, int]

    @property
    def tiling(self) -> WholeVolume:
        """Division of a volume into inputs: the whole volume."""
        return WholeVolume()


@dataclass(frozen=True)
class ModelSpec:
    """Architecture and training of a row of Table 1.

    Parameters
    ----------
    tiling : SliceTriplets, CubicPatches or SingleSlices
        Semi-3D, 3D-patch, or slice by slice, which no row of the table uses.
    n_blocks : int
        Number of residual blocks of a generator: 9 or 2 (section 2.1).
    cycle : bool
        Whether it is a Cycle-GAN, not a Simple-GAN.
    epochs, constant_epochs : int
        Number of epochs, and of those before the learning rate falls linearly to 0 (section 3.2).
    batch_size : int
        Number of tiles per step: 5 or 10 (section 3.2).
    mse_weight : float
        Weight of eq. 2; the paper gives none, ours is 1000: at an MSE of 0.005, that is 23 dB, the
        term is twenty times the adversarial term of an undecided discriminator. It was better than
        100 on simulated PET (docs/training.md). 0 for the rows without MSE.
    adversarial_weight, cycle_weight : float
        Weight of eq. 1, to which the others are relative, and of eq. 3, which is 10 as in Zhu et
        al. (2017), section 4; the paper gives none.
    learning_rate, beta1, beta2 : float
        Parameters of Adam; 0.0002 is from the paper (section 3.2), 0.5 and 0.999 are from the code
        of Zhu et al.
    pool_size : int
        Number of earlier fakes kept for a discriminator: Zhu et al. (2017), section 4.
    width : int
        Feature maps after the first convolution: Zhu et al. (2017), appendix 7.2.
    tiles_per_volume : int
        Number of tiles per volume and epoch, drawn anew in each epoch from those whose centre
        contains brain; 0 for all tiles, as in the paper. Our choice for 3D-patch is 256: the 4998
        cubes overlap by three quarters along each axis, half of them lie outside the brain, and
        neighbours are redundant.
    validation_interval : int
        Number of epochs between validations; our choice, because a validation predicts all 4998
        cubes of each volume.
    patience : int
        Number of epochs without a better validation SSIM after which training stops early; our
        choice, the paper gives none.
    condition : TissueSpec or None
        Specification of the tissue model whose prediction the generator MRI → PET starts from and
        sees beside the T1w; ours, in no row of the paper.
    """

    tiling: Tiling
    n_blocks: int
    cycle: bool
    epochs: int
    constant_epochs: int
    batch_size: int
    mse_weight: float
    adversarial_weight: float = 1.0
    cycle_weight: float = 10.0
    learning_rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    pool_size: int = 50
    width: int = 64
    tiles_per_volume: int = 0
    validation_interval: int = 1
    patience: int = 40
    condition: TissueSpec | None = None


Spec: TypeAlias = ModelSpec | TissueSpec


@dataclass(frozen=True)
class Published:
    """Row of Table 1 of Zotova et al. (2021): its model, published scores and line style.

    Parameters
    ----------
    name : str
        Second column of the row.
    spec : ModelSpec
        Architecture and training.
    scores : tuple of (float, float)
        Mean and SD over the paper's 35 controls of SSIM, PSNR in dB, and LPIPS.
    colour, dash : str
        Line style in SVG syntax, with the colour-blind-safe palette of Okabe and Ito (our choice);
        rows without MSE are dashed, 3D-patch ones dotted.
    """

    name: str
    spec: ModelSpec
    scores: tuple[tuple[float, float], ...]
    colour: str
    dash: str = ""

    @property
    def configuration(self) -> str:
        """First column of the row: semi-3D or 3D-patch."""
        return configuration_of(self.spec)


_SEMI3D = ModelSpec(
    tiling=SliceTriplets(),
    n_blocks=9,
    cycle=False,
    epochs=200,
    constant_epochs=100,
    batch_size=5,
    mse_weight=0.0,
)
_PATCH3D = replace(
    replace(_SEMI3D, tiling=CubicPatches(), n_blocks=2, epochs=100, batch_size=10),
    tiles_per_volume=256,
    validation_interval=5,
)
_MSE = 1000.0

PUBLISHED = {  # in table order
    "semi3d-gan": Published(
        "Simple-GAN", _SEMI3D, ((0.818, 0.021), (19.655, 1.441), (0.035, 0.008)), "#56b4e9", "7 3"
    ),
    "semi3d-gan-mse": Published(
        "Simple-GAN with MSE loss",
        replace(_SEMI3D, mse_weight=_MSE),
        ((0.879, 0.021), (23.177, 1.760), (0.022, 0.005)),
        "#0072b2",
    ),
    "semi3d-cyclegan": Published(
        "Cycle-GAN",
        replace(_SEMI3D, cycle=True),
        ((0.837, 0.028), (21.750, 1.142), (0.030, 0.006)),
        "#e69f00",
        "7 3",
    ),
    "semi3d-cyclegan-mse": Published(
        "Cycle-GAN with MSE loss",
        replace(_SEMI3D, cycle=True, mse_weight=_MSE),
        ((0.883, 0.022), (23.525, 1.388), (0.022, 0.005)),
        "#d55e00",
    ),
    "patch3d-gan-mse": Published(
        "Simple-GAN with MSE loss",
        replace(_PATCH3D, mse_weight=_MSE),
        ((0.869, 0.031), (19.852, 0.597), (0.034, 0.017)),
        "#cc79a7",
        "2 3",
    ),
    "patch3d-cyclegan-mse": Published(
        "Cycle-GAN with MSE loss",
        replace(_PATCH3D, cycle=True, mse_weight=_MSE),
        ((0.875, 0.023), (17.760, 1.767), (0.026, 0.007)),
        "#009e73",
        "2 3",
    ),
}
MODELS = {name: row.spec for name, row in PUBLISHED.items()}
TRAINABLE = (*MODELS, TISSUE)  # names that --models accepts
# Name of a row trained with --condition tissue → name of the row
CONDITIONED = {f"{name}-{TISSUE}": name for name in MODELS}
# Second line of a semi-3D row (the same generators with overlapping triplets) → name of the row
OVERLAPPING = {
    f"{name}-overlap": name
    for name in (*MODELS, *CONDITIONED)
    if isinstance(MODELS[CONDITIONED.get(name, name)].tiling, SliceTriplets)
}


SECOND_LINES = {row: line for line, row in OVERLAPPING.items()}


def kind_of(spec: Spec) -> str:
    """Return the kind of tiling of a spec: ``semi3d``, ``patch3d``, ``slices`` or ``whole``."""
    return next(name for name, kind in TILINGS.items() if isinstance(spec.tiling, kind))


def configuration_of(spec: Spec) -> str:
    """Return the configuration of a generator, as in the first column of Table 1.

    Examples
    --------
    >>> configuration_of(MODELS["semi3d-gan"]), configuration_of(TissueSpec((3,) * 3, (9,) * 3))
    ('semi-3D', 'tissue model')
    """
    word = CONFIGURATIONS[kind_of(spec)]
    conditioned = isinstance(spec, ModelSpec) and spec.condition is not None
    return f"{CONDITIONED_WORD} {word}" if conditioned else word


def spec_to_dict(spec: Spec) -> dict[str, object]:
    """Convert a spec to plain values, as a card holds them.

    ``step`` and ``axes`` of slices are omitted if they are the defaults, and ``condition`` if it
    is None, so that results from before these fields existed stay valid.

    Examples
    --------
    >>> spec_from_dict(spec_to_dict(MODELS["patch3d-gan-mse"])) == MODELS["patch3d-gan-mse"]
    True
    """
    if isinstance(spec, TissueSpec):
        return {"tiling": {"kind": WHOLE}, "sides": list(spec.sides), "cubes": list(spec.cubes)}
    tiling = asdict(spec.tiling)  # type: ignore[call-overload]  # all are dataclasses
    if isinstance(spec.tiling, SliceTriplets | SingleSlices):
        defaults = asdict(type(spec.tiling)())
        tiling = {name: value for name, value in tiling.items() if value != defaults[name]}
    values = {**asdict(spec), "tiling": {"kind": kind_of(spec), **tiling}}
    if spec.condition is None:
        del values["condition"]
    else:
        values["condition"] = spec_to_dict(spec.condition)
    return values


def spec_from_dict(values: Json) -> Spec:
    """Build the spec that a card holds.

    Raises
    ------
    ValueError
        If a value is missing, unknown or out of range.
    """
    if not isinstance(values, dict):
        raise ValueError("not a generator's spec")
    if values.get("tiling") == {"kind": WHOLE}:
        return _tissue_spec_from(values)
    optional = [field.name for field in fields(ModelSpec) if field.default is not MISSING]
    refuse_odd(values, _CHECKS, " ".join(optional))
    options = dict(values["tiling"])
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in _TILING_CHECKS:
        raise ValueError(f"there is no tiling {kind!r:.60}")
    refuse_odd(options, _TILING_CHECKS[kind], "step size stride axes")
    tiling = TILINGS[kind](**options)
    if isinstance(tiling, CubicPatches) and tiling.stride > tiling.size:
        raise ValueError("cubes that are further apart than they are wide leave gaps")
    spec_values: Json = {**values, "tiling": tiling}
    if "condition" in spec_values:
        spec_values["condition"] = _tissue_spec_from(spec_values["condition"])
    return ModelSpec(**spec_values)


def _tissue_spec_from(values: Json) -> TissueSpec:
    refuse_odd(values, _TISSUE_CHECKS)
    return TissueSpec(tuple(values["sides"]), tuple(values["cubes"]))
