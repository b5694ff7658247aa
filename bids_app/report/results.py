"""Images of a participant, each read once, and their measures in plain words."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from bids_app.derivatives.find import Results
from bids_app.derivatives.sidecars import Derivative, Faults
from bids_app.errors import MissingInputError, Mri2petError, UnusableDataError
from bids_app.files import object_at
from bids_app.imaging.coverage import COMPLETE, describe_missing
from bids_app.imaging.regions import RegionalUptake
from bids_app.imaging.verdict import reasons_of, verdict_of
from bids_app.imaging.volume import Mask
from bids_app.nifti import Image, load
from bids_app.report.figures import reorient_to_ras
from bids_app.report.page import show

Label = TypeVar("Label")


class ImageCache:
    """Cache of images, RAS+, by path.

    Parameters
    ----------
    output_dir : Path
        Path of the derivative dataset; messages name files relative to it.
    """

    def __init__(self, output_dir: Path) -> None:
        self._name = Faults(output_dir).name
        self._images: dict[Path, Image] = {}

    def take(self, path: Path, grid: Image | None = None) -> Image:
        """Read an image.

        Parameters
        ----------
        path : Path
            Path of a NIfTI image.
        grid : Image, optional
            Image whose grid it should have.

        Raises
        ------
        MissingInputError, ReadWriteError, UnusableDataError
            See :func:`bids_app.nifti.load`; UnusableDataError also if the image is not 3D or has
            another grid.
        """
        if path not in self._images:
            if not path.exists():
                raise MissingInputError(f"{self._name(path)} is missing.")
            self._images[path] = reorient_to_ras(load(path))
        image = self._images[path]
        if image.data.ndim != 3:
            raise UnusableDataError(f"{self._name(path)} is not one volume.")
        if grid is not None and not _share_grid(image, grid):
            raise UnusableDataError(f"{self._name(path)} is not on the expected grid.")
        return image

    def take_derivative(self, derivative: Derivative | None, grid: Image | None = None) -> Image:
        """Read a derivative with :meth:`take`; None stands for one that was never written."""
        if derivative is None:
            raise MissingInputError("No image in the space of the template was written.")
        return self.take(derivative.path, grid)

    def take_all(
        self, paths: Mapping[Label, Path], grid: Image
    ) -> tuple[dict[Label, Image], list[str]]:
        """Read the readable images on one grid; also return why others cannot be read."""
        images, faults = dict[Label, Image](), list[str]()
        for label, path in paths.items():
            try:
                images[label] = self.take(path, grid)
            except Mri2petError as error:
                faults.append(str(error))
        return images, faults


def mask_of(brain: Image) -> Mask:
    """Return a mask image as booleans."""
    inside: Mask = brain.data > 0.5
    return inside


def _share_grid(one: Image, other: Image) -> bool:
    same = one.data.shape == other.data.shape
    return same and np.allclose(one.affine, other.affine, atol=1e-2)


LOWEST_DICE: Final = 0.9  # our choice: well-aligned brains rarely have less
MEASURES: Final = ("SSIM", "PSNR", "SSIMBrain", "PSNRBrain")


@dataclass(frozen=True)
class Row:
    """Row of a table; ``flagged`` if it needs a closer look, ``failure`` why an image failed."""

    name: str
    cells: tuple[str, ...]
    reading: str = ""
    flagged: bool = False
    failure: str | None = None


def as_number(value: object) -> float | None:
    """Return a value as float if it is a number, and None otherwise or if it is NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def measures_of(synthetic: Derivative | None) -> dict[str, float | None]:
    """Return measures of similarity of synthetic and real PET; empty if not measured."""
    measures = {} if synthetic is None else object_at(synthetic.metadata, "Measures")
    if not measures:
        return {}
    return {name: as_number(measures.get(name)) for name in MEASURES}


def describe_measures(synthetic: Derivative) -> str:
    """Describe the similarity of synthetic and real PET in a sentence; empty if not measured."""
    measures = measures_of(synthetic)
    if not measures:
        return ""
    ssim, ssim_brain = (show(measures[name], 3) for name in ("SSIM", "SSIMBrain"))
    psnr, psnr_brain = (show(measures[name], 1) for name in ("PSNR", "PSNRBrain"))
    return (
        f"SSIM {ssim}, PSNR {psnr} dB in the whole volume; "
        f"SSIM {ssim_brain}, PSNR {psnr_brain} dB in the brain."
    )


