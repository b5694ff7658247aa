from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM

from bids_app import nifti
from bids_app.detection.autoencoder import cut_patches, load_encoder, train_encoder
from bids_app.detection.card import (
    Control,
    DetectorCard,
    EncoderSpec,
    card_values,
    digest_files,
    read_card,
    spec_to_dict,
)
from bids_app.detection.covariates import RIDGE
from bids_app.detection.detectors import DIRECTIONS
from bids_app.detection.normative import smooth_within
from bids_app.detection.slabs import Slab, mean_map, values_of
from bids_app.errors import MissingInputError, ReadWriteError, UnusableDataError
from bids_app.files import read_json, write_tsv
from bids_app.interfaces.detection import (
    AgreeOnBrain,
    ApplyNorm,
    ApplySlab,
    AverageControls,
    CompareSynthetic,
    FitNorm,
    FitSlab,
    LocateClusters,
    MapAnomalies,
    PackControls,
    PublishDetector,
    TrainEncoder,
)
from bids_app.interfaces.training import StoreVolumes
from bids_app.nifti import Owner, open_arrays, read_digest, store_arrays

SHAPE, ZOOMS = (18, 20, 6), (4.0, 4.0, 10.0)
AFFINE = np.array([[4.0, 0, 0, -36], [0, 4, 0, -40], [0, 0, 10, -30], [0, 0, 0, 1]])
OWNER = Owner("01", None, tuple(map(tuple, AFFINE.tolist())))
SPEC = EncoderSpec(epochs=2, pairs_per_epoch=64, batch_size=32)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[4:14, 5:15, 1:5] = True
BRAIN[4, 5, 2] = False  # slices differ in their numbers of voxels


def run(interface, cwd, **inputs):
    cwd.mkdir(exist_ok=True)
    return interface(**inputs).run(cwd=str(cwd)).outputs


