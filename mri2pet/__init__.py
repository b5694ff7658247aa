"""Synthetic FDG PET from T1w MRI, and voxelwise anomaly detection in FDG PET: a BIDS App.

The app itself is the package ``bids_app``; what is public of it is here.
"""

from importlib.metadata import version

__version__ = version("mri2pet")
