import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from bids_app.derivatives import detections
from bids_app.derivatives.detections import (
    ControlCluster,
    ControlMap,
    Listed,
    control_sum_scores,
    read_all_clusters,
    read_clusters_table,
    read_control_clusters,
    read_control_maps,
    read_curve,
    read_froc,
    read_tests,
    write_all_clusters,
    write_clusters_in_t1w,
    write_clusters_table,
    write_control_clusters,
    write_control_maps,
    write_curve,
    write_froc,
    write_tests,
)
from bids_app.detection.clusters import MIDLINE, Cluster, Place, expected_in_control
from bids_app.detection.detectors import DETECTORS
from bids_app.detection.distribution import CheckedPet
from bids_app.detection.evaluation import (
    UNITS,
    CurvePoint,
    Finding,
    FreePoint,
    Mark,
    McNemarTest,
    compare,
    detection_curve,
    free_response,
)
from bids_app.errors import ReadWriteError, UnusableDataError
from bids_app.files import read_json, read_tsv, write_json, write_text

VALIDATOR = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or (
    shutil.which("bids-validator-deno")
)
PLACES = (-30.5, 12.25, 8.0, -32.0, 14.0, 8.0)
FIRST = Cluster(1, *PLACES, 1336.0, 4.5, "left", 2.5, 417.5, 0.125, 64.0, "insula")
PLACE = Place(1, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 80.0)
SECOND = replace(FIRST, rank=2, x=1.5, side="midline", sum_score=99.0, overlap=0.0, region=None)
UNKNOWN = replace(FIRST, expected_in_control=None, overlap=None, region=None)
POINT = CurvePoint("real", "ocsvm", "lesion", 1, 8, 4, 0.5, 0.215, 0.785, 0.5, None)
TEST = McNemarTest("patient", 3, "real", "ocsvm", "hybrid", "zscore", 8, 6, 0, 0.03125, 0.0625)
CORNER = FreePoint("hybrid", "ocsvm", "patient", 417.5, 0.25, 0.75, 0.5, 0.875)

PATIENTS = [
    Listed("01", None, "real", "ocsvm", (FIRST, SECOND)),
    Listed("01", None, "hybrid", "ocsvm", (UNKNOWN,)),
    Listed("02", "a", "real", "zscore", (FIRST,)),
]
CONTROLS = [
    Listed("c1", None, "real", "ocsvm", (FIRST, SECOND), 0.9375),
    Listed("c2", "a", "real", "ocsvm", ()),
    Listed("c2", "b", "real", "ocsvm", (SECOND,)),
    Listed("c1", None, "real", "zscore", (replace(FIRST, sum_score=5.0),)),
]


def write_all(folder):
    """Write every table; return paths by name."""
    write_clusters_table(folder / "sub-01_clusters.tsv", [FIRST, SECOND], 3)
    write_clusters_in_t1w(folder / "sub-01_space-T1w_clusters.tsv", [FIRST, SECOND], [PLACE], 3)
    write_all_clusters(folder, PATIENTS, {("real", "ocsvm"): 3, ("real", "zscore"): 1})
    write_control_clusters(folder, CONTROLS)
    write_control_maps(folder, CONTROLS)
    write_curve(folder, [POINT])
    write_tests(folder, [TEST, replace(TEST, n=0, p=None, p_holm=None)])
    write_froc(folder, [CORNER])
    return {path.stem: path for path in folder.glob("*.tsv") if not path.stem.endswith("_dseg")}


@pytest.mark.parametrize("space", ["", "_space-T1w"])
def test_the_labels_of_an_image_are_named_beside_it(tmp_path, space):
    write_all(tmp_path)
    assert read_tsv(tmp_path / f"sub-01{space}_dseg.tsv") == [
        {"index": "1", "name": "cluster 1, insula"},
        {"index": "2", "name": "cluster 2, outside of all regions"},
    ]


SINGLE = (
    "rank x y z peak_x peak_y peak_z peak_score volume side mean_score sum_score "
    "expected_in_control overlap region"
)
COLUMNS = {
    "sub-01_clusters": SINGLE,
    "sub-01_space-T1w_clusters": SINGLE,
    "clusters": f"participant_id session_id training_set detector {SINGLE}",
    "control_clusters": "participant_id session_id detector rank x y z volume mean_score sum_score",
    "control_maps": "participant_id session_id detector above_zero",
    "detection_curve": "training_set detector unit clusters n found sensitivity low high "
    "false_clusters_per_patient false_clusters_per_control",
    "detection_tests": "unit clusters training_set_1 detector_1 training_set_2 detector_2 n "
    "only_1 only_2 p p_holm",
    "detection_froc": "training_set detector unit sum_score false_clusters_per_control "
    "sensitivity low high",
}
IN_MM = ("x", "y", "z", "peak_x", "peak_y", "peak_z")


