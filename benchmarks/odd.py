"""Images that are not a good T1w or FDG PET of a whole brain, for benchmarks/verdict.py.

Also FDG PET that is not simulated: two mean images of many people, resampled into a person's T1w
space along the inverse of that T1w's registration; DATA/fdg_templates has them.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from heads import Person
from scipy import ndimage

from bids_app import nifti
from bids_app.anatomy import registration
from bids_app.imaging.intensity import smooth
from bids_app.simulation.anatomy import NAMES

SLAB, RADIUS, FADE = 72.0, 68.0, 25.0  # mm: slab height; ball radius; width of its bright centre
BLUR = 6.0  # mm FWHM of PET
HALF = 0.5
DEEP_GREY = ("thalamus", "caudate", "putamen", "hippocampus", "amygdala")
GREY = [label for name in ("cortex", "cerebellar_cortex", *DEEP_GREY) for label in NAMES[name]]
WHITES = [label for name in ("white", "cerebellar_white", "brainstem") for label in NAMES[name]]
GREY_OF_PIB, ELSEWHERE = 0.6, 0.2  # relative to uptake in white matter
DARK, SHARP = 0.05, 1.0  # intensity of bone in MRI; mm FWHM of MRI
CT_AIR, CT_BONE, CT_TISSUE = 0.0, 2000.0, 1035.0  # Hounsfield units + 1000, so that air is 0

Maker = Callable[[nifti.Image], nifti.Image]


def _places(image: nifti.Image) -> np.ndarray:
    """Return the RAS+ coordinates of all voxels relative to the brain's centre, in mm."""
    voxels = np.moveaxis(np.indices(image.data.shape), 0, -1)
    points = voxels @ image.affine[:3, :3].T
    return points - points[image.data > 0].mean(axis=0)


def slab(brain: nifti.Image) -> nifti.Image:
    """Keep only the middle 72 mm."""
    keep = np.abs(_places(brain)[..., 2]) < SLAB / 2
    return nifti.Image(np.where(keep, brain.data, 0), brain.affine)


def right_half(brain: nifti.Image) -> nifti.Image:
    """Keep only the right hemisphere."""
    return nifti.Image(np.where(_places(brain)[..., 0] > 0, brain.data, 0), brain.affine)


def ball(brain: nifti.Image) -> nifti.Image:
    """Create a ball as large as a brain, brighter in its centre."""
    away = np.linalg.norm(_places(brain), axis=-1)
    light = 0.5 + 0.5 * np.exp(-((away / FADE) ** 2))
    return nifti.Image(np.where(away < RADIUS, light, 0).astype(np.float32), brain.affine)


def inverted(brain: nifti.Image) -> nifti.Image:
    """Invert the contrast, so that white matter is dark and fluid bright, as in T2w."""
    inside = brain.data > 0
    top = 1.1 * np.percentile(brain.data[inside], 99.5)
    data = np.clip(top - brain.data, 0.05 * top, None)
    return nifti.Image(np.where(inside, data, 0).astype(np.float32), brain.affine)


def noise(brain: nifti.Image) -> nifti.Image:
    """Fill the brain mask with noise."""
    data = np.random.default_rng(1).random(brain.data.shape) + HALF
    return nifti.Image(np.where(brain.data > 0, data, 0).astype(np.float32), brain.affine)


def mirrored(image: nifti.Image) -> nifti.Image:
    """Exchange left and right by reversing an axis of the grid."""
    axis = int(np.abs(image.affine[0, :3]).argmax())
    return nifti.Image(np.flip(image.data, axis).copy(), image.affine)


T1W: dict[str, Maker] = {
    "72 mm slab": slab,
    "right half": right_half,
    "ball": ball,
    "contrast inverted": inverted,
    "noise in the outline": noise,
    "left and right exchanged": mirrored,
}


def _scanned(data: np.ndarray, person: Person) -> nifti.Image:
    """Place data on the grid of a T1w at the position of that person's PET."""
    return nifti.Image(data.astype(np.float32), person.true @ person.labels.affine)


def _noisy(data: np.ndarray, share: float) -> np.ndarray:
    rng = np.random.default_rng(2)
    return data + share * data.max() * rng.standard_normal(data.shape).astype(np.float32)


def pet_exchanged(person: Person) -> nifti.Image:
    """Reflect a PET at the sagittal plane through the centre of its brain."""
    centre = (person.true @ np.append(person.points[:, :3].mean(axis=0), 1))[:3]
    normal = person.true[:3, 0]
    mirror = np.eye(4)
    mirror[:3, :3] -= 2 * np.outer(normal, normal)
    mirror[:3, 3] = 2 * normal * (normal @ centre)
    pet = person.pet
    whole = np.linalg.inv(pet.affine) @ mirror @ pet.affine
    data = ndimage.affine_transform(pet.data, whole[:3, :3], whole[:3, 3], order=1)
    return nifti.Image(data, pet.affine)


def amyloid(person: Person) -> nifti.Image:
    """Paint uptake that is highest in white matter, as with amyloid tracers in healthy people."""
    labels = person.labels
    data = np.where(labels.data > 0, ELSEWHERE, 0).astype(np.float32)
    data[np.isin(labels.data, GREY)] = GREY_OF_PIB
    data[np.isin(labels.data, WHITES)] = 1
    return _scanned(_noisy(smooth(data, BLUR, labels.zooms), 0.03), person)


