import os

from bids_app.resources import compile_for_all

compile_for_all(os.environ)  # must run before any module here imports numba
