"""GPU results equal CPU results: each test runs on both, if there is a GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cohorts import store
from safetensors.torch import load_file
from trainings import small

from bids_app.detection.autoencoder import train_encoder
from bids_app.detection.card import EncoderSpec
from bids_app.files import read_tsv
from bids_app.imaging.similarity import psnr
from bids_app.synthesis.inference import load_weights, predict
from bids_app.synthesis.job import HISTORY, KEPT, Job, launch_job, make_fabric
from bids_app.synthesis.losses import build_translator
from bids_app.synthesis.pairs import open_volumes
from bids_app.synthesis.scoring import Lpips, volume_lpips
from bids_app.synthesis.tiling import CubicPatches

pytestmark = pytest.mark.slow
DEVICES = ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)]
ROWS = {
    "semi3d-cyclegan-mse": {"batch_size": 6, "pool_size": 3},
    "patch3d-gan-mse": {
        "tiling": CubicPatches(24, 8),
        "batch_size": 2,
        "tiles_per_volume": 3,
        "validation_interval": 1,
    },
}


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture(scope="module")
def visits(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(3)
    return [store(root / name, rng, name, shape=(26, 25, 24)) for name in ("01", "02", "03")]


def train(folder, visits, spec, device, *, last_epoch=3):
    folder.mkdir(exist_ok=True)
    work = folder.parent / "checkpoint"
    job = Job("1", spec, visits[:2], visits[2:], last_epoch, 1, 1.5, work, None)
    launch_job(make_fabric(device, "32-true"), job, folder)
    return folder


@pytest.mark.parametrize("row", ROWS)
def test_a_fold_is_trained_alike_on_either(tmp_path, visits, device, row):
    spec = small(row, constant_epochs=3, **ROWS[row])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here = train(tmp_path / "a" / "here", visits, spec, device)
    cpu = train(tmp_path / "b" / "cpu", visits, spec, "cpu")
    found, expected = read_tsv(here / HISTORY), read_tsv(cpu / HISTORY)
    assert len(found) == len(expected) == 3
    for column in ("generator_loss", "discriminator_loss", "ssim_validation"):
        one, other = (float(rows[0][column]) for rows in (found, expected))
        assert one == pytest.approx(other, rel=0.05, abs=0.01)  # rounding errors grow slowly
    tensors = load_file(here / KEPT)
    assert tensors.keys() == load_file(cpu / KEPT).keys()
    assert all(tensor.device.type == "cpu" for tensor in tensors.values())


def test_a_fold_goes_on_on_another_device(tmp_path, visits, device):
    row = "semi3d-cyclegan-mse"
    spec = small(row, constant_epochs=4, **ROWS[row])
    train(tmp_path / "first", visits, spec, device, last_epoch=2)
    out = train(tmp_path / "then", visits, spec, "cpu", last_epoch=3)
    assert [row["epoch"] for row in read_tsv(out / HISTORY)] == ["1", "2", "3"]


@pytest.mark.parametrize("row", ROWS)
def test_a_pet_is_predicted_alike_on_either(tmp_path, visits, device, row):
    spec = small(row, constant_epochs=3, **ROWS[row])
    out = train(tmp_path / "cpu", visits, spec, "cpu")
    visit = open_volumes(visits[2])
    pets = [
        predict(visit.t1w, load_weights(out / KEPT, spec, place), spec.tiling)
        for place in ("cpu", device)
    ]
    assert psnr(*pets) > 60 or np.array_equal(*pets)  # convolutions may use TF32 on a GPU
    assert pets[0].std() > 1e-3


def test_lpips_is_alike_on_either(device, rng):
    torch.manual_seed(0)
    network = Lpips("drawn").eval().requires_grad_(requires_grad=False)
    one, other = rng.random((2, 40, 40, 5), np.float32)
    expected = volume_lpips(network, one, other)
    assert volume_lpips(network.to(device), one, other) == pytest.approx(expected, rel=1e-3)
    assert expected.whole != 0


def test_a_step_of_each_network_has_gradients_on_either(device):
    for row, more in ROWS.items():
        spec = replace(small(row, constant_epochs=1, **more), width=8)
        translator = build_translator(spec, torch.Generator().manual_seed(0))
        generator = translator.generator.to(device)
        size = (1, 3, 24, 24) if row.startswith("semi3d") else (1, 1, 24, 24, 24)
        with torch.autocast(device.partition(":")[0], torch.bfloat16):
            made = generator(torch.rand(size, device=device))
        made.float().mean().backward()
        gradients = [p.grad for p in generator.parameters() if p.requires_grad]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_encoders_are_trained_on_the_cpu_whatever_there_is(rng):
    volumes = [rng.random((24, 24, 6), np.float32) for _ in range(2)]
    spec = EncoderSpec(pairs_per_epoch=80, epochs=1)
    encoder, _ = train_encoder(volumes, np.ones((24, 24, 6), bool), spec, seed=1)
    assert {parameter.device.type for parameter in encoder.parameters()} == {"cpu"}
