"""Which files a participant has among the derivatives, and what their sidecars say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bids_app.derivatives.preprocessed import t1w_of_pet
from bids_app.errors import Mri2petError
from bids_app.files import read_json
from bids_app.nifti import check_header

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
