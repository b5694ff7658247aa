import errno
import fcntl
import gzip
import json
import multiprocessing
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bids_app import nifti
from bids_app.derivatives import sidecars
from bids_app.derivatives.description import IGNORED, find_container, start_dataset, uri_in
from bids_app.derivatives.find import fingerprint, is_complete
from bids_app.derivatives.paths import (
    ENTITIES,
    derivative_path,
    report_path,
    resolution_label,
    sidecar_path,
    visit_paths,
)
from bids_app.derivatives.sidecars import Provenance, Space
from bids_app.derivatives.tables import finish_dataset, read_remarks
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError, UsageError
from bids_app.files import (
    locked,
    read_json,
    read_tsv,
    remove_partials,
    write_json,
    write_text,
    write_tsv,
)
from bids_app.visit import Scan, Visit

TEMPLATE = "MNI152NLin2009aSym"
SPACE = Space(TEMPLATE, 1.0, "https://example.org/template.nii.gz")
SOFTWARE = {"version": "0.1.0", "container": (("Type", "docker"), ("Tag", "m:1"))}
GENERATOR = {"Name": "g", "Version": "1", "SHA256": "0" * 64, "TrainedOn": "x", "IntendedUse": "y"}
VALIDATOR = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent)) or (
    shutil.which("bids-validator-deno")
)

labels = st.text("abcXYZ019+", min_size=1, max_size=6)
entities = st.dictionaries(st.sampled_from(ENTITIES[2:]), labels)


def parse(path: Path) -> dict[str, str]:
    *pairs, _suffix = path.name.partition(".")[0].split("_")
    return dict(pair.split("-", 1) for pair in pairs)


def spell(entities, subject="01", session=None, suffix="pet", extension=".nii.gz"):
    return derivative_path(
        Path("out"),
        subject=subject,
        session=session,
        datatype="pet",
        suffix=suffix,
        extension=extension,
        entities=entities,
    )


# File names


@given(labels, st.none() | labels, entities)
def test_a_name_gives_its_entities_back(subject, session, given_entities):
    expected = {**given_entities, "sub": subject, **({} if session is None else {"ses": session})}
    path = spell(given_entities, subject, session)
    assert parse(path) == expected
    assert path.name.endswith("_pet.nii.gz")
    folders = [f"sub-{subject}", *([] if session is None else [f"ses-{session}"]), "pet"]
    assert list(path.parent.parts) == ["out", *folders]


@given(entities, st.randoms(use_true_random=False))
def test_the_order_of_arguments_does_not_matter(given_entities, random):
    shuffled = list(given_entities.items())
    random.shuffle(shuffled)
    path = spell(dict(shuffled))
    assert path == spell(given_entities)
    positions = [ENTITIES.index(key) for key in parse(path)]
    assert positions == sorted(positions)


def test_names_as_bids_orders_them():
    some = {"desc": "d", "res": "1", "space": "S", "run": "1", "rec": "r", "trc": "t", "stat": "z"}
    assert spell(some).name == "sub-01_trc-t_rec-r_run-1_space-S_res-1_stat-z_desc-d_pet.nii.gz"
    assert spell({"trc": "t", "run": None}).name == "sub-01_trc-t_pet.nii.gz"


@pytest.mark.parametrize("label", ["", "a-b", "a_b", "a/b", "..", "a b", "é", "a\n"])
def test_illegal_labels(label):
    for wrong in (
        lambda: spell({"desc": label}),
        lambda: spell({}, subject=label),
        lambda: spell({}, session=label),
        lambda: spell({}, suffix=label),
        lambda: spell({}, extension=label),
        lambda: report_path(Path("out"), label),
    ):
        with pytest.raises(ValueError, match="is not"):
            wrong()


def test_unknown_entities():
    with pytest.raises(ValueError, match="colour"):
        spell({"colour": "red"})


@given(st.integers(1, 9_999_999))
def test_resolution_labels_tell_the_resolution(tenth_of_micrometre):
    label = resolution_label(tenth_of_micrometre / 10_000)
    assert float(label.replace("p", ".")) == tenth_of_micrometre / 10_000


