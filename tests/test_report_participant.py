import base64
import io
import json
import os
import re

import numpy as np
import pytest
from pages import Reader, decode, rgba, section, text_of
from PIL import Image as Pillow
from scipy import ndimage

from bids_app import nifti
from bids_app.derivatives.detections import ScoredRun, ScoredSubject, write_run
from bids_app.detection.detectors import DETECTORS
from bids_app.files import read_json, read_tsv, write_tsv
from bids_app.imaging.volume import grid_of_box
from bids_app.report.figures import (
    PLANES,
    Layer,
    Scale,
    Section,
    crop,
    cut,
    field_around,
    mosaic,
    paint,
    position_of,
    reorient_to_ras,
    spread,
    tissue_levels,
    trace,
)
from bids_app.report.methods import bibtex_of, read_references, write_citation, write_methods
from bids_app.report.overview import overview_path
from bids_app.report.participant import is_current, shared_sources, write_subject_report
from bids_app.report.results import read_novelty, read_registration

T = "MNI152NLin2009aSym_res-6"
GENERATOR = {
    "Name": "default",
    "Version": "0.1.0",
    "SHA256": "ab" * 32,
    "TrainedOn": "Simulated T1w and PET.",
    "IntendedUse": "A demonstration.",
}
REGISTRATION = {"SimilarityBefore": 1.04, "SimilarityAfter": 1.21, "DiceBrainMask": 0.97}
RUN = {
    "notes": ["Run 1 is used."],
    "problems": ["One PET frame had no time."],
    "versions": {"mri2pet": "9.8.7", "simpleitk": "2.5.7"},
    "date": "2026-01-02",
    "command": "mri2pet IN OUT participant",
    "duration": 75.0,
}
SECTIONS = ["summary", "anatomy", "coregistration", "pet", "methods", "about"]


UNCERTAINTY = {
    "IntervalFactors": {"50": 0.7, "95": 1.9},
    "MeasuredCoverage": {"50": 0.49, "95": 0.96},
    "CorrelationWithAbsoluteError": 0.31,
}


