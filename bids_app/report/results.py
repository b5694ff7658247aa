"""Which derivatives a participant has, their images, and their numbers in plain words."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from bids_app.derivatives.find import t1w_of_pet
from bids_app.errors import MissingInputError, Mri2petError, UnusableDataError
from bids_app.files import read_json
from bids_app.imaging.coverage import COMPLETE, describe_missing
from bids_app.imaging.verdict import reasons_of, verdict_of
from bids_app.imaging.volume import Mask
from bids_app.nifti import Image, check_header, load
from bids_app.report.figures import turn_to_ras

IMAGE, SIDECAR = ".nii.gz", ".json"


@dataclass(frozen=True)
class Derivative:
    """An image that ought to be there, and its sidecar.

    Parameters
    ----------
    path : Path
        The image.
    metadata : dict
        Empty where the sidecar is missing or cannot be read.
    fault : str
        What is wrong with the sidecar; empty if nothing is.
    """

    path: Path
    metadata: Mapping[str, object]
    fault: str = ""

    def text(self, key: str) -> str:
        """Give a value as text; empty where there is none."""
        value = self.metadata.get(key)
        return "" if value is None else str(value)

    def reading_notes(self) -> list[str]:
        """List what is to be known of how the raw image was read, in sentences."""
        told = self.metadata.get("ReadingNotes")
        return [str(note) for note in told] if isinstance(told, list) else []

    def sources(self) -> tuple[str, ...]:
        """Name the files of the raw dataset it was made from."""
        listed = self.metadata.get("Sources")
        uris = [str(uri) for uri in listed] if isinstance(listed, list) else []
        return tuple(uri.removeprefix("bids:raw:") for uri in uris if uri.startswith("bids:raw:"))


@dataclass(frozen=True)
class RealPet:
    """A PET that was measured: in the space of its T1w, and in that of the template."""

    name: str
    in_t1w: Derivative
    in_template: Derivative | None

    def get(self, key: str) -> object:
        """Look a value up in the sidecar of either image."""
        told = [one.metadata.get(key) for one in (self.in_t1w, self.in_template) if one is not None]
        return next((value for value in told if value is not None), None)


@dataclass(frozen=True)
class Results:
    """What was made from one visit. ``None``: not asked for, or not reached.

    Parameters
    ----------
    name : str
        ``"sub-01, ses-02"``.
    space : str
        Of the template, as in file names: ``"MNI152NLin2009aSym_res-1"``; empty if none.
    """

    name: str
    space: str
    t1w: Derivative
    mask: Derivative
    t1w_in_template: Derivative | None
    mask_in_template: Derivative | None
    synthetic: Derivative | None
    uncertainty: Derivative | None = None
    pets: tuple[RealPet, ...] = field(default=())

    def derivatives(self) -> tuple[Derivative, ...]:
        """List all of its images."""
        anatomy = (self.t1w, self.mask, self.t1w_in_template, self.mask_in_template)
        pets = [one for pet in self.pets for one in (pet.in_t1w, pet.in_template)]
        predicted = (self.synthetic, self.uncertainty)
        return tuple(one for one in (*anatomy, *predicted, *pets) if one is not None)

    def reading_notes(self) -> list[str]:
        """List what is to be known of how the raw images were read, in sentences."""
        images = (self.t1w, *(pet.in_t1w for pet in self.pets))
        return [note for image in images for note in image.reading_notes()]

    @property
    def is_spread_of_synthetic(self) -> bool:
        """Whether the map of uncertainty was made with the synthetic PET, not by another run."""
        both = (self.synthetic, self.uncertainty)
        marks = {one.text("Fingerprint") for one in both if one is not None}
        return self.uncertainty is not None and len(marks) == 1


def read_derivative(path: Path) -> Derivative:
    """Read the sidecar of an image; the image itself need not be there."""
    sidecar = path.with_name(path.name.removesuffix(IMAGE) + SIDECAR)
    try:
        return Derivative(path, read_json(sidecar))
    except Mri2petError:
        state = "cannot be read" if sidecar.exists() else "is missing"
        return Derivative(path, {}, f"{sidecar.name} {state}; what it would tell is left out.")


def find_results(output_dir: Path, subject: str, shape: tuple[int, ...]) -> tuple[Results, ...]:
    """Gather the images of a participant.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset.
    subject : str
        Its label, without ``sub-``.
    shape : tuple of int
        Of the template. Where images lie in several spaces, those of this shape are taken.

    Returns
    -------
    tuple of Results
        By session. A PET is with the T1w it was aligned to.
    """
    folder = output_dir / f"sub-{subject}"
    stems = sorted({_stem(path) for path in _images(folder, "anat")})
    visits = {stem: _results(folder, stem, shape) for stem in stems}
    pets: dict[str, list[RealPet]] = {stem: [] for stem in stems}
    for stem in sorted({_stem(path) for path in _images(folder, "pet", "*desc-preproc_pet")}):
        in_t1w = read_derivative(_place(folder, "pet", f"{stem}_space-T1w_desc-preproc_pet"))
        home = t1w_of_pet(output_dir, stem, visits)
        if home is None:
            first = stems[0] if stems else ""
            lost = f"{stem}: no T1w that this PET lies on is there; it is not shown."
            visits |= {k: _with_fault(v, lost) for k, v in visits.items() if k == first}
        else:
            space = visits[home].space
            beside = _in_space(folder, "pet", stem, space, "desc-preproc_pet")
            pets[home].append(RealPet(_say(stem), in_t1w, beside))
    return tuple(replace(visit, pets=tuple(pets[stem])) for stem, visit in visits.items())


def _with_fault(visit: Results, fault: str) -> Results:
    told = " ".join(filter(None, (visit.t1w.fault, fault)))
    return replace(visit, t1w=replace(visit.t1w, fault=told))


def _images(folder: Path, modality: str, pattern: str = "*_desc-*") -> list[Path]:
    return [
        path
        for place in (modality, f"ses-*/{modality}")
        for ending in (IMAGE, SIDECAR)
        for path in folder.glob(f"{place}/{pattern}{ending}")
    ]


def _stem(path: Path) -> str:
    """Keep the entities that say whose image it is: all before ``space-``, ``res-``, ``desc-``."""
    parts = path.name.split("_")
    ends = [n for n, part in enumerate(parts) if part.startswith(("space-", "res-", "desc-"))]
    return "_".join(parts[: ends[0]])


def _place(folder: Path, modality: str, name: str) -> Path:
    session = [part for part in name.split("_") if part.startswith("ses-")]
    return folder.joinpath(*session, modality, name + IMAGE)


def _in_space(folder: Path, modality: str, stem: str, space: str, ending: str) -> Derivative | None:
    if not space:
        return None
    return read_derivative(_place(folder, modality, f"{stem}_space-{space}_{ending}"))


def _results(folder: Path, stem: str, shape: tuple[int, ...]) -> Results:
    space = _space_of(_images(folder, "anat", f"{stem}_space-*_desc-preproc_T1w"), shape)
    synthetic, uncertainty = (
        _if_there(_in_space(folder, "pet", f"{stem}_trc-18FFDG", space, f"desc-synth_{suffix}"))
        for suffix in ("pet", "std")
    )
    return Results(
        name=_say(stem),
        space=space,
        t1w=read_derivative(_place(folder, "anat", f"{stem}_desc-preproc_T1w")),
        mask=read_derivative(_place(folder, "anat", f"{stem}_desc-brain_mask")),
        t1w_in_template=_in_space(folder, "anat", stem, space, "desc-preproc_T1w"),
        mask_in_template=_in_space(folder, "anat", stem, space, "desc-brain_mask"),
        synthetic=synthetic,
        uncertainty=uncertainty,
    )


def _if_there(derivative: Derivative | None) -> Derivative | None:
    """Pass over an image that has neither a sidecar nor content."""
    if derivative is None or derivative.metadata or derivative.path.exists():
        return derivative
    return None


def _space_of(paths: Iterable[Path], shape: tuple[int, ...]) -> str:
    """Choose a space: one whose T1w has the shape, or else the first by name."""
    spaces = {
        path.name.partition("_space-")[2].rpartition("_desc-")[0]: path
        for path in sorted(paths)
        if path.name.endswith(IMAGE)
    } or {path.name.partition("_space-")[2].rpartition("_desc-")[0]: path for path in paths}
    fitting = [space for space, path in spaces.items() if _shape_of(path) == shape]
    return min(fitting, default=min(spaces, default=""))


def _shape_of(path: Path) -> tuple[int, ...]:
    try:
        return check_header(path)
    except Mri2petError:
        return ()


def _say(stem: str) -> str:
    return ", ".join(part for part in stem.split("_") if not part.startswith("trc-"))


class ImageCache:
    """Images, RAS+, by path.

    Parameters
    ----------
    output_dir : Path
        The derivative dataset; files are named from there.
    """

    def __init__(self, output_dir: Path) -> None:
        self._output_dir = output_dir
        self._images: dict[Path, Image] = {}

    def take(self, path: Path, grid: Image | None = None) -> Image:
        """Read an image.

        Parameters
        ----------
        path : Path
            A NIfTI image.
        grid : Image, optional
            The image it ought to lie on.

        Raises
        ------
        MissingInputError, ReadWriteError, UnusableDataError
            As :func:`bids_app.nifti.load`; UnusableDataError also if it lies on another grid.
        """
        if path not in self._images:
            if not path.exists():
                raise MissingInputError(f"{self._tell(path)} is missing.")
            self._images[path] = turn_to_ras(load(path))
        image = self._images[path]
        if image.data.ndim != 3:
            raise UnusableDataError(f"{self._tell(path)} is not one volume.")
        if grid is not None and not _share_grid(image, grid):
            raise UnusableDataError(f"{self._tell(path)} lies on another grid than it should.")
        return image

    def take_derivative(self, derivative: Derivative | None, grid: Image | None = None) -> Image:
        """Read a derivative, as :meth:`take`; None is one that was never written."""
        if derivative is None:
            raise MissingInputError("No image in the space of the template was written.")
        return self.take(derivative.path, grid)

    def _tell(self, path: Path) -> str:
        inside = path.is_relative_to(self._output_dir)
        return path.relative_to(self._output_dir).as_posix() if inside else str(path)


def mask_of(brain: Image) -> Mask:
    """Tell inside from outside."""
    inside: Mask = brain.data > 0.5
    return inside


def _share_grid(one: Image, other: Image) -> bool:
    same = one.data.shape == other.data.shape
    return same and np.allclose(one.affine, other.affine, atol=1e-2)


LOWEST_DICE: Final = 0.9  # our choice: below it, brains that fit are rare
MEASURES: Final = ("SSIM", "PSNR", "SSIMBrain", "PSNRBrain")


@dataclass(frozen=True)
class Row:
    """A line of a table; ``flagged`` where a reader should look twice."""

    name: str
    cells: tuple[str, ...]
    reading: str = ""
    flagged: bool = False


def as_number(value: object) -> float | None:
    """Take a number for what it is, and anything else for none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def show(value: float | None, digits: int) -> str:
    """Write a number, or ``n/a``.

    Examples
    --------
    >>> show(0.98765, 3), show(None, 3), show(float("inf"), 1)
    ('0.988', 'n/a', '∞')
    """
    if value is None:
        return "n/a"
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"


