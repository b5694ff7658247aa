import copy
import json
import math
import re
import shutil
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import Reader, cells_of, decode, drawings_in, section, text_of

from bids_app import nifti
from bids_app.derivatives.paths import sidecar_path
from bids_app.derivatives.table1 import ScoreRow, epochs_of, write_table1
from bids_app.files import write_json, write_tsv
from bids_app.imaging.volume import grid_of_box
from bids_app.report.cards import TrainedModel, find_trained, kept_epoch
from bids_app.report.charts import (
    HALF,
    SERIES,
    best_of,
    cautions_of,
    draw_curves,
    draw_sweeps,
    draw_violins,
    half_widths,
    limits_around,
    new_figure,
    set_axis,
    sweeps_of,
)
from bids_app.report.gallery import choose, draw_gallery
from bids_app.report.methods import describe_specs, read_references, write_methods
from bids_app.report.table1 import (
    BASELINES,
    COLUMNS,
    best_model,
    configuration_of,
    full_name_of,
    least_p,
    matrices,
    table1,
    values_of,
    why_no_lpips,
)
from bids_app.report.train import doubts_of, write_training_report
from bids_app.synthesis.card import card_from
from bids_app.synthesis.evaluation import FWHM_SWEEP, METRICS, ROWS, ScoreRecord, Scores
from bids_app.synthesis.models import (
    CONDITIONED,
    MODELS,
    OVERLAPPING,
    PUBLISHED,
    TRAINABLE,
    spec_to_dict,
)
from bids_app.synthesis.statistics import PairedTest

pytestmark = pytest.mark.slow

TEMPLATE, RESOLUTION = "MNI152NLin2009aSym", 12.0
SPACE = f"space-{TEMPLATE}_res-12"
NEEDED = ("preproc_T1w", "brain_mask")  # without these, no picture is drawn
SHOWN = ("semi3d-gan", "semi3d-cyclegan-mse", "patch3d-gan-mse")
SECTIONS = [
    *("summary", "table1", "tests", "violins", "curves", "smoothing", "pictures", "methods"),
    "about",
]
RUN = {
    "notes": ["sub-09 has no PET."],
    "problems": ["Fold 3 was run twice."],
    "versions": {"mri2pet": "9.8.7", "torch": "2.13.0", "scipy": "1.2.3"},
    "date": "2026-01-02",
    "command": "mri2pet IN OUT train",
    "duration": 7500.0,
    "settings": {"folds": 3, "smoothing_fwhm": 1.5, "models": SHOWN, "lpips_weights": None},
}


def quality(model, n):
    """Return scores that differ by model and participant; higher is better except LPIPS and MAE."""
    first_lines = [row for row in ROWS if row not in OVERLAPPING]
    level = first_lines.index(model) / 100 + n / 1000
    scores = {"ssim": 0.9, "psnr": 25, "lpips": 0.02, "mae": 0.03, "ssim_brain": 0.8}
    scores |= {"psnr_brain": 20, "lpips_brain": 0.04, "mae_brain": 0.06}
    scores |= {"suvr_error": 6, "suvr_bias": 1, "asymmetry_agreement": 0.5}
    less = ("lpips", "mae", "suvr")
    return Scores(**{k: v + (1 if k.startswith(less) else -1) * level for k, v in scores.items()})


class Tree:
    """Results of the train level: five controls, three models, a sphere as the brain."""

    def __init__(self, out, *, lpips=True):
        self.out = out
        self.grid = grid_of_box((-78, -112, -50, 78, 76, 85), RESOLUTION)
        axes = [np.linspace(-1.15, 1.15, side) for side in self.grid.shape]
        radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
        self.brain = radius < 1
        self.pet = np.where(self.brain, 0.5, 0).astype(np.float32)
        self.subjects = [f"{n:02}" for n in range(1, 6)]
        self.records = [
            self._record(model, subject, lpips)
            for model in self.models
            for subject in self.subjects
        ]
        write_table1(out, self.records)
        for subject in self.subjects:
            self.add_control(subject)
        for model in SHOWN:
            self.add_generator(model)

    @property
    def models(self):
        return [*SHOWN, *BASELINES]

    def _record(self, model, subject, lpips):
        scores = vars(quality(model, int(subject)))
        if not lpips:
            scores = {k: math.nan if k.startswith("lpips") else v for k, v in scores.items()}
        swept = {f: scores["ssim"] - (f - 2) ** 2 / 100 for f in FWHM_SWEEP}
        sweep = {} if model in BASELINES else swept
        return ScoreRecord(model, subject, None, 1 + int(subject) % 3, Scores(**scores), sweep)

    def put(self, folder, name, data, **metadata):
        path = self.out / folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nifti.save(nifti.Image(data, self.grid.affine), path)
        write_json(path.with_name(f"{name}.json"), metadata)
        return path

    def add_control(self, subject):
        own = f"sub-{subject}"
        t1w = self.pet * (1 + np.indices(self.grid.shape)[0] / self.grid.shape[0])
        self.put(f"{own}/anat", f"{own}_{SPACE}_desc-preproc_T1w", t1w)
        self.put(f"{own}/anat", f"{own}_{SPACE}_desc-brain_mask", self.brain)
        self.put(f"{own}/pet", f"{own}_trc-18FFDG_{SPACE}_desc-preproc_pet", self.pet)
        for place, model in enumerate(SHOWN):
            self.put(
                f"crossvalidation/{model}/{own}/pet",
                f"{own}_trc-18FFDG_{SPACE}_desc-synth_pet",
                self.pet + self.brain * np.float32((place - 1) / 4),
                Synthetic=True,
                SmoothingFWHM=2.0,
            )

    def add_generator(self, model):
        folder = self.out / "generators" / model
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"weights")
        card = {
            "name": model,
            "spec": spec_to_dict(MODELS[model]),
            "template": TEMPLATE,
            "shape": list(self.grid.shape),
            "affine": self.grid.affine.tolist(),
            "sha256": f"{model[:1]}{'0123456789abcdef' * 4}"[:64],
            "trained_on": "FDG PET of five controls.",
            "intended_use": "Research.",
            "participants": [f"sub-{subject}" for subject in self.subjects],
            "dataset": "A dataset.",
            "seed": 5,
        }
        write_json(folder / "card.json", card)
        lines = [
            {
                "fold": fold,
                "epoch": epoch,
                "generator_loss": 100 / epoch**2,
                "discriminator_loss": 0.5,
                "kept": int(epoch == 4),
                "ssim_validation": None if fold == "all" else 0.8 - abs(epoch - 4) / 50,
            }
            for fold in (1, 2, 3, "all")
            for epoch in range(1, 7)
        ]
        write_tsv(folder / "history.tsv", list(lines[0]), lines)

    def write(self, **run):
        path = write_training_report(self.out, template=TEMPLATE, resolution=RESOLUTION, **run)
        return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Tree(tmp_path_factory.mktemp("train") / "out")


