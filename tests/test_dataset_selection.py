"""Selection of files: one image of several, tracers, sessions, and rows of tables."""

import os
import re
import shutil
import socket
import subprocess
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from bids_app.dataset import index as reading
from bids_app.dataset.filters import Rules, check_filters, is_fdg, why_not, why_not_tracer
from bids_app.dataset.index import parse_name, read_bidsignore
from bids_app.dataset.participants import read_participants
from bids_app.dataset.selection import choose_best, select
from bids_app.dataset.sessions import nearest_session, place_sessions, read_session_times
from bids_app.errors import (
    MissingInputError,
    Mri2petError,
    NothingSelectedError,
    ReadWriteError,
    UnusableDataError,
    UsageError,
)
from bids_app.files import read_tsv, write_tsv
from bids_app.visit import Scan, Selection

FDG = "trc-18FFDG_pet"
IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def raw(tmp_path):
    """Return a function that creates a dataset of empty images.

    Example: ``raw({"01/a": ["T1w", FDG]}, {path: content})``.
    """

    def build(images: dict[str, list[str]], texts: dict[str, str] | None = None) -> Path:
        root = tmp_path / "raw"
        for place, names in images.items():
            subject, _, session = place.partition("/")
            stem = f"sub-{subject}" + (f"_ses-{session}" if session else "")
            for name in names:
                folder = root.joinpath(*stem.split("_"), "pet" if name.endswith("pet") else "anat")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{stem}_{name}.nii.gz").write_bytes(b"not looked at")
        described = {"dataset_description.json": '{"Name": "made", "BIDSVersion": "1.10.0"}'}
        for name, content in {**described, **(texts or {})}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        return root

    return build


def used(selection: Selection) -> dict[str, list[str]]:
    """Return the image names of each visit, T1w first, without extension and ``sub-01_``."""
    return {
        f"{v.subject}/{v.session}": [
            scan.path.name.partition(".")[0].partition("_")[2] for scan in (v.t1w, *v.pets)
        ]
        for v in selection.visits
    }


def problems(selection: Selection) -> list[tuple[str, int]]:
    return [(u.reason, u.exit_code) for u in selection.unused if u.exit_code is not None]


def scan(name: str, session: str | None = None, **metadata: object) -> Scan:
    path = Path(f"sub-01_{name}.nii.gz")
    return Scan(path, "01", session, parse_name(path.name), tuple(metadata.items()))


# One image of several

BETTER = {  # the first of each pair is preferred, whatever its run and other labels
    "T1w": [
        ("", "ce-gad"),
        ("part-mag", "ce-gad"),
        ("rec-norm", "ce-gad"),
        ("acq-gre", "acq-bravoGd"),
        ("acq-noGd", "acq-Gd"),
        ("ce-none", "ce-gadavist"),
        ("", "space-MNI152NLin6Asym"),
        ("rec-x", "desc-brain"),
        ("ce-gad", "desc-defaced"),
    ],
    "pet": [
        ("rec-ac", "rec-nac"),
        ("rec-acdyn", "rec-nacstat"),
        ("rec-osem", "rec-nac"),
        ("", "rec-nac"),
        ("rec-acstat", "rec-acdyn"),
        ("rec-ac", "rec-osem"),
        ("rec-acdyn", ""),
        ("", "acq-NAC"),
        ("", "rec-noAC"),
        ("acq-static", "acq-dynamic"),
        ("rec-acosem", "rec-nacosem"),
        ("rec-nacstat", "rec-nacdyn"),
        ("", "space-T1w"),
        ("rec-a", "desc-seg"),
        ("rec-CTAC", "rec-uncorrected"),
        ("", "rec-dyn"),
    ],
}
PAIRS = [(kind, *pair) for kind, pairs in BETTER.items() for pair in pairs]
tasks = st.text("abcXYZ", min_size=1, max_size=4).map(lambda text: f"task-{text}")
runs = st.integers(1, 30).map(lambda number: f"run-{number}")
parts = st.tuples(st.none() | tasks, st.none() | runs)


def named(quality: str, others: tuple[str | None, ...], kind: str) -> str:
    return "_".join([part for part in (quality, *others) if part] + [kind])


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@settings(max_examples=20, deadline=None)
@given(others=st.tuples(parts, parts), swapped=st.booleans())
@example(others=(("task-z", None), (None, "run-1")), swapped=True)
def test_the_better_one_wins_whatever_runs_and_names(pair, others, swapped):
    kind, *qualities = pair
    scans = [scan(named(q, other, kind)) for q, other in zip(qualities, others, strict=True)]
    chosen, (other,), remarks = choose_best(scans[::-1] if swapped else scans, kind.lower())
    assert chosen[None].path == scans[0].path
    assert other.path == scans[1].path
    assert "because" in other.reason
    assert not any("equally good" in remark for remark in remarks[None])


