import os

from bids_app.resources import compile_for_all

compile_for_all(os.environ)  # before any module here imports numba
