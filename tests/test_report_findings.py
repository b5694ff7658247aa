"""First page of a patient's report: the findings, in words and pictures."""

import base64
import copy
import re
import shutil
import subprocess

import numpy as np
import pytest
from anomalies import OTHER, PATIENTS, Cohort, T
from browser import BASH, CHROMIUM, Browser
from pages import text_of

from bids_app import nifti
from bids_app.derivatives.detections import find_anomalies
from bids_app.detection.clusters import Cluster
from bids_app.detection.detectors import DETECTORS, LEADING
from bids_app.files import read_json, read_tsv, write_json, write_tsv
from bids_app.report import participant
from bids_app.report.anomalies import NO_CONTROLS
from bids_app.report.findings import _count_controls, findings_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shared cohort; tests must not change it."""
    return Cohort(tmp_path_factory.mktemp("findings") / "out")


@pytest.fixture
def cohort(made, tmp_path):
    """Copy of the cohort that a test may change."""
    mine = copy.copy(made)
    mine.out = shutil.copytree(made.out, tmp_path / "out")
    return mine


def section(page):
    """Return the text of the section of findings."""
    found = re.search(r'<section id="findings".*?</section>', page, re.S)
    return text_of(found[0]) if found else ""


def rows_of(cohort, detector="zscore", label="P1"):
    path = cohort.out / f"sub-{label}/pet/sub-{label}_trc-18FFDG_space-{T}_desc-{detector}_clusters"
    return read_tsv(path.with_name(f"{path.name}.tsv"))


def test_findings_come_first_and_quality_after(made):
    page = made.write_subject("P1")
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections[:2] == ["findings", "summary"]
    assert "<h2>Quality control</h2>" in page
    assert re.search(r'<nav[^>]*><a href="#findings">Findings</a><a href="#summary">Quality', page)
    findings = re.search(r'<section id="findings".*?</section>', page, re.S)[0]
    assert 'href="group.html"' in findings
    assert "Detection of anomalies" in page


def test_warnings_of_quality_control_are_announced_before_the_findings(cohort, monkeypatch):
    told = "Read the warnings of quality control"
    assert told not in section(cohort.write_subject("P1"))
    path = cohort.out / f"sub-P1/anat/sub-P1_space-{T}_desc-preproc_T1w.json"
    write_json(path, {"Registration": {"Verdict": "doubt", "VerdictReasons": ["It is far."]}})
    text = section(cohort.write_subject("P1"))
    assert text.count(told) == 1
    explained = text.index("A cluster is a group of voxels")
    assert text.index("Strongest cluster") < text.index(told) < explained < text.index("1. ")
    monkeypatch.setattr(participant, "findings_of", lambda *given: 2 * findings_of(*given))
    text = section(cohort.write_subject("P1"))
    assert text.count(told) == 1  # for all PET, not for the first alone
    assert text.index(told) < text.index("Strongest cluster")


def test_a_control_and_someone_without_maps_have_no_findings(made, cohort):
    assert findings_of(made.out, "C1", (T,)) == []
    page = made.write_subject("C1")
    assert 'id="findings"' not in page
    assert "<h2>Summary</h2>" in page
    for path in cohort.out.glob("**/sub-P1*_statmap.nii.gz"):
        path.unlink()
    assert findings_of(cohort.out, "P1", (T,)) == []


def test_the_detector_that_finds_most_leads():
    assert set(LEADING) == set(DETECTORS)
    assert LEADING[0] == "combined"


def test_clusters_are_told_with_the_controls_that_have_one_as_strong(made):
    """Of two controls, one has a cluster with the sum of OTHER's, and the other has none."""
    (told,) = findings_of(made.out, "P1", (T,))
    rows = rows_of(made)
    assert len(told["clusters"]) == len(rows) == 2
    for found, row in zip(told["clusters"], rows, strict=True):
        assert found.heading.startswith(f"{row['rank']}. ")
        assert f"{float(row['volume']) / 1000:.1f} cm³" in found.heading
        assert "of 2 held-out controls" in " ".join(found.sentences)
    assert (
        "1 of 2 held-out controls has a cluster at least as strong, so it does not"
        in told["summary"]
    )
    assert section(made.write_subject("P1")).count("of 2 held-out controls") == 3