def measures_of(synthetic: Derivative | None) -> dict[str, float | None]:
    """Give how alike the synthetic and the real PET are; empty where nothing was measured."""
    found = None if synthetic is None else synthetic.metadata.get("Measures")
    if not isinstance(found, dict) or not found:
        return {}
    return {name: as_number(found.get(name)) for name in MEASURES}


def describe_measures(synthetic: Derivative) -> str:
    """Put into a sentence how alike the synthetic and the real PET are; empty if not measured."""
    found = measures_of(synthetic)
    if not found:
        return ""
    return (
        f"SSIM {show(found['SSIM'], 3)}, PSNR {show(found['PSNR'], 1)} dB in the whole volume; "
        f"SSIM {show(found['SSIMBrain'], 3)}, PSNR {show(found['PSNRBrain'], 1)} dB in the brain."
    )


def comparison_rows(visits: Iterable[Results]) -> list[Row]:
    """Tell, a visit a row: SSIM and PSNR (dB) in the whole volume, then in the brain."""
    rows = []
    for visit in visits:
        found = measures_of(visit.synthetic)
        if found:
            cells = [show(found[name], 3 if name.startswith("SSIM") else 1) for name in MEASURES]
            rows.append(Row(visit.name, tuple(cells)))
    return rows


def novelty_rows(visits: Iterable[Results]) -> list[Row]:
    """Tell, a visit a row, how unlike the training T1w the T1w is, and what those have."""
    rows = []
    for visit in visits:
        told = None if visit.synthetic is None else visit.synthetic.metadata.get("Novelty")
        if isinstance(told, dict) and told:
            rows.append(_novelty_row(visit.name, told))
    return rows


