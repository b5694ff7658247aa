from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import requests
from nilearn import datasets
from templateflow import api as templateflow

from bids_app import nifti
from bids_app.errors import MissingInputError, UsageError
from bids_app.imaging.volume import grid_of_box
from bids_app.templates import OWN, atlas_of_templateflow, prepare

GRID = grid_of_box((-78, -112, -50, 78, 76, 85), 4.0)
FILES = ("brain", "brain_mask", "reference", "reference_mask")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("template")


@pytest.fixture(scope="module")
def template(folder):
    return prepare(OWN, GRID, folder / "new", registration_resolution=4.0)


@pytest.fixture(scope="module")
def images(template):
    return {name: nifti.load(getattr(template, name)) for name in FILES}


def test_the_reference_lies_on_the_grid_of_the_outputs(images):
    for name in ("reference", "reference_mask"):
        assert images[name].data.shape == GRID.shape
        assert images[name].affine == pytest.approx(GRID.affine)


def test_what_is_registered_to_covers_the_whole_brain(images):
    for name in ("brain", "brain_mask"):
        assert images[name].zooms == pytest.approx((4, 4, 4))
    litres = {name: float((images[name].data > 0).sum()) * 64e-6 for name in FILES}
    assert images["brain_mask"].data.shape == images["brain"].data.shape
    assert 1.6 < litres["reference_mask"] < litres["brain_mask"] < 2.1


def test_masks_are_masks_and_brains_are_nothing_outside(images):
    for brain, mask in (("brain", "brain_mask"), ("reference", "reference_mask")):
        assert set(np.unique(images[mask].data)) == {0, 1}
        inside = images[mask].data > 0
        assert (images[brain].data[~inside] == 0).all()
        assert (images[brain].data[inside] > 0).mean() > 0.98


def test_the_mask_lies_in_the_middle_of_mni_space(images):
    there = np.argwhere(images["brain_mask"].data > 0).mean(axis=0)
    centre = (images["brain_mask"].affine @ [*there, 1])[:3]
    assert centre == pytest.approx((0, -20, 10), abs=6)


@pytest.mark.parametrize("name", ["brain", "reference"])
def test_voxels_hold_what_the_template_has_at_their_place(images, name):
    template = datasets.load_mni152_template(resolution=1)  # its voxel centres are at whole mm
    image = images[name]
    inside = np.argwhere(image.data > 0)[::97]
    places = inside @ image.affine[:3, :3].T + image.affine[:3, 3]
    i, j, k = np.round(places - template.affine[:3, 3]).astype(int).T
    assert image.data[tuple(inside.T)] == pytest.approx(template.get_fdata()[i, j, k], abs=1e-3)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flipped", [(), (0,), (0, 2)])
@pytest.mark.usefixtures("mine")
def test_a_template_may_have_its_axes_anywhere(tmp_path, axes, flipped):
    straight = prepare("Mine", GRID, tmp_path / "straight", registration_resolution=4.0)
    for path in tmp_path.glob("*.nii.gz"):
        image = nifti.load(path)
        turn = np.eye(4)
        for axis in flipped:
            turn[axis, axis], turn[axis, 3] = -1, GRID.shape[axis] - 1
        data = np.flip(image.data, flipped).transpose(axes)
        affine = (image.affine @ turn)[:, [*axes, 3]]
        nifti.save(nifti.Image(np.ascontiguousarray(data), affine), path)
    turned = prepare("Mine", GRID, tmp_path / "turned", registration_resolution=4.0)
    for name in FILES:
        one, other = nifti.load(getattr(straight, name)), nifti.load(getattr(turned, name))
        np.testing.assert_allclose(one.affine, other.affine)
        np.testing.assert_allclose(one.data, other.data, atol=1e-4)
        assert one.data.any()


def test_a_second_run_writes_equal_bytes(template, folder):
    again = prepare(OWN, GRID, folder / "again", registration_resolution=4.0)
    inode = again.brain.stat().st_ino
    assert prepare(OWN, GRID, folder / "again", registration_resolution=4.0) == again
    assert again.brain.stat().st_ino == inode  # it exists and is not rewritten
    for name in FILES:
        assert getattr(again, name).read_bytes() == getattr(template, name).read_bytes()


