"""Tables of the clusters of all people, and their calibration by held-out controls."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from cohorts import SPACE, stored_image
from hypothesis import given
from hypothesis import strategies as st

from bids_app.app.group import (
    CURVES,
    read_image_clusters,
    scored_in,
    top_clusters,
    write_detections,
)
from bids_app.derivatives.detections import (
    ScoredSubject,
    anomaly_paths,
    read_all_clusters,
    read_clusters_table,
    read_control_clusters,
    read_control_maps,
    read_curve,
    read_froc,
    read_tests,
    root_of,
)
from bids_app.derivatives.paths import sidecar_path
from bids_app.detection.card import (
    CARD,
    CONTROL_CLUSTERS,
    DetectorCard,
    card_values,
    check_files,
    read_card,
)
from bids_app.detection.clusters import Cluster, Place
from bids_app.detection.evaluation import Mark
from bids_app.errors import UnusableDataError
from bids_app.files import read_json, read_tsv, write_json
from bids_app.workflows.detection import ScoredImage

MOST = 2  # clusters kept per patient
CARD_OF = DetectorCard(
    "real",
    "7",
    ("ocsvm",),
    SPACE.template,
    (1, 1, 1),
    ((1.0,) * 4,) * 4,
    (),
    2,
    ((0, 1),),
    {},
    "ellipsoids",
    0,
    "tests",
)


def cluster(rank, sum_score, **changed):
    one = Cluster(
        rank, -30.0, 12.0, 8.0, -32.0, 14.0, 8.0, 1536.0, 4.5, "left", 2.5, float(sum_score)
    )
    return replace(one, **changed)


def who_is(label, session=None, run=""):
    own = f"ses-{session}_" if session else ""
    name = f"sub-{label}_{own}trc-18FFDG_{run}space-{SPACE.template}_res-4_desc-preproc_pet.nii.gz"
    image = stored_image(label, Path("volumes"), "sha")
    return replace(image, session=session, volumes={"pet": Path(name)})


def scored(training_set, detector, image, root, clusters, *, control=False):
    paths = anomaly_paths(root, image.volumes["pet"], detector, SPACE)
    fold = 1 if control else None
    return ScoredImage(training_set, detector, image, 0, fold, paths, {"statmap": {}}, clusters)


class Run:
    """Group-level run whose graphs are done: the clusters of each image are on disk."""

    def __init__(self, folder):
        self.out, self.work = folder / "out", folder / "work"
        self.seen = []

    def add(
        self,
        label,
        sum_scores,
        *,
        control=False,
        detector="ocsvm",
        training_set="real",
        session=None,
        run="",
        **told,
    ):
        """Add the clusters of an image: sums of scores by rank; ``told``: lesions and regions."""
        who = who_is(label, session, run)
        number = f"{len(self.seen)}.json"
        root = root_of(self.out, training_set, primary=training_set == "real")
        clusters_file = self.work / number
        scored_image = scored(training_set, detector, who, root, clusters_file, control=control)
        write_json(
            scored_image.sidecar_paths[0], {"Name": label, "DetectorCard": {"URI": "bids::x"}}
        )
        clusters = [asdict(cluster(rank, score)) for rank, score in enumerate(sum_scores, 1)]
        known = {"lesions": None, "overlaps": None, "regions": None, **told}
        write_json(scored_image.clusters, {"clusters": clusters, **known})
        self.seen.append(read_image_clusters(scored_image))
        return self.seen[-1]

    def carry(self, seen, *places):
        """Add the positions of an image's clusters in T1w space."""
        path = self.work / "T1w" / seen.scored_image.clusters.name
        write_json(path, {"places": [asdict(one) for one in places]})
        place = self.seen.index(seen)
        self.seen[place] = read_image_clusters(replace(seen.scored_image, places=path))
        return self.seen[place].scored_image

    def write(self, *, max_clusters=MOST, applied=None):
        write_detections(self.out, self.seen, max_clusters=max_clusters, applied=applied)

    def expected(self, detector="ocsvm", training_set="real"):
        """Return by label the number expected in a control for each cluster of each patient."""
        return {
            one.participant: [each.expected_in_control for each in one.clusters]
            for one in read_all_clusters(self.out)
            if (one.detector, one.training_set) == (detector, training_set)
        }


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def again(run):
    """Return the same dataset for another run."""
    return Run(run.out.parent)