@pytest.mark.parametrize(("mm", "label"), [(1, "1"), (1.5, "1p5"), (0.7, "0p7"), (10.0, "10")])
def test_resolution_labels(mm, label):
    assert resolution_label(mm) == label


@pytest.mark.parametrize("mm", [0, -1, float("nan"), float("inf")])
def test_resolutions_that_are_none(mm):
    with pytest.raises(ValueError, match="resolution"):
        resolution_label(mm)


# A whole dataset


def scan(raw: Path, name: str) -> Scan:
    pairs = tuple(tuple(p.split("-")) for p in name.split("_")[:-1])
    known = dict(pairs)
    folders = [f"sub-{known['sub']}", *([f"ses-{known['ses']}"] if "ses" in known else [])]
    datatype = "pet" if name.endswith("pet") else "anat"
    path = raw.joinpath(*folders, datatype, f"{name}.nii.gz")
    metadata = (("TracerName", "FDG"), ("Units", "Bq/mL")) if datatype == "pet" else ()
    return Scan(path, known["sub"], known.get("ses"), pairs, metadata)


def visits(raw: Path) -> list[Visit]:
    plain = scan(raw, "sub-01_trc-18FFDG_rec-acdyn_run-01_pet")
    own = scan(raw, "sub-02_ses-a_pet")
    other = scan(raw, "sub-02_ses-b_trc-FDG_pet")  # a session without T1w
    return [
        Visit("01", None, scan(raw, "sub-01_acq-hi_run-2_T1w"), (plain,)),
        Visit("02", "a", scan(raw, "sub-02_ses-a_T1w"), (own, other)),
        Visit("03", None, scan(raw, "sub-03_T1w")),
    ]


@pytest.fixture
def raw(tmp_path):
    root = tmp_path / "raw"
    for visit in visits(root):
        for one in (visit.t1w, *visit.pets):
            one.path.parent.mkdir(parents=True, exist_ok=True)
            one.path.write_bytes(b"raw")
    description = {"Name": "made", "BIDSVersion": "1.9.0", "DatasetDOI": "10.1/x"}
    write_json(root / "dataset_description.json", description)
    write_json(root / "participants.json", {"group": {"Description": "g"}, "gone": {}})
    return root


