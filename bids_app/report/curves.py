"""Learning curves: losses and validation SSIM of every fold, and which epoch was kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

from bids_app.report.charts import (
    INK,
    WIDTH,
    Axis,
    Chart,
    Dot,
    Key,
    Stroke,
    axis_around,
    frame,
    line,
)
from bids_app.report.history import ALL, Epoch, folds_of, kept_epoch, rank
from bids_app.report.paper import full_name_of
from bids_app.report.reportlets import Text

SIDE, LEFT, GAP = 320.0, 50.0, 62.0  # px: width of a panel, before the first, between two
ABOVE, PANEL, BELOW = 40.0, 118.0, 26.0  # px: over a row of panels, its height, under it
PALETTE: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe, Ito
DASHES: Final = ("", "6 3", "2 3")  # when there are more folds than colours
SSIM: Final = "SSIM, validation"
SERIES: Final[dict[str, Callable[[Epoch], float | None]]] = {
    "Loss of the generators": lambda epoch: epoch.generator_loss,
    "Loss of the discriminators": lambda epoch: epoch.discriminator_loss,
    SSIM: lambda epoch: epoch.ssim,
}


@dataclass(frozen=True)
class Panel:
    """The lines of one quantity of one model, and marks where an epoch was kept."""

    strokes: list[Stroke]
    dots: list[Dot]
    texts: list[Text]


def draw_curves(histories: Mapping[str, Sequence[Epoch]]) -> Chart | None:
    """Draw a row of three panels a model, with a line a fold.

    Parameters
    ----------
    histories : dict
        Model → its epochs, in the order in which the models are drawn.

    Returns
    -------
    Chart or None
        None if no model has an epoch.
    """
    shown = {model: epochs for model, epochs in histories.items() if epochs}
    if not shown:
        return None
    folds = sorted({fold for epochs in shown.values() for fold in folds_of(epochs)}, key=rank)
    styles = {fold: _key(fold, place) for place, fold in enumerate(folds)}
    similarities = [ssim for epochs in shown.values() for ssim in _values(epochs, SERIES[SSIM])]
    panels, texts = list[Panel](), list[Text]()
    for place, (model, epochs) in enumerate(shown.items()):
        top = place * (ABOVE + PANEL + BELOW) + ABOVE
        texts.append(Text(full_name_of(model), 0, top - 24, "start", strong=True))
        for column, (title, series) in enumerate(SERIES.items()):
            start = LEFT + column * (SIDE + GAP)
            across = axis_around([e.number for e in epochs], start, start + SIDE, whole=True)
            values = similarities if title == SSIM else _values(epochs, series)
            up = axis_around(values, top + PANEL, top, steep=title != SSIM)
            panels.append(_panel(epochs, series, across, up, styles, marked=title == SSIM))
            logarithmic = " (logarithmic)" * up.logarithmic
            texts.append(Text(title + logarithmic, start, top - 7, "start"))
    return Chart(
        title="Learning curves",
        description=_describe(shown),
        width=WIDTH,
        height=len(shown) * (ABOVE + PANEL + BELOW),
        strokes=tuple(stroke for panel in panels for stroke in panel.strokes),
        dots=tuple(dot for panel in panels for dot in panel.dots),
        texts=(*texts, *(text for panel in panels for text in panel.texts)),
        keys=tuple(styles.values()),
    )


def _key(fold: str, place: int) -> Key:
    if fold == ALL:
        return Key("final generator, all controls", INK, "5 3")
    dash = DASHES[place // len(PALETTE) % len(DASHES)]
    return Key(f"fold {fold}", PALETTE[place % len(PALETTE)], dash)


def _values(epochs: Sequence[Epoch], series: Callable[[Epoch], float | None]) -> list[float]:
    return [value for value in map(series, epochs) if value is not None and isfinite(value)]


def _describe(histories: Mapping[str, Sequence[Epoch]]) -> str:
    told = [
        f"{full_name_of(model)}, fold {fold}: epoch {kept_epoch(epochs, fold)}"
        for model, epochs in histories.items()
        for fold in folds_of(epochs)
    ]
    return f"Epochs that were kept: {'; '.join(told)}."


def _panel(
    epochs: Sequence[Epoch],
    series: Callable[[Epoch], float | None],
    across: Axis,
    up: Axis,
    styles: Mapping[str, Key],
    *,
    marked: bool,
) -> Panel:
    strokes, texts = frame(across, up)
    dots = []
    for fold, style in styles.items():
        points = {
            epoch.number: (across.place(epoch.number), up.place(value))
            for epoch in epochs
            if epoch.fold == fold and (value := series(epoch)) is not None and isfinite(value)
        }
        if points:
            strokes.append(Stroke(line(list(points.values())), style.colour, 1.4, style.dash))
        kept = [e.number for e in epochs if e.fold == fold and e.kept and e.number in points]
        dots += [Dot(*points[number], 4, style.colour) for number in kept if marked]
    return Panel(strokes, dots, texts)