@pytest.mark.parametrize(
    ("direction", "change"),
    [("hypo", " of low uptake"), ("hyper", " of high uptake"), ("both", "")],
)
def test_the_summary_says_in_which_direction_uptake_is_abnormal(cohort, direction, change):
    for path in cohort.out.glob("sub-P1/pet/*_statmap.json"):
        write_json(path, {**read_json(path), "Direction": direction})
    (told,) = findings_of(cohort.out, "P1", (T,))
    assert told["summary"].startswith(f"Strongest cluster{change} (detector: z score): ")


def cluster(total):
    place = dict.fromkeys(("x", "y", "z", "volume", "peak_x", "peak_y", "peak_z"), 1.0)
    scores = {"peak_score": 1.0, "mean_score": 1.0, "sum_score": total}
    return Cluster(rank=1, side="left", **place, **scores)


def test_a_control_counts_if_its_strongest_cluster_is_as_strong(made):
    scores = {("real", "zscore"): {"a": [3.0, 1.0], "b": [], "c": [2.0], "d": [5.0]}}
    lead = findings_lead(made)
    for total, expected in ((0.5, 3), (2.0, 3), (2.5, 2), (5.0, 1), (5.5, 0)):
        assert _count_controls(cluster(total), lead, scores) == (expected, 4)
    assert _count_controls(cluster(1.0), lead, {}) == (0, 0)


def findings_lead(made):
    found = find_anomalies(made.out, "P1", spaces=(T,))
    (lead,) = (one for one in found if one.primary and one.detector == "zscore")
    return lead


def test_a_cluster_beyond_all_controls_is_said_to_be_so(cohort):
    path = cohort.out / "detectors/real/control_clusters.tsv"
    rows = read_tsv(path)
    for row in rows:
        if row["sum_score"] not in ("", "n/a"):
            row["sum_score"] = "0.001"
    write_tsv(path, list(rows[0]), rows)
    (told,) = findings_of(cohort.out, "P1", (T,))
    assert told["summary"].endswith("It is stronger than every cluster of 2 held-out controls.")
    path.unlink()
    (told,) = findings_of(cohort.out, "P1", (T,))
    assert told["summary"].endswith(f"{NO_CONTROLS}.")


def test_other_detectors_that_see_the_same_place_are_named_with_their_rank(made):
    (told,) = findings_of(made.out, "P1", (T,))
    near = {}
    for row in rows_of(made, "ocsvm"):
        place = np.array([float(row[axis]) for axis in "xyz"])
        near[OTHER if np.linalg.norm(place - OTHER) < 12 else PATIENTS["P1"]] = row["rank"]
    for found, row in zip(told["clusters"], rows_of(made), strict=True):
        place = np.array([float(row[axis]) for axis in "xyz"])
        where = OTHER if np.linalg.norm(place - OTHER) < 12 else PATIENTS["P1"]
        assert f"Also found by OC-SVM (rank {near[where]})." in found.sentences


def test_a_cluster_that_no_other_detector_sees_says_so(cohort):
    name = f"sub-P1/pet/sub-P1_trc-18FFDG_space-{T}_desc-ocsvm_dseg.nii.gz"
    labels = nifti.load(cohort.out / name)
    nifti.save(nifti.Image(np.zeros_like(labels.data), labels.affine), cohort.out / name)
    (told,) = findings_of(cohort.out, "P1", (T,))
    assert told["clusters"]
    for found in told["clusters"]:
        assert "No other detector has a cluster there." in found.sentences


def test_lesions_are_found_or_missed_each(made, cohort):
    (told,) = findings_of(made.out, "P1", (T,))
    (lesion,) = told["lesions"]
    assert lesion.heading.startswith("Lesion 1, left, ")
    assert not lesion.missed
    assert "Found by z score (rank 2) and OC-SVM (rank 1)." in lesion.sentences
    assert lesion.figure is None
    path = cohort.out / f"sub-P1/anat/sub-P1_space-{T}_label-L_mask.nii.gz"
    far = np.linalg.norm(cohort.world - np.array([30.0, 10.0, 30.0]), axis=-1) < 9
    nifti.save(nifti.Image(far, cohort.affine), path)
    (told,) = findings_of(cohort.out, "P1", (T,))
    (lesion,) = told["lesions"]
    assert lesion.missed
    assert lesion.sentences == ("Missed by z score and OC-SVM.",)
    assert [name for name, *_ in lesion.figure.lines] == ["known lesion"]
    assert lesion.figure.lines[0][2]  # the lesion is outlined