@pytest.fixture
def tree(made, tmp_path):
    """Copy of the results that a test may change."""
    mine = copy.copy(made)
    mine.out = shutil.copytree(made.out, tmp_path / "out")
    return mine


def row(model, **means):
    return ScoreRow(
        model=model,
        configuration="",
        n=5,
        means={metric: means.get(metric, math.nan) for metric in METRICS},
        sds=dict.fromkeys(METRICS, 0.01),
    )


def score(model, participant, *, session="", sweep=(), **values):
    known = Scores(**{metric: values.get(metric, math.nan) for metric in METRICS})
    label = participant.removeprefix("sub-")
    return ScoreRecord(
        model, label, session.removeprefix("ses-") if session else None, 1, known, dict(sweep)
    )


def comparison(metric, one, other, *, difference, p, p_holm, n=20):
    difference, p, p_holm = (math.nan if v is None else v for v in (difference, p, p_holm))
    return PairedTest(metric, one, other, n, difference, math.nan, p, p_holm)


# Page


def test_the_first_visible_line_says_synthetic(tree):
    page = tree.write(**RUN)
    assert Reader(page).text[0].startswith("SYNTHETIC — images with desc-synth in their name")
    assert "not measurements and not for diagnosis" in Reader(page).text[0]
    assert page.count("<title>SYNTHETIC PET") == 1


def test_the_page_fetches_nothing_and_runs_nothing(tree):
    page = tree.write(**RUN)
    reader = Reader(page)
    assert any(link.startswith("data:image/") for link in reader.links)
    assert all(link.startswith(("data:image/", "#")) for link in reader.links)
    assert not {"link", "script", "iframe", "object", "button"} & set(reader.tags)
    assert not re.search(r"url\(|@import|\son\w+=", page)


def test_every_section_is_there_in_order(tree):
    page = tree.write(**RUN)
    reader = Reader(page)
    assert [name for name in reader.ids if name in SECTIONS] == SECTIONS
    assert len(reader.ids) == len(set(reader.ids))
    assert "No figure." not in page
    assert "No table." not in page
    text = text_of(page)
    for told in (
        *(*RUN["notes"], *RUN["problems"], "mri2pet 9.8.7", "2026-01-02", RUN["command"]),
        *("2 h 5 min", "2 in fold 3", "14×16×12 voxels of 12 mm", "FDG PET of five controls."),
        *("A dataset.", "smoothing_fwhm", "semi3d-gan, semi3d-cyclegan-mse, patch3d-gan-mse"),
        *("sub-01, sub-02, sub-03, sub-04, sub-05", "adversarial 1, cycle 10, MSE 100"),
    ):
        assert told in text
    assert "lpips_weights" not in text  # a setting that was not used


def test_every_drawing_is_well_formed_and_has_words_for_those_who_do_not_see_it(tree):
    page = tree.write(**RUN)
    assert len(drawings_in(page)) == 4  # violins, curves, smoothing, pictures


def test_a_report_written_again_from_disk_is_the_same(tree):
    first = tree.write(**RUN)
    assert tree.write() == first


def test_what_a_run_says_anew_replaces_what_was_kept(tree):
    tree.write(**RUN)
    page = tree.write(problems=[])
    assert RUN["problems"][0] not in page
    assert RUN["notes"][0] in page


def test_odd_values_are_escaped(tree):
    odd = "<script>alert(1)</script> & \"'"
    for path in tree.out.glob("generators/*/card.json"):
        card = json.loads(path.read_text()) | {"trained_on": odd, "dataset": odd, "sha256": odd}
        path.write_text(json.dumps(card))
    for path in tree.out.glob("table1*.tsv"):
        path.write_text(path.read_text().replace("semi3d-gan", "<b>odd</b>"))
    page = tree.write(**{**RUN, "notes": [odd], "problems": [odd], "settings": {odd: odd}})
    assert "<script>" not in page
    assert "<b>odd</b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; " in page
    assert "&lt;b&gt;odd&lt;/b&gt;" in section(page, "table1")


def test_simulated_images_are_called_a_demonstration(tree):
    assert "demonstration" not in text_of(tree.write(**RUN)).lower()
    path = tree.out / "generators" / SHOWN[0] / "card.json"
    card = json.loads(path.read_text()) | {"trained_on": "SIMULATED PET."}
    path.write_text(json.dumps(card))
    assert "these generators are trained on simulated images." in text_of(tree.write(**RUN))


# Missing files


