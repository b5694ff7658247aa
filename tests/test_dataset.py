import json
import os
import pickle
import shutil
from dataclasses import FrozenInstanceError
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.arguments import normalize_labels
from bids_app.dataset import index as reading
from bids_app.dataset import validation
from bids_app.dataset.filters import check_filters, is_fdg
from bids_app.dataset.index import find_subjects, frame_durations, parse_name
from bids_app.dataset.participants import read_participants
from bids_app.dataset.selection import select
from bids_app.dataset.sessions import natural_key, nearest_session
from bids_app.dataset.validation import find_validator, make_writable, refuse_inside, validate_bids
from bids_app.errors import (
    CannotCreateError,
    InvalidBidsError,
    MissingInputError,
    NothingSelectedError,
    UnusableDataError,
    UsageError,
)
from bids_app.visit import Scan, Selection

DS002748 = Path(__file__).parents[2] / "shared" / "data" / "ds002748"
FDG = "trc-18FFDG_pet"

labels = st.text("abcXYZ0129", min_size=1, max_size=4)
validator = pytest.mark.skipif(find_validator() is None, reason="bids-validator-deno is absent")


@pytest.fixture
def raw(tmp_path):
    """Return a function that creates a dataset of empty images.

    Example: ``raw({"01/a": ["T1w", FDG]}, {path: content})``.
    """

    def build(images: dict[str, list[str]], texts: dict[str, object] | None = None) -> Path:
        root = tmp_path / "raw"
        root.mkdir(exist_ok=True)
        described = {"dataset_description.json": {"Name": "made", "BIDSVersion": "1.9.0"}}
        for place, names in images.items():
            subject, _, session = place.partition("/")
            stem = f"sub-{subject}" + (f"_ses-{session}" if session else "")
            folder = root.joinpath(*(part for part in stem.split("_")))
            folder.mkdir(parents=True, exist_ok=True)
            for name in names:
                datatype = "pet" if name.endswith("pet") else "anat"
                path = folder / datatype / f"{stem}_{name}.nii.gz"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"not looked at")
        for name, content in {**described, **(texts or {})}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return root

    return build


def names(selection: Selection) -> list[tuple[str, list[str]]]:
    return [(v.t1w.path.name, [p.path.name for p in v.pets]) for v in selection.visits]


def reasons(selection: Selection) -> dict[str, tuple[str, int | None]]:
    return {
        (u.path.name if u.path else f"sub-{u.subject}"): (u.reason, u.exit_code)
        for u in selection.unused
    }


# Selection of participants


def test_without_sessions(raw):
    selection = select(raw({"01": ["T1w", FDG], "02": ["T1w"]}))
    assert names(selection) == [
        ("sub-01_T1w.nii.gz", ["sub-01_trc-18FFDG_pet.nii.gz"]),
        ("sub-02_T1w.nii.gz", []),
    ]
    assert selection.unused == ()
    assert selection.visits[0].session is None


def test_a_visit_for_each_session_with_its_own_pet(raw):
    selection = select(raw({"01/a": ["T1w", FDG], "01/b": ["T1w", FDG]}))
    assert [(v.session, [p.session for p in v.pets]) for v in selection.visits] == [
        ("a", ["a"]),
        ("b", ["b"]),
    ]
    assert all(visit.notes == () for visit in selection.visits)


@pytest.mark.parametrize("keeps_index", [False, True])
def test_only_heads_of_participants_are_found(raw, tmp_path, keeps_index):
    root = raw(
        {"01": ["T1w", "T2w", FDG]},
        {
            "sourcedata/sub-09/anat/sub-09_T1w.nii.gz": "",
            "derivatives/x/sub-08/anat/sub-08_T1w.nii.gz": "",
            "code/sub-07/anat/sub-07_T1w.nii.gz": "",
            "code/anat/sub-07_T1w.nii.gz": "",
            "sub-06_T1w.nii.gz": "",
            "sub-01/func/sub-01_task-rest_T1w.nii.gz": "",
            "sub-01/pet/sub-01_T1w.nii.gz": "",
            "sub-01/anat/._sub-01_T1w.nii.gz": "",
            "sub-01/anat/sub-01_T1w.json": "{broken",  # not read
        },
    )
    selection = select(root, database_dir=tmp_path / "index" if keeps_index else None)
    assert names(selection) == [("sub-01_T1w.nii.gz", ["sub-01_trc-18FFDG_pet.nii.gz"])]
    assert selection.unused == ()


