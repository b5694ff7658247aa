"""``participants.html``: table of all participants, marked outliers, ratings for later levels."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from anomalies import Cohort
from browser import BASH, CHROMIUM, Browser
from pages import Reader, rgba, text_of

from bids_app.derivatives.find import Preprocessed
from bids_app.derivatives.tables import read_ratings
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import read_json, read_tsv, write_json, write_tsv
from bids_app.nifti import Image
from bids_app.plan.cohort import _leave_out_rated
from bids_app.report.figures import Layer, Section, mosaic
from bids_app.report.overview import NUMBERS, keep_overview, overview_path, write_overview
from bids_app.report.panels import UPTAKE, Panel


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    cohort = Cohort(tmp_path_factory.mktemp("overview") / "out")
    for label in ("P1", "P2", "C1"):
        cohort.write_subject(label)
    return cohort


def write_rows(out, count, **odd):
    """Write the measures of this many reports; the fifth is an outlier."""
    for number in range(count):
        numbers = dict.fromkeys(NUMBERS, 0.9 + number / 1000) | (odd if number == 4 else {})
        row = {"visit": f"sub-{number:03}", "t1w": "pass", "pet": "pass", **numbers}
        told = {"rows": [row], "warnings": 0, "thumbnail": ""}
        write_json(out / "logs" / f"sub-{number:03}_overview.json", told)
        (out / f"sub-{number:03}.html").write_text("x")
    return write_overview(out).read_text(encoding="utf-8")


def test_everyone_with_a_report_has_a_row_with_a_thumbnail(made):
    page = write_overview(made.out).read_text(encoding="utf-8")
    reader = Reader(page)
    assert [link for link in reader.links if link.endswith(".html")] == [
        "sub-C1.html",
        "sub-P1.html",
        "sub-P2.html",
    ]
    assert page.count("data:image/jpeg") == 3
    assert "3 visits" in text_of(page)
    assert not re.search(r'(?:src|href)="https?:', page)


def test_a_thumbnail_is_of_the_real_pet_or_else_of_the_synthetic_one(tmp_path):
    grid = np.eye(4)
    t1w, real, synthetic = (
        Layer(name, Image(np.full((6, 6, 6), value, np.float32), grid), UPTAKE)
        for name, value in (("T1w", 0.5), ("Real PET", 0.9), ("SYNTHETIC PET", 0.1))
    )
    sections = (Section("axial", 3),)
    brightness = {}
    for layers in ([t1w, synthetic, real], [t1w, synthetic]):
        keep_overview(tmp_path, "1", [], [Panel("", "", (mosaic("", layers, sections),))])
        record = read_json(overview_path(tmp_path, "1"))
        brightness[record["pictured"]] = rgba(record["thumbnail"])[..., :3].mean()
    assert brightness["Real PET"] > 2 * brightness["SYNTHETIC PET"]
    keep_overview(tmp_path, "1", [], [])
    assert read_json(overview_path(tmp_path, "1"))["thumbnail"] == ""


def test_a_synthetic_thumbnail_is_marked(tmp_path):
    write_rows(tmp_path, 2)
    path = tmp_path / "logs/sub-000_overview.json"
    write_json(path, {**read_json(path), "thumbnail": "data:,", "pictured": "SYNTHETIC PET"})
    page = write_overview(tmp_path).read_text(encoding="utf-8")
    assert 'alt="Slice of the SYNTHETIC PET of sub-000"' in page
    assert page.count("<small>SYNTHETIC</small>") == 1


def test_a_report_that_is_gone_or_a_damaged_record_is_no_row(made, tmp_path):
    out = shutil.copytree(made.out, tmp_path / "out")
    (out / "sub-C1.html").unlink()
    (out / "logs/sub-P2_overview.json").write_text("{")
    (out / "group.html").write_text("x")
    page = write_overview(out).read_text(encoding="utf-8")
    assert [link for link in Reader(page).links if link.endswith(".html")] == [
        "group.html",
        "sub-P1.html",
    ]


def test_numbers_far_from_those_of_others_are_marked(tmp_path):
    page = write_rows(tmp_path, 9, dice=0.2)
    assert page.count('class="number odd"') == 1
    assert '<td class="number odd">0.200</td>' in page
    assert 'class="number odd"' not in write_rows(tmp_path / "few", 7, dice=0.2)


def test_verdicts_are_told_and_doubts_stand_out(tmp_path):
    page = write_rows(tmp_path, 5, t1w="doubt", pet="fail")
    assert '<td class="doubt">doubt</td>' in page
    assert '<td class="fail">fail</td>' in page


def test_500_people_make_a_page_that_stays_small(tmp_path):
    page = write_rows(tmp_path, 500)
    assert page.count("<tr data-participant") == 500
    assert len(page) < 1_000_000


# Ratings


def write_ratings(path, *rows, columns=("participant_id", "session_id", "rating", "comment")):
    write_tsv(path, list(columns), [dict(zip(columns, row, strict=True)) for row in rows])
    return path


def test_ratings_are_read(tmp_path):
    path = write_ratings(
        tmp_path / "r.tsv",
        ("sub-01", "n/a", "fail", "moved a lot"),
        ("02", "ses-b", "PASS", "n/a"),
        ("sub-03", "n/a", "n/a", "n/a"),
    )
    (tmp_path / "sub-01").mkdir()
    found = read_ratings(path, tmp_path)
    assert found == {("01", ""): ("fail", "moved a lot"), ("02", "b"): ("pass", "")}
    path.write_text("participant_id\trating\nsub-01\tfail\nsub-02\n")  # some editors strip tabs
    assert read_ratings(path, tmp_path) == {("01", ""): ("fail", "")}


@pytest.mark.parametrize(
    ("columns", "row", "told"),
    [
        (("participant_id", "rating"), ("sub-01", "bad"), "sub-01: 'bad' is not a rating"),
        (("who", "rating"), ("sub-01", "fail"), "has no columns participant_id and rating"),
        (("participant_id", "rating"), ("sub-1", "fail"), "sub-1: is rated fail, but there is no"),
        (("participant_id", "session_id", "rating"), ("sub-2", "ses-bb", "fail"), "no .*ses-bb;"),
    ],
)
def test_ratings_that_cannot_be_used_are_refused(tmp_path, columns, row, told):
    (tmp_path / "sub-2" / "ses-b").mkdir(parents=True)
    with pytest.raises(UnusableDataError, match=told):
        read_ratings(write_ratings(tmp_path / "r.tsv", row, columns=columns), tmp_path)
    with pytest.raises(MissingInputError, match="no such file"):
        read_ratings(tmp_path / "none.tsv", tmp_path)
    with pytest.raises(MissingInputError, match="is a folder"):
        read_ratings(tmp_path, tmp_path)


@pytest.mark.parametrize("text", ["", "participant_id\n"])
def test_a_table_without_ratings_is_refused(tmp_path, text):
    (tmp_path / "r.tsv").write_text(text)
    with pytest.raises(UnusableDataError, match="has no columns participant_id and rating"):
        read_ratings(tmp_path / "r.tsv", tmp_path)


def test_two_ratings_of_one_person_are_refused(tmp_path):
    (tmp_path / "sub-1").mkdir()
    path = tmp_path / "r.tsv"
    path.write_text("participant_id\trating\nsub-1\tpass\nsub-1\tfail\n")
    with pytest.raises(UnusableDataError, match="sub-1: has two ratings"):
        read_ratings(path, tmp_path)


def visit_of(subject, session, *pets):
    own = f"sub-{subject}_" + (f"ses-{session}_" if session else "")
    images = tuple(Path(f"sub-{subject}_ses-{pet}_desc-preproc_pet.nii.gz") for pet in pets)
    return Preprocessed(subject, session, Path(f"{own}T1w.nii.gz"), Path("mask"), images, None)


def test_whoever_is_rated_fail_is_left_out_of_a_session_or_of_all():
    visits = [
        visit_of(*one)
        for one in (("1", None), ("2", "a", "a", "b"), ("2", "b"), ("3", "a"), ("4", None, "c"))
    ]
    ratings = {
        ("1", ""): ("fail", "wrong person"),
        ("2", "b"): ("fail", ""),
        ("3", ""): ("fail", ""),
        ("4", ""): ("doubt", ""),
    }
    kept, notes = _leave_out_rated(visits, ratings)
    assert kept == [visit_of("2", "a", "a"), visits[-1]]  # without the PET of b on the T1w of a
    assert notes[0] == "sub-1: not used, it was rated fail (wrong person)"
    assert notes[1] == (
        "sub-2 ses-a: sub-2_ses-b_desc-preproc_pet.nii.gz is not used, it was rated fail"
    )
    assert len(notes) == 4


@pytest.fixture
def browser(tmp_path):
    if not (CHROMIUM and BASH):
        pytest.skip("Chromium, or bash that starts it, is not there")
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.mark.slow
def test_in_a_browser_the_table_sorts_filters_and_keeps_ratings(tmp_path, browser):
    write_rows(tmp_path, 9, dice=0.2)
    page = tmp_path / "participants.html"
    browser.open(page)
    first = "document.querySelector('tbody tr:not([hidden])').dataset.participant"
    buttons = "[...document.querySelectorAll('thead button')]"
    head = f"{buttons}.find(button => button.textContent.includes('Dice'))"
    browser.run(f"{head}.click()")
    assert browser.run(first) == "sub-004"  # the lowest comes first
    browser.run(f"{head}.click()")
    assert browser.run(first) == "sub-008"
    browser.run(
        "(f => { f.value = '007'; f.dispatchEvent(new Event('input')); })"
        "(document.getElementById('filter'))"
    )
    assert browser.run(first) == "sub-007"
    browser.run(
        "(s => { s.value = 'fail'; s.dispatchEvent(new Event('change')); })"
        "(document.querySelector('tr[data-participant=\"sub-007\"] select'))"
    )
    browser.open(page)
    kept = browser.run("document.querySelector('tr[data-participant=\"sub-007\"] select').value")
    assert kept == "fail"
    assert browser.run("document.getElementById('rated').textContent") == "1 of 9 rated"
    browser.ask("Emulation.setEmulatedMedia", browser.page, media="print")
    table = "document.querySelector('.wide')"  # of many pages, it begins on the first one
    assert browser.run(f"getComputedStyle({table}).breakInside") == "auto"


@pytest.mark.slow
def test_in_a_browser_neither_headings_nor_names_scroll_away(tmp_path, browser):
    write_rows(tmp_path, 9, dice=0.2)
    size = {"height": 300, "deviceScaleFactor": 1, "mobile": False}
    browser.open(tmp_path / "participants.html")
    for width, cell, side in ((1400, "thead th", "top"), (700, "tbody th", "left")):
        browser.ask("Emulation.setDeviceMetricsOverride", browser.page, width=width, **size)
        browser.run("scrollTo(0, 250); document.querySelector('.wide').scrollLeft = 200")
        box = f"document.querySelector('{cell}').getBoundingClientRect()"
        assert browser.run(f"{box}.{side}") >= 0


def test_what_a_report_leaves_is_plain(made):
    told = read_json(made.out / "logs/sub-P1_overview.json")
    (row,) = told["rows"]
    assert set(row) == {"visit", "t1w", "pet", *NUMBERS}
    assert json.dumps(told)
    assert read_tsv(made.out / "none.tsv") == []
