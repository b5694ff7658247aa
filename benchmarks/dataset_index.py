"""Measure how long it takes to list the images of a dataset, with pybids and without.

    python benchmarks/dataset_index.py

Datasets of empty images with sidecars are created in a temporary folder. Each measurement runs in
its own process. "import" is the time to import the modules, and "peak" the peak memory.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = (20, 1000)  # participants
PET = {"TracerName": "FDG", "FrameTimesStart": [0], "FrameDuration": [600]}
WAYS = {
    "own": "mri2pet, without an index",
    "kept": "mri2pet, `--bids-database-dir` made anew",
    "files": "pybids: files and entities",
    "metadata": "pybids: metadata and inheritance, too",
}


def make(root: Path, participants: int) -> None:
    """Create a dataset with a T1w and a PET for each participant."""
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    for number in range(participants):
        for name in ("anat/sub-{0:04}_T1w", "pet/sub-{0:04}_trc-18FFDG_pet"):
            path = root / f"sub-{number:04}" / name.format(number)
            path.parent.mkdir(parents=True)
            path.with_suffix(".nii.gz").touch()
            path.with_suffix(".json").write_text(json.dumps(PET))


def measure(way: str, root: Path) -> None:
    """Print the time of the import and of the index, in s, and the peak memory, in MB."""
    start = time.perf_counter()
    if way in ("own", "kept"):
        from bids_app.dataset.index import find_subjects, read_files, read_metadata
    else:
        from bids import BIDSLayout, BIDSLayoutIndexer
    imported = time.perf_counter()
    if way in ("own", "kept"):
        with tempfile.TemporaryDirectory() as made:
            database = Path(made, "index") if way == "kept" else None
            files = read_files(root, find_subjects(root), database_dir=database)
        pets = [
            read_metadata(pet, files.pet_sidecars) for row in files.pets.values() for pet in row
        ]
    else:
        indexer = BIDSLayoutIndexer(validate=False, index_metadata=way == "metadata")
        layout = BIDSLayout(root, validate=False, indexer=indexer)
        pets = layout.get(suffix="pet", extension=".nii.gz")
        assert way == "files" or all(pet.get_metadata() for pet in pets)
    took = time.perf_counter() - imported
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {WAYS[way]} | {len(pets)} | {imported - start:.2f} | {took:.2f} | {peak:.0f} |")


def main() -> None:
    """Print a table."""
    print("| | participants | import, s | index, s | peak, MB |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as made:
        for participants in SIZES:
            root = Path(made, str(participants))
            make(root, participants)
            for way in WAYS:
                subprocess.run([sys.executable, __file__, way, str(root)], check=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
