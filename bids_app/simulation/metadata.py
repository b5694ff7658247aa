"""BIDS metadata of a simulated dataset."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bids_app.files import read_json, read_text
from bids_app.simulation.anatomy import NAMES

BIDS_VERSION = "1.10.0"
MAKER = {"Manufacturer": "mri2pet", "ManufacturersModelName": "mri2pet-simulate"}
WAIT, LENGTH = 2400.0, 1200.0  # s; from injection to scan, and of the scan; our choice
MASS = 5.0  # µg of FDG; our choice
DOSE = (150.0, 250.0)  # MBq; our choice

DATA = Path(__file__).parents[1] / "data"
PARTICIPANTS = read_json(DATA / "dictionaries" / "simulated_participants.json")
LESION_COLUMNS = read_json(DATA / "dictionaries" / "simulated_lesions.json")
README = read_text(DATA / "simulation" / "README.md")
TRUTH_README = read_text(DATA / "simulation" / "truth.md")
IGNORED = ("**/pet/*_xfm.txt", "**/anat/*_coordinates.*", "lesions.tsv", "lesions.json")


def describe_t1w() -> dict[str, object]:
    """Return the content of the sidecar of a T1w."""
    return {**MAKER, "Modality": "MR", "ImageComments": "simulated", "BodyPart": "HEAD"}


def describe_pet(
    durations: NDArray[np.float64], fwhm: float, rng: np.random.Generator
) -> dict[str, object]:
    """Return the content of the sidecar of an FDG PET, with all fields that BIDS requires.

    Parameters
    ----------
    durations : ndarray, (T,)
        Durations of the frames, in seconds.
    fwhm : float
        Full width at half maximum of the scanner's point spread function, in mm.
    rng : numpy.random.Generator
        Source of randomness for the dose.
    """
    dose = round(float(rng.uniform(*DOSE)), 1)
    starts = WAIT + np.cumsum(durations) - durations
    return {
        **MAKER,
        "Modality": "PT",
        "BodyPart": "BRAIN",
        "Units": "Bq/mL",
        "ImageComments": "simulated",
        "TracerName": "FDG",
        "TracerRadionuclide": "F18",
        "InjectedRadioactivity": dose,
        "InjectedRadioactivityUnits": "MBq",
        "InjectedMass": MASS,
        "InjectedMassUnits": "ug",
        "SpecificRadioactivity": round(dose / MASS, 3),
        "SpecificRadioactivityUnits": "MBq/ug",
        "ModeOfAdministration": "bolus",
        "TimeZero": "10:00:00",
        "InjectionStart": 0,
        "ScanStart": WAIT,
        "FrameTimesStart": starts.tolist(),
        "FrameDuration": durations.tolist(),
        "AcquisitionMode": "list mode",
        "ImageDecayCorrected": True,
        "ImageDecayCorrectionTime": 0,
        "ReconMethodName": "simulated",
        "ReconMethodParameterLabels": ["point spread function"],
        "ReconMethodParameterUnits": ["mm"],
        "ReconMethodParameterValues": [round(fwhm, 2)],
        "ReconFilterType": "none",
        "ReconFilterSize": 0,
        "AttenuationCorrection": "none needed: simulated without attenuation",
    }


def frame_durations(count: int) -> NDArray[np.float64]:
    """Return the durations of frames of equal length, in seconds."""
    return np.full(count, LENGTH / count)


def describe_dataset(version: str, *, truth: bool) -> dict[str, object]:
    """Return the content of ``dataset_description.json`` of the raw dataset, or of its truth."""
    app = {"Name": "mri2pet-simulate", "Version": version}
    common: dict[str, object] = {"BIDSVersion": BIDS_VERSION, "GeneratedBy": [app]}
    if truth:
        return {
            "Name": "The truth about a simulated cohort",
            "DatasetType": "derivative",
            **common,
            "SourceDatasets": [{"URL": "../.."}],
            "DatasetLinks": {"raw": "../.."},
        }
    return {
        "Name": "A simulated T1w and FDG PET cohort",
        "DatasetType": "raw",
        "License": "CC0",
        **common,
    }


def label_rows() -> list[dict[str, object]]:
    """List the labels of label maps and their names, in order."""
    names = {label: name for name, labels in NAMES.items() for label in labels}
    return [{"index": label, "name": names[label]} for label in sorted(names)]
