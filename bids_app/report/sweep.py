"""What smoothing does to SSIM: the mean over controls against the FWHM of the Gaussian."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bids_app.report.charts import (
    INK,
    Axis,
    Chart,
    Dot,
    Key,
    Stroke,
    axis_around,
    describe_range,
    frame,
    line,
)
from bids_app.report.paper import colour_of, dash_of, full_name_of, in_order
from bids_app.report.reportlets import Text
from bids_app.report.scores import Score

WIDTH, HEIGHT = 760.0, 330.0  # px
LEFT, TOP, BOTTOM = 56.0, 24.0, 40.0  # px left of, above and below the panel


@dataclass(frozen=True)
class Sweep:
    """SSIM of one model, mean over controls, by FWHM in mm."""

    model: str
    means: dict[float, float]

    @property
    def best(self) -> float:
        """The FWHM of the highest SSIM; the least of equals."""
        return max(self.means, key=lambda fwhm: (self.means[fwhm], -fwhm))


def sweeps_of(scores: Sequence[Score]) -> list[Sweep]:
    """Average over visits, for each model, the SSIM of every FWHM."""
    swept = []
    for model in in_order(score.model for score in scores if score.sweep):
        own = [score.sweep for score in scores if score.model == model]
        widths = sorted({fwhm for one in own for fwhm in one})
        means = {fwhm: fmean(one[fwhm] for one in own if fwhm in one) for fwhm in widths}
        swept.append(Sweep(model, means))
    return swept


def cautions_of(sweeps: Sequence[Sweep], resolution: float) -> list[str]:
    """Say where the best smoothing tells less than it seems to.

    Parameters
    ----------
    sweeps : sequence of Sweep
        What was measured.
    resolution : float
        Size of a voxel in mm.
    """
    told = []
    edge = [full_name_of(one.model) for one in sweeps if one.best == max(one.means)]
    if edge:
        told.append(
            f"{', '.join(edge)}: the widest Gaussian that was tried is the best; a wider one might "
            "be better still."
        )
    if sweeps and min(one.best for one in sweeps) < resolution:
        told.append(
            f"A voxel is {resolution:g} mm wide: narrower Gaussians hardly change the images."
        )
    return told


def draw_sweeps(sweeps: Sequence[Sweep], fwhm: float | None) -> Chart | None:
    """Draw a line a model.

    Parameters
    ----------
    sweeps : sequence of Sweep
        What was measured.
    fwhm : float or None
        By which the run smoothed what it wrote, in mm; None if unknown.

    Returns
    -------
    Chart or None
        None if nothing was measured.
    """
    if not sweeps:
        return None
    across = axis_around([w for one in sweeps for w in one.means], LEFT, WIDTH - 8)
    values = [ssim for one in sweeps for ssim in one.means.values()]
    up = axis_around(values, HEIGHT - BOTTOM, TOP)
    strokes, texts = frame(across, up)
    if fwhm is not None and across.low <= fwhm <= across.high:
        x = across.place(fwhm)
        strokes.append(Stroke(line([(x, TOP), (x, HEIGHT - BOTTOM)]), INK, 1, "3 3"))
        texts.append(Text(f"this run: {fwhm:g} mm", x + 5, TOP + 8, "start"))
    texts.append(Text("SSIM, whole volume", 0, 12, "start", strong=True))
    texts.append(Text("FWHM of the Gaussian (mm)", (LEFT + WIDTH) / 2, HEIGHT - 6))
    curves = [_curve(one, across, up) for one in sweeps]
    told = [
        f"{full_name_of(one.model)}: best at {one.best:g} mm, "
        f"{describe_range(list(one.means.values()), 3)}"
        for one in sweeps
    ]
    return Chart(
        title="SSIM against smoothing",
        description="; ".join(told) + ".",
        width=WIDTH,
        height=HEIGHT,
        strokes=(*strokes, *(stroke for stroke, _ in curves)),
        dots=tuple(dot for _, dots in curves for dot in dots),
        texts=tuple(texts),
        keys=tuple(
            Key(full_name_of(one.model), colour_of(one.model), dash_of(one.model)) for one in sweeps
        ),
    )


def _curve(sweep: Sweep, across: Axis, up: Axis) -> tuple[Stroke, list[Dot]]:
    colour, best = colour_of(sweep.model), sweep.best
    points = [(across.place(fwhm), up.place(ssim)) for fwhm, ssim in sweep.means.items()]
    dots = [
        Dot(x, y, 4.5 if fwhm == best else 2.2, colour)
        for fwhm, (x, y) in zip(sweep.means, points, strict=True)
    ]
    return Stroke(line(points), colour, 1.6, dash_of(sweep.model)), dots
