import inspect
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from cohorts import stored_image
from documented import check_parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from nipype.interfaces.base import isdefined
from nipype.interfaces.utility import Merge

from bids_app.detection.card import EncoderSpec, spec_to_dict
from bids_app.interfaces.detection import FitNorm, FitSlab, MapAnomalies
from bids_app.workflows import detection, group
from bids_app.workflows import detection as anomalies
from bids_app.workflows.detection import (
    PACKED,
    Applied,
    Clustering,
    Fitting,
    ScoredImage,
    init_anomalies_wf,
    init_atlas_wf,
    init_check_wf,
    init_detector_wf,
    init_kept_wf,
    init_lesions_wf,
    init_norm_wf,
    init_ocsvm_wf,
    init_on_t1w_wf,
    norm_files,
    ocsvm_files,
)
from bids_app.workflows.execution import label_nodes
from bids_app.workflows.group import BRAIN_FILE, init_applied_set_wf, init_training_set_wf
from bids_app.workflows.training import Fold

FACTORIES = {
    name: factory
    for module in (detection, anomalies, group)
    for name, factory in vars(module).items()
    if name.startswith("init_") and factory.__module__ == module.__name__
}
DETECTORS = ("ocsvm", "zscore", "pseudonormal")
SLABS = ((0, 12), (12, 24), (24, 34))
FITTING = Fitting(
    spec_to_dict(EncoderSpec()), 0.03, SLABS, 8.0, "hypo", {}, None, Path("checks"), 3, 2.5
)
CLUSTERING = Clustering(8.0, 0.02, 82.0, 10, None, None)
REAL = "/volumes/real"
NAMES = {"statmap": "statmap", "labels": "dseg"}


def picture(name):
    made = stored_image(f"made_{name}", Path(f"/volumes/made_{name}"), f"sha_made_{name}")
    return stored_image(f"real_{name}", Path(f"{REAL}_{name}"), f"sha_{name}", synthetic=made)


def controls_of(count):
    return [picture(f"c{number}") for number in range(count)]


def folds_of(controls, count):
    return [
        Fold(
            number + 1,
            [control for place, control in enumerate(controls) if place % count != number],
            [control for place, control in enumerate(controls) if place % count == number],
            100 + number,
        )
        for number in range(count)
    ]


PATIENTS = [picture("p1"), picture("p2")]


def compared_folds(folds):
    """Give each fold two synthetic PETs for comparison."""
    made = [stored_image(f"made_d{n}", Path(f"/volumes/d{n}"), f"sha_d{n}") for n in (1, 2)]
    return [replace(fold, compared=made) for fold in folds]


def output(name):
    return Path(f"/out/{name}.nii.gz"), {"Name": name}


def scored(image, row, fold=None, *, detector="zscore", lesions=None, t1w=None):
    outputs = {kind: output(f"{image.name}_{name}") for kind, name in NAMES.items()}
    if t1w:
        outputs |= {f"{kind}_in_t1w": output(f"t1w_{name}") for kind, name in NAMES.items()}
    return ScoredImage(
        "real",
        detector,
        image,
        row,
        fold,
        {kind: path for kind, (path, _) in outputs.items()} | (t1w or {}),
        {kind: sidecar for kind, (_, sidecar) in outputs.items()},
        Path(f"/work/{image.name}.json"),
        lesions,
        Path("/work/T1w/p1.json") if t1w else None,
    )


def scored_by(detector, folds, t1w=None):
    """Return all images that a detector scores: patients by all folds, controls by theirs."""
    images = [scored(one, row, detector=detector, t1w=t1w) for row, one in enumerate(PATIENTS)]
    return images + [
        scored(one, row, fold.number, detector=detector)
        for fold in folds
        for row, one in enumerate(fold.validation, start=len(PATIENTS))
    ]


