"""Untrusted files: any content leads to a result or a message, soon and within little memory.

Usual runs have few examples; ``HYPOTHESIS_PROFILE=long`` runs 20,000 of each (CONTRIBUTING.md).
"""

import json
import os
import resource
import struct
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, product
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bids_app.app.run import read_plugin
from bids_app.arguments import normalize_labels
from bids_app.cli import parse
from bids_app.dataset.filters import check_filters
from bids_app.dataset.participants import read_participants
from bids_app.derivatives.description import ignore_also
from bids_app.derivatives.tables import select
from bids_app.detection import card as detectors
from bids_app.detection.autoencoder import SiameseAutoencoder, load_encoder, save_encoder
from bids_app.detection.card import EncoderSpec
from bids_app.detection.normative import Norm, load_norms, save_norms
from bids_app.detection.slabs import PackedControls, pack_controls
from bids_app.detection.voxelwise import VoxelModels, load_models, save_models
from bids_app.errors import (
    MissingInputError,
    Mri2petError,
    ReadWriteError,
    UnusableDataError,
    UsageError,
)
from bids_app.files import write_json
from bids_app.plan.participant import _read_filters
from bids_app.synthesis.card import CARD, WEIGHTS, Card, card_values, check_weights, read_card
from bids_app.synthesis.inference import load_generator, load_weights, save_generator
from bids_app.synthesis.losses import build_generator
from bids_app.synthesis.models import MODELS
from bids_app.synthesis.reference import read_reference
from bids_app.synthesis.scoring import load_lpips
from bids_app.synthesis.uncertainty import FEATURES, ErrorModel, read_error_model, write_error_model

SPEC = replace(MODELS["semi3d-gan"], n_blocks=1, width=2)
ROWS = tuple(tuple(row) for row in np.eye(4).tolist())
CARD_OF = Card(
    "tiny",
    "0.1.0",
    SPEC,
    "T",
    (9, 9, 9),
    ROWS,
    "",
    "noise",
    "tests",
    ("01",),
    "none",
    4,
    {"torch": "2"},
    {"ssim": 0.5},
)
DETECTOR = detectors.DetectorCard(
    name="real",
    version="0.1",
    detectors=("ocsvm", "zscore"),
    template="T",
    shape=(9, 9, 9),
    affine=ROWS,
    controls=(detectors.Control("01", None, False, "", "", 1),),
    folds=2,
    slabs=((0, 5), (5, 9)),
    parameters={"nu": 0.03, "encoder": {"latents": 64}},
    dataset="x",
    seed=7,
    intended_use="Research.",
    versions={"a": "b"},
    files={"a/b.nii.gz": "0" * 64},
    makers=[{"name": "g"}],
)
SOON = 5.0  # s of CPU time; what hangs or is quadratic takes longer, and busy machines count more
MEMORY = 1 << 28  # bytes, in addition to what the process has