def test_folders_around_the_dataset_say_nothing(raw, tmp_path):
    root = raw({"01": ["T1w"]})
    around = tmp_path / "ses-x" / "sub-y"
    around.mkdir(parents=True)
    (visit,) = select(root.rename(around / "raw")).visits
    assert (visit.subject, visit.session) == ("01", None)


def test_a_selection_can_be_kept_and_sent(raw):
    root = raw({"01": ["T1w", "pet"]}, {"pet.json": {"TracerName": "FDG", "FrameDuration": [1, 2]}})
    selection = select(root)
    assert pickle.loads(pickle.dumps(selection)) == selection
    assert len({selection, select(root)}) == 1
    with pytest.raises(FrozenInstanceError):
        selection.visits = ()


@pytest.mark.parametrize(
    ("images", "flags", "used", "left"),
    [
        (["run-2_T1w", "run-10_T1w"], {}, "run-2_T1w", "run-10_T1w"),
        (["run-2_T1w", "run-10_T1w"], {"run_label": ["010"]}, "run-10_T1w", "run-2_T1w"),
        (["acq-hi_T1w", "T1w"], {"run_label": ["1"]}, "T1w", "acq-hi_T1w"),
        (["acq-lo_T1w", "acq-hi_T1w"], {}, "acq-hi_T1w", "acq-lo_T1w"),
        (
            ["acq-lo_T1w", "acq-hi_T1w"],
            {"filters": {"t1w": {"acquisition": "lo", "suffix": "T1w"}}},
            "acq-lo_T1w",
            "acq-hi_T1w",
        ),
        (["acq-hi_T1w", "T1w"], {"filters": {"t1w": {"acq": "*"}}}, "acq-hi_T1w", "T1w"),
        (["acq-hi_T1w", "T1w"], {"filters": {"t1w": {"acq": None}}}, "T1w", "acq-hi_T1w"),
        (
            ["run-1_T1w", "run-02_T1w"],
            {"filters": {"t1w": {"run": [2]}}},
            "run-02_T1w",
            "run-1_T1w",
        ),
    ],
)
def test_one_t1w_a_session(raw, images, flags, used, left):
    selection = select(raw({"01": images}), **flags)
    assert names(selection) == [(f"sub-01_{used}.nii.gz", [])]
    assert list(reasons(selection)) == [f"sub-01_{left}.nii.gz"]
    assert selection.unused[0].exit_code is None


def test_one_pet_a_session_and_the_others_are_named(raw):
    pets = [f"trc-18FFDG_{rest}_pet" for rest in ("rec-b_run-01", "rec-a_run-02", "rec-a_run-01")]
    selection = select(raw({"01": ["T1w", *pets]}))
    assert names(selection)[0][1] == ["sub-01_trc-18FFDG_rec-a_run-01_pet.nii.gz"]
    assert len(selection.unused) == 2
    for entry in selection.unused:
        assert "sub-01_trc-18FFDG_rec-a_run-01_pet.nii.gz" in entry.reason
        assert "--run-label" in entry.reason
    assert selection.visits[0].pets[0].entity("run") == "01"


def test_each_kind_of_image_has_its_filter(raw):
    root = raw({"01/a": ["T1w", FDG], "01/b": ["T1w", FDG]})
    filters = {"t1w": {"session": "a"}, "pet": {"ses": ["ses-b"], "datatype": "pet"}}
    (visit,) = select(root, filters=filters).visits
    assert (visit.session, [pet.session for pet in visit.pets]) == ("a", ["b"])


# Participants


def test_participants_are_chosen_and_left_out(raw):
    root = raw({label: ["T1w"] for label in ("01", "02", "03")})
    selection = select(
        root, participant_label=["03", "01", "99"], exclude_participant_label=["01", "98"]
    )
    assert [v.subject for v in selection.visits] == ["03"]
    assert {key: code for key, (_, code) in reasons(selection).items()} == {
        "sub-99": 66,
        "sub-01": None,
        "sub-98": None,
    }


