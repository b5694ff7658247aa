"""Outputs of other versions of the app: reported, or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.derivatives.description import compare_versions, version_of
from bids_app.errors import UnusableDataError
from bids_app.files import write_json

numbers = st.integers(0, 20)
endings = st.sampled_from(["", ".0", ".3", ".dev1+g12ab", ".0rc1"])


@given(numbers, numbers, endings, endings)
def test_what_this_release_has_made_is_not_told_of(major, minor, ending, other):
    release = f"{major}.{minor}"
    made = [("sub-01", release + other)]
    assert compare_versions(made, release + ending, advice="x") == []


@given(numbers, numbers, numbers, numbers)
def test_the_second_number_is_told_of_and_the_first_refused(major, minor, other, second):
    made, version = [("sub-01", f"{other}.{second}.0")], f"{major}.{minor}.0"
    if other != major:
        with pytest.raises(UnusableDataError, match="do it again"):
            compare_versions(made, version, advice="do it again")
    else:
        told = compare_versions(made, version, advice="do it again")
        assert bool(told) is (second != minor)


def test_all_are_told_of_in_one_sentence_each_once():
    made = [("sub-b", "0.2.0"), ("sub-a", "0.2.0"), ("sub-a", "0.2.0"), ("sub-c", "")]
    (told,) = compare_versions([*made, ("sub-d", "0.1.1")], "0.1.0", advice="x")
    assert told.startswith("made by an unknown version: sub-c, made by mri2pet 0.2.0: sub-a, sub-b")
    assert "sub-d" not in told


def test_a_version_that_is_not_known_compares_nothing():
    assert compare_versions([("sub-01", "3.0.0")], "not installed", advice="x") == []


@pytest.mark.parametrize(
    ("content", "version"),
    [({"Version": "0.1"}, "0.1"), ({}, ""), ({"Version": 3}, ""), (None, "")],
)
def test_a_sidecar_tells_the_version_or_nothing(tmp_path, content, version):
    if content is not None:
        write_json(tmp_path / "a_pet.json", content)
    assert version_of(tmp_path / "a_pet.nii.gz") == version
