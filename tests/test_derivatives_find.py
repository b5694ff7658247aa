import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from bids_app.derivatives import sidecars
from bids_app.derivatives.detections import Anomaly, backdrop_of, paths_beside
from bids_app.derivatives.find import (
    Preprocessed,
    SourceDigests,
    digest_of,
    find_preprocessed,
    find_results,
    verdict_of_image,
)
from bids_app.derivatives.paths import VisitPaths, derivative_path, sidecar_path, visit_paths
from bids_app.derivatives.sidecars import Provenance, Space
from bids_app.errors import MissingInputError, UnusableDataError
from bids_app.files import read_json, write_json
from bids_app.visit import Scan, Visit

TEMPLATE = "MNI152NLin2009aSym"
GENERATOR = {"Name": "g"}


def scan(raw: Path, subject, session, datatype, **entities) -> Scan:
    path = derivative_path(
        raw,
        subject=subject,
        session=session,
        datatype=datatype,
        suffix="pet" if datatype == "pet" else "T1w",
        extension=".nii.gz",
        entities=entities,
    )
    return Scan(path, subject, session, tuple(entities.items()))


def write_visit(
    out: Path, subject: str, session=None, pets=({},), *, resolution=1.0, synthetic=True
) -> VisitPaths:
    """Write the files of the participant level, with arbitrary content; images are not opened."""
    raw = out.parent.absolute() / "raw"
    scans = []
    for wanted in pets:
        entities = dict(wanted)
        scans.append(scan(raw, subject, entities.pop("ses", session), "pet", **entities))
    visit = Visit(subject, session, scan(raw, subject, session, "anat"), tuple(scans))
    paths = visit_paths(out, visit, TEMPLATE, resolution)
    origin, space = (
        Provenance(raw, out, "f", "0.1.0"),
        Space(TEMPLATE, resolution, "https://example.org"),
    )
    made = sidecars.preprocessing_sidecars(visit, paths, origin, space)
    if synthetic:
        made[paths.synthetic_pet] = sidecars.synthetic_pet(
            paths,
            origin,
            space,
            generator=GENERATOR,
            smoothing_fwhm=1.5,
            trained_on_this_participant=False,
            times_mean=2.5,
            t1w_fingerprint=origin.fingerprint,
        )
    for path, content in made.items():
        write_json(sidecar_path(path), content)
        path.write_bytes(b"x")
    return paths


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def expected(paths: VisitPaths, subject, session=None, *, synthetic=True) -> Preprocessed:
    return Preprocessed(
        subject,
        session,
        paths.t1w_in_template,
        paths.brain_mask_in_template,
        tuple(pet.in_template for pet in paths.pets),
        paths.synthetic_pet if synthetic else None,
    )


def test_what_was_written_is_found(out):
    second = write_visit(out, "02", "b", [{"rec": "acdyn", "run": "01"}])
    other = write_visit(out, "02", "a", synthetic=False)
    first = write_visit(out, "01", pets=[{"run": "1"}, {"run": "2"}])
    only = write_visit(out, "10", pets=[])
    assert find_preprocessed(out, TEMPLATE, 1.0) == [
        expected(first, "01"),
        expected(other, "02", "a", synthetic=False),
        expected(second, "02", "b"),
        expected(only, "10"),
    ]


def test_only_those_asked_for(out):
    for subject in ("01", "02", "03"):
        write_visit(out, subject)
    found = find_preprocessed(out, TEMPLATE, 1.0, frozenset({"03", "01", "99"}))
    assert [visit.subject for visit in found] == ["01", "03"]


def test_of_another_grid_nothing_is_found(out):
    fine, coarse = write_visit(out, "01"), write_visit(out, "01", resolution=1.5)
    assert find_preprocessed(out, TEMPLATE, 1.0) == [expected(fine, "01")]
    assert find_preprocessed(out, TEMPLATE, 1.5) == [expected(coarse, "01")]
    assert find_preprocessed(out, "MNI305", 1.0) == []


def test_where_nothing_was_written_nothing_is_found(out):
    assert find_preprocessed(out, TEMPLATE, 1.0) == []
    out.mkdir()
    assert find_preprocessed(out, TEMPLATE, 1.0) == []


