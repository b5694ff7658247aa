import base64
import copy
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from anomalies import (
    CLUSTER,
    CONTROL,
    CONTROL_MAP,
    CURVE,
    DETECTORS,
    FROC,
    MOVED,
    PATIENTS,
    SETS,
    TESTS,
    UNITS,
    Cohort,
    T,
)
from browser import BASH, CHROMIUM, Browser
from hypothesis import given
from hypothesis import strategies as st
from pages import Reader, drawings_in, rgba, section, tables_in, text_of
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_app import nifti
from bids_app.app.participant import _report_outdated
from bids_app.console import Console
from bids_app.derivatives import detections
from bids_app.derivatives.detections import (
    ScoredRun,
    find_anomalies,
    maps_on_disk,
    read_clusters_table,
    write_run,
)
from bids_app.derivatives.sidecars import Faults
from bids_app.detection.card import Control, DetectorCard, card_from, card_values
from bids_app.detection.detectors import LEADING, detector_of
from bids_app.detection.evaluation import FreePoint
from bids_app.files import read_json, read_tsv, write_tsv
from bids_app.report.anomalies import (
    NO_CONTROLS,
    find_detected,
    format_volume,
    in_rank,
    key_of,
    place_of,
)
from bids_app.report.charts import (
    ACROSS,
    FALSE,
    calibrations_of,
    draw_calibration,
    draw_detection,
    draw_responses,
    follow,
    name_of,
    tally_of,
)
from bids_app.report.figures import AXIS_OF
from bids_app.report.findings import leading_first
from bids_app.report.group import _list, _methods, describe_card, matches_of, write_group_report
from bids_app.report.maps import (
    best_sections,
    draw_cluster_maps,
    heat_of,
    sections_through,
    take_score_map,
)
from bids_app.report.methods import read_references, write_methods
from bids_app.report.panels import Heat, brightness, paint_ranks, paint_scores
from bids_app.report.participant import section_of
from bids_app.report.results import ImageCache
from bids_app.report.viewer import grid_over, library, make_viewer, resample, view_pet

pytestmark = pytest.mark.slow