def store(folder, pet, brain=BRAIN):
    store_arrays(folder, OWNER, {"pet": np.asarray(pet, np.float32), "brain": brain})
    return str(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six people with random PET, and the brain mask that is analysed."""
    root, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(2)
    for number in range(6):
        store(root / f"{number}", np.where(BRAIN, 0.3 + 0.5 * rng.random(SHAPE), 0))
    nifti.save(nifti.Image(BRAIN, AFFINE), root / "brain.nii.gz")
    return root


def folders(root, *numbers):
    return [str(root / f"{number}") for number in numbers]


def pets(root, *numbers):
    return [np.array(open_arrays(root / f"{number}", ["pet"])[0]) for number in numbers]


# Storing


def test_a_pet_is_stored_with_its_brain_and_a_digest_of_both(tmp_path, rng):
    pet = np.where(BRAIN, rng.random(SHAPE), 0).astype(np.float32)
    smaller = BRAIN.copy()
    smaller[4] = False
    digests = []
    for name, data, brain in (("a", pet, BRAIN), ("b", pet / 2, BRAIN), ("c", pet, smaller)):
        nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(brain.astype(np.uint8), AFFINE), tmp_path / f"{name}_mask.nii.gz")
        run(
            StoreVolumes,
            tmp_path / "node",
            volumes={"pet": str(tmp_path / f"{name}.nii.gz")},
            real=["pet"],
            brain_mask=str(tmp_path / f"{name}_mask.nii.gz"),
            participant="01",
            session="",
            shape=SHAPE,
            affine=AFFINE.tolist(),
            folder=str(tmp_path / name),
        )
        stored = open_arrays(tmp_path / name, ["pet", "brain"])
        np.testing.assert_array_equal(stored[0], data)
        np.testing.assert_array_equal(stored[1], brain)
        digests.append(read_digest(tmp_path / name))
    assert len(set(digests)) == 3


# Encoders


def trained(root, tmp_path, seed=3):
    inputs = {"digests": ["a", "b", "c"], "spec": spec_to_dict(SPEC), "threads": 1, "seed": seed}
    brain, controls = str(root / "brain.nii.gz"), folders(root, 0, 2, 3)
    return run(TrainEncoder, tmp_path, controls=controls, brain=brain, **inputs)


def test_an_encoder_is_trained_on_its_controls_and_kept_with_its_history(root, tmp_path):
    out = trained(root, tmp_path / "node")
    expected, epochs = train_encoder(pets(root, 0, 2, 3), BRAIN, SPEC, seed=3)
    weights = load_encoder(Path(out.encoder)).state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(weights[name], tensor)
    assert read_json(Path(out.history)) == {"epochs": epochs}
    assert len(epochs) == SPEC.epochs


def test_the_same_seed_gives_the_same_file(root, tmp_path):
    files = [
        Path(trained(root, tmp_path / name, seed).encoder).read_bytes()
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert files[0] == files[1] != files[2]


# One-class SVMs


@pytest.fixture(scope="module")
def common(root, tmp_path_factory):
    """Inputs shared by all slabs of a fold: trained on controls 0, 2 and 3, scoring the others."""
    folder = tmp_path_factory.mktemp("fold")
    controls = folders(root, 0, 1, 2, 3)
    packed = run(PackControls, folder / "pack", controls=controls, digests=["a", "b", "c", "d"])
    return {
        "brain": str(root / "brain.nii.gz"),
        "encoder": trained(root, folder / "train").encoder,
        "packed": packed.packed,
        "members": [0, 2, 3],
        "digests": ["a", "c", "d"],
        "direction": "both",
        "threads": 1,
        "scored": folders(root, 5, 1),
        "scored_digests": ["f", "b"],
    }


def test_scores_are_those_of_one_svm_a_voxel_fitted_to_the_members(root, tmp_path, common):
    out = run(FitSlab, tmp_path / "node", first=2, last=4, nu=0.3, **common)
    scores = np.load(out.scores)
    slab = [place for k in (2, 3) for place in np.argwhere(BRAIN[..., k]).tolist()]
    assert scores.shape == (2, len(slab))
    encoder, depth = load_encoder(Path(common["encoder"])), int(BRAIN[..., 2].sum())
    for place in (0, 7, depth - 1, depth, len(slab) - 1):
        centre = np.array([[*slab[place], 2 if place < depth else 3]])
        patches = np.stack([cut_patches(pet, centre, 15)[0] for pet in pets(root, 0, 2, 3, 5, 1)])
        with torch.no_grad():
            latents = encoder.encode(torch.from_numpy(patches)[:, None]).double().numpy()
        latents -= latents[:3].mean(axis=0)
        oracle = OneClassSVM(nu=0.3, gamma="scale").fit(latents[:3])
        np.testing.assert_allclose(
            scores[:, place], -oracle.decision_function(latents[3:]), atol=1e-3
        )


def test_an_encoder_may_see_the_t1w_beside_the_pet(root, tmp_path, rng):
    """Patches of both form one sample; the sign of a score depends on the PET only."""
    people, both = [], []
    for number in range(4):
        (pet,) = pets(root, number)
        both.append(np.stack([pet, np.where(BRAIN, rng.random(SHAPE), 0).astype(np.float32)]))
        store_arrays(
            tmp_path / f"{number}", OWNER, {"pet": pet, "channels": both[-1], "brain": BRAIN}
        )
        people.append(str(tmp_path / f"{number}"))
    spec = spec_to_dict(replace(SPEC, channels=2))
    given = {"controls": people[:3], "digests": ["a", "b", "c"]}
    brain = str(root / "brain.nii.gz")
    made = run(TrainEncoder, tmp_path / "train", **given, brain=brain, spec=spec, seed=1, threads=1)
    encoder = load_encoder(Path(made.encoder))
    common = {
        "brain": brain,
        "encoder": made.encoder,
        "packed": run(PackControls, tmp_path / "pack", **given, channels=2).packed,
        "members": [0, 1, 2],
        "digests": given["digests"],
        "scored": people[3:],
        "scored_digests": ["d"],
        "threads": 1,
        "first": 2,
        "last": 3,
    }
    signed, plain = (
        run(FitSlab, tmp_path / name, nu=0.3, direction=name, **common) for name in ("hypo", "both")
    )
    places = np.argwhere(BRAIN[..., 2])
    less = np.mean([one[0] for one in both[:3]], axis=0) > both[3][0]
    for place in (0, 11, len(places) - 1):
        centre = np.array([[*places[place], 2]])
        patches = np.stack([[cut_patches(x, centre, 15)[0] for x in one] for one in both])
        with torch.no_grad():
            latents = encoder.encode(torch.from_numpy(patches)).double().numpy()
        latents -= latents[:3].mean(axis=0)
        oracle = OneClassSVM(nu=0.3, gamma="scale").fit(latents[:3])
        expected = -oracle.decision_function(latents[3:])[0]
        assert np.load(plain.scores)[0, place] == pytest.approx(expected, abs=1e-3)
        expected = expected if less[(*places[place], 2)] else -abs(expected)
        assert np.load(signed.scores)[0, place] == pytest.approx(expected, abs=1e-3)
    again = run(ApplySlab, tmp_path / "apply", voxels=signed.voxels, direction="hypo", **common)
    np.testing.assert_allclose(np.load(again.scores), np.load(signed.scores), atol=1e-5)


def test_slabs_together_are_the_whole(tmp_path, common):
    parts = [(0, 2), (2, 3), (3, 6)]
    whole, *pieces = (
        np.load(run(FitSlab, tmp_path / "node", first=a, last=b, nu=0.1, **common).scores)
        for a, b in [(0, 6), *parts]
    )
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    assert whole.shape == (2, BRAIN.sum())


def test_a_slab_without_brain_has_no_scores(tmp_path, common):
    out = run(FitSlab, tmp_path / "fit", first=5, last=6, nu=0.1, **common)
    assert np.load(out.scores).shape == (2, 0)
    again = run(ApplySlab, tmp_path / "apply", first=5, last=6, voxels=out.voxels, **common)
    assert np.load(again.scores).shape == (2, 0)


def test_what_was_fitted_before_gives_the_same_scores(root, tmp_path, common):
    out = run(FitSlab, tmp_path / "fit", first=1, last=4, nu=0.1, **common)
    swapped = {**common, "scored": folders(root, 1, 5), "scored_digests": ["b", "f"]}
    again = run(ApplySlab, tmp_path / "apply", first=1, last=4, voxels=out.voxels, **swapped)
    np.testing.assert_allclose(np.load(again.scores), np.load(out.scores)[::-1], atol=1e-5)


def test_models_of_another_slab_are_not_applied(tmp_path, common):
    out = run(FitSlab, tmp_path / "fit", first=1, last=3, nu=0.1, **common)
    with pytest.raises(ValueError, match="models do not fit"):
        run(ApplySlab, tmp_path / "apply", first=1, last=4, voxels=out.voxels, **common)


def test_real_and_synthetic_pet_are_shown_to_a_fold_without_direction(root, tmp_path, common):
    slabs = [(0, 3), (3, 6)]
    both, hypo = ({**common, "direction": name, "nu": 0.3} for name in ("both", "hypo"))
    compared = {"compared": folders(root, 5, 1), "compared_digests": ["f", "b"]}
    plain, signed = (
        [
            run(FitSlab, tmp_path / f"{given['direction']}{a}", first=a, last=b, **given)
            for a, b in slabs
        ]
        for given in (both, hypo)
    )
    made = []
    for number, (a, b) in enumerate(slabs):
        out = run(FitSlab, tmp_path / f"fit{number}", first=a, last=b, **hypo, **compared)
        np.testing.assert_allclose(np.load(out.unsigned), np.load(plain[number].scores), atol=1e-5)
        np.testing.assert_array_equal(np.load(out.scores), np.load(signed[number].scores))
        assert not np.allclose(np.load(out.scores), np.load(out.unsigned))
        made.append(out.unsigned)
    atlas = tmp_path / "halves.nii.gz"
    labels = np.where(np.arange(SHAPE[0]) < 9, 1, 2)[:, None, None] * np.ones(SHAPE, np.int16)
    nifti.save(nifti.Image(labels.astype(np.int16), AFFINE), atlas)
    names = [{"index": 1, "name": "left"}, {"index": 2, "name": "right"}]
    write_tsv(tmp_path / "halves.tsv", ["index", "name"], names)
    told = run(
        CompareSynthetic,
        tmp_path / "check",
        kinds=["real", "synthetic"],
        fold=2,
        encoder=common["encoder"],
        unsigned=made,
        slabs=slabs,
        brain=common["brain"],
        atlas=str(atlas),
        **compared,
    )
    rows = read_json(Path(told.checked))["checked"]
    kinds = ["real"] * 3 + ["synthetic"] * 3
    assert [(row["kind"], row["region"]) for row in rows] == list(
        zip(kinds, ["brain", "left", "right"] * 2, strict=True)
    )
    assert {(row["participant_id"], row["session_id"], row["fold"]) for row in rows} == {
        ("sub-01", None, 2)
    }
    scores = np.concatenate([np.load(path)[1] for path in made])
    half = np.concatenate([labels[..., k][BRAIN[..., k]] for k in range(SHAPE[2])])
    for row, inside in zip(rows[3:], (half > 0, half == 1, half == 2), strict=True):
        assert row["mean_score"] == pytest.approx(scores[inside].mean(), rel=1e-4)
        assert row["above_zero"] == pytest.approx((scores[inside] > 0).mean())
        assert 0 < row["reconstruction_error"] < 1


def test_volumes_that_are_gone_are_told(root, tmp_path, common):
    gone = {**common, "scored": [str(root / "nobody")]}
    with pytest.raises(ReadWriteError, match=r"nobody: cannot be read"):
        run(FitSlab, tmp_path / "node", first=1, last=3, nu=0.1, **gone)


def test_packed_controls_that_are_gone_are_told(tmp_path, common):
    gone = {**common, "packed": str(tmp_path / "nothing.safetensors")}
    with pytest.raises(MissingInputError, match=r"nothing\.safetensors: no such file"):
        run(FitSlab, tmp_path / "node", first=1, last=3, nu=0.1, **gone)


# Norms


def norm_inputs(root, detector, **others):
    inputs = {"detector": detector, "brain": str(root / "brain.nii.gz"), "fwhm": 0.0}
    inputs["direction"] = "hypo"
    return {**inputs, "scored_synthetic": [], "scored_digests": ["x"], **others}


@pytest.fixture
def flat(tmp_path):
    """Write a person whose PET is constant within the brain; return the folder."""
    return lambda name, value: store(tmp_path / name, np.where(BRAIN, value, 0))


def test_zscore_is_the_t_of_a_deficit(root, tmp_path, flat):
    out = run(
        FitNorm,
        tmp_path / "node",
        controls=[flat("a", 0.4), flat("b", 0.5), flat("c", 0.6)],
        controls_synthetic=[],
        digests=["a", "b", "c"],
        **norm_inputs(root, "zscore", scored=[flat("ill", 0.3), flat("well", 0.5)]),
    )
    scores = np.load(out.scores)
    assert scores.shape == (2, BRAIN.sum())
    np.testing.assert_allclose(scores[0], 0.2 / (0.1 * np.sqrt(4 / 3)), rtol=1e-4)
    np.testing.assert_allclose(scores[1], 0, atol=1e-4)


@pytest.mark.parametrize("detector", ["zscore", "pseudonormal"])
def test_what_is_outside_a_brain_mask_is_unknown_and_not_an_uptake_of_0(root, tmp_path, detector):
    """Of a control and of a scored person, whose brain masks end earlier than those of others."""
    smaller, synthetic = BRAIN.copy(), detector == "pseudonormal"
    smaller[4:7] = False

    def person(name, value, brain=BRAIN):
        return store(tmp_path / name, np.where(brain, value, 0), brain)

    made = [person(f"made{n}", 0.5) for n in range(5)] if synthetic else []
    values = {"a": 0.4, "b": 0.5, "c": 0.6, "d": 0.5}
    controls = [person(name, value) for name, value in values.items()]
    controls.append(person("e", 0.5, smaller))
    out = run(
        FitNorm,
        tmp_path / "node",
        controls=controls,
        controls_synthetic=made,
        digests=["a"],
        **norm_inputs(root, detector, scored=[person("ill", 0.3, smaller), person("too", 0.3)])
        | {"fwhm": 8.0, "scored_synthetic": made[:2]},
    )
    scores = np.load(out.scores)
    inside = values_of(smaller.astype(np.float32), BRAIN, Slab(0, SHAPE[-1])) > 0
    assert np.isnan(scores[0][~inside]).all()
    everywhere = 0.2 / (np.std([*values.values(), 0.5], ddof=1) * np.sqrt(6 / 5))
    np.testing.assert_allclose(scores[0][inside], everywhere, rtol=1e-4)
    np.testing.assert_allclose(scores[1][inside], everywhere, rtol=1e-4)
    of_four = 0.2 / (np.std([*values.values()], ddof=1) * np.sqrt(5 / 4))
    np.testing.assert_allclose(scores[1][~inside], of_four, rtol=1e-4)


def test_pseudonormal_is_the_t_of_synthetic_minus_real(root, tmp_path, flat):
    """Differences of the controls: 0.0, 0.1, 0.2; of the scored person: 0.4."""
    out = run(
        FitNorm,
        tmp_path / "node",
        controls=[flat("a", 0.5), flat("b", 0.4), flat("c", 0.4)],
        controls_synthetic=[flat("d", 0.5), flat("e", 0.5), flat("f", 0.6)],
        digests=["a"],
        **norm_inputs(root, "pseudonormal", scored=[flat("ill", 0.2)])
        | {"scored_synthetic": [flat("made", 0.6)]},
    )
    expected = (0.4 - 0.1) / (0.1 * np.sqrt(4 / 3))
    np.testing.assert_allclose(np.load(out.scores), expected, rtol=1e-4)


@pytest.mark.parametrize("detector", ["zscore", "pseudonormal", "combined"])
def test_a_norm_that_was_learned_before_gives_the_same_scores(root, tmp_path, detector):
    made = detector == "pseudonormal"
    inputs = norm_inputs(root, detector, scored=folders(root, 5, 4))
    inputs |= {"fwhm": 8.0, "scored_synthetic": folders(root, 0, 1) if made else []}
    out = run(
        FitNorm,
        tmp_path / "fit",
        controls=folders(root, 0, 1, 2),
        digests=["a", "b", "c"],
        controls_synthetic=folders(root, 3, 4, 5) if made else [],
        **inputs,
    )
    again = run(ApplyNorm, tmp_path / "apply", norm=out.norm, **inputs)
    np.testing.assert_array_equal(np.load(again.scores), np.load(out.scores))


def test_what_is_combined_is_the_mean_of_z_score_and_asymmetry(root, tmp_path):
    told = {"controls": folders(root, 0, 1, 2), "controls_synthetic": [], "digests": ["a"]}
    scores = {}
    for detector in ("zscore", "asymmetry", "combined"):
        inputs = norm_inputs(root, detector, scored=folders(root, 5, 4))
        scores[detector] = np.load(run(FitNorm, tmp_path / detector, **told, **inputs).scores)
    assert not np.isnan(scores["combined"]).any()
    known = ~np.isnan(scores["asymmetry"])
    assert known.any()
    expected = (scores["zscore"] + np.nan_to_num(scores["asymmetry"])) / 2
    np.testing.assert_allclose(scores["combined"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scores["combined"][~known], scores["zscore"][~known] / 2)


def test_the_other_direction_turns_the_scores_of_norms(root, tmp_path):
    told = {"controls": folders(root, 0, 1, 2), "controls_synthetic": [], "digests": ["a"]}
    inputs = norm_inputs(root, "zscore", scored=folders(root, 5, 4))
    scores = {
        direction: np.load(
            run(FitNorm, tmp_path / direction, **told, **inputs | {"direction": direction}).scores
        )
        for direction in DIRECTIONS
    }
    np.testing.assert_array_equal(scores["hyper"], -scores["hypo"])
    np.testing.assert_array_equal(scores["both"], np.abs(scores["hypo"]))


def test_norms_compare_what_was_smoothed_in_the_brain_with_the_voxels_own_size(root, tmp_path):
    out = run(
        FitNorm,
        tmp_path / "node",
        controls=folders(root, 0, 1, 2),
        controls_synthetic=[],
        digests=["a", "b", "c"],
        **norm_inputs(root, "zscore", scored=folders(root, 5)) | {"fwhm": 12.0},
    )
    smoothed = [
        smooth_within(pet, BRAIN, fwhm=12.0, zooms=ZOOMS)[BRAIN] for pet in pets(root, 0, 1, 2, 5)
    ]
    sd = np.std(smoothed[:3], axis=0, ddof=1)
    sd = np.maximum(sd, 0.1 * np.median(sd))
    expected = np.zeros(SHAPE, np.float32)
    expected[BRAIN] = (np.mean(smoothed[:3], axis=0) - smoothed[3]) / (sd * np.sqrt(4 / 3))
    scores = np.load(out.scores)[0]
    np.testing.assert_allclose(scores, values_of(expected, BRAIN, Slab(0, 6)), atol=1e-3)


# Brain mask shared by the controls


def boxes(tmp_path, *ends):
    """Store people whose brains end at different slices."""
    found = []
    for number, end in enumerate(ends):
        brain = np.zeros(SHAPE, bool)
        brain[5:9, 5:9, :end] = True
        found.append(store(tmp_path / f"{number}", 0.5 * brain, brain))
    return found


@pytest.mark.parametrize(("share", "end"), [(0.5, 4), (0.75, 3), (0.9, 2)])
def test_what_is_analysed_is_brain_in_most_controls(tmp_path, share, end):
    controls = boxes(tmp_path, 2, 3, 4, 5)
    out = run(AgreeOnBrain, tmp_path / "node", controls=controls, digests=["a"], share=share)
    image = nib.load(out.brain)
    expected = np.zeros(SHAPE)
    expected[5:9, 5:9, :end] = 1
    np.testing.assert_array_equal(image.get_fdata(), expected)
    np.testing.assert_allclose(image.affine, AFFINE)


def test_controls_whose_brains_have_nothing_in_common_are_refused(tmp_path):
    brain = np.zeros(SHAPE, bool)
    brain[0, 0] = True
    controls = [*boxes(tmp_path, 2), store(tmp_path / "other", 0.5 * brain, brain)]
    with pytest.raises(UnusableDataError, match="no voxel is in the brain of 90% of the 2 con"):
        run(AgreeOnBrain, tmp_path / "node", controls=controls, digests=["a"], share=0.9)


def test_the_controls_mean_and_sd_are_those_of_the_pet_that_reaches_a_voxel(tmp_path, rng):
    pets = 0.5 + 0.2 * rng.random((6, *SHAPE), np.float32)
    hole = np.zeros(SHAPE, bool)
    hole[5, 6, 2] = True
    controls = [store(tmp_path / f"{n}", pet) for n, pet in enumerate(pets)]
    np.save(tmp_path / "0" / "hole.npy", hole)
    nifti.save(nifti.Image(BRAIN, AFFINE), tmp_path / "brain.nii.gz")
    given = {"controls": controls, "digests": ["a"], "brain": str(tmp_path / "brain.nii.gz")}
    out = run(AverageControls, tmp_path / "node", synthetic=2, **given)
    expected = np.where(BRAIN, [pets.mean(axis=0), pets.std(axis=0, ddof=1)], 0)
    expected[:, 5, 6, 2] = pets[1:, 5, 6, 2].mean(), pets[1:, 5, 6, 2].std(ddof=1)
    for path, volume in zip(out.images, expected, strict=True):
        image = nib.load(path)
        np.testing.assert_allclose(image.get_fdata(), volume, atol=1e-6)
        np.testing.assert_allclose(image.affine, AFFINE)
        assert image.header["descrip"].item() == b"2 of 6 PET SYNTHETIC"
    out = run(AverageControls, tmp_path / "real", synthetic=0, **given)
    assert nib.load(out.images[0]).header["descrip"].item() == b""


def test_the_controls_sd_is_that_around_their_covariates(tmp_path, rng):
    ages = np.linspace(-2, 2, 8)
    noise = 0.01 * rng.standard_normal((8, *SHAPE), np.float32)
    pets = 0.5 + 0.1 * ages.reshape(8, 1, 1, 1).astype(np.float32) + noise
    controls = [store(tmp_path / f"{n}", pet) for n, pet in enumerate(pets)]
    nifti.save(nifti.Image(BRAIN, AFFINE), tmp_path / "brain.nii.gz")
    out = run(
        AverageControls,
        tmp_path / "node",
        controls=controls,
        digests=["a"],
        brain=str(tmp_path / "brain.nii.gz"),
        synthetic=0,
        covariates=[[age] for age in ages.tolist()],
    )
    mean, sd = (nib.load(path).get_fdata()[BRAIN] for path in out.images)
    values = pets[:, BRAIN].astype(float)
    slopes = ages @ values / (ages @ ages + RIDGE)
    left = np.sqrt(((values - np.outer(ages, slopes)).var(axis=0, ddof=0) * 8) / 6)
    np.testing.assert_allclose(mean, values.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(sd, left, atol=1e-5)
    assert sd.max() < values.std(axis=0).min() / 3


# Anomaly maps


SLABS = [(0, 2), (2, 6)]


@pytest.fixture
def scored(root, tmp_path, rng):
    """Inputs of a map: scores of the second of three images in two folds, and their mean.

    Two boxes are abnormal, the left one more so; the rest is normal.
    """
    volume = -rng.random(SHAPE).astype(np.float32)
    volume[5:8, 6:9, 2:4], volume[10:13, 6:9, 2:4] = 4, 2
    inputs, paths = {}, []
    for fold in (1, 2):
        for number, slab in enumerate(SLABS):
            values = values_of(volume, BRAIN, Slab(*slab))
            rows = np.stack([0 * values, values * (2 * fold / 3), 9 + values])
            paths.append(str(tmp_path / f"{fold}_{number}.npy"))
            np.save(paths[-1], rows)
    own = BRAIN.copy()
    own[4:14, 5:15, 1] = False  # this brain begins later
    inputs = {
        "scores": paths,
        "slabs": SLABS * 2,
        "rows": [1] * 4,
        "folds": 2,
        "brain": str(root / "brain.nii.gz"),
        "image": store(tmp_path / "own", 0.5 * own, own),
        "digest": "a",
        "fwhm": 0.0,
        "extent": 0.4,
        "minimum_volume": 1.0,
        "max_clusters": 10,
    }
    return inputs, np.where(own, volume, 0)


def save_image(path, data):
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return str(path)


def test_a_map_is_the_mean_over_folds_within_ones_own_brain(tmp_path, scored):
    inputs, expected = scored
    out = run(MapAnomalies, tmp_path / "node", **inputs)
    image = nib.load(out.statmap)
    np.testing.assert_allclose(image.get_fdata(), expected, atol=1e-5)
    np.testing.assert_allclose(image.affine, AFFINE)
    assert image.get_data_dtype() == np.float32


def test_a_map_is_smoothed_within_ones_own_brain(tmp_path, scored):
    inputs, expected = scored
    out = run(MapAnomalies, tmp_path / "node", **{**inputs, "fwhm": 9.0})
    smoothed = smooth_within(expected, expected != 0, fwhm=9.0, zooms=ZOOMS)
    np.testing.assert_allclose(nib.load(out.statmap).get_fdata(), smoothed, atol=1e-5)
    assert np.abs(smoothed - expected).max() > 0.5


def test_one_fold_alone_can_score(tmp_path, scored):
    inputs, expected = scored
    single = {"scores": inputs["scores"][2:], "slabs": SLABS, "rows": [1, 1], "folds": 1}
    out = run(MapAnomalies, tmp_path / "node", **{**inputs, **single})
    np.testing.assert_allclose(nib.load(out.statmap).get_fdata(), expected * 4 / 3, atol=1e-5)


def test_clusters_are_labelled_by_rank_and_told(tmp_path, scored):
    inputs, expected = scored
    out = run(MapAnomalies, tmp_path / "node", **inputs)
    image = nib.load(out.labels)
    labels = np.asarray(image.dataobj)
    assert image.get_data_dtype() == np.int16
    assert (labels[5:8, 6:9, 2:4] == 1).all()
    assert (labels[10:13, 6:9, 2:4] == 2).all()
    assert (labels > 0).sum() == 36
    told = read_json(Path(out.clusters))
    assert [one["side"] for one in told["clusters"]] == ["left", "right"]
    assert [one["sum_score"] for one in told["clusters"]] == pytest.approx([72, 36], rel=1e-4)
    assert (told["lesions"], told["overlaps"], told["regions"]) == (None, None, None)
    assert told["above_zero"] == pytest.approx(36 / (expected != 0).sum())  # in the own brain


def test_all_clusters_are_told_but_only_the_first_are_labelled(tmp_path, scored):
    inputs, _ = scored
    out = run(MapAnomalies, tmp_path / "node", **{**inputs, "max_clusters": 1})
    assert np.unique(np.asarray(nib.load(out.labels).dataobj)).tolist() == [0, 1]
    assert [one["rank"] for one in read_json(Path(out.clusters))["clusters"]] == [1, 2]


def test_clusters_are_compared_with_lesions_and_regions(tmp_path, scored):
    inputs, _ = scored
    lesions, atlas = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.int16)
    lesions[10:12, 6:9, 2:3], lesions[10:12, 13:15, 2:3] = 1, 1
    atlas[:9], atlas[9:] = 300, 7
    write_tsv(tmp_path / "names.tsv", ["index", "name"], [{"index": 300, "name": "Left"}])
    out = run(
        MapAnomalies,
        tmp_path / "node",
        lesions=save_image(tmp_path / "l.nii.gz", lesions),
        atlas=save_image(tmp_path / "a.nii.gz", atlas),
        names=str(tmp_path / "names.tsv"),
        **inputs,
    )
    told = read_json(Path(out.clusters))
    assert told["lesions"] == 2
    np.testing.assert_allclose(told["overlaps"], [[0, 0], [6 * 160, 0]])  # mm³
    assert told["regions"] == ["Left", "label 7"]


@pytest.mark.parametrize("name", ["lesions", "atlas"])
def test_an_image_on_another_grid_is_not_compared(tmp_path, scored, name):
    inputs, _ = scored
    other = save_image(tmp_path / "other.nii.gz", np.ones((18, 20, 7), np.uint8))
    write_tsv(tmp_path / "names.tsv", ["index", "name"], [{"index": 1, "name": "all"}])
    with pytest.raises(UnusableDataError, match=r"other\.nii\.gz: lies on another grid"):
        run(
            MapAnomalies,
            tmp_path / "node",
            names=str(tmp_path / "names.tsv"),
            **{**inputs, name: other},
        )


def test_a_brain_that_is_nowhere_that_of_controls_is_refused(tmp_path, scored):
    inputs, _ = scored
    inputs["image"] = store(tmp_path / "elsewhere", 0.5 * ~BRAIN, ~BRAIN)
    with pytest.raises(UnusableDataError, match="elsewhere: its brain has no voxel in common"):
        run(MapAnomalies, tmp_path / "node", **inputs)


def test_scores_of_another_brain_do_not_fit(tmp_path, scored):
    inputs, _ = scored
    inputs["slabs"] = [(0, 3), (3, 6)] * 2
    with pytest.raises(ValueError, match="values do not fill"):
        run(MapAnomalies, tmp_path / "node", **inputs)


def test_maps_are_laid_out_as_slabs_are_cut(rng):
    volume = np.where(BRAIN, rng.random(SHAPE), 0).astype(np.float32)
    pieces = [(Slab(*slab), values_of(volume, BRAIN, Slab(*slab))) for slab in reversed(SLABS)]
    np.testing.assert_array_equal(mean_map(pieces, BRAIN, 1), volume)


# On another grid


def test_clusters_are_located_on_the_grid_that_they_were_carried_to(tmp_path):
    score, labels = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.int16)
    score[5, 6, 2], score[6, 6, 2], labels[5:7, 6, 2] = 3, 1, 2
    nifti.save(nifti.Image(score, AFFINE), tmp_path / "score.nii.gz")
    nifti.save(nifti.Image(labels, AFFINE), tmp_path / "labels.nii.gz")
    out = run(
        LocateClusters,
        tmp_path / "node",
        statmap=str(tmp_path / "score.nii.gz"),
        labels=str(tmp_path / "labels.nii.gz"),
    )
    assert read_json(Path(out.places)) == {
        "places": [
            {
                "rank": 2,
                "x": -15.0,
                "y": -16.0,
                "z": -10.0,
                "peak_x": -16.0,
                "peak_y": -16.0,
                "peak_z": -10.0,
                "volume": pytest.approx(320),
            }
        ]
    }


# Publishing


def published(tmp_path, **files):
    """Publish files, given by their path in the folder; return the folder."""
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    rows = tuple(map(tuple, AFFINE.tolist()))
    card = DetectorCard(
        "real",
        "7",
        ("zscore",),
        "MNI",
        SHAPE,
        rows,
        (Control("01", None, False, "", "", 1),),
        2,
        ((0, 6),),
        {"nu": 0.03},
        "ellipsoids",
        0,
        "tests",
    )
    out = run(
        PublishDetector,
        tmp_path / "node",
        card=card_values(card),
        sources=[str(tmp_path / name) for name in files],
        names=[f"zscore/{name}.safetensors" for name in files],
        folder=str(tmp_path / "detectors" / "real"),
    )
    return Path(out.folder), card


def test_a_detector_is_published_with_a_card_that_knows_its_files(tmp_path):
    folder, card = published(tmp_path, a="one", b="two")
    assert (folder / "zscore" / "a.safetensors").read_text() == "one"
    read = read_card(folder)
    paths = [folder / "zscore" / f"{name}.safetensors" for name in "ab"]
    assert read.files == digest_files(folder, paths)
    assert replace(read, files={}) == card


def test_what_an_earlier_detector_had_beyond_is_removed_and_maps_are_not(tmp_path):
    folder, _ = published(tmp_path, a="one", b="two")
    statmap = folder / "sub-01" / "pet" / "sub-01_statmap.nii.gz"
    statmap.parent.mkdir(parents=True)
    statmap.touch()
    left = folder / "zscore" / f".{'0' * 32}.a.safetensors"  # left by a run that was killed
    left.touch()
    begun = folder / "sub-02" / "pet"  # left by a node that is about to write a map there
    begun.mkdir(parents=True)
    other = folder / "ocsvm"  # a detector that this run does not train
    (other / "fold-1").mkdir(parents=True)
    (other / "fold-1" / "encoder.safetensors").touch()
    published(tmp_path, a="three")
    assert [path.read_text() for path in folder.rglob("*.safetensors")] == ["three"]
    assert (folder / "zscore").is_dir()
    assert not other.exists()
    assert begun.is_dir()
    assert statmap.exists()


def test_there_is_no_card_where_files_could_not_be_copied(tmp_path, monkeypatch):
    folder, _ = published(tmp_path, a="one")

    def fail(source, target):
        raise ReadWriteError(f"{target}: cannot be written")

    monkeypatch.setattr("bids_app.interfaces.detection.copy_file", fail)
    with pytest.raises(ReadWriteError, match="cannot be written"):
        published(tmp_path, a="two")
    assert not (folder / "card.json").exists()
