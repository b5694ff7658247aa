"""How training went: the epochs that ``generators/<model>/history.tsv`` lists."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bids_app.report.cells import Cells, as_count, as_value

ALL: Final = "all"  # the "fold" of the final generator


@dataclass(frozen=True)
class Epoch:
    """An epoch of one fold; ``fold`` is its number, or ``all``.

    Losses are means over the epoch's steps, unitless; ``ssim`` is that of the validation volumes,
    None where it was not measured; ``kept`` tells the epoch whose weights were kept.
    """

    fold: str
    number: int
    generator_loss: float | None
    discriminator_loss: float | None
    ssim: float | None
    kept: bool


def epochs_of(lines: Iterable[Cells]) -> tuple[Epoch, ...]:
    """Read all epochs, fold by fold; of one that was run twice, the later line counts."""
    epochs = {}
    for cells in lines:
        number = as_count(cells["epoch"])
        if number is not None:
            epochs[cells["fold"], number] = Epoch(
                fold=cells["fold"],
                number=number,
                generator_loss=as_value(cells.get("generator_loss")),
                discriminator_loss=as_value(cells.get("discriminator_loss")),
                ssim=as_value(cells.get("ssim_validation")),
                kept=as_count(cells.get("kept")) == 1,
            )
    return tuple(sorted(epochs.values(), key=lambda epoch: (rank(epoch.fold), epoch.number)))


def rank(fold: str) -> tuple[bool, float, str]:
    """Say where a fold stands in a list: by number, the final generator last.

    Examples
    --------
    >>> sorted(["all", "10", "2"], key=rank)
    ['2', '10', 'all']
    """
    number = as_value(fold)
    return fold == ALL, math.inf if number is None else number, fold


def folds_of(epochs: Iterable[Epoch]) -> list[str]:
    """List the folds, in order."""
    return sorted({epoch.fold for epoch in epochs}, key=rank)


def kept_epoch(epochs: Sequence[Epoch], fold: str) -> str:
    """Say which epoch of a fold was kept: ``"137 of 200"``, or ``n/a``."""
    own = [epoch for epoch in epochs if epoch.fold == fold]
    kept = [epoch.number for epoch in own if epoch.kept]
    return f"{kept[-1]} of {own[-1].number}" if kept else "n/a"