@given(st.permutations(["rec-acstat", "rec-acdyn", "rec-osem", "rec-nacstat", "rec-nacdyn"]))
def test_the_order_of_reconstructions_is_one(labels):
    left, order = list(labels), []
    while left:
        chosen, _, _ = choose_best([scan(f"{one}_pet") for one in left], "pet")
        order.append(chosen[None].entity("rec"))
        left.remove(f"rec-{order[-1]}")
    assert order == ["acstat", "acdyn", "osem", "nacstat", "nacdyn"]


def test_the_images_of_the_issue(raw):
    root = raw(
        {
            "1": ["part-phase_T1w", "part-mag_T1w"],
            "2": ["part-phase_T1w", "rec-x_T1w"],
            "3": ["ce-gad_T1w", "rec-norm_T1w"],
            "4": ["acq-gre_ce-gad_T1w", "acq-mprage_T1w"],
            "5": ["T1w", "trc-18FFDG_rec-nac_run-1_pet", "trc-18FFDG_rec-ac_pet"],
            "6": ["T1w", "trc-18FFDG_rec-acdyn_pet", "trc-18FFDG_rec-acstat_pet"],
            "7": ["chunk-1_T1w", "T1w"],
        }
    )
    assert used(select(root)) == {
        "1/None": ["part-mag_T1w"],
        "2/None": ["rec-x_T1w"],
        "3/None": ["rec-norm_T1w"],
        "4/None": ["acq-mprage_T1w"],
        "5/None": ["T1w", "trc-18FFDG_rec-ac_pet"],
        "6/None": ["T1w", "trc-18FFDG_rec-acstat_pet"],
        "7/None": ["T1w"],
    }
    assert problems(select(root)) == []


@pytest.mark.parametrize(
    "name",
    ["part-phase_T1w", "part-real_T1w", "part-imag_T1w", "chunk-1_T1w", "chunk-02_run-1_T1w"],
)
def test_what_is_never_a_t1w(raw, name):
    selection = select(raw({"01": [name], "02": ["T1w"]}))
    assert list(used(selection)) == ["02/None"]
    ((reason, code),) = problems(selection)
    assert code == 65
    assert f"sub-01_{name}.nii.gz" in reason
    assert "no T1w" not in reason


def test_a_phase_image_is_never_a_pet(raw):
    selection = select(raw({"01": ["T1w", "trc-18FFDG_part-phase_pet"]}))
    assert used(selection) == {"01/None": ["T1w"]}
    assert problems(selection)[0][1] == 65


@pytest.mark.parametrize(
    ("filters", "t1w", "pet"),
    [
        ({}, "T1w", "rec-ac_pet"),
        ({"t1w": {"ceagent": "gad"}}, "ce-gad_T1w", "rec-ac_pet"),
        ({"t1w": {"ce": "*"}}, "ce-gad_T1w", "rec-ac_pet"),
        ({"t1w": {"space": "MNI"}}, "space-MNI_T1w", "rec-ac_pet"),
        ({"pet": {"reconstruction": "nac"}}, "T1w", "rec-nac_pet"),
        ({"pet": {"rec": ["acdyn"], "datatype": "pet"}}, "T1w", "rec-acdyn_pet"),
    ],
)
def test_a_filter_overrides_every_rank(raw, filters, t1w, pet):
    t1ws = ["ce-gad_T1w", "T1w", "space-MNI_T1w"]
    pets = [f"trc-18FFDG_rec-{rec}_pet" for rec in ("ac", "nac", "acdyn")]
    selection = select(raw({"01": [*t1ws, *pets]}), filters=filters)
    assert used(selection) == {"01/None": [t1w, f"trc-18FFDG_{pet}"]}


def test_a_filter_settles_an_ending(raw):
    root = raw({"01": ["T1w"]})
    (root / "sub-01/anat/sub-01_T1w.nii").write_bytes(b"")
    for ending in (".nii", ".nii.gz", "nii.gz"):
        (visit,) = select(root, filters={"t1w": {"extension": ending}}).visits
        assert visit.t1w.path.name == f"sub-01_T1w.{ending.removeprefix('.')}"
        assert visit.notes == ()