SECTIONS = [
    *("summary", "maps", "clusters", "detection", "calibration", "detectors", "methods"),
    "about",
]
RUN = {
    "notes": ["sub-09 is not used."],
    "problems": ["sub-P3: a patient without a PET."],
    "versions": {"mri2pet": "9.8.7", "torch": "2.13.0", "numba": "0.60.0", "scipy": "1.2.3"},
    "date": "2026-01-02",
    "command": "mri2pet IN OUT group",
    "duration": 7500.0,
    "settings": {"nu": 0.03, "training_set": SETS, "detectors": DETECTORS, "atlas": None},
}
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or BASH is None, reason="Chromium, or bash that starts it, is not installed"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shared cohort; tests must not change it."""
    return Cohort(tmp_path_factory.mktemp("group") / "out")


@pytest.fixture
def cohort(made, tmp_path):
    """Copy of the cohort that a test may change."""
    mine = copy.copy(made)
    mine.out = shutil.copytree(made.out, tmp_path / "out")
    return mine


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Page of the group


def test_every_section_is_there_in_order(made):
    page = made.write(**RUN)
    reader = Reader(page)
    assert [name for name in reader.ids if name in SECTIONS] == SECTIONS
    assert len(reader.ids) == len(set(reader.ids))
    assert "No figure." not in page
    text = text_of(page)
    for told in (
        *(*RUN["notes"], *RUN["problems"], "mri2pet 9.8.7", "2026-01-02", RUN["command"]),
        *("2 h 5 min", "27×32×23 voxels of 6 mm", "A dataset.", "Research.", "encoder.latents"),
        *("real: 2 controls, all with real PET.", "training_set", "real, hybrid"),
        "hybrid: 3 controls, 2 with real PET and 1 with SYNTHETIC PET (generator: semi3d-cyclegan",
        *("2 patients, scored by OC-SVM and z score.", "2 controls, for comparison"),
        *(
            "A cluster is not a diagnosis.",
            "All controls with whom patients are compared have real PET.",
        ),
    ):
        assert told in text
    assert "atlas" not in text  # a setting that was not used


def test_synthetic_pet_in_the_training_is_the_first_thing_that_is_said(cohort):
    assert Reader(cohort.write(**RUN)).text[0].startswith("SYNTHETIC — detectors of hybrid were")
    shutil.rmtree(cohort.out / "detectors" / "hybrid")
    page = cohort.write(**RUN)
    assert Reader(page).text[0] == "Group report"
    assert "Synthetic PET is used only as" not in page
    assert "<title>SYNTHETIC" not in page


@pytest.mark.parametrize("word", ["trained_on", "intended_use"])
@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("PET SIMULATED on label maps.", "trained on simulated images"),
        ("A demonstration, to try with.", "meant for demonstration"),
    ],
)
def test_a_demonstration_that_made_the_synthetic_pet_is_told_before_all_else(
    cohort, word, told, why
):
    said = f"of their synthetic PET (semi3d-cyclegan-mse) is, by its own description, {why}."
    page = cohort.write(**RUN)
    assert said not in page
    assert "PET of 35 controls." in section(page, "detectors")
    path = cohort.out / "detectors/hybrid/card.json"
    (maker,) = json.loads(path.read_text())["makers"]
    change(path, makers=[maker | {word: told}])
    page = cohort.write(**RUN)
    assert said in page[: page.index("<header>")]
    assert told in section(page, "detectors")
    cohort.record(without=("detectors/hybrid",))  # the generator was not used in this run
    assert said not in cohort.write(**RUN)


def test_the_page_fetches_nothing_and_runs_nothing(made):
    page = made.write(**RUN)
    reader = Reader(page)
    assert any(link.startswith("data:image/") for link in reader.links)
    pages = {"participants.html", *(f"sub-{label}.html" for label in PATIENTS)}
    assert all(link.startswith(("data:image/", "#")) or link in pages for link in reader.links)
    assert pages < set(reader.links)
    assert not {"link", "script", "iframe", "object", "button"} & set(reader.tags)
    assert not re.search(r"url\(|@import|\son\w+=", page)


def test_every_drawing_is_well_formed_and_has_words_for_those_who_do_not_see_it(made):
    page = made.write(**RUN)
    assert len(drawings_in(page)) == 2 + 3  # patients; curves, free response, controls


def test_a_report_written_again_from_disk_is_the_same(cohort):
    first = cohort.write(**RUN)
    assert cohort.write() == first
    assert cohort.write_subject("P1") == cohort.write_subject("P1")


def test_what_a_run_says_anew_replaces_what_was_kept(cohort):
    cohort.write(**RUN)
    page = cohort.write(problems=[])
    assert RUN["problems"][0] not in page
    assert RUN["notes"][0] in page


def test_settings_are_kept_as_data_and_told_as_text(cohort):
    told = {"nu": 0.03, "detectors": ("ocsvm", "zscore"), "atlas": None, "runs": ()}
    paths = {"detector": cohort.out / "detectors", "derivatives": (("masks", cohort.out),)}
    page = cohort.write(**{**RUN, "settings": {**told, **paths}})
    data = {"nu": 0.03, "detectors": ["ocsvm", "zscore"], "atlas": None, "runs": []}
    data |= {"detector": f"{cohort.out}/detectors", "derivatives": [["masks", f"{cohort.out}"]]}
    assert read_json(cohort.out / "logs" / "group_report.json")["settings"] == data
    about = text_of(section(page, "about"))
    for words in ("nu 0.03", "detectors ocsvm, zscore", f"derivatives masks={cohort.out}"):
        assert words in about
    assert "atlas" not in about
    assert "runs" not in about
    assert cohort.write() == page  # as recorded


def test_odd_values_are_escaped(cohort):
    odd = "<script>alert(1)</script> & \"'"
    change(cohort.out / "detectors/real/card.json", dataset=odd, parameters={odd: odd})
    for path in (cohort.out / "clusters.tsv", *cohort.out.glob("sub-*/pet/*_clusters.tsv")):
        path.write_text(path.read_text().replace("Frontal lobe", odd))
    page = cohort.write(**{**RUN, "notes": [odd], "problems": [odd], "settings": {odd: odd}})
    assert "<script>" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; ") > 5
    assert "<script>alert" not in cohort.write_subject("P1")


def test_the_reports_load_neither_torch_nor_numba_nor_plots():
    code = (
        "import sys, bids_app.report.group, bids_app.report.participant; "
        "print({'torch', 'numba', 'sklearn', 'nilearn.plotting', 'matplotlib.figure', "
        "'matplotlib.pyplot'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


# Missing files


@pytest.mark.parametrize(
    "name",
    [
        *("clusters.tsv", "detection_curve.tsv", "detection_tests.tsv", "detection_froc.tsv"),
        *("detectors/real/card.json", "detectors/hybrid/control_clusters.tsv"),
        "detectors/real/control_maps.tsv",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "binary", "other"])
def test_a_lost_file_is_named_and_does_not_lose_the_report(cohort, name, damage):
    path = cohort.out / name
    path.unlink()
    if damage != "missing":
        path.write_bytes({"binary": b"\xff\xfe\x00", "other": b"one\ttwo\n3\t4\n"}[damage])
    page = cohort.write(**RUN)
    assert [one for one in Reader(page).ids if one in SECTIONS] == SECTIONS
    if (name[-4:], damage) != ("json", "other"):
        assert name in text_of(section(page, "summary"))


def test_nothing_at_all_still_makes_a_page(tmp_path):
    path = write_group_report(tmp_path, template="MNI", resolution=6.0)
    page = path.read_text(encoding="utf-8")
    text = text_of(page)
    assert [one for one in Reader(page).ids if one in SECTIONS] == SECTIONS
    for told in ("clusters.tsv is missing", "No detector card was found", "No detector has found"):
        assert told in text
    assert text.count("No figure.") == 2


def test_a_patient_without_clusters_is_told_and_is_no_fault(cohort):
    for path in [cohort.out / "clusters.tsv", *cohort.out.glob("sub-P2/pet/*_clusters.tsv")]:
        lines = [one for one in read_tsv(path) if one.get("participant_id") == "sub-P1"]
        write_tsv(path, list(read_tsv(path)[0]), lines)
    page = cohort.write(**RUN)
    assert "No cluster was found in sub-P2." in section(page, "clusters")
    assert "is empty" not in text_of(page)
    (line,) = [one for one in tables_in(section(page, "summary"))[0] if one[0] == "OC-SVM, real"]
    assert line[1:3] == ["2", "1 of 2: sub-P1"]
    assert "No cluster was found." in cohort.write_subject("P2")


def test_without_lesions_nothing_is_evaluated_and_nothing_is_missing(tmp_path):
    page = Cohort(tmp_path / "in" / "out", lesions=False).write(versions={"mri2pet": "1"})
    text = text_of(page)
    assert "No lesion is known in this dataset" in section(page, "detection")
    assert "detection_curve.tsv" not in text
    assert "on a lesion" not in text
    assert "Wilson EB" not in text
    assert "Slices on which the clusters of all detectors" in text


def test_an_odd_card_does_not_lose_the_report(cohort):
    odd = {
        "controls": [3, {"fold": [1]}],
        "detectors": 4,
        "parameters": 5,
        "shape": "x",
        "makers": [7, {}],
    }
    for path in cohort.out.glob("detectors/*/card.json"):
        path.write_text(json.dumps(odd))
    page = cohort.write(**RUN)
    assert "not given by the card" in section(page, "detectors")
    assert "No figure." not in page


# Contents of tables


def test_the_report_reads_the_columns_that_are_written():
    assert list(detections.describe("clusters")) == CLUSTER
    assert list(detections.describe("control_clusters")) == CONTROL
    assert list(detections.describe("control_maps")) == CONTROL_MAP
    assert list(detections.describe("detection_curve")) == CURVE
    assert list(detections.describe("detection_tests")) == TESTS
    assert list(detections.describe("detection_froc")) == FROC


def test_a_card_as_it_is_written_is_understood():
    members = (Control("01", None, False, "", "", 1), Control("02", "b", True, "gan", "ff", 2))
    affine = tuple(map(tuple, np.diag([2.0, 2, 2, 1]).tolist()))
    card = DetectorCard(
        "hybrid",
        "0.1",
        ("ocsvm",),
        "MNI",
        (9, 8, 7),
        affine,
        members,
        4,
        ((0, 7),),
        {"nu": 0.03},
        "DOI",
        5,
        "Research.",
    )
    values = json.loads(json.dumps(card_values(card)))
    told = describe_card(card_from(values, lenient=True))
    assert told == describe_card(card)
    assert (told["real"], told["synthetic"], told["generators"]) == (1, 1, ["gan"])
    assert [visit for visit, _, _ in told["controls"]] == ["sub-01", "sub-02, ses-b"]
    assert told["grid"] == "MNI, 9×8×7 voxels of 2 mm"
    assert (told["folds"], told["seed"], told["parameters"]) == (4, "5", {"nu": "0.03"})


def test_the_first_clusters_of_each_patient_lead_to_its_report(made):
    page = section(made.write(**RUN), "clusters")
    opened = re.findall(r"<details open>\n<summary>(.*?)</summary>", page)
    assert opened == re.findall(r"<summary>(.*?)</summary>", page)[:1] == ["z score, real"]
    first = tables_in(page)[1]  # of OC-SVM
    assert [line[:2] for line in first[1:]] == [
        ["sub-P1", "1"],
        ["sub-P1", "2"],
        ["sub-P2", "1"],
        ["sub-P2", "2"],
    ]
    assert first[1][3] == "Frontal lobe, left"
    assert first[3][3].endswith("right")
    assert [line[-1] for line in first[1:]] == ["yes", "no", "yes", "no"]
    assert page.count('<tr class="rare"><th scope="row"><a href="sub-P1.html">') == 4
    assert first[1][2].startswith("−3")  # the centre's x, with a true minus sign


def test_patients_above_all_held_out_controls_are_named(made):
    summary = tables_in(section(made.write(**RUN), "summary"))[0]
    told = {line[0]: line for line in summary[1:]}
    assert told["OC-SVM, real"][2] == "2 of 2: sub-P1; sub-P2"
    assert told["z score, real"][2] == "0 of 2"  # their first cluster is the one that everyone has
    assert told["OC-SVM, real"][3:] == ["4 of 17 (24 %; 4 to 44 %)", "9 of 17 (53 %; 33 to 73 %)"]


def test_a_control_without_clusters_counts(made):
    real = calibrations_of(find_detected(made.out))[0]
    assert sorted(real.controls) == ["sub-C1", "sub-C2"]
    assert real.controls["sub-C2"] == 0
    assert sorted(real.counts) == [0, 1]
    assert real.controls["sub-C1"] > 0
    assert list(real.patients) == ["sub-P1", "sub-P2"]


def test_equal_to_the_highest_control_is_not_above_it(made):
    one = calibrations_of(find_detected(made.out))[0]
    top = max(one.controls.values())
    beyond = replace(one, patients={"a": top, "b": top + 1e-6, "c": 0.0}).beyond
    assert beyond == ["b"]
    assert replace(one, controls={}).beyond == []


def test_visits_are_counted_as_visits_if_a_patient_has_several(made):
    detected = find_detected(made.out)
    assert tally_of(calibrations_of(detected)[0]) == "2 of 2"
    again = [replace(one, session="2") for one in detected.maps if one.participant == "P1"]
    calibrations = calibrations_of(replace(detected, maps=[*detected.maps, *again]))
    assert tally_of(calibrations[0]) == "2 of 3 visits"  # the third has no cluster
    chart = draw_calibration(calibrations, SETS)
    assert ">2 of 3 visits of patients above all 2 controls</text>" in chart.svg


def test_every_person_is_a_dot_on_the_axis_of_its_detector(made):
    calibrations = calibrations_of(find_detected(made.out))
    chart = draw_calibration(calibrations, SETS)
    assert len(chart.figure.axes) == len(calibrations)
    for axes, calibration in zip(chart.figure.axes, calibrations, strict=True):
        limit, controls, patients = axes.lines
        assert limit.get_xdata()[0] == max(calibration.controls.values())
        assert list(controls.get_xdata()) == list(calibration.controls.values())
        assert list(patients.get_xdata()) == list(calibration.patients.values())
        assert len(controls.get_xdata()) == len(patients.get_xdata()) == 2
        low, high = axes.get_xlim()
        assert all(low <= x < high for x, _ in [*controls.get_xydata(), *patients.get_xydata()])
        assert len(set(controls.get_ydata())) == 1
        assert min(patients.get_ydata()) > max(controls.get_ydata())  # the y axis points up
        for told in (name_of(calibration), "2 of 2 patients above all 2 controls"):
            assert f">{told}</text>" in chart.svg
    _, controls, patients = chart.figure.axes[0].lines  # OC-SVM, real
    assert min(patients.get_xdata()) > max(controls.get_xdata())
    assert patients.get_color() == chart.keys[1].colour != controls.get_color()
    assert controls.get_color() == chart.keys[0].colour
    assert draw_calibration([replace(c, controls={}) for c in calibrations], SETS) is None


def test_mcnemar_is_shown_at_one_five_and_ten_clusters(made):
    lesions, patients = matches_of(find_detected(made.out))
    assert (lesions["unit"], patients["unit"]) == UNITS
    assert (lesions["clusters"], lesions["n"]) == ([1, 5, 10], "17")
    assert len(lesions["pairs"]) == 6
    _, _, cells = lesions["pairs"][0]
    assert [significant for *_, significant in cells] == [False, False, True]
    first = tables_in(section(made.write(**RUN), "detection"))[2]
    assert first[2] == [
        "OC-SVM, real",
        "z score, real",
        *["6", "1", "0.750"] * 2,
        "6",
        "1",
        "0.031",
    ]


def test_a_table_of_many_pairs_is_folded(cohort):
    opened = "<details open>\n<summary>McNemar"
    assert opened in cohort.write(**RUN)
    path = cohort.out / "detection_tests.tsv"
    lines = read_tsv(path)
    more = [{**line, "training_set_2": f"set{n}"} for line in lines for n in range(5)]
    write_tsv(path, list(lines[0]), [*lines, *more])
    page = cohort.write(**RUN)
    assert opened not in page
    assert "set4" in section(page, "detection")


# Doubts


def test_a_patient_that_a_detector_was_trained_on_is_a_warning(cohort):
    told = "were trained on people who are scored as patients: sub-P1"
    assert told not in cohort.write(**RUN)
    path = cohort.out / "detectors/hybrid/card.json"
    card = json.loads(path.read_text())
    card["controls"][2]["participant"] = "P1"
    path.write_text(json.dumps(card))
    page = cohort.write(**RUN)
    assert f"The detectors of hybrid {told}" in section(page, "summary")
    assert f"The detectors of real {told}" not in page


def test_a_control_that_was_scored_without_real_pet_is_a_warning(cohort):
    told = "Synthetic PET must not be used as a substitute for healthy people."
    table = cohort.out / "detectors/hybrid/control_clusters.tsv"
    lines = [*read_tsv(table), {"participant_id": "sub-C3", "detector": "ocsvm"}]
    write_tsv(table, CONTROL, lines)
    for path in cohort.out.glob("sub-C1/pet/*_pet.nii.gz"):
        path.unlink()  # which said that the PET was real
    assert told not in cohort.write(**RUN)  # without the folder of C3, the card is trusted
    (cohort.out / "sub-C3").mkdir()
    assert told in cohort.write(**RUN)


def test_how_much_of_a_healthy_brain_scores_above_0_is_told(cohort):
    """0.9 and 0.96 have a mean of 93 %; for one detector it is unknown."""
    table = cohort.out / "detectors/hybrid/control_maps.tsv"
    write_tsv(table, CONTROL_MAP, [one for one in read_tsv(table) if one["detector"] == "ocsvm"])
    page = section(cohort.write(**RUN), "calibration")
    heads, *lines = tables_in(page)[0]
    place = heads.index("Brain above 0: mean")
    shares = {line[0]: line[place] for line in lines}
    assert shares == {
        "OC-SVM, real": "93 %",
        "z score, real": "93 %",
        "OC-SVM, hybrid": "93 %",
        "z score, hybrid": "n/a",
    }
    assert "a score above 0 is not a sign of disease" in page


def test_no_text_says_that_controls_stay_below_0(made):
    own = text_of(section(made.write_subject("P1"), "anomalies"))
    assert "in much of the brain of a held-out control" in own
    methods = text_of(section(made.write(**RUN), "methods"))
    assert "as they do in much of a held-out control's brain" in " ".join(methods.split())


def test_too_few_held_out_controls_are_told(cohort):
    text = text_of(section(cohort.write(**RUN), "summary"))
    assert "Training sets real and hybrid: only 2 controls were held out, so the expected" in text
    for name in SETS:
        lines = [{"participant_id": f"sub-C{n}", "detector": "ocsvm"} for n in range(20)]
        write_tsv(cohort.out / f"detectors/{name}/control_clusters.tsv", CONTROL, lines)
    text = text_of(section(cohort.write(**RUN), "summary"))
    assert "Only" not in text
    assert "20 of 20 held-out controls have no cluster by OC-SVM, real." in text
    for name in SETS:
        write_tsv(cohort.out / f"detectors/{name}/control_clusters.tsv", CONTROL, [])
    page = cohort.write(**RUN)
    assert "Training sets real and hybrid: no control was held out" in section(page, "summary")
    assert "No figure." in section(page, "calibration")


# Files of an earlier run


def keep(cohort, **wanted):
    """Keep only the rows with these cells in all patients' tables, as a new run would."""
    for path in cohort.out.glob("*.tsv"):
        lines = [
            one
            for one in read_tsv(path)
            if all(one.get(name, cell) == cell for name, cell in wanted.items())
        ]
        write_tsv(path, list(read_tsv(path)[0]), lines)


