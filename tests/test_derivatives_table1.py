import json
import math
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.derivatives.sidecars import read_dictionary
from bids_app.derivatives.table1 import best_fwhm, write_table1
from bids_app.errors import ReadWriteError
from bids_app.files import read_json, read_tsv, write_json, write_text
from bids_app.synthesis.evaluation import (
    BASELINES,
    FWHM_SWEEP,
    METRICS,
    ROWS,
    ScoreRecord,
    Scores,
    records_from_json,
    records_to_json,
)
from bids_app.synthesis.models import CONDITIONED, MODELS, TISSUE

NAMES = ("table1", "table1_subjects", "table1_tests")
VALIDATOR = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or (
    shutil.which("bids-validator-deno")
)


def swept(best):
    return {fwhm: 0.9 - 0.01 * abs(fwhm - best) for fwhm in FWHM_SWEEP}


def scores(level, lpips=math.nan):
    return Scores(*[level, 20 + level, lpips, 1 - level] * 2, 10 * level, -level, level)


@pytest.fixture
def records(rng):
    """Records of six participants, one with two sessions, in three folds; baselines are worse."""
    visits = [("01", None), ("02", "a"), ("02", "b"), *((f"{n:02}", None) for n in range(3, 7))]
    found = []
    for place, model in enumerate(ROWS):
        for n, (participant, session) in enumerate(visits):
            level = 0.9 - 0.05 * place + 0.01 * rng.random()
            sweep = {} if model in BASELINES else swept(1.5)
            found.append(ScoreRecord(model, participant, session, n % 3 + 1, scores(level), sweep))
    return found


def write(folder, records):
    write_table1(folder, records)
    return [read_tsv(folder / f"{name}.tsv") for name in NAMES]


def test_rows_are_the_models_and_then_the_baselines(tmp_path, records):
    rows, subjects, tests = write(tmp_path, records)
    lines = {name: f"{name}-overlap" for name in (*MODELS, *CONDITIONED) if "semi3d" in name}
    first = [*MODELS, *CONDITIONED, TISSUE, *BASELINES]
    order = [line for name in first for line in (name, lines.get(name)) if line]
    assert [row["model"] for row in rows] == order
    assert list(dict.fromkeys(line["model"] for line in subjects)) == order
    assert len(subjects) == len(records)
    assert len(tests) == len(METRICS) * 15 * 14 // 2
    assert [row["configuration"] for row in rows] == (
        ["semi-3D"] * 8
        + ["3D-patch"] * 2
        + ["conditioned semi-3D"] * 8
        + ["conditioned 3D-patch"] * 2
        + ["tissue model"]
        + ["baseline"] * 2
    )


def test_the_order_of_records_does_not_matter(tmp_path, records):
    shuffled = list(records)
    random.Random(1).shuffle(shuffled)
    assert write(tmp_path / "one", records) == write(tmp_path / "other", shuffled)


def test_columns_are_those_of_the_contract(tmp_path, records):
    rows, subjects, tests = write(tmp_path, records)
    ends = [f"{metric}_{end}" for metric in METRICS for end in ("mean", "sd")]
    sweep = "ssim_fwhm0 ssim_fwhm0p5 ssim_fwhm1 ssim_fwhm1p5 ssim_fwhm2 ssim_fwhm2p5 ssim_fwhm3"
    who = ["model", "participant_id", "session_id", "fold"]
    compared = "metric model_1 model_2 n median_difference statistic p p_holm"
    assert list(rows[0]) == ["model", "configuration", "n", *ends, "fwhm_best"]
    assert list(subjects[0]) == [*who, *METRICS, *sweep.split()]
    assert list(tests[0]) == compared.split()


def test_every_column_is_explained_and_nothing_else(tmp_path, records):
    for name, lines in zip(NAMES, write(tmp_path, records), strict=True):
        dictionary = read_json(tmp_path / f"{name}.json")
        assert list(dictionary) == list(lines[0])
        for column, entry in dictionary.items():
            assert entry["Description"], column
            if re.match("|".join(METRICS), column):
                units = {"psnr": "dB", "suvr": "%"}
                assert entry["Units"] == units.get(column[:4], "1")
                assert re.search(
                    r"0 to 1|-1 to 1|at least 0|from 0|0 is best", entry["Description"]
                )
                inside = "_brain" in column or column.startswith(("suvr", "asymmetry"))
                assert ("In the brain" in entry["Description"]) == inside
    described = json.dumps(read_json(tmp_path / "table1.json"))
    for source in (
        "Wang et al. (2004)",
        "Zhang et al. (2018)",
        "Zotova et al. (2021), section 3.2",
    ):
        assert source in described


def test_what_explains_columns_tells_what_the_code_does():
    best = read_dictionary("table1")["fwhm_best"]["Description"]
    assert f" ({', '.join(f'{fwhm:g}' for fwhm in FWHM_SWEEP)} mm)," in best
    assert list(read_dictionary("table1_tests")["metric"]["Levels"]) == list(METRICS)