def training_set(count=5, folds=2, fitting=FITTING, clustering=CLUSTERING, **changed):
    """Build the graph of a training set with all detectors."""
    controls = changed.get("controls", controls_of(count))
    dealt, detectors = folds_of(controls, folds), changed.get("detectors", DETECTORS)
    return init_training_set_wf(
        controls,
        dict.fromkeys(detectors, dealt),
        [image for name in detectors for image in scored_by(name, dealt, changed.get("t1w"))],
        fitting,
        clustering,
        folder=Path("/out/detectors/real"),
        card={"name": "real"},
        averages=[(Path(f"/out/tpl-MNI/{one}.nii.gz"), {}) for one in ("mean", "sd")],
        share=changed.get("share", 0.9),
        name="real_wf",
    )


@pytest.fixture
def t1w(tmp_path):
    """Grid of a T1w and the transform to it; the files exist."""
    for name in ("t1w.nii.gz", "back.h5"):
        (tmp_path / name).write_bytes(b"\1")
    return {"t1w": tmp_path / "t1w.nii.gz", "template_to_t1w": tmp_path / "back.h5"}


@pytest.fixture
def applied(tmp_path):
    """Detectors of two folds that were trained on five controls; their files exist."""
    names = ocsvm_files(2, len(SLABS)) + norm_files("zscore", 2) + norm_files("pseudonormal", 2)
    for name in (*names, BRAIN_FILE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return Applied(tmp_path, [[1, 3], [0, 2, 4]], "sha_of_packed")


def applied_set(applied):
    images = [image for name in DETECTORS for image in scored_by(name, [])]
    return init_applied_set_wf(applied, images, FITTING, CLUSTERING, name="real_applied_wf")


def nodes_of(workflow):
    """Return the nodes by their place in the graph, and the flat graph."""
    graph = workflow._create_flat_graph()
    return {node.fullname.partition(".")[2]: node for node in graph}, graph


def origins(graph, node, field):
    """Follow an input through identity and merge nodes; return source nodes and outputs."""
    found = [
        (before, source)
        for before, behind, data in graph.edges(data=True)
        for source, into in data["connect"]
        if behind is node and into == field
    ]
    assert len(found) == 1, (node.fullname, field)
    before, source = found[0]
    if isinstance(before.interface, Merge):
        count = before.interface._numinputs
        return [one for place in range(count) for one in origins(graph, before, f"in{place + 1}")]
    if before.name in {"inputnode", "outputnode"}:
        return origins(graph, before, source)
    return [(before, source)]


# Documentation


@pytest.mark.parametrize("name", FACTORIES)
def test_docstrings_list_the_parameters(name):
    check_parameters(FACTORIES[name])


def graphs_of(applied, t1w):
    folds = folds_of(controls_of(5), 2)
    here = {"reference": t1w["t1w"], "output": output("lesions"), "name": "lesions_wf"}
    transforms = [t1w["template_to_t1w"]]
    return {
        "init_ocsvm_wf": init_ocsvm_wf(controls_of(5), folds, PATIENTS, FITTING),
        "init_norm_wf": init_norm_wf("pseudonormal", folds, PATIENTS, FITTING, name="norm_wf"),
        "init_detector_wf": init_detector_wf(
            "zscore", (), applied.folds, PATIENTS, FITTING, applied=applied
        ),
        "init_anomalies_wf": init_anomalies_wf(
            scored(PATIENTS[0], 0), SLABS, 2, CLUSTERING, name="a_wf"
        ),
        "init_kept_wf": init_kept_wf([scored(PATIENTS[0], 0, t1w=t1w)], [2], name="kept_wf"),
        "init_on_t1w_wf": init_on_t1w_wf(scored(PATIENTS[0], 0, t1w=t1w), name="t1w_wf"),
        "init_lesions_wf": init_lesions_wf(t1w["t1w"], transforms=transforms, **here),
        "init_atlas_wf": init_atlas_wf(
            t1w["t1w"], t1w["t1w"], Path("/work/atlas"), name="atlas_wf"
        ),
        "init_check_wf": init_check_wf(compared_folds(folds)[0], FITTING),
        "init_training_set_wf": training_set(),
        "init_applied_set_wf": applied_set(applied),
    }


def test_docstrings_list_the_fields_of_doors(applied, t1w):
    graphs = graphs_of(applied, t1w)
    assert set(graphs) == set(FACTORIES)
    for name, graph in graphs.items():
        for section, door in (("Inputs", "inputnode"), ("Outputs", "outputnode")):
            body = re.search(
                rf"^{section}\n-+\n(.*?)(?:\n\n|\Z)", inspect.getdoc(FACTORIES[name]), re.S | re.M
            )
            documented = re.findall(r"^\w+$", body[1], re.M) if body else []
            node = graph.get_node(door)
            assert documented == (node.interface._fields if node else []), (name, section)


# All graphs


def test_every_node_gets_what_it_needs(applied, t1w):
    whole = [training_set(), applied_set(applied)]
    with_t1w = training_set(detectors=("zscore",), t1w=t1w)
    others = [graphs_of(applied, t1w)[name] for name in ("init_lesions_wf", "init_atlas_wf")]
    for workflow in (*whole, with_t1w, *others):
        nodes, graph = nodes_of(workflow)
        connected = {
            (behind, field)
            for _, behind, data in graph.edges(data=True)
            for _, field in data["connect"]
        }
        missing = [
            (name, field)
            for name, node in nodes.items()
            for field in node.inputs.traits(mandatory=True)
            if (node, field) not in connected and not isdefined(getattr(node.inputs, field))
        ]
        assert missing == []


def test_only_nodes_of_torch_say_so(applied):
    for workflow in (training_set(), applied_set(applied)):
        nodes, _ = nodes_of(workflow)
        said = {name for name, node in nodes.items() if getattr(node.interface, "uses_torch", 0)}
        assert said == {
            name for name in nodes if re.fullmatch(r"ocsvm_wf\.(encoder_\d|slab_\d_\d)", name)
        }
        assert all(hasattr(nodes[name].interface, "engine") for name in said)


def test_nodes_say_what_they_take(applied):
    for workflow in (training_set(), applied_set(applied)):
        nodes, _ = nodes_of(workflow)
        for name, node in nodes.items():
            if "slab_" in name:
                assert (node.inputs.threads, node.n_procs, node.mem_gb) == (3, 3, 2.5)
            if "encoder_" in name:
                assert node.inputs.threads == node.n_procs


# People that a node scores


def fitted_to(graph, node):
    """Return the folders of the controls that a node was fitted to."""
    if isinstance(node.interface, FitSlab):
        ((pack, field),) = origins(graph, node, "packed")
        assert field == "packed"
        return [pack.inputs.controls[place] for place in node.inputs.members]
    return node.inputs.controls


@settings(max_examples=10)
@given(count=st.integers(4, 9), folds=st.integers(2, 4))
def test_nobody_is_scored_by_what_was_fitted_to_them(count, folds):
    nodes, graph = nodes_of(training_set(count, folds))
    dealt = {fold.number: fold for fold in folds_of(controls_of(count), folds)}
    seen = 0
    for name, node in nodes.items():
        if not isinstance(node.interface, (FitSlab, FitNorm)):
            continue
        fold = dealt[int(name.split("_")[2])]
        own = [str(control.folder) for control in fold.training]
        assert fitted_to(graph, node) == own
        assert set(node.inputs.scored).isdisjoint(own)
        people = [*PATIENTS, *fold.validation]
        assert node.inputs.scored == [str(subject.folder) for subject in people]
        if isinstance(node.interface, FitSlab):
            ((encoder, field),) = origins(graph, node, "encoder")
            assert (encoder.name, field) == (f"encoder_{fold.number}", "encoder")
            assert encoder.inputs.controls == own
            assert encoder.inputs.seed == 100 + fold.number - 1
        seen += 1
    assert seen == folds * (len(SLABS) + 2)


def test_a_fold_shows_synthetic_and_held_out_real_pet_to_its_own_svms_alone():
    folds = compared_folds(folds_of(controls_of(5), 2))
    nodes, graph = nodes_of(init_ocsvm_wf(controls_of(5), folds, PATIENTS, FITTING))
    for fold in folds:
        check = nodes[f"check_{fold.number}_wf.compare"]
        images = [*fold.validation, *fold.compared]
        real = ["real"] * len(fold.validation)
        assert check.inputs.kinds == [*real, "synthetic", "synthetic"]
        assert (check.inputs.fold, check.inputs.slabs) == (fold.number, list(SLABS))
        ((encoder, _),) = origins(graph, check, "encoder")
        assert encoder.name == f"encoder_{fold.number}"
        sources = origins(graph, check, "unsigned")
        names = [f"slab_{fold.number}_{number}" for number in (1, 2, 3)]
        assert [(slab.name, field) for slab, field in sources] == [(n, "unsigned") for n in names]
        for node in (check, *(slab for slab, _ in sources)):
            assert node.inputs.compared == [str(image.folder) for image in images]
            assert node.inputs.compared_digests == [image.sha256 for image in images]
        save = nodes[f"check_{fold.number}_wf.save"]
        assert save.inputs.out_file == f"checks/fold-{fold.number}.json"
        assert not check.fatal
    nodes, _ = nodes_of(training_set())
    assert not any("check_" in name for name in nodes)


@settings(max_examples=10)
@given(count=st.integers(4, 9), folds=st.integers(2, 4))
def test_a_map_is_laid_out_from_the_scores_of_its_own_image(count, folds):
    nodes, graph = nodes_of(training_set(count, folds))
    maps = {name: node for name, node in nodes.items() if name.endswith("_wf.map")}
    assert len(maps) == len(DETECTORS) * (len(PATIENTS) + count)
    for name, node in maps.items():
        assert isinstance(node.interface, MapAnomalies)
        detector = name.partition("_")[0]
        sources = origins(graph, node, "scores")
        for (source, field), row, slab in zip(
            sources, node.inputs.rows, node.inputs.slabs, strict=True
        ):
            assert source.fullname.split(".")[1] == f"{detector}_wf"
            assert field == "scores"
            assert source.inputs.scored_digests[row] == node.inputs.digest
            if detector == "ocsvm":
                assert (source.inputs.first, source.inputs.last) == slab
            else:
                assert slab == (0, 34)
        own = {source.name.split("_")[1] for source, _ in sources}
        assert len(own) == node.inputs.folds == (folds if "_p" in name else 1)


def test_the_analysed_brain_is_that_of_the_training_set_everywhere():
    nodes, graph = nodes_of(training_set())
    assert nodes["brain"].inputs.controls == [f"{REAL}_c{number}" for number in range(5)]
    assert nodes["brain"].inputs.share == 0.9
    for name, node in nodes.items():
        if "brain" in node.inputs.get() and name != "brain" and "inputnode" not in name:
            assert origins(graph, node, "brain") == [(nodes["brain"], "brain")]


def test_pseudonormal_compares_with_the_synthetic_pet_of_the_same_people():
    nodes, _ = nodes_of(training_set())
    for fold in (1, 2):
        inputs = nodes[f"pseudonormal_wf.norm_{fold}"].inputs
        for real, made in (
            (inputs.controls, inputs.controls_synthetic),
            (inputs.scored, inputs.scored_synthetic),
        ):
            assert made == [one.replace("/real_", "/made_") for one in real]
        inputs = nodes[f"zscore_wf.norm_{fold}"].inputs
        assert (inputs.controls_synthetic, inputs.scored_synthetic) == ([], [])


# Destinations of results


def test_each_published_file_has_the_name_of_what_it_is():
    nodes, graph = nodes_of(training_set())
    publish = nodes["publish"]
    assert publish.inputs.folder == "/out/detectors/real"
    sources = origins(graph, publish, "sources")
    expected = {BRAIN_FILE: ("brain", "brain"), PACKED: ("ocsvm_wf.pack", "packed")}
    for fold in (1, 2):
        expected[f"ocsvm/fold-{fold}/encoder.safetensors"] = (f"ocsvm_wf.encoder_{fold}", "encoder")
        for slab in (1, 2, 3):
            file = f"ocsvm/fold-{fold}/voxels-{slab:02}.safetensors"
            expected[file] = (f"ocsvm_wf.slab_{fold}_{slab}", "voxels")
        for detector in ("zscore", "pseudonormal"):
            file = f"{detector}/fold-{fold}.safetensors"
            expected[file] = (f"{detector}_wf.norm_{fold}", "norm")
    found = [(node.fullname.partition(".")[2], field) for node, field in sources]
    assert dict(zip(publish.inputs.names, found, strict=True)) == expected


def test_maps_labels_and_clusters_go_where_they_belong():
    nodes, graph = nodes_of(training_set())
    for name in ("real_p1", "real_c3"):
        for kind, field in (("statmap", "statmap"), ("dseg", "labels")):
            save = nodes[f"zscore_{name}_wf.save_{field}"]
            assert origins(graph, save, "in_file") == [(nodes[f"zscore_{name}_wf.map"], field)]
            assert save.inputs.out_file == f"/out/{name}_{kind}.nii.gz"
            assert save.inputs.sidecar_file == f"/out/{name}_{kind}.json"
            assert save.inputs.sidecar == {"Name": f"{name}_{kind}"}
        save = nodes[f"zscore_{name}_wf.save_clusters"]
        assert origins(graph, save, "in_file") == [(nodes[f"zscore_{name}_wf.map"], "clusters")]
        assert save.inputs.out_file == f"/work/{name}.json"


def test_what_is_known_of_lesions_and_regions_reaches_the_map(t1w):
    there, names = t1w.values()
    known = replace(CLUSTERING, atlas=there, names=names, max_clusters=4)
    nodes, _ = nodes_of(
        init_anomalies_wf(scored(PATIENTS[0], 1, lesions=there), SLABS, 2, known, name="a_wf")
    )
    inputs = nodes["map"].inputs
    assert (inputs.lesions, inputs.atlas) == (str(there), str(there))
    assert inputs.names == str(names)
    assert (inputs.extent, inputs.minimum_volume, inputs.max_clusters) == (0.02, 82.0, 4)
    assert (inputs.rows, inputs.folds) == ([1] * 6, 2)
    nodes, _ = nodes_of(
        init_anomalies_wf(scored(PATIENTS[0], 1), SLABS, 2, CLUSTERING, name="a_wf")
    )
    assert not isdefined(nodes["map"].inputs.lesions)
    assert not isdefined(nodes["map"].inputs.atlas)


def test_maps_are_interpolated_and_labels_are_not_on_their_way_to_the_t1w(t1w):
    nodes, graph = nodes_of(training_set(4, detectors=("zscore",), t1w=t1w))
    assert len([name for name in nodes if name.endswith("t1w_wf.save")]) == len(PATIENTS)
    start = "zscore_real_p1"
    for name, field, how in (
        ("carry_map", "statmap", "linear"),
        ("carry_labels", "labels", "genericLabel"),
    ):
        carry = nodes[f"{start}_t1w_wf.{name}"]
        assert origins(graph, carry, "image") == [(nodes[f"{start}_wf.map"], field)]
        assert carry.inputs.interpolation == how
        assert carry.inputs.reference == str(t1w["t1w"])
        assert carry.inputs.transforms == [str(t1w["template_to_t1w"])]
    save = nodes[f"{start}_t1w_wf.save"]
    carried = [node.name for node, _ in origins(graph, save, "in_files")]
    assert carried == ["carry_map", "carry_labels"]
    assert save.inputs.out_files == ["/out/t1w_statmap.nii.gz", "/out/t1w_dseg.nii.gz"]
    assert save.inputs.sidecar_files == ["/out/t1w_statmap.json", "/out/t1w_dseg.json"]
    assert save.inputs.sidecars == [{"Name": "t1w_statmap"}, {"Name": "t1w_dseg"}]


@pytest.mark.parametrize("in_template", [True, False])
def test_masks_of_lesions_come_along_the_transform_of_the_t1w_if_they_lie_there(t1w, in_template):
    transforms = [] if in_template else [t1w["template_to_t1w"]]
    nodes, graph = nodes_of(
        init_lesions_wf(t1w["t1w"], t1w["template_to_t1w"], transforms, output("mask"), name="l_wf")
    )
    inputs = nodes["carry"].inputs
    assert inputs.reference == str(t1w["template_to_t1w"])
    assert inputs.interpolation == "genericLabel"
    found = inputs.transforms if isdefined(inputs.transforms) else []
    assert found == [str(path) for path in transforms]
    assert origins(graph, nodes["save_lesions"], "in_file") == [(nodes["carry"], "image")]
    assert nodes["save_lesions"].inputs.out_file == "/out/mask.nii.gz"


def test_labels_of_an_atlas_are_not_interpolated(t1w):
    workflow = init_atlas_wf(
        t1w["t1w"], t1w["template_to_t1w"], Path("/work/a.nii.gz"), name="atlas_wf"
    )
    nodes, graph = nodes_of(workflow)
    inputs = nodes["carry"].inputs
    assert (inputs.image, inputs.reference) == (str(t1w["t1w"]), str(t1w["template_to_t1w"]))
    assert inputs.interpolation == "genericLabel"
    assert origins(graph, nodes["save"], "in_file") == [(nodes["carry"], "image")]
    assert nodes["save"].inputs.out_file == "/work/a.nii.gz"


# Detectors that were trained before


def test_what_was_trained_before_is_only_applied(applied):
    nodes, graph = nodes_of(applied_set(applied))
    kinds = {type(node.interface).__name__ for node in nodes.values()}
    assert kinds.isdisjoint({"TrainEncoder", "FitSlab", "FitNorm", "PackControls", "AgreeOnBrain"})
    assert kinds.isdisjoint({"PublishDetector"})
    assert nodes["brain"].inputs.brain == str(applied.folder / BRAIN_FILE)
    for fold, members in ((1, [1, 3]), (2, [0, 2, 4])):
        folder = applied.folder / "ocsvm" / f"fold-{fold}"
        for number, slab in enumerate(SLABS, start=1):
            inputs = nodes[f"ocsvm_wf.slab_{fold}_{number}"].inputs
            assert inputs.encoder == str(folder / "encoder.safetensors")
            assert inputs.voxels == str(folder / f"voxels-{number:02}.safetensors")
            assert inputs.packed == str(applied.folder / PACKED)
            assert (inputs.members, (inputs.first, inputs.last)) == (members, slab)
        for detector in ("zscore", "pseudonormal"):
            inputs = nodes[f"{detector}_wf.norm_{fold}"].inputs
            assert inputs.norm == str(applied.folder / detector / f"fold-{fold}.safetensors")
            assert inputs.fwhm == 8.0
    for name, node in nodes.items():
        if name.endswith("_wf.map"):
            sources = origins(graph, node, "scores")
            assert [
                source.inputs.scored_digests[row]
                for (source, _), row in zip(sources, node.inputs.rows, strict=True)
            ] == [node.inputs.digest] * len(sources)


# Recomputation


ENCODERS, SLAB_NODES = ("ocsvm_wf.encoder_1",), ("ocsvm_wf.slab_1_2",)
NORMS, MAPS = ("zscore_wf.norm_1", "pseudonormal_wf.norm_1"), ("zscore_real_p1_wf.map",)
WATCHED = ("brain", "ocsvm_wf.pack", *ENCODERS, *SLAB_NODES, *NORMS, *MAPS)


def hashes(**changed):
    """Compute the digests of the inputs that computing nodes have before the run."""
    nodes, _ = nodes_of(training_set(**changed))
    return {name: nodes[name].inputs.get_hashval("content")[1] for name in WATCHED}


def changed_by(**changed):
    before, after = hashes(), hashes(**changed)
    return {name for name in WATCHED if before[name] != after[name]}


def elsewhere(controls):
    return [
        replace(
            control,
            folder=Path("/elsewhere") / control.name,
            synthetic=replace(
                control.synthetic, folder=Path("/elsewhere") / control.synthetic.name
            ),
        )
        for control in controls
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"fitting": replace(FITTING, threads=1)},
        {"fitting": replace(FITTING, mem_gb=7.0)},
        {"controls": elsewhere(controls_of(5))},
    ],
    ids=["threads", "memory", "place of volumes"],
)
def test_what_does_not_change_a_result_does_not_compute_it_again(changed):
    assert changed_by(**changed) == set()


