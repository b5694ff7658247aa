from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
import torch
from cohorts import store
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from trainings import small

from bids_app.files import read_tsv
from bids_app.synthesis.job import (
    CHECKPOINT,
    CONDITION,
    HISTORY,
    KEPT,
    TISSUE_MODEL,
    Job,
    launch_job,
    make_fabric,
)
from bids_app.synthesis.models import TissueSpec
from bids_app.synthesis.networks import PatchDiscriminator, ResnetGenerator
from bids_app.synthesis.training import LAYOUTS, Team

sizes, totals = st.integers(1, 5), st.integers(1, 11)


class Rank:
    """Process of Fabric, as seen by a team; all of them are threads of this process."""

    def __init__(self, rank, barrier, told):
        self.global_rank, self.world_size = rank, barrier.parties
        self._barrier, self._told = barrier, told

    def all_gather(self, tensor):
        self._told[self.global_rank] = tensor
        self._barrier.wait(10)
        gathered = torch.stack([self._told[rank] for rank in range(self.world_size)])
        self._barrier.wait(10)
        return gathered

    def all_reduce(self, tensor, reduce_op):
        assert reduce_op == "mean"
        return self.all_gather(tensor).mean(0)


def in_all_ranks(size: int, work: Callable[[Team], object]) -> list:
    """Run a function in each process of a team; return the results by rank."""
    barrier, told = Barrier(size), {}
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(lambda r: work(Team(Rank(r, barrier, told))), range(size)))


# Properties


@given(size=sizes, total=totals)
def test_shares_that_weigh_something_are_a_partition_of_the_batch(size, total):
    batch = list(range(total))
    shares = in_all_ranks(size, lambda team: (team.share(batch), team.weight(total)))
    parts = [share for share, weight in shares if weight]
    assert sorted(item for share in parts for item in share) == batch
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [share for share, weight in shares if not weight] == [[0]] * (size - len(parts))


@given(size=sizes, total=totals)
def test_weights_sum_to_the_number_of_processes(size, total):
    weights = in_all_ranks(size, lambda team: team.weight(total))
    assert sum(weights) == pytest.approx(size)


@given(size=sizes, total=totals)
def test_the_mean_of_weighted_means_is_the_mean_of_the_batch(size, total):
    batch = torch.arange(total, dtype=torch.float64).square()

    def mean(team):
        own = torch.stack(team.share(list(batch)))
        return team.average(team.weight(total) * own.mean())

    for value in in_all_ranks(size, mean):
        assert value.item() == pytest.approx(batch.mean().item())


@given(size=sizes, total=totals)
def test_shares_that_are_gathered_are_the_batch_in_its_order(size, total):
    batch = torch.arange(2.0 * total).reshape(total, 2, 1)
    gathered = in_all_ranks(
        size, lambda team: team.gather(torch.stack(team.share(list(batch))), total)
    )
    assert all(torch.equal(one, batch) for one in gathered)


@given(size=sizes)
def test_gradients_become_their_mean_in_all_processes(size):
    def average(team):
        networks = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 1)])
        first, last = networks
        first.weight.grad = torch.full((3, 2), float(team.rank))
        last.weight.grad = torch.arange(3.0).reshape(1, 3) * team.rank
        team.average_gradients(networks)
        assert first.bias.grad is None
        return first.weight.grad, last.weight.grad

    mean = (size - 1) / 2
    for first, last in in_all_ranks(size, average):
        assert torch.allclose(first, torch.full((3, 2), mean))
        assert torch.allclose(last, torch.arange(3.0).reshape(1, 3) * mean)