def test_equally_good_images_are_told_once_and_a_filter_settles_it(raw):
    names = ["acq-b_T1w", "acq-a_T1w", "ce-x_T1w", f"rec-a_{FDG}", f"rec-b_{FDG}"]
    root = raw({"01": [name.replace("rec-a_trc-18FFDG", "trc-18FFDG_rec-a") for name in names]})
    (visit,) = select(root).visits
    assert [note.partition(":")[0] for note in visit.notes] == [
        "2 T1w images are equally good",
        "2 PET images are equally good",
    ]
    assert "sub-01_acq-a_T1w.nii.gz is used, the first by run, then by name" in visit.notes[0]
    filters = {"t1w": {"acq": "b"}, "pet": {"rec": "a"}}
    (visit,) = select(root, filters=filters).visits
    assert (visit.notes, visit.t1w.entity("acq")) == ((), "b")


def test_what_is_second_best_but_alone_is_used_and_told(raw):
    (visit,) = select(raw({"01": ["ce-gad_T1w", "trc-18FFDG_rec-nac_pet"]})).visits
    assert len(visit.pets) == 1
    assert "shows a contrast agent" in visit.notes[0]
    assert "not corrected for attenuation" in visit.notes[1]


# Names and folders


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("sub-01/anat/sub-02_T1w.nii.gz", "sub-02, but it lies in sub-01"),
        ("sub-01/anat/sub-1_T1w.nii.gz", "sub-1, but it lies in sub-01"),
        ("sub-01/ses-1/anat/sub-01_ses-2_T1w.nii.gz", "ses-2, but it lies in ses-1"),
        ("sub-01/ses-1/anat/sub-01_ses-01_T1w.nii.gz", "ses-01, but it lies in ses-1"),
        (
            "sub-01/anat/sub-01_ses-2_T1w.nii.gz",
            "its name says ses-2, but it is not in a ses- folder",
        ),
        ("sub-01/ses-1/anat/sub-01_T1w.nii.gz", "lies in ses-1, but its name has no ses-"),
    ],
)
def test_a_name_that_contradicts_its_folders_is_a_problem(raw, path, says):
    root = raw({"01/1": [], "02": ["T1w"]}, {path: ""})
    selection = select(root)
    assert list(used(selection)) == ["02/None"]
    ((reason, code),) = [problem for problem in problems(selection) if "its name" in problem[0]]
    assert code == 65
    assert says in reason


def test_a_copy_of_a_file_is_no_image(raw):
    root = raw({"01": ["T1w"]}, {"sub-01/anat/Copy of sub-01_T1w.nii.gz": ""})
    selection = select(root)
    assert used(selection) == {"01/None": ["T1w"]}
    assert problems(selection) == []
    (root / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    ((reason, code),) = problems(select(root))
    assert code == 65
    assert "Copy of sub-01_T1w.nii.gz: there is a file, but its name" in reason


# .bidsignore


def test_bidsignore_is_obeyed_for_participants_sessions_and_images(raw):
    images = {
        "01": ["acq-bad_T1w", "acq-good_T1w"],
        "02": ["T1w"],
        "03/1": ["T1w"],
        "03/2": ["T1w"],
        "04": ["T1w", "trc-18FFDG_rec-acstat_pet", "trc-18FFDG_rec-acdyn_pet"],
    }
    ignore = "# all\nsub-02/\n**/*_acq-bad_T1w.nii.gz\nses-2\n/sub-04/pet/*acstat*\n"
    root = raw(images, {".bidsignore": ignore})
    selection = select(root)
    assert used(selection) == {
        "01/None": ["acq-good_T1w"],
        "03/1": ["ses-1_T1w"],
        "04/None": ["T1w", "trc-18FFDG_rec-acdyn_pet"],
    }
    assert problems(selection) == []
    assert [v.notes for v in selection.visits] == [()] * 3
    told = {u.path.name if u.path else u.subject: u.reason for u in selection.unused}
    assert set(told) == {
        "02",
        "sub-01_acq-bad_T1w.nii.gz",
        "sub-03_ses-2_T1w.nii.gz",
        "sub-04_trc-18FFDG_rec-acstat_pet.nii.gz",
    }
    assert all(".bidsignore" in reason for reason in told.values())


def test_who_is_ignored_but_asked_for_is_told(raw):
    root = raw({"01": ["T1w"], "02": ["T1w"]}, {".bidsignore": "sub-02\n"})
    ((reason, code),) = problems(select(root, participant_label=["01", "02"]))
    assert (code, ".bidsignore" in reason) == (66, True)
    with pytest.raises(NothingSelectedError, match=r"\.bidsignore"):
        select(root, participant_label=["02"])


def test_an_ignored_t1w_leaves_nothing_of_its_participant(raw):
    root = raw({"01": ["T1w"], "02": ["T1w"]}, {".bidsignore": "sub-01/anat/*\n"})
    selection = select(root)
    assert list(used(selection)) == ["02/None"]
    assert problems(selection) == []


PATHS = (
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-02/ses-1/pet/sub-02_ses-1_pet.nii.gz",
    "a/b/c",
    "a/a/a",
    "sub-02/anat/a b.nii",
    "#x",
    "!y",
    "a/b/a/c",
    "x[1]/y",
    "sub-1",
)
FRAGMENTS = (
    "sub-",
    "sub-0?",
    "*",
    "/",
    "/**/",
    "**/",
    "a",
    "b",
    "c",
    "[ab]",
    "[!a]",
    "[a-c]",
    "_T1w",
    "anat",
    "ses-*",
    ".nii*",
    "?",
    "\\*",
    "\\#x",
    "\\!y",
    " ",
    "[1]",
)
lines = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=4).map("".join)