def comparison_rows(visits: Iterable[Results]) -> list[Row]:
    """Return a row per visit: SSIM and PSNR (dB) in the whole volume, then in the brain."""
    rows = []
    for visit in visits:
        measures = measures_of(visit.synthetic)
        if measures:
            cells = [show(measures[name], 3 if name.startswith("SSIM") else 1) for name in MEASURES]
            rows.append(Row(visit.name, tuple(cells)))
    return rows


def novelty_rows(visits: Iterable[Results]) -> list[Row]:
    """Return a row per visit: novelty of its T1w, and the range of the training T1w."""
    rows = []
    for visit in visits:
        novelty = {} if visit.synthetic is None else object_at(visit.synthetic.metadata, "Novelty")
        if novelty:
            rows.append(_novelty_row(visit.name, novelty))
    return rows


def _novelty_row(name: str, novelty: Mapping[str, object]) -> Row:
    value, low, high, count = (
        as_number(novelty.get(key))
        for key in (
            "Value",
            "TrainingControlsLowest",
            "TrainingControlsHighest",
            "TrainingControls",
        )
    )
    usual = f"{show(low, 2)} to {show(high, 2)} (n = {show(count, 0)})"
    beyond = novelty.get("Beyond")
    reasons = [str(reason) for reason in beyond] if isinstance(beyond, list) else []
    reading, flagged = read_novelty(value, high, reasons)
    return Row(name, (show(value, 2), usual), reading, flagged)


def read_novelty(
    value: float | None, highest: float | None, beyond: Sequence[str] = ()
) -> tuple[str, bool]:
    """Interpret the novelty of a T1w in words, and return whether it is a reason for doubt.

    Parameters
    ----------
    value, highest : float or None
        Novelty of the T1w, and the highest novelty of a training control against the others.
    beyond : sequence of str
        Respects in which the T1w is beyond the training controls, in words.

    Examples
    --------
    >>> read_novelty(1.1, 1.2)
    ('Like the T1w of the training controls.', False)
    >>> read_novelty(3.4, 1.2)
    ('UNLIKE the T1w of every training control: doubt the synthetic PET.', True)
    >>> read_novelty(3.4, 1.2, ["blurred"])[0]
    'UNLIKE the T1w of every training control (blurred): doubt the synthetic PET.'
    """
    if value is None or highest is None:
        return "Not known.", False
    if value > highest:
        reasons = f" ({'; '.join(beyond)})" if beyond else ""
        return f"UNLIKE the T1w of every training control{reasons}: doubt the synthetic PET.", True
    return "Like the T1w of the training controls.", False


def describe_uncertainty(deviation: Derivative | None) -> str:
    """Describe the measured accuracy of the standard deviation of the error, in sentences.

    Examples
    --------
    >>> measured = {"MeasuredCoverage": {"50": 0.51, "80": 0.8}, "IntervalFactors": {"80": 1.3}}
    >>> measured["CorrelationWithAbsoluteError"] = 0.31
    >>> print(describe_uncertainty(Derivative(Path("std.nii.gz"), {"Uncertainty": measured})))
    In people who were not in its training data, the real PET was within 1.3 SD of the synthetic \
one in 80 % of brain voxels (nominal: 80 %). Across the voxels of a person, SD and absolute error \
correlate with r = 0.31.
    """
    uncertainty = {} if deviation is None else object_at(deviation.metadata, "Uncertainty")
    covered = object_at(uncertainty, "MeasuredCoverage")
    factors = object_at(uncertainty, "IntervalFactors")
    within = [
        (as_number(factors[percent]), as_number(covered.get(percent)), percent)
        for percent in factors
    ]
    cover = "; ".join(
        f"within {factor:g} SD of the synthetic one in {100 * share:.0f} % of brain voxels "
        f"(nominal: {percent} %)"
        for factor, share, percent in within
        if factor is not None and share is not None
    )
    r = as_number(uncertainty.get("CorrelationWithAbsoluteError"))
    if not cover or r is None:
        return "Its accuracy was not reported."
    return (
        f"In people who were not in its training data, the real PET was {cover}. Across the "
        f"voxels of a person, SD and absolute error correlate with r = {r:.2f}."
    )


