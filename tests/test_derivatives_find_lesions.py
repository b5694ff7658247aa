"""Assignment of lesion masks to visits: unambiguous by name, or refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_app.derivatives.find import LesionMask, Preprocessed, find_lesion_mask
from bids_app.errors import MissingInputError, UnusableDataError

TEMPLATE = "MNI152NLin2009aSym"
ON_T1W, IN_TEMPLATE = "space-T1w", f"space-{TEMPLATE}"


def visit(subject="01", session=None):
    return Preprocessed(subject, session, Path("t1w"), Path("mask"), (), None)


def draw(root, *entities, folder="anat", subject="01", extension=".nii.gz"):
    """Create an empty file with the name of a mask."""
    session = [one for one in entities if one.startswith("ses-")]
    path = root.joinpath(f"sub-{subject}", *session, folder)
    path.mkdir(parents=True, exist_ok=True)
    path /= "_".join([f"sub-{subject}", *entities, "label-L", f"mask{extension}"])
    path.touch()
    return path


def find(root, session=None, subject="01"):
    return find_lesion_mask(root, visit(subject, session), TEMPLATE)


@pytest.mark.parametrize(
    ("entities", "in_template"),
    [
        ((ON_T1W,), False),
        ((IN_TEMPLATE,), True),
        ((IN_TEMPLATE, "res-1"), True),
        (("run-1", ON_T1W), False),
    ],
)
@pytest.mark.parametrize("folder", ["anat", "pet", "."])
def test_the_name_says_where_a_mask_lies(tmp_path, entities, in_template, folder):
    mask = draw(tmp_path, *entities, folder=folder)
    assert find(tmp_path) == LesionMask(mask, in_template)


def test_the_mask_in_the_template_comes_first(tmp_path):
    draw(tmp_path, ON_T1W)
    mask = draw(tmp_path, IN_TEMPLATE)
    assert find(tmp_path) == LesionMask(mask, True)


def test_a_mask_of_another_space_does_not_stand_in_the_way(tmp_path):
    draw(tmp_path, "space-MNI152NLin6Asym")
    draw(tmp_path)
    mask = draw(tmp_path, ON_T1W)
    assert find(tmp_path) == LesionMask(mask, False)


def test_a_mask_that_is_not_compressed_is_one(tmp_path):
    mask = draw(tmp_path, ON_T1W, extension=".nii")
    assert find(tmp_path) == LesionMask(mask, False)
    draw(tmp_path, ON_T1W)
    with pytest.raises(UnusableDataError, match="are masks of the same visit; keep one"):
        find(tmp_path)


# Sessions


def test_the_mask_of_the_visits_own_session_is_used(tmp_path):
    masks = {session: draw(tmp_path, f"ses-{session}", ON_T1W) for session in ("a", "ab", "b")}
    for session, mask in masks.items():
        assert find(tmp_path, session) == LesionMask(mask, False)
    assert find(tmp_path, "c") is None
    assert find(tmp_path) is None


def test_without_one_of_its_own_a_visit_has_that_of_no_session(tmp_path):
    draw(tmp_path, "ses-a", ON_T1W)
    timeless = draw(tmp_path, ON_T1W)
    assert find(tmp_path, "b") == find(tmp_path) == LesionMask(timeless, False)


def test_its_own_mask_comes_before_one_of_no_session_in_any_space(tmp_path):
    draw(tmp_path, IN_TEMPLATE)
    own = draw(tmp_path, "ses-a", ON_T1W)
    assert find(tmp_path, "a") == LesionMask(own, False)


def test_a_visit_without_session_is_not_that_of_a_session_called_none(tmp_path):
    draw(tmp_path, "ses-None", ON_T1W)
    assert find(tmp_path) is None
    assert find(tmp_path, "None") is not None


# No mask


def test_where_no_mask_was_drawn_no_lesion_is_known(tmp_path):
    assert find(tmp_path) is None
    (tmp_path / "sub-01").mkdir()
    assert find(tmp_path) is None


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_space-T1w_label-GM_mask.nii.gz",
        "sub-01_space-T1w_label-L_mask.json",
        "sub-01_space-T1w_label-L_mask.nii.json",
        "sub-01_space-T1w_label-L_mask.nii.gz.bak",
        "sub-01_space-T1w_label-L_probseg.nii.gz",
        "sub-02_space-T1w_label-L_mask.nii.gz",
        "sub-012_space-T1w_label-L_mask.nii.gz",
    ],
)
def test_other_files_are_no_masks_of_this_participant(tmp_path, name):
    draw(tmp_path, ON_T1W, subject="02")
    draw(tmp_path, ON_T1W, subject="012")
    (tmp_path / "sub-01_space-T1w_label-L_mask.nii.gz").touch()  # in no participant's folder
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (folder / name).touch()
    assert find(tmp_path) is None


# Refused


def test_a_dataset_that_is_not_there_is_told(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(MissingInputError, match="no such folder; correct --derivatives lesi"):
            find(path)


@pytest.mark.parametrize("space", [ON_T1W, IN_TEMPLATE])
@pytest.mark.parametrize("others", [("res-1", "res-2"), ("run-1", "run-2"), (None, "res-1")])
def test_two_masks_of_one_visit_are_ambiguous(tmp_path, space, others):
    masks = [draw(tmp_path, *((space,) if other is None else (space, other))) for other in others]
    with pytest.raises(UnusableDataError) as told:
        find(tmp_path)
    assert told.value.exit_code == 65
    assert f"{told.value}" == (
        f"{masks[0]}: and {masks[1].name} are masks of the same visit; keep one"
    )
    masks[0].unlink()
    assert find(tmp_path).path == masks[1]


@pytest.mark.parametrize("space", [(), ("space-MNI152NLin6Asym",), ("space-T1w2",)])
def test_a_mask_that_does_not_say_where_it_lies_is_refused(tmp_path, space):
    mask = draw(tmp_path, *space)
    with pytest.raises(UnusableDataError) as told:
        find(tmp_path)
    assert told.value.exit_code == 65
    assert f"{told.value}".startswith(f"{mask}: its name says neither space-T1w nor {IN_TEMPLATE}")
    assert f"{told.value}".endswith("; rename or resample it accordingly")


@given(st.permutations([None, "a", "b"]), st.sampled_from([None, "a", "b", "c"]))
def test_the_order_of_files_does_not_matter(tmp_path_factory, order, session):
    root = tmp_path_factory.mktemp("lesions")
    for one in order:
        draw(root, *([] if one is None else [f"ses-{one}"]), ON_T1W)
    mask = find(root, session).path
    assert (f"_ses-{session}_" in mask.name) is (session in ("a", "b"))