def row_of(page, name):
    (row,) = [row for row in tables_in(section(page, "summary"))[0] if row[0] == name]
    return row


def test_a_detector_of_an_earlier_run_is_told_and_not_shown(cohort):
    cohort.record(without=("stat-t_desc-zscore",))
    keep(cohort, detector="ocsvm", detector_1="ocsvm", detector_2="ocsvm")
    page = cohort.write(**RUN)
    told = text_of(section(page, "summary"))
    people = "sub-C1, sub-C2, sub-P1 and sub-P2"
    assert "not part of this report: maps of z score, hybrid of sub-P1 and sub-P2; maps" in told
    assert f"maps of z score, real of {people}." in told
    assert "maps of OC-SVM" not in told
    assert _list("abcdefg") == "sub-a, sub-b, sub-c, sub-d, sub-e and 2 more"
    assert "z score" not in section(page, "maps")
    own = section(cohort.write_subject("P1"), "anomalies")
    assert (
        own.count("This map is from an earlier run of the group level, not from the last one.") == 2
    )
    assert re.findall(r"<option>(.*?)</option>", own) == ["OC-SVM"]  # the viewer has no older map
    assert own.rindex("<h3>OC-SVM, training set real") < own.index("<h3>z score, training set real")


def test_maps_of_images_that_were_replaced_are_told_and_not_shown(cohort, capsys):
    for t1w in cohort.out.glob(f"sub-*/anat/*_space-{T}_desc-preproc_T1w.json"):
        change(t1w, Fingerprint="first")
    for statmap in cohort.out.glob("**/*_statmap.json"):
        change(statmap, T1wFingerprint="first")
    replaced = "have been replaced since"
    assert replaced not in cohort.write(**RUN)
    (t1w,) = cohort.out.glob(f"sub-P1/anat/*_space-{T}_desc-preproc_T1w.json")
    change(t1w, Fingerprint="second")
    page = cohort.write(**RUN)
    assert f"The images of sub-P1 {replaced}" in section(page, "summary")
    assert "sub-P1.html" not in section(page, "maps")
    assert "sub-P2.html" in section(page, "maps")
    own = cohort.write_subject("P1")
    told = text_of(section(own, "summary"))
    assert f"{replaced}, so they are not shown: OC-SVM, real (sub-P1), z score, real" in told
    assert 'id="anomalies"' not in own
    assert 'id="findings"' not in own
    assert replaced not in cohort.write_subject("P2")
    plans = [SimpleNamespace(visit=SimpleNamespace(subject=label)) for label in ("P1", "P2")]
    _report_outdated(plans, cohort.out, Console())
    said = " ".join(capsys.readouterr().err.split())
    assert f"the images of sub-P1 {replaced} they were mapped; run the group level again" in said


def test_a_patient_who_was_a_control_in_an_earlier_run_is_a_patient(cohort):
    (sidecar,) = cohort.out.glob(f"sub-P1/pet/*space-{T}*_desc-zscore_statmap.json")
    change(sidecar, Fold=1)
    assert section_of(cohort.out, "P1", (T,))["control"]
    cohort.record(without=("stat-t_desc-zscore",))
    assert not section_of(cohort.out, "P1", (T,))["control"]


def test_a_control_that_is_no_longer_one_is_not_taken_for_a_patient(cohort):
    for path in cohort.out.glob("detectors/*/card.json"):
        controls = [
            one for one in json.loads(path.read_text())["controls"] if one["participant"] != "C2"
        ]
        change(path, controls=controls)
    cohort.record(without=("sub-C2",))
    page = cohort.write(**RUN)
    told = text_of(section(page, "summary"))
    assert "2 patients, scored by" in told
    assert "an earlier run, and not part of this report: all maps of sub-C2." in told
    assert "sub-C2.html" not in page
    assert row_of(page, "OC-SVM, real")[2] == "2 of 2: sub-P1; sub-P2"


def test_a_patient_of_an_earlier_run_is_not_one_without_clusters(cohort):
    cohort.record(without=("sub-P2",))
    keep(cohort, participant_id="sub-P1")
    page = cohort.write(**RUN)
    told = text_of(section(page, "summary"))
    assert "1 patient, scored by" in told
    assert "not part of this report: all maps of sub-P2." in told
    assert row_of(page, "OC-SVM, real")[2] == "1 of 1: sub-P1"
    for name in ("maps", "clusters", "calibration"):
        assert "sub-P2" not in section(page, name)


def test_a_patient_without_a_map_by_a_detector_is_not_one_without_clusters_of_it(cohort):
    cohort.record(without=(f"sub-P2_trc-18FFDG_space-{T}_stat-t_desc-zscore",))
    path = cohort.out / "clusters.tsv"
    lines = read_tsv(path)
    gone = ("sub-P2", "zscore")
    kept = [line for line in lines if (line["participant_id"], line["detector"]) != gone]
    write_tsv(path, list(lines[0]), kept)
    page = cohort.write(**RUN)
    assert row_of(page, "z score, real")[2] == "0 of 1"
    assert row_of(page, "OC-SVM, real")[2] == "2 of 2: sub-P1; sub-P2"
    assert "No cluster was found in" not in section(page, "clusters")


def test_a_training_set_of_an_earlier_run_is_not_one_that_found_nothing(cohort):
    cohort.record(without=("detectors/hybrid",))
    keep(cohort, training_set="real", training_set_1="real", training_set_2="real")
    page = cohort.write(**RUN)
    told = text_of(section(page, "summary"))
    assert "not part of this report: all of detectors/hybrid." in told
    for name in ("maps", "clusters", "detection", "calibration", "detectors", "methods"):
        assert "hybrid" not in section(page, name)
    assert [row[0] for row in tables_in(section(page, "summary"))[0][1:]] == [
        *("OC-SVM, real", "z score, real")
    ]
    assert Reader(page).text[0] == "Group report"  # nothing in it is synthetic


@pytest.mark.parametrize("damage", [None, "{", '{"maps": 3}', '{"dataset": "", "maps": [{}]}'])
def test_without_a_record_of_the_run_all_maps_stand_for_it_and_that_is_said(cohort, damage):
    record = cohort.out / "logs" / "group_scored.json"
    before = cohort.write(**RUN)
    record.unlink()
    if damage is not None:
        record.write_text(damage)
    told = "group_scored.json cannot be read: some of the maps may be from earlier runs."
    page = cohort.write(**RUN)
    assert told in section(page, "summary")
    assert told not in before
    assert row_of(page, "OC-SVM, real") == row_of(before, "OC-SVM, real")
    assert "2 patients, scored by" in text_of(page)  # controls are recognised by their maps
    assert "earlier run of the group" not in cohort.write_subject("P1")