def test_columns_are_those_of_the_contract_and_all_are_explained(tmp_path):
    tables = write_all(tmp_path)
    assert sorted(tables) == sorted(COLUMNS)
    for name, path in tables.items():
        assert path.read_text().splitlines()[0].split("\t") == COLUMNS[name].split()
        dictionary = read_json(path.with_suffix(".json"))
        assert list(dictionary) == COLUMNS[name].split()
        for column, entry in dictionary.items():
            assert entry["Description"], column
            unit = "mm" if column in IN_MM else None
            unit = "mm^3" if column in ("volume", "overlap") else unit
            assert entry.get("Units") == unit, column


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ("clusters", Cluster),
        ("control_clusters", ControlCluster),
        ("control_maps", ControlMap),
        ("detection_curve", CurvePoint),
        ("detection_tests", McNemarTest),
        ("detection_froc", FreePoint),
        ("synthetic_controls", CheckedPet),
    ],
)
def test_columns_are_the_fields_of_a_line(table, kind):
    named = [field.name for field in fields(kind)]
    if kind is Cluster:  # its centre comes first; the table has the peak's score next to the peak
        named.insert(named.index("volume"), named.pop(named.index("peak_score")))
    assert list(detections.describe(table)) == named


def test_levels_are_all_that_can_be_told():
    told = detections.describe("detection_tests")
    assert list(told["unit"]["Levels"]) == list(UNITS)
    for number in (1, 2):
        assert list(told[f"training_set_{number}"]["Levels"]) == ["real", "hybrid", "synthetic"]
        assert list(told[f"detector_{number}"]["Levels"]) == list(DETECTORS)
    assert list(detections.describe("clusters")["side"]["Levels"]) == ["left", "right", "midline"]
    described = json.dumps(
        [told, detections.describe("detection_curve"), detections.describe("all_clusters")],
        ensure_ascii=False,
    )
    for source in ("McNemar (1947)", "Holm (1979)", "Wilson", "Zotova et al. (2021), section 2.2"):
        assert source in described


def test_sides_are_told_as_they_are_decided():
    levels = detections.describe("clusters")["side"]["Levels"]
    assert levels["left"] == f"x below -{MIDLINE:g} mm"
    assert levels["right"] == f"x above {MIDLINE:g} mm"


def test_what_was_written_is_read_back(tmp_path):
    write_all(tmp_path)
    assert read_clusters_table(tmp_path / "sub-01_clusters.tsv") == [FIRST, SECOND]
    assert read_all_clusters(tmp_path) == PATIENTS
    assert read_curve(tmp_path) == [POINT]
    assert read_tests(tmp_path) == [TEST, replace(TEST, n=0, p=None, p_holm=None)]
    assert read_froc(tmp_path) == [CORNER]
    lines = read_control_clusters(tmp_path)
    assert lines[0] == ControlCluster(
        *("sub-c1", None, "ocsvm", 1, -30.5, 12.25, 8.0, 1336.0, 2.5, 417.5)
    )
    assert lines[2] == ControlCluster("sub-c2", "ses-a", "ocsvm", *[None] * 7)
    assert read_control_maps(tmp_path) == [
        ControlMap("sub-c1", None, "ocsvm", 0.9375),
        ControlMap("sub-c2", "ses-a", "ocsvm", None),
        ControlMap("sub-c2", "ses-b", "ocsvm", None),
        ControlMap("sub-c1", None, "zscore", None),
    ]


def test_a_line_by_hand(tmp_path):
    write_all(tmp_path)
    first, second, third, fourth = read_tsv(tmp_path / "clusters.tsv")
    assert list(first.values())[:6] == ["sub-01", "n/a", "real", "ocsvm", "1", "-30.5"]
    assert list(second.values())[-3:] == ["0.125", "0", "n/a"]
    assert list(third.values())[-3:] == ["n/a", "n/a", "n/a"]
    assert (fourth["participant_id"], fourth["session_id"]) == ("sub-02", "ses-a")