odd_numbers = st.sampled_from(
    [-1, 0, 1, 10**5, 10**9, 2**63, 2**64, 10**400, 1e308, 1e5, -0.5, float("nan"), float("inf")]
)
odd_text = st.sampled_from(["", "../x", "/etc/passwd", "\0", "é", "\ud800", "x" * 10**5, "sub-01"])
leaves = st.one_of(
    st.none(), st.booleans(), odd_numbers, st.integers(), st.floats(), odd_text, st.text(max_size=9)
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
deep = st.sampled_from(["[" * 100_000, '{"a":' * 100_000, "[" * 40 + "]" * 40])
junk = st.one_of(st.binary(max_size=300), deep.map(str.encode), st.just(b"\xff\xfe"), st.just(b""))


def places(value, path=()):
    """List the paths to all values within a nested value."""
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    return [path, *(way for key, item in inner for way in places(item, (*path, key)))]


def put(value, path, new):
    """Replace the value at a path."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, dict):
        return {**value, key: put(value[key], rest, new)}
    return [put(item, rest, new) if n == key else item for n, item in enumerate(value)]


@st.composite
def damaged(draw, whole):
    """Change one or two places of a card, add a field, duplicate one, or corrupt the text."""
    whole = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 2))):
        whole = put(whole, draw(st.sampled_from(places(whole))), draw(values))
    if isinstance(whole, dict) and draw(st.booleans()):
        whole = {**whole, draw(st.text(max_size=5)): draw(values)}
    try:
        text = json.dumps(whole).encode("utf-8", "surrogatepass")
    except ValueError:
        text = b"{"
    if draw(st.integers(0, 9)) == 0:
        text = text[: draw(st.integers(0, len(text)))]
    if draw(st.integers(0, 9)) == 0:
        text = text[:-1] + b', "name": "again"}'
    return text


@contextmanager
def soon():
    """Check that code takes little time and memory."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - started < SOON
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MEMORY


def is_answered(read, *arguments):
    """Return whether there is a result; otherwise check that there is a message."""
    told = None
    with soon():
        try:
            read(*arguments)
        except Mri2petError as error:
            told = f"{error}"
    if told is not None:
        assert 0 < len(told) < 2000
        assert "\n" not in told
    return told is None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


# Cards


@given(damaged(card_values(CARD_OF)) | junk)
def test_any_card_of_a_generator_is_read_or_refused(place, text):
    (place / CARD).write_bytes(text)
    if is_answered(read_card, place):
        card = read_card(place)
        assert 1 <= card.spec.width <= 1024
        assert 0 <= card.spec.n_blocks <= 256
        assert np.isfinite(card.affine).all()
        assert np.array(card.affine).shape == (4, 4)
        json.dumps(card_values(card), allow_nan=False)


@given(damaged(detectors.card_values(DETECTOR)) | junk)
def test_any_card_of_a_detector_is_read_or_refused(place, text):
    (place / detectors.CARD).write_bytes(text)
    if is_answered(detectors.read_card, place):
        card = detectors.read_card(place)
        for name in card.files:
            assert (place / name).resolve().is_relative_to(place.resolve())
        json.dumps(detectors.card_values(card), allow_nan=False)
        is_answered(detectors.check_files, place, card)


@pytest.mark.parametrize(
    "spec",
    [
        {"width": 100_000},
        {"n_blocks": 10**9},
        {"width": 10**400},
        {"width": -1},
        {"width": 2.0},
        {"width": True},
        {"n_blocks": "9"},
        {"batch_size": 0},
        {"learning_rate": -1},
        {"tiling": {"kind": "patch3d", "size": 10**9, "stride": 1}},
        {"tiling": {"kind": "patch3d", "size": 8, "stride": 0}},
        {"tiling": {"kind": "patch3d", "size": 8, "stride": 9}},
        {"tiling": {"kind": ["semi3d"]}},
        {"tiling": []},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_network_that_nobody_has_is_refused_before_it_is_built(tmp_path, spec):
    whole = card_values(CARD_OF)
    write_json(tmp_path / CARD, {**whole, "spec": {**whole["spec"], **spec}})
    with soon(), pytest.raises(UnusableDataError, match=r"card\.json: not the card of a generator"):
        load_generator(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"name": "a", "name": "b"}', "duplicate key name"),
        ('{"seed": NaN}', "NaN is not a valid number"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested more than 32 levels deep"),
        ('{"a": "' + "x" * (1 << 24) + '"}', "such files have at most 17"),
    ],
)
def test_json_that_is_no_card_is_told_why(tmp_path, text, words):
    (tmp_path / CARD).write_text(text)
    for read in (read_card, detectors.read_card):
        with soon(), pytest.raises(UnusableDataError, match=words):
            read(tmp_path)


@pytest.mark.parametrize("field", ["name", "template"])
@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b", "a\0b", "a\nb", "x" * 300])
def test_what_a_card_names_can_be_a_folder(tmp_path, field, name):
    write_json(tmp_path / CARD, {**card_values(CARD_OF), field: name})
    with pytest.raises(UnusableDataError, match=f"field {field} cannot be"):
        read_card(tmp_path)
    write_json(tmp_path / CARD, {**detectors.card_values(DETECTOR), field: name})
    with pytest.raises(UnusableDataError, match=f"field {field} cannot be"):
        detectors.read_card(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "", ".", "a//b"])
def test_a_detector_knows_no_file_of_another_folder(tmp_path, name):
    write_json(tmp_path / CARD, {**detectors.card_values(DETECTOR), "files": {name: "0" * 64}})
    with pytest.raises(UnusableDataError, match="is not a file in its folder"):
        detectors.read_card(tmp_path)


def test_a_link_out_of_the_folder_of_a_detector_is_not_followed(tmp_path):
    folder = tmp_path / "real"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (folder / "a" / "b.nii.gz").symlink_to(tmp_path / "secret")
    with pytest.raises(UnusableDataError, match="points outside its folder"):
        detectors.check_files(folder, DETECTOR)


@pytest.mark.parametrize(
    "slabs", [[[0, 4], [5, 9]], [[0, 5], [4, 9]], [[0, 9], [9, 9]], [[0, 5]], []]
)
def test_slabs_are_all_slices_once(slabs):
    card = replace(DETECTOR, slabs=tuple(map(tuple, slabs)))
    with pytest.raises(UnusableDataError, match="the slabs on its card"):
        detectors.check_grid(card, detectors.Grid((9, 9, 9), np.eye(4)), "T")
    detectors.check_grid(DETECTOR, detectors.Grid((9, 9, 9), np.eye(4)), "T")


# Tensors


@pytest.fixture(scope="module")
def tensors():
    return {k: v.clone() for k, v in build_generator(SPEC).state_dict().items()}


def write_header(path, header, size):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))