# Clusters


def test_what_failed_was_not_seen(tmp_path):
    scored_image = scored("real", "ocsvm", who_is("p1"), tmp_path, tmp_path / "no.json")
    assert read_image_clusters(scored_image) is None


def test_overlaps_and_regions_join_their_clusters(run):
    seen = run.add(
        "p1",
        [9, 5, 1],
        lesions=2,
        overlaps=[[64.0, 0.0], [0.0, 0.0], [8.0, 16.0]],
        regions=["insula", None, "cuneus"],
    )
    assert seen.lesions == 2
    assert [one.overlap for one in seen.clusters] == [64.0, 0.0, 24.0]
    assert [one.region for one in seen.clusters] == ["insula", None, "cuneus"]
    assert [one.sum_score for one in seen.clusters] == [9, 5, 1]
    finding = seen.finding()
    assert finding.lesions == 2
    assert finding.marks == (
        Mark(1, 9.0, frozenset({1})),
        Mark(2, 5.0, frozenset()),
        Mark(3, 1.0, frozenset({1, 2})),
    )


@pytest.mark.parametrize(("lesions", "overlap"), [(None, None), (0, 0.0)])
def test_an_empty_mask_is_not_the_absence_of_one(run, lesions, overlap):
    seen = run.add("p1", [9, 5], lesions=lesions, overlaps=None if lesions is None else [[], []])
    assert seen.lesions == lesions
    assert [one.overlap for one in seen.clusters] == [overlap, overlap]
    assert [one.region for one in seen.clusters] == [None, None]
    assert seen.finding().lesions == 0
    assert [mark.lesions for mark in seen.finding().marks] == [frozenset(), frozenset()]


@pytest.mark.parametrize("lesions", [None, 0, 2])
def test_an_image_without_clusters_was_seen(run, lesions):
    seen = run.add("p1", [], lesions=lesions, overlaps=None if lesions is None else [], regions=[])
    assert (seen.clusters, seen.lesions) == ((), lesions)
    assert seen.shared.shape == (0, lesions if lesions else 0)
    assert seen.finding().marks == ()


def test_who_was_seen_is_told_as_tables_want_it(run):
    listed = run.add("p1", [9, 5, 1], session="a", detector="zscore").listed(2)
    assert (listed.participant, listed.session) == ("p1", "a")
    assert (listed.training_set, listed.detector) == ("real", "zscore")
    assert [one.rank for one in listed.clusters] == [1, 2]


@pytest.mark.parametrize(
    "changed",
    [
        {"clusters": [{"rank": 1}]},
        {"clusters": None},
        {"lesions": "two"},
        {"lesions": 3},
        {"overlaps": [[1.0, 2.0]]},
        {"overlaps": None},
        {"regions": ["insula"]},
        None,
    ],
)
def test_a_file_that_is_damaged_is_refused_by_name(run, changed):
    scored_image = run.add("p1", [9, 5], lesions=2, overlaps=[[1.0, 0.0]] * 2).scored_image
    told = json.loads(scored_image.clusters.read_text())
    told = {"lesions": 1} if changed is None else {**told, **changed}
    write_json(scored_image.clusters, told)
    with pytest.raises(UnusableDataError) as refused:
        read_image_clusters(scored_image)
    assert f"{refused.value}".startswith(f"{scored_image.clusters}: not the clusters of an image (")
    assert f"{refused.value}".endswith("; delete it, and run again")


