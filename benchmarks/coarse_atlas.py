"""Make the coarse atlas that comes with the app, by majority over label maps in template space.

    python benchmarks/coarse_atlas.py WORK --labelmaps DIR --atlas bids_app/data/atlas

``DIR`` and ``WORK`` are those of default_generator.py. Cortex is divided into lobes by planes that
stand for the central, Sylvian and parieto-occipital sulci in MNI space (our choice; accurate
to about a centimetre). Odd numbers are left, even ones right.
"""

import argparse
from pathlib import Path

import numpy as np
from default_generator import register

from bids_app import nifti
from bids_app.files import write_tsv
from bids_app.imaging.volume import Volume, grid_of_box
from bids_app.settings import Settings
from bids_app.simulation.anatomy import NAMES, coordinates, labels_in

LOBES = ("frontal", "parietal", "temporal", "occipital", "insula")
NUCLEI = ("thalamus", "caudate", "putamen", "pallidum", "hippocampus", "amygdala")
REGIONS = (*LOBES, *NUCLEI, "cerebellum")
PONS = 2 * len(REGIONS) + 1
PONS_Z = (-42.0, -22.0)  # mm; our choice
CORTEX_FAVOUR = 1.6  # gyri vary between brains, so cortex would lose the vote; our choice


def lobes(points: Volume) -> np.ndarray:
    """Return the index in ``LOBES`` of the lobe at MNI coordinates in mm, (…, 3)."""
    x, y, z = np.abs(points[..., 0]), points[..., 1], points[..., 2]
    sylvian = np.clip(-12 + (20 - y) * 28 / 60, -12, 12)
    central = -8 - 0.42 * np.maximum(z - 18, 0)
    occipital = y < -62 - 0.45 * np.maximum(z - 5, 0)
    insula = (x > 28) & (x < 43) & (y > -22) & (y < 26) & (z > -12) & (z < 16)
    pole = (y < 26) & ((z < -24) | ((z < -14) & (x > 22)))
    temporal = (z < sylvian) & (x > 14) & ((y < 6) | pole)
    return np.select([insula, occipital, temporal, y > central], [4, 3, 2, 0], 1)


def make(label_maps: list[np.ndarray], points: Volume) -> np.ndarray:
    """Take a majority vote per voxel: (I, J, K), int16, 0 if no region wins."""
    groups = ["cortex", *NUCLEI, "cerebellar_cortex", "cerebellar_white", "brainstem", "white"]
    groups += ["fluid"]
    votes = np.stack(
        [
            np.mean([labels_in(labels, NAMES[name]) for labels in label_maps], axis=0)
            for name in groups
        ]
    ).astype(np.float32)
    votes[0] *= CORTEX_FAVOUR
    winner = np.where(votes.max(axis=0) > 0.3, votes.argmax(axis=0), -1)
    place = np.full(points.shape[:3], -1)
    place[winner == 0] = lobes(points)[winner == 0]
    for name in NUCLEI:
        place[winner == groups.index(name)] = REGIONS.index(name)
    for name in ("cerebellar_cortex", "cerebellar_white"):
        place[winner == groups.index(name)] = REGIONS.index("cerebellum")
    sided = np.where(place >= 0, 2 * place + 1 + (points[..., 0] > 0), 0)
    sided[(place >= 0) & (points[..., 0] == 0)] = 0
    low, high = PONS_Z
    pons = (winner == groups.index("brainstem")) & (points[..., 2] > low) & (points[..., 2] < high)
    return np.where(pons, PONS, sided).astype(np.int16)


def main() -> None:
    """Register, vote, and write labels and names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--labelmaps", type=Path, required=True)
    parser.add_argument("--atlas", type=Path, required=True, help="folder to write the atlas to")
    given = parser.parse_args()
    paths = [register(path, given.work) for path in sorted(given.labelmaps.glob("*.nii.gz"))]
    every = (slice(None, None, 2),) * 3
    label_maps = [np.round(nifti.load(path).data).astype(np.int16)[every] for path in paths]
    grid = grid_of_box(Settings.bounding_box, 2.0)
    points = coordinates(grid)
    shape = tuple(map(min, zip(grid.shape, label_maps[0].shape, strict=True)))
    inside = tuple(slice(n) for n in shape)
    atlas = make([labels[inside] for labels in label_maps], points[inside])
    given.atlas.mkdir(parents=True, exist_ok=True)
    nifti.save(
        nifti.Image(atlas, grid.affine),
        given.atlas / "coarse.nii.gz",
        description="coarse atlas of mri2pet",
    )
    names = [f"{side} {region}" for region in REGIONS for side in ("left", "right")]
    rows = [{"index": n, "name": name} for n, name in enumerate([*names, "pons"], 1)]
    write_tsv(given.atlas / "coarse.tsv", ["index", "name"], rows)
    for row in rows:
        print(row["name"], f"{8e-3 * (atlas == row['index']).sum():.1f} cm³")


if __name__ == "__main__":
    main()