def test_the_header_is_compared_before_a_network_is_built(tmp_path, tensors, monkeypatch):
    """Weights of a network four times as wide; neither network is allocated."""
    monkeypatch.setattr("bids_app.synthesis.inference.load_file", lambda _: pytest.fail("was read"))
    for wrong in (
        {k: torch.zeros(4 * v.shape[0], *v.shape[1:]) for k, v in tensors.items()},
        {k: v.double() for k, v in tensors.items()},
        dict(list(tensors.items())[1:]),
        {**tensors, "more": torch.zeros(1)},
    ):
        save_file(wrong, tmp_path / "w.safetensors")
        with pytest.raises(UnusableDataError, match="does not match the network in its card"):
            load_weights(tmp_path / "w.safetensors", SPEC, "cpu")


@pytest.mark.parametrize("claimed", [0, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path, claimed):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + b"{}")
    with soon(), pytest.raises(UnusableDataError, match="no safetensors header"):
        load_weights(path, SPEC, "cpu")


def test_tensors_larger_than_their_file_are_refused(tmp_path, tensors):
    ends = list(accumulate(4 * prod(v.shape) for v in tensors.values()))
    header = {
        name: {"dtype": "F32", "shape": [*v.shape], "data_offsets": [end - 4 * v.numel(), end]}
        for (name, v), end in zip(tensors.items(), ends, strict=True)
    }
    path = tmp_path / "w.safetensors"
    write_header(path, header, ends[-1])
    load_weights(path, SPEC, "cpu")
    write_header(path, header, ends[-1] - 4)
    with pytest.raises(UnusableDataError, match="does not match"):
        load_weights(path, SPEC, "cpu")
    name = next(iter(header))
    header[name]["shape"] = [10**9, 10**9]
    write_header(path, header, ends[-1])
    with soon(), pytest.raises(UnusableDataError, match="does not match"):
        load_weights(path, SPEC, "cpu")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_neither_written_nor_read(tmp_path, tensors, value):
    broken = {k: v.clone() for k, v in tensors.items()}
    name = list(broken)[3]
    broken[name].view(-1)[-1] = value
    generator = build_generator(SPEC)
    generator.load_state_dict(broken)
    with pytest.raises(UnusableDataError, match=f"{name} contains NaN or infinity"):
        save_generator(generator, CARD_OF, tmp_path / "g")
    assert not (tmp_path / "g").exists()
    card = save_generator(build_generator(SPEC), CARD_OF, tmp_path / "g")
    save_file(broken, tmp_path / "g" / WEIGHTS)
    card = replace(
        card, sha256=detectors.digest_files(tmp_path, [tmp_path / "g" / WEIGHTS])[f"g/{WEIGHTS}"]
    )
    write_json(tmp_path / "g" / CARD, card_values(card))
    for read in (
        lambda: check_weights(tmp_path / "g", card),
        lambda: load_generator(tmp_path / "g", "cpu"),
    ):
        with pytest.raises(
            UnusableDataError, match=f"{WEIGHTS}: {name} contains NaN or infinity"
        ) as told:
            read()
        assert told.value.exit_code == 65