def test_a_run_records_which_maps_it_has_made(run):
    run.add("c1", [9], control=True)
    run.add("p1", [9], session="a", run="run-2_", training_set="hybrid", detector="zscore")
    control, patient = scored_in(run.out, run.seen)
    grid = f"space-{SPACE.template}_res-4"
    map_of = f"sub-c1/pet/sub-c1_trc-18FFDG_{grid}_stat-t_desc-ocsvm_statmap.nii.gz"
    assert control == ScoredSubject("c1", "", "real", "ocsvm", True, map_of)
    folder, name = "detectors/hybrid/sub-p1/ses-a/pet", "sub-p1_ses-a_trc-18FFDG_run-2"
    map_of = f"{folder}/{name}_{grid}_stat-t_desc-zscore_statmap.nii.gz"
    assert patient == ScoredSubject("p1", "a", "hybrid", "zscore", False, map_of)


# Calibration by controls


def test_what_is_expected_in_a_control_by_hand(run):
    """The sums of the 3 controls are 10 and 4; 6; and none."""
    run.add("c1", [10, 4], control=True)
    run.add("c2", [6], control=True)
    run.add("c3", [], control=True)
    run.add("p1", [20, 10, 6, 5, 4, 1])
    run.write(max_clusters=10)
    assert run.expected() == {"p1": pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 1, 1], rel=1e-5)}


def test_the_card_of_a_detector_knows_what_calibrates_it(run):
    folder = run.out / "detectors" / "real"
    write_json(folder / CARD, card_values(CARD_OF))
    run.add("c1", [10], control=True)
    run.add("p1", [20])
    run.write()
    check_files(folder, read_card(folder))
    table = folder / CONTROL_CLUSTERS
    table.write_text(table.read_text().replace("10", "30"))
    with pytest.raises(UnusableDataError, match=r"control_clusters\.tsv: its SHA-256 is not"):
        check_files(folder, read_card(folder))


def signatures(run):
    told = [read_json(image.scored_image.sidecar_paths[0]) for image in run.seen]
    assert all(one["DetectorCard"]["URI"] == "bids::x" for one in told)
    return [one["DetectorCard"].get("SHA256") for one in told]


def test_maps_tell_by_which_detector_they_were_made(run):
    folder = run.out / "detectors" / "real"
    write_json(folder / CARD, card_values(CARD_OF))
    run.add("c1", [10], control=True)
    run.add("p1", [20])
    run.add("p1", [20], training_set="hybrid")  # whose detectors could not be published
    run.write()
    card = hashlib.sha256((folder / CARD).read_bytes()).hexdigest()
    assert signatures(run) == [card, card, None]


@pytest.mark.parametrize(
    "card",
    [card_values(replace(CARD_OF, files={CONTROL_CLUSTERS: "0" * 64})), {"version": "0.1"}],
    ids=["complete", "of 0.1"],
)
def test_the_card_of_an_earlier_run_does_not_sign_maps_of_another(run, card):
    folder = run.out / "detectors" / "real"
    write_json(folder / CARD, card)
    run.add("p1", [20])
    run.write()
    assert signatures(run) == [None]
    assert read_json(folder / CARD)["version"] == card["version"]
    assert read_all_clusters(run.out)


def test_a_map_that_could_not_be_carried_is_not_signed(run):
    write_json(run.out / "detectors" / "real" / CARD, card_values(CARD_OF))
    seen = run.add("p1", [20])
    seen.scored_image.sidecar_paths[0].unlink()
    run.write()
    assert not seen.scored_image.sidecar_paths[0].exists()


def test_a_control_without_clusters_counts(run):
    for label, scores in (("c1", [8]), ("c2", []), ("c3", []), ("c4", [])):
        run.add(label, scores, control=True)
    run.add("p1", [5])
    run.write()
    assert run.expected() == {"p1": [0.25]}
    lines = read_control_clusters(run.out / "detectors" / "real")
    assert [line.participant_id for line in lines] == ["sub-c1", "sub-c2", "sub-c3", "sub-c4"]
    assert [line.rank for line in lines] == [1, None, None, None]


