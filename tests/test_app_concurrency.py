"""Several runs that write into one output folder at once, like the tasks of an array job."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from phantoms import add_t1w, write_dataset

from bids_app.dataset.validation import find_validator
from bids_app.files import PARTIAL, read_tsv

pytestmark = pytest.mark.slow
LABELS = ["01", "02"]
NAMES = [f"sub-{label}" for label in LABELS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Output folder and output of each run; all runs were started before one had ended.

    The last two are for the same participant.
    """
    folder = tmp_path_factory.mktemp("array")
    bids, out = write_dataset(folder / "bids"), folder / "out"
    for label in LABELS:
        add_t1w(bids, label, np.random.default_rng(int(label)))
    mri2pet = Path(sys.executable).with_name("mri2pet")
    begun = [
        subprocess.Popen(
            [
                mri2pet,
                bids,
                out,
                "participant",
                "--sloppy",
                "--nprocs",
                "1",
                "--skip-bids-validation",
                "--skull-strip",
                "skip",
                "--participant-label",
                label,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for label in (*LABELS, LABELS[-1])
    ]
    assert all(run.poll() is None for run in begun)
    ended = [(*run.communicate(), run.returncode) for run in begun]
    return out, [*ended[:-2], *sorted(ended[-2:], key=lambda one: one[-1])]


def test_all_of_them_succeed(runs):
    _, ended = runs
    for said, complained, code in ended[:-1]:
        assert code == 0, complained
        assert "1 visit done, 0 already complete, 0 failed" in said


def test_a_second_run_for_the_same_participant_is_refused_in_a_sentence(runs):
    _, ended = runs
    said, complained, code = ended[-1]
    assert (said, code) == ("", 73)
    assert complained.count("\n") == 1
    assert f"another run is working on {NAMES[-1]}: process" in complained


def test_tables_have_everyone_once(runs):
    out, _ = runs
    assert [row["participant_id"] for row in read_tsv(out / "participants.tsv")] == NAMES
    measured = [row["participant_id"] for row in read_tsv(out / "desc-registration_metrics.tsv")]
    assert sorted(set(measured)) == NAMES
    assert len({measured.count(name) for name in NAMES}) == 1


def test_everyone_has_images_and_a_whole_report(runs):
    out, _ = runs
    for name in NAMES:
        assert len(list(out.glob(f"{name}/pet/{name}_*_space-MNI*_desc-synth_pet.nii.gz"))) == 1
        assert (out / f"{name}.html").read_text().rstrip().endswith("</html>")


def test_each_run_has_its_own_log_and_nothing_is_half_written(runs):
    out, _ = runs
    told = [json.loads(path.read_text()) for path in (out / "logs").glob("run-*.json")]
    assert sorted(one["settings"]["participant_label"][0] for one in told) == LABELS
    assert not [path for path in out.rglob("*") if PARTIAL.match(path.name)]
    assert not list((out / "logs").glob("crash-*"))


def test_it_is_one_valid_dataset(runs):
    out, _ = runs
    about = json.loads((out / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    validator = find_validator()
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    run = subprocess.run([validator, out], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[:3000]
