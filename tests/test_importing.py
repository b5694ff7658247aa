"""Import of pytorch-CycleGAN-and-pix2pix generators, compared with a reimplementation."""

import copy
import json
import pickle
from collections import OrderedDict
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from foreign import WIDTH, drawn, in_unit_range, in_volume
from torch import nn

import mri2pet
from bids_app.errors import UnusableDataError
from bids_app.files import file_sha256
from bids_app.generators import Options, choose_generator, has_seen, known_labels
from bids_app.imaging.volume import grid_of_box
from bids_app.importing import TAKEN, convert, main
from bids_app.library import predict_pet
from bids_app.settings import Settings
from bids_app.synthesis.card import read_card
from bids_app.synthesis.inference import load_generator, predict
from bids_app.synthesis.losses import build_generator
from bids_app.synthesis.tiling import AXES, SingleSlices, SliceTriplets
from bids_app.templates import mask_on

EXACT, ROUNDED = 2e-6, 5e-6  # for intensities in [0, 1], in float64 and in float32
GRID = grid_of_box(Settings.bounding_box, 4.0)  # 40×48×34
TOLD = ("--trained-on", "T1w and FDG PET of nobody")
AT_4_MM = ("--resolution", "4")


def ours_of(state, **how):
    spec, weights = convert(state, **how)
    network = build_generator(spec)
    network.load_state_dict(weights)
    return network.eval()


def assert_same(ours, x, expected):
    """Check that both are the same function in float64, and equal up to rounding in float32."""
    assert expected.std() > 0.1
    with torch.inference_mode():
        made = copy.deepcopy(ours).double()(x.double()), ours(x).double()
    for found, close in zip(made, (EXACT, ROUNDED), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=close)


def save(tmp_path, network, name="latest_net_G.pth"):
    path = tmp_path / name
    torch.save(network.state_dict(), path)
    return path


def imported(tmp_path, network, *options, name="theirs"):
    path, folder = save(tmp_path, network), tmp_path / name
    assert main([str(path), str(folder), *TOLD, *AT_4_MM, *options]) == 0
    return folder


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"blocks": 6},
        {"blocks": 1, "width": 7},
        {"blocks": 6, "dropout": True},
        {"taken": 1, "given": 1, "blocks": 6},
    ],
    ids=str,
)
def test_an_imported_network_is_the_same_function(how):
    theirs = drawn(**how)
    ours = ours_of(theirs.state_dict())
    x = torch.rand(2, how.get("taken", 3), 40, 48, generator=torch.Generator().manual_seed(5))
    x[..., :9] = 0  # background, -1 in their range, up to the border
    assert_same(ours, x, in_unit_range(theirs, x))


def test_at_their_usual_width_too():
    theirs = drawn(width=64)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 0, 0.02)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    assert_same(ours_of(theirs.state_dict()), x, in_unit_range(theirs, x))


@pytest.mark.parametrize(("taken", "given"), [(3, 3), (3, 1), (1, 3)])
def test_of_copies_of_a_slice_one_is_taken_and_one_given(taken, given):
    theirs = drawn(taken=taken, given=given, blocks=6)
    ours = ours_of(theirs.state_dict(), copies=True)
    x = torch.rand(2, 1, 40, 48, generator=torch.Generator().manual_seed(5))
    assert_same(ours, x, in_unit_range(theirs, x.expand(-1, taken, -1, -1))[:, :1])


def test_what_is_wrapped_or_left_over_is_understood():
    theirs = drawn(blocks=6)
    plain = convert(theirs.state_dict())
    wrapped = nn.DataParallel(theirs).state_dict()
    assert all(name.startswith("module.") for name in wrapped)
    # as instance norm was saved before PyTorch 0.4
    old = OrderedDict(
        theirs.state_dict(),
        **{"model.2.running_mean": torch.ones(WIDTH), "model.2.running_var": torch.ones(WIDTH)},
    )
    half = {name: value.double() for name, value in theirs.state_dict().items()}
    for state in (wrapped, old, half):
        spec, weights = convert(state)
        assert spec == plain[0]
        assert all(torch.equal(weights[name], value) for name, value in plain[1].items())


def test_width_blocks_and_channels_are_read_off_the_weights():
    spec, _ = convert(drawn(blocks=6, width=5).state_dict(), cycle=True)
    assert (spec.n_blocks, spec.width, spec.cycle, spec.tiling) == (6, 5, True, SliceTriplets())
    spec, _ = convert(drawn(taken=1, given=1, blocks=2).state_dict(), axes="PL")
    assert (spec.n_blocks, spec.cycle, spec.tiling) == (2, False, SingleSlices("PL"))