def write_result(path: Path, sidecar: sidecars.Sidecar, grid: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        is_mask = path.name.endswith("_mask.nii.gz")
        data = np.ones(grid, dtype=np.uint8 if is_mask else np.float32)
        nifti.save(nifti.Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    else:
        path.write_bytes(b"transform")
    write_json(sidecar_path(path), sidecar)


MEASURED = {
    "Registration": {
        "Method": "SyN",
        "SimilarityMetric": "normalized mutual information",
        "SimilarityBefore": 1.01,
        "SimilarityAfter": 1.23456789,
    },
    "IntensityScaling": {"Percentile": 99.9, "Value": 812.5},
}


def write_visit(out: Path, raw: Path, visit: Visit, mark: str = "f") -> dict[Path, dict]:
    paths = visit_paths(out, visit, TEMPLATE, 1.0)
    origin = Provenance(raw, out, mark, "0.1.0")
    made = sidecars.preprocessing_sidecars(visit, paths, origin, SPACE)
    made[paths.t1w_in_template] |= MEASURED
    made[paths.t1w_in_template]["Registration"] = {
        **MEASURED["Registration"],
        "DiceBrainMask": 0.97,
        "Verdict": "doubt",
        "VerdictReasons": ["r is .5", "the masks overlap by .8"],
    }
    for of_pet in paths.pets:
        made[of_pet.in_template] |= {
            **MEASURED,
            "FramesUsed": [0, 1],
            "FrameDurationsUsed": [300, 300],
        }
    made[paths.synthetic_pet] = sidecars.synthetic_pet(
        paths,
        origin,
        SPACE,
        generator=GENERATOR,
        smoothing_fwhm=1.5,
        trained_on_this_participant=False,
        times_mean=2.5,
        t1w_fingerprint=origin.fingerprint,
    )
    made[paths.uncertainty] = sidecars.uncertainty(made[paths.synthetic_pet], SPACE, "a")
    assert set(made) == {*paths.preprocessed, *paths.synthesized, paths.uncertainty}
    for path, sidecar in made.items():
        write_result(path, sidecar, (40, 40, 40))
    return made


def start(out: Path, raw: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    start_dataset(out, bids_dir=raw, **SOFTWARE, template=TEMPLATE, reference=SPACE.reference)


def build(out: Path, raw: Path) -> dict[Path, dict]:
    start(out, raw)
    made = {}
    for visit in visits(raw):
        made |= write_visit(out, raw, visit)
        write_text(report_path(out, visit.subject), "<html>SYNTHETIC</html>")
    people = {"01": {"group": "control"}, "03": {"group": "patient"}, "99": {"group": "control"}}
    finish_dataset(out, bids_dir=raw, participants=people)
    return made


def test_where_the_results_of_a_visit_go(tmp_path, raw):
    first, second, _ = (visit_paths(tmp_path, v, TEMPLATE, 1.5) for v in visits(raw))
    anat, pet = "sub-01/anat/sub-01", "sub-01/pet/sub-01_trc-18FFDG"
    own = f"{pet}_rec-acdyn_run-01"
    files = [p.relative_to(tmp_path).as_posix() for p in (*first.preprocessed, *first.synthesized)]
    assert files == [
        f"{anat}_desc-preproc_T1w.nii.gz",
        f"{anat}_desc-brain_mask.nii.gz",
        f"{anat}_space-{TEMPLATE}_res-1p5_desc-preproc_T1w.nii.gz",
        f"{anat}_space-{TEMPLATE}_res-1p5_desc-brain_mask.nii.gz",
        f"{anat}_from-T1w_to-{TEMPLATE}_mode-image_xfm.h5",
        f"{anat}_from-{TEMPLATE}_to-T1w_mode-image_xfm.h5",
        f"{own}_space-{TEMPLATE}_res-1p5_desc-preproc_pet.nii.gz",
        f"{own}_space-T1w_desc-preproc_pet.nii.gz",
        f"{own}_from-pet_to-T1w_mode-image_xfm.txt",
        f"{own}_space-{TEMPLATE}_res-1p5_desc-coverage_mask.nii.gz",
        f"{own}_space-T1w_desc-coverage_mask.nii.gz",
        f"{pet}_space-{TEMPLATE}_res-1p5_desc-synth_pet.nii.gz",
    ]
    assert second.synthetic_pet.parent == tmp_path / "sub-02/ses-a/pet"
    assert second.pets[0].in_t1w.name == "sub-02_ses-a_trc-18FFDG_space-T1w_desc-preproc_pet.nii.gz"
    assert second.pets[1].in_t1w.parent == tmp_path / "sub-02/ses-b/pet"
    assert second.pets[1].in_t1w.name.startswith("sub-02_ses-b_trc-18FFDG_")


@pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is absent")
@pytest.mark.parametrize("place", ["out", "raw/derivatives/mri2pet"])
def test_the_dataset_is_valid_bids(tmp_path, raw, place):
    out = tmp_path / place
    build(out, raw)
    for name in ("logs/run.toml", "figures/sub-01_t1w.svg", ".work/a/b.nii.gz", "train.html"):
        write_text(out / name, "x")
    (out / ".partial.json").write_text("{")  # as a killed run may leave it behind
    finish_dataset(out, bids_dir=raw, participants={"01": {"group": "x"}}, remarks=["told"])
    outcome = subprocess.run(
        [VALIDATOR, "--format", "json_pp", str(out)], capture_output=True, text=True, check=False
    )
    issues = json.loads(outcome.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert outcome.returncode == 0


def test_every_source_is_there(tmp_path, raw):
    out = tmp_path / "out"
    made = build(out, raw)
    roots = {"raw": raw, "": out}
    for path, sidecar in made.items():
        uris = [*sidecar["Sources"], sidecar.get("SpatialReference", "bids::README.md")]
        for scheme, dataset, inside in (u.split(":", 2) for u in uris if u.startswith("bids:")):
            assert scheme == "bids"
            assert (roots[dataset] / inside).is_file(), (path, inside)
        assert sidecar["Sources"]


def test_what_sidecars_say(tmp_path, raw):
    out = tmp_path / "out"
    made = {path.relative_to(out).name: content for path, content in build(out, raw).items()}
    for name, content in made.items():
        assert (content["Fingerprint"], content["Version"]) == ("f", "0.1.0")
        assert ("Resolution" in content) == ("_res-" in name)
        assert ("SpatialReference" in content) == ("desc-preproc_T1w" not in name or "_res" in name)
        assert ("SYNTHETIC" in content["Description"]) == ("desc-synth" in name)
        assert ("SkullStripped" in content) == name.endswith(
            ("T1w.nii.gz", "pet.nii.gz", "std.nii.gz")
        )
        assert ("Synthetic" in content) == ("desc-synth" in name)
        assert not {"FrameTimesStart", "FrameDuration", "InjectedRadioactivity"} & set(content)
    synthetic = made[f"sub-03_trc-18FFDG_space-{TEMPLATE}_res-1_desc-synth_pet.nii.gz"]
    assert synthetic["Synthetic"] is True
    assert synthetic["TrainedOnThisParticipant"] is False
    assert synthetic["Generator"] == GENERATOR
    spread = made[f"sub-03_trc-18FFDG_space-{TEMPLATE}_res-1_desc-synth_std.nii.gz"]
    assert "Standard deviation of the error" in spread["Description"]
    assert spread["ErrorModelSHA256"] == "a"
    alike = set(spread) - {"Description", "ErrorModelSHA256"}
    assert {key: spread[key] for key in alike} == {key: synthetic[key] for key in alike}
    in_t1w = made["sub-02_ses-b_trc-18FFDG_space-T1w_desc-preproc_pet.nii.gz"]
    assert in_t1w["Units"] == "Bq/mL"
    assert in_t1w["SkullStripped"] is False
    assert in_t1w["SpatialReference"] == (
        "bids::sub-02/ses-a/anat/sub-02_ses-a_desc-preproc_T1w.nii.gz"
    )
    assert made["sub-01_desc-preproc_T1w.nii.gz"]["Sources"] == [
        "bids:raw:sub-01/anat/sub-01_acq-hi_run-2_T1w.nii.gz"
    ]


def test_tables_list_all_that_lies_there(tmp_path, raw):
    out = tmp_path / "out"
    build(out, raw)
    assert read_tsv(out / "participants.tsv") == [
        {"participant_id": "sub-01", "group": "control"},
        {"participant_id": "sub-02", "group": "n/a"},
        {"participant_id": "sub-03", "group": "patient"},
    ]
    assert read_json(out / "participants.json") == {"group": {"Description": "g"}}
    rows = read_tsv(out / "desc-registration_metrics.tsv")
    assert len(rows) == 6  # three T1w, three PET; no synthetic PET
    assert {row["dice_brain_mask"] for row in rows if "_T1w" in row["file"]} == {"0.97"}
    assert {row["dice_brain_mask"] for row in rows if "_pet" in row["file"]} == {"n/a"}
    assert {row["similarity_after"] for row in rows} == {"1.23457"}
    told = {(row["verdict"], row["reasons"]) for row in rows}
    assert told == {("doubt", "r is .5; the masks overlap by .8"), ("n/a", "n/a")}
    assert [row["session_id"] for row in rows if row["participant_id"] == "sub-02"] == [
        "ses-a",
        "ses-a",
        "ses-b",
    ]
    assert all((out / row["file"]).is_file() for row in rows)


def test_a_later_run_keeps_what_an_earlier_one_knew(tmp_path, raw):
    out = tmp_path / "out"
    build(out, raw)
    finish_dataset(out, bids_dir=raw, participants={"02": {"age": "30"}})
    assert read_tsv(out / "participants.tsv")[:2] == [
        {"participant_id": "sub-01", "age": "n/a", "group": "control"},
        {"participant_id": "sub-02", "age": "30", "group": "n/a"},
    ]


def write_table(raw: Path, people: dict[str, dict[str, str]], **json_of: object) -> None:
    """Write a raw participants table, and a folder for each participant."""
    columns = list(dict.fromkeys(name for row in people.values() for name in row))
    for label in people:
        (raw / f"sub-{label}").mkdir(parents=True, exist_ok=True)
    rows = [{"participant_id": f"sub-{label}", **row} for label, row in people.items()]
    write_tsv(raw / "participants.tsv", ["participant_id", *columns], rows)
    write_json(raw / "participants.json", json_of)


def finish(out: Path, raw: Path, people: dict[str, dict[str, str]], **json_of: object) -> list:
    write_table(raw, people, **json_of)
    remarks = [f"{raw}/participants.tsv: about {name}" for name in json_of]
    return finish_dataset(out, bids_dir=raw, participants=people, remarks=remarks)


@pytest.fixture
def three(tmp_path):
    """Output with two participants of one dataset and one of another."""
    out, first, second = (tmp_path / name for name in ("out", "first", "second"))
    for label in ("01", "02", "03"):
        (out / f"sub-{label}").mkdir(parents=True)
    finish(out, second, {"03": {"group": "patient", "site": "b"}}, site={"Description": "s"})
    people = {"01": {"group": "control"}, "02": {"group": "control"}}
    told = finish(out, first, people, group={"Description": "g"})
    return out, first, told


def test_rows_of_other_datasets_are_kept_and_told(three):
    out, first, told = three
    assert read_tsv(out / "participants.tsv") == [
        {"participant_id": "sub-01", "group": "control", "site": "n/a"},
        {"participant_id": "sub-02", "group": "control", "site": "n/a"},
        {"participant_id": "sub-03", "group": "patient", "site": "b"},
    ]
    (sentence,) = told
    assert sentence.startswith(f"{first}/participants.tsv: there is no sub-03 in the raw dataset")
    explained = read_json(out / "participants.json")
    assert explained["group"] == {"Description": "g"}
    assert explained["site"] == {"Description": "s"}
    assert [remark.rpartition(": ")[2] for remark in read_remarks(out)[:2]] == [
        "about site",
        "about group",
    ]
    assert read_remarks(out)[2:] == (sentence,)


@pytest.mark.parametrize("row", [{}, {"group": "n/a"}])
def test_a_control_that_was_withdrawn_is_none_in_the_output(three, row):
    out, first, _ = three
    finish(out, first, {"01": {"group": "control"}, **({"02": row} if row else {})})
    groups = {one["participant_id"]: one["group"] for one in read_tsv(out / "participants.tsv")}
    assert groups == {"sub-01": "control", "sub-02": "n/a", "sub-03": "patient"}
    assert [remark.rpartition(": ")[2] for remark in read_remarks(out)][:1] == ["about site"]


def test_a_column_that_was_renamed_is_gone(tmp_path):
    out, raw = tmp_path / "out", tmp_path / "raw"
    (out / "sub-01").mkdir(parents=True)
    finish(out, raw, {"01": {"group": "control", "age": "3"}}, group={"Description": "g"})
    finish(out, raw, {"01": {"diagnosis": "patient"}}, diagnosis={"Description": "d"}, x={"L": 1})
    assert read_tsv(out / "participants.tsv") == [
        {"participant_id": "sub-01", "diagnosis": "patient"}
    ]
    explained = read_json(out / "participants.json")
    assert explained.pop("participant_id")["Remarks"] == [
        f"{raw}/participants.tsv: about diagnosis",
        f"{raw}/participants.tsv: about x",
    ]
    assert explained == {"diagnosis": {"Description": "d"}}


def test_without_a_raw_table_what_is_known_stays(tmp_path):
    out, raw = tmp_path / "out", tmp_path / "raw"
    (out / "sub-01").mkdir(parents=True)
    (raw / "sub-01").mkdir(parents=True)
    write_tsv(
        out / "participants.tsv",
        ["participant_id", "group"],
        [{"participant_id": "sub-01", "group": "control"}],
    )
    (stale,) = finish_dataset(out, bids_dir=raw, participants={})
    assert "participants.tsv: no such file; what an earlier run found on sub-01 is kept" in stale
    assert read_tsv(out / "participants.tsv")[0]["group"] == "control"
    (raw / "participants.tsv").write_text("damaged")  # it is decisive even if unreadable
    assert finish_dataset(out, bids_dir=raw, participants={}) == []
    assert read_tsv(out / "participants.tsv") == [{"participant_id": "sub-01"}]


shards = st.lists(
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["control", "patient"]), min_size=1),
    min_size=1,
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(shards)
def test_the_last_dataset_that_has_someone_decides(tmp_path, some):
    """A round trip of the table through any number of runs."""
    out = tmp_path / uuid4().hex
    for number, groups in enumerate(some):
        raw = tmp_path / uuid4().hex / f"raw{number}"
        for label in groups:
            (out / f"sub-{label}").mkdir(parents=True, exist_ok=True)
        finish(out, raw, {label: {"group": group} for label, group in groups.items()})
    known: dict[str, str] = {}
    for groups in some:
        known |= groups
    rows = {row["participant_id"][4:]: row["group"] for row in read_tsv(out / "participants.tsv")}
    assert rows == known


def test_descriptions_that_json_cannot_hold_are_left_out(tmp_path):
    out, raw = tmp_path / "out", tmp_path / "raw"
    (out / "sub-01").mkdir(parents=True)
    write_table(raw, {"01": {"a": "1", "b": "2", "c": "3"}})
    text = '{"a": {"Maximum": NaN}, "b": {"Description": "b"}, "c": {"Description": "\\ud800"}}'
    (raw / "participants.json").write_text(text)
    finish_dataset(out, bids_dir=raw, participants={"01": {"a": "1", "b": "2", "c": "3"}})
    assert read_json(out / "participants.json") == {"b": {"Description": "b"}}


def test_the_description(tmp_path, raw):
    out, inside = tmp_path / "out", raw / "derivatives/mri2pet"
    start(out, raw)
    start(inside, raw)
    content = read_json(out / "dataset_description.json")
    assert content["DatasetType"] == "derivative"
    assert content["DatasetLinks"] == {"raw": raw.as_uri(), "template": SPACE.reference}
    assert content["SourceDatasets"] == [{"URL": raw.as_uri(), "DOI": "10.1/x"}]
    (maker,) = content["GeneratedBy"]
    assert (maker["Name"], maker["Version"]) == ("mri2pet", "0.1.0")
    assert maker["Container"] == {"Type": "docker", "Tag": "m:1"}
    link = read_json(inside / "dataset_description.json")["DatasetLinks"]["raw"]
    assert (inside / link).resolve() == raw
    assert "SYNTHETIC" in (out / "README.md").read_text()
    assert {row["desc_id"] for row in read_tsv(out / "descriptions.tsv")} == {
        "desc-preproc",
        "desc-synthscaled",
        "desc-difference",
        "desc-brain",
        "desc-coverage",
        "desc-synth",
        "desc-ocsvm",
        "desc-asymmetry",
        "desc-combined",
        "desc-zscore",
        "desc-pseudonormal",
        "desc-controlsmean",
        "desc-controlssd",
    }


def test_a_file_of_another_dataset_has_a_uri_that_leads_to_it(tmp_path, raw):
    out, other = tmp_path / "out", tmp_path / "masks"
    start(out, raw)
    before = read_json(out / "dataset_description.json")
    mask = other / "sub-01" / "anat" / "m.nii.gz"
    assert uri_in(out, "lesions", other, mask) == "bids:lesions:sub-01/anat/m.nii.gz"
    links = {**before["DatasetLinks"], "lesions": other.as_uri()}
    assert read_json(out / "dataset_description.json") == {**before, "DatasetLinks": links}
    start(out, raw)  # by a later run of the participant level
    assert read_json(out / "dataset_description.json")["DatasetLinks"] == links
    assert uri_in(out, "lesions", out, out / "sub-01" / "m.nii.gz") == "bids::sub-01/m.nii.gz"
    assert read_json(out / "dataset_description.json")["DatasetLinks"] == links


def test_lines_of_a_user_stay_in_bidsignore(tmp_path, raw):
    out = tmp_path / "out"
    write_text(out / ".bidsignore", "mine\n*.html\n")
    start(out, raw)
    start(out, raw)
    lines = (out / ".bidsignore").read_text().splitlines()
    assert lines[0] == "mine"
    assert sorted(lines) == sorted(["mine", *IGNORED])


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"GeneratedBy": [{"Name": "fMRIPrep"}]}', '{"GeneratedBy": 1}']
)
def test_a_dataset_of_another_app_is_not_touched(tmp_path, raw, content):
    out = tmp_path / "out"
    write_text(out / "dataset_description.json", content)
    with pytest.raises(UsageError, match="another output folder"):
        start(out, raw)
    assert (out / "dataset_description.json").read_text() == content
    assert not (out / "README.md").exists()


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, None),
        ({"MRI2PET_CONTAINER": "t"}, "docker"),
        ({"MRI2PET_CONTAINER": "t", "APPTAINER_CONTAINER": "/a.sif"}, "apptainer"),
        ({"SINGULARITY_CONTAINER": "/a.sif"}, "singularity"),
    ],
)
def test_the_container(environment, kind):
    assert dict(find_container(environment)).get("Type") == kind


