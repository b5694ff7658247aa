"""What can go wrong in a way that a user can mend: one sentence and one exit code each.

The codes are those of BEP027 for BIDS Apps, after ``sysexits.h``. The sentence names the file,
says what is wrong with it, and what to do. The docstrings below are what docs/errors.md says of
each code: first what it means, then what to do.
"""

from collections.abc import Sequence

NAMED_AT_MOST = 5  # participants, or other things, that a sentence lists; our choice


class Mri2petError(Exception):
    """Some participant, or some step, failed; the results of the others stand.

    Read the last lines of the run: each names the file, says what is wrong, and what to do.
    """

    exit_code = 1


class InvalidBidsError(Mri2petError):
    """The input folder is not a valid BIDS dataset.

    Correct what the message lists (docs/preparing-data.md). Give ``--skip-bids-validation`` only if
    you know that the complaint does not matter.
    """

    exit_code = 16


class NothingSelectedError(Mri2petError):
    """No image is left after all selections.

    Look at ``--dry-run``, which says of each image why it is not used; correct the labels, filters
    or queries.
    """

    exit_code = 18


class UsageError(Mri2petError):
    """The command line, or a file of settings, cannot be understood.

    The message names the option, or the line of the file: correct it.
    """

    exit_code = 64


class UnusableDataError(Mri2petError):
    """A file is there, but what it holds cannot be used.

    The message names the file and what is wrong with it: mend or replace the file, or exclude the
    participant.
    """

    exit_code = 65


class MissingInputError(Mri2petError):
    """A file that is needed is not there.

    Check the path in the message, or run the level that writes the file.
    """

    exit_code = 66


class CannotCreateError(Mri2petError):
    """Output cannot be created, or another run is working on the same participants.

    Choose a folder that you may write to, or wait until the other run has ended.
    """

    exit_code = 73


class ReadWriteError(Mri2petError):
    """A file could not be read from, or written to, its disk.

    Look whether the disk is full, and whether you may read or write the file.
    """

    exit_code = 74


def name_some(names: Sequence[str], most: int = NAMED_AT_MOST) -> str:
    """List the first of many in a sentence, and count the others.

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
