"""What can go wrong in a way that a user can mend: one sentence and one exit code each.

The codes are those of BEP027 for BIDS Apps, after ``sysexits.h``. The sentence names the file,
says what is wrong with it, and what to do.
"""


class Mri2petError(Exception):
    """Anything that stops a run, or one participant of it, for a reason we can name."""

    exit_code = 1


class InvalidBidsError(Mri2petError):
    """The input folder is not a valid BIDS dataset."""

    exit_code = 16


class NothingSelectedError(Mri2petError):
    """No image is left after all selections."""

    exit_code = 18


class UsageError(Mri2petError):
    """The command line, or a file of settings, cannot be understood."""

    exit_code = 64


class UnusableDataError(Mri2petError):
    """A file is there, but what it holds cannot be used."""

    exit_code = 65


class MissingInputError(Mri2petError):
    """A file that is needed is not there."""

    exit_code = 66


class CannotCreateError(Mri2petError):
    """An output folder or file cannot be made."""

    exit_code = 73


class ReadWriteError(Mri2petError):
    """A file could not be read from, or written to, its disk."""

    exit_code = 74