# Results that exist already


parameters = st.dictionaries(st.text(max_size=5), st.integers() | st.floats(0, 1) | st.booleans())


@given(parameters, parameters)
def test_equal_settings_have_equal_fingerprints(one, other):
    def mark(settings):
        return fingerprint(settings, [], bids_dir=Path("raw"))

    assert mark(one) == mark(dict(reversed(one.items())))
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (mark(one) == mark(other)) == same


def test_fingerprints_follow_sources_and_generator(tmp_path, raw):
    sources = [one.path for v in visits(raw) for one in (v.t1w, *v.pets)]
    mark = fingerprint({}, sources, bids_dir=raw)
    assert mark == fingerprint({}, sources[::-1], bids_dir=raw)
    assert mark != fingerprint({}, sources, bids_dir=raw, generator_sha256="0")
    assert mark != fingerprint({}, sources[1:], bids_dir=raw)
    moved = shutil.copytree(raw, tmp_path / "moved")
    elsewhere = [moved / path.relative_to(raw) for path in sources]
    assert mark == fingerprint({}, elsewhere, bids_dir=moved)
    sources[0].write_bytes(b"other")
    assert mark != fingerprint({}, sources, bids_dir=raw)
    sources[0].unlink()
    with pytest.raises(MissingInputError, match=sources[0].name):
        fingerprint({}, sources, bids_dir=raw)