@pytest.fixture(scope="module")
def whole(place, tensors):
    """Return one file of each kind of tensors, and the function that reads it."""
    rng = np.random.default_rng(3)
    folder = place / "whole"
    folder.mkdir()
    save_file(tensors, folder / "weights")
    spec = EncoderSpec()
    save_encoder(folder / "encoder", SiameseAutoencoder(spec, torch.Generator()), spec)
    ones = np.ones((3, 4, 5), np.float32)
    save_norms(folder / "norm", [Norm(ones, ones, 4), Norm(ones, ones, 4)])
    pack_controls([rng.random((3, 4, 5), np.float32) for _ in range(2)], folder / "packed")
    save_models(
        folder / "models",
        VoxelModels(
            np.array([2, 1], np.uint16),
            np.array([0, 1, 1], np.uint16),
            np.ones(3, np.float32),
            np.ones(2, np.float32),
            np.zeros(2),
        ),
    )
    arrays = (np.ones((FEATURES, FEATURES)), np.ones((3, 4, 5)), np.ones(3))
    write_error_model(
        ErrorModel(*(array.astype(np.float32) for array in arrays)), folder / "uncertainty"
    )
    return {
        folder / "uncertainty": read_error_model,
        folder / "weights": lambda path: load_weights(path, SPEC, "cpu"),
        folder / "encoder": load_encoder,
        folder / "norm": load_norms,
        folder / "packed": lambda path: PackedControls(path, [0, 1]).slices(0),
        folder / "models": load_models,
    }


@given(data=st.data())
def test_any_change_to_tensors_is_read_or_refused(place, whole, data):
    path = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(path.read_bytes())
    (size,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + size].decode()
    how = data.draw(st.sampled_from(["byte", "tear", "header", "junk"]))
    if how == "byte":
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, min(len(content), size + 200) - 1))] = data.draw(
                st.integers(0, 255)
            )
    elif how == "tear":
        content = content[: data.draw(st.integers(0, len(content)))]
    elif how == "header":
        told = data.draw(damaged(json.loads(header)))
        content = struct.pack("<Q", len(told)) + told + content[8 + size :]
    else:
        content = data.draw(junk)
    changed = place / "changed"
    changed.write_bytes(content)
    is_answered(whole[path], changed)
    is_answered(load_lpips, changed)
    is_answered(read_reference, changed)
    is_answered(read_error_model, changed)


def test_whole_tensors_are_read(whole):
    for path, read in whole.items():
        read(path)


@pytest.mark.parametrize(
    "spec", [{"latents": 4 * 10**9}, {"patch": 3 * 10**9}, {"epochs": 1.5}, {"alpha": "0"}], ids=str
)
def test_an_encoder_that_nobody_has_is_refused(tmp_path, whole, spec):
    path = next(one for one in whole if one.name == "encoder")
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    told = {**json.loads(header["__metadata__"]["spec"]), **spec}
    header["__metadata__"]["spec"] = json.dumps(told)
    text = json.dumps(header).encode()
    (tmp_path / "e").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    with soon(), pytest.raises(UnusableDataError, match="not an encoder"):
        load_encoder(tmp_path / "e")


@pytest.mark.parametrize("name", ["dual_coef", "gamma", "offset"])
def test_one_class_svms_that_are_no_numbers_are_neither_written_nor_read(tmp_path, whole, name):
    path = next(one for one in whole if one.name == "models")
    models = load_models(path)
    broken = replace(models, **{name: getattr(models, name) * np.float32(np.nan)})
    with pytest.raises(UnusableDataError, match=f"{name} contains NaN or infinity"):
        save_models(tmp_path / "m", broken)
    assert not (tmp_path / "m").exists()