def test_only_unknown_participants_is_nothing(raw):
    with pytest.raises(NothingSelectedError, match="sub-01"):
        select(raw({"01": ["T1w"]}), participant_label=["1"])


@pytest.mark.parametrize(
    "flags",
    [
        {"session_label": ["zz"]},
        {"filters": {"t1w": {"acq": "zz"}, "pet": {"acq": "zz"}}},
        {"exclude_participant_label": ["01"]},
    ],
)
def test_flags_that_leave_nothing(raw, flags):
    with pytest.raises(NothingSelectedError):
        select(raw({"01/a": ["T1w", FDG]}), **flags)


def test_a_participant_without_t1w_is_a_problem_of_its_own(raw):
    root = raw({"01": [FDG], "02": ["T2w"], "03": [], "04": ["T1w"]})
    selection = select(root)
    assert [v.subject for v in selection.visits] == ["04"]
    told = reasons(selection)
    assert set(told) == {"sub-01", "sub-02", "sub-03"}
    assert {code for _, code in told.values()} == {66}
    assert told["sub-01"][0].startswith("sub-01: no T1w; PET alone")
    assert "no T1w and no PET" in told["sub-03"][0]


def test_only_problems_are_given_back_not_raised(raw):
    selection = select(raw({"01": [FDG]}))
    assert selection.visits == ()
    assert [entry.exit_code for entry in selection.unused] == [66]


def test_labels_that_no_result_could_carry(raw):
    root = raw({"01": ["T1w", "trc-18F-FDG_pet"], "02-old": ["T1w"], "03": ["T1w"]})
    selection = select(root)
    assert [(v.subject, v.pets) for v in selection.visits] == [("01", ()), ("03", ())]
    told = reasons(selection)
    assert {code for _, code in told.values()} == {65}
    assert "trc-18F-FDG is not a legal label" in told["sub-01_trc-18F-FDG_pet.nii.gz"][0]
    assert "sub-02-old" in told["sub-02-old_T1w.nii.gz"][0]


# Tracers


@pytest.mark.parametrize(
    "name", ["FDG", "[18F]FDG", "18F-fluorodeoxyglucose", "Fludeoxyglucose F18"]
)
def test_fdg_has_many_names(name):
    assert is_fdg(name)


@pytest.mark.parametrize("name", ["11CPIB", "18FAV45", "18F-FDGal", "Flutemetamol", "glucose"])
def test_others_are_not_fdg(name):
    assert not is_fdg(name)


def test_of_two_tracers_fdg_is_used_and_the_other_named(raw):
    selection = select(raw({"01": ["T1w", "trc-11CPIB_pet", "trc-fdg_pet"]}))
    assert names(selection)[0][1] == ["sub-01_trc-fdg_pet.nii.gz"]
    assert reasons(selection) == {
        "sub-01_trc-11CPIB_pet.nii.gz": ("its tracer is 11CPIB; only FDG is used", None)
    }


def test_another_tracer_can_be_named(raw):
    root = raw({"01": ["T1w", "trc-11CPIB_pet", FDG]})
    assert names(select(root, tracer_label=["11cpib"]))[0][1] == ["sub-01_trc-11CPIB_pet.nii.gz"]
    assert names(select(root, tracer_label=["FDG"]))[0][1] == [f"sub-01_{FDG}.nii.gz"]


@pytest.mark.parametrize(
    ("tracer", "flag", "used", "code"),
    [
        ("fluorodeoxyglucose", [], True, None),
        ("PiB", [], False, None),
        (None, [], False, 65),
        (None, ["FDG"], True, None),
        ("PiB", ["FDG"], False, None),
    ],
)
def test_the_sidecar_tells_the_tracer_where_the_name_does_not(raw, tracer, flag, used, code):
    root = raw({"01": ["T1w", "pet"]}, {"sub-01/pet/sub-01_pet.json": {"TracerName": tracer}})
    selection = select(root, tracer_label=flag)
    assert len(selection.visits) == 1  # the T1w is processed
    assert bool(selection.visits[0].pets) is used
    assert [u.exit_code for u in selection.unused] == ([] if used else [code])