def regions_path(visit: Results) -> Path | None:
    """Return the path of a visit's table of regional uptake; None if no PET was synthesized."""
    if visit.synthetic is None:
        return None
    stem = visit.synthetic.path.name.partition("_space-")[0]
    return visit.synthetic.path.with_name(f"{stem}_desc-regions_pet.tsv")


REGION_COLUMNS: Final = ("ratio_brain", "ratio_cerebellum", "asymmetry")
KINDS: Final = ("real", "synthetic")


def region_rows(
    rows: Sequence[RegionalUptake], usual: Mapping[str, Sequence[float]]
) -> list[tuple[str, ...]]:
    """Return rows of regional uptake: name; real PET, with t against controls; synthetic PET.

    Parameters
    ----------
    rows : sequence of RegionalUptake
        Regional uptake of a visit.
    usual : mapping
        Ratios to the brain in the real PET of controls, by region; regions may be missing.
    """
    by_region = {(row.pet, row.region): row for row in rows}
    lines = []
    for region in dict.fromkeys(row.region for row in rows):
        cells: list[str] = []
        for kind in KINDS:
            row = by_region.get((kind, region))
            values = [None if row is None else getattr(row, name) for name in REGION_COLUMNS]
            shown = [
                show(value, 1 if n == len(values) - 1 else 2) for n, value in enumerate(values)
            ]
            if kind == "real":  # t is that of the first ratio, and stands beside it
                shown.insert(1, show(single_case_t(values[0], usual.get(region, ())), 1))
            cells += shown
        lines.append((region, *cells))
    return lines


FEWEST_CONTROLS: Final = 3  # needed for a standard deviation; our choice


def single_case_t(value: float | None, controls: Sequence[float]) -> float | None:
    """Compute the t of Crawford and Howell (1998) that compares one person with controls.

    Examples
    --------
    >>> single_case_t(4.0, [1.0, 2.0, 3.0])
    1.73...
    >>> single_case_t(4.0, [1.0, 2.0]) is None
    True
    """
    if value is None or len(controls) < FEWEST_CONTROLS:
        return None
    spread = float(np.std(controls, ddof=1))
    number = len(controls)
    if not spread:
        return None
    return (value - float(np.mean(controls))) / (spread * math.sqrt((number + 1) / number))


def registration_rows(visits: Iterable[Results]) -> list[Row]:
    """Return a row per registration: verdict, similarity before and after, Dice of the masks."""
    rows = []
    for visit in visits:
        if visit.t1w_in_template is not None:
            rows.append(_row(f"T1w → template ({visit.name})", visit.t1w_in_template.metadata))
        rows += [
            _row(f"PET → T1w ({pet.name})", {"Registration": pet.get("Registration")})
            for pet in visit.pets
        ]
    return rows


def _row(name: str, sidecar: Mapping[str, object]) -> Row:
    numbers, verdict = object_at(sidecar, "Registration"), verdict_of(sidecar)
    before, after, dice = (
        as_number(numbers.get(key))
        for key in ("SimilarityBefore", "SimilarityAfter", "DiceBrainMask")
    )
    cells = (show(before, 3), show(after, 3), show(dice, 3))
    if verdict is None:  # from a version without verdicts
        reading, flagged = read_registration(before, after, dice)
        return Row(name, ("n/a", *cells), reading, flagged)
    reasons = reasons_of(numbers)
    failure = "; ".join(reasons) if verdict == "fail" else None
    reading = read_verdict(verdict, reasons)
    return Row(name, (verdict, *cells), reading, verdict != "pass", failure)


def _is_told(row: Row, problems: Sequence[str]) -> bool:
    """Return whether a problem gives the reasons for which a registration has failed."""
    return row.failure is not None and any(row.failure in problem for problem in problems)


