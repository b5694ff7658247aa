import inspect
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cohorts import stored_image
from documented import check_parameters
from hypothesis import given
from hypothesis import strategies as st
from nipype.interfaces.base import isdefined
from nipype.interfaces.utility import Merge

from bids_app.synthesis.models import MODELS, spec_to_dict
from bids_app.synthesis.statistics import split
from bids_app.workflows import training
from bids_app.workflows.training import (
    ComputeSettings,
    Fold,
    ModelPlan,
    StoredImage,
    init_baselines_wf,
    init_model_wf,
    init_storing_wf,
)

FACTORIES = {
    name: factory
    for name, factory in vars(training).items()
    if name.startswith("init_") and factory.__module__ == training.__name__
}
MEANS = ComputeSettings("cpu", 3, Path("/lpips.pth"), "f" * 64)


def visits(count):
    return [stored_image(f"{n:02}", Path(f"/volumes/{n:02}"), f"sha{n:02}") for n in range(count)]


def folds_of(controls, count, seed=0):
    sets = split([control.participant for control in controls], count, np.random.default_rng(seed))
    return [
        Fold(
            number,
            [control for control in controls if control.participant not in left_out],
            [control for control in controls if control.participant in left_out],
        )
        for number, left_out in enumerate(sets, start=1)
    ]


def pet(name):
    return Path(f"/out/{name}.nii.gz"), {"Name": name}


def plan_of(folds, model="semi3d-gan-mse"):
    return ModelPlan(
        name=model,
        spec=spec_to_dict(MODELS[model]),
        seeds=[100 + place for place in range(len(folds) + 1)],
        checkpoints=[Path(f"/checkpoints/{place}") for place in range(len(folds) + 1)],
        bases=[f"basis {fold.number}" for fold in folds],
        records=[Path(f"/out/{fold.number}.json") for fold in folds],
        pets=[[pet(one.participant) for one in fold.validation] for fold in folds],
        card={"name": model, "pet_times_mean": 2.5},
        folder=Path("/out/generators") / model,
        overlap=False,
    )


def build(count=5, folds=2, means=MEANS, **changed):
    """Build the graph of a row on some controls; return the nodes by name, and the flat graph."""
    dealt = folds_of(visits(count), folds)
    plan = replace(plan_of(dealt), **changed)
    workflow = init_model_wf(plan, dealt, means, fwhm=1.5, mem_gb=4.0, name="row_wf")
    return nodes_of(workflow)


def nodes_of(workflow):
    graph = workflow._create_flat_graph()
    return {node.name: node for node in graph}, graph


def origin(graph, node, field):
    """Return the node and output that an input comes from."""
    (found,) = [
        (before.name, source)
        for before, behind, data in graph.edges(data=True)
        for source, into in data["connect"]
        if behind is node and into == field
    ]
    return found


# Documentation


@pytest.mark.parametrize("name", FACTORIES)
def test_docstrings_list_the_parameters(name):
    check_parameters(FACTORIES[name])


@pytest.mark.parametrize("name", FACTORIES)
def test_graphs_without_doors_document_none(name):
    assert not re.search(r"^(Inputs|Outputs)\n-+$", inspect.getdoc(FACTORIES[name]), re.M)
    assert {"inputnode", "outputnode"}.isdisjoint(build()[0])


# All graphs


STORAGE = [
    StoredImage(
        f"sub_{name}",
        label,
        session,
        {"t1w": Path(f"/t{n}"), "pet": Path(f"/p{n}")},
        ("t1w", "pet"),
        Path(f"/m{n}"),
        Path(f"/v/sub_{name}"),
    )
    for n, name, label, session in ((1, "01", "01", None), (2, "02_b", "02", "b"))
]
GRAPHS = {
    "storing": lambda: init_storing_wf(STORAGE, shape=(4, 5, 6), affine=np.eye(4).tolist()),
    "model": lambda: init_model_wf(
        plan_of(folds_of(visits(5), 2)),
        folds_of(visits(5), 2),
        MEANS,
        fwhm=1.5,
        mem_gb=4.0,
        name="row_wf",
    ),
    "baselines": lambda: init_baselines_wf(
        folds_of(visits(5), 2),
        [Path("/out/1.json"), Path("/out/2.json")],
        MEANS,
        bases=["basis 1", "basis 2"],
    ),
}