def test_tables_tell_how_many_controls_what_is_expected_rests_on(run):
    for label, scores in (("c1", [8]), ("c2", []), ("c3", [])):
        run.add(label, scores, control=True)
    run.add("c1", [8], control=True, detector="zscore")
    seen = [run.add("p1", [5], detector=one) for one in ("ocsvm", "zscore", "pseudonormal")]
    run.write()
    ends = ["3", "1", "0", "3 (real ocsvm), 1 (real zscore), 0 (real pseudonormal)"]
    tables = [*(image.scored_image.paths["table"] for image in seen), run.out / "clusters.tsv"]
    for path, end in zip(tables, ends, strict=True):
        told = read_json(path.with_suffix(".json"))["expected_in_control"]["Description"]
        assert told.endswith(f"Number of these controls: {end}")


def test_all_clusters_of_controls_count_though_few_of_patients_are_kept(run):
    run.add("c1", [9, 8, 7, 6, 5], control=True)
    run.add("p1", [5, 4, 3])
    run.write()
    assert run.expected() == {"p1": [5, 5]}


def test_how_much_of_a_healthy_brain_scores_above_0_is_kept_with_the_detector(run):
    run.add("c1", [8], control=True, above_zero=0.75)
    run.add("c2", [], control=True, above_zero=0.5)
    run.add("c1", [8], control=True, detector="zscore")  # by a run that did not measure it
    run.add("c1", [8], control=True, training_set="hybrid", above_zero=0.25)
    run.add("p1", [8], above_zero=0.125)
    run.write()
    told = {
        name: [
            (one.participant_id, one.detector, one.above_zero)
            for one in read_control_maps(run.out / "detectors" / name)
        ]
        for name in ("real", "hybrid")
    }
    assert told == {
        "real": [("sub-c1", "ocsvm", 0.75), ("sub-c2", "ocsvm", 0.5), ("sub-c1", "zscore", None)],
        "hybrid": [("sub-c1", "ocsvm", 0.25)],
    }


def test_detectors_and_training_sets_are_calibrated_by_their_own_controls(run):
    rows = [("ocsvm", "real"), ("zscore", "real"), ("ocsvm", "hybrid")]
    for place, (detector, name) in enumerate(rows):
        kind = {"detector": detector, "training_set": name}
        run.add("c1", [10] * (place + 1), control=True, **kind)
        run.add("p1", [9], **kind)
    run.write()
    assert [run.expected(*row) for row in rows] == [{"p1": [1]}, {"p1": [2]}, {"p1": [3]}]


@given(
    controls=st.lists(st.lists(st.integers(0, 50), max_size=5), min_size=1, max_size=5),
    patient=st.lists(st.integers(0, 50), min_size=1, max_size=6),
)
def test_a_higher_cluster_is_not_expected_more_often(tmp_path_factory, controls, patient):
    run = Run(tmp_path_factory.mktemp("run"))
    for number, scores in enumerate(controls):
        run.add(f"c{number}", sorted(scores, reverse=True), control=True)
    run.add("p1", sorted(patient, reverse=True))
    run.write(max_clusters=10)
    (expected,) = run.expected().values()
    assert expected == sorted(expected)
    total = sum(map(len, controls)) / len(controls)
    assert all(0 <= one <= total * (1 + 1e-5) for one in expected)


def test_without_controls_nothing_is_expected(run):
    run.add("p1", [9])
    run.write()
    assert run.expected() == {"p1": [None]}


def test_controls_of_an_earlier_run_do_not_calibrate_another_detector(run):
    run.add("c1", [10], control=True)
    run.add("p1", [9])
    run.write()
    later = again(run)
    later.add("p1", [9])
    later.write()
    assert later.expected() == {"p1": [None]}
    assert read_control_clusters(run.out / "detectors" / "real") == []