def with_other(place, **changed):
    controls = controls_of(5)
    controls[place] = replace(controls[place], **changed)
    return controls


MADE_ANEW = replace(picture("c1").synthetic, sha256="another")


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        ({"fitting": replace(FITTING, nu=0.1)}, SLAB_NODES),
        ({"fitting": replace(FITTING, fwhm=6.0)}, NORMS),
        ({"fitting": replace(FITTING, encoder=spec_to_dict(EncoderSpec(epochs=3)))}, ENCODERS),
        ({"clustering": replace(CLUSTERING, extent=0.03)}, MAPS),
        ({"clustering": replace(CLUSTERING, minimum_volume=90.0)}, MAPS),
        ({"share": 0.8}, ("brain",)),
        (
            {"controls": with_other(1, sha256="another")},
            ("brain", "ocsvm_wf.pack", *ENCODERS, *SLAB_NODES, *NORMS),
        ),
        (
            {"controls": with_other(0, sha256="another")},  # fold 1 holds it out, and scores it
            ("brain", "ocsvm_wf.pack", *SLAB_NODES, *NORMS),
        ),
        ({"controls": with_other(1, synthetic=MADE_ANEW)}, NORMS[1:]),
    ],
    ids=[
        "nu",
        "smoothing",
        "encoder",
        "extent",
        "volume",
        "share",
        "a control",
        "a control that is held out",
        "a synthetic PET",
    ],
)
def test_what_changes_a_result_computes_it_again(changed, anew):
    assert changed_by(**changed) == set(anew)