def test_detectors_that_were_trained_elsewhere_are_told_of_where_they_lie(cohort, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(cohort.out / "detectors" / "real", elsewhere)
    shutil.rmtree(cohort.out / "detectors")
    lines = [one for one in read_tsv(cohort.out / "clusters.tsv") if one["training_set"] == "real"]
    write_tsv(cohort.out / "clusters.tsv", list(lines[0]), lines)
    page = cohort.write(**{**RUN, "settings": {"detector": elsewhere}})
    assert "real: 2 controls, all with real PET." in text_of(section(page, "summary"))
    assert "2 of 2 patients above all 2 controls" in section(page, "calibration")
    assert cohort.write() == page
    shutil.rmtree(elsewhere)
    told = text_of(section(cohort.write(), "summary"))
    assert f"{elsewhere}/card.json is missing." in told


def test_people_of_another_dataset_with_the_same_labels_are_others(cohort, tmp_path):
    """A detector of another site was trained on its own P1 and P2, who are other people."""
    elsewhere = tmp_path / "elsewhere"
    shutil.move(cohort.out / "detectors" / "hybrid", elsewhere)
    card = json.loads((elsewhere / "card.json").read_text())
    for one, label in zip(card["controls"], ("P1", "P2", "C1"), strict=True):
        one["participant"] = label
    for path in cohort.out.glob("sub-C1/pet/*_pet.nii.gz"):
        path.unlink()
    keep(cohort, training_set="hybrid", training_set_1="hybrid", training_set_2="hybrid")
    maps = [
        replace(one, training_set="hybrid") for one in maps_on_disk(cohort.out) if not one.control
    ]
    write_run(cohort.out, ScoredRun("A dataset.", maps))
    false = (
        "scored as patients",
        "Synthetic PET must not be used as a substitute for healthy people",
    )
    told = {}
    for dataset in ("A dataset.", "Another one."):
        change(elsewhere / "card.json", dataset=dataset, controls=card["controls"])
        page = cohort.write(**{**RUN, "settings": {"detector": elsewhere}})
        told[dataset] = text_of(section(page, "summary"))
        assert "2 patients, scored by" in told[dataset]
    for sentence in false:
        assert sentence in told["A dataset."]
        assert sentence not in told["Another one."]


# Curves


def test_colours_tell_training_sets_and_dashes_tell_detectors(made):
    chart = draw_detection(find_detected(made.out))
    assert [key.name for key in chart.keys] == [
        *("OC-SVM, real", "z score, real", "OC-SVM, hybrid", "z score, hybrid")
    ]
    real, other, hybrid, _ = chart.keys
    assert real.colour == other.colour != hybrid.colour
    assert real.dash == hybrid.dash != other.dash
    for axes in chart.figure.axes:
        assert [line.get_color() for line in axes.lines] == [key.colour for key in chart.keys]
        whole, dashed, *others = [line.get_linestyle() for line in axes.lines]
        assert others == [whole, dashed] != [dashed, whole]
    assert len(chart.figure.axes) == len(UNITS)


def test_colours_tell_detectors_if_there_is_one_training_set(made):
    detected = find_detected(made.out)
    chart = draw_detection(
        replace(detected, curve=[p for p in detected.curve if p.training_set == "real"])
    )
    first, second = chart.keys
    assert first.colour != second.colour
    assert first.dash != second.dash
    assert [line.get_color() for line in chart.figure.axes[0].lines] == [
        key.colour for key in chart.keys
    ]


def test_every_point_of_the_curve_is_drawn_where_it_is(made):
    detected = find_detected(made.out)
    chart = draw_detection(detected)
    for axes, unit in zip(chart.figure.axes, UNITS, strict=True):
        assert len(axes.lines) == 4
        for line, detector in zip(axes.lines, in_rank(map(key_of, detected.curve)), strict=True):
            own = {
                p.clusters: p.sensitivity
                for p in detected.curve
                if p.unit == unit and key_of(p) == detector
            }
            assert len(own) == 10
            assert line.get_marker() == "o"
            assert [round(x) for x in line.get_xdata()] == sorted(own)
            assert list(line.get_ydata()) == [own[clusters] for clusters in sorted(own)]
            assert np.diff(line.get_xdata()) == pytest.approx(1)
        assert axes.get_ylim() == (0, 1)
        low, high = axes.get_xlim()
        assert [x for x in axes.get_xticks() if low < x < high] == list(range(1, 11))
    for told in ("Lesions: sensitivity", "Patients with a lesion: sensitivity", ACROSS):
        assert f">{told}</text>" in chart.svg


def test_equal_curves_do_not_hide_one_another(made):
    detected = find_detected(made.out)
    alike = [replace(point, sensitivity=0.5) for point in detected.curve]
    axes, _ = draw_detection(replace(detected, curve=alike)).figure.axes
    places = [tuple(point) for line in axes.lines for point in line.get_xydata()]
    assert len(set(places)) == len(places)
    first = [line.get_xdata()[0] for line in axes.lines]
    assert 0 < max(first) - min(first) < 1  # by less than one cluster


def test_intervals_lie_around_their_lines(made):
    detected = find_detected(made.out)
    for axes, unit in zip(draw_detection(detected).figure.axes, UNITS, strict=True):
        assert len(axes.patches) == 4
        for band, line, detector in zip(
            axes.patches, axes.lines, in_rank(map(key_of, detected.curve)), strict=True
        ):
            own = [p for p in detected.curve if p.unit == unit and key_of(p) == detector]
            low, high = band.get_xy()[:10], band.get_xy()[19:9:-1]
            assert low[:, 0] == pytest.approx(line.get_xdata())
            assert high[:, 0] == pytest.approx(line.get_xdata())
            assert sorted(low[:, 1]) == sorted(p.low for p in own)
            assert sorted(high[:, 1]) == sorted(p.high for p in own)
            assert (low[:, 1] <= line.get_ydata()).all()
            assert (high[:, 1] >= line.get_ydata()).all()
            assert band.get_alpha() < 0.2
    unknown = [replace(point, low=math.nan) for point in detected.curve]
    fifth = [replace(p, detector="combined") for p in detected.curve if p.detector == "ocsvm"]
    for curve in (unknown, [*detected.curve, *fifth]):
        chart = draw_detection(replace(detected, curve=curve))
        assert not any(axes.patches for axes in chart.figure.axes)


def test_a_curve_of_one_point_is_drawn(made):
    detected = find_detected(made.out)
    chart = draw_detection(replace(detected, curve=detected.curve[:1]))
    (axes,) = chart.figure.axes
    assert len(axes.lines) == 1
    assert len(axes.lines[0].get_xdata()) == 1
    assert chart.svg
    assert draw_detection(replace(detected, curve=[])) is None


pairs = st.lists(st.tuples(st.floats(0, 20), st.floats(0, 1)), min_size=1, max_size=12)


@given(pairs, st.floats(0.1, 20))
def test_a_free_response_curve_never_falls(found, end):
    places = follow([FreePoint("real", "ocsvm", "lesion", 9.0, x, y) for x, y in found], end)
    assert places == sorted(places)
    assert places[0] == (0, 0)
    assert places[-1][0] == end
    assert places[-1][1] == max([0, *(y for x, y in found if x <= end)])


def test_free_response_curves_end_within_the_chart(made):
    detected = find_detected(made.out)
    chart = draw_responses(detected)
    for axes, unit in zip(chart.figure.axes, UNITS, strict=True):
        assert len(axes.lines) == 4
        _, end = axes.get_xlim()
        for line, detector in zip(
            axes.lines, in_rank(map(key_of, detected.responses)), strict=True
        ):
            own = [r for r in detected.responses if r.unit == unit and key_of(r) == detector]
            assert [tuple(point) for point in line.get_xydata()] == follow(own, end)
            assert max(line.get_xdata()) == end
        assert f">{FALSE}</text>" in chart.svg


def test_numbers_of_a_free_response_curve_end_within_the_chart(made):
    detected = find_detected(made.out)
    many = [replace(response, false_clusters_per_control=10.0) for response in detected.responses]
    chart = draw_responses(replace(detected, responses=many))
    assert {axes.get_xlim() for axes in chart.figure.axes} == {(0, 10)}  # no further
    root = ElementTree.fromstring(
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink">{chart.svg}</svg>'
    )
    ends = [
        float(text.get("x")) + 7 * len(text.text) / 2
        for text in root.iter("text")
        if "text-anchor: middle" in text.get("style")
    ]
    assert max(ends) <= chart.size[0]  # a digit is 7 px wide


def test_values_that_are_no_numbers_have_no_place_in_a_chart(made):
    detected = find_detected(made.out)
    odd = [
        replace(point, sensitivity=value, clusters=10**n)
        for n, (point, value) in enumerate(
            zip(detected.curve, (math.inf, -math.inf, 0.5, 1e308), strict=False)
        )
    ]
    without_end = {"false_clusters_per_control": math.inf}
    responses = [replace(response, **without_end) for response in detected.responses]
    one = calibrations_of(detected)[0]
    controls = {**one.controls, "odd": math.inf}
    for chart in (
        draw_detection(replace(detected, curve=odd)),
        draw_responses(replace(detected, responses=responses)),
        draw_calibration([replace(one, controls=controls)], SETS),
    ):
        assert not re.search(r"\b(nan|inf)\b", chart.svg, re.I)


# Overlays on the T1w


def test_scores_below_the_threshold_are_transparent():
    row = np.array([[np.nan, -1, 0.4, 0.5, 1.0, 9.0]], np.float32)
    colours = rgba(paint_scores(row, Heat(0.5, 1.0)))[0]
    assert colours[:, 3].tolist() == [0, 0, 0, 255, 255, 255]
    assert colours[4].tolist() == colours[5].tolist()
    assert colours[4, :3].sum() > colours[3, :3].sum()


def test_the_higher_the_rank_the_brighter_the_cluster_and_hits_are_green():
    ranks = np.arange(12, dtype=np.float32)[np.newaxis]
    colours = rgba(paint_ranks(ranks, {2, 3}))[0]
    assert colours[:, 3].tolist() == [0, *[255] * 11]
    green = colours[:, 1] > colours[:, 0]
    assert np.flatnonzero(green).tolist() == [2, 3]
    sums = colours[:, :3].sum(axis=1)
    assert sums[2] > sums[3]
    assert (np.diff(sums[4:11]) < 0).all()
    assert sums[10] == sums[11]
    assert [brightness(rank) for rank in (1, 99)] == [1.0, brightness(10)]


def test_what_is_in_a_cluster_is_shown_and_nothing_that_scores_less():
    scores = np.array([np.nan, -3, 0.1, 0.2, 0.3, 0.9], np.float32).reshape(6, 1, 1)
    labels = np.array([0, 0, 0, 1, 1, 2], np.float32).reshape(6, 1, 1)
    assert heat_of(scores, labels).threshold == pytest.approx(0.2)
    assert heat_of(scores, None).threshold > 0.3
    assert heat_of(np.full_like(scores, np.nan), None).high > 0
    assert heat_of(scores - 5, labels).threshold == 0


# Pictures of clusters


def maps(cohort, label="P1"):
    return draw_cluster_maps(cohort.out, find_anomalies(cohort.out, label, spaces=(T,)))


def over(figure):
    """Return the tiles that are overlaid on the T1w."""
    tiles = figure.frames[0][1]
    return tiles[len(tiles) // 2 :]


@pytest.mark.parametrize(("label", "side"), [("P1", "L"), ("P2", "R")])
def test_a_cluster_is_drawn_on_its_side(made, label, side):
    (panel,) = maps(made, label)
    (figure,) = panel.figures
    letters = [text for text in figure.texts if text.words in ("L", "R")]
    for tile in over(figure):
        spot = tile.spot
        if spot.section.plane != "sagittal":
            shown = rgba(tile.href)[..., 3] > 0
            middle = (ndimage.center_of_mass(shown)[1] + 0.5) / shown.shape[1]
            x = spot.x + middle * spot.width
            own = [t for t in letters if spot.x <= t.x <= spot.x + spot.width and t.y < spot.y]
            assert min(own, key=lambda text: abs(text.x - x)).words == side


def test_there_is_a_column_a_detector_and_a_row_a_view(made):
    (panel,) = maps(made)
    (figure,) = panel.figures
    assert panel.title == "sub-P1"
    columns = sorted({tile.spot.x for tile in over(figure)})
    assert len(columns) == len(SETS) * len(DETECTORS)
    assert len(over(figure)) == 3 * len(columns)
    words = [text.words for text in figure.texts if text.words in SETS]
    assert words == ["real", "real", "hybrid", "hybrid"]
    assert len(figure.bars) == 2
    assert [name for name, _, _ in figure.lines] == ["edge of the lesion"]
    assert len(figure.lines[0][2]) == len(over(figure))
    for tile in over(figure):
        red, green, *_ = rgba(tile.href)[rgba(tile.href)[..., 3] > 0].T
        assert (green > red).all()  # all of these slices intersect the lesion
    areas = [(rgba(tile.href)[..., 3] > 0).sum() for tile in over(figure)]
    ocsvm, zscore, on_hybrid, _ = (sum(areas[column::4]) for column in range(4))
    assert zscore < ocsvm < on_hybrid  # in the order of the heights of their bumps


def test_slices_go_through_the_lesion_and_else_through_most_clusters(cohort, tmp_path):
    lesion = np.linalg.norm(cohort.world - (24, -40, -2), axis=-1) < 13  # away from all clusters
    cohort.put("sub-P1/anat", f"sub-P1_space-{T}_label-L_mask", lesion)
    (panel,) = maps(cohort)
    told = {text.words for text in panel.figures[0].texts if " = " in text.words}
    assert told == {"x = 24 mm", "y = −40 mm", "z = −2 mm"}
    plain = Cohort(tmp_path / "in" / "out", lesions=False)
    plain.put("sub-P1/anat", f"sub-P1_space-{T}_label-L_mask", lesion)  # of an earlier run
    (other,) = maps(plain)
    assert "Slices on which" in other.caption
    assert not other.figures[0].lines
    assert len(other.figures[0].bars) == 1
    assert all((rgba(tile.href)[..., 3] > 0).any() for tile in over(other.figures[0])[:1])


@given(st.tuples(*[st.integers(0, 6)] * 3))
def test_the_best_slices_meet_in_the_only_bright_voxel(place):
    weights = np.zeros((7, 7, 7), np.float32)
    weights[place] = 0.5
    for chosen in (best_sections(weights), sections_through(weights > 0)):
        assert [one.index for one in chosen] == [place[AXIS_OF[one.plane]] for one in chosen]


def test_of_two_lesions_the_larger_one_is_shown():
    mask = np.zeros((20, 20, 20), bool)
    mask[2:4, 2:4, 2:4] = mask[10:15, 10:15, 10:15] = True
    assert {one.index for one in sections_through(mask)} == {12}


@pytest.mark.parametrize("kind", ["T1w", "brain_mask", "dseg", "L_mask"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "grid"])
def test_a_lost_image_is_named_and_the_rest_is_shown(cohort, kind, damage):
    endings = {
        "T1w": f"anat/sub-P1_space-{T}_desc-preproc_T1w",
        "brain_mask": f"anat/sub-P1_space-{T}_desc-brain_mask",
        "dseg": f"pet/sub-P1_trc-18FFDG_space-{T}_desc-ocsvm_dseg",
        "L_mask": f"anat/sub-P1_space-{T}_label-L_mask",
    }
    path = cohort.out / "sub-P1" / f"{endings[kind]}.nii.gz"
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    if damage == "grid":
        nifti.save(nifti.Image(np.ones((20, 20, 20), np.float32), np.diag([8.0, 8, 8, 1])), path)
    pictures = section(cohort.write(**RUN), "maps")
    if kind == "L_mask" and damage == "missing":
        assert "No figure." not in pictures  # only the lesion is unknown
        return
    assert path.name in pictures or f"sub-P1_space-{T}" in pictures
    assert pictures.count("No figure.") == (kind != "dseg")
    assert "<image " in pictures  # of the other patient or the other detectors


def test_many_patients_are_pictured_in_their_own_reports_only(cohort, monkeypatch):
    monkeypatch.setattr("bids_app.report.group.MOST_PICTURED", 1)
    pictures = section(cohort.write(**RUN), "maps")
    assert 'For more patients see their own reports: <a href="sub-P2.html">sub-P2</a>.' in pictures
    assert "Clusters of sub-P2" not in pictures


# Section of a participant's report


def test_the_section_stands_between_pet_and_methods(made):
    reader = Reader(made.write_subject("P1"))
    known = ["findings", "summary", "anatomy", "coregistration", "pet", "anomalies", "methods"]
    assert [name for name in reader.ids if name in known] == known
    assert len(reader.ids) == len(set(reader.ids))
    assert "#anomalies" in reader.links
    others = {link for link in reader.links if not link.startswith(("data:image/", "#"))}
    assert others == {"group.html", "participants.html"}


def test_what_is_expected_is_told_with_its_controls_and_that_their_maps_are_unlike(
    cohort, tmp_path
):
    unlike = "a patient's map is the mean over all folds, and therefore smoother. The two are not"
    page = section(cohort.write_subject("P1"), "anomalies")
    assert page.count("Expected counts are estimated from 2 held-out controls.") == len(SETS) * 2
    assert page.count(unlike) == 1
    for path in cohort.out.glob("detectors/*/control_clusters.tsv"):
        lines = [one for one in read_tsv(path) if one["detector"] == "zscore"]
        write_tsv(path, CONTROL, [line for line in lines if line["participant_id"] == "sub-C1"])
    page = section(cohort.write_subject("P1"), "anomalies")
    assert page.count("Expected counts are estimated from 1 held-out control.") == len(SETS)
    assert page.count(f"Expected counts are unknown: {NO_CONTROLS}.") == 2
    cohort.record(without=("stat-t_desc-zscore",))  # those maps are not by these detectors
    assert "Expected counts are estimated" not in section(cohort.write_subject("P1"), "anomalies")
    control = section(cohort.write_subject("C1"), "anomalies")
    assert unlike not in control
    assert "Expected counts are estimated" not in control


def test_in_a_report_of_a_patient_controls_are_those_of_the_detector_that_was_applied(
    cohort, tmp_path
):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(cohort.out / "detectors" / "real", elsewhere)
    shutil.rmtree(cohort.out / "detectors")
    cohort.record()
    cohort.write(**{**RUN, "settings": {"detector": elsewhere}})
    page = section(cohort.write_subject("P1"), "anomalies")
    assert page.count("Expected counts are estimated from 2 held-out controls.") == 2


def test_without_maps_there_is_no_section(cohort):
    for path in cohort.out.rglob("*_statmap.*"):
        path.unlink()
    page = cohort.write_subject("P1")
    assert "Anomalies" not in text_of(page)
    assert "#anomalies" not in page
    assert "<script>" not in page


def test_each_detector_has_its_table_and_its_pictures(made):
    page = section(made.write_subject("P1"), "anomalies")
    headings = re.findall(r"<h3.*?>(.*?)</h3>", page)
    assert headings == [
        "All maps, slice by slice (sub-P1)",
        *("z score, training set real (sub-P1)", "OC-SVM, training set real (sub-P1)"),
        "Other training sets",
    ]
    layers, *tables = tables_in(page)
    assert [row[0] for row in layers[1:]] == ["T1w", "PET", "Map", "Clusters"]
    assert len(tables) == len(SETS) * len(DETECTORS)
    found = made.found["real", "ocsvm", "P1"]
    assert tables[1][0] == [
        *("Rank", "x, y, z (mm)", "x, y, z on the T1w (mm)", "Place", "Volume (cm³)"),
        *("Peak", "Mean", "Sum", "Expected in a healthy control", "On a lesion (cm³)"),
    ]
    first, second = tables[1][1:]
    assert first[0] == "1"
    there, here = (
        [float(one) for one in cell.replace("−", "-").split(", ")] for cell in first[1:3]
    )
    assert np.abs(np.subtract(here, there) - MOVED).max() < 2.5  # mm; grids differ
    assert first[3:5] == ["Frontal lobe, left", format_volume(found[0]["volume"])]
    assert float(first[7]) == pytest.approx(found[0]["sum_score"], rel=0.01)
    assert first[8:] == ["0", format_volume(found[0]["overlap"])]
    assert second[3] in ("left, no named region", "right, no named region")
    assert page.count("x, y and z are those of the column “x, y, z on the T1w”") == 1
    assert "and on the participant's own T1w; they are in mm" in page
    assert re.findall(r'<div class="viewer" id="(.*?)"', page) == ["viewer-sub-P1_trc-18FFDG"]
    assert set(re.findall(r'data-viewer="(.*?)"', page)) == {"viewer-sub-P1_trc-18FFDG"}
    assert page.count("<details>") == len(DETECTORS) + 1  # other training sets, and keys
    assert "No figure." not in page


def test_a_cluster_that_was_lost_on_the_way_to_the_t1w_has_no_place_there(cohort):
    (path,) = cohort.out.glob("sub-P1/pet/*_space-T1w_desc-ocsvm_clusters.tsv")
    rows = read_tsv(path)
    write_tsv(path, CLUSTER, [rows[0], {**rows[1], "x": None, "y": None, "z": None}])
    lines = tables_in(section(cohort.write_subject("P1"), "anomalies"))[2]
    assert [line[2] == "n/a" for line in lines] == [False, False, True]


def test_where_clusters_lie_on_the_t1w_may_not_be_known(cohort):
    for path in cohort.out.rglob("*_space-T1w_*_clusters.tsv"):
        path.unlink()
    page = section(cohort.write_subject("P1"), "anomalies")
    assert "on the T1w (mm)" not in page
    assert page.count("own T1w: x, y and z are different from those in the tables.") == 1
    assert "the space of the template; they are in mm" in page


def test_a_control_is_called_one(made):
    page = section(made.write_subject("C1"), "anomalies")
    assert "this participant is a control" in page
    assert "had not been trained on them" in page
    assert (
        "in the space of the template: x, y and z are those of the tables." in page
    )  # only maps of controls exist
    assert "this participant is a control" not in made.write_subject("P1")


def test_columns_that_nobody_fills_are_left_out(tmp_path):
    cohort = Cohort(tmp_path / "in" / "out", lesions=False)
    for path in cohort.out.glob("sub-P1/pet/*_clusters.tsv"):
        path.write_text(path.read_text().replace("Frontal lobe", "n/a"))
    heads, first, *_ = tables_in(section(cohort.write_subject("P1"), "anomalies"))[1]
    assert first[heads.index("Place")].endswith("t, no named region")
    assert "On a lesion (cm³)" not in heads


@pytest.mark.parametrize(
    "kind", ["statmap", "clusters", "own map", "own clusters", "T1w", "own T1w"]
)
def test_what_is_lost_is_named_in_the_section(cohort, kind):
    stem = "pet/sub-P1_trc-18FFDG_space"
    name = {
        "statmap": f"{stem}-{T}_stat-t_desc-ocsvm_statmap.nii.gz",
        "clusters": f"{stem}-{T}_desc-ocsvm_clusters.tsv",
        "own map": f"{stem}-T1w_stat-t_desc-ocsvm_statmap.nii.gz",
        "own clusters": f"{stem}-T1w_desc-ocsvm_clusters.tsv",
        "T1w": f"anat/sub-P1_space-{T}_desc-preproc_T1w.nii.gz",
        "own T1w": "anat/sub-P1_desc-preproc_T1w.nii.gz",
    }[kind]
    path = cohort.out / "sub-P1" / name
    path.write_bytes(b"\xff\xfe\x00")
    page = section(cohort.write_subject("P1"), "anomalies")
    assert path.name in page
    assert "z score, training set real" in page
    assert page.count('class="viewer"') == (kind != "T1w")


def test_the_t1w_is_that_which_the_pet_was_aligned_to(cohort):
    person = cohort.out / "sub-P1"
    for name in ("a", "b"):
        for path in sorted((person / "anat").iterdir()):
            new = path.name.replace("sub-P1_", f"sub-P1_ses-{name}_")
            target = person / f"ses-{name}" / "anat" / new
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    shutil.rmtree(person / "anat")
    (person / "ses-c").mkdir()
    for path in sorted((person / "pet").iterdir()):
        path.rename(path.with_name(path.name.replace("sub-P1_", "sub-P1_ses-c_")))
    (person / "pet").rename(person / "ses-c" / "pet")
    for path in (person / "ses-c").rglob("*space-T1w*.json"):
        reference = "bids::sub-P1/ses-b/anat/sub-P1_ses-b_desc-preproc_T1w.nii.gz"
        change(path, SpatialReference=reference)
    (person / "ses-b" / "anat" / f"sub-P1_ses-b_space-{T}_desc-preproc_T1w.nii.gz").write_bytes(b"")
    told = section_of(cohort.out, "P1", (T,))
    assert {part["title"].rpartition("(")[2] for part in told["parts"]} == {"sub-P1, ses-c)"}
    assert all("ses-b" in part["panel"].missing for part in told["parts"])
    (one, *_) = find_anomalies(cohort.out, "P1", spaces=(T,))
    assert (one.session, one.training_set, one.primary) == ("c", "real", True)


def test_maps_of_another_grid_are_passed_over(made):
    assert find_anomalies(made.out, "P1", spaces=("MNI152NLin2009aSym_res-1",)) == []
    assert len(find_anomalies(made.out, "P1")) == len(SETS) * len(DETECTORS)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("label", "side"), [("P1", -1), ("P2", 1)])
def test_a_map_is_turned_so_that_left_is_left(made, own, label, side):
    """On disk, the first axis of the participant's own space points to the left."""
    anomaly = find_anomalies(made.out, label, spaces=(T,))[0]
    score_map = take_score_map(ImageCache(made.out), made.out, anomaly, native=own)
    place = np.unravel_index(np.nanargmax(score_map.scores.data), score_map.scores.data.shape)
    x = (score_map.scores.affine @ [*place, 1])[0] - own * MOVED[0]
    assert np.sign(x) == side
    assert (place[0] > score_map.scores.data.shape[0] / 2) == (side > 0)


# The slice viewer


def primary(cohort, label="P1"):
    return [one for one in find_anomalies(cohort.out, label, spaces=(T,)) if one.primary]


@pytest.fixture(scope="module")
def score_map(made):
    return take_score_map(ImageCache(made.out), made.out, primary(made)[0], native=True)


def image_of(layer, folder):
    """Read the image of a layer with a standard reader."""
    path = folder / "layer.nii.gz"
    path.write_bytes(base64.b64decode(layer["nifti"]))
    return nib.load(path)


def test_a_viewer_is_the_same_each_time(made):
    viewer, faults = view_pet(made.out, primary(made))
    assert faults == []
    assert view_pet(made.out, primary(made)) == (viewer, [])
    for layer in viewer.layers:
        assert base64.b64decode(layer["nifti"])[4:8] == bytes(4)  # no time stamp (RFC 1952)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("label", PATIENTS)
def test_stops_are_where_the_tables_list_the_peaks(cohort, label, own):
    if not own:
        for path in cohort.out.rglob("*_space-T1w_stat-*"):
            path.unlink()
    viewer, _ = view_pet(cohort.out, primary(cohort, label))
    assert viewer.native == own
    assert len(viewer.stops) == len(DETECTORS)
    for anomaly in primary(cohort, label):
        rows = read_tsv(anomaly.paths["table_in_t1w" if own else "table"])
        peaks = {int(r["rank"]): [float(r[f"peak_{axis}"]) for axis in "xyz"] for r in rows}
        stops = viewer.stops[detector_of(anomaly.detector).label]
        assert list(stops) == list(peaks) == [1, 2]
        for rank, peak in peaks.items():
            assert stops[rank] == pytest.approx(peak, abs=1e-3)


def test_the_viewer_opens_with_the_detector_that_finds_most(made):
    viewer, _ = view_pet(made.out, primary(made))
    names = [detector_of(detector).label for detector in LEADING if detector in DETECTORS]
    assert list(viewer.stops) == names
    shown = [one["detector"] for one in viewer.layers if one["kind"] == "map" and one["shown"]]
    assert shown == names[:1]


@given(st.integers(0, 3), st.floats(-40, 40))
def test_resampling_moves_nothing_in_the_world(turns, angle):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler(
        "xyz", (angle, 90 * turns, angle / 2), degrees=True
    ).as_matrix() @ np.diag([-4.0, 5.0, 6.0])
    affine[:3, 3] = -affine[:3, :3] @ np.array([10, 9, 8])
    indices = np.stack(np.meshgrid(*map(np.arange, (21, 19, 17)), indexing="ij"), axis=-1)
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    place = np.array([-12.0, 6.0, 9.0])
    bump = np.exp(-((world - place) ** 2).sum(axis=-1) / (2 * 9**2)).astype(np.float32)
    grid = grid_over(nifti.Image((bump > 0.05).astype(np.float32), affine))
    moved = resample(nifti.Image(bump, affine), grid)
    middle = ndimage.center_of_mass(np.where(moved > 0.1, moved, 0))
    assert (grid.affine @ [*middle, 1])[:3] == pytest.approx(place, abs=0.5)


def test_a_healthy_brain_shows_nothing_in_the_viewer(score_map, tmp_path):
    """All of its scores are below 0, that is, inside the boundary of controls."""
    scores = replace(score_map.scores, data=-np.abs(score_map.scores.data) - 0.1)
    heat = heat_of(scores.data, None)
    assert heat.threshold == 0
    healthy = replace(score_map, scores=scores, heat=heat, labels=None)
    viewer = make_viewer({"z score": healthy}, {}, None, native=True)
    assert viewer.stops == {"z score": {}}
    (layer,) = (one for one in viewer.layers if one["kind"] == "map")
    assert layer["low"] > 0
    assert image_of(layer, tmp_path).get_fdata().max() == 0


def test_layers_hold_what_is_there_as_bytes(score_map, tmp_path):
    """Each value equals that of the image within half a step."""
    viewer = make_viewer({"z score": score_map}, {"PET": score_map.t1w}, None, native=True)
    kinds = [layer["kind"] for layer in viewer.layers]
    assert kinds == ["t1w", "pet", "map", "clusters"]
    grid = grid_over(score_map.brain)
    brain = resample(score_map.brain, grid) > 0.5
    for layer, image in zip(viewer.layers, (score_map.t1w, None, score_map.scores), strict=False):
        if image is not None:
            file = image_of(layer, tmp_path)
            assert file.get_data_dtype() == np.uint8
            np.testing.assert_allclose(file.affine, grid.affine)
            there = resample(image, grid).clip(0, layer["high"])
            step = file.dataobj.slope
            assert np.abs(file.get_fdata() - there)[brain].max() <= 0.51 * step
            assert layer["high"] / step > 50


def test_lesions_are_shown_in_either_space(cohort):
    anomalies = primary(cohort)
    viewer, _ = view_pet(cohort.out, anomalies)
    assert "lesions" not in [layer["kind"] for layer in viewer.layers]
    lesion = np.linalg.norm(cohort.own_world - PATIENTS["P1"], axis=-1) < 16
    name = "sub-P1_space-T1w_label-L_mask"
    cohort.put("sub-P1/anat", name, lesion, affine=cohort.own_affine)
    viewer, _ = view_pet(cohort.out, anomalies)
    assert viewer.native
    assert viewer.layers[-1]["kind"] == "lesions"
    next(cohort.out.glob("sub-P1/pet/*_space-T1w_stat-t_desc-ocsvm_statmap.nii.gz")).unlink()
    viewer, _ = view_pet(cohort.out, anomalies)
    assert not viewer.native
    assert viewer.layers[-1]["kind"] == "lesions"


def test_a_ragged_lesion_has_one_edge(score_map, tmp_path):
    shape = score_map.t1w.data.shape
    middle = np.asarray(shape).reshape(3, 1, 1, 1) // 2
    whole = np.abs(np.indices(shape) - middle).max(axis=0) <= 3
    ragged = whole & ~(np.indices(shape) == middle).all(axis=0)
    edges = []
    for mask in (whole, ragged):
        lesions = nifti.Image(mask.astype(np.float32), score_map.t1w.affine)
        viewer = make_viewer({"z score": score_map}, {}, lesions, native=True)
        edges.append(image_of(viewer.layers[-1], tmp_path).get_fdata())
    assert edges[0].any()
    np.testing.assert_array_equal(*edges)


def test_synthetic_pet_is_a_layer_where_there_is_one(cohort):
    for path in cohort.out.rglob("*_space-T1w_stat-*"):
        path.unlink()
    name = f"sub-P1_trc-18FFDG_space-{T}_desc-synth_pet"
    cohort.put("sub-P1/pet", name, cohort.t1w(cohort.world), Synthetic=True)
    viewer, _ = view_pet(cohort.out, primary(cohort))
    assert [layer["label"] for layer in viewer.layers[:3]] == ["T1w", "PET", "SYNTHETIC PET"]


def refine(cohort, times, rng):
    """Resample the images in template space to a finer grid, and create noise of that size."""
    for path in cohort.out.rglob("*_space-T1w_*"):
        path.unlink()
    paths = [*cohort.out.glob(f"sub-P1/*/*_space-{T}_*.nii.gz"), cohort.template]
    for path in paths:
        image = nifti.load(path)
        order = 0 if path.name.endswith(("_mask.nii.gz", "_dseg.nii.gz")) else 1
        zoom = {"grid_mode": True, "mode": "nearest"}
        data = ndimage.zoom(image.data, times, order=order, **zoom)
        if path.name.endswith(("_T1w.nii.gz", "_pet.nii.gz")):
            noise = rng.standard_normal(data.shape, np.float32)
            data *= 1 + 0.05 * (noise if "T1w" in path.name else ndimage.uniform_filter(noise, 3))
        affine = image.affine @ np.diag([*[1 / times] * 3, 1])
        affine[:3, 3] += image.affine[:3, :3] @ np.full(3, 0.5 / times - 0.5)
        kept = data.astype(np.int16) if "dseg" in path.name else data
        nifti.save(nifti.Image(kept > 0.5 if "mask" in path.name else kept, affine), path)


def test_the_report_of_a_brain_of_1_mm_is_small(made, tmp_path):
    mine = copy.copy(made)
    mine.out, mine.template = tmp_path / "out", tmp_path / "template.nii.gz"
    for folder in ("sub-P1", "logs", "detectors/real"):
        shutil.copytree(made.out / folder, mine.out / folder)
    shutil.copy(made.template, mine.template)
    refine(mine, 6, np.random.default_rng(3))
    page = mine.write_subject("P1")
    assert len(page.encode()) < 6e6
    viewer, _ = view_pet(mine.out, primary(mine))
    assert len(library()) + sum(len(layer["nifti"]) for layer in viewer.layers) < 3e6
    kinds = [layer["kind"] for layer in viewer.layers]
    assert kinds == ["t1w", "pet", "map", "map", "clusters", "clusters", "lesions"]
    for layer in viewer.layers:
        image = image_of(layer, tmp_path)
        assert image.get_data_dtype().itemsize == 1
        assert image.header.get_zooms() == pytest.approx([1.5] * 3)


# Methods


def test_methods_tell_what_was_done_and_cite_it(made):
    text = section(made.write(**RUN), "methods")
    for told in (
        *(
            "mri2pet 9.8.7",
            "PyTorch 2.13.0",
            "numba 0.60.0",
            "nu 0.03",
            "2 folds",
            "fraction of 0.02",
        ),
        "axial patches of 15×15 voxels from",
        *("Alaverdyan Z", "Schölkopf B", "Chang C-C", "Crawford JR", "Wilson EB", "McNemar Q"),
        *("Holm S", "Chakraborty DP", "hybrid (2 controls with real PET, 1 with synthetic PET)"),
    ):
        assert told in text
    only = write_methods("group", {}, {"detectors": ("zscore",)})
    assert "Crawford JR" in only
    assert "Schölkopf" not in only
    assert "McNemar" not in only
    assert "no synthetic image was scored" not in only


def test_methods_tell_how_clusters_of_this_run_were_found_whatever_the_detectors_card_says():
    parameters = {"nu": 0.05, "cluster_extent": 0.02, "min_cluster_size": 82.0}
    grid = {"template": "T", "shape": (1, 1, 1), "affine": np.eye(4).tolist()}
    card = SimpleNamespace(parameters=parameters, controls=(), folds=4, **grid)
    detected = SimpleNamespace(
        cards={"real": card},
        detectors=[("real", "ocsvm")],
        **dict.fromkeys(("curve", "comparisons", "responses"), ()),
    )
    settings = {"nu": 0.03, "cluster_extent": 0.05, "min_cluster_size": 200.0, "clusters": 10}
    record = {"settings": settings, "versions": {}}
    text = _methods(detected, record)
    assert "and nu 0.05 was fitted" in text
    assert "exceeded by a fraction of 0.05 of" in text
    assert "of at least 200 mm³ were" in text
    assert "The first 10 of a patient were kept. For each" in text
    settings["expected_false"] = 0.5
    assert "were kept, down to the sum that 0.5 clusters of a held-out" in _methods(
        detected, record
    )


def test_every_reference_is_cited_somewhere():
    detectors = ("ocsvm", "zscore", "pseudonormal")
    done = {"evaluated": True, "tested": True, "free": True}
    text = write_methods("group", {}, {"detectors": detectors, **done})
    titles = read_references()["group"].values()
    assert len(titles) > 6
    assert all(title in text for title in titles)


def test_a_line_that_says_no_place_is_no_cluster(tmp_path):
    line, path = {"rank": "1", "x": "1", "y": "2", "z": "3"}, tmp_path / "clusters.tsv"
    write_tsv(path, list(line), [line])
    assert [place_of(one) for one in read_clusters_table(path, Faults(tmp_path))] == ["1, 2, 3"]
    for odd in ({"rank": "n/a"}, {"rank": "1.5"}, {"rank": "0"}, {"x": "n/a"}, {"z": "left"}):
        write_tsv(path, list(line), [{**line, **odd}])
        assert read_clusters_table(path, Faults(tmp_path)) == []


# Browser


OUTPUT = "document.querySelector('.viewer output').value"


def open_viewer(browser, page, *, kept=False):
    """Open a report and wait for its viewer; return the box of its slices on the page."""
    browser.open(page)
    if not kept:
        browser.run("localStorage.clear()")
        browser.open(page)
    browser.run("document.querySelector('.viewer').scrollIntoView()")
    browser.wait_for(lambda: browser.run(OUTPUT))
    return browser.run(
        """(() => {
          const box = document.querySelector(".viewer canvas").getBoundingClientRect();
          return [box.x + window.scrollX, box.y + window.scrollY, box.width, box.height];
        })()"""
    )


def place_shown(browser):
    """Return the position of the crosshair, in mm."""
    words = browser.run(OUTPUT).replace("−", "-")
    return [float(one) for one in re.match(r"x (.*), y (.*), z (.*) mm", words).groups()]


def give(browser, name, value, kind="input"):
    """Set a control of the viewer, as a user does."""
    browser.run(
        f"""(() => {{
          const control = document.querySelector(".viewer {name}");
          if (control.type === "checkbox") control.checked = {json.dumps(value)};
          else control.value = {json.dumps(value)};
          control.dispatchEvent(new Event("{kind}", {{ bubbles: true }}));
        }})()"""
    )


def settled(browser, box):
    """Take screenshots of a part of the page until two in a row are equal."""
    pictures = [browser.picture(box)]

    def rests():
        pictures.append(browser.picture(box))
        return (pictures[-1] == pictures[-2]).all() and np.ptp(pictures[-1]) > 0

    browser.wait_for(rests)
    return pictures[-1]


@needs_browser
def test_a_button_shows_the_peak_that_the_table_lists(cohort, browser):
    cohort.write_subject("P1")
    page = cohort.out / "sub-P1.html"
    open_viewer(browser, page)
    number = 0
    for anomaly in leading_first(primary(cohort)):
        for row in read_tsv(anomaly.paths["table_in_t1w"]):
            browser.run(f"document.querySelectorAll('button[data-viewer]')[{number}].click()")
            peak = [float(row[f"peak_{axis}"]) for axis in "xyz"]
            browser.wait_for(lambda peak=peak: place_shown(browser) == pytest.approx(peak))
            detector = browser.run("document.querySelector('[name=detector]').value")
            assert detector == detector_of(anomaly.detector).label
            at_white = peak[0] < 0  # in the lesion, in the brightest tissue of the phantom
            assert ("T1w ≥ 360 " in browser.run(OUTPUT)) == at_white
            number += 1
    assert browser.run("document.querySelectorAll('button[data-viewer]').length") == number == 4
    assert browser.complaints() == []
    assert browser.fetched() == [page.as_uri()]


@needs_browser
def test_the_page_of_the_group_opens_without_a_complaint(cohort, browser):
    cohort.write(**RUN)
    page = cohort.out / "group.html"
    browser.open(page)
    assert browser.run("document.querySelectorAll('svg').length") > 5
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.complaints() == []
    assert browser.fetched() == [page.as_uri()]


WRITTEN = """(() => {
  window.written = {};
  for (const name of ["drawTextRight", "drawTextLeft"]) {
    const write = niivue.Niivue.prototype[name];
    niivue.Niivue.prototype[name] = function (place, words, ...more) {
      window.written[words] = place[0] / this.uiData.dpr;
      return write.call(this, place, words, ...more);
    };
  }
})()"""


def visit_first(browser):
    """Go to the first cluster of OC-SVM, which is the lesion."""
    browser.run("document.querySelector('[data-detector=OC-SVM]').click()")
    browser.wait_for(lambda: browser.run("document.querySelector('select').value") == "OC-SVM")


def side_in_sight(browser, box):
    """Return the letter next to the coloured pixels, in an axial slice without crosshair."""
    browser.run("window.written = {}")
    give(browser, "[name=view]", "0")
    picture = settled(browser, box)
    coloured = np.ptp(picture, axis=2) > 40
    assert coloured.sum() > 20
    x = ndimage.center_of_mass(coloured)[1]
    letters = {words: px for words, px in browser.run("window.written").items() if words in "LR"}
    assert len(letters) == 2
    return min(letters, key=lambda letter: abs(letters[letter] - x)), letters


@needs_browser
@pytest.mark.parametrize(("label", "side"), [("P1", "L"), ("P2", "R")])
def test_in_the_viewer_a_cluster_is_on_the_side_of_its_letter(made, browser, label, side):
    made.write_subject(label)
    page = made.out / f"sub-{label}.html"
    box = open_viewer(browser, page)
    visit_first(browser)
    assert place_shown(browser) == pytest.approx(np.array(PATIENTS[label]) + MOVED, abs=5)
    browser.run(WRITTEN)
    shown, letters = side_in_sight(browser, box)
    assert shown == side
    assert letters["L"] < letters["R"]
    browser.run("document.querySelector('.viewer canvas').focus()")
    browser.press("r")
    shown, letters = side_in_sight(browser, box)
    assert shown == side
    assert letters["L"] > letters["R"]
    open_viewer(browser, page, kept=True)  # the flip is preserved
    assert browser.run("document.querySelector('[name=flip]').checked")
    visit_first(browser)
    browser.run(WRITTEN)
    assert side_in_sight(browser, box) == (shown, letters)
    give(browser, "[name=flip]", False)
    shown, letters = side_in_sight(browser, box)
    assert shown == side
    assert letters["L"] < letters["R"]
    open_viewer(browser, page, kept=True)
    assert not browser.run("document.querySelector('[name=flip]').checked")


@pytest.fixture
def seen(made, browser):
    """Take screenshots of the first cluster of OC-SVM in the viewer; count coloured pixels."""
    made.write_subject("P1")
    box = open_viewer(browser, made.out / "sub-P1.html")
    visit_first(browser)
    give(browser, "[data-layer=Clusters] [name=show]", False)
    give(browser, "[data-layer=Map] [name=show]", False)
    grey = settled(browser, box)

    def look():
        picture = settled(browser, box)
        return picture, (np.abs(picture - grey).max(axis=2) > 2).sum()

    yield look
    assert browser.complaints() == []


@needs_browser
def test_the_map_follows_its_threshold_and_window(browser, seen):
    assert seen()[1] == 0
    give(browser, "[data-layer=Map] [name=show]", True)
    first = seen()[1]
    give(browser, "[data-layer=Map] [name=low]", "2")
    fewer = seen()[1]
    assert 0 < fewer < 0.7 * first  # values below the threshold are not drawn
    before = seen()[0]
    give(browser, "[data-layer=Map] [name=high]", "2.2")
    assert (seen()[0] != before).any()
    assert seen()[1] == pytest.approx(fewer, rel=0.05)  # only the colours differ
    give(browser, "[name=detector]", "z score")
    low = float(browser.run("document.querySelector('[data-layer=Map] [name=low]').value"))
    assert low < 2  # each map has its own threshold


@needs_browser
def test_layers_follow_their_controls(browser, seen):
    grey, _ = seen()
    give(browser, "[data-layer=Clusters] [name=show]", True)
    assert seen()[1] > 0
    give(browser, "[data-layer=PET] [name=show]", True)
    strong, whole = seen()
    assert whole > 0.1 * grey[..., 0].size
    give(browser, "[data-layer=PET] [name=opacity]", "0.05")
    weak, _ = seen()
    assert np.abs(weak - grey).mean() < 0.2 * np.abs(strong - grey).mean()
    give(browser, "[name=zoom]", "3")
    assert (seen()[0] != weak).mean() > 0.1


@needs_browser
def test_the_crosshair_follows_keys_and_wheel(made, browser):
    made.write_subject("P1")
    x, y, width, height = open_viewer(browser, made.out / "sub-P1.html")
    above = browser.run("window.scrollY")
    start = place_shown(browser)
    browser.turn_wheel(x + 0.1 * width, y - above + 0.5 * height, 100)
    assert place_shown(browser) == start  # not before a click, so that the page can be scrolled
    browser.wait_for(lambda: browser.run("window.scrollY") > above)
    browser.run("document.querySelector('.viewer canvas').focus()")
    size = float(made.own_affine[1, 1])
    browser.press("ArrowRight")
    browser.press("ArrowLeft")  # now at the centres of voxels
    for flipped in (1, -1):
        for key, axis, by in (
            *(("ArrowLeft", 0, -flipped), ("ArrowUp", 1, 1), ("ArrowDown", 1, -1)),
            *(("PageUp", 2, 1), ("PageDown", 2, -1), ("ArrowRight", 0, flipped)),
        ):
            before = place_shown(browser)
            browser.press(key)
            step = np.subtract(place_shown(browser), before)
            assert step == pytest.approx([size * by * (n == axis) for n in range(3)]), key
        browser.press("r")
    zoom = "Number(document.querySelector('[name=zoom]').value)"
    browser.press("+")
    assert browser.run(zoom) > 1
    browser.press("0")
    assert browser.run(zoom) == 1
    browser.press("v")
    assert browser.run("document.querySelector('[name=view]').value") == "0"
    browser.press("c")  # NiiVue's clip plane, which is disabled
    before, above = place_shown(browser), browser.run("window.scrollY")
    browser.turn_wheel(x + 0.5 * width, y - above + 0.4 * height, -100)
    browser.wait_for(lambda: place_shown(browser) != before)
    assert place_shown(browser)[:2] == before[:2]
    assert browser.run("window.scrollY") == above
    assert browser.complaints() == []


@needs_browser
def test_without_webgl2_there_is_a_note_and_the_pictures_stay(made, browser):
    made.write_subject("P1")
    browser.open(
        made.out / "sub-P1.html",
        before="""
          const give = HTMLCanvasElement.prototype.getContext;
          HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
            return kind === "webgl2" ? null : give.call(this, kind, ...more);
          };
        """,
    )
    tall = "(name) => document.querySelector(name).getBoundingClientRect().height"
    assert browser.run(f"({tall})('.viewer .lacking')") > 10
    assert browser.run(f"({tall})('.viewer .panel')") == 0
    assert browser.run(f"({tall})('#anomalies figure')") > 100
    assert browser.run("[...document.querySelectorAll('.clusters button')].every(b => b.disabled)")
    assert browser.complaints() == []


@needs_browser
def test_every_control_of_the_viewer_has_a_name(made, browser):
    made.write_subject("P1")
    open_viewer(browser, made.out / "sub-P1.html")
    controls = browser.run(
        """[...document.querySelectorAll(".viewer :is(input, select, canvas)")].map(
          (one) => one.ariaLabel ?? one.labels[0]?.textContent ?? "")"""
    )
    assert len(controls) > 10
    assert all(controls)
    assert len(set(controls)) == len(controls)
    assert browser.run("document.querySelector('.viewer .lacking').hidden")


# Synthetic against real PET


def checked(kind, values):
    names = ("participant_id", "kind", "fold", "region", "mean_score", "above_zero")
    return [
        dict(zip(names, (f"sub-{kind}{n}", kind, 1, "brain", value, 0.5), strict=True))
        for n, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.0, 3.0], "score synthetic PET and real PET of held-out controls similarly"),
        ([-2.0, -1.0], "more typical than real PET"),
        ([3.0, 4.0], "more unusual than real PET"),
    ],
)
def test_whether_synthetic_pet_is_like_real_pet_is_told(cohort, values, told):
    rows = checked("real", [1.0, 2.0]) + checked("synthetic", values)
    write_tsv(cohort.out / "synthetic_controls.tsv", list(rows[0]), rows)
    page = cohort.write()
    assert told in page
    assert "(2 synthetic against 2 held-out real PET)" in page


def test_that_it_was_not_examined_is_told_where_synthetic_pet_trains(cohort):
    assert "Whether synthetic PET has the same distribution" in cohort.write()
