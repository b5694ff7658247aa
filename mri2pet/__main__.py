"""``python -m mri2pet``: the command ``mri2pet``."""

from bids_app.start import mri2pet

mri2pet()