def test_a_lesion_that_the_pet_does_not_cover_is_not_missed(cohort):
    far = np.linalg.norm(cohort.world - np.array([30.0, 10.0, 30.0]), axis=-1)
    path = cohort.out / f"sub-P1/anat/sub-P1_space-{T}_label-L_mask.nii.gz"
    coverage = cohort.out / f"sub-P1/pet/sub-P1_trc-18FFDG_space-{T}_desc-coverage_mask.nii.gz"
    nifti.save(nifti.Image(far < 9, cohort.affine), path)
    for gap, covered in ((12, False), (6, True)):  # as a whole, and in part
        nifti.save(nifti.Image(far >= gap, cohort.affine), coverage)
        (told,) = findings_of(cohort.out, "P1", (T,))
        (lesion,) = told["lesions"]
        assert lesion.missed == covered
        assert (lesion.sentences == ("Not covered by the PET, so not searched.",)) != covered


@pytest.mark.parametrize(("scored", "told"), [(0.8, True), (0.95, False)])
def test_a_map_without_scores_in_a_large_part_of_the_brain_says_so(cohort, scored, told):
    """Where too few controls have PET, a lesion would be missed without a word."""
    anomalies = find_anomalies(cohort.out, "P1", spaces=(T,))
    mask = nifti.load(cohort.out / f"sub-P1/anat/sub-P1_space-{T}_desc-brain_mask.nii.gz")
    places = np.argwhere(mask.data > 0)
    for anomaly in anomalies:
        image = nifti.load(anomaly.paths["statmap"])
        data = np.where(mask.data > 0, 1.0, 0.0).astype(np.float32)
        data[tuple(places[round(scored * len(places)) :].T)] = 0
        nifti.save(nifti.Image(data, image.affine), anomaly.paths["statmap"])
    page = cohort.write_subject("P1")
    assert ("Only 80 % of the brain has a score." in section(page)) == told
    assert text_of(page).count("% of the brain has a score.") == (len(anomalies) + 1) * told


def test_without_known_lesions_nothing_is_said_of_any(tmp_path):
    cohort = Cohort(tmp_path / "in" / "out", lesions=False)
    (told,) = findings_of(cohort.out, "P1", (T,))
    assert told["lesions"] == []
    assert "lesion" not in section(cohort.write_subject("P1")).lower()


def test_pictures_show_t1w_pet_and_map_through_the_peak(made):
    (told,) = findings_of(made.out, "P1", (T,))
    for found, row in zip(told["clusters"], rows_of(made), strict=True):
        figure = found.figure
        ((_, tiles),) = figure.frames
        assert len(tiles) == 6 + 2  # scores are overlaid on two of them
        words = [text.words for text in figure.texts]
        assert words.count("T1w") == words.count("PET") == words.count("z score") == 2
        z, y = float(row["peak_z"]), float(row["peak_y"])
        axial, coronal = ([w for w in words if w.startswith(x)] for x in ("z =", "y ="))
        for value, told_places in ((z, axial), (y, coronal)):
            assert len(told_places) == 3
            number = float(told_places[0].partition("= ")[2].rstrip(" m").replace("−", "-"))
            assert number == pytest.approx(value, abs=0.51)
        assert max(tile.spot.x + tile.spot.width for tile in tiles) <= figure.width
        assert {name for name, *_ in figure.lines} == {"this cluster", "known lesion"}