def test_a_change_inside_a_file_of_many_pieces_changes_the_fingerprint(tmp_path):
    """bgzip and pigz -i write a checksum per block: size, beginning and end may be unchanged."""
    image = tmp_path / "sub-01_T1w.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 255, 400_000, dtype=np.uint8)

    def write():
        pieces = np.split(voxels, 8)
        image.write_bytes(b"".join(gzip.compress(one.tobytes(), 0, mtime=0) for one in pieces))
        return image.stat().st_size, fingerprint({}, [image], bids_dir=tmp_path)

    size, mark = write()
    assert write() == (size, mark)
    voxels[200_000] ^= 1
    again, other = write()
    assert again == size
    assert other != mark


def test_a_visit_is_complete_when_all_of_it_is(tmp_path, raw):
    out, visit = tmp_path / "out", visits(raw)[0]
    files = visit_paths(out, visit, TEMPLATE, 1.0).preprocessed
    assert not is_complete(files, "f")
    write_visit(out, raw, visit)
    assert is_complete(files, "f")
    assert not is_complete(files, "g")
    for path in files:
        for damaged in (path, sidecar_path(path)):
            content = damaged.read_bytes()
            damaged.write_bytes(b"")
            assert not is_complete(files, "f")
            damaged.unlink()
            assert not is_complete(files, "f")
            damaged.write_bytes(content)
    assert is_complete(files, "f")