def test_a_norm_that_is_no_number_is_neither_written_nor_read(tmp_path):
    mean, sd = np.zeros((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32)
    sd[1, 1, 1] = np.inf
    with pytest.raises(UnusableDataError, match="is not finite"):
        save_norms(tmp_path / "n", [Norm(mean, sd, 3)])
    assert not (tmp_path / "n").exists()


# Settings files


filter_files = damaged({"t1w": {"acquisition": "a", "run": [1, 2]}, "pet": {"rec": None}}) | junk


@given(filter_files)
def test_any_filter_file_is_read_or_refused(place, text):
    path = place / "filters.json"
    path.write_bytes(text)
    is_answered(lambda: check_filters(_read_filters(path)))


toml = st.one_of(
    junk,
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "nprocs",
                    "template",
                    "bounding-box",
                    "sloppy",
                    "verbose",
                    "pet_frames",
                    "x",
                    "participant_label",
                    "derivatives",
                    "config_file",
                    "random_seed",
                    "notrack",
                    "help",
                ]
            ),
            st.sampled_from(
                [
                    "1",
                    "-1",
                    "1e400",
                    "nan",
                    "true",
                    "false",
                    '"a"',
                    '""',
                    "[]",
                    "[1, 2]",
                    "[[1]]",
                    "[1,2,3,4,5,6]",
                    "1979-05-27",
                    "{a = 1}",
                    '"0-99999999999"',
                    '"--help"',
                    '"\\u0000"',
                    "99999999999999999999999",
                    "[" * 5000 + "]" * 5000,
                ]
            ),
        ),
        max_size=3,
    ).map(lambda rows: "".join(f"{name} = {value}\n" for name, value in rows).encode()),
)


@given(toml)
def test_any_file_of_options_is_read_or_refused(place, text):
    path = place / "options.toml"
    path.write_bytes(text)

    is_answered(lambda: parse(["/raw", "/out", "participant", "--config-file", str(path)]))


cells = st.one_of(
    st.text(max_size=8), st.sampled_from(["n/a", "sub-01", "1", "x" * 200_000, "\0", '"'])
)
tables = st.lists(st.lists(cells, max_size=4), max_size=5).map(
    lambda rows: "\n".join("\t".join(row) for row in [["participant_id", "group"], *rows])
)


@given(tables.map(lambda text: text.encode("utf-8", "surrogatepass")) | junk)
def test_any_table_of_participants_is_read_or_refused(place, text):
    (place / "participants.tsv").write_bytes(text)
    is_answered(read_participants, place)
    is_answered(select, place, "group == 'control'")
    is_answered(select, place, "group > 3")


yaml_files = st.one_of(
    junk,
    damaged({"plugin": "SLURM", "plugin_args": {"sbatch_args": "-p x", "n": [1, 2]}}),
    st.sampled_from(
        [
            b"plugin: !!python/object/apply:os.system [x]",
            b"a: &a [*a]",
            b"? {a: 1}\n: 2",
            b"- 1",
            b"plugin: 2001-01-01",
            b"a: &a [x,x,x]\nb: &b [*a,*a,*a]\nplugin: M\n",
            b"plugin: ]",
            b"1: 2",
            b"plugin: MultiProc\nplugin_args: [1]",
            b"[" * 3000,
            b"\t",
            b"- " * 900,
            b"plugin: SLURM\nplugin_args: 0",
        ]
    ),
)


@given(yaml_files)
def test_any_plugin_file_is_read_or_refused(place, text):
    path = place / "plugin.yaml"
    path.write_bytes(text)
    is_answered(read_plugin, path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    for read in (read_card, detectors.read_card, load_encoder, load_norms, load_models, load_lpips):
        with pytest.raises(MissingInputError):
            read(tmp_path / "nowhere")
    assert not Path(tmp_path / "nowhere").exists()


def test_lists_and_cards_are_files_of_some_size(tmp_path):
    """A named pipe would block for ever, and an endless file would fill the memory."""
    pipe, endless = tmp_path / "pipe", tmp_path / "endless"
    os.mkfifo(pipe)
    with endless.open("wb") as file:
        file.truncate(1 << 36)
    for path in (pipe, endless):
        for read in (
            lambda path: parse(["/raw", "/out", "participant", "--config-file", str(path)]),
            lambda path: normalize_labels([str(path)], "sub-"),
            read_plugin,
            _read_filters,
        ):
            with soon(), pytest.raises(UsageError, match=path.name):
                read(path)
    for path, read in product((pipe, endless), (load_encoder, load_norms, load_models, load_lpips)):
        with soon(), pytest.raises((UnusableDataError, MissingInputError), match=path.name):
            read(path)
    for path in (pipe, endless):
        folder = tmp_path / f"out-{path.name}"
        folder.mkdir()
        (folder / ".bidsignore").symlink_to(path)
        with soon(), pytest.raises(ReadWriteError, match="bidsignore"):
            ignore_also(folder, folder / ".work")