def ct(person: Person) -> nifti.Image:
    """Paint a CT: bright bone, uniform soft tissue."""
    labels = person.labels
    data = np.where(labels.data > 0, CT_TISSUE, CT_AIR).astype(np.float32)
    data[np.isin(labels.data, NAMES["bone"])] = CT_BONE
    return _scanned(_noisy(data, 0.01), person)


def flat(person: Person) -> nifti.Image:
    """Paint a head with uniform uptake."""
    data = smooth((person.labels.data > 0).astype(np.float32), BLUR, person.labels.zooms)
    return _scanned(_noisy(data, 0.03), person)


def pet_noise(person: Person) -> nifti.Image:
    """Create an image of noise only."""
    data = np.random.default_rng(3).random(person.labels.data.shape).astype(np.float32)
    return _scanned(smooth(data, BLUR, person.labels.zooms), person)


def blurred(person: Person, fwhm: float) -> nifti.Image:
    """Blur the PET, as an old scanner would."""
    return nifti.Image(smooth(person.pet.data, fwhm, person.pet.zooms), person.pet.affine)


def own_t1w(person: Person) -> nifti.Image:
    """Place the T1w of a person where the PET is."""
    t1w = nifti.load(person.t1w)
    return nifti.Image(t1w.data, person.true @ t1w.affine)


def mri(person: Person, values: tuple[float, float, float]) -> nifti.Image:
    """Paint an MRI of another contrast, of grey matter, white matter and fluid."""
    labels = person.labels
    data = np.where(labels.data > 0, HALF, 0).astype(np.float32)
    for kinds, value in zip((GREY, WHITES, [*NAMES["fluid"]]), values, strict=True):
        data[np.isin(labels.data, kinds)] = value
    data[np.isin(labels.data, [*NAMES["bone"]])] = DARK
    return _scanned(_noisy(smooth(data, SHARP, labels.zooms), 0.03), person)


def sharp_pet(person: Person, fwhm: float) -> nifti.Image:
    """Paint a PET of a scanner with a high resolution."""
    labels = person.labels
    data = np.where(labels.data > 0, 0.1, 0).astype(np.float32)
    for kinds, value in ((GREY, 1.0), (WHITES, 0.35), ([*NAMES["fluid"]], 0.04)):
        data[np.isin(labels.data, kinds)] = value
    noise = np.random.default_rng(4).standard_normal(data.shape).astype(np.float32)
    noise = smooth(noise, 4.0, labels.zooms)
    data = smooth(data, fwhm, labels.zooms) + 0.05 * noise / noise.std()
    return _scanned(np.maximum(data, 0), person)


def resized(person: Person, factor: float) -> nifti.Image:
    """Enlarge the voxels of a PET in its header."""
    pet, change = person.pet, np.eye(4)
    centre = pet.affine[:3, :3] @ (np.array(pet.data.shape) / 2) + pet.affine[:3, 3]
    change[:3, :3] *= factor
    change[:3, 3] = (1 - factor) * centre
    return nifti.Image(pet.data, change @ pet.affine)


def noisy_pet(person: Person) -> nifti.Image:
    """Add noise of 10 % of the brightest uptake, with a FWHM of 4 mm."""
    pet = person.pet
    noise = np.random.default_rng(5).standard_normal(pet.data.shape).astype(np.float32)
    noise = smooth(noise, 4.0, pet.zooms)
    size = 0.1 * np.percentile(pet.data, 99) / noise.std()
    return nifti.Image(pet.data + np.float32(size) * noise, pet.affine)


PET: dict[str, Callable] = {
    "as it is": lambda person: person.pet,
    "with noise of 10 %": noisy_pet,
    "of a scanner of 4 mm": partial(sharp_pet, fwhm=4.0),
    "of a scanner of 3 mm": partial(sharp_pet, fwhm=3.0),
    "the T1w": own_t1w,
    "a FLAIR": partial(mri, values=(1.15, 0.9, 0.15)),
    "a T2w": partial(mri, values=(1.2, 0.8, 2.0)),
    "a proton density image": partial(mri, values=(1.2, 0.95, 1.1)),
    "6 % too large": partial(resized, factor=1.06),
    "6 % too small": partial(resized, factor=0.94),
    "3 % too large": partial(resized, factor=1.03),
    "white above grey, as amyloid tracers": amyloid,
    "CT": ct,
    "flat": flat,
    "noise": pet_noise,
    "left and right exchanged": pet_exchanged,
    "blurred by 8 mm more": partial(blurred, fwhm=8.0),
}


def carried(template_pet: nifti.Image, t1w: Path, back: Path, work: Path) -> nifti.Image:
    """Resample a mean PET into a person's space, by the inverse of a registration."""
    source, out = work / "mean_pet.nii.gz", work / "carried_pet.nii.gz"
    nifti.save(template_pet, source)
    registration.resample(source, t1w, [back], out, interpolation="linear")
    return nifti.load(out)


def mean_pets(data: Path) -> Iterator[tuple[str, nifti.Image]]:
    """Yield the mean FDG PET of many people, with negative values set to 0."""
    for path in sorted(data.glob("fdg_templates/*.nii.gz")):
        image = nifti.load(path)
        yield path.name.split("_")[0], nifti.Image(np.clip(image.data, 0, None), image.affine)