@pytest.mark.parametrize(
    "name",
    [
        *("table1.tsv", "table1_subjects.tsv", "table1_tests.tsv"),
        *(f"generators/{SHOWN[1]}/{name}" for name in ("card.json", "history.tsv")),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "empty", "binary", "other"])
def test_a_lost_file_is_named_and_does_not_lose_the_report(tree, name, damage):
    path = tree.out / name
    path.unlink()
    if damage != "missing":
        content = {"empty": b"", "binary": b"\xff\xfe\x00", "other": b"one\ttwo\n3\t4\n"}
        path.write_bytes(content[damage])
    page = tree.write(**RUN)
    assert [one for one in Reader(page).ids if one in SECTIONS] == SECTIONS
    assert name in text_of(section(page, "summary"))


def test_a_tissue_model_has_no_learning_curves(tree):
    folder = shutil.copytree(tree.out / "generators" / SHOWN[0], tree.out / "generators" / "tissue")
    card = json.loads((folder / "card.json").read_text())
    write_json(folder / "card.json", card | {"name": "tissue"})
    page = tree.write(**RUN)
    assert "tissue model" in text_of(section(page, "summary"))
    assert "tissue model" not in text_of(section(page, "curves"))


def test_nothing_at_all_still_makes_a_page(tmp_path):
    path = write_training_report(tmp_path, template=TEMPLATE, resolution=RESOLUTION)
    page = path.read_text()
    text = text_of(page)
    assert [one for one in Reader(page).ids if one in SECTIONS] == SECTIONS
    for told in ("table1.tsv is missing", "No generator card was found", "No table.", "No tests."):
        assert told in text
    assert text.count("No figure.") == 4


def test_a_lost_generator_is_named(tree):
    (tree.out / "generators" / SHOWN[0] / "weights.safetensors").unlink()
    for path in (tree.out / "generators" / SHOWN[2]).iterdir():
        path.unlink()
    text = text_of(section(tree.write(**RUN), "summary"))
    assert f"generators/{SHOWN[0]}/weights.safetensors is missing." in text
    for name in ("card.json", "weights.safetensors", "history.tsv"):
        assert f"generators/{SHOWN[2]}/{name} is missing." in text


def test_an_odd_card_does_not_lose_the_report(tree):
    odd = {"spec": [1], "shape": "x", "affine": [3], "participants": 4, "sha256": None}
    for path in tree.out.glob("generators/*/card.json"):
        path.write_text(json.dumps(odd))
    page = tree.write(**RUN)
    assert "unknown" in section(page, "summary")
    assert "No figure." not in page


def test_how_true_the_uncertainty_is_is_told_where_a_card_tells_it(tree):
    assert "participant --uncertainty" not in text_of(tree.write(**RUN))
    path = tree.out / "generators" / SHOWN[0] / "card.json"
    told = {"coverage_50": 0.512, "coverage_80": 0.807, "coverage_95": 0.948, "correlation": 0.313}
    metrics = {f"uncertainty_{name}": value for name, value in told.items()}
    write_json(path, {**json.loads(path.read_text()), "metrics": metrics})
    text = text_of(tree.write())
    assert "participant --uncertainty" in text
    assert "51.2 80.7 94.8 0.31 n/a" in text


def test_lpips_is_na_with_the_reason(tmp_path):
    page = Tree(tmp_path / "out", lpips=False).write(**RUN)
    table = section(page, "table1")
    assert "--lpips-weights" in table
    assert "n/a" in table
    assert "LPIPS, whole volume" not in section(page, "tests")
    assert "LPIPS ↓</text>" not in section(page, "violins")
    assert "Zhang R" not in section(page, "methods")


def test_lpips_of_some_rows_only_is_told():
    assert why_no_lpips([row("semi3d-gan", lpips=0.1)]) == ""
    told = why_no_lpips([row("semi3d-gan", lpips=0.1), row("baseline-t1w")])
    assert "The T1w itself" in told
    assert "Simple-GAN" not in told


# Table 1


def test_rows_are_those_of_the_models():
    assert list(PUBLISHED) == list(MODELS)
    assert {model: configuration_of(model) for model in ROWS} == ROWS
    assert set(BASELINES) == set(ROWS) - set(TRAINABLE) - set(CONDITIONED) - set(OVERLAPPING)
    assert len({one.colour for one in PUBLISHED.values()}) == len(PUBLISHED)


def test_table1_tells_what_was_measured(tree):
    first, _ = re.findall(r"<table.*?</table>", section(tree.write(**RUN), "table1"), re.S)
    lines = cells_of(first)[2:]
    # mean level 0.003; the SD of 0.001 … 0.005 is 0.00158
    assert lines[0][:6] == [
        "semi-3D",
        "Simple-GAN",
        "0.897 ± 0.002",
        "24.997 ± 0.002",
        "0.023 ± 0.002",
        "0.797 ± 0.002",
    ]
    assert [line[-12] for line in lines] == [
        *("Simple-GAN", "Cycle-GAN with MSE loss", "Simple-GAN with MSE loss"),
        *("Mean PET of the training controls", "The T1w itself"),
    ]
    assert lines[2][0] == "3D-patch"


def test_the_values_of_the_paper_stand_beside_as_other_data(tree):
    _, second = re.findall(r"<table.*?</table>", section(tree.write(**RUN), "table1"), re.S)
    assert "OTHER DATA" in second
    lines = cells_of(second)[2:]
    assert lines[1] == [
        "semi-3D Cycle-GAN with MSE loss",
        "0.867 ± 0.002",
        "0.883 ± 0.022",
        "24.967 ± 0.002",
        "23.525 ± 1.388",
        "0.053 ± 0.002",
        "0.022 ± 0.005",
    ]
    assert len(lines) == len(SHOWN)  # the paper has no baselines


