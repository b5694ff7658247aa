"""What Zotova et al. (2021) call their models, what they measured, and how we draw each of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

BASELINE: Final = "baseline-"
GREY: Final = "#6e7781"


@dataclass(frozen=True)
class Published:
    """A row of Table 1 of Zotova et al. (2021).

    Parameters
    ----------
    configuration, name : str
        Its first two columns.
    ssim, psnr, lpips : tuple of float
        Mean and SD over the paper's 35 controls; PSNR in dB.
    colour, dash : str
        As SVG writes them, from the palette of Okabe and Ito, which colour-blind readers can
        tell apart (our choice); rows without MSE are dashed, 3D-patch ones dotted.
    """

    configuration: str
    name: str
    ssim: tuple[float, float]
    psnr: tuple[float, float]
    lpips: tuple[float, float]
    colour: str
    dash: str = ""


_SEMI3D, _PATCH3D = "semi-3D", "3D-patch"
PUBLISHED: Final = {
    "semi3d-gan": Published(
        _SEMI3D, "Simple-GAN", (0.818, 0.021), (19.655, 1.441), (0.035, 0.008), "#56b4e9", "7 3"
    ),
    "semi3d-gan-mse": Published(
        _SEMI3D, "Simple-GAN with MSE loss", (0.879, 0.021), (23.177, 1.760), (0.022, 0.005),
        "#0072b2",
    ),
    "semi3d-cyclegan": Published(
        _SEMI3D, "Cycle-GAN", (0.837, 0.028), (21.750, 1.142), (0.030, 0.006), "#e69f00", "7 3"
    ),
    "semi3d-cyclegan-mse": Published(
        _SEMI3D, "Cycle-GAN with MSE loss", (0.883, 0.022), (23.525, 1.388), (0.022, 0.005),
        "#d55e00",
    ),
    "patch3d-gan-mse": Published(
        _PATCH3D, "Simple-GAN with MSE loss", (0.869, 0.031), (19.852, 0.597), (0.034, 0.017),
        "#cc79a7", "2 3",
    ),
    "patch3d-cyclegan-mse": Published(
        _PATCH3D, "Cycle-GAN with MSE loss", (0.875, 0.023), (17.760, 1.767), (0.026, 0.007),
        "#009e73", "2 3",
    ),
}  # fmt: skip
# Name → what it is
BASELINES: Final = {
    "baseline-mean-pet": "Mean PET of the training controls",
    "baseline-t1w": "The T1w itself",
}


def is_baseline(model: str) -> bool:
    """Tell what needs no network from a model."""
    return model.startswith(BASELINE)


def in_order(models: Iterable[str]) -> list[str]:
    """Put models as the paper does, each once; after them others, then the baselines.

    Examples
    --------
    >>> in_order(["baseline-t1w", "my-own", "semi3d-gan-mse", "semi3d-gan", "my-own"])
    ['semi3d-gan', 'semi3d-gan-mse', 'my-own', 'baseline-t1w']
    """
    known = [*PUBLISHED, *BASELINES]

    def place(model: str) -> tuple[bool, int, str]:
        return (
            is_baseline(model),
            known.index(model) if model in known else len(known),
            model,
        )

    return sorted(set(models), key=place)


def configuration_of(model: str) -> str:
    """Give the first column of the paper's table; empty if it is none of the paper's rows."""
    if is_baseline(model):
        return "baseline"
    return PUBLISHED[model].configuration if model in PUBLISHED else ""


def name_of(model: str) -> str:
    """Give the paper's name of a model; a baseline's is ours, another model's its own.

    Examples
    --------
    >>> name_of("semi3d-cyclegan-mse"), name_of("my-own")
    ('Cycle-GAN with MSE loss', 'my-own')
    """
    if model in PUBLISHED:
        return PUBLISHED[model].name
    return BASELINES.get(model, model)


def full_name_of(model: str) -> str:
    """Give configuration and name.

    Examples
    --------
    >>> full_name_of("semi3d-cyclegan-mse"), full_name_of("baseline-t1w")
    ('semi-3D Cycle-GAN with MSE loss', 'The T1w itself')
    """
    if model in PUBLISHED:
        return f"{PUBLISHED[model].configuration} {PUBLISHED[model].name}"
    return name_of(model)


def name_in_short(model: str) -> str:
    """Give the name where there is little room.

    Examples
    --------
    >>> name_in_short("semi3d-cyclegan-mse")
    'Cycle-GAN + MSE'
    """
    return name_of(model).replace(" with MSE loss", " + MSE")


def colour_of(model: str) -> str:
    """Give the colour of a model; grey for baselines and models that are not the paper's."""
    return PUBLISHED[model].colour if model in PUBLISHED else GREY


def dash_of(model: str) -> str:
    """Give the dashes of a model's line; empty for a whole line."""
    return PUBLISHED[model].dash if model in PUBLISHED else ""