def test_a_job_of_slurm_is_no_rank_of_fabric(monkeypatch):
    """An array or multi-task job in which each task trains on its own."""
    job = {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "4", "PROCID": "3", "LOCALID": "3"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    fabric = make_fabric("cpu", "32-true")
    assert (fabric.global_rank, fabric.world_size) == (0, 1)


def test_one_process_alone_changes_nothing():
    team, values = Team(make_fabric("cpu", "32-true")), torch.rand(3, 2)
    assert team.gather(values, 3) is values
    assert team.average(values) is values
    assert team.share([4, 5, 6]) == [4, 5, 6]
    assert team.weight(3) == 1


# Networks: torch 2.13 had errors here on CPUs

NETWORKS = [
    (ResnetGenerator, 2, 24),
    (ResnetGenerator, 3, 16),
    (PatchDiscriminator, 2, 24),
    (PatchDiscriminator, 3, 24),
    (PatchDiscriminator, 3, 32),
]
BUILD = {
    ResnetGenerator: lambda dims, channels: ResnetGenerator(dims, channels, n_blocks=1, width=4),
    PatchDiscriminator: lambda dims, channels: PatchDiscriminator(dims, channels, width=4),
}


def gradients(network, images, *, dtype=torch.float32, bfloat16=False):
    """Return the gradients of all weights, in the layout of training, or plainly in float64."""
    layout = {"memory_format": LAYOUTS[images.ndim - 2]} if dtype == torch.float32 else {}
    network = deepcopy(network).to(dtype).to(**layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        answer = network(images.to(dtype).to(**layout))
    answer.to(dtype).square().mean().backward()
    return {
        name: parameter.grad.double()
        for name, parameter in network.named_parameters()
        if name.endswith("weight")
    }


def distance(one, other):
    """Return the largest difference of corresponding gradients, relative to their norm."""
    return max(float((one[n] - other[n]).norm() / other[n].norm()) for n in other)


@pytest.fixture(params=NETWORKS, ids=lambda one: f"{one[0].__name__}-{one[1]}D-{one[2]}")
def network_and_images(request):
    kind, dims, side = request.param
    channels, random = {2: 3, 3: 1}[dims], torch.Generator().manual_seed(1)
    network = BUILD[kind](dims, channels)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.05, generator=random)
    return network, torch.rand(2, channels, *[side] * dims, generator=random)


def test_the_gradient_of_a_batch_is_the_mean_of_those_of_its_samples(network_and_images):
    network, images = network_and_images
    first, last = (gradients(network, images[n : n + 1]) for n in (0, 1))
    mean = {name: (first[name] + last[name]) / 2 for name in first}
    assert distance(gradients(network, images), mean) < 1e-4
    assert distance(mean, gradients(network, images, dtype=torch.float64)) < 1e-4


@pytest.mark.parametrize("size", [1, 2])
def test_gradients_in_half_precision_are_those_in_full_but_for_rounding(network_and_images, size):
    network, images = network_and_images
    exact = gradients(network, images[:size], dtype=torch.float64)
    assert distance(gradients(network, images[:size], bfloat16=True), exact) < 0.5


# Two processes

SPEC = small("semi3d-cyclegan-mse", constant_epochs=4, batch_size=3, pool_size=4, patience=1)


@pytest.fixture(scope="module", params=[None, TissueSpec((1, 1, 1), (24, 25, 15))])
def ends(request, tmp_path_factory):
    """Results of the same job in one process and in two; batches of 3, 3, 3 and 1 tiles."""
    root, rng = tmp_path_factory.mktemp("parallel"), np.random.default_rng(5)
    visits = [store(root / name, rng, name, shape=(24, 25, 15)) for name in ("01", "02", "03")]
    places = []
    for processes in (1, 2):
        out = root / f"out{processes}"
        out.mkdir()
        job = Job(
            "1",
            replace(SPEC, condition=request.param),
            visits[:2],
            visits[2:],
            last_epoch=4,
            seed=3,
            fwhm=1.5,
            folder=root / f"checkpoints{processes}",
        )
        launch_job(make_fabric("cpu", "32-true", processes), job, out)
        places.append((job.folder, out))
    return places


def is_of_no_effect(name):
    """Return whether a parameter is a bias that the following instance norm cancels.

    Its gradient is only rounding error, which Adam amplifies.
    """
    if not name.endswith(".bias"):
        return False
    kind, *_, layer, _ = name.split(".")
    first, last = {"discriminators": ("0", "12")}.get(kind, (None, "16"))
    return layer not in (first, last)


@pytest.mark.slow
def test_two_processes_end_with_what_one_ends_with(ends):
    one, two = (load_file(folder / CHECKPOINT) for folder, _ in ends)
    assert one.keys() == two.keys()
    compared = [
        name
        for name in one
        if name.startswith(("generators.", "discriminators.", "kept.", "pool."))
        and not is_of_no_effect(name)
    ]
    assert {name.partition(".")[0] for name in compared} == {
        "generators",
        "discriminators",
        "kept",
        "pool",
    }
    assert [n for n in compared if not torch.allclose(one[n], two[n], rtol=0, atol=1e-5)] == []
    assert torch.equal(one["random"], two["random"])
    start = next(n for n in compared if n.startswith("generators."))
    assert one[start].abs().max() > 1e-2  # to ensure that something is compared


@pytest.mark.slow
def test_two_processes_tell_what_one_tells(ends):
    one, two = (read_tsv(out / HISTORY) for _, out in ends)
    assert 1 < len(one) < 4  # all processes learn that validation has not improved, and stop
    for mine, other in zip(one, two, strict=True):
        for name in ("generator_loss", "discriminator_loss", "ssim_validation"):
            assert float(mine[name]) == pytest.approx(float(other[name]), rel=1e-5)
        for name in ("epoch", "kept", "learning_rate"):
            assert mine[name] == other[name]


@pytest.mark.slow
def test_several_processes_leave_the_files_of_one(ends):
    for folder, out in ends:
        left = {path.name for path in folder.iterdir()} - {TISSUE_MODEL, CONDITION}
        assert left == {CHECKPOINT, HISTORY}
        assert sorted(path.name for path in out.iterdir()) == sorted([KEPT, HISTORY])