def best_in(rows, metric):
    return [cells[COLUMNS.index(metric)][2] for _, lines in table1(rows) for _, cells in lines]


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_model_of_a_column_is_marked_if_it_beats_the_baselines(metric):
    less = metric.startswith(("lpips", "mae", "suvr"))
    low, middle, high = (row(m, **{metric: v}) for m, v in zip(SHOWN, (1.1, 1.2, 1.3), strict=True))
    worse = row("baseline-t1w", **{metric: 1.4 if less else 0.9})
    assert best_in([low, middle, high, worse], metric) == [less, False, not less, False]
    for value in (1.1 if less else 1.3, 0.5 if less else 2.0):
        as_good = row("baseline-mean-pet", **{metric: value})
        assert not any(best_in([low, middle, high, worse, as_good], metric))


def test_models_that_cannot_be_told_apart_are_best_together():
    rows = [row("semi3d-gan", ssim=0.88291), row("semi3d-gan-mse", ssim=0.8833)]
    assert best_in(rows, "ssim") == [True, True]
    assert best_in([row("semi3d-gan")], "ssim") == [False]


@pytest.mark.parametrize(("one", "other"), [(0.4, -0.4), (-0.4, 0.4), (-0.0002, 0.0003)])
def test_a_bias_is_as_good_as_one_of_the_other_sign(one, other):
    rows = [row("semi3d-gan", suvr_bias=one), row("semi3d-gan-mse", suvr_bias=other)]
    assert best_in(rows, "suvr_bias") == [True, True]
    assert "−0.0" not in str(table1(rows))


# Tests


def test_p_is_below_the_diagonal_and_holm_above_it():
    tests = [comparison("ssim", "semi3d-gan", "baseline-t1w", difference=0.1, p=0.02, p_holm=0.04)]
    _, ((corner, above), (below, end)) = matrices(tests)[0]
    assert below == ("0.020", "plain", "")
    assert above == ("0.040", "holm", "row")
    assert corner[1] == end[1] == "same"


@pytest.mark.parametrize("metric", ["ssim", "psnr_brain", "lpips", "lpips_brain"])
@pytest.mark.parametrize("difference", [0.1, -0.1, 0.0])
def test_the_mark_points_to_the_better_model_whichever_comes_first(metric, difference):
    one, other = "semi3d-gan", "semi3d-cyclegan"
    told = {"p": 0.01, "p_holm": 0.01}
    straight = matrices([comparison(metric, one, other, difference=difference, **told)])
    turned = matrices([comparison(metric, other, one, difference=-difference, **told)])
    assert straight == turned
    less = metric.startswith("lpips")
    expected = "" if difference == 0 else "row" if (difference > 0) != less else "column"
    _, lines = straight[0]
    assert lines[0][1][2] == expected


def test_what_is_not_significant_after_holm_is_not_marked():
    tests = [comparison("ssim", "semi3d-gan", "baseline-t1w", difference=0.1, p=0.001, p_holm=0.05)]
    _, lines = matrices(tests)[0]
    assert lines[0][1][2] == ""
    assert matrices([comparison("ssim", "a", "b", difference=None, p=None, p_holm=None)]) == []


@pytest.mark.parametrize(
    ("n", "pairs", "told"),
    [
        (4, 1, "With 4 controls no p can be below 0.125: these tests cannot"),
        (10, 28, "no p can be below 0.002, and none adjusted over 28 pairs below 0.055:"),
        *((6, 1, ""), (11, 28, "")),
    ],
)
def test_too_few_controls_for_any_small_p_are_told(n, pairs, told):
    tests = [
        comparison("ssim", "a", f"b{k}", difference=0.1, p=0.5, p_holm=1.0, n=n)
        for k in range(pairs)
    ]
    sentence = least_p(tests)
    assert told in sentence
    assert bool(sentence) == bool(told)


def test_tests_of_the_run_fill_the_matrices(tree):
    page = section(tree.write(**RUN), "tests")
    tables = re.findall(r"<table.*?</table>", page, re.S)
    assert len(tables) == 6
    assert all(len(cells_of(table)) == 6 for table in tables)
    assert "0.062" in page  # 2 / 2⁵
    assert "With 5 controls" in page


# Charts

finite = st.floats(-1e6, 1e6)


def ticks_of(limits, **kind):
    """Return the tick labels of an axis."""
    axes = new_figure(400, 300).subplots()
    set_axis(axes.xaxis, limits, **kind)
    low, high = limits
    places = [place for place in axes.get_xticks() if low <= place <= high]
    return axes.xaxis.get_major_formatter().format_ticks(places)


def dots_of(axes):
    """Return the positions of the dots of a panel, in data units."""
    return [point for line in axes.lines if line.get_marker() == "o" for point in line.get_xydata()]


def curves_of(axes):
    return [line for line in axes.lines if line.get_marker() == "None"]


@given(st.lists(finite, max_size=20))
def test_all_values_have_room_on_an_axis(values):
    low, high = limits_around(values)
    assert all(low < value < high for value in values)
    assert low < high
    assert limits_around([*values, math.inf, -math.inf, math.nan]) == (low, high)


@given(st.lists(st.floats(1e-11, 1e6), min_size=1, max_size=20))
def test_all_values_have_room_on_a_logarithmic_axis(values):
    low, high = limits_around(values, logarithmic=True)
    assert 0 < low <= min(values)
    assert max(values) <= high


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5 + 1e-12], [0.0, 1e-13], [-3.0] * 4])
def test_alike_values_are_drawn_as_equal(values):
    low, high = limits_around(values)
    assert high - low > 0.1


