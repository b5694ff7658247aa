import re
from pathlib import Path

import pytest
from test_workflows_detection import FITTING, PATIENTS, controls_of, folds_of

from bids_app.detection.detectors import (
    DEFAULT_DETECTORS,
    DETECTORS,
    DIRECTIONS,
    TRAINING_SETS,
    Detector,
    detector_of,
    rank_of,
)
from bids_app.detection.normative import INVERTED, MEASURES
from bids_app.report.anomalies import title_of
from bids_app.settings import Settings
from bids_app.workflows.detection import files_of, init_detector_wf, slabs_of

DOCS = Path(__file__).parents[1] / "docs" / "detection.md"


def test_every_norm_says_what_it_compares_and_how_it_scores():
    norms = {name for name, detector in DETECTORS.items() if detector.method == "norm"}
    assert set(MEASURES) == norms
    assert set(INVERTED) <= norms


def test_the_defaults_are_in_the_table():
    assert set(DEFAULT_DETECTORS) <= set(DETECTORS)
    assert set(Settings.training_set) <= set(TRAINING_SETS)


@pytest.mark.parametrize("detector", DETECTORS.values(), ids=DETECTORS)
def test_every_detector_tells_all(detector):
    texts = (detector.label, detector.meaning, detector.score, detector.statmap, detector.clusters)
    assert all(texts)
    assert detector.unit
    assert detector.meaning != Detector("").meaning
    assert set(detector.training_sets) <= set(TRAINING_SETS)


def test_detectors_can_be_told_apart():
    for field in ("label", "meaning", "score", "statmap", "clusters", "dash"):
        assert len({getattr(detector, field) for detector in DETECTORS.values()}) == len(DETECTORS)


def test_the_documentation_has_a_line_for_each_and_knows_defaults_and_directions():
    text = DOCS.read_text()
    lines = re.findall(r"^\| `(\w+)` \| ", text, re.M)
    assert [name for name in lines if name in DETECTORS] == list(DETECTORS)
    (default,) = re.findall(r"The default is `([a-z ]+)`", text)
    assert tuple(default.split()) == DEFAULT_DETECTORS
    (directions,) = re.findall(r"`--direction ([a-z|]+)`", text)
    assert directions.split("|") == list(DIRECTIONS)


def test_one_that_is_not_known_goes_by_its_name():
    assert detector_of("of another version").label == "of another version"
    assert title_of("real", "of another version") == "of another version, real"


def test_a_line_of_the_table_is_all_that_a_norm_needs_outside_of_its_arithmetic(monkeypatch):
    own = Detector("Mine", method="norm", synthetic=True)
    monkeypatch.setitem(DETECTORS, "mine", own)
    folds = folds_of(controls_of(5), 2)
    graph = init_detector_wf("mine", controls_of(5), folds, PATIENTS, FITTING)
    fit = graph.get_node("norm_1").interface.inputs
    assert graph.name == "mine_wf"
    assert fit.controls_synthetic == [
        f"{control.synthetic.folder}" for control in folds[0].training
    ]
    assert files_of("mine", 2, 3) == ["mine/fold-1.safetensors", "mine/fold-2.safetensors"]
    assert slabs_of("mine", FITTING) == [(0, 34)]
    assert title_of("real", "mine") == "Mine, real"
    assert rank_of("real", "pseudonormal") < rank_of("real", "mine") < rank_of("real", "unknown")