@pytest.mark.skipif(shutil.which("git") is None, reason="git, the oracle, is absent")
@settings(IN_ONE_FOLDER, max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "!"]), lines).map("".join), min_size=1, max_size=3))
@example(["sub-0?/", "!/sub-02/**/"])
@example(["*", "!sub-02", "!sub-02/**"])
def test_bidsignore_is_read_as_git_does(tmp_path, patterns):
    # unlike its manual, git lets a ** after a literal beginning cross slashes
    assume(not any(re.search(r"[^/]\*\*|\*\*[^/]|/{2}|\*\*/$", one) for one in patterns))
    for place in PATHS:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    for name in (".gitignore", ".bidsignore"):
        (tmp_path / name).write_text("\n".join(patterns))
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    asked = [*git, "check-ignore", "--stdin", "-z", "--no-index"]
    given_paths = "\0".join(PATHS)
    answer = subprocess.run(
        asked, input=given_paths, capture_output=True, text=True, check=False
    ).stdout
    is_ignored = read_bidsignore(tmp_path)
    assert {p for p in PATHS if is_ignored(Path(p))} == set(answer.split("\0")) - {""}


def test_a_pattern_of_many_stars_ends(tmp_path):
    (tmp_path / ".bidsignore").write_text("*a" * 40 + "b\n**/" + "*a" * 40 + "b*c\n")
    is_ignored = read_bidsignore(tmp_path)
    assert not is_ignored(Path("a" * 200, "a" * 200))
    assert is_ignored(Path("a" * 200 + "b"))


# Tracers


@pytest.mark.parametrize(
    "name",
    [
        "fluorodesoxyglucose",
        "Fluorodésoxyglucose (18F)",
        "Fluordesoxyglucose",
        "2-fluoro-2-deoxy-D-glucose",
        "18F-Fluorodesoxyglukose",
        "Fluordesoxyglukose",
        "fluorodesossiglucosio",
        "[18F]-FDG",
        "F-18 FDG",
        "fluorodesoxiglucosa",
        "fluordeoxyglucose",
        "fluorodeoksyglukoza",
        "flúor-2-desoxi-D-glicose",
        "2-Deoxy-2-(18F)fluoro-D-glucopyranose",
        "Fluorodeoxyglucose F^18^",
        "florodeoksiglukoz",
        "2-[18F]-fluoro-2-deoxyglucose",
        "[18F]deoxyglucose",
        "fdg",
        "фтордезоксиглюкоза",
        "18F_FDG",
    ],
)
def test_fdg_in_many_languages(name):
    assert is_fdg(name)


@pytest.mark.parametrize(
    "name",
    [
        "18F-FDGal",
        "FD-galactose",
        "2-deoxy-2-[18F]fluoro-D-galactose",
        "FDOPA",
        "6-[18F]fluoro-L-DOPA",
        "FLT",
        "3'-deoxy-3'-[18F]fluorothymidine",
        "FET",
        "FMISO",
        "glucose",
        "11C-glucose",
        "FDDNP",
        "[18F]Me-4FDG",
        "flumazenil",
        "florbetapir",
        "fluorodeoxymannose",
        "sodium fluoride",
        "18F",
    ],
)
def test_what_is_not_fdg(name):
    assert not is_fdg(name)


@pytest.mark.parametrize(
    ("label", "full"),
    [
        ("18FFDG", "PIB"),
        ("FDG", "Pittsburgh compound B"),
        ("18FFDG", "florbetapir"),
        ("11CPIB", "FDG"),
        ("PIB", "18F-fluorodeoxyglucose"),
        ("18FAV45", "Fluordesoxyglucose"),
        ("11Cxyz", "FDG"),
        ("18FFDG", "FDOPA"),
        ("18FFDOPA", "FDG"),
        ("18FFDGal", "FDG"),
        ("18FFDG", "FDGal"),
        ("18FFDG", "AZ1234"),
    ],
)
def test_a_tracer_that_contradicts_itself_is_a_problem_that_names_both(label, full):
    reason, code = why_not_tracer(scan(f"trc-{label}_pet", TracerName=full), ())
    assert code == 65
    assert f"trc-{label}" in reason
    assert repr(full) in reason