def test_other_folders_are_not_looked_at(out):
    paths = write_visit(out, "01")
    for folder in ("work", "crossvalidation/semi3d-gan", "generators/x", "sub-01/work", "sub-01"):
        for subject in ("01", "02"):
            write_visit(out / folder, subject)
    (out / "sub-03").touch()
    (out / "sub-a_b" / "anat").mkdir(parents=True)
    assert find_preprocessed(out, TEMPLATE, 1.0) == [expected(paths, "01")]


def test_only_a_name_that_the_app_gives_is_a_real_pet(out):
    paths = write_visit(out, "01")
    real = paths.pets[0].in_template
    for old, new in (
        *(("trc-18FFDG", "trc-FBB"), ("trc-18FFDG_", ""), ("desc-preproc", "desc-synth")),
        *(("space-", "seg-x_space-"), ("sub-01", "sub-02"), ("res-1", "res-1_copy")),
        *(("sub-01", "sub-01_ses-a"), ("desc-preproc_pet", "stat-z_desc-preproc_pet")),
    ):
        path = real.with_name(real.name.replace(old, new))
        write_json(sidecar_path(path), {})
        path.write_bytes(b"x")
    (found,) = find_preprocessed(out, TEMPLATE, 1.0)
    assert found.pets == (real,)


@pytest.mark.parametrize("flag", [True, "true", 1, None])
def test_what_says_synthetic_does_not_pass_for_real(out, flag):
    real = write_visit(out, "01").pets[0].in_template
    sidecar = sidecar_path(real)
    write_json(sidecar, {**read_json(sidecar), "Synthetic": flag})
    with pytest.raises(UnusableDataError, match=rf"{sidecar.name}: says Synthetic"):
        find_preprocessed(out, TEMPLATE, 1.0)


def test_what_says_that_it_is_not_synthetic_is_real(out):
    real = write_visit(out, "01").pets[0].in_template
    write_json(sidecar_path(real), {**read_json(sidecar_path(real)), "Synthetic": False})
    assert find_preprocessed(out, TEMPLATE, 1.0)[0].pets == (real,)


def test_a_synthetic_alone_is_no_real_pet(out):
    paths = write_visit(out, "01", pets=[])
    (found,) = find_preprocessed(out, TEMPLATE, 1.0)
    assert (found.pets, found.synthetic) == ((), paths.synthetic_pet)


def test_a_pet_without_its_sidecar_may_be_unfinished(out):
    real = write_visit(out, "01").pets[0].in_template
    sidecar_path(real).unlink()
    with pytest.raises(MissingInputError, match=r"desc-preproc_pet\.json: no such file"):
        find_preprocessed(out, TEMPLATE, 1.0)


def test_a_brain_mask_that_is_missing(out):
    write_visit(out, "01").brain_mask_in_template.unlink()
    with pytest.raises(MissingInputError, match=r"desc-brain_mask\.nii\.gz: no such file"):
        find_preprocessed(out, TEMPLATE, 1.0)
    assert find_preprocessed(out, TEMPLATE, 1.0, {"02"}) == []


# T1w on which a PET lies


def test_a_pet_of_a_session_without_t1w_is_with_the_t1w_it_lies_on(out):
    plain = write_visit(out, "01", "a", pets=[])
    both = write_visit(out, "01", "b", pets=[{}, {"ses": "c"}])
    first, second = find_preprocessed(out, TEMPLATE, 1.0)
    assert first == expected(plain, "01", "a")
    assert second == expected(both, "01", "b")
    assert [pet.parent.parent.name for pet in second.pets] == ["ses-b", "ses-c"]


def test_the_pet_of_the_session_of_the_t1w_is_the_first(out):
    write_visit(out, "01", "b", pets=[{"ses": "a"}, {}, {"ses": "c"}])
    (visit,) = find_preprocessed(out, TEMPLATE, 1.0)
    assert [pet.parent.parent.name for pet in visit.pets] == ["ses-b", "ses-a", "ses-c"]


def test_a_pet_of_an_earlier_run_is_told_of_but_not_shown(out):
    paths = write_visit(out, "01", pets=[{"run": "1"}, {"run": "2"}])
    first, second = (sidecar_path(pet.in_t1w) for pet in paths.pets)
    write_json(first, {**read_json(first), "Fingerprint": "earlier"})
    (visit,) = find_results(out, "01", (2, 2, 2))
    assert [sidecar_path(pet.in_t1w.path) for pet in visit.pets] == [second]
    assert "sub-01_trc-18FFDG_run-1: this PET is left over from an earlier run" in visit.t1w.fault
    write_json(first, {**read_json(first), "Fingerprint": "f"})
    assert len(find_results(out, "01", (2, 2, 2))[0].pets) == 2