def test_axes_of_steep_losses_are_logarithmic():
    for losses, scale in (([0.1, 50], "log"), ([1, 19], "linear"), ([0, 50], "linear")):
        told = epochs(*(f"1 {n} {loss} 0.5 {loss} 0" for n, loss in enumerate(losses, 1)))
        chart = draw_curves({"semi3d-gan": told})
        scales = [axes.get_yscale() for axes in chart.figure.axes]
        assert scales == [scale, "linear", "linear"]  # SSIM is always linear
        assert ("Loss of the generators (logarithmic)" in chart.svg) == (scale == "log")
    assert ticks_of((1, 100), logarithmic=True)[:3] == ["1", "2", "5"]
    for high in (30, 190, 210, 1e4, 1e9, 1e18):
        assert 2 < len(ticks_of((1, high), logarithmic=True)) < 9


def test_words_along_axes_are_few_and_round():
    assert ticks_of((0.9, 3.1), whole=True) == ["1", "2", "3"]
    assert ticks_of((-0.3, 0.31)) == ["−0.2", "0", "0.2"]
    assert ticks_of((0.0, 1.0)) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_a_violin_is_widest_where_values_are_many(rng):
    values = [*rng.normal(0.8, 0.01, 30), 0.5]
    widths = half_widths(values, [0.5, 0.65, 0.8])
    assert widths[2] == max(widths)
    assert widths[2] == pytest.approx(HALF, rel=0.15)
    assert max(half_widths(values, np.linspace(0.5, 0.83, 500))) <= HALF * 1.01


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.6], [0.5] * 9, [0.5, 0.5 + 1e-12, 0.5]])
def test_too_few_or_equal_values_have_no_width(values):
    assert half_widths(values, [0.5]) == [0.0]


def test_every_control_is_a_dot_in_its_row(tree):
    trained = find_trained(tree.out)
    chart = draw_violins(trained.scores)
    assert len(chart.figure.axes) == 3
    names = [label.get_text() for label in chart.figure.axes[0].get_yticklabels()]
    assert names == [full_name_of(model) for model in tree.models]
    for axes, metric in zip(chart.figure.axes, ("ssim", "psnr", "lpips"), strict=True):
        dots = dots_of(axes)
        assert len(dots) == len(tree.models) * len(tree.subjects)
        low, high = axes.get_xlim()
        assert all(low < x < high for x, _ in dots)
        for place, model in enumerate(tree.models):
            own = sorted(x for x, y in dots if abs(y - place) < 0.5)
            assert own == sorted(values_of(trained.scores, model, metric).values())
        below, above = axes.get_ylim()
        assert below > len(tree.models) - 1 > 0 > above  # the first row is at the top


def test_violins_show_mean_and_one_sd_to_either_side():
    scores = [score("semi3d-gan", f"sub-{n}", ssim=ssim) for n, ssim in enumerate((0.7, 0.8, 0.9))]
    (axes,) = draw_violins(scores).figure.axes
    spread, middle = curves_of(axes)
    assert spread.get_xdata() == pytest.approx([0.7, 0.9])
    assert middle.get_xdata() == pytest.approx([0.8, 0.8])
    (outline,) = axes.patches
    assert outline.get_extents().width > 0
    edge = outline.get_xy()
    assert edge[:, 0].min() == pytest.approx(0.7)
    assert edge[:, 0].max() == pytest.approx(0.9)
    assert np.ptp(edge[:, 1]) == pytest.approx(2 * HALF, rel=0.01)


def test_a_control_with_two_visits_is_one_dot_at_their_mean():
    visits = [score("semi3d-gan", "sub-1", session=s, ssim=v) for s, v in (("a", 0.7), ("b", 0.9))]
    other = [score("semi3d-gan", "sub-2", ssim=0.8), score("semi3d-gan", "sub-3", ssim=math.inf)]
    (axes,) = draw_violins([*visits, *other]).figure.axes
    dots = dots_of(axes)
    assert len(dots) == 2
    assert [x for x, _ in dots] == pytest.approx([0.8, 0.8])
    assert draw_violins([score("semi3d-gan", "sub-1")]) is None


def epochs(*lines):
    names = ("fold", "epoch", "generator_loss", "discriminator_loss", "ssim_validation", "kept")
    return epochs_of([dict(zip(names, line.split(), strict=True)) for line in lines])


def test_of_an_epoch_that_was_run_twice_the_later_line_counts():
    told = epochs(
        "2 2 5 1 0.5 0", "1 1 9 1 0.5 0", "2 2 7 1 0.6 1", "all 1 1 1 n/a 0", "10 1 1 1 1 0"
    )
    assert [(e.fold, e.epoch, e.generator_loss) for e in told] == [
        *(("1", 1, 9.0), ("2", 2, 7.0), ("10", 1, 1.0), ("all", 1, 1.0))
    ]
    assert kept_epoch(told, "2") == "2 of 2"
    assert kept_epoch(epochs("1 1 1 1 1 0", "1 2 1 1 1 1", "1 3 1 1 1 0"), "1") == "2 of 3"
    assert kept_epoch(told, "1") == "n/a"