@pytest.mark.parametrize(
    ("label", "full"),
    [
        ("18FFDG", "FDG"),
        ("FDG", "fluorodeoxyglucose"),
        ("18FFDG", "F-18"),
        ("18FFDG", "n/a"),
        ("18FFDG", ""),
        ("18FFDG", ["FDG"]),
        ("18F", "FDG"),
        ("baseline", "FDG"),
        ("fdg", "unknown"),
        ("18FFDG", 18),
    ],
)
def test_tracers_that_do_not_contradict(label, full):
    full = tuple(full) if isinstance(full, list) else full
    assert why_not_tracer(scan(f"trc-{label}_pet", TracerName=full), ()) is None


def test_two_tracers_that_nobody_asks_for_are_no_problem():
    reason, code = why_not_tracer(scan("trc-11CPIB_pet", TracerName="raclopride"), ())
    assert code is None
    assert "11CPIB or raclopride" in reason
    assert why_not_tracer(scan("trc-11CPIB_pet", TracerName="raclopride"), ["PIB"])[1] == 65


def test_a_contradiction_costs_one_pet_only(raw):
    sidecar = {"sub-01/pet/sub-01_trc-18FFDG_pet.json": '{"TracerName": "PIB"}'}
    selection = select(raw({"01": ["T1w", FDG], "02": ["T1w", FDG]}, sidecar))
    assert used(selection) == {"01/None": ["T1w"], "02/None": ["T1w", FDG]}
    assert [code for _, code in problems(selection)] == [65]


# Sessions


@pytest.mark.parametrize(
    ("session", "candidates", "nearest", "how"),
    [
        ("M054", ["M000", "M060"], "M060", "numbers"),
        ("9", ["1", "10"], "10", "numbers"),
        ("20200601", ["20200101", "20200602"], "20200602", "dates"),
        ("20200101", ["20191130", "20200201"], "20200201", "dates"),  # as numbers, 8971 and 100
        ("MR20200101", ["MR20191231", "MR20200601"], "MR20191231", "dates"),
        ("202001", ["201912", "202006"], "201912", "dates"),
        ("31012020", ["01022020", "01012020"], "01022020", "dates"),
        ("m48", ["baseline", "m60"], "m60", "numbers"),
        ("12mo", ["0mo", "18mo"], "18mo", "numbers"),
        ("200602", ["200512", "200701"], "200512", "order"),  # dates in two formats; a tie
        ("b", ["a", "c", "d"], "a", "order"),
        (None, ["2", "1"], "1", "order"),
    ],
)
def test_the_nearest_session_and_how_it_was_measured(session, candidates, nearest, how):
    assert nearest_session(session, candidates, {}) == nearest
    assert place_sessions([session, *candidates], {})[1] == how


letters = st.text("abMVx", max_size=3)


@given(
    letters, st.lists(st.integers(0, 9999), min_size=2, max_size=6, unique=True), st.integers(4, 5)
)
def test_nearest_by_number_is_nearest_in_number(prefix, numbers, width):
    here, *others = (f"{prefix}{number:0{width}d}" for number in numbers)
    nearest = nearest_session(here, others, {})
    apart = min(abs(number - numbers[0]) for number in numbers[1:])
    at_that_distance = [n for n in numbers[1:] if abs(n - numbers[0]) == apart]
    assert nearest == f"{prefix}{min(at_that_distance):0{width}d}"


@given(st.lists(st.integers(0, 20000), min_size=2, max_size=6, unique=True))
def test_nearest_by_date_is_nearest_in_days(days):
    labels = [f"{date(1990, 1, 1) + timedelta(days=day):%Y%m%d}" for day in days]
    apart = min(abs(day - days[0]) for day in days[1:])
    nearest = nearest_session(labels[0], labels[1:], {})
    assert abs(days[labels.index(nearest)] - days[0]) == apart


def test_times_of_scans_are_read_where_those_of_sessions_are_not(raw):
    scans = (
        "filename\tacq_time\nanat/sub-01_ses-{0}_T1w.nii.gz\t{1}\nanat/x_T2w.nii.gz\t1999-01-01\n"
    )
    times = {"1": "2020-01-01T08:00:00", "2": "2020-01-30", "3": "2020-02-02"}
    files = {
        f"sub-01/ses-{label}/sub-01_ses-{label}_scans.tsv": scans.format(label, time)
        for label, time in times.items()
    }
    root = raw({"01/1": ["T1w"], "01/2": [FDG], "01/3": ["T1w"]}, files)
    assert len(read_session_times(root, "01", ["1", "2", "3"])) == 3
    by_session = {visit.session: visit for visit in select(root).visits}
    assert [len(by_session[label].pets) for label in ("1", "3")] == [0, 1]
    assert by_session["3"].notes == (
        "PET of ses-2 has no T1w of its own session; T1w of ses-3 is used, "
        "3 days apart by acq_time",
    )