# Sidecars


def test_the_nearest_sidecar_wins(raw):
    root = raw(
        {"01/a": ["T1w", "run-1_pet", "run-2_pet"]},
        {
            "pet.json": {"TracerName": "PiB", "Units": "kBq/mL", "FrameTimesStart": [0]},
            "sub-01/sub-01_pet.json": {"TracerName": "FDG", "Synthetic": True, "Name": "other"},
            "sub-01/ses-a/pet/sub-01_ses-a_run-2_pet.json": {"FrameTimesStart": [7]},
            "sub-02/pet/sub-02_pet.json": "{broken",  # of another participant
        },
    )
    metadata = dict(select(root).visits[0].pets[0].metadata)
    assert metadata == {
        "TracerName": "FDG",
        "Units": "kBq/mL",
        "FrameTimesStart": (0,),
        "Synthetic": True,
    }
    later = select(root, run_label=["2"]).visits[0].pets[0]
    assert dict(later.metadata)["FrameTimesStart"] == (7,)


@pytest.mark.parametrize("name", ["._{}", "old_{}", ".pet", "{}_old_pet", "old_pet"])
def test_a_file_that_is_only_named_like_a_sidecar_is_not_read(raw, name):
    stem = f"sub-01_{FDG}"
    root = raw(
        {"01": ["T1w", FDG]},
        {
            f"sub-01/pet/{stem}.json": {"Units": "Bq/mL"},
            f"sub-01/pet/{name.format(stem)}.json": {"Units": "other"},
        },
    )
    (pet,) = select(root).visits[0].pets
    assert dict(pet.metadata) == {"Units": "Bq/mL"}


def test_nan_in_a_sidecar_is_no_value(raw):
    """JSON has no NaN, so that it could not be written to the sidecars of results."""
    root = raw({"01": ["T1w", FDG]})
    sidecar = root / f"sub-01/pet/sub-01_{FDG}.json"
    sidecar.write_text('{"Units": NaN, "TracerName": NaN, "FrameDuration": [NaN, 5]}')
    (pet,) = select(root).visits[0].pets
    assert [key for key, _ in pet.metadata] == ["FrameDuration"]
    assert frame_durations(pet) == ()


def test_a_sidecar_belongs_to_an_image_of_the_same_name_even_if_that_is_odd(raw):
    odd = "trc-18F_FDG_pet"
    root = raw({"01": ["T1w", odd]}, {f"sub-01/pet/sub-01_{odd}.json": {"TracerName": "FDG"}})
    (pet,) = select(root).visits[0].pets
    assert dict(pet.metadata) == {"TracerName": "FDG"}


@pytest.mark.parametrize("content", ["{broken", "[1]", "\xff"])
def test_a_broken_sidecar_is_a_problem_of_one_pet(raw, content):
    root = raw({"01": ["T1w", FDG], "02": ["T1w", FDG]})
    (root / "sub-01/pet/sub-01_trc-18FFDG_pet.json").write_bytes(content.encode("latin-1"))
    selection = select(root)
    assert [len(v.pets) for v in selection.visits] == [0, 1]
    (entry,) = selection.unused
    assert entry.exit_code == 65
    assert "sub-01_trc-18FFDG_pet.json" in entry.reason


def scan_with(**metadata: object) -> Scan:
    return Scan(Path("sub-01_pet.nii.gz"), "01", None, (), tuple(metadata.items()))


def test_frame_durations():
    assert frame_durations(scan_with(FrameDuration=(5, 5.5))) == (5.0, 5.5)
    assert frame_durations(scan_with(FrameDuration=9)) == (9.0,)
    assert frame_durations(scan_with(FrameTimesStart=(0,))) == ()


@pytest.mark.parametrize("starts", [(0, 5, 9), (0,), ("a",), 0, None, (-1, float("nan"))])
def test_when_frames_began_does_not_matter(starts):
    assert frame_durations(scan_with(FrameTimesStart=starts, FrameDuration=(5, 4))) == (5.0, 4.0)