def test_a_new_visit_with_another_pet_is_not_complete(tmp_path, raw):
    out, (first, *_) = tmp_path / "out", visits(raw)
    write_visit(out, raw, first)
    more = replace(first, pets=(*first.pets, scan(raw, "sub-01_trc-18FFDG_run-02_pet")))
    assert not is_complete(visit_paths(out, more, TEMPLATE, 1.0).preprocessed, "f")


# Writing


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none()))
def test_json_comes_back(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "content.json"
    write_json(path, content)
    assert read_json(path) == content


def test_json_knows_no_nan(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_what_is_no_json_object(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UnusableDataError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


@pytest.mark.filterwarnings("error")
def test_tables_hold_what_was_put_in(tmp_path):
    path = tmp_path / "a.tsv"
    assert read_tsv(path) == []
    write_tsv(path, ["a", "b"], [{"a": 0.123456789}, {"a": "x\ty\nz", "b": ""}, {"b": 0}])
    assert path.read_text() == "a\tb\n0.123457\tn/a\nx y z\tn/a\nn/a\t0\n"
    assert read_tsv(path)[1] == {"a": "x y z", "b": "n/a"}


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def half(self, content):
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(ReadWriteError, match="No space left"):
        write_json(path, {"new": 1})
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is absent")
def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ReadWriteError, match="file"):
        write_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(ReadWriteError), locked(tmp_path / "absent"):
        pass


def _count_up(folder: Path) -> None:
    path = folder / "count.json"
    for _ in range(20):
        with locked(folder):
            write_json(path, {"count": read_json(path)["count"] + 1})


def test_processes_take_turns(tmp_path):
    write_json(tmp_path / "count.json", {"count": 0})
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count_up, args=(tmp_path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert read_json(tmp_path / "count.json") == {"count": 80}


def test_a_disk_without_locks_still_serves(tmp_path, monkeypatch):
    def refuse(code):
        def lockf(*_):
            raise OSError(code, "refused")

        return lockf

    monkeypatch.setattr(fcntl, "lockf", refuse(errno.ENOLCK))
    with locked(tmp_path):
        pass
    monkeypatch.setattr(fcntl, "lockf", refuse(errno.EIO))
    with pytest.raises(ReadWriteError, match="refused"), locked(tmp_path):
        pass


def _write_all(out: Path, raw: Path) -> None:
    build(out, raw)


def test_many_processes_write_one_dataset(tmp_path, raw):
    out = tmp_path / "out"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_all, args=(out, raw)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert len(read_tsv(out / "participants.tsv")) == 3
    assert [p for p in out.rglob(".*") if p.name not in (".bidsignore", ".mri2pet.lock")] == []


WRITING = """
import sys, time
from pathlib import Path
from bids_app.files import replacing

with replacing(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print(partial, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_write_has_left_is_removed_and_what_is_being_written_stays(tmp_path):
    path = tmp_path / "logs" / "run.json"
    write = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(path)], stdout=subprocess.PIPE, text=True
    )
    partial = Path(write.stdout.readline().strip())
    for below in (False, True):
        remove_partials(tmp_path / "logs", below=below)
    assert partial.exists()
    write.kill()
    write.communicate()
    kept = path.with_name(".hidden.json")
    kept.write_text("{}")
    remove_partials(tmp_path)
    assert partial.exists()
    remove_partials(tmp_path, below=True)
    assert list(path.parent.iterdir()) == [kept]