def test_a_detector_that_is_applied_is_calibrated_by_its_own_controls(run, tmp_path):
    run.add("c1", [10, 8], control=True)
    run.add("p1", [9])
    run.write()
    applied = run.out / "detectors" / "real"
    before = (applied / "control_clusters.tsv").read_bytes()
    there = Run(tmp_path / "there")
    there.add("p2", [9, 7])
    there.write(applied=applied)
    assert there.expected() == {"p2": [1, 2]}
    assert (applied / "control_clusters.tsv").read_bytes() == before
    assert not (there.out / "detectors").exists()


@pytest.mark.parametrize("name", ["real", "hybrid"])
def test_a_detector_that_is_applied_has_curves_with_its_own_controls(run, tmp_path, name):
    """The same patients give the same curves whether their detector was trained or applied."""
    lesions = {"lesions": 1, "overlaps": [[0.0], [64.0], [0.0]]}
    for label, scores in (("c1", [10, 8, 1]), ("c2", []), ("p2", [4])):  # the p2 there is another
        run.add(label, scores, control=True, training_set=name, session="a")
        run.add(label, [*scores, 1], control=True, training_set=name, detector="zscore")
    there = Run(tmp_path / "there")
    for each in (run, there):
        for label in ("p1", "p2"):
            for detector in ("ocsvm", "zscore"):
                each.add(label, [9, 7, 6], detector=detector, training_set=name, **lesions)
    run.write()
    there.write(applied=run.out / "detectors" / name)
    for file in CURVES:
        own, applied = ((one.out / f"{file}.tsv").read_text() for one in (run, there))
        assert own == applied
    points = [
        point
        for point in read_curve(there.out)
        if (point.detector, point.unit) == ("ocsvm", "lesion")
    ]
    assert [point.false_clusters_per_control for point in points] == pytest.approx(
        [2 / 3, 1], rel=1e-5
    )
    assert {(one.training_set, one.detector) for one in read_froc(there.out)} == {
        (name, "ocsvm"),
        (name, "zscore"),
    }


# Tables


def test_each_patient_has_a_table_of_its_first_clusters(run):
    run.add("c1", [7, 6, 5], control=True)
    seen = run.add("p1", [9, 8, 7])
    none = run.add("p2", [])
    run.write()
    first, second = read_clusters_table(seen.scored_image.paths["table"])
    assert (first.rank, first.sum_score) == (1, 9.0)
    assert (second.rank, second.sum_score) == (2, 8.0)
    assert read_clusters_table(none.scored_image.paths["table"]) == []
    assert none.scored_image.paths["table"].is_file()
    assert (
        not run.seen[0].scored_image.paths["table"].exists()
    )  # clusters of controls are in control_clusters.tsv
    assert len(read_control_clusters(run.out / "detectors" / "real")) == 3


def test_each_patient_has_a_table_in_the_space_of_the_t1w_with_what_controls_say(run):
    run.add("c1", [8], control=True)
    own = run.carry(run.add("p1", [9, 8, 7]), Place(1, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 80.0))
    run.write()
    first, second = read_tsv(own.paths["table_in_t1w"])
    assert (first["rank"], first["sum_score"], first["expected_in_control"]) == ("1", "9", "0")
    assert [first[axis] for axis in "xyz"] == ["1", "2", "3"]
    assert (second["rank"], second["expected_in_control"], second["x"]) == ("2", "1", "n/a")
    assert own.paths["table_in_t1w"].with_suffix(".json").is_file()


def test_without_places_there_is_no_table_in_the_space_of_the_t1w(run):
    own = run.carry(run.add("p1", [9]))
    own.places.unlink()
    run.seen[0] = read_image_clusters(run.seen[0].scored_image)
    run.write()
    assert run.seen[0].scored_image.paths["table"].is_file()
    table = own.paths["table_in_t1w"]
    assert not table.exists()
    images = [own.paths[name] for name in ("statmap_in_t1w", "labels_in_t1w")]
    others = [*images, *map(sidecar_path, images), table, table.with_suffix(".json")]
    others.append(own.paths["labels_in_t1w"].with_name(table.name.replace("_clusters", "_dseg")))
    assert {*own.stale} == {own.clusters, own.places, *others}


