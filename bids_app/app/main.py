"""Entry point of a run: from settings to the requested level."""

import logging
from contextlib import suppress
from dataclasses import replace

from bids_app.app.group import group
from bids_app.app.participant import participant
from bids_app.app.run import DONE, PARTIAL, prepare_generator, refuse_without_results
from bids_app.app.train import train
from bids_app.console import Console
from bids_app.derivatives import description as provenance
from bids_app.derivatives.paths import resolution_label
from bids_app.errors import Mri2petError
from bids_app.imaging.intensity import TIMES_MEAN
from bids_app.plan.participant import read_selection
from bids_app.report.group import write_group_methods
from bids_app.report.methods import write_citation, write_methods
from bids_app.report.train import write_training_methods
from bids_app.settings import Settings
from bids_app.workflows.execution import set_nipype_verbosity

METHODS = {
    "train": write_training_methods,
    "group": write_group_methods,
}  # of levels that describe what was done
LEVELS = {"participant": participant, "train": train, "group": group}
LOUDNESS = {0: logging.CRITICAL, 1: logging.WARNING}


def _write_plan(settings: Settings, run_record: provenance.RunRecord) -> str:
    """Return the methods paragraph of what the participant level would do with these settings."""
    generator = prepare_generator(settings)
    selection = read_selection(replace(settings, dry_run=True))  # which creates no index
    has_pet = any(visit.pets for visit in selection.visits)
    values = {
        "template": settings.template,
        "size": resolution_label(settings.grid_resolution).replace("p", "."),
        "times_mean": 0.0 if settings.paper else TIMES_MEAN,
        "pet": has_pet,
        "compared": has_pet and generator is not None,
        "generator": None if generator is None else generator.description(),
        "fwhm": settings.smoothing_fwhm,
        "overlap": generator is not None and generator.options.overlap,
        "matched": settings.match_histogram,
        "uncertainty": settings.uncertainty,
        "novelty": settings.novelty,
    }
    return write_methods("participant", run_record.versions, values)


def _write_methods(settings: Settings, run_record: provenance.RunRecord) -> str:
    """Return the methods paragraph: planned for the participant level, actual for the others."""
    if settings.level not in METHODS:
        return _write_plan(settings, run_record)
    refuse_without_results(settings, "--boilerplate-only")
    return METHODS[settings.level](settings.output_dir)


def run(settings: Settings) -> int:
    """Run the requested level, and return the exit code.

    Raises
    ------
    Mri2petError
        If the run cannot start, or none of its input can be used.
    """
    set_nipype_verbosity(LOUDNESS.get(settings.verbose, logging.INFO))
    console, run_record = Console(), provenance.start_record()
    if settings.boilerplate_only:
        console.close(_write_methods(settings, run_record))
        return 0
    code = LEVELS[settings.level](settings, console, run_record)
    if code in (DONE, PARTIAL) and not (settings.dry_run or settings.reports_only):
        with suppress(Mri2petError):  # results are complete; the text can be requested later
            write_citation(
                settings.output_dir, settings.level, _write_methods(settings, run_record)
            )
    return code
