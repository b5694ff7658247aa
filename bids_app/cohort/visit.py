"""The files of one participant: images, their metadata, and the truth about them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_app import nifti
from bids_app.cohort.plan import TRUTH, Member, Plan, start_chance
from bids_app.cohort.sources import find_label_maps, load_anatomy, template_anatomy
from bids_app.errors import CannotCreateError
from bids_app.files import write_json, write_text
from bids_app.imaging.volume import Affine, Volume
from bids_app.simulation import metadata
from bids_app.simulation.anatomy import Anatomy
from bids_app.simulation.lesions import mask_of
from bids_app.simulation.person import (
    Person,
    PetScan,
    draw_person,
    mark_lesions,
    place_head,
    scan_pet,
    scan_t1w,
)
from bids_app.simulation.positioning import itk_text

T1W_UNIT = 800.0  # of white matter in the files, which hold whole numbers; our choice
LARGEST_COUNT = 32767.0
COORDINATE_STEP, COORDINATE_UNIT = 4.0, 0.1  # mm
STRENGTH_OF_TEMPLATE, STRENGTH_OF_LABELS = 1.0, 0.6  # a label map already is one person's


def _draw_member(plan: Plan, member: Member, pattern: Volume) -> Person:
    strength = STRENGTH_OF_TEMPLATE
    if plan.anatomies is None:
        source = template_anatomy(1 if plan.resolution < 2 else 2)  # noqa: PLR2004
    else:
        maps = find_label_maps(plan.anatomies)
        offset = plan.paired + plan.t1w_only if member.group == "patient" else 0
        source = load_anatomy(maps[(offset + member.number - 1) % len(maps)])
        strength = STRENGTH_OF_LABELS
    rng = start_chance(plan, member, 0)
    least, most = plan.lesion_depth
    depths = (least / 100, most / 100) if member.kind == "patient" else None
    return draw_person(source, pattern, rng, depths=depths, strength=strength)


@dataclass(frozen=True)
class _Visit:
    """One visit of one participant, and where its files go."""

    plan: Plan
    member: Member
    session: str | None
    head: Anatomy

    def stem(self, kind: str, *, truth: bool = False) -> str:
        """Spell where its files begin, ``ROOT/sub-X[/ses-Y]/anat/sub-X[_ses-Y]_``; make that."""
        root = self.plan.bids_dir / TRUTH if truth else self.plan.bids_dir
        parts = [f"sub-{self.member.subject}"] + ([f"ses-{self.session}"] if self.session else [])
        folder = root.joinpath(*parts, kind)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotCreateError(f"{folder}: cannot be made ({error.strerror})") from error
        return f"{folder}/{'_'.join(parts)}_"

    @property
    def origin(self) -> dict[str, object]:
        """Say which T1w a file on its grid belongs to."""
        path = Path(f"{self.stem('anat')}T1w.nii.gz").relative_to(self.plan.bids_dir)
        return {"SpatialReference": f"bids:raw:{path}", "Sources": [f"bids:raw:{path}"]}

    @property
    def durations(self) -> NDArray[np.float64]:
        """Give the lengths of the frames in seconds."""
        return metadata.frame_durations(self.plan.frames)


def _save(
    data: NDArray[np.float32] | NDArray[np.int16] | NDArray[np.bool_],
    affine: Affine, stem: str, about: dict[str, object],
) -> None:  # fmt: skip
    image = nifti.Image(data, affine)  # type: ignore[arg-type]
    nifti.save(image, Path(f"{stem}.nii.gz"), description="SIMULATED by mri2pet")
    write_json(Path(f"{stem}.json"), about)


def _write_anatomy(visit: _Visit, t1w: Volume) -> None:
    head, truth = visit.head, visit.stem("anat", truth=True)
    counts = np.rint(np.minimum(t1w * T1W_UNIT, LARGEST_COUNT)).astype(np.int16)
    _save(counts, head.affine, f"{visit.stem('anat')}T1w", metadata.describe_t1w())
    _save(head.labels, head.affine, f"{truth}space-T1w_desc-aseg_dseg", visit.origin)
    every = max(round(COORDINATE_STEP / visit.plan.resolution), 1)
    tenths = np.rint(head.mni[::every, ::every, ::every] / COORDINATE_UNIT).astype(np.int16)
    affine = head.affine @ np.diag([every, every, every, 1.0])
    about = {**visit.origin, "Units": "0.1 mm"}
    _save(tenths, affine, f"{truth}space-T1w_desc-mni_coordinates", about)


def _write_pet(visit: _Visit, pet: PetScan, rng: np.random.Generator) -> None:
    data = pet.data if visit.plan.frames > 1 else pet.data[..., 0]
    about = metadata.describe_pet(visit.durations, pet.scanner.fwhm, rng)
    _save(data, pet.grid.affine, f"{visit.stem('pet')}trc-18FFDG_pet", about)
    truth = visit.stem("pet", truth=True)
    about = {**visit.origin, "SkullStripped": False, "Units": "Bq/mL"}
    _save(pet.noisefree, visit.head.affine, f"{truth}space-T1w_desc-noisefree_pet", about)
    path = Path(f"{truth}trc-18FFDG_from-pet_to-T1w_mode-image_xfm.txt")
    write_text(path, itk_text(pet.t1w_to_pet))


def _write_lesions(visit: _Visit, person: Person) -> list[dict[str, object]]:
    head, subject = visit.head, f"sub-{visit.member.subject}"
    about = {**visit.origin, "Type": "Lesion"}
    stem = visit.stem("anat", truth=True)
    _save(mark_lesions(person, head), head.affine, f"{stem}space-T1w_label-L_mask", about)
    rows: list[dict[str, object]] = []
    for number, lesion in enumerate(person.lesions, 1):
        volume = mask_of(lesion, head.labels, head.affine).sum() * np.prod(head.zooms)
        row: dict[str, object] = {
            "participant_id": subject, "lesion": number, "side": lesion.side,
            "session_id": f"ses-{visit.session}" if visit.session else None,
            "volume": float(volume), "depth": 100 * lesion.depth,
        }  # fmt: skip
        row |= dict(zip("xyz", lesion.centre, strict=True))
        row |= {f"mni_{axis}": mm for axis, mm in zip("xyz", lesion.mni, strict=True)}
        rows.append(row)
    return rows


def _write_visit(
    plan: Plan, member: Member, person: Person, number: int
) -> list[dict[str, object]]:
    rng = start_chance(plan, member, number + 1)
    head = place_head(person, plan.resolution, rng, vary=plan.vary_orientation)
    visit = _Visit(plan, member, plan.visits[number], head)
    _write_anatomy(visit, scan_t1w(person, head, rng))
    if member.kind == "t1w-only":
        return []
    pet = scan_pet(person, head, visit.durations, rng, vary=plan.vary_orientation)
    _write_pet(visit, pet, rng)
    return _write_lesions(visit, person) if person.lesions else []


def write_member(plan: Plan, member: Member, pattern: Volume) -> list[dict[str, object]]:
    """Write all images of one participant; return the rows of ``lesions.tsv``.

    Raises
    ------
    Mri2petError
        If a label map cannot be used, or a file cannot be written.
    """
    person = _draw_member(plan, member, pattern)
    visits = range(len(plan.visits))
    return [row for visit in visits for row in _write_visit(plan, member, person, visit)]