def test_a_synthetic_pet_of_an_earlier_t1w_is_told_of_but_not_shown(out):
    """``--stage preprocess`` replaces the T1w alone."""
    paths = write_visit(out, "01")
    (whole,) = find_results(out, "01", (2, 2, 2))
    assert whole.synthetic is not None
    t1w = sidecar_path(paths.t1w_in_template)
    write_json(t1w, {**read_json(t1w), "Fingerprint": "later"})
    (visit,) = find_results(out, "01", (2, 2, 2))
    assert visit.synthetic is None
    assert "desc-synth_pet.nii.gz: is left over from an earlier run" in visit.t1w.fault


def test_what_macos_writes_beside_files_is_no_result(out):
    paths = write_visit(out, "01")
    found = find_results(out, "01", (2, 2, 2))
    for path in (paths.t1w, paths.pets[0].in_t1w):
        path.with_name(f"._{path.name}").write_bytes(b"x")
        sidecar_path(path).with_name(f"._{sidecar_path(path).name}").write_bytes(b"x")
    assert find_results(out, "01", (2, 2, 2)) == found


def test_a_pet_is_where_its_sidecar_says_even_if_its_session_has_a_t1w(out):
    write_visit(out, "01", "a", pets=[])
    write_visit(out, "01", "b", pets=[{"ses": "a"}])
    first, second = find_preprocessed(out, TEMPLATE, 1.0)
    assert first.pets == ()
    assert [pet.parent.parent.name for pet in second.pets] == ["ses-a"]


@pytest.mark.parametrize("sources", [None, [], "bids::x", [1]])
def test_a_sidecar_that_does_not_say_it_leaves_a_pet_in_its_session(out, sources):
    write_visit(out, "01", "a", pets=[])
    real = write_visit(out, "01", "b").pets[0].in_template
    write_json(sidecar_path(real), {"Sources": sources})
    assert [visit.pets for visit in find_preprocessed(out, TEMPLATE, 1.0)] == [(), (real,)]


def test_a_pet_without_any_t1w_is_refused(out):
    paths = write_visit(out, "01", "a", pets=[{"ses": "b"}])
    real = paths.pets[0].in_template
    write_json(sidecar_path(real), {"Sources": []})
    assert find_preprocessed(out, TEMPLATE, 1.0)[0].pets == (real,)  # named by the one in T1w space
    write_json(sidecar_path(paths.pets[0].in_t1w), {})
    with pytest.raises(UnusableDataError, match=f"{real.name}: the T1w to which it is aligned"):
        find_preprocessed(out, TEMPLATE, 1.0)


def test_a_pet_is_never_put_on_another_t1w_than_the_one_it_names(out):
    """Its own session has a T1w, but the PET lies on one that was deleted."""
    gone = write_visit(out, "01", "a", pets=[{"ses": "b"}])
    write_visit(out, "01", "b", pets=[])
    assert [len(visit.pets) for visit in find_preprocessed(out, TEMPLATE, 1.0)] == [1, 0]
    gone.t1w_in_template.unlink()
    with pytest.raises(UnusableDataError, match=r"ses-b_.*T1w to which it is aligned was not"):
        find_preprocessed(out, TEMPLATE, 1.0)


def test_preprocessed_and_reports_answer_alike_which_t1w_a_pet_lies_on(out):
    """The PET of session c lies on the T1w of b, although a and c have T1w of their own."""
    for session in ("a", "c"):
        write_visit(out, "01", session, pets=[])
    pet = write_visit(out, "01", "b", pets=[{"ses": "c"}]).pets[0]
    stem = "sub-01_ses-c_trc-18FFDG"
    space = f"{TEMPLATE}_res-1"
    paths = paths_beside(
        pet.to_t1w.with_name(f"{stem}_space-{space}_stat-t_desc-zscore_statmap.nii.gz")
    )
    anomaly = Anomaly("01", "c", stem, "real", "zscore", True, space, paths)
    for silent in (None, pet.in_t1w, pet.in_template):  # either sidecar is enough
        told = {} if silent is None else read_json(sidecar_path(silent))
        if silent is not None:
            write_json(sidecar_path(silent), {})
        visits = find_preprocessed(out, TEMPLATE, 1.0)
        assert {visit.session: len(visit.pets) for visit in visits} == {"a": 0, "b": 1, "c": 0}
        shown = find_results(out, "01", (1, 1, 1))
        assert {subject.name: len(subject.pets) for subject in shown} == {
            "sub-01, ses-a": 0,
            "sub-01, ses-b": 1,
            "sub-01, ses-c": 0,
        }
        assert "ses-b" in backdrop_of(out, anomaly, native=True)[0].parts
        assert "ses-b" in backdrop_of(out, anomaly, native=False)[0].parts
        if silent is not None:
            write_json(sidecar_path(silent), told)


