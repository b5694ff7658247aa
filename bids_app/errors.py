"""Errors that a user can correct, each with one sentence and one exit code.

The codes are those of BEP027 for BIDS Apps, after ``sysexits.h``. The sentence names the file, and
says what is wrong with it and what to do. The docstrings below are the text of docs/errors.md for
each code: first its meaning, then what to do.
"""

from collections.abc import Sequence

NAMED_AT_MOST = 5  # names listed in a sentence; our choice


class Mri2petError(Exception):
    """A participant or a step failed; the results of the others are valid.

    Read the last lines of the run: each names a file, and says what is wrong and what to do.
    """

    exit_code = 1


class InvalidBidsError(Mri2petError):
    """The input folder is not a valid BIDS dataset.

    Correct what the message lists (docs/preparing-data.md). Use ``--skip-bids-validation`` only if
    you know that the problem does not matter.
    """

    exit_code = 16


class NothingSelectedError(Mri2petError):
    """No image is left after all selections.

    Run with ``--dry-run``, which says why each image is not used, and correct the labels, filters
    or queries.
    """

    exit_code = 18


class UsageError(Mri2petError):
    """The command line or a file of settings cannot be understood.

    Correct the option, or the line of the file, that the message names.
    """

    exit_code = 64


class UnusableDataError(Mri2petError):
    """A file exists, but its content cannot be used.

    The message names the file and what is wrong with it: correct or replace the file, or exclude
    the participant.
    """

    exit_code = 65


class MissingInputError(Mri2petError):
    """A required file does not exist.

    Check the path in the message, or run the level that writes the file.
    """

    exit_code = 66


class CannotCreateError(Mri2petError):
    """Output cannot be created, or another run is working on the same participants.

    Choose a folder that you can write to, or wait until the other run has ended.
    """

    exit_code = 73


class ReadWriteError(Mri2petError):
    """A file could not be read or written.

    Check whether the disk is full, and whether you have permission to read or write the file.
    """

    exit_code = 74


def name_some(names: Sequence[str], most: int = NAMED_AT_MOST) -> str:
    """List the first names for a sentence, and count the rest.

    Examples
    --------
    >>> name_some(["a", "b"]), name_some("abcdefg")
    ('a, b', 'a, b, c, d, e and 2 more')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def count_noun(number: int, noun: str) -> str:
    """Write a number with its noun, in the singular or plural.

    Examples
    --------
    >>> count_noun(1, "patient"), count_noun(0, "patient")
    ('1 patient', '0 patients')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
