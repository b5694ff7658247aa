"""Ways in which every program ends: a one-sentence message, and the exit code of BEP027."""

import pytest

from bids_app.arguments import run_program
from bids_app.errors import UnusableDataError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            UnusableDataError("a.nii.gz: empty; export it again"),
            65,
            "error: a.nii.gz: empty; export it again\n",
        ),
        (
            OSError(28, "No space left on device", "/out/x"),
            74,
            "error: /out/x: No space left on device\n",
        ),
        (OSError("the disk is gone"), 74, "error: the disk is gone\n"),
        (KeyboardInterrupt(), 130, "run it again\n"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_a_code(error, code, said, capsys):
    def fail():
        raise error

    assert run_program(fail, interrupted="run it again") == code
    assert capsys.readouterr().err == said


def test_a_program_that_ends_well_keeps_its_code(capsys):
    assert run_program(lambda: 3, interrupted="") == 3
    assert capsys.readouterr().err == ""