def test_curves_have_a_line_a_fold_and_mark_the_epoch_that_was_kept(tree):
    histories = find_trained(tree.out).histories
    chart = draw_curves(histories)
    panels = chart.figure.axes
    curves = [curve for axes in panels for curve in curves_of(axes)]
    assert len(panels) == len(SHOWN) * len(SERIES)
    assert len(curves) == len(SHOWN) * (4 * len(SERIES) - 1)  # the final fit has no SSIM
    dots = [dots_of(axes) for axes in panels]
    assert [len(own) for own in dots] == [0, 0, 3] * len(SHOWN)
    assert [key.name for key in chart.keys] == [
        *("fold 1", "fold 2", "fold 3", "final generator, all controls")
    ]
    assert len({key.colour for key in chart.keys}) == 4
    assert [curve.get_color() for curve in curves[:4]] == [key.colour for key in chart.keys]
    assert list(curves[0].get_xdata()) == list(range(1, 7))
    assert curves[0].get_ydata() == pytest.approx([100 / n**2 for n in range(1, 7)], rel=1e-5)
    for axes in panels[2::3]:  # epoch 4 has the best SSIM, so no point of its curve is above
        assert [tuple(dot) for dot in dots_of(axes)] == [(4, 0.8)] * 3
        assert all(curve.get_ydata().max() == 0.8 for curve in curves_of(axes))
    for model in SHOWN:
        assert f">{full_name_of(model)}</text>" in chart.svg


def test_the_ssim_of_different_models_compares():
    one, other = epochs("1 1 3 1 0.5 1"), epochs("1 1 30 1 0.9 1")
    panels = draw_curves({"semi3d-gan": one, "semi3d-gan-mse": other}).figure.axes
    assert panels[2].get_ylim() == panels[5].get_ylim()
    assert panels[0].get_ylim() != panels[3].get_ylim()  # those of losses are not


def test_losses_that_are_no_numbers_leave_a_gap_and_not_a_crash():
    told = epochs("1 1 nan inf n/a 0", "1 2 3 -inf 0.5 1", "1 3 2 1 inf 0", "1 4 1e308 -1e308 0 0")
    chart = draw_curves({"semi3d-gan": told})
    assert not re.search(r"\b(nan|inf)\b", chart.svg, re.I)
    generators, discriminators, ssim = chart.figure.axes
    assert curves_of(generators)[0].get_xdata().tolist() == [2, 3, 4]
    assert curves_of(discriminators)[0].get_xdata().tolist() == [3, 4]
    assert dots_of(ssim)[0].tolist() == [2, 0.5]
    assert draw_curves({"semi3d-gan": ()}) is None


def test_the_best_smoothing_is_found_and_that_of_the_run_is_marked(tree):
    sweeps = sweeps_of(find_trained(tree.out).scores)
    assert list(sweeps) == list(SHOWN)
    assert {best_of(means) for means in sweeps.values()} == {2.0}
    chart = draw_sweeps(sweeps, 1.5)
    (axes,) = chart.figure.axes
    assert chart.svg.count(">this run: 1.5 mm</text>") == 1
    assert list(axes.lines[0].get_xdata()) == [1.5, 1.5]  # the dashed line is there
    best = [line for line in axes.lines if line.get_markersize() == 9]
    assert {x for line in best for x in line.get_xdata()} == {2.0}
    for means, curve in zip(sweeps.values(), axes.lines[1::2], strict=True):
        assert dict(curve.get_xydata()) == means
    assert [key.name for key in chart.keys] == [full_name_of(model) for model in SHOWN]
    for told in ("SSIM, whole volume", "FWHM of the Gaussian (mm)"):
        assert f">{told}</text>" in chart.svg
    assert "this run" not in draw_sweeps(sweeps, None).svg
    assert "this run" not in draw_sweeps(sweeps, 99.0).svg
    assert draw_sweeps({}, 1.5) is None


def test_a_best_smoothing_that_tells_little_is_said_to():
    swept = {
        "semi3d-gan": {0.0: 0.5, 1.5: 0.6, 3.0: 0.7},
        "semi3d-gan-mse": {0.0: 0.5, 1.5: 0.6, 3.0: 0.5},
    }
    edge, narrow = cautions_of(swept, 2.0)
    assert edge.startswith("semi-3D Simple-GAN: the widest")
    assert "2 mm" in narrow
    del swept["semi3d-gan"]
    assert cautions_of(swept, 1.0) == []
    assert cautions_of({}, 2.0) == []


def odd_violins():
    """Chart with names that try to break out of the SVG."""
    odd = ["<script>&\"'", "$\\frac$", "_hidden", ' id="a_1" clip-path="x"', "</svg>"]
    return draw_violins([score(name, "sub-1", ssim=0.5 + n / 9) for n, name in enumerate(odd)])


def test_names_are_shown_as_they_are():
    svg = odd_violins().svg
    for told in ("&lt;script&gt;&amp;\"'", "$\\frac$", "_hidden", "&lt;/svg&gt;"):
        assert f">{told}</text>" in svg
    assert "<script" not in svg
    ElementTree.fromstring(f'<svg xmlns:xlink="http://www.w3.org/1999/xlink">{svg}</svg>')


def test_a_chart_is_the_same_to_the_byte_each_time(tree):
    scores = find_trained(tree.out).scores
    chart = draw_violins(scores)
    assert chart.svg == draw_violins(scores).svg == chart.svg
    assert not re.search(r"metadata|\b20\d\d-", chart.svg)  # no date


def test_charts_of_one_page_share_no_id():
    charts = [draw_violins([score("semi3d-gan", "sub-1", **{m: 0.5})]) for m in ("ssim", "lpips")]
    ids = [re.findall(r'\bid="(.*?)"', chart.svg) for chart in charts]
    assert all(ids)
    assert not set(ids[0]) & set(ids[1])


def test_charts_do_not_heed_the_style_of_the_reader_and_leave_it_as_it_is(tree):
    scores = find_trained(tree.out).scores
    plain = draw_violins(scores).svg
    with mpl.rc_context({"text.usetex": True, "font.size": 30, "lines.linewidth": 9}):
        assert draw_violins(scores).svg == plain
        assert mpl.rcParams["font.size"] == 30