def test_on_the_t1w_places_are_others_and_all_else_is_as_found(tmp_path):
    tables = write_all(tmp_path)
    found = read_tsv(tables["sub-01_clusters"])
    first, second = read_tsv(tables["sub-01_space-T1w_clusters"])
    placed = ("x", "y", "z", "peak_x", "peak_y", "peak_z", "volume")
    assert [first[column] for column in placed] == ["1", "2", "3", "4", "5", "6", "80"]
    assert [second[column] for column in placed] == ["n/a"] * 6 + ["0"]  # no voxel was left
    for line, before in zip((first, second), found, strict=True):
        same = {column: cell for column, cell in before.items() if column not in placed}
        assert same.items() <= line.items()
    told = read_json(tables["sub-01_space-T1w_clusters"].with_suffix(".json"))
    for column in (*placed, "side", "sum_score", "overlap"):
        space = "T1w" if column in placed else "template"
        assert f"in the space of the {space}" in told[column]["Description"]


def test_what_is_expected_is_told_with_its_controls_and_that_their_maps_are_unlike(tmp_path):
    tables = write_all(tmp_path)
    for name, controls in (
        ("sub-01_clusters", "3"),
        ("sub-01_space-T1w_clusters", "3"),
        ("clusters", "3 (real ocsvm), 1 (real zscore)"),
    ):
        told = read_json(tables[name].with_suffix(".json"))["expected_in_control"]["Description"]
        assert (
            "A control's map comes from the one fold that left the control out; a patient's is"
            in told
        )
        assert f". Number of these controls: {controls}" in told


def test_a_control_without_clusters_counts_in_what_is_expected(tmp_path):
    write_control_clusters(tmp_path, CONTROLS)
    lines = read_control_clusters(tmp_path)
    assert control_sum_scores(lines, "ocsvm") == [[417.5, 99.0], [], [99.0]]
    assert control_sum_scores(lines, "zscore") == [[5.0]]
    assert control_sum_scores(lines, "pseudonormal") == []
    assert expected_in_control(99.0, control_sum_scores(lines, "ocsvm")) == 1


def test_a_visit_without_clusters_has_a_table_without_lines(tmp_path):
    path = tmp_path / "sub-01_clusters.tsv"
    write_clusters_table(path, [], 0)
    assert path.read_text().splitlines() == ["\t".join(SINGLE.split())]
    assert read_clusters_table(path) == []


def test_tables_that_are_absent_are_empty(tmp_path):
    for read in (read_all_clusters, read_control_clusters, read_curve, read_tests, read_froc):
        assert read(tmp_path) == []


def test_what_evaluation_gives_can_be_written_and_read(tmp_path):
    """Numbers in tables have six digits."""
    hit, miss = Mark(1, 8.0, frozenset({1})), Mark(1, 5.0)
    patients = [
        Finding(row, "ocsvm", f"{n}", None, 1, (hit if n % 3 else miss,))
        for row in ("real", "hybrid")
        for n in range(7)
    ]
    controls = [Finding("real", "ocsvm", "c1", None, 0, (miss,))]
    curve = detection_curve(patients, controls)
    write_curve(tmp_path, curve)
    for written, read in zip(curve, read_curve(tmp_path), strict=True):
        rounded = {k: float(f"{v:.6g}") for k, v in vars(written).items() if isinstance(v, float)}
        assert read == replace(written, **rounded)
    write_tests(tmp_path, compare(patients))
    assert read_tests(tmp_path) == compare(patients)
    write_froc(tmp_path, free_response(patients, controls))
    assert len(read_froc(tmp_path)) == len(free_response(patients, controls))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("\tunit\t", "\tUnit\t", "line 2 has no 'unit'"),
        ("\t8\t4\t", "\t8\t4.5\t", "line 2 cannot be read .*4.5"),
        ("\t0.5\t0.215", "\tn/a\t0.215", "line 2 cannot be read .*n/a"),
        ("\t0.785\t0.5\tn/a", "", "line 2 has no 'high'"),
    ],
)
def test_a_damaged_table_is_refused_by_name(tmp_path, old, new, sentence):
    write_curve(tmp_path, [POINT])
    path = tmp_path / "detection_curve.tsv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UnusableDataError, match=sentence) as caught:
        read_curve(tmp_path)
    assert str(path) in str(caught.value)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ReadWriteError, match="detection_curve"):
        write_curve(tmp_path / "file", [POINT])


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is absent")
def test_the_tables_are_valid_bids(tmp_path):
    tables = write_all(tmp_path)
    description = {"Name": "made", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    write_json(
        tmp_path / "dataset_description.json", {**description, "GeneratedBy": [{"Name": "mri2pet"}]}
    )
    write_text(tmp_path / "README.md", "x\n")
    write_text(tmp_path / ".bidsignore", "".join(f"{name}*\n" for name in (*tables, "*_dseg")))
    outcome = subprocess.run(
        [VALIDATOR, "--format", "json_pp", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    issues = json.loads(outcome.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