def test_a_table_of_sessions_that_is_no_file_is_as_if_it_were_not_there(raw):
    root = raw({"01/M000": ["T1w"], "01/M054": [FDG], "01/M060": ["T1w"]})
    os.mkfifo(root / "sub-01/sub-01_sessions.tsv")
    assert [len(visit.pets) for visit in select(root).visits] == [0, 1]
    (visit,) = [one for one in select(root).visits if one.pets]
    assert "6 apart by the numbers in their labels" in visit.notes[0]


# There is a file, but it cannot be used


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("sub-01_T1w.NII.GZ", "lower case"),
        ("sub-01_T1w.img", "Analyze"),
        ("T1w.hdr", "Analyze"),
        ("sub-01_T1w.mgz", "FreeSurfer"),
        ("001.mgz", "FreeSurfer"),
        ("IM001.dcm", "DICOM"),
        ("sub-01_t1w.nii.gz", "its name"),
        ("sub-01_T1.nii.gz", "its name"),
        ("mprage.nii", "its name"),
        ("sub-01_UNIT1.nii.gz", "MP2RAGE"),
        ("sub-01_T1w.nii.bz2", "gzip"),
        ("sub-01_T1w.zip", "archive"),
    ],
)
def test_there_is_a_file_but(raw, name, word):
    root = raw({"02": ["T1w"]}, {f"sub-01/anat/{name}": ""})
    selection = select(root)
    ((reason, code),) = problems(selection)
    assert list(used(selection)) == ["02/None"]
    assert code == 65
    assert reason.startswith(f"{root}/sub-01/anat/{name}: there is a file, but ")
    assert word in reason


@pytest.mark.parametrize("name", ["sub-01_T2w.mgz", "sub-01_T1map.nii.gz", "notes.txt", ".T1w.nii"])
def test_what_is_meant_as_something_else_is_not_taken_for_a_t1w(raw, name):
    ((reason, code),) = problems(select(raw({"02": ["T1w"]}, {f"sub-01/anat/{name}": ""})))
    assert (reason[:28], code) == ("sub-01: no T1w and no PET; a", 66)


@pytest.mark.parametrize("folder", ["DICOM", "T1w"])
def test_a_folder_of_dicom(raw, folder):
    root = raw({"02": ["T1w"]}, {f"sub-01/anat/{folder}/IM01.dcm": "", "sub-02/pet/x.txt": ""})
    ((reason, _),) = problems(select(root))
    assert "DICOM" in reason
    assert "dcm2niix" in reason


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