def test_its_address_names_the_template(template):
    assert f"tpl-{OWN}" in template.uri
    assert template.name == OWN


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            requests.ConnectionError("HTTPSConnectionPool(host='templateflow'): Max"),
            "no connection to its",
        ),
        (ValueError("no such template"), "no such template"),
    ],
)
def test_a_template_that_cannot_be_fetched_is_missing(tmp_path, monkeypatch, error, told):
    def offline(name, **query):
        raise error

    monkeypatch.setattr(templateflow, "get", offline)
    with pytest.raises(MissingInputError, match=rf"Nowhere: .*\({told}.*mri2pet-fetch"):
        prepare("Nowhere", GRID, tmp_path / "template", registration_resolution=4.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("found", [[], "absent"])
def test_a_template_without_a_file_is_missing(tmp_path, monkeypatch, found):
    result = found or []
    if found == "absent":
        result = tmp_path / "absent.nii.gz"  # as TemplateFlow returns after a failed download
    monkeypatch.setattr(templateflow, "get", lambda _name, **_query: result)
    with pytest.raises(MissingInputError, match="template Empty: no 1 mm T1w"):
        prepare("Empty", GRID, tmp_path / "template", registration_resolution=4.0)


def test_a_template_of_several_cohorts_is_refused(tmp_path, monkeypatch):
    """For MNIPediatricAsym, the first cohort would be used for all ages."""
    names = [f"tpl-Ages_cohort-{n}_res-1_T1w.nii.gz" for n in (1, 2)]
    for name in names:
        nifti.save(nifti.Image(np.ones(GRID.shape, np.float32), GRID.affine), tmp_path / name)
    found = [tmp_path / name for name in names]
    monkeypatch.setattr(templateflow, "get", lambda _name, **_query: found)
    with pytest.raises(UsageError, match="template Ages: it has a T1w for each of 2 cohorts"):
        prepare("Ages", GRID, tmp_path / "template", registration_resolution=4.0)


@pytest.fixture
def mine(tmp_path, monkeypatch, rng):
    """Add a template, ``Mine``, with T1w and mask to TemplateFlow."""
    t1w = (1 + rng.random(GRID.shape)).astype(np.float32)
    mask = np.zeros(GRID.shape, bool)
    mask[5:30, 5:40, 5:30] = True
    paths = {}
    for suffix, data in (("T1w", t1w), ("mask", mask)):
        paths[suffix] = tmp_path / f"{suffix}.nii.gz"
        nifti.save(nifti.Image(data, GRID.affine), paths[suffix])
    monkeypatch.setattr(templateflow, "get", lambda _name, **query: paths[query["suffix"]])
    return t1w, mask


def test_a_template_of_templateflow_is_used(tmp_path, mine):
    t1w, mask = mine
    made = prepare("Mine", GRID, tmp_path / "template", registration_resolution=4.0)
    assert np.array_equal(nifti.load(made.reference_mask).data > 0, mask)
    expected = np.where(mask, t1w, 0)
    assert nifti.load(made.reference).data == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("x", "held"), [(-160, False), (-158, True), (39, True), (41, False)])
def test_a_grid_holds_something_of_the_brain(tmp_path, mine, x, held):
    """The mask of this one begins in plane 5, at -58 mm, and ends in plane 29, at 38 mm."""
    grid = grid_of_box((x, -112, -50, x + 100, 76, 85), 4.0)
    outcome = nullcontext() if held else pytest.raises(UsageError, match="no part of the brain")
    with outcome:
        prepare("Mine", grid, tmp_path, registration_resolution=4.0, write=False)


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Make TemplateFlow return files with the names it lists, without a network."""

    def get(space, **query):
        (listed,) = templateflow.ls(space, **query)
        path = tmp_path / Path(listed).name
        path.touch()
        return path

    monkeypatch.setattr(templateflow, "get", get)


@pytest.mark.parametrize(
    ("name", "template", "image", "names"),
    [
        (
            "Schaefer2018:200Parcels7Networks",
            "MNI152NLin6Asym",
            "tpl-MNI152NLin6Asym_res-01_atlas-Schaefer2018_desc-200Parcels7Networks_dseg.nii.gz",
            "tpl-MNI152NLin6Asym_atlas-Schaefer2018_desc-200Parcels7Networks_dseg.tsv",
        ),
        (  # not available for the app's template
            "Schaefer2018:100Parcels17Networks",
            OWN,
            "tpl-MNI152NLin2009cAsym_res-01_atlas-Schaefer2018_desc-100Parcels17Networks_dseg"
            ".nii.gz",
            "tpl-MNI152NLin2009cAsym_atlas-Schaefer2018_desc-100Parcels17Networks_dseg.tsv",
        ),
        (  # one table for all thresholds, in one space only
            "HOCPA:th25",
            OWN,
            "tpl-MNI152NLin6Asym_res-01_atlas-HOCPA_desc-th25_dseg.nii.gz",
            "tpl-MNI152NLin6Asym_atlas-HOCPA_dseg.tsv",
        ),
    ],
)
def test_an_atlas_of_templateflow_comes_with_its_names(fetched, name, template, image, names):
    found = atlas_of_templateflow(name, template)
    assert [path.name for path in found] == [image, names]


def test_an_atlas_that_templateflow_has_not_is_told_with_those_it_has(fetched):
    with pytest.raises(MissingInputError, match=r"atlas Nosuch: .* it has .*HOCPA:th0, HOCPA:th25"):
        atlas_of_templateflow("Nosuch", OWN)
    with pytest.raises(MissingInputError, match="for Nowhere; it has none"):
        atlas_of_templateflow("HOCPA:th25", "Nowhere")


def test_an_atlas_that_cannot_be_fetched_is_missing(monkeypatch):
    def offline(name, **query):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(templateflow, "get", offline)
    with pytest.raises(MissingInputError, match=r"downloaded.*mri2pet-fetch --atlas HOCPA:th25"):
        atlas_of_templateflow("HOCPA:th25", OWN)
    monkeypatch.setattr(templateflow, "get", lambda _name, **_query: [])
    with pytest.raises(MissingInputError, match=r"downloaded.*mri2pet-fetch --atlas HOCPA:th25"):
        atlas_of_templateflow("HOCPA:th25", OWN)