def test_values_by_hand(tmp_path):
    some = [
        ScoreRecord("semi3d-gan", "01", "a", 1, scores(0.5, lpips=0.125), swept(1)),
        ScoreRecord("semi3d-gan", "02", None, 2, scores(0.75, lpips=0.375), swept(1)),
        ScoreRecord("baseline-t1w", "01", "a", 1, scores(0.25), {}),
        ScoreRecord("baseline-t1w", "02", None, 2, scores(0.25), {}),
    ]
    (gan, t1w), subjects, tests = write(tmp_path, some)
    assert (gan["n"], gan["ssim_mean"], gan["ssim_sd"]) == ("2", "0.625", "0.176777")
    assert (gan["psnr_mean"], gan["mae_brain_mean"]) == ("20.625", "0.375")
    assert (gan["lpips_mean"], gan["lpips_brain_sd"]) == ("0.25", "0.176777")
    assert (gan["fwhm_best"], t1w["fwhm_best"]) == ("1", "n/a")
    assert (t1w["lpips_mean"], t1w["lpips_sd"], t1w["ssim_sd"]) == ("n/a", "n/a", "0")
    first, second, third, _ = subjects
    assert (first["participant_id"], first["session_id"], first["fold"]) == ("sub-01", "ses-a", "1")
    assert (second["session_id"], second["fold"], second["ssim"]) == ("n/a", "2", "0.75")
    assert (first["ssim_fwhm0p5"], first["ssim_fwhm3"]) == ("0.895", "0.88")
    assert (third["lpips"], third["ssim_fwhm0"]) == ("n/a", "n/a")
    ssim, lpips = tests[0], tests[2]
    assert (ssim["metric"], ssim["model_1"], ssim["model_2"]) == (
        *("ssim", "semi3d-gan", "baseline-t1w"),
    )
    assert (ssim["n"], ssim["median_difference"], ssim["statistic"]) == ("2", "0.375", "0")
    assert (ssim["p"], ssim["p_holm"]) == ("0.5", "0.5")  # 2 of 4 sign patterns
    assert (lpips["n"], lpips["median_difference"], lpips["p"], lpips["p_holm"]) == (
        *("0", "n/a", "n/a", "n/a"),
    )


def test_no_cell_says_nan(tmp_path, records):
    for lines in write(tmp_path, records[:1]):
        assert "nan" not in {cell for line in lines for cell in line.values()}
    assert read_tsv(tmp_path / "table1.tsv")[0]["ssim_sd"] == "n/a"


def test_a_single_row_has_no_tests(tmp_path, records):
    _, _, tests = write(tmp_path, [record for record in records if record.model == "semi3d-gan"])
    assert tests == []
    assert read_json(tmp_path / "table1_tests.json")["p"]


def test_what_nodes_hand_over_makes_the_same_tables(tmp_path, records):
    records[0] = replace(records[0], scores=replace(records[0].scores, psnr=math.inf))
    write_json(tmp_path / "fold.json", records_to_json(records))
    again = records_from_json(read_json(tmp_path / "fold.json"))
    assert write(tmp_path / "one", records) == write(tmp_path / "other", again)


def test_the_best_smoothing_is_that_of_the_mean(records):
    assert best_fwhm(records, "semi3d-gan") == 1.5
    assert best_fwhm(records, "baseline-t1w") is None
    some = [
        ScoreRecord("semi3d-gan", f"{n}", None, 1, scores(0.5), swept(best))
        for n, best in enumerate([0.5, 0.5, 3])
    ]
    assert best_fwhm(some, "semi3d-gan") == 0.5
    flat = [replace(some[0], sweep=dict.fromkeys(FWHM_SWEEP, 0.5))]
    assert best_fwhm(flat, "semi3d-gan") == 0


def test_a_model_that_is_no_row_writes_nothing(tmp_path, records):
    with pytest.raises(ValueError, match="pix2pix"):
        write_table1(tmp_path, [*records, replace(records[0], model="pix2pix")])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path, records):
    (tmp_path / "file").touch()
    with pytest.raises(ReadWriteError, match="table1"):
        write_table1(tmp_path / "file", records)


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is absent")
def test_the_tables_are_valid_bids(tmp_path, records):
    write_table1(tmp_path, records)
    description = {"Name": "made", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    write_json(
        tmp_path / "dataset_description.json", {**description, "GeneratedBy": [{"Name": "mri2pet"}]}
    )
    write_text(tmp_path / "README.md", "x\n")
    write_text(tmp_path / ".bidsignore", "table1*\n")
    outcome = subprocess.run(
        [VALIDATOR, "--format", "json_pp", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    issues = json.loads(outcome.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