def read_verdict(verdict: str, reasons: Sequence[str]) -> str:
    """Describe the verdict on a registration in words.

    Examples
    --------
    >>> read_verdict("pass", []), read_verdict("fail", ["half of the brain is missing"])
    ('It fits.', 'FAILED: half of the brain is missing. The image is not used.')
    """
    if verdict == "pass":
        return "It fits."
    text = "; ".join(reasons)
    if verdict == "fail":
        return f"FAILED: {text}. The image is not used."
    return f"IN DOUBT: {text}. Look at the figure before you use it."


def read_registration(
    before: float | None, after: float | None, dice: float | None
) -> tuple[str, bool]:
    """Interpret the measures of a registration in words, and return whether they look bad.

    Examples
    --------
    >>> read_registration(1.05, 1.2, 0.97)
    ('More similar than before registration; the brain masks overlap by 97 %.', False)
    >>> read_registration(1.05, 1.02, None)
    ('LESS similar than before registration: look at the figure.', True)
    """
    words = []
    if before is not None and after is not None:
        worse = after < before
        words.append(
            "LESS similar than before registration"
            if worse
            else "More similar than before registration"
        )
    else:
        worse = False
    poor = dice is not None and dice < LOWEST_DICE
    if dice is not None:
        words.append(f"the brain masks overlap by {'only ' * poor}{100 * dice:.0f} %")
    if not words:
        return "Not measured.", False
    advice = ": look at the figure." if worse or poor else "."
    return "; ".join(words) + advice, worse or poor


def coverage_rows(visits: Iterable[Results]) -> list[Row]:
    """Return a row per PET: its coverage of the whole brain and of the analysed brain."""
    rows = []
    for pet in (pet for visit in visits for pet in visit.pets):
        images = [image for image in (pet.in_t1w, pet.in_template) if image is not None]
        shares = [as_number(image.metadata.get("BrainCoverage")) for image in images]
        known = [share for share in shares if share is not None]
        if known:
            worst = images[shares.index(min(known))]
            reading, flagged = read_coverage(min(known), worst.metadata.get("BrainNotCovered"))
            cells = tuple("n/a" if share is None else f"{100 * share:.1f} %" for share in shares)
            rows.append(
                Row(pet.name, cells if len(cells) > 1 else (*cells, "n/a"), reading, flagged)
            )
    return rows


def read_coverage(share: float, missing: object) -> tuple[str, bool]:
    """Interpret the brain coverage of a PET in words, and return whether it is incomplete.

    Examples
    --------
    >>> read_coverage(0.9995, [])
    ('The whole brain is covered.', False)
    >>> read_coverage(0.931, ["the top 2.4 cm"])
    ('INCOMPLETE: the missing part (the top 2.4 cm of the brain) is ignored.', True)
    """
    if share >= COMPLETE:
        return "The whole brain is covered.", False
    part = describe_missing(missing)
    return f"INCOMPLETE: the missing part ({part} of the brain) is ignored.", True


def warnings_of(visits: Sequence[Results], problems: Sequence[str] = ()) -> list[str]:
    """List sentences on reasons for doubt that are found in the files themselves.

    A registration whose failure is among the ``problems`` of the run is left out.
    """
    flagged = [
        f"{row.name}: {row.reading}"
        for row in registration_rows(visits)
        if row.flagged and not _is_told(row, problems)
    ]
    trained = [
        f"{visit.name}: the generator was trained on this participant, so its synthetic PET is "
        "better than it would be for anyone else."
        for visit in visits
        if visit.synthetic and visit.synthetic.metadata.get("TrainedOnThisParticipant") is True
    ]
    partial = [
        f"PET ({row.name}) covers {row.cells[0]} of the brain. {row.reading}"
        for row in coverage_rows(visits)
        if row.flagged
    ]
    strange = [f"T1w ({row.name}): {row.reading}" for row in novelty_rows(visits) if row.flagged]
    stale = [
        f"{visit.name}: the map of uncertainty (desc-synth_std) is not shown, as it was not made "
        "with this synthetic PET; run with --uncertainty again, or delete it."
        for visit in visits
        if visit.uncertainty is not None and not visit.knows_errors
    ]
    derivatives = [derivative for visit in visits for derivative in visit.derivatives()]
    faults = [derivative.fault for derivative in derivatives if derivative.fault]
    notes = [note for visit in visits for note in visit.reading_notes()]
    return [*flagged, *partial, *strange, *trained, *stale, *faults, *notes]