class Antialiased(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("filt", torch.ones(1, 1, 3, 3))


def with_zeros(state):
    """Return a state dict of blocks whose convolutions pad by themselves."""
    moved = {".conv_block.1.": ".conv_block.0.", ".conv_block.5.": ".conv_block.3."}
    names = {}
    for name in state:
        names[name] = name
        for old, new in moved.items():
            names[name] = names[name].replace(old, new)
    return {names[name]: value for name, value in state.items()}


def changed(**tensors):
    return {**drawn(blocks=1).state_dict(), **{k.replace("_", "."): v for k, v in tensors.items()}}


REFUSED = {
    "antialias": (
        lambda: {**changed(), "model.7.filt": torch.ones(1)},
        "its strides are antialiased.*--no_antialias_up",
    ),
    "unet": (
        lambda: {"model.model.0.weight": torch.ones(4, 3, 4, 4)},
        "a U-Net.*--netG resnet_9blocks",
    ),
    "batch norm": (
        lambda: drawn(blocks=1, norm=nn.BatchNorm2d).state_dict(),
        "its norm has weights.*--norm instance",
    ),
    "discriminator": (
        lambda: {"model.0.weight": torch.ones(4, 3, 4, 4), "model.0.bias": torch.ones(4)},
        "not a generator with residual blocks",
    ),
    "empty": (dict, "not a generator with residual blocks"),
    "3D": (lambda: changed(model_1_weight=torch.ones(4, 1, 7, 7, 7)), "not a 2D convolution"),
    "zeros": (lambda: with_zeros(changed()), "use zero padding"),
    "gap": (
        lambda: {k.replace("model.10.", "model.11."): v for k, v in changed().items()},
        "not at the positions of those of a ResnetGenerator",
    ),
    "3 to 1": (lambda: drawn(given=1, blocks=1).state_dict(), "3 input and 1 output.*--copies"),
    "two": (
        lambda: drawn(taken=2, given=2, blocks=1).state_dict(),
        "2 input channels.* 1 slice or 3",
    ),
    "no norm": (
        lambda: {k: v for k, v in changed().items() if k != "model.1.bias"},
        "no bias, as with --norm none.*--norm instance",
    ),
    "no bias": (
        lambda: {k: v for k, v in changed().items() if k != "model.4.bias"},
        "model.4.bias is missing",
    ),
    "more": (lambda: changed(other_weight=torch.ones(1, 1)), "other.weight is unknown"),
    "last": (
        lambda: {k: v for k, v in changed().items() if not k.startswith("model.18")},
        "model.18.weight is missing, or does not have 4 axes",
    ),
    "shape": (
        lambda: changed(model_4_weight=torch.ones(8, 4, 4, 4)),
        r"model.4.weight is tensor \[8, 4, 4, 4\], not tensor \[8, 4, 3, 3\]",
    ),
    "odd": (
        lambda: changed(model_7_bias=torch.full((16,), torch.nan)),
        "model.7.bias contains NaN",
    ),
    "flat": (lambda: changed(model_18_weight=torch.ones(9, 9)), "model.18.weight .* 4 axes"),
    "numbers": (lambda: {**changed(), 3: torch.ones(1)}, "not the parameters of a network"),
    "whole": (lambda: changed(model_4_bias=torch.ones(8, dtype=int)), "not the parameters"),
    "sparse": (lambda: changed(model_4_bias=torch.ones(8).to_sparse()), "not the parameters"),
    "scalar": (lambda: changed(model_1_weight=torch.tensor(1.0)), "not a 2D convolution"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_network_is_refused_in_a_sentence(case, tmp_path, capsys):
    make, words = REFUSED[case]
    state = make()
    with pytest.raises(ValueError, match=words):
        convert(state)
    path = tmp_path / "latest_net_G.pth"
    torch.save(state, path)
    assert main([str(path), str(tmp_path / "new"), *TOLD]) == 65
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: cannot be imported (")
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


class Mark:
    """Pickle that would create a file if its code were executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["code", "pickle", "whole", "wrapped", "text", "cut", "empty"])
def test_other_content_is_refused_and_never_run(kind, tmp_path, capsys, recwarn):
    path, mark, network = tmp_path / "net_G.pth", tmp_path / "mark", drawn(blocks=1)
    if kind == "code":
        torch.save({**network.state_dict(), "x": Mark(mark)}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Mark(mark)))
    elif kind == "whole":
        torch.save(network, path)
    elif kind == "wrapped":
        torch.save({"state_dict": network.state_dict(), "epoch": 3}, path)
    elif kind == "cut":
        path.write_bytes(save(tmp_path, network, "x.pth").read_bytes()[:5000])
    else:
        path.write_bytes(b"weights" * (kind == "text"))
    assert main([str(path), str(tmp_path / "new"), *TOLD]) == 65
    said = capsys.readouterr().err
    assert f"{path}: not a" in said
    assert "what torch.save makes of network.state_dict()" in said
    assert said.count("\n") == 1
    assert not [warning for warning in recwarn if "pickle" in f"{warning.message}"]
    assert not mark.exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--name", "tissue"], 64, "tissue: is the name of one of mri2pet's own"),
        (["--participant-label", "01"], 64, "--participant-label: also give the --dataset"),
        (["--bounding-box", "0", "0", "0", "1", "1", "-1"], 64, "--bounding-box: x0 y0 z0 must"),
        (["--slice-axes", "RS"], 64, "'RS' is not one of RA, RP"),
        (["--resolution", "0"], 64, "0 is not above 0"),
        (["--pet-times-mean", "-1"], 64, "-1 is below 0"),
        (["--name", "a/b"], 64, "'a/b' cannot be a folder name"),
        (["--trained-on", " "], 64, "the text is empty, too long, or not UTF-8"),
        (["--slice-axis", "RA"], 64, "did you mean --slice-axes?"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(
    options, code, words, tmp_path, capsys
):
    assert main([str(tmp_path / "nothing.pth"), str(tmp_path / "new"), *TOLD, *options]) == code
    assert words in capsys.readouterr().err


def test_files_and_folders_that_are_not_as_they_should_be(tmp_path, capsys):
    path, nothing = save(tmp_path, drawn(blocks=1)), tmp_path / "nothing.pth"
    new, used = tmp_path / "new", tmp_path / "used"
    used.mkdir()
    (used / "file").touch()
    assert main([str(path), str(new)]) == 64
    assert "required: --trained-on; see" in capsys.readouterr().err
    assert main(["--participant-label", "1", str(path), str(new), "--trained-on", "x"]) == 64
    assert "; give FILE FOLDER first, because an option" in capsys.readouterr().err
    for file, folder, code, words in (
        (nothing, new, 66, "nothing.pth: no such file; check its path"),
        (tmp_path, new, 65, "is a folder, not a file"),
        (path, used, 73, "used: not an empty folder"),
        (path, path, 73, "latest_net_G.pth: not an empty folder"),
        (path, path / "new", 74, "cannot be written"),
    ):
        assert main([str(file), str(folder), *TOLD]) == code
        assert words in capsys.readouterr().err
    assert main([str(path), str(new), *TOLD, "--resolution", "0.001"]) == 65
    assert "cannot be imported (field shape cannot be" in capsys.readouterr().err
    assert not new.exists()
    assert {"default", "semi3d-gan", "semi3d-gan-tissue", "semi3d-gan-overlap"} < TAKEN


def test_the_card_tells_where_the_generator_is_from(tmp_path, capsys):
    path, folder = save(tmp_path, drawn(blocks=6), "latest_net_G_B.pth"), tmp_path / "lyon"
    people = (
        "--dataset",
        "Our study",
        "--participant-label",
        "sub-01",
        "--participant-label",
        "02",
    )
    more = ("--licence", "CC0", "--pet-times-mean", "2.5", "--slice-axes", "pr")
    assert main([str(path), str(folder), *TOLD, *AT_4_MM, *people, *more]) == 0
    assert capsys.readouterr().out == (
        f"generator lyon (semi-3D, 6 residual blocks, width {WIDTH}): {folder}\n"
    )
    card, digest = read_card(folder), file_sha256(path)
    assert (card.name, card.template, card.shape) == ("lyon", Settings.template, GRID.shape)
    np.testing.assert_array_equal(card.affine, GRID.affine)
    assert card.trained_on == (
        f"T1w and FDG PET of nobody (imported from latest_net_G_B.pth, SHA-256 {digest})"
    )
    assert card.intended_use.endswith("has not measured how good it is. Licence: CC0.")
    assert card.sha256 == file_sha256(folder / "weights.safetensors")
    (origin,) = card.initialized_from
    assert (origin.name, origin.sha256) == ("latest_net_G_B.pth", digest)
    assert (card.seed, card.metrics, card.pet_times_mean) == (-1, {}, 2.5)
    assert card.reference_sha256 == card.uncertainty_sha256 == ""
    assert (card.spec.cycle, card.spec.epochs, card.spec.tiling.axes) == (True, 0, "PR")
    assert (card.participants, card.dataset) == (("01", "02"), "Our study")
    assert known_labels(card) == {"01", "02"}
    assert has_seen(card, "02", ["Our study"], tmp_path)
    assert not has_seen(card, "03", ["Our study"], tmp_path)


def test_what_the_user_says_of_grid_name_and_use_is_in_the_card(tmp_path):
    box = ("--bounding-box", "-20", "-20", "-20", "20", "24", "28")
    said = ("--name", "our own", "--template", "MNI152NLin6Asym", "--intended-use", "Tests.")
    card = read_card(imported(tmp_path, drawn(blocks=1), *box, *said))
    assert (card.name, card.template, card.shape) == ("our own", "MNI152NLin6Asym", (11, 12, 13))
    assert card.intended_use == "Tests. Imported; mri2pet has not measured how good it is."
    assert (card.dataset, card.participants, card.pet_times_mean) == ("", (), 0)


def turned(slices, axes):
    """Reorder (…, I, J), which points to R and A, to ``axes``, by nibabel."""
    own = nib.orientations.axcodes2ornt("RAS")
    wanted = nib.orientations.axcodes2ornt((*axes, "S"))
    move = nib.orientations.ornt_transform(own, wanted)
    return nib.orientations.apply_orientation(slices.movedim(0, -1).numpy(), move)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("channels", [1, 3])
def test_slices_are_shown_to_a_network_as_it_knows_them(axes, channels, tmp_path):
    theirs = drawn(taken=channels, given=channels, blocks=1)
    network, card = load_generator(imported(tmp_path, theirs, "--slice-axes", axes), device="cpu")
    volume = np.random.default_rng(3).random((12, 16, 6), np.float32)
    made = predict(volume, network, card.spec.tiling)
    for first in range(0, 6, channels):
        tile = torch.from_numpy(volume[..., first : first + channels]).movedim(-1, 0)
        shown = torch.from_numpy(turned(tile, axes).copy()).movedim(-1, 0)
        expected = in_unit_range(theirs, shown[None])[0]
        found = torch.from_numpy(made[..., first : first + channels]).movedim(-1, 0)
        np.testing.assert_allclose(turned(found, axes), expected.movedim(0, -1), atol=ROUNDED)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_library_predicts_with_an_imported_generator(channels, tmp_path, monkeypatch):
    monkeypatch.setattr("bids_app.synthesis.inference.has_bfloat16", lambda _device: False)
    theirs = drawn(taken=channels, given=channels, blocks=1)
    folder = imported(tmp_path, theirs)
    inside = mask_on(Settings.template, GRID)
    t1w = np.where(inside, np.random.default_rng(2).uniform(0.2, 1, GRID.shape), 0)
    t1w = t1w.astype(np.float32)
    pet = predict_pet(nib.Nifti1Image(t1w, GRID.affine), folder, fwhm=0).get_fdata()
    np.testing.assert_allclose(pet[inside], in_volume(theirs, t1w)[inside], atol=ROUNDED)
    assert not pet[~inside].any()
    assert mri2pet.predict_pet is predict_pet


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("uncertainty", "--uncertainty: generator theirs: its card names no uncertainty"),
        ("novelty", "--novelty: generator theirs: its card names no reference"),
        ("match_histogram", "--match-histogram: generator theirs: its card names no reference"),
    ],
)
def test_what_an_imported_generator_does_not_know_is_refused(option, words, tmp_path):
    folder = imported(tmp_path, drawn(blocks=1))
    choose = partial(choose_generator, str(folder), tmp_path, GRID, Settings.template, sloppy=True)
    assert choose(options=Options(overlap=True)).options == Options(overlap=True)
    with pytest.raises(UnusableDataError, match=words):
        choose(options=Options(**{option: True}))


def test_single_slices_do_not_overlap(tmp_path):
    folder = imported(tmp_path, drawn(taken=1, given=1, blocks=1))
    choice = choose_generator(
        str(folder), tmp_path, GRID, Settings.template, sloppy=True, options=Options(overlap=True)
    )
    assert not choice.options.overlap
    assert choice.description()["Configuration"] == "2D"


def test_older_cards_know_no_axes(tmp_path):
    folder = imported(tmp_path, drawn(blocks=1))
    assert json.loads((folder / "card.json").read_text())["spec"]["tiling"] == {"kind": "semi3d"}
    turned_folder = imported(tmp_path, drawn(blocks=1), "--slice-axes", "LA", name="turned")
    values = json.loads((turned_folder / "card.json").read_text())
    assert values["spec"]["tiling"] == {"kind": "semi3d", "axes": "LA"}
    values["spec"]["tiling"]["axes"] = "RS"
    (turned_folder / "card.json").write_text(json.dumps(values))
    with pytest.raises(UnusableDataError, match="field axes cannot be 'RS'"):
        read_card(turned_folder)


def test_completion_knows_files_and_options(capsys):
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    told = capsys.readouterr().out
    assert "--slice-axes" in told
    assert "pos_0_COMPGEN=_shtab_compgen_files" in told
    assert "pos_1_COMPGEN=_shtab_compgen_dirs" in told
