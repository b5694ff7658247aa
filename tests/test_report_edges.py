"""Reports of empty, coarse, single or damaged data: a page is always written."""

import shutil

import numpy as np
import pages  # noqa: F401 - charts are drawn once
import pytest
from anomalies import CLUSTER, CONTROL, CONTROLS, DETECTORS, PATIENTS, SETS, Cohort, T, places_of

from bids_app import nifti
from bids_app.files import read_tsv, write_json, write_tsv

pytestmark = pytest.mark.slow


def relabel(path, change):
    image = nifti.load(path)
    nifti.save(nifti.Image(change(image.data).astype(np.int16), image.affine), path)


def lose_on_the_t1w(cohort):
    """Remove clusters of rank 2 in T1w space, as if between the slices of a coarse T1w."""
    for path in cohort.out.glob("**/*_space-T1w_*_dseg.nii.gz"):
        relabel(path, lambda ranks: np.where(ranks == 2, 0, ranks))
    for path in cohort.out.glob("**/*_space-T1w_*_clusters.tsv"):
        write_tsv(path, CLUSTER, [row for row in read_tsv(path) if row["rank"] != "2"])


def lose_all_on_the_t1w(cohort):
    for path in cohort.out.glob("**/*_space-T1w_*_dseg.nii.gz"):
        relabel(path, np.zeros_like)
    for path in cohort.out.glob("**/*_space-T1w_*_clusters.tsv"):
        write_tsv(path, CLUSTER, [])


def find_nothing(cohort):
    lose_all_on_the_t1w(cohort)
    for path in cohort.out.glob(f"**/*_space-{T}_*_dseg.nii.gz"):
        relabel(path, np.zeros_like)
    for path in cohort.out.glob(f"**/*_space-{T}_*_clusters.tsv"):
        write_tsv(path, CLUSTER, [])
    write_tsv(cohort.out / "clusters.tsv", list(read_tsv(cohort.out / "clusters.tsv")[0]), [])


def score_nothing(cohort):
    find_nothing(cohort)
    for path in cohort.out.glob("**/*_statmap.nii.gz"):
        image = nifti.load(path)
        nifti.save(nifti.Image(np.zeros_like(image.data), image.affine), path)


def controls_without_clusters(cohort):
    rows = [{"participant_id": f"sub-{c}", "detector": d} for c in CONTROLS for d in DETECTORS]
    for name in SETS:
        write_tsv(cohort.out / "detectors" / name / "control_clusters.tsv", CONTROL, rows)


def no_controls(cohort):
    for name in SETS:
        write_tsv(cohort.out / "detectors" / name / "control_clusters.tsv", CONTROL, [])


def no_tables_of_controls(cohort):
    for path in cohort.out.glob("detectors/*/control_*.tsv"):
        path.unlink()


def a_single_patient(cohort):
    rows = read_tsv(cohort.out / "clusters.tsv")
    write_tsv(
        cohort.out / "clusters.tsv",
        list(rows[0]),
        [row for row in rows if row["participant_id"] == "sub-P1"],
    )
    shutil.rmtree(cohort.out / "sub-P2")
    for folder in cohort.out.glob("detectors/*/sub-P2"):
        shutil.rmtree(folder)
    cohort.record()


def lesions_beside_the_brain(cohort):
    for path in cohort.out.glob("sub-P*/anat/*_label-L_mask.nii.gz"):
        image = nifti.load(path)
        far = np.zeros(image.data.shape, bool)
        far[0, 0, -1] = True
        nifti.save(nifti.Image(far, image.affine), path)


def empty_masks(cohort):
    for path in cohort.out.glob("sub-P1/anat/*_desc-brain_mask.nii.gz"):
        image = nifti.load(path)
        nifti.save(nifti.Image(np.zeros(image.data.shape, bool), image.affine), path)


def lose_sidecars(cohort):
    for path in (*cohort.out.glob("sub-P1/**/*.json"), *cohort.out.glob("detectors/**/sub-*.json")):
        path.unlink()


def spoil_sidecars(cohort):
    for path in cohort.out.glob("sub-P1/**/*.json"):
        path.write_bytes(b"\xff\xfe{")


def empty_sidecars(cohort):
    for path in cohort.out.glob("**/*.json"):
        write_json(path, {})


def lists_for_objects(cohort):
    for path in cohort.out.glob("**/*.json"):
        path.write_text("[]")


def folders_for_sidecars(cohort):
    for path in cohort.out.glob("sub-P1/**/*.json"):
        path.unlink()
        path.mkdir()


def no_maps(cohort):
    for path in cohort.out.glob("**/*_statmap.nii.gz"):
        path.unlink()


def no_curves(cohort):
    for name in ("detection_curve", "detection_tests", "detection_froc"):
        path = cohort.out / f"{name}.tsv"
        write_tsv(path, list(read_tsv(path)[0]), [])


DAMAGES = (
    lose_on_the_t1w,
    lose_all_on_the_t1w,
    find_nothing,
    score_nothing,
    controls_without_clusters,
    no_controls,
    no_tables_of_controls,
    a_single_patient,
    lesions_beside_the_brain,
    empty_masks,
    lose_sidecars,
    spoil_sidecars,
    empty_sidecars,
    lists_for_objects,
    folders_for_sidecars,
    no_maps,
    no_curves,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Cohort(tmp_path_factory.mktemp("edges") / "out")


def copy_of(cohort, folder):
    copy = object.__new__(Cohort)
    copy.__dict__ |= cohort.__dict__
    copy.out = shutil.copytree(cohort.out, folder / "out")
    return copy


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_a_page_is_written_all_the_same(whole, tmp_path, damage):
    cohort = copy_of(whole, tmp_path)
    damage(cohort)
    assert "</html>" in cohort.write()
    for label in ("P1", *CONTROLS[:1]):
        assert "</html>" in cohort.write_subject(label)


def test_a_cluster_without_a_voxel_on_the_t1w_stands_in_the_table_without_a_button(whole, tmp_path):
    cohort = copy_of(whole, tmp_path)
    before = cohort.write_subject("P1").count("Show the peak of cluster 2")
    lose_on_the_t1w(cohort)
    page = cohort.write_subject("P1")
    assert before > page.count("Show the peak of cluster 2")
    assert "Show the peak of cluster 1" in page
    assert page.count('<th scope="row" class="number">2</th>') >= before


@pytest.mark.parametrize("slices", [10.0, 30.0])
def test_a_t1w_of_thick_slices(tmp_path, monkeypatch, slices):
    made = Cohort.__init__

    def coarse(self, out):
        def places(affine, shape):
            if shape == (33, 42, 32):  # the participant's own grid
                affine[2, 2] = slices
                shape = (33, 42, max(int(160 / slices), 2))
            return places_of(affine, shape)

        monkeypatch.setattr("anomalies.places_of", places)
        made(self, out)

    monkeypatch.setattr(Cohort, "__init__", coarse)
    cohort = Cohort(tmp_path / "out")
    assert "</html>" in cohort.write()
    for label in PATIENTS:
        assert "</html>" in cohort.write_subject(label)