MAKERS = {
    "named pipe": make_pipe,
    "socket": make_socket,
    "device": make_device,
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("what", MAKERS)
@pytest.mark.parametrize("name", ["anat/sub-01_T1w.nii.gz", "pet/sub-01_trc-18FFDG_pet.nii.gz"])
def test_what_is_no_file_costs_its_own_participant_only(raw, what, name):
    root = raw({"01": ["T2w", "trc-11CPIB_pet"], "02": ["T1w", FDG]})
    if "pet" in name:
        (root / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"")
    MAKERS[what](root / "sub-01" / name)
    selection = select(root)
    assert used(selection)["02/None"] == ["T1w", FDG]
    assert [(code, what in reason) for reason, code in problems(selection)] == [(65, True)]
    assert name in problems(selection)[0][0]


@pytest.mark.parametrize("maker", [*MAKERS.values(), make_loop])
@pytest.mark.parametrize(
    "name", ["sub-01/pet/sub-01_trc-18FFDG_pet.json", "sub-01/sub-01_pet.json"]
)
def test_a_sidecar_that_is_no_file_costs_its_own_pet_only(raw, maker, name):
    root = raw({"01": ["T1w", FDG], "02": ["T1w", FDG]})
    if maker is Path.mkdir and "pet/" not in name:
        pytest.skip("pybids lists no folders: nothing is inherited from one")
    maker(root / name)
    selection = select(root)
    assert [len(visit.pets) for visit in selection.visits] == [0, 1]
    ((reason, code),) = problems(selection)
    assert code == 65
    assert name in reason


@pytest.mark.parametrize("kind", [UnusableDataError, MissingInputError, ReadWriteError])
def test_whatever_is_wrong_with_a_sidecar_costs_its_own_pet_only(raw, monkeypatch, kind):
    root = raw({"01": ["T1w", FDG], "02": ["T1w", FDG]}, {"sub-01/sub-01_pet.json": "{}"})

    def refuse(path: Path) -> dict[str, object]:
        if path.name == "sub-01_pet.json":
            raise kind(f"{path}: larger than it should be")
        return {"Name": "x"}

    monkeypatch.setattr(reading, "read_json", refuse)
    selection = select(root)
    assert [len(visit.pets) for visit in selection.visits] == [0, 1]
    assert [code for _, code in problems(selection)] == [kind.exit_code]


@pytest.mark.parametrize("name", ["layout_config.json", "sub-01/layout_config.json", "pet.json"])
def test_the_index_opens_no_pipe(raw, name):
    root = raw({"01": ["T1w"], "02": ["T1w"]})
    os.mkfifo(root / name)
    assert len(select(root).visits) == 2


def test_loops_of_links_are_told(raw):
    root = raw({"01": ["T1w"], "02/a": ["T1w"]})
    (root / "sub-03").mkdir()
    make_loop(root / "sub-03" / "anat")
    (root / "sub-01" / "ses-up").symlink_to("..")
    (root / "sub-02" / "ses-b").symlink_to("ses-a")
    (root / "sub-04").symlink_to("../elsewhere/sub-04")
    (root / "sub-05").symlink_to("../elsewhere/sub-05")
    (root / ".bidsignore").write_text("sub-05\n")
    selection = select(root)
    assert list(used(selection)) == ["01/None", "02/a"]
    said = [reason for reason, _ in problems(selection)]
    assert len(said) == 3
    assert f"{root}/sub-04: there is a file, but it is a broken link" in said[2]
    assert "ses-a, but it lies in ses-b" in said[0]
    assert "broken link" in said[1]


# The participants table


def table_of(root: Path, text: str | bytes, present: tuple[str, ...] = ()):
    path = root / "participants.tsv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_participants(root, present)


@pytest.mark.parametrize(
    "text",
    [
        '"participant_id"\t"group"\n"sub-01"\t"control"\n"sub-02"\t"patient"\n',
        '"participant_id"\t"group"\n"1"\t"sub-01"\t"control"\n"2"\t"sub-02"\t"patient"\n',
        '""\t"participant_id"\t"group"\n"1"\t"sub-01"\t"control"\n"2"\t"sub-02"\t"patient"\n',
        '"participant_id"\t"group"\r\nsub-01\t"control"\r\n\r\nsub-02\tpatient\t\r\n',
    ],
)
def test_tables_as_r_writes_them(tmp_path, text):
    assert table_of(tmp_path, text, ("01", "02")) == (
        {"01": {"group": "control"}, "02": {"group": "patient"}},
        (),
    )


def test_rows_of_sessions_are_joined_where_they_agree(tmp_path):
    text = (
        "participant_id\tses\tgroup\tsex\nsub-01\ta\tcontrol\tF\nsub-01\tb\tcontrol\tn/a\n"
        "sub-02\ta\tcontrol\tM\nsub-02\tb\tpatient\tM\n"
    )
    people, remarks = table_of(tmp_path, text)
    table = tmp_path / "participants.tsv"
    assert people == {
        "01": {"ses": "n/a", "group": "control", "sex": "F"},
        "02": {"ses": "n/a", "group": "n/a", "sex": "M"},
    }
    assert remarks == (
        f"{table}: column ses has several values for sub-01, sub-02; n/a is used",
        f"{table}: column group has several values for sub-02; n/a is used",
    )


@pytest.mark.parametrize("spelt", ["1", "1.0", "001", "sub-1", "sub_01", "SUB-1"])
def test_zeros_that_were_lost_are_found_again_and_told(tmp_path, spelt):
    text = f"participant_id\tgroup\n{spelt}\tcontrol\n10\tpatient\n"
    people, (remark,) = table_of(tmp_path, text, ("01", "10"))
    assert people == {"01": {"group": "control"}, "10": {"group": "patient"}}
    assert "sub-01" in remark
    assert "sub-10" not in remark


@pytest.mark.parametrize(
    ("ids", "present"),
    [
        (("1",), ("01", "001")),
        (("1", "001"), ("01",)),
        (("a",), ("A", "á")),
        (("01", "001"), ("01", "1")),
        (("A", "aA"), ("A", "AA", "Aa")),
    ],
)
def test_labels_that_may_be_two_are_matched_to_none(tmp_path, ids, present):
    text = "participant_id\tgroup\n" + "".join(f"{one}\tcontrol\n" for one in ids)
    people, remarks = table_of(tmp_path, text, present)
    if present == ("A", "á"):
        assert people == {"A": {"group": "control"}}
    else:
        assert set(people) == set(ids)
        assert re.search("could be sub-(0|AA, sub-Aa)", remarks[0])
    assert f"has no row for sub-{present[-1]}" in remarks[-1] or "has no row" in remarks[-1]


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_what_python_takes_for_ends_of_lines_ends_no_row(tmp_path, sign):
    text = f"participant_id\tcomment\tgroup\nsub-01\tleft{sign}handed\tcontrol\n"
    people, remarks = table_of(tmp_path, text, ("01",))
    assert people == {"01": {"comment": "left handed", "group": "control"}}
    assert remarks == ()
    assert read_tsv(tmp_path / "participants.tsv")[0]["group"] == "control"


def test_who_has_no_row_is_named(tmp_path):
    _, (remark,) = table_of(tmp_path, "participant_id\nsub-01\n", ("01", "02", "03"))
    assert remark == f"{tmp_path}/participants.tsv: has no row for sub-02, sub-03; add it"


@pytest.mark.parametrize(
    "text",
    [b"participant_id\tg\nsub-01\ta\0b\n", b"\0", b"", b"\xff\xfep\0a\0", b"a" * 300000],
    ids=["nul", "nul alone", "empty", "utf-16", "long"],
)
def test_tables_that_cannot_be_read_get_one_sentence(tmp_path, text):
    with pytest.raises(UnusableDataError, match=r"participants\.tsv: ") as caught:
        table_of(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


def test_long_cells_many_columns_and_odd_line_ends(tmp_path):
    long = "x" * 200_000
    names = "\t".join(f"c{n}" for n in range(5000))
    text = f"participant_id\t{names}\tlast\x0b\nsub-01\t{long}\x85\u2028y\n"
    people, remarks = table_of(tmp_path, text)
    assert remarks == ()
    assert people["01"]["c0"] == f"{long} y"
    assert people["01"]["last"] == "n/a"


def test_a_table_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "participants.tsv")
    with pytest.raises(UnusableDataError, match="named pipe"):
        read_participants(tmp_path)


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
tables = st.lists(st.lists(cells | st.sampled_from(["participant_id", "sub-01", "1", '"', "n/a"])))


@IN_ONE_FOLDER
@given(
    st.binary(max_size=80)
    | tables.map(lambda rows: "\n".join(map("\t".join, rows)).encode())
    | tables.map(lambda rows: ("participant_id\tx\n" + "\n".join(map("\t".join, rows))).encode())
)
def test_any_bytes_are_a_table_or_a_sentence(tmp_path, content):
    try:
        people, remarks = table_of(tmp_path, content, ("01", "02"))
    except Mri2petError as error:
        people, remarks = {}, (str(error),)
    assert all(str(tmp_path) in remark for remark in remarks)
    columns = list(dict.fromkeys(name for row in people.values() for name in row))
    write_tsv(tmp_path / "out.tsv", columns or ["x"], list(people.values()))  # it can be written


words = st.text("abc 1.é", min_size=1, max_size=5).map(lambda t: " ".join(t.split()) or "x")
records = st.dictionaries(
    st.text("abA019", min_size=1, max_size=3),
    st.fixed_dictionaries({"group": words, "age": words}),
    max_size=5,
)


@IN_ONE_FOLDER
@given(records, st.booleans(), st.booleans())
def test_a_table_that_was_written_is_read_again(tmp_path, people, quoted, twice):
    rows = [["participant_id", "group", "age"]]
    rows += [[f"sub-{label}", row["group"], row["age"]] for label, row in people.items()]
    rows += rows[1:] * twice
    mark = '"' if quoted else ""
    text = "".join("\t".join(f"{mark}{cell}{mark}" for cell in row) + "\n" for row in rows)
    assert table_of(tmp_path, text, tuple(people)) == (people, ())


# Filters

values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
keys = st.sampled_from(["t1w", "pet", "run", "subject", "ses", "extension", "suffix", "x"])
anything = st.recursive(
    values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)


@given(anything | st.dictionaries(keys, st.dictionaries(keys, anything, max_size=3), max_size=2))
@example({"t1w": {"run": "9" * 5000}})
@example({"t1w": {"extension": [None, 3, "*"]}})
def test_any_filter_is_understood_or_refused(filters):
    try:
        rules = Rules(filters=check_filters(filters))
    except UsageError as error:
        said = [str(error)]
    else:
        said = [why_not(scan("run-01_T1w"), key, rules) for key in ("t1w", "pet")]
    assert all(one is None or one.startswith("--bids-filter-file") for one in said)