@pytest.mark.parametrize("durations", [("5",), (True,), (5, None), (float("nan"),), (10**400,)])
def test_durations_that_are_no_numbers_are_none(durations):
    assert frame_durations(scan_with(FrameDuration=durations)) == ()


# Sessions


def test_pet_without_t1w_goes_to_the_nearest_session(raw):
    selection = select(raw({"01/1": ["T1w"], "01/2": [FDG], "01/10": ["T1w", FDG]}))
    assert [(v.session, [p.session for p in v.pets]) for v in selection.visits] == [
        ("1", ["2"]),
        ("10", ["10"]),
    ]
    assert selection.visits[0].notes == (
        "PET of ses-2 has no T1w of its own session; T1w of ses-1 is used, 1 apart by the numbers "
        "in their labels",
    )


def test_the_pet_of_the_session_of_the_t1w_is_the_first(raw):
    (visit,) = select(raw({"01/1": [FDG], "01/2": ["T1w", FDG], "01/3": [FDG]})).visits
    assert [pet.session for pet in visit.pets] == ["2", "1", "3"]


def test_dates_decide_if_all_are_known(raw):
    images = {"01/1": ["T1w"], "01/2": [FDG], "01/3": ["T1w"]}
    table = "session_id\tacq_time\nses-1\t2020-01-01\nses-2\t2020-06-01T10:00:00\nses-3\t{}\n"
    sessions = "sub-01/sub-01_sessions.tsv"
    selection = select(raw(images, {sessions: table.format("2020-06-09T00:00:00Z")}))
    assert [len(v.pets) for v in selection.visits] == [0, 1]
    selection = select(raw(images, {sessions: table.format("n/a")}))
    assert [len(v.pets) for v in selection.visits] == [1, 0]  # a tie in rank: the earlier one


def test_times_of_other_zones_are_one_clock(raw):
    """From 23:00 in New York to 20:00 in Tokyo on the next day, 7 hours pass, not 21."""
    images = {"01/1": ["T1w"], "01/2": [FDG], "01/3": ["T1w"]}
    table = (
        "session_id\tacq_time\nses-1\t2020-01-01T11:00:00-05:00\n"
        "ses-2\t2020-01-01T23:00:00-05:00\nses-3\t2020-01-02T20:00:00+09:00\n"
    )
    selection = select(raw(images, {"sub-01/sub-01_sessions.tsv": table}))
    assert [(v.session, len(v.pets)) for v in selection.visits] == [("1", 0), ("3", 1)]
    assert "0.2917 days apart" in selection.visits[1].notes[0]


def test_flags_that_part_a_pet_from_its_t1w_say_so(raw):
    root = raw({"01/a": ["T1w"], "01/b": [FDG], "02/b": ["T1w"]})
    selection = select(root, session_label=["b"])
    assert [v.subject for v in selection.visits] == ["02"]
    assert reasons(selection)["sub-01"] == (
        "sub-01: no T1w for its PET; the flags exclude that of ses-a",
        66,
    )


@given(st.lists(st.integers(0, 12), min_size=2, max_size=8, unique=True), st.data())
def test_nearest_in_time_is_nearest_on_the_clock(days, data):
    sessions = [f"s{i}" for i in data.draw(st.permutations(range(len(days))))]
    epoch = datetime(2020, 1, 1).toordinal()
    when = dict(zip(sessions, days, strict=True))
    times = {s: datetime.fromordinal(epoch + day) for s, day in when.items()}
    here, *candidates = sessions
    nearest = nearest_session(here, candidates, times)
    best = min(abs(when[s] - when[here]) for s in candidates)
    assert abs(when[nearest] - when[here]) == best
    as_near = [s for s in candidates if abs(when[s] - when[here]) == best]
    assert when[nearest] == min(when[s] for s in as_near)


@given(st.lists(st.integers(0, 2000)))
def test_numbers_in_labels_sort_as_numbers(numbers):
    ordered = sorted((f"m{number}" for number in numbers), key=natural_key)
    assert [int(label[1:]) for label in ordered] == sorted(numbers)