def test_what_cannot_be_pictured_is_told_and_the_words_stay(cohort):
    pet = cohort.out / f"sub-P1/pet/sub-P1_trc-18FFDG_space-{T}_desc-preproc_pet.nii.gz"
    pet.unlink()
    (told,) = findings_of(cohort.out, "P1", (T,))
    words = [text.words for text in told["clusters"][0].figure.texts]
    assert words.count("PET: no image") == 2
    (cohort.out / f"sub-P1/anat/sub-P1_space-{T}_desc-preproc_T1w.nii.gz").unlink()
    (told,) = findings_of(cohort.out, "P1", (T,))
    assert "desc-preproc_T1w.nii.gz is missing" in told["faults"][0]
    assert all(found.figure is None for found in told["clusters"])
    assert "held-out controls" in section(cohort.write_subject("P1"))


def test_maps_of_an_earlier_run_are_no_findings(cohort):
    cohort.record(without=["zscore"])
    (told,) = findings_of(cohort.out, "P1", (T,))
    assert "(detector: OC-SVM)" in told["summary"]
    cohort.record(without=["sub-P1"])
    assert findings_of(cohort.out, "P1", (T,)) == []


def test_a_patient_without_clusters_is_told(cohort):
    for path in cohort.out.glob("sub-P1/pet/*_clusters.tsv"):
        write_tsv(path, list(read_tsv(path)[0]), [])
    (told,) = findings_of(cohort.out, "P1", (T,))
    assert told["summary"] == "No cluster of z score was found."
    assert told["clusters"] == []


def test_the_command_of_the_group_level_is_in_the_methods(cohort):
    cohort.write(command="mri2pet IN OUT group --nu 0.05", versions={"mri2pet": "9.9"})
    page = cohort.write_subject("P1")
    methods = re.search(r'<section id="methods".*?</section>', page, re.S)[0]
    assert "mri2pet IN OUT group --nu 0.05" in methods
    assert "Crawford and Howell" in methods


PAPERS = {"A4": (210, 297), "letter": (215.9, 279.4)}  # mm
MARGINS, INCH, PX = 24, 25.4, 96  # mm of both margins; mm and px per inch
PDFTOTEXT = shutil.which("pdftotext")


GROWN = """
    const [first, second, ...lesions] = document.querySelectorAll(".finding");
    second.after(second.cloneNode(true));
    for (let n = 0; n < %d; n++) lesions[0].after(second.cloneNode(true));
    lesions.forEach(lesion => lesion.remove());
"""


@pytest.fixture
def browser(tmp_path):
    one = Browser(tmp_path / "profile")
    yield one
    one.close()


needs_browser = pytest.mark.skipif(
    not (CHROMIUM and BASH), reason="Chromium, or bash that starts it, is not there"
)


@pytest.mark.slow
@needs_browser
def test_three_clusters_and_three_missed_lesions_fit_on_the_first_printed_page(made, browser):
    made.write_subject("P1")
    browser.open(made.out / "sub-P1.html")
    browser.run(GROWN % 3)
    assert browser.run("document.querySelectorAll('.finding figure').length") == 6
    for scheme in ("light", "dark"):
        preferred = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.ask("Emulation.setEmulatedMedia", browser.page, media="print", features=preferred)
        assert browser.run("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
        for sides in PAPERS.values():
            width, height = (round((side - MARGINS) * PX / INCH) for side in sides)
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.ask("Emulation.setDeviceMetricsOverride", browser.page, **size)
            end = "document.getElementById('findings').getBoundingClientRect().bottom"
            assert height / 2 < browser.run(end) < height


@pytest.mark.slow
@needs_browser
@pytest.mark.skipif(PDFTOTEXT is None, reason="pdftotext is not there")
def test_more_findings_break_between_one_another(made, browser, tmp_path):
    made.write_subject("P1")
    browser.open(made.out / "sub-P1.html")
    browser.run(GROWN % 9)
    printed = browser.ask("Page.printToPDF", browser.page, paperWidth=8.27, paperHeight=11.69)
    pdf = tmp_path / "page.pdf"
    pdf.write_bytes(base64.b64decode(printed["data"]))
    told = subprocess.run([PDFTOTEXT, pdf, "-"], capture_output=True, text=True, check=True).stdout
    first, second, *_ = told.split("\f")
    assert first.count("held-out controls have") + first.count("held-out controls has") > 5
    assert "held-out controls ha" in second
