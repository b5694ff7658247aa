import os

from bids_app.resources import compile_for_all, keep_code_below_home

compile_for_all(os.environ)  # both must run before any module here imports numba
keep_code_below_home(os.environ)