def test_who_was_a_patient_in_an_earlier_run_has_no_table_as_a_control(run):
    own = run.carry(run.add("p1", [9]), Place(1, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 80.0))
    run.write()
    as_patient = {*own.paths["table"].parent.glob("*.tsv")}
    assert len(as_patient) == 4  # of clusters and of labels, in two spaces
    as_control = run.add("p1", [9], control=True).scored_image
    assert as_patient <= {*as_control.stale}
    assert {own.paths["statmap_in_t1w"], own.paths["labels_in_t1w"]} <= {*as_control.stale}


@pytest.mark.parametrize("told", [{}, {"places": 3}, {"places": [{"rank": 1}]}])
def test_places_that_are_damaged_are_refused_by_name(run, told):
    own = run.carry(run.add("p1", [9]))
    write_json(own.places, told)
    with pytest.raises(UnusableDataError, match=r"T1w/0\.json: not the places of clusters \("):
        read_image_clusters(run.seen[0].scored_image)


def test_one_table_has_the_clusters_of_all_patients(run):
    run.add("p1", [9, 8, 7])
    run.add("p1", [3], training_set="hybrid", detector="zscore")
    run.add("p2", [5], session="a")
    run.add("c1", [5], control=True)
    run.write()
    rows = [
        (
            row["participant_id"],
            row["session_id"],
            row["training_set"],
            row["detector"],
            row["rank"],
            row["sum_score"],
        )
        for row in read_tsv(run.out / "clusters.tsv")
    ]
    assert rows == [
        ("sub-p1", "n/a", "real", "ocsvm", "1", "9"),
        ("sub-p1", "n/a", "real", "ocsvm", "2", "8"),
        ("sub-p1", "n/a", "hybrid", "zscore", "1", "3"),
        ("sub-p2", "ses-a", "real", "ocsvm", "1", "5"),
    ]


def test_of_several_pets_of_a_session_joint_tables_tell_of_the_first(run):
    lesion = {"lesions": 1, "overlaps": [[8.0]]}
    first = run.add("p1", [9], run="run-1_", **lesion)
    second = run.add("p1", [4], run="run-2_", lesions=1, overlaps=[[0.0]])
    other = run.add("p1", [7], session="a", **lesion)
    run.write()
    for seen, scores in ((first, [9]), (second, [4]), (other, [7])):
        assert [
            one.sum_score for one in read_clusters_table(seen.scored_image.paths["table"])
        ] == scores
    listed = [(one.session, one.clusters[0].sum_score) for one in read_all_clusters(run.out)]
    assert listed == [(None, 9), ("a", 7)]
    assert {(point.n, point.found) for point in read_curve(run.out)} == {(1, 1)}


def test_detectors_are_compared_on_the_same_pet_of_a_session(run):
    """The map of run-1 by one detector was lost; run-2 does not cover one of the lesions."""
    run.add("p1", [4], run="run-2_", lesions=1, overlaps=[[8.0]])
    run.add("p1", [4], run="run-2_", lesions=1, overlaps=[[0.0]], detector="zscore")
    run.add("p1", [9], run="run-1_", lesions=2, overlaps=[[8.0, 0.0]], detector="zscore")
    run.add("p2", [5], lesions=1, overlaps=[[8.0]])
    run.add("p2", [5], lesions=1, overlaps=[[8.0]], detector="zscore")
    run.write()
    listed = [(one.detector, one.participant) for one in read_all_clusters(run.out)]
    assert listed == [("zscore", "p1"), ("ocsvm", "p2"), ("zscore", "p2")]
    assert {(test.unit, test.n) for test in read_tests(run.out)} == {("lesion", 1), ("patient", 1)}


# Curves


def curves(run):
    return {name: (run.out / f"{name}.tsv").is_file() for name in CURVES}