def test_slabs_that_are_cut_as_before_are_not_computed_again():
    other = replace(FITTING, slabs=((0, 11), (11, 12), *SLABS[2:]))
    before, after = (nodes_of(training_set(fitting=one))[0] for one in (FITTING, other))
    same = [
        before[name].inputs.get_hashval("content") == after[name].inputs.get_hashval("content")
        for name in (f"ocsvm_wf.slab_1_{number}" for number in (1, 2, 3))
    ]
    assert same == [False, False, True]


def test_a_detector_that_was_changed_is_applied_again(applied):
    def hashed(one):
        nodes, _ = nodes_of(applied_set(one))
        return [nodes[name].inputs.get_hashval("content")[1] for name in (*SLAB_NODES, *NORMS)]

    before = hashed(applied)
    assert hashed(replace(applied, sha256="another"))[0] != before[0]
    assert hashed(replace(applied, members=[[1], [0]]))[0] != before[0]
    for name, changed in (("ocsvm/fold-1/voxels-02", 0), ("zscore/fold-1", 1)):
        (applied.folder / f"{name}.safetensors").write_text("another")
        now = hashed(applied)
        assert now[changed] != before[changed]
        before = now


# Messages of nodes


def test_maps_are_their_participants_and_all_else_is_the_training_sets(t1w):
    workflow = training_set(detectors=("zscore",), t1w=t1w)
    label_nodes(workflow, owner="real", label="real", part="real")
    nodes, _ = nodes_of(workflow)
    owners = defaultdict(set)
    for name, node in nodes.items():
        assert node.part == "real"
        assert node.label == (node.owner if node.owner == "real" else f"sub-{node.owner}")
        owners[node.owner].add(name.partition(".")[0])
    people = {f"real_{one}" for one in ("p1", "p2", "c0", "c1", "c2", "c3", "c4")}
    assert set(owners) == people | {"real"}
    for subject in people - {"real_p1", "real_p2"}:
        assert owners[subject] == {f"zscore_{subject}_wf"}
    assert owners["real_p1"] == {"zscore_real_p1_wf", "zscore_real_p1_t1w_wf"}


def test_people_are_told_of_the_steps_that_take_long(applied):
    fitted, _ = nodes_of(training_set())
    steps = {node.step for node in fitted.values() if hasattr(node, "step")}
    assert steps == {
        "common brain",
        "writing of detectors",
        *(f"encoder of fold {fold}" for fold in (1, 2)),
        *(f"norm of fold {fold}" for fold in (1, 2)),
        *(
            f"one-class SVMs of fold {fold}, slab {slab + 1}"
            for fold in (1, 2)
            for slab in range(len(SLABS))
        ),
    }
    again, _ = nodes_of(applied_set(applied))
    told = {node.step for node in again.values() if hasattr(node, "step")}
    assert told == {step for step in steps if step.startswith(("norm", "one-class"))}