class Tree:
    """Small derivative dataset, with an ellipsoid as the brain."""

    def __init__(self, root):
        self.out = root / "out"
        self.template = root / "template.nii.gz"
        grid = grid_of_box((-78, -112, -50, 78, 76, 85), 6.0)
        axes = [np.linspace(-1.15, 1.15, side) for side in grid.shape]
        radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
        self.brain, self.affine = radius < 1, grid.affine
        self.t1w = np.where(self.brain, 0.3 + 0.6 * (radius < 0.6), 0).astype(np.float32)
        self.pet = np.where(self.brain, 0.9 - 0.5 * (radius < 0.6), 0).astype(np.float32)
        root.mkdir(exist_ok=True)
        nifti.save(nifti.Image(self.t1w, self.affine), self.template)

    def put(self, name, data, **metadata):
        parts = name.split("_")
        folders = [part for part in parts if part.startswith(("sub-", "ses-"))]
        modality = "pet" if name.endswith(("pet", "std")) else "anat"
        path = self.out.joinpath(*folders, modality, f"{name}.nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        nifti.save(nifti.Image(data, self.affine), path)
        path.with_name(f"{name}.json").write_text(json.dumps(metadata))
        return path

    def add_anatomy(self, stem="sub-01", **registration):
        raw = ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
        self.put(f"{stem}_desc-preproc_T1w", self.t1w * 500, Sources=raw)
        self.put(f"{stem}_desc-brain_mask", self.brain)
        told = {**REGISTRATION, **registration}
        self.put(f"{stem}_space-{T}_desc-preproc_T1w", self.t1w, Registration=told)
        self.put(f"{stem}_space-{T}_desc-brain_mask", self.brain)

    def add_synthetic(self, stem="sub-01", **metadata):
        told = {"Synthetic": True, "Generator": GENERATOR, "SmoothingFWHM": 1.5, **metadata}
        self.put(f"{stem}_trc-18FFDG_space-{T}_desc-synth_pet", self.pet, **told)

    def add_uncertainty(self, stem="sub-01", **metadata):
        told = {"Synthetic": True, "Uncertainty": UNCERTAINTY, **metadata}
        self.put(f"{stem}_trc-18FFDG_space-{T}_desc-synth_std", self.pet / 20, **told)

    def add_pet(self, stem="sub-01", home="sub-01", **metadata):
        session = "".join(f"{part}/" for part in home.split("_") if part.startswith("ses-"))
        reference = f"bids::sub-01/{session}anat/{home}_desc-preproc_T1w.nii.gz"
        told = {"SpatialReference": reference, "Units": "Bq/mL", "FramesUsed": [0, 1], **metadata}
        self.put(f"{stem}_trc-18FFDG_space-T1w_desc-preproc_pet", self.pet * 9000, **told)
        real = np.clip(self.pet * 0.9, 0, 1)
        self.put(f"{stem}_trc-18FFDG_space-{T}_desc-preproc_pet", real, Registration=REGISTRATION)

    def write(self, **run):
        path = write_subject_report(self.out, "01", template_t1w=self.template, **run)
        return path.read_text(encoding="utf-8")


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.fixture
def whole(tree):
    tree.add_anatomy()
    tree.add_synthetic(Measures={"SSIM": 0.8767, "PSNR": 23.42, "SSIMBrain": 0.7, "PSNRBrain": 19})
    tree.add_pet()
    return tree


def oriented(codes, turn_degrees=0):
    """Return the affine of 4 mm voxels with axes that point to the given letters."""
    directions = {"R": (1, 0, 0), "A": (0, 1, 0), "S": (0, 0, 1)}
    opposite = {"L": "R", "P": "A", "I": "S"}
    columns = [
        np.array(directions[code]) if code in directions else -np.array(directions[opposite[code]])
        for code in codes
    ]
    angle = np.deg2rad(turn_degrees)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.stack(columns, axis=1) @ np.diag([4.0, 5.0, 6.0])
    return affine


def head_with_a_mark(codes, turn, place):
    """Return a volume that is bright near one point (mm, RAS+), and dark elsewhere."""
    shape, affine = (24, 22, 20), oriented(codes, turn)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    bright = (np.linalg.norm(world - place, axis=-1) < 9).astype(np.float32)
    return nifti.Image(bright, affine)


@pytest.mark.parametrize(
    ("codes", "turn"),
    [("RAS", 0), ("LAS", 0), ("LIA", 0), ("PSR", 0), ("RAS", 20), ("LIA", -25), ("IPL", 15)],
)
def test_what_is_left_is_drawn_below_the_letter_l(codes, turn):
    place = np.array([-22.0, 14.0, 9.0])  # left, anterior, superior
    image = reorient_to_ras(head_with_a_mark(codes, turn, place))
    where = np.unravel_index(image.data.argmax(), image.data.shape)
    sections = [
        Section(plane, int(where[axis])) for plane, axis in zip(PLANES, (2, 1, 0), strict=True)
    ]
    layer = Layer("T1w", image, Scale("gray", 0, 1, "T1w"))
    figure = mosaic("mark", [layer], sections)
    for tile in figure.frames[0][1]:
        picture, spot = decode(tile.href), tile.spot
        row, column = ndimage.center_of_mass(picture > 128)
        x = spot.x + (column + 0.5) / picture.shape[1] * spot.width
        letters = [text for text in figure.texts if text.words in {"L", "R", "A", "P"}]
        beside = [text for text in letters if spot.x <= text.x <= spot.x + spot.width]
        nearest = min(beside, key=lambda text: abs(text.x - x))
        assert nearest.words == ("A" if spot.section.plane == "sagittal" else "L")
        assert row < (picture.shape[0] - 1) / 2  # anterior, or superior, is at the top


@pytest.mark.parametrize("codes", ["RAS", "LPI", "LIA", "SRP"])
def test_turning_moves_nothing_in_the_world(codes):
    place = np.array([-22.0, 14.0, 9.0])
    image = head_with_a_mark(codes, 10, place)
    turned = reorient_to_ras(image)
    middle = ndimage.center_of_mass(turned.data)
    assert turned.affine[:3, :3] @ middle + turned.affine[:3, 3] == pytest.approx(place, abs=1.5)
    assert (np.diag(turned.affine)[:3] > 0).all()
    assert sorted(turned.zooms) == pytest.approx(sorted(image.zooms))


def test_slices_keep_their_place_and_shape_when_cropped():
    image = reorient_to_ras(head_with_a_mark("LIA", 0, np.array([-22.0, 14.0, 9.0])))
    field = field_around(image.data > 0, image.zooms, 8)
    part = crop(image, field)
    (section,) = spread(image.data > 0, "axial", 1)
    (inside,) = spread(part.data > 0, "axial", 1)
    assert position_of(part, inside) == pytest.approx(position_of(image, section))
    assert part.data.sum() == image.data.sum()
    assert part.data.size < image.data.size
    width, height = part.data.shape[0], part.data.shape[1]
    assert cut(part.data, inside).shape == (height, width)


def test_slices_are_spread_over_what_is_there():
    mask = np.zeros((4, 4, 50), bool)
    mask[:, :, 20:33] = True
    assert [section.index for section in spread(mask, "axial", 3)] == [23, 26, 29]
    assert len(spread(np.zeros_like(mask), "axial", 3)) == 3


def test_a_difference_of_zero_is_white_and_signs_have_colours():
    scale = Scale("RdBu_r", -0.5, 0.5, "difference")
    row = np.array([[-0.5, 0, 0.5, np.nan]], np.float32)
    content = base64.b64decode(paint(row, scale).partition(",")[2])
    below, zero, above, odd = np.asarray(Pillow.open(io.BytesIO(content)).convert("RGB"), int)[0]
    assert zero.min() > 240
    assert odd.min() > 240
    assert below[2] > below[0]
    assert above[0] > above[2]


@pytest.mark.parametrize("colours", ["gray", "inferno"])
def test_pictures_of_noise_take_less_than_half_a_byte_a_pixel(rng, colours):
    noisy = (0.6 + rng.normal(0, 0.03, (200, 160))).astype(np.float32)
    assert len(paint(noisy, Scale(colours, 0, 1, ""))) < 0.5 * noisy.size


def test_levels_part_three_tissues(rng):
    shares = (600, 6400, 5000)  # with so little CSF that the search starts from a wrong value
    tissues = np.repeat([0.2, 0.55, 0.9], shares).reshape(30, 20, 20)
    noisy = (tissues + rng.normal(0, 0.02, tissues.shape)).astype(np.float32)
    lower, upper = tissue_levels(noisy, np.ones(noisy.shape, bool))
    assert 0.3 < lower < 0.45
    assert 0.65 < upper < 0.8


def test_a_line_runs_round_what_it_outlines():
    disk = np.zeros((40, 20), np.float32)
    disk[10:30, 5:15] = 1
    path = trace(disk, 0.5, (60.0, 40.0))  # voxels of 3 × 1 mm
    start, steps = re.fullmatch(r"M([-\d. ]+)l([-\d. ]+)", path).groups()
    moves = np.array([*map(float, start.split()), *map(float, steps.split())]).reshape(-1, 2)
    points = moves.cumsum(axis=0)
    assert points.min(axis=0) == pytest.approx([15, 10], abs=1)
    assert points.max(axis=0) == pytest.approx([45, 30], abs=1)


def test_the_first_visible_line_says_synthetic(whole):
    page = whole.write(**RUN)
    reader = Reader(page)
    assert reader.text[0].startswith(
        "SYNTHETIC — the PET marked 'synthetic' in this report was predicted from MRI; "
        "it is not a measurement and not for diagnosis"
    )
    banner = "is meant for demonstration and trained on simulated images"
    assert f"generator “default” (version 0.1.0) {banner}" in reader.text[1]
    for told in ("version 0.1.0", "ab" * 32, "Simulated T1w and PET."):
        assert told in text_of(section(page, "pet"))


def test_a_generator_for_real_work_is_not_called_a_demonstration(tree):
    tree.add_anatomy()
    real = {"TrainedOn": "FDG PET of 35 controls.", "IntendedUse": "Research."}
    tree.add_synthetic(Generator={**GENERATOR, **real})
    page = tree.write(**RUN)
    assert "FDG PET of 35 controls." in page
    assert "Train a generator on your own data" not in page


def test_the_page_fetches_nothing(whole):
    page = whole.write(**RUN)
    reader = Reader(page)
    assert reader.links
    assert all(
        link.startswith(("data:image/", "#")) for link in {*reader.links} - {"participants.html"}
    )
    assert not {"link", "script", "iframe", "object"} & set(reader.tags)
    assert not re.search(r"url\(|@import", page)


def test_every_section_is_there_in_order(whole):
    reader = Reader(whole.write(**RUN))
    assert [name for name in reader.ids if name in SECTIONS] == SECTIONS
    assert len(reader.ids) == len(set(reader.ids))
    text = " ".join(reader.text)
    for told in (
        *("Run 1 is used.", "One PET frame had no time.", "1.210", "0.970", "0.877", "23.4"),
        *("SYNTHETIC PET", "Real PET", "Synthetic − real", "Bq/mL", "sub-01/anat/sub-01_T1w"),
        *("mri2pet 9.8.7", "simpleitk 2.5.7", "1 min 15 s", "2026-01-02", RUN["command"]),
    ):
        assert told in text
    assert "No figure." not in text


def test_pictures_have_words_for_those_who_do_not_see_them(whole):
    page = whole.write(**RUN)
    figures = re.findall(r"<svg viewBox[^>]*role=\"img\"[^>]*>\s*<title[^>]*>(.+?)</title>", page)
    assert len(figures) == 6  # mask, T1w, PET, and three blocks of slices
    assert page.count("<desc ") == 6
    assert len(re.findall(r'class="flicker"', page)) == 2


def test_pet_to_t1w_shows_both_images_under_the_same_lines(whole):
    page = whole.write(**RUN)
    section = page[page.index('id="coregistration"') : page.index('id="pet"')]
    before, after = re.findall(r'<g class="(?:before|after)">.*?</g>', section, re.S)
    places = [re.findall(r"<image (.+?) preserve", frame) for frame in (before, after)]
    assert places[0] == places[1]
    grey, coloured = (Reader(frame).links for frame in (before, after))
    assert all(np.ptp(rgba(href)[..., :3], axis=-1).max() < 4 for href in grey)
    assert all(np.ptp(rgba(href)[..., :3], axis=-1).max() > 50 for href in coloured)
    assert len(re.findall(r'<g class="line"', section)) == 2


def test_a_participant_without_pet(tree):
    tree.add_anatomy()
    tree.add_synthetic()
    text = text_of(tree.write(**RUN))
    assert text.startswith("SYNTHETIC")
    assert "No PET of this participant was processed." in text
    assert "no real PET can be shown beside it" in text
    assert "Real PET" not in text
    assert "No figure." not in text
    assert "Norgaard" not in text  # PET-BIDS is cited only if there is PET


def test_a_participant_who_was_only_preprocessed(tree):
    tree.add_anatomy()
    tree.add_pet()
    page = tree.write(**RUN)
    assert Reader(page).text[0] == "sub-01"
    assert "SYNTHETIC" not in page
    assert "Real PET in the space of the template" in page


def test_a_participant_of_whom_nothing_was_written(tree):
    tree.out.mkdir()
    text = text_of(tree.write(**RUN))
    assert "No image of this participant was written." in text
    assert RUN["problems"][0] in text


def test_a_pet_is_shown_with_the_t1w_it_lies_on(tree):
    for session in ("ses-a", "ses-b"):
        tree.add_anatomy(f"sub-01_{session}")
        tree.add_synthetic(f"sub-01_{session}")
    tree.add_pet("sub-01_ses-c", home="sub-01_ses-b")
    page = tree.write(**RUN)
    assert "T1w, SYNTHETIC PET and real PET (sub-01, ses-c)" in page
    assert "T1w and SYNTHETIC PET (sub-01, ses-a)" in page
    assert "T1w and SYNTHETIC PET (sub-01, ses-b)" not in page
    coregistration = page[page.index('id="coregistration"') : page.index('id="pet"')]
    assert "T1w (sub-01, ses-b)" in coregistration
    assert "T1w (sub-01, ses-a)" not in coregistration


@pytest.mark.parametrize(
    "name",
    [
        "anat/sub-01_desc-preproc_T1w",
        "anat/sub-01_desc-brain_mask",
        f"anat/sub-01_space-{T}_desc-preproc_T1w",
        f"anat/sub-01_space-{T}_desc-brain_mask",
        "pet/sub-01_trc-18FFDG_space-T1w_desc-preproc_pet",
        f"pet/sub-01_trc-18FFDG_space-{T}_desc-preproc_pet",
        f"pet/sub-01_trc-18FFDG_space-{T}_desc-synth_pet",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_lost_image_does_not_lose_the_report(whole, name, damage):
    path = whole.out / "sub-01" / f"{name}.nii.gz"
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    reader = Reader(whole.write(**RUN))
    text = " ".join(reader.text)
    assert text.startswith("SYNTHETIC")
    assert [section for section in reader.ids if section in SECTIONS] == SECTIONS
    assert "No figure." in text
    assert path.name in text
    assert "svg" in reader.tags


def test_a_lost_real_pet_leaves_the_synthetic_one_in_sight(whole):
    whole.out.joinpath(
        "sub-01", "pet", f"sub-01_trc-18FFDG_space-{T}_desc-preproc_pet.nii.gz"
    ).unlink()
    assert "T1w and SYNTHETIC PET (sub-01)" in whole.write(**RUN)


def test_a_lost_template_is_named(whole):
    whole.template.unlink()
    text = text_of(whole.write(**RUN))
    assert "template.nii.gz is missing" in text
    assert "Real PET" in text


def test_an_image_on_another_grid_is_not_drawn(whole):
    stem = f"sub-01_trc-18FFDG_space-{T}_desc-synth_pet"
    whole.affine = whole.affine + np.eye(4)[:, [3]] @ np.zeros((1, 4))
    whole.affine[0, 3] += 6
    whole.put(stem, whole.pet, Generator=GENERATOR)
    assert f"{stem}.nii.gz is not on the expected grid" in whole.write(**RUN)


@pytest.mark.parametrize("content", ["{", "[1]", '{"Registration": 3, "Sources": "x"}'])
def test_an_odd_sidecar_does_not_lose_the_report(whole, content):
    for path in whole.out.rglob("*.json"):
        path.write_text(content)
    text = text_of(whole.write(**RUN))
    assert "Not measured." in text
    assert "No figure." not in text


def test_odd_values_are_escaped(whole):
    odd = "<script>alert(1)</script> & \"'"
    whole.add_synthetic(Generator={**GENERATOR, "Name": odd, "TrainedOn": odd})
    whole.add_pet(Units=odd)
    page = whole.write(**{**RUN, "notes": [odd], "problems": [odd], "command": odd, "date": odd})
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; " in page


def test_a_report_written_again_from_disk_is_the_same(whole):
    first = whole.write(**RUN)
    assert whole.write() == first


def test_what_a_run_says_anew_replaces_what_was_kept(whole):
    whole.write(**RUN)
    page = whole.write(problems=[])
    assert RUN["problems"][0] not in page
    assert RUN["notes"][0] in page
    assert whole.write() == page


@pytest.mark.parametrize(
    ("before", "after", "dice", "flagged"),
    [
        *((1.0, 1.2, 0.95, False), (1.0, 1.2, 0.9, False), (1.0, 1.2, 0.89, True)),
        *((1.2, 1.1, 0.95, True), (1.2, 1.1, None, True), (None, None, None, False)),
    ],
)
def test_bad_registrations_are_flagged(before, after, dice, flagged):
    assert read_registration(before, after, dice)[1] is flagged


def test_a_bad_registration_is_a_warning_at_the_top(tree):
    tree.add_anatomy(DiceBrainMask=0.5)
    page = tree.write(**RUN)
    assert 'class="flagged"' in page
    assert page.index("overlap by only 50 %") < page.index("<caption>Images")


@pytest.mark.parametrize(
    ("verdict", "words"), [("pass", "It fits."), ("doubt", "IN DOUBT: r is"), ("fail", "FAILED: r")]
)
def test_the_verdict_comes_first(tree, verdict, words):
    reasons = [] if verdict == "pass" else ["r is .1"]
    tree.add_anatomy(DiceBrainMask=0.5, Verdict=verdict, VerdictReasons=reasons)
    page = tree.write(**RUN)
    table = page[page.index("Registrations</caption>") :]
    assert table.index(f"<td>{verdict}</td>") < table.index("1.040") < table.index(words)
    assert (page.index(words) < page.index("<caption>Images")) == (verdict != "pass")


def test_a_failure_is_told_once_at_the_top(tree):
    tree.add_anatomy(Verdict="fail", VerdictReasons=["r is .1", "it is tilted"])
    failed = "sub-1: t1w.nii.gz: its registration failed: r is .1; it is tilted. Look at it"
    for problems, told in (([failed], 1), (["sub-1: another problem"], 2)):
        page = tree.write(**{**RUN, "problems": problems})
        top = page[: page.index("<caption>Images")]
        assert top.count("<li>") == told
        assert top.count("r is .1; it is tilted") == 1
        overview = read_json(overview_path(tree.out, "01"))
        assert overview["warnings"] == told


def test_a_generator_that_knew_the_participant_is_a_warning(tree):
    tree.add_anatomy()
    tree.add_synthetic(TrainedOnThisParticipant=True)
    assert "was trained on this participant" in tree.write(**RUN)


# Options beyond the paper

NOVELTY = {
    "Value": 1.1,
    "TrainingControls": 9,
    "TrainingControlsLowest": 0.9,
    "TrainingControlsHighest": 1.2,
    "BeyondTrainingControls": False,
}


def test_without_options_nothing_beyond_the_paper_is_told(whole):
    page = whole.write()
    for words in ("training controls", "Uncertainty", "Triplets", "quantile", "cubes of 8 mm"):
        assert words not in page


@pytest.mark.parametrize(("value", "flagged"), [(1.1, False), (1.2, False), (3.4, True)])
def test_novelty_is_told_beside_that_of_the_training_controls(tree, value, flagged):
    tree.add_anatomy()
    tree.add_synthetic(Novelty={**NOVELTY, "Value": value})
    page = tree.write()
    text = text_of(page)
    assert f"{value:.2f} 0.90 to 1.20 (n = 9)" in text
    assert ('<tr class="flagged"><th scope="row">sub-01</th>' in page) is flagged
    assert ("T1w (sub-01): UNLIKE" in text) is flagged
    assert ("No problems were reported." in text) is not flagged


@pytest.mark.parametrize(
    ("value", "highest", "flagged"),
    [(None, 1.2, False), (1.1, None, False), (1.2, 1.2, False), (1.21, 1.2, True)],
)
def test_only_a_t1w_beyond_all_training_controls_is_flagged(value, highest, flagged):
    assert read_novelty(value, highest)[1] is flagged


@pytest.mark.parametrize(
    "told", [{"Value": 2.0}, {"Value": None}, {"Value": "a"}, {}, "odd", {**NOVELTY, "Value": True}]
)
def test_an_odd_novelty_does_not_lose_the_report(tree, told):
    tree.add_anatomy()
    tree.add_synthetic(Novelty=told)
    assert "UNLIKE" not in tree.write()


def test_the_map_of_uncertainty_is_shown_under_the_synthetic_pet(whole):
    whole.add_uncertainty()
    reader = Reader(whole.write())
    text = " ".join(reader.text)
    assert "Uncertainty of the SYNTHETIC PET (sub-01)" in text
    assert "within 0.7 SD of the synthetic one in 49 % of brain voxels (nominal: 50 %)" in text
    assert "within 1.9 SD" in text
    assert "r = 0.31" in text
    assert "SD of the error, as predicted" in text
    assert "No figure." not in text
    assert len([link for link in reader.links if link.startswith("data:image/webp")]) > 24


def test_a_map_of_uncertainty_of_another_run_is_not_shown_but_told(tree):
    tree.add_anatomy()
    tree.add_synthetic(Fingerprint="new")
    tree.add_uncertainty(Fingerprint="old")
    text = text_of(tree.write())
    assert "sub-01: the map of uncertainty (desc-synth_std) is not shown" in text
    assert "Uncertainty of the SYNTHETIC PET" not in text
    assert "The standard deviation of its error" not in text


def test_a_lost_map_of_uncertainty_does_not_lose_the_report(whole):
    whole.add_uncertainty()
    (path,) = whole.out.rglob("*_std.nii.gz")
    path.write_bytes(b"damaged")
    text = text_of(whole.write())
    assert "No figure." in text
    assert "Synthetic − real" in text


def test_a_lost_sidecar_of_the_map_of_uncertainty_is_told(whole):
    whole.add_uncertainty()
    (path,) = whole.out.rglob("*_std.json")
    path.unlink()
    assert "_desc-synth_std.json is missing" in text_of(whole.write())


BEYOND = {
    "Triplets of slices began at every slice": {"OverlappingTripletsAveraged": True},
    "mapped, quantile by quantile": {"HistogramMatchedTo": "the mean"},
    "The T1w image was compared with those": {"Novelty": NOVELTY},
    "The standard deviation of its error was predicted": {},
}


@pytest.mark.parametrize("told", BEYOND)
def test_methods_tell_what_was_done_beyond_the_paper_and_nothing_else(tree, told):
    tree.add_anatomy()
    tree.add_synthetic(**BEYOND[told])
    if not BEYOND[told]:
        tree.add_uncertainty()
    text = text_of(tree.write())
    assert {words for words in BEYOND if words in text} == {told}


def test_methods_name_tools_with_versions_and_cite_what_was_done():
    versions = {"mri2pet": "1.2.3", "deepbet": "4.5.6", "torch": "7.8.9"}
    plain = write_methods("participant", versions, {})
    done = {"pet": True, "frames_averaged": True, "generator": GENERATOR, "compared": True}
    full = write_methods("participant", versions, done)
    for told in ("mri2pet 1.2.3", "deepbet 4.5.6", "Avants BB", "Tustison NJ", "Fonov VS"):
        assert told in plain
    for told in ("PyTorch 7.8.9", "Zhu J-Y", "Wang Z", "Norgaard M", "default 0.1.0", "averaged"):
        assert told in full
        assert told not in plain
    assert "Fisch L" not in write_methods("participant", versions, {"skull_stripped": True})
    assert "Ciric R" in write_methods("participant", versions, {"template": "MNIPediatricAsym"})


def test_every_reference_is_cited_somewhere():
    texts = [
        write_methods(
            "participant",
            {},
            {"template": template, "pet": True, "generator": GENERATOR, "compared": True}
            | {"uncertainty": True},
        )
        for template in ("MNI152NLin2009aSym", "MNI152NLin6Asym")
    ]
    titles = read_references()["participant"].values()
    assert len(titles) > 10
    assert all(any(title in text for text in texts) for title in titles)


CITED = re.compile(r"[A-ZÀ-Þ][\w-]+(?: (?:et al\.|and [A-ZÀ-Þ]\w+))?, \d{4}")


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("participant", {"template": "MNI152NLin2009aSym", "pet": True, "generator": GENERATOR}),
        ("participant", {"template": "MNI152NLin6Asym", "uncertainty": True, "compared": True}),
        ("group", {"detectors": [*DETECTORS], "evaluated": True, "tested": True, "free": True}),
    ],
)
def test_everything_cited_has_a_reference(level, told):
    body, _, listed = write_methods(level, {}, told).partition("References")
    cited = set(CITED.findall(" ".join(body.split())))
    assert len(cited) > 8
    for one in cited:
        name, year = re.split(r"\W", one)[0], one[-4:]
        assert re.search(rf"^- {name} .*\({year}\)\.", listed, re.MULTILINE), one


# Uptake by region


def write_regions(tree, label, ratio):
    """Write a table of two regions; the right one of the real PET has a different ratio."""
    columns = ["pet", "region", "volume", "mean", "ratio_brain", "ratio_cerebellum", "ratio_pons"]
    rows = [
        dict(zip(columns, (kind, region, 800, 0.4, value, 1.1, "n/a"), strict=True))
        | {"asymmetry": -12.5}
        for kind, value in (("real", ratio), ("synthetic", 1.0))
        for region in ("left insula", "right insula")
    ]
    path = tree.out / f"sub-{label}/pet/sub-{label}_trc-18FFDG_desc-regions_pet.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tsv(path, [*columns, "asymmetry"], rows)


def test_uptake_by_region_is_shown_against_controls(tree):
    tree.add_anatomy()
    tree.add_synthetic()
    assert 'id="regions"' not in tree.write()
    write_regions(tree, "01", 1.4)
    assert "t needs a run of the group level with 3 controls or more." in tree.write()
    for label, ratio in (("c1", 1.0), ("c2", 1.1), ("c3", 1.2)):
        write_regions(tree, label, ratio)
    maps = [
        ScoredSubject(label, "", "real", "zscore", label != "01", f"{label}.nii.gz")
        for label in ("01", "c1", "c2", "c3")
    ]
    write_run(tree.out, ScoredRun("x", maps))
    page = " ".join(text_of(tree.write()).replace("−", "-").split())
    expected = (1.4 - 1.1) / (0.1 * np.sqrt(4 / 3))
    assert f"left insula 1.40 {expected:.1f} 1.10 -12.5 1.00 1.10 -12.5" in page
    assert "t compares the ratio to the brain mean with that of 3 controls" in page
    path = tree.out / "sub-01/pet/sub-01_trc-18FFDG_desc-regions_pet.tsv"
    rows = [row for row in read_tsv(path) if row["pet"] == "synthetic"]
    write_tsv(path, list(rows[0]), rows)
    regions = text_of(tree.write()).partition("Uptake by region")[2].replace("−", "-")
    assert "Real PET" not in regions
    assert "left insula 1.00 1.10 -12.5 right insula" in " ".join(regions.split())


def test_the_citation_keeps_what_other_levels_told_and_cites_all_of_them(tmp_path):
    text = "Made with x.\n\nReferences\n\n- Holm S (1979). A simple test. Scand J Stat 6:65-70\n"
    write_citation(tmp_path, "train", text)
    write_citation(tmp_path, "participant", "first")
    write_citation(tmp_path, "participant", "Made with y.")
    told = (tmp_path / "logs" / "CITATION.md").read_text()
    assert told == f"# participant\n\nMade with y.\n\n# train\n\n{text}\n"
    assert (tmp_path / "logs" / "CITATION.bib").read_text().count("@misc{Holm1979A,") == 1


def test_every_reference_can_be_written_as_bibtex():
    listed = {text for section in read_references().values() for text in section.values()}
    entries = [bibtex_of(text) for text in listed]
    assert all(entries)
    assert len({entry.partition(",")[0] for entry in entries}) == len(entries)


def changes():
    """Name what a report depends on, and change it; the last change is of a time, not a content."""

    def touch(tree, pattern):
        path = next(tree.out.glob(pattern))
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))

    def group(tree, label, *, control):
        path = f"sub-{label}/pet/x_statmap.nii.gz"
        scored = ScoredSubject(label, None, "real", "zscore", control, path)
        write_run(tree.out, ScoredRun("d", [scored]))

    def uptake_of_a_control(tree):
        group(tree, "02", control=True)
        tree.write()
        table = tree.out / "sub-02" / "pet" / "sub-02_desc-regions_pet.tsv"
        table.parent.mkdir(parents=True)
        table.write_text("pet\tregion\tmean\n")
        group(tree, "02", control=True)

    def detector_elsewhere(tree):
        folder = tree.template.with_name("detector")
        folder.mkdir()
        (folder / "control_clusters.tsv").write_text("a\n")
        (tree.out / "logs").mkdir(exist_ok=True)
        told = {"settings": {"detector": str(folder)}}
        (tree.out / "logs" / "group_report.json").write_text(json.dumps(told))
        tree.write()
        (folder / "control_clusters.tsv").write_text("a\tb\n")

    return {
        "image": lambda tree: touch(tree, "sub-01/anat/*_T1w.nii.gz"),
        "sidecar": lambda tree: touch(tree, "sub-01/**/*synth_pet.json"),
        "new image": lambda tree: tree.add_uncertainty(),
        "lost image": lambda tree: next(tree.out.glob("sub-01/**/*synth_pet.nii.gz")).unlink(),
        "template": lambda tree: tree.template.write_bytes(b"other"),
        "page": lambda tree: (tree.out / "sub-01.html").unlink(),
        "line of the table": lambda tree: (tree.out / "logs/sub-01_overview.json").unlink(),
        "run of the group level": lambda tree: group(tree, "01", control=False),
        "uptake of a control": uptake_of_a_control,
        "detector that was applied": detector_elsewhere,
    }


@pytest.mark.parametrize("change", changes())
def test_a_report_is_written_again_where_what_it_rests_on_has_changed(whole, change):
    def current(**told):
        return is_current(whole.out, "01", shared_sources(whole.out, whole.template), **told)

    assert not current()
    whole.write(**RUN)
    assert current()
    changes()[change](whole)
    assert not current()
    whole.write()
    assert change in ("template",) or current()


def test_a_report_is_written_again_where_the_run_tells_something_else(whole):
    def current(**told):
        return is_current(whole.out, "01", shared_sources(whole.out, whole.template), **told)

    whole.write(**RUN)
    assert current(notes=RUN["notes"], problems=RUN["problems"])
    assert not current(notes=RUN["notes"], problems=[])
    assert not current(notes=[], problems=RUN["problems"])
    assert not current(**RUN)  # of a run that has computed results
    (whole.out / "sub-02" / "anat").mkdir(parents=True)
    (whole.out / "sub-02" / "anat" / "sub-02_T1w.json").write_text("{}")
    assert current()  # files of others do not matter