def test_curves_are_written_where_lesions_are_known(run):
    run.add("c1", [6, 5, 4], control=True)
    run.add("c2", [], control=True)
    run.add("p1", [9, 8], lesions=1, overlaps=[[0.0], [64.0]])
    run.add("p2", [7], lesions=1, overlaps=[[0.0]])
    run.add("p3", [7])  # lesions unknown
    run.write()
    assert curves(run) == dict.fromkeys(CURVES, True)
    points = {(one.unit, one.clusters): one for one in read_curve(run.out)}
    assert sorted(points) == [(unit, n) for unit in ("lesion", "patient") for n in (1, 2)]
    one, two = points["patient", 1], points["patient", 2]
    assert (one.n, one.found, two.found) == (2, 0, 1)
    assert (one.false_clusters_per_patient, two.false_clusters_per_patient) == (1, 1)
    assert (one.false_clusters_per_control, two.false_clusters_per_control) == (0.5, 1)
    lesions = [point for point in read_froc(run.out) if point.unit == "lesion"]
    corners = [(p.sum_score, p.false_clusters_per_control, p.sensitivity) for p in lesions]
    assert corners == [(8, 0, 0.5), (4, 1.5, 0.5)]


def test_clusters_that_are_not_kept_count_in_the_free_response(run):
    run.add("c1", [2], control=True)
    run.add("p1", [9, 8, 7], lesions=1, overlaps=[[0.0], [0.0], [64.0]])
    run.write(max_clusters=1)
    assert [point.found for point in read_curve(run.out)] == [0, 0]
    assert [one.sensitivity for one in read_froc(run.out)] == [1, 1, 1, 1]


def test_detectors_are_compared_with_each_other(run):
    for detector, overlap in (("ocsvm", 64.0), ("zscore", 0.0)):
        for label in ("p1", "p2", "p3"):
            run.add(label, [9], detector=detector, lesions=1, overlaps=[[overlap]])
    run.write()
    told = read_tests(run.out)
    assert {(one.detector_1, one.detector_2, one.only_1, one.only_2) for one in told} == {
        ("ocsvm", "zscore", 3, 0)
    }
    assert {one.p for one in told} == {0.25}


@pytest.mark.parametrize("lesions", [{}, {"lesions": 0, "overlaps": [[]]}])
def test_curves_are_removed_when_lesions_are_no_longer_known(run, lesions):
    run.add("p1", [9], lesions=1, overlaps=[[8.0]])
    run.write()
    written = {f"{name}{end}" for name in CURVES for end in (".tsv", ".json")}
    assert written <= {path.name for path in run.out.iterdir()}
    later = again(run)
    later.add("p1", [9], **lesions)
    later.write()
    assert not written & {path.name for path in run.out.iterdir()}
    assert (run.out / "clusters.tsv").is_file()
    later.write()  # nothing to remove


# Printed output


def test_the_first_cluster_of_each_patient_is_told(run):
    run.add("c1", [9], control=True)
    run.add("p1", [9, 8], lesions=1, overlaps=[[700.0], [0.0]])
    run.add("p2", [9], lesions=1, overlaps=[[0.0]])
    run.add("p3", [9])
    run.add("p4", [])
    run.add("p5", [9], session="b")
    run.add("p1", [9], detector="zscore", training_set="hybrid")
    place = "left, no named region, (-30, 12, 8) mm, 1.5 cm³"
    assert top_clusters(run.seen) == {
        "OC-SVM, real": [
            f"sub-p1: {place}, 0.7 cm³ of it in lesions",
            f"sub-p2: {place}, not in a lesion",
            f"sub-p3: {place}",
            "sub-p4: no cluster",
            f"sub-p5 ses-b: {place}",
        ],
        "z score, hybrid": [f"sub-p1: {place}"],
    }


def test_a_first_cluster_in_the_midplane_is_told_without_a_sign(run):
    seen = run.add("p1", [9])
    seen = replace(seen, clusters=(cluster(1, 9, x=-0.4, side="midline", region="pons"),))
    (line,) = top_clusters([seen])["OC-SVM, real"]
    assert line == "sub-p1: pons, midline, (0, 12, 8) mm, 1.5 cm³"
