"""Synthetic FDG PET from T1w MRI, and voxelwise anomaly detection in FDG PET: a BIDS App.

The app itself is the package ``bids_app``; this package is its public interface:

- :func:`predict_pet`, :func:`register_to_mni`, :func:`simulate`;
- :class:`VoxelwiseOneClassSVM`, one one-class SVM per voxel, in scikit-learn's vocabulary;
- :func:`init_participant_wf`, :func:`init_synthesis_wf`, nipype workflows;
- :class:`Mri2petError`, which they raise if an image or a file cannot be used.

They are imported when first used.
"""

from importlib import import_module
from importlib.metadata import version

__version__ = version("mri2pet")
_PUBLIC = {
    "predict_pet": "bids_app.library",
    "register_to_mni": "bids_app.library",
    "simulate": "bids_app.library",
    "Mri2petError": "bids_app.errors",
    "VoxelwiseOneClassSVM": "bids_app.detection.oneclass",
    "init_participant_wf": "bids_app.workflows.public",
    "init_synthesis_wf": "bids_app.workflows.public",
}
__all__ = [  # noqa: PLE0604 - all items are strings
    "__version__",
    *_PUBLIC,
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