def test_nodes_of_a_row_say_which_and_what_they_do():
    nodes, _ = build(folds=2)
    row = plan_of(folds_of(visits(5), 2)).name
    assert {(node.owner, node.label, node.part) for node in nodes.values()} == {(row, row, row)}
    assert {name: node.step for name, node in nodes.items() if hasattr(node, "step")} == {
        "train_1": "fold 1, training",
        "train_2": "fold 2, training",
        "train_all": "training on all",
        "score_1": "fold 1, scores",
        "score_2": "fold 2, scores",
    }


def test_nodes_of_baselines_and_of_stored_images_say_whose_they_are():
    nodes, _ = nodes_of(GRAPHS["baselines"]())
    assert {(node.owner, node.label, node.part) for node in nodes.values()} == {("baselines",) * 3}
    assert nodes["score_2"].step == "fold 2, scores"
    nodes, _ = nodes_of(GRAPHS["storing"]())
    assert {name: (node.owner, node.label, node.part) for name, node in nodes.items()} == {
        "store_sub_01": ("01", "sub-01", "sub_01"),
        "store_sub_02_b": ("02", "sub-02", "sub_02_b"),
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_every_node_gets_what_it_needs(name):
    nodes, graph = nodes_of(GRAPHS[name]())
    connected = {
        (behind, field)
        for _, behind, data in graph.edges(data=True)
        for _, field in data["connect"]
    }
    missing = [
        (node.name, field)
        for node in nodes.values()
        for field in node.inputs.traits(mandatory=True)
        if (node, field) not in connected and not isdefined(getattr(node.inputs, field))
    ]
    assert missing == []


@pytest.mark.parametrize("name", ["model", "baselines"])
def test_scores_of_a_fold_are_told_what_they_rest_on(name):
    nodes, _ = nodes_of(GRAPHS[name]())
    told = [nodes[f"score_{number}"].inputs.basis for number in (1, 2)]
    assert told == ["basis 1", "basis 2"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("storing", set()),
        ("model", {"train_1", "train_2", "train_all", "score_1", "score_2", "publish"}),
        ("baselines", {"score_1", "score_2"}),
    ],
)
def test_only_nodes_of_torch_say_so(name, expected):
    nodes, _ = nodes_of(GRAPHS[name]())
    said = {key for key, node in nodes.items() if getattr(node.interface, "uses_torch", False)}
    assert said == expected