def test_cautions_about_smoothing_are_in_the_page(tree):
    assert "hardly change the images" in section(tree.write(), "smoothing")


def test_a_sidecar_tells_the_smoothing_and_else_the_settings(tree):
    assert "this run: 2 mm" in tree.write(**RUN)
    for path in tree.out.glob("crossvalidation/**/*.json"):
        path.unlink()
    assert "this run: 1.5 mm" in tree.write(**RUN)
    assert "this run" not in section(tree.write(**{**RUN, "settings": {}}), "smoothing")


# Pictures


def path_of(tree, kind):
    """Return the path of an image of the control that is shown."""
    anatomy = kind in NEEDED
    root = tree.out / "crossvalidation" / SHOWN[0] if kind == "synth_pet" else tree.out
    name = f"sub-03_{'' if anatomy else 'trc-18FFDG_'}{SPACE}_desc-{kind}.nii.gz"
    return root / "sub-03" / ("anat" if anatomy else "pet") / name


def test_the_control_in_the_middle_of_the_best_model_is_shown():
    good, bad = "semi3d-cyclegan-mse", "semi3d-gan"
    values = {"sub-1": 0.9, "sub-2": 0.5, "sub-3": 0.8, "sub-4": 0.7, "sub-5": 0.6}
    scores = [score(good, who, ssim_brain=value) for who, value in values.items()]
    scores += [score(bad, who, ssim_brain=0.1) for who in values]
    scores += [score("baseline-t1w", who, ssim_brain=0.99) for who in values]
    assert best_model(scores, "ssim_brain") == good
    chosen, similarities = choose(scores)
    assert (chosen.participant, chosen.model) == ("4", good)
    assert similarities[bad] == 0.1
    chosen, _ = choose([s for s in scores if s.participant != "1"])
    assert chosen.participant == "5"
    assert choose([score(good, "sub-1")]) is None


def gallery(tree):
    return draw_gallery(
        tree.out, find_trained(tree.out).scores, SHOWN, SPACE.removeprefix("space-")
    )


def test_pictures_stand_in_columns_of_one_scale_with_differences_below(tree):
    panel = gallery(tree)
    assert panel.title == "sub-03, left out in fold 1"
    (figure,) = panel.figures
    tiles = sorted(figure.frames[0][1], key=lambda tile: (tile.spot.y, tile.spot.x))
    assert len(tiles) == 3 * (5 + 3)
    lefts = sorted({tile.spot.x for tile in tiles})
    assert len(lefts) == 5
    names = sorted((text.x, text.words) for text in figure.texts if text.strong)
    assert [name for _, name in names] == [
        *("T1w", "Simple-GAN", "Cycle-GAN + MSE", "Simple-GAN + MSE", "Real PET")
    ]
    assert [name.partition(" ")[0] for name, *_ in figure.bars] == ["PET", "synthetic"]
    axial = [tile for tile in tiles if tile.spot.section.plane == "axial"]
    pets = [decode(tile.href).max() for tile in axial[1:5]]
    assert pets == [*sorted(pets[:3]), pets[1]]  # 0.25, 0.5, 0.75 and the real 0.5
    white = [decode(tile.href).mean() for tile in axial[5:]]
    assert white[1] == max(white)  # no difference at all
    assert white[1] > 240


def test_a_picture_of_overlapping_triplets_has_their_ssim(tree):
    scores = [
        score("semi3d-gan", "sub-03", ssim_brain=0.5),
        score("semi3d-gan-overlap", "sub-03", ssim_brain=0.625),
    ]
    path = path_of(tree, "synth_pet")
    for averaged, ssim in ((False, "0.500"), (True, "0.625")):
        write_json(sidecar_path(path), {"OverlappingTripletsAveraged": averaged})
        panel = draw_gallery(tree.out, scores, SHOWN[:1], SPACE.removeprefix("space-"))
        words = [text.words for text in panel.figures[0].texts]
        assert f"SSIM in the brain {ssim}" in words


def test_left_is_left(tree):
    (figure,) = gallery(tree).figures
    t1w = decode(figure.frames[0][1][0].href)  # brighter towards the right
    middle = t1w[t1w.shape[0] // 2]
    inside = np.flatnonzero(middle > 30)
    assert middle[inside[-1]] > middle[inside[0]]
    letters = [text for text in figure.texts if text.words in ("L", "R")][:2]
    assert [text.words for text in sorted(letters, key=lambda text: text.x)] == ["L", "R"]


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        (kind, damage)
        for kind in (*NEEDED, "preproc_pet", "synth_pet")
        for damage in ("missing", "truncated", "grid")
        if (kind, damage) != ("preproc_T1w", "grid")  # the grid of the T1w is the reference
    ],
)
def test_a_lost_image_is_named_and_the_rest_is_shown(tree, kind, damage):
    path = path_of(tree, kind)
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    if damage == "grid":
        nifti.save(nifti.Image(tree.pet[1:], tree.grid.affine), path)
    pictures = section(tree.write(**RUN), "pictures")
    assert path.name in pictures
    assert ("No figure." in pictures) == (kind in NEEDED)
    if kind == "synth_pet":
        assert pictures.count("no image") == 3
        assert pictures.count("<image ") == 3 * (4 + 2)
    if kind == "preproc_pet":
        assert "Difference" not in pictures
        assert pictures.count("<image ") == 3 * 4


def test_the_real_pet_of_another_session_is_found_where_there_is_none_of_its_own(tree):
    stem = f"trc-18FFDG_run-2_{SPACE}_desc-preproc_pet"
    tree.put("sub-03/ses-a/pet", f"sub-03_ses-a_{stem}", tree.pet)
    assert f"{path_of(tree, 'preproc_pet').name}." in gallery(tree).caption
    path_of(tree, "preproc_pet").unlink()
    panel = gallery(tree)
    assert f"sub-03_ses-a_{stem}.nii.gz." in panel.caption
    assert len(panel.figures[0].frames[0][1]) == 3 * (5 + 3)