def _novelty_row(name: str, told: Mapping[str, object]) -> Row:
    value, low, high, count = (
        as_number(told.get(key))
        for key in (
            "Value",
            "TrainingControlsLowest",
            "TrainingControlsHighest",
            "TrainingControls",
        )
    )
    others = f"{show(low, 2)} to {show(high, 2)} (n = {show(count, 0)})"
    reading, flagged = read_novelty(value, high)
    return Row(name, (show(value, 2), others), reading, flagged)


def read_novelty(value: float | None, highest: float | None) -> tuple[str, bool]:
    """Say in words how unlike the training T1w a T1w is, and whether that is a reason to doubt.

    Parameters
    ----------
    value, highest : float or None
        Of the T1w, and the highest of the training controls, each against the others.

    Examples
    --------
    >>> read_novelty(1.1, 1.2)
    ('Like the T1w of the training controls.', False)
    >>> read_novelty(3.4, 1.2)
    ('UNLIKE the T1w of every training control: doubt the synthetic PET.', True)
    """
    if value is None or highest is None:
        return "Not known.", False
    if value > highest:
        return "UNLIKE the T1w of every training control: doubt the synthetic PET.", True
    return "Like the T1w of the training controls.", False


def folds_of(visit: Results) -> list[str]:
    """List the generators of folds whose predictions the map of uncertainty compares."""
    if visit.uncertainty is None or not visit.is_spread_of_synthetic:
        return []
    told = visit.uncertainty.metadata.get("FoldGeneratorsSHA256")
    return [str(one) for one in told] if isinstance(told, list) else []