@pytest.mark.parametrize("name", ["model", "baselines"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_what_computes_takes_its_threads_and_its_gpu(name, device, monkeypatch):
    monkeypatch.setitem(globals(), "MEANS", replace(MEANS, device=device))
    nodes, _ = nodes_of(GRAPHS[name]())
    working = [node for key, node in nodes.items() if key.startswith(("train_", "score_"))]
    for node in working:
        assert (node.inputs.device, node.inputs.threads, node.n_procs) == (device, 3, 3)
        assert node.inputs.use_gpu is (device != "cpu")
        assert bool(node.is_gpu_node()) is (device != "cpu")
    assert {node.mem_gb for node in working if node.name.startswith("train_")} <= {4.0}


# Storing


def test_each_visit_is_stored_from_its_own_images():
    nodes, _ = nodes_of(GRAPHS["storing"]())
    inputs = nodes["store_sub_02_b"].inputs
    assert (inputs.volumes, inputs.brain_mask) == ({"t1w": "/t2", "pet": "/p2"}, "/m2")
    assert inputs.real == ["t1w", "pet"]
    assert (inputs.participant, inputs.session, inputs.folder) == ("02", "b", "/v/sub_02_b")
    assert (inputs.shape, inputs.affine) == ((4, 5, 6), np.eye(4).tolist())
    assert nodes["store_sub_01"].inputs.session == ""
    assert all(node.interface.always_run for node in nodes.values())


# Cross-validation


@given(count=st.integers(2, 9), folds=st.integers(2, 4), seed=st.integers(0, 3))
def test_nobody_is_scored_by_a_network_that_saw_them(count, folds, seed):
    controls = visits(max(count, folds))
    dealt = folds_of(controls, folds, seed)
    graph = init_model_wf(plan_of(dealt), dealt, MEANS, fwhm=1.5, mem_gb=4.0, name="row_wf")
    nodes, graph = nodes_of(graph)
    everyone, scored = {str(control.folder) for control in controls}, []
    for number in range(1, folds + 1):
        train, score = nodes[f"train_{number}"], nodes[f"score_{number}"]
        assert set(train.inputs.training).isdisjoint(score.inputs.validation)
        assert set(train.inputs.training) | set(score.inputs.validation) == everyone
        assert train.inputs.validation == score.inputs.validation
        assert train.inputs.times_mean == 2.5
        assert origin(graph, score, "weights") == (f"train_{number}", "weights")
        scored += score.inputs.validation
    assert sorted(scored) == sorted(everyone)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_pet_of_those_left_out_is_made_as_the_plan_says(overlap):
    nodes, _ = build(folds=2, overlap=overlap)
    assert [nodes[f"score_{number}"].inputs.overlap for number in (1, 2)] == [overlap] * 2


def test_the_last_fit_sees_all_and_stops_as_its_folds_did():
    nodes, graph = build(count=5, folds=3)
    train = nodes["train_all"]
    assert train.inputs.training == [f"/volumes/{n:02}" for n in range(5)]
    assert train.inputs.validation == []
    merge, _ = origin(graph, train, "kept_epochs")
    assert isinstance(nodes[merge].interface, Merge)
    assert [origin(graph, nodes[merge], f"in{place}") for place in (1, 2, 3)] == [
        (f"train_{number}", "kept_epoch") for number in (1, 2, 3)
    ]


def test_fits_have_seeds_and_checkpoints_of_their_own():
    nodes, _ = build(folds=3)
    fits = [nodes[f"train_{fold}"] for fold in (1, 2, 3, "all")]
    assert [fit.inputs.seed for fit in fits] == [100, 101, 102, 103]
    assert [fit.inputs.checkpoints for fit in fits] == [f"/checkpoints/{n}" for n in range(4)]
    assert [fit.inputs.fold for fit in fits] == ["1", "2", "3", "all"]
    assert len({fit.inputs.get_hashval("content")[1] for fit in fits}) == 4


@pytest.mark.parametrize(
    ("field", "output", "fits"),
    [
        ("fold_weights", "weights", ["train_1", "train_2", "train_3"]),
        ("histories", "history", ["train_1", "train_2", "train_3", "train_all"]),
        ("records", "records", ["score_1", "score_2", "score_3"]),
        ("pets", "pets", ["score_1", "score_2", "score_3"]),
    ],
)
def test_what_is_published_is_in_the_order_of_folds(field, output, fits):
    nodes, graph = build(folds=3)
    merge, _ = origin(graph, nodes["publish"], field)
    found = [origin(graph, nodes[merge], f"in{n}") for n in range(1, len(fits) + 1)]
    assert found == [(fit, output) for fit in fits]


def test_the_published_generator_is_the_one_of_all():
    nodes, graph = build(folds=3)
    inputs = nodes["publish"].inputs
    assert origin(graph, nodes["publish"], "weights") == ("train_all", "weights")
    assert inputs.folder == "/out/generators/semi3d-gan-mse"
    for number, left_out in enumerate(inputs.left_out, start=1):
        assert left_out == nodes[f"score_{number}"].inputs.validation
        trained_on = nodes[f"train_{number}"].inputs.training
        assert trained_on == [volume for volume in inputs.volumes if volume not in left_out]
    assert nodes["publish"].interface.always_run


def test_results_of_a_fold_go_where_they_belong():
    nodes, graph = build(count=5, folds=2)
    for number in (1, 2):
        pets, records = nodes[f"save_pets_{number}"], nodes[f"save_records_{number}"]
        assert origin(graph, pets, "in_files") == (f"score_{number}", "pets")
        assert origin(graph, pets, "measured") == (f"score_{number}", "sidecar")
        assert origin(graph, records, "in_file") == (f"score_{number}", "records")
        assert records.inputs.out_file == f"/out/{number}.json"
        left_out = [Path(one).name for one in nodes[f"score_{number}"].inputs.validation]
        assert pets.inputs.out_files == [f"/out/{one}.nii.gz" for one in left_out]
        assert pets.inputs.sidecar_files == [f"/out/{one}.json" for one in left_out]
        assert pets.inputs.sidecars == [{"Name": one} for one in left_out]


def test_baselines_know_the_training_images_of_their_fold_only():
    nodes, graph = nodes_of(GRAPHS["baselines"]())
    for fold in folds_of(visits(5), 2):
        inputs = nodes[f"score_{fold.number}"].inputs
        assert inputs.training == [str(one.folder) for one in fold.training]
        assert inputs.validation == [str(one.folder) for one in fold.validation]
        assert inputs.fold == fold.number
        save = nodes[f"save_records_{fold.number}"]
        assert origin(graph, save, "in_file") == (f"score_{fold.number}", "records")
        assert save.inputs.out_file == f"/out/{fold.number}.json"


# Recomputation


def hashes(**changed):
    nodes, _ = build(**changed)
    return {
        name: nodes[name].inputs.get_hashval("content")[1]
        for name in ("train_1", "train_all", "score_1")
    }


SPEC = spec_to_dict(MODELS["semi3d-gan-mse"])


@pytest.mark.parametrize(
    "changed",
    [
        {"means": replace(MEANS, device="cuda:0")},
        {"means": replace(MEANS, threads=1)},
        {"means": replace(MEANS, lpips_weights=Path("/elsewhere/lpips.pth"))},
        {"checkpoints": [Path(f"/elsewhere/{place}") for place in range(3)]},
        {"folder": Path("/elsewhere")},
    ],
    ids=["device", "threads", "place of weights", "checkpoints", "folder"],
)
def test_what_does_not_change_a_result_does_not_compute_it_again(changed):
    assert hashes(**changed) == hashes()


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        ({"spec": {**SPEC, "width": 32}}, {"train_1", "train_all", "score_1"}),
        ({"spec": {**SPEC, "learning_rate": 2.1e-4}}, {"train_1", "train_all", "score_1"}),
        ({"seeds": [100, 101, 7]}, {"train_all"}),
        ({"seeds": [7, 101, 102]}, {"train_1"}),  # the weights that score_1 gets differ as well
        ({"means": replace(MEANS, lpips_sha256="0" * 64)}, {"score_1"}),
        ({"count": 6}, {"train_1", "train_all", "score_1"}),
        ({"name": "semi3d-gan"}, {"train_1", "train_all", "score_1"}),
    ],
    ids=["width", "learning rate", "last seed", "first seed", "LPIPS", "controls", "row"],
)
def test_what_changes_a_result_computes_it_again(changed, anew):
    before, after = hashes(), hashes(**changed)
    assert {name for name in before if before[name] != after[name]} == anew


def test_images_that_changed_are_used_again(monkeypatch):
    before = hashes()
    changed = [*visits(4), stored_image("04", Path("/volumes/04"), "another")]
    monkeypatch.setitem(globals(), "visits", lambda _: changed)
    assert all(before[name] != value for name, value in hashes().items())


def test_another_smoothing_computes_folds_again():
    dealt = folds_of(visits(5), 2)
    one, other = (
        nodes_of(init_model_wf(plan_of(dealt), dealt, MEANS, fwhm=f, mem_gb=1, name="row_wf"))[0]
        for f in (1.5, 2.0)
    )
    for name in ("train_1", "score_1"):
        hashed = [nodes[name].inputs.get_hashval("content")[1] for nodes in (one, other)]
        assert hashed[0] != hashed[1]