@pytest.mark.parametrize(
    ("written", "verdict"),
    [("pass", "pass"), ("FAIL", "fail"), ("Doubt ", "doubt"), ("good", "doubt"), (None, "")],
)
def test_a_verdict_that_somebody_wrote_by_hand_is_no_pass_unless_it_says_so(
    tmp_path, written, verdict
):
    told = {} if written is None else {"Verdict": written, "VerdictReasons": ["I looked at it"]}
    write_json(tmp_path / "a.json", {"Registration": told})
    found, reasons = verdict_of_image(tmp_path / "a.nii.gz")
    assert found == verdict
    assert ('says "good"' in reasons) == (written == "good")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "raw" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"one")
    os.utime(path, (1e9, 1e9))
    return path


@pytest.fixture
def read(monkeypatch):
    """Count which files are read, with all files of the test being old."""
    paths = []

    def digest(path):
        paths.append(path)
        return digest_of(path)

    monkeypatch.setattr("bids_app.derivatives.find.digest_of", digest)
    monkeypatch.setattr("time.time", lambda: datetime.now().timestamp() + 60)
    return paths


def digests_in(tmp_path):
    return SourceDigests(tmp_path / "raw", tmp_path / "digests.json")


def test_a_raw_image_is_read_once_for_all_runs(tmp_path, image, read):
    first = digests_in(tmp_path)
    assert first.of(image) == first.of(image) == digest_of(image)
    first.save(tmp_path)
    assert digests_in(tmp_path).of(image) == digest_of(image)
    assert read == [image]


def test_a_raw_image_whose_content_alone_has_changed_is_read_again(tmp_path, image, read):
    first = digests_in(tmp_path)
    first.of(image)
    first.save(tmp_path)
    time.sleep(0.02)
    image.write_bytes(b"two")  # of the same size
    os.utime(image, (1e9, 1e9))  # with the same time, as with rsync and git-annex
    assert digests_in(tmp_path).of(image) == digest_of(image)
    assert read == [image, image]


def test_a_raw_image_that_has_just_changed_is_not_believed_to_stay(tmp_path, image, monkeypatch):
    first = digests_in(tmp_path)
    first.of(image)
    first.save(tmp_path)
    assert not (tmp_path / "digests.json").exists()


def test_runs_side_by_side_keep_what_each_has_read(tmp_path, image, read):
    other = image.with_name("sub-01_run-2_T1w.nii.gz")
    other.write_bytes(b"other")
    one, two = digests_in(tmp_path), digests_in(tmp_path)
    one.of(image), two.of(other)
    one.save(tmp_path), two.save(tmp_path)
    third = digests_in(tmp_path)
    assert (third.of(image), third.of(other)) == (digest_of(image), digest_of(other))
    assert read == [image, other]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sub-01/anat/sub-01_T1w.nii.gz": [1]}'])
def test_a_damaged_file_of_digests_costs_time_alone(tmp_path, image, text):
    (tmp_path / "digests.json").write_text(text)
    assert digests_in(tmp_path).of(image) == digest_of(image)


def test_copies_of_a_raw_image_are_found_unless_they_have_changed(tmp_path, image, read):
    first, copies = digests_in(tmp_path), [image.with_name(f"{n}_T1w.nii.gz") for n in range(3)]
    for copy in copies:
        copy.write_bytes(image.read_bytes())
        first.of(copy)
    names = [copy.relative_to(tmp_path / "raw").as_posix() for copy in copies]
    assert first.same_as(image) == names
    first.save(tmp_path)
    copies[0].unlink()
    copies[1].write_bytes(b"now another")
    assert digests_in(tmp_path).same_as(image) == names[2:]
    last = digests_in(tmp_path)
    assert last.same_as(copies[1]) == []
    assert last.same_as(image) == names[2:]