# Names and labels


@given(st.lists(st.tuples(st.sampled_from(["sub", "ses", "trc", "run"]), labels), max_size=4))
def test_parsing_a_name_gives_its_entities_back(entities):
    name = "_".join([*(f"{key}-{label}" for key, label in entities), "pet"]) + ".nii.gz"
    assert parse_name(name) == tuple(entities)


@given(st.lists(labels), st.sampled_from(["sub-", "ses-", "trc-", "run-"]))
def test_labels_with_and_without_prefix_are_the_same(plain, prefix):
    expected = tuple(dict.fromkeys(plain))
    assert normalize_labels(plain, prefix) == expected
    assert normalize_labels([prefix + label for label in plain], prefix) == expected
    assert normalize_labels(expected, prefix) == expected


def test_labels_from_a_file(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\ufeffsub-01\n\n 02  # a remark\n# all\nsub-01\n", encoding="utf-8")
    assert normalize_labels([str(path), "03"], "sub-") == ("01", "02", "03")


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"sub-01\tm\n", b"\xff\xfe"])
def test_files_that_are_no_list_of_labels(tmp_path, content):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"list\.txt"):
        normalize_labels([str(path)], "sub-")


def test_what_is_neither_label_nor_file():
    with pytest.raises(UsageError, match="neither a label"):
        normalize_labels(["sub-0_1"], "sub-")


@pytest.mark.parametrize(
    "filters",
    [
        [],
        {"bold": {}},
        {"t1w": []},
        {"t1w": {"colour": "red"}},
        {"pet": {"run": {"a": 1}}},
        {"pet": {"run": [1.5]}},
        {"t1w": {"suffix": "UNIT1"}},
        {"pet": {"datatype": ["anat"]}},
    ],
)
def test_filters_that_cannot_be_understood(filters):
    with pytest.raises(UsageError, match="--bids-filter-file"):
        check_filters(filters)


# Folders that are not datasets


def test_folders_that_are_no_dataset(tmp_path, raw):
    with pytest.raises(MissingInputError):
        find_subjects(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidBidsError, match="not a folder"):
        find_subjects(tmp_path / "file")
    with pytest.raises(InvalidBidsError, match=r"dataset_description\.json"):
        find_subjects(tmp_path)
    with pytest.raises(InvalidBidsError, match="no sub-"):
        find_subjects(raw({}))


def test_an_unreadable_description(raw):
    with pytest.raises(InvalidBidsError, match=r"dataset_description\.json"):
        select(raw({"01": ["T1w"]}, {"dataset_description.json": "{"}))


def test_a_database_serves_other_selections(raw, tmp_path):
    root = raw({"01": ["T1w"], "02": ["T1w", FDG]})
    database = tmp_path / "database"
    first = select(root, participant_label=["01"], database_dir=database)
    second = select(root, participant_label=["02"], database_dir=database)
    assert [v.subject for v in first.visits + second.visits] == ["01", "02"]
    assert second == select(root, participant_label=["02"])


def test_who_was_added_since_a_database_was_made_is_found(raw, tmp_path):
    raw({"01": ["T1w"]})
    database = tmp_path / "database"
    select(tmp_path / "raw", database_dir=database)
    root = raw({"02": ["T1w"], "03/a": ["T1w", FDG]}, {f"{FDG}.json": {"TracerName": "FDG"}})
    found = select(root, database_dir=database)
    assert [visit.subject for visit in found.visits] == ["01", "02", "03"]
    assert found == select(root)


def test_databases_that_cannot_be_used(raw, tmp_path):
    root = raw({"01": ["T1w"]})
    other = shutil.copytree(root, tmp_path / "other")
    select(other, database_dir=tmp_path / "database")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "layout_index.sqlite").write_text("no database" * 99)
    for place in (tmp_path / "database", broken, Path("/proc/mri2pet")):
        with pytest.raises(UsageError, match=str(place)):
            select(root, database_dir=place)