def test_of_two_sessions_the_own_one_is_shown(tree):
    own = "sub-07_ses-b"
    for kind, data in (("preproc_T1w", tree.pet), ("brain_mask", tree.brain)):
        tree.put("sub-07/ses-b/anat", f"{own}_{SPACE}_desc-{kind}", data)
    for session in ("a", "b"):
        stem = f"sub-07_ses-{session}_trc-18FFDG_{SPACE}_desc"
        tree.put(f"sub-07/ses-{session}/pet", f"{stem}-preproc_pet", tree.pet)
        folder = f"crossvalidation/semi3d-gan/sub-07/ses-{session}/pet"
        tree.put(folder, f"{stem}-synth_pet", tree.pet)
    scores = [score("semi3d-gan", "sub-07", session="ses-b", ssim_brain=0.5)]
    panel = draw_gallery(tree.out, scores, ["semi3d-gan"], SPACE.removeprefix("space-"))
    assert panel.title.startswith("sub-07, ses-b, left out")
    assert "Real PET: sub-07_ses-b_" in panel.caption
    assert len(panel.figures[0].frames[0][1]) == 3 * (3 + 1)


# Doubts


def trained_with(rows=(), scores=(), cards=()):
    told = {"spec": spec_to_dict(MODELS["semi3d-gan"])}
    known = {name: card_from({**told, "name": name}, lenient=True) for name in cards}
    return TrainedModel(rows, scores, (), known, {}, ())


def test_a_model_no_better_than_a_baseline_is_a_warning():
    model = row("semi3d-gan", **dict.fromkeys(METRICS, 0.5))
    worse, same, better = (
        row("baseline-t1w", **dict.fromkeys(METRICS, value)) for value in (0.4, 0.5, 0.6)
    )
    assert doubts_of(trained_with([model, worse])) == []
    for baseline in (same, better):
        (told,) = doubts_of(trained_with([model, baseline]))
        assert (
            "semi-3D Simple-GAN is no better than methods without a network: the T1w itself (SSIM "
            in told
        )


def test_models_no_better_than_the_same_baselines_share_a_warning():
    models = [row(name, **dict.fromkeys(METRICS, 0.5)) for name in ("semi3d-gan", "semi3d-gan-mse")]
    better = row("baseline-t1w", **dict.fromkeys(METRICS, 0.6))
    (told,) = doubts_of(trained_with([*models, better]))
    assert "semi-3D Simple-GAN and semi-3D Simple-GAN with MSE loss are no better than" in told


def test_rows_that_stand_on_fewer_controls_are_a_warning():
    scores = [score("semi3d-gan", f"sub-{n}") for n in range(6)]
    (told,) = doubts_of(trained_with([row("semi3d-gan", **dict.fromkeys(METRICS, 1))], scores))
    assert "all 6 controls: semi-3D Simple-GAN on 5" in told


def test_a_generator_that_was_not_scored_is_a_warning():
    scores = [score("semi3d-gan", "sub-1")]
    (told,) = doubts_of(trained_with(scores=scores, cards=["semi3d-gan", "semi3d-cyclegan"]))
    assert told == "semi-3D Cycle-GAN was trained, but no control was scored with it."


def test_warnings_stand_at_the_top(tree):
    assert "No problems were reported" in tree.write(**{**RUN, "problems": []})
    (tree.out / "table1_tests.tsv").unlink()
    for problems in (RUN["problems"], []):
        page = tree.write(**{**RUN, "problems": problems})
        assert "No problems were reported" not in page
        assert page.index("table1_tests.tsv is missing.") < page.index("<dt>Controls</dt>")


# Methods


def methods_of(tree, **run):
    return section(tree.write(**{**RUN, **run}), "methods")


def test_methods_tell_what_was_done_with_which_version(tree):
    text = methods_of(tree)
    for told in (
        *("mri2pet 9.8.7", "PyTorch 2.13.0", "SciPy 1.2.3", "5 controls", "3 folds"),
        *("which left out 1, 2 and 2 controls", "slightly optimistic", "2 mm FWHM", "(D(y) − 1)²"),
        *("9 (semi-3D) and 2 (3D-patch) residual blocks", "at most 200 epochs, constant for 100"),
        *("semi-3D Cycle-GAN with MSE loss: adversarial 1, cycle 10, MSE 100", "edges of 32"),
        *("5 (semi-3D) and 10 (3D-patch)", "learning rate of 0.0002", "Zotova D", "Zhang R"),
    ):
        assert told in text


def test_a_reference_is_listed_when_it_is_cited_and_every_one_is():
    spec = MODELS["semi3d-cyclegan"]
    full = write_methods(
        "train", {}, {**describe_specs({"one": spec}), "lpips": True, "tested": True}
    )
    references = read_references()
    keys = references["train"].items()
    assert len(keys) == 8
    assert all(key in full and text in full for key, text in keys)
    known = [*references["participant"], *references["train"]]
    body = full.partition("References")[0].replace("\n", " ")
    cited = re.findall(r"[A-Z][\w-]+(?: (?:et al\.|and [A-Z]\w+))?, \d{4}", body)
    assert {one.replace("  ", " ") for one in cited} <= set(known)
    plain = write_methods("train", {}, describe_specs({"one": spec}))
    assert "Holm S" not in plain
    assert "Zhang R" not in plain


def test_references_do_not_stand_twice():
    keys = [key for section in read_references().values() for key in section]
    assert len(keys) == len(set(keys))