def registration_rows(visits: Iterable[Results]) -> list[Row]:
    """Tell, a registration a row: verdict, similarity before and after, Dice of the masks."""
    rows = []
    for visit in visits:
        if visit.t1w_in_template is not None:
            told = visit.t1w_in_template.metadata.get("Registration")
            rows.append(_row(f"T1w → template ({visit.name})", told))
        rows += [_row(f"PET → T1w ({pet.name})", pet.get("Registration")) for pet in visit.pets]
    return rows


def _row(name: str, told: object) -> Row:
    numbers = told if isinstance(told, dict) else {}
    verdict = verdict_of({"Registration": numbers})
    before, after, dice = (
        as_number(numbers.get(key))
        for key in ("SimilarityBefore", "SimilarityAfter", "DiceBrainMask")
    )
    cells = (show(before, 3), show(after, 3), show(dice, 3))
    if verdict is None:  # of a version that gave none
        reading, flagged = read_registration(before, after, dice)
        return Row(name, ("n/a", *cells), reading, flagged)
    reading = read_verdict(verdict, reasons_of(numbers))
    return Row(name, (verdict, *cells), reading, verdict != "pass")


def read_verdict(verdict: str, reasons: Sequence[str]) -> str:
    """Say in words what is thought of a registration.

    Examples
    --------
    >>> read_verdict("pass", []), read_verdict("fail", ["half of the brain is missing"])
    ('It fits.', 'FAILED: half of the brain is missing. The image is used nowhere.')
    """
    if verdict == "pass":
        return "It fits."
    why = "; ".join(reasons)
    if verdict == "fail":
        return f"FAILED: {why}. The image is used nowhere."
    return f"IN DOUBT: {why}. Look at the figure before you use it."


def read_registration(
    before: float | None, after: float | None, dice: float | None
) -> tuple[str, bool]:
    """Say in words what the numbers of a registration mean, and whether they look bad.

    Examples
    --------
    >>> read_registration(1.05, 1.2, 0.97)
    ('More alike than before; the brain masks overlap by 97 %.', False)
    >>> read_registration(1.05, 1.02, None)
    ('LESS alike than before registration: look at the figure.', True)
    """
    words = []
    if before is not None and after is not None:
        worse = after < before
        words.append("LESS alike than before registration" if worse else "More alike than before")
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
    """Tell, a PET a row, which share of the brain it covers, of all and of what is analysed."""
    rows = []
    for pet in (pet for visit in visits for pet in visit.pets):
        images = [one for one in (pet.in_t1w, pet.in_template) if one is not None]
        shares = [as_number(image.metadata.get("BrainCoverage")) for image in images]
        known = [share for share in shares if share is not None]
        if known:
            worst = images[shares.index(min(known))]
            reading, flagged = read_coverage(min(known), worst.metadata.get("BrainNotCovered"))
            cells = tuple("n/a" if one is None else f"{100 * one:.1f} %" for one in shares)
            rows.append(
                Row(pet.name, cells if len(cells) > 1 else (*cells, "n/a"), reading, flagged)
            )
    return rows


def read_coverage(share: float, missing: object) -> tuple[str, bool]:
    """Say in words which part of the brain a PET covers, and whether that is too little.

    Examples
    --------
    >>> read_coverage(0.9995, [])
    ('All of the brain, or nearly.', False)
    >>> read_coverage(0.931, ["the top 2.4 cm"])
    ('INCOMPLETE: what is missing (the top 2.4 cm of the brain) counts nowhere.', True)
    """
    if share >= COMPLETE:
        return "All of the brain, or nearly.", False
    told = f"what is missing ({describe_missing(missing)} of the brain) counts nowhere"
    return f"INCOMPLETE: {told}.", True


def warnings_of(visits: Sequence[Results]) -> list[str]:
    """Put into sentences what the files themselves give reason to doubt."""
    flagged = [f"{row.name}: {row.reading}" for row in registration_rows(visits) if row.flagged]
    seen = [
        f"{visit.name}: the generator was trained on this participant, so that its synthetic PET "
        "is better than it would be for anybody else."
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
        if visit.uncertainty is not None and not visit.is_spread_of_synthetic
    ]
    faults = [one.fault for visit in visits for one in visit.derivatives() if one.fault]
    read = [note for visit in visits for note in visit.reading_notes()]
    return [*flagged, *partial, *strange, *seen, *stale, *faults, *read]