def test_only_the_participants_asked_for_are_indexed(raw, monkeypatch):
    root = raw({f"{i:02d}/a": ["T1w", FDG] for i in range(20)})
    indexed = []
    list_files = reading.list_files
    monkeypatch.setattr(reading, "list_files", lambda *a: indexed.extend(list_files(*a)) or indexed)
    assert len(select(root, participant_label=["03", "19"]).visits) == 2
    assert len(indexed) == 4


# participants.tsv


def test_participants_table(tmp_path):
    assert read_participants(tmp_path)[0] == {}
    table = "\ufeffparticipant_id\tgroup\tage\nsub-01\tcontrol\t30\n02\tpatient\n\n"
    table += "03\tpatient\tN/A\n04\tpatient\tNaN\n"
    (tmp_path / "participants.tsv").write_text(table, encoding="utf-8")
    assert read_participants(tmp_path)[0] == {
        "01": {"group": "control", "age": "30"},
        **{label: {"group": "patient", "age": "n/a"} for label in ("02", "03", "04")},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "participant_id"),
        (b"participant_id,age\nsub-01,3\n", "tabs"),
        (b"participant_id\tage\nsub-01\t3\t4\n", "row 2"),
        (b"participant_id\tname\nsub-01\t\xe9\n", "UTF-8"),
    ],
)
def test_malformed_participants_tables(tmp_path, content, message):
    (tmp_path / "participants.tsv").write_bytes(content)
    with pytest.raises(UnusableDataError, match=message):
        read_participants(tmp_path)


# The validator


@validator
def test_a_valid_dataset_passes_without_home_or_schema(raw, monkeypatch):
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("BIDS_SCHEMA", "https://invalid.invalid/schema.json")
    assert validate_bids(raw({"01": ["T1w"]})) is None


@validator
def test_errors_name_files_and_the_way_out(raw):
    root = raw({"01": ["T1w"]}, {"sub-01/anat/sub-01_T1.nii.gz": "", "sub-01/junk.txt": "x"})
    with pytest.raises(InvalidBidsError) as caught:
        validate_bids(root)
    for part in ("NOT_INCLUDED", "1 more", "--skip-bids-validation", str(root)):
        assert part in str(caught.value)


def test_an_absent_or_broken_validator_is_a_warning(raw, tmp_path, monkeypatch):
    root = raw({"01": ["T1w"]})
    monkeypatch.setattr(validation.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in validate_bids(root)
    command = tmp_path / validation.COMMAND
    command.write_text("#!/bin/sh\necho no\n")
    command.chmod(0o755)
    assert "failed" in validate_bids(root)


@validator
@pytest.mark.skipif(not DS002748.is_dir(), reason=f"{DS002748} is absent")
def test_a_real_dataset_passes():
    assert validate_bids(DS002748) is None
    selection = select(DS002748, participant_label=["01", "52"])
    assert [v.subject for v in selection.visits] == ["01", "52"]
    assert read_participants(DS002748)[0]["52"]["group"] == "control"


# Location of the output folder


@pytest.mark.parametrize("inside", [".", "out", "sub-01/out", "derivatives"])
def test_the_input_is_never_written_to(raw, inside):
    root = raw({"01": ["T1w"]})
    before = sorted(root.rglob("*"))
    with pytest.raises(UsageError):
        refuse_inside(root, root / inside)
    assert sorted(root.rglob("*")) == before


def test_a_link_to_the_input_is_the_input(raw, tmp_path):
    root = raw({"01": ["T1w"]})
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(UsageError):
        refuse_inside(root, tmp_path / "link")


@pytest.mark.parametrize("place", ["raw/derivatives/mri2pet", "elsewhere/out"])
def test_a_good_place_is_made(raw, tmp_path, place):
    refuse_inside(raw({"01": ["T1w"]}), tmp_path / place)
    make_writable(tmp_path / place)
    assert list((tmp_path / place).iterdir()) == []


def test_places_where_nothing_can_be_made(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file/out", Path("/proc/mri2pet"), Path("/proc")):
        with pytest.raises(CannotCreateError, match=str(place)):
            make_writable(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root passes permission bits")
def test_a_folder_without_permission(tmp_path):
    place = tmp_path / "out"
    place.mkdir(mode=0o500)
    with pytest.raises(CannotCreateError):
        make_writable(place)
