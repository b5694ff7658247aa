"""Paths of the results of a visit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bids_app.arguments import LABEL
from bids_app.visit import Scan, Visit

# Order of the keys in a file name: BIDS 1.10, appendix "Entity table"; from, to and mode as in
# fMRIPrep's transforms, stat as in the statistical maps of BEP 002.
ENTITIES = (
    "sub",
    "ses",
    "task",
    "acq",
    "ce",
    "trc",
    "rec",
    "run",
    "part",
    "from",
    "to",
    "mode",
    "space",
    "seg",
    "res",
    "label",
    "stat",
    "desc",
)
FDG_LABEL = "18FFDG"  # of all results; no other tracer is used


def _checked(label: str) -> str:
    if not LABEL.fullmatch(label):
        raise ValueError(f"{label!r} is not a BIDS label: letters, digits and + only")
    return label


def derivative_path(
    root: Path,
    *,
    subject: str,
    session: str | None,
    datatype: str,
    suffix: str,
    extension: str,
    entities: Mapping[str, str | None],
) -> Path:
    """Return the path of a result.

    Parameters
    ----------
    root : Path
        Root of the derivative dataset.
    subject, session : str, str or None
        Labels.
    datatype : str
        Folder: ``anat`` or ``pet``.
    suffix, extension : str
        Last part of the name, and extension including the dot.
    entities : mapping
        Labels by short key, in any order; those that are None are left out.

    Raises
    ------
    ValueError
        If a key is unknown, or a label, datatype, suffix or extension has characters that are not
        allowed.

    Examples
    --------
    >>> derivative_path(Path("out"), subject="01", session=None, datatype="anat", suffix="T1w",
    ...                 extension=".json", entities={"desc": "preproc", "space": "MNI"}).as_posix()
    'out/sub-01/anat/sub-01_space-MNI_desc-preproc_T1w.json'
    """
    unknown = set(entities) - set(ENTITIES[2:])
    if unknown:
        raise ValueError(f"no such entities: {sorted(unknown)}")
    if not re.fullmatch(r"(\.[0-9a-z]+)+", extension):
        raise ValueError(f"{extension!r} is not an extension")
    labels = {**entities, "sub": subject, "ses": session}
    ordered = [(key, labels[key]) for key in ENTITIES if labels.get(key) is not None]
    parts = [f"{key}-{_checked(label)}" for key, label in ordered if label is not None]
    folders = [f"sub-{subject}", *([] if session is None else [f"ses-{session}"])]
    name = "_".join([*parts, _checked(suffix)]) + extension
    return root.joinpath(*folders, _checked(datatype), name)


def entities_of(path: Path) -> dict[str, str]:
    """Return the labels in a file name from :func:`derivative_path`, by short key.

    Raises
    ------
    ValueError
        If the name does not consist of entities and a suffix.

    Examples
    --------
    >>> entities_of(Path("sub-01_trc-18FFDG_desc-synth_pet.nii.gz"))
    {'sub': '01', 'trc': '18FFDG', 'desc': 'synth'}
    """
    *pairs, suffix = path.name.partition(".")[0].split("_")
    entities = {}
    for pair in pairs:
        key, _, label = pair.partition("-")
        if key not in ENTITIES or key in entities:
            raise ValueError(f"{path.name}: {pair!r} is not an entity, or comes twice")
        entities[key] = _checked(label)
    _checked(suffix)
    return entities


def resolution_label(resolution: float) -> str:
    """Format a resolution in mm as a label.

    Examples
    --------
    >>> resolution_label(1.0), resolution_label(1.5)
    ('1', '1p5')
    """
    if not 0 < resolution < 1000:  # otherwise the label would need an exponent
        raise ValueError(f"{resolution} mm is not a resolution")
    return f"{resolution:.4f}".rstrip("0").rstrip(".").replace(".", "p")


def sidecar_path(path: Path) -> Path:
    """Return the path of the JSON file beside a result.

    Examples
    --------
    >>> sidecar_path(Path("a_pet.nii.gz")).name
    'a_pet.json'
    """
    return path.with_name(path.name.partition(".")[0] + ".json")


def uri_of(path: Path, output_dir: Path) -> str:
    """Return the BIDS URI of a result in the derivative dataset.

    Examples
    --------
    >>> uri_of(Path("out/sub-01/anat/a.json"), Path("out"))
    'bids::sub-01/anat/a.json'
    """
    return f"bids::{path.relative_to(output_dir).as_posix()}"


def coverage_path(pet: Path) -> Path:
    """Return the path of the coverage mask of a resampled PET, which is beside it.

    Examples
    --------
    >>> coverage_path(Path("sub-01_trc-18FFDG_run-2_space-T1w_desc-preproc_pet.nii.gz")).name
    'sub-01_trc-18FFDG_run-2_space-T1w_desc-coverage_mask.nii.gz'
    """
    return pet.with_name(pet.name.replace("_desc-preproc_pet.", "_desc-coverage_mask."))


SUBTRACTED = ("synthscaled", "difference")  # desc- of images made from real and synthetic PET


@dataclass(frozen=True)
class PetPaths:
    """Results of one real PET image; docs/outputs.md is generated from these descriptions.

    Attributes
    ----------
    in_template : Path
        The real PET of the brain on the grid of the template, within 0 to 1.
    in_t1w : Path
        The real PET on the grid of the T1w, in the unit of the original.
    to_t1w : Path
        The rigid transform from PET to T1w.
    """

    in_template: Path
    in_t1w: Path
    to_t1w: Path

    @property
    def coverage_in_template(self) -> Path:
        """The mask of the brain where the PET was measured, on the grid of the template."""
        return coverage_path(self.in_template)

    @property
    def coverage_in_t1w(self) -> Path:
        """The mask of where the PET was measured, on the grid of the T1w."""
        return coverage_path(self.in_t1w)

    @property
    def subtracted(self) -> tuple[Path, Path]:
        """Synthetic PET in the unit of the real one, and their difference, in T1w space."""
        name = self.in_t1w.name
        names = [name.replace("_desc-preproc_", f"_desc-{desc}_") for desc in SUBTRACTED]
        return self.in_t1w.with_name(names[0]), self.in_t1w.with_name(names[1])

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that preprocessing writes, without sidecars."""
        images = (self.in_template, self.in_t1w)
        return *images, self.to_t1w, *map(coverage_path, images)


@dataclass(frozen=True)
class VisitPaths:
    """Results of a visit; docs/outputs.md is generated from these descriptions.

    Each has a sidecar; see :func:`sidecar_path`.

    Attributes
    ----------
    t1w : Path
        The T1w without bias field, on its own grid.
    brain_mask : Path
        The mask of the brain, on the grid of the T1w.
    t1w_in_template : Path
        The T1w of the brain on the grid of the template, within 0 to 1.
    brain_mask_in_template : Path
        The mask of the brain on the grid of the template.
    t1w_to_template : Path
        The transform that brings the T1w to the template.
    template_to_t1w : Path
        The transform that brings the template to the T1w.
    synthetic_pet : Path
        The SYNTHETIC PET on the grid of the template, within 0 to 1.
    synthetic_pet_in_t1w : Path
        The SYNTHETIC PET on the grid of the T1w, within 0 to 1.
    uncertainty : Path
        With ``--uncertainty``: the expected error of the synthetic PET, a standard deviation.
    regions : Path
        Uptake by region of the real and the synthetic PET.
    pets : tuple of PetPaths
        Results of the real PET images, if there are any.
    """

    t1w: Path
    brain_mask: Path
    t1w_in_template: Path
    brain_mask_in_template: Path
    t1w_to_template: Path
    template_to_t1w: Path
    synthetic_pet: Path
    synthetic_pet_in_t1w: Path
    uncertainty: Path
    regions: Path
    pets: tuple[PetPaths, ...]

    @property
    def preprocessed(self) -> tuple[Path, ...]:
        """Files that ``--stage preprocess`` writes, without sidecars."""
        anatomy = (
            self.t1w,
            self.brain_mask,
            self.t1w_in_template,
            self.brain_mask_in_template,
            self.t1w_to_template,
            self.template_to_t1w,
        )
        return anatomy + tuple(path for pet in self.pets for path in pet.files)

    @property
    def synthesized(self) -> tuple[Path, ...]:
        """Files that ``--stage synthesize`` writes without ``--uncertainty``, without sidecars."""
        return (self.synthetic_pet,)


def pet_paths(output_dir: Path, pet: Scan, template: str, resolution: float) -> PetPaths:
    """Return the paths of the results of a real PET image, which are in its own session.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    pet : Scan
        Raw image.
    template : str
        Name of the template, as a ``space-`` label.
    resolution : float
        Resolution of the app's grid, in mm.
    """
    shared = {
        "trc": FDG_LABEL,  # whatever label the dataset uses
        "rec": pet.entity("rec"),
        "run": pet.entity("run"),
    }

    def path(suffix: str, extension: str, **entities: str) -> Path:
        return derivative_path(
            output_dir,
            subject=pet.subject,
            session=pet.session,
            datatype="pet",
            suffix=suffix,
            extension=extension,
            entities={**shared, **entities},
        )

    grid = {"space": template, "res": resolution_label(resolution)}
    return PetPaths(
        in_template=path("pet", ".nii.gz", **grid, desc="preproc"),
        in_t1w=path("pet", ".nii.gz", space="T1w", desc="preproc"),
        to_t1w=path("xfm", ".txt", to="T1w", mode="image", **{"from": "pet"}),
    )


def visit_paths(output_dir: Path, visit: Visit, template: str, resolution: float) -> VisitPaths:
    """Return the paths of the results of a visit.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    visit : Visit
        T1w with its PET images.
    template : str
        Name of the template, as a ``space-`` label.
    resolution : float
        Resolution of the app's grid, in mm.
    """

    def path(datatype: str, suffix: str, extension: str, **entities: str) -> Path:
        return derivative_path(
            output_dir,
            subject=visit.subject,
            session=visit.session,
            datatype=datatype,
            suffix=suffix,
            extension=extension,
            entities=entities,
        )

    def transform(start: str, end: str) -> Path:
        return path("anat", "xfm", ".h5", to=end, mode="image", **{"from": start})

    grid = {"space": template, "res": resolution_label(resolution)}
    return VisitPaths(
        t1w=path("anat", "T1w", ".nii.gz", desc="preproc"),
        brain_mask=path("anat", "mask", ".nii.gz", desc="brain"),
        t1w_in_template=path("anat", "T1w", ".nii.gz", **grid, desc="preproc"),
        brain_mask_in_template=path("anat", "mask", ".nii.gz", **grid, desc="brain"),
        t1w_to_template=transform("T1w", template),
        template_to_t1w=transform(template, "T1w"),
        synthetic_pet=path("pet", "pet", ".nii.gz", trc=FDG_LABEL, **grid, desc="synth"),
        synthetic_pet_in_t1w=path(
            "pet", "pet", ".nii.gz", trc=FDG_LABEL, space="T1w", desc="synth"
        ),
        uncertainty=path("pet", "std", ".nii.gz", trc=FDG_LABEL, **grid, desc="synth"),
        regions=path("pet", "pet", ".tsv", trc=FDG_LABEL, desc="regions"),
        pets=tuple(pet_paths(output_dir, pet, template, resolution) for pet in visit.pets),
    )


def report_path(output_dir: Path, subject: str) -> Path:
    """Return the path of the report of a participant, one for all visits."""
    return output_dir / f"sub-{_checked(subject)}.html"
