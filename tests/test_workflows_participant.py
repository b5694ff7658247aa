import inspect
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from documented import check_parameters
from nipype.interfaces.base import isdefined
from nipype.interfaces.utility import IdentityInterface

from bids_app.generators import GeneratorChoice, Options
from bids_app.interfaces.derivatives import SaveDerivative
from bids_app.synthesis.card import Card
from bids_app.synthesis.models import MODELS
from bids_app.workflows import participant, registration, synthesis
from bids_app.workflows.participant import (
    PetPlan,
    init_participant_wf,
    init_preprocessing_wf,
    init_synthesis_from_disk_wf,
)
from bids_app.workflows.registration import Preprocessing, init_anatomical_wf, init_pet_wf
from bids_app.workflows.synthesis import (
    SynthesisPlan,
    init_comparison_wf,
    init_regions_wf,
    init_subtraction_wf,
    init_synthesis_wf,
)

OF_T1W = {  # output → node and field it comes from
    "t1w": ("correct_bias", "t1w"),
    "brain_mask": ("extract_brain", "mask"),
    "t1w_in_template": ("scale", "image"),
    "brain_mask_in_template": ("resample_mask", "image"),
    "t1w_to_template": ("register_to_template", "t1w_to_template"),
    "template_to_t1w": ("register_to_template", "template_to_t1w"),
}
OF_PET = {
    "in_t1w": ("coverage_in_t1w", "image"),
    "coverage_in_t1w": ("coverage_in_t1w", "coverage"),
    "coverage_in_template": ("coverage_in_template", "covered_brain"),
    "in_template": ("scale", "image"),
    "to_t1w": ("register_to_t1w", "pet_to_t1w"),
}


@pytest.fixture
def there(tmp_path):
    """Create an input file, as nodes require it to exist; return its path."""

    def make(name):
        (tmp_path / name).touch()
        return tmp_path / name

    return make


@pytest.fixture
def generator(tmp_path):
    (tmp_path / "generator").mkdir()
    return tmp_path / "generator"


def output(name):
    return Path(f"/out/{name}.nii.gz"), {"Name": name}


def pet_plans(there, count):
    return [
        PetPlan(
            there(f"pet{number}.nii.gz"),
            (60.0, 30.0),
            {name: output(f"pet_{number}_{name}") for name in OF_PET},
        )
        for number in range(count)
    ]


@pytest.fixture
def options(there):
    return Preprocessing(
        there("template.nii.gz"),
        there("grid.nii.gz"),
        there("grid_mask.nii.gz"),
        "auto",
        (0, 1),
        99.5,
        2.5,
        quick=True,
        seed=0,
        omp_nthreads=3,
    )


def card(sha256, reference_sha256):
    affine = tuple(map(tuple, np.eye(4).tolist()))
    return Card(
        name="g",
        version="1",
        spec=MODELS["semi3d-gan"],
        template="T",
        shape=(4, 4, 4),
        affine=affine,
        sha256=sha256,
        trained_on="",
        intended_use="",
        participants=(),
        dataset="",
        seed=0,
        reference_sha256=reference_sha256,
    )


@pytest.fixture
def plan(generator):
    chosen = GeneratorChoice(generator, card("0" * 64, "1" * 64))
    return SynthesisPlan(
        chosen,
        1.5,
        2.5,
        "cpu",
        output("synthetic_pet"),
        output("synthetic_pet_in_t1w"),
        subtracted=(output("synthetic_pet_scaled"), output("difference")),
    )


@pytest.fixture
def beyond(plan):
    """All options beyond the paper."""
    options = Options(overlap=True, match_histogram=True, uncertainty=True, novelty=True)
    known = replace(plan.generator.card, uncertainty_sha256="2" * 64)
    generator = replace(plan.generator, options=options, card=known)
    return replace(plan, generator=generator, uncertainty=output("uncertainty"))


@pytest.fixture
def build(there, options, plan, beyond):
    """Build a workflow, by the name of its factory."""
    here = replace(options, percentile=99.9, omp_nthreads=1, frames=())

    def build(name, pets=1, plan=plan):
        atlas, _ = there("coarse.nii.gz"), there("coarse.tsv")
        visit = {
            "t1w": there("t1w.nii.gz"),
            "outputs": {field: output(field) for field in OF_T1W},
            "pets": pet_plans(there, pets),
            "options": options,
        }
        names = ["pet_in_template", "pet_in_t1w", "brain_mask"] if pets else []
        on_disk = {name: there(f"pet{n}.nii.gz") for n, name in enumerate(names)}
        factories = {
            "anatomical": lambda: init_anatomical_wf(options=here),
            "pet": lambda: init_pet_wf(pet=there("pet.nii.gz"), durations=(), options=here),
            "preprocessing": lambda: init_preprocessing_wf(**visit),
            "synthesis": lambda: init_synthesis_wf(plan=plan, omp_nthreads=1),
            "comparison": init_comparison_wf,
            "regions": lambda: init_regions_wf(output=output("regions"), atlas=atlas),
            "subtraction": lambda: init_subtraction_wf(outputs=plan.subtracted),
            "participant": lambda: init_participant_wf(
                init_preprocessing_wf(**visit),
                plan,
                omp_nthreads=options.omp_nthreads,
                real=bool(pets),
            ),
            "synthesis_from_disk": lambda: init_synthesis_from_disk_wf(
                files={
                    "t1w": there("t1w.nii.gz"),
                    "template_to_t1w": there("back.h5"),
                    "t1w_in_template": there("t1w.nii.gz"),
                    "brain_mask_in_template": there("mask.nii.gz"),
                    **on_disk,
                },
                synthesis=plan,
                omp_nthreads=1,
            ),
        }
        return factories[name]()

    return build


FACTORIES = {
    name.removeprefix("init_").removesuffix("_wf"): factory
    for module in (registration, participant, synthesis)
    for name, factory in vars(module).items()
    if name.startswith("init_") and factory.__module__ == module.__name__
}


def sources(graph):
    """Return (node, input) → (node, output) for all nodes of a flat graph."""
    return {
        (behind, field): (before, source)
        for before, behind, data in graph.edges(data=True)
        for source, field in data["connect"]
    }


def trace(found, node, field):
    """Follow an input back to the node that computes it, and to that node's output."""
    node, field = found[node, field]
    while isinstance(node.interface, IdentityInterface):  # inputs and outputs of workflows
        node, field = found[node, field]
    return node, field


def producer(found, node, field):
    node, field = trace(found, node, field)
    return node.name, field


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize(("section", "door"), [("Inputs", "inputnode"), ("Outputs", "outputnode")])
def test_docstrings_list_the_fields(build, name, section, door):
    body = re.search(
        rf"^{section}\n-+\n(.*?)(?:\n\n|\Z)", inspect.getdoc(FACTORIES[name]), re.S | re.M
    )
    node = build(name).get_node(door)
    documented = re.findall(r"^\w+$", body[1], re.M) if body else []
    assert documented == (node.interface._fields if node else [])


@pytest.mark.parametrize("name", FACTORIES)
def test_docstrings_list_the_parameters(name):
    check_parameters(FACTORIES[name])


@pytest.mark.parametrize("name", ["participant", "preprocessing", "synthesis_from_disk"])
@pytest.mark.parametrize("pets", [0, 1, 2])
def test_every_node_gets_what_it_needs(build, name, pets):
    graph = build(name, pets)._create_flat_graph()
    connected = set(sources(graph))
    missing = [
        (node.name, field)
        for node in graph
        for field in node.inputs.traits(mandatory=True)
        if (node, field) not in connected and not isdefined(getattr(node.inputs, field))
    ]
    assert missing == []


@pytest.mark.parametrize("pets", [0, 1, 2])
def test_every_result_is_saved_once_and_is_what_its_name_says(build, pets):
    graph = build("participant", pets)._create_flat_graph()
    found = sources(graph)
    saved = {
        node.inputs.out_file: producer(found, node, "in_file")
        for node in graph
        if isinstance(node.interface, SaveDerivative)
    }
    expected = {**OF_T1W, "synthetic_pet": ("synthesize", "pet")}
    expected["synthetic_pet_in_t1w"] = ("carry_to_t1w", "image")
    if pets:
        expected["synthetic_pet_scaled"] = ("subtract", "scaled")
        expected["difference"] = ("subtract", "difference")
    for number in range(pets):
        expected |= {f"pet_{number}_{name}": place for name, place in OF_PET.items()}
    assert saved == {f"/out/{name}.nii.gz": place for name, place in expected.items()}
    assert sum(isinstance(node.interface, SaveDerivative) for node in graph) == len(expected)


def test_sidecars_go_with_their_images(build):
    for node in build("participant")._create_flat_graph():
        if isinstance(node.interface, SaveDerivative):
            name = Path(node.inputs.out_file).name.removesuffix(".nii.gz")
            assert node.inputs.sidecar_file == f"/out/{name}.json"
            assert node.inputs.sidecar == {"Name": name}


@pytest.mark.parametrize(
    ("result", "measured"),
    [
        ("t1w", ["extract_brain", "read"]),
        ("brain_mask", []),
        ("t1w_in_template", ["judge", "scale"]),
        ("pet_0_in_t1w", ["read", "refuse_gaps", "coverage_in_t1w"]),
        ("pet_0_in_template", ["taint", "scale", "read", "refuse_gaps", "coverage_in_template"]),
        ("pet_0_coverage_in_t1w", ["coverage_in_t1w"]),
        ("pet_0_coverage_in_template", ["coverage_in_template"]),
        ("pet_0_to_t1w", ["register_to_t1w"]),
    ],
)
def test_what_was_measured_goes_into_the_sidecar(build, result, measured):
    found = sources(build("participant")._create_flat_graph())
    (save,) = {node for node, _ in found if node.name == f"save_{result}"}
    if not measured:
        assert (save, "measured") not in found
        return
    source, _ = trace(found, save, "measured")
    if "measured" in source.name:  # merged from several
        fields = [f"in{number + 1}" for number in range(len(measured))]
        assert [trace(found, source, field)[0].name for field in fields] == measured
    else:
        assert [source.name] == measured


def test_a_pet_goes_by_its_t1w_into_the_template(build):
    """The last transform is applied first."""
    found = sources(build("participant")._create_flat_graph())
    (path,) = {node for node, _ in found if node.name == "path"}
    assert producer(found, path, "in1") == ("register_to_template", "t1w_to_template")
    assert producer(found, path, "in2") == ("register_to_t1w", "pet_to_t1w")


def test_a_pet_is_scaled_by_the_brain_it_covers_and_its_field_of_view_goes_its_way(build):
    graph = build("participant")._create_flat_graph()
    found, at = (
        sources(graph),
        lambda name: next(node for node in graph if node.name == name and "pet_0" in node.fullname),
    )
    assert producer(found, at("scale"), "mask") == ("coverage_in_template", "covered_brain")
    assert producer(found, at("field_of_view"), "pet") == ("read", "pet")
    for field, image in (
        ("field_to_t1w", "resample_to_t1w"),
        ("field_to_template", "resample_to_template"),
    ):
        assert producer(found, at(field), "image") == ("field_of_view", "field_of_view")
        same = producer(found, at(image), "transforms")
        assert producer(found, at(field), "transforms") == same
        assert at(field).inputs.interpolation == "linear"


def node_of(graph, name):
    (node,) = [node for node in graph if node.name == name and "pet_" not in node.fullname]
    return node


def test_registration_sees_the_brain_alone_and_is_judged_on_the_grid_of_the_outputs(build, options):
    graph = build("participant", pets=0)._create_flat_graph()
    found, at = sources(graph), lambda name: node_of(graph, name)
    assert producer(found, at("register_to_template"), "brain") == ("mask", "image")
    assert producer(found, at("mask"), "image") == ("correct_bias", "t1w")
    assert (at("before"), "transforms") not in found
    for name in ("resample", "resample_mask"):
        wanted = ("register_to_template", "t1w_to_template")
        assert producer(found, at(name), "transforms") == wanted
        assert at(name).inputs.reference == str(options.reference)
    assert at("resample_mask").inputs.interpolation == "nearestNeighbor"
    assert producer(found, at("judge"), "before") == ("before", "image")
    assert producer(found, at("judge"), "after") == ("resample", "image")
    assert producer(found, at("judge"), "mask_after") == ("resample_mask", "image")
    for field in ("start", "behind"):
        assert producer(found, at("judge"), field) == ("register_to_template", field)
    assert producer(found, at("synthesize"), "t1w") == ("verdict", "image")
    assert producer(found, at("verdict"), "image") == ("scale", "image")
    assert producer(found, at("verdict"), "measured") == ("measured", "out")
    assert producer(found, at("synthesize"), "mask") == ("resample_mask", "image")


def test_a_pet_in_the_template_s_space_knows_the_verdict_on_its_t1w(build):
    found = sources(build("preprocessing")._create_flat_graph())
    (taint,) = {node for node, _ in found if node.name == "taint"}
    assert producer(found, taint, "t1w_measured") == ("measured", "out")
    assert producer(found, taint, "sidecar") == ("register_to_t1w", "sidecar")


@pytest.mark.parametrize("pets", [0, 1, 2])
def test_a_synthetic_pet_is_compared_with_the_first_real_one(build, pets):
    graph = build("participant", pets)._create_flat_graph()
    found, names = sources(graph), [node.name for node in graph]
    assert names.count("compare") == min(pets, 1)
    if pets:
        compare, tell = node_of(graph, "compare"), node_of(graph, "tell")
        gate, field = trace(found, compare, "real")
        assert (gate.name, field) == ("pet_0_verdict", "image")
        assert producer(found, gate, "measured") == ("register_to_t1w", "sidecar")
        real, field = trace(found, gate, "image")
        assert (real.fullname.split(".")[-2:], field) == (["pet_0_wf", "scale"], "image")
        assert producer(found, compare, "synthetic") == ("synthesize", "pet")
        assert producer(found, compare, "mask") == ("resample_mask", "image")
        covered = producer(found, compare, "coverage")
        assert covered == ("coverage_in_template", "covered_brain")
        assert producer(found, tell, "sidecar_file") == ("save_synthetic_pet", "sidecar_file")


def test_a_comparison_from_disk_is_with_the_real_pet(build, there):
    graph = build("synthesis_from_disk")._create_flat_graph()
    doors = {node.fullname.split(".")[-2]: node for node in graph if node.name == "inputnode"}
    assert doors["comparison_wf"].inputs.real == str(there("pet0.nii.gz"))
    assert doors["comparison_wf"].inputs.brain_mask == str(there("mask.nii.gz"))
    assert doors["synthesis_wf"].inputs.t1w == str(there("t1w.nii.gz"))
    assert doors["synthesis_wf"].inputs.brain_mask == str(there("mask.nii.gz"))


def test_parameters_arrive_at_their_nodes(build, options, plan):
    graph = build("participant")._create_flat_graph()
    at = {(".pet_" in node.fullname, node.name): node.inputs for node in graph}
    assert at[False, "extract_brain"].mode == "auto"
    assert at[False, "register_to_template"].quick is True
    assert at[False, "register_to_template"].template == str(options.template)
    assert at[False, "judge"].fixed == str(options.reference)
    assert at[False, "judge"].fixed_mask == str(options.reference_mask)
    assert {at[pet, "scale"].percentile for pet in (False, True)} == {99.5}
    assert at[True, "read"].frames == [0, 1]
    assert at[True, "read"].durations == [60, 30]
    assert at[True, "resample_to_template"].reference == str(options.reference)
    assert (at[False, "synthesize"].fwhm, at[False, "synthesize"].device) == (1.5, "cpu")
    threads = {"extract_brain", "correct_bias", "synthesize"}
    assert {node.n_procs for node in graph if node.name in threads} == {3}
    single = {"register_to_template", "register_to_t1w"}
    assert {node.n_procs for node in graph if node.name in single} == {1}


@pytest.mark.parametrize("name", ["participant", "synthesis_from_disk"])
def test_every_node_gets_what_it_needs_beyond_the_paper_too(build, beyond, name):
    graph = build(name, plan=beyond)._create_flat_graph()
    connected = set(sources(graph))
    assert [
        (node.name, field)
        for node in graph
        for field in node.inputs.traits(mandatory=True)
        if (node, field) not in connected and not isdefined(getattr(node.inputs, field))
    ] == []


def test_nothing_is_done_beyond_the_paper_unless_asked_for(build, beyond):
    options = replace(beyond.generator.options, novelty=False)
    without = replace(beyond.generator, options=options)
    plain, more = (
        {node.fullname for node in build("participant", plan=plan)._create_flat_graph()}
        for plan in (replace(beyond, generator=without, uncertainty=None), beyond)
    )
    assert {name.split(".")[-1] for name in more - plain} == {
        "measure_novelty",
        "predict_error",
        "save_uncertainty",
    }
    assert plain < more
    node = node_of(build("participant")._create_flat_graph(), "synthesize")
    assert (node.inputs.overlap, node.inputs.match_histogram) == (False, False)
    assert node.inputs.reference_sha256 == ""


def test_the_error_is_of_the_synthetic_pet_as_it_is_written(build, beyond):
    graph = build("participant", plan=beyond)._create_flat_graph()
    found, node = sources(graph), node_of(graph, "predict_error")
    assert producer(found, node, "pet") == ("synthesize", "pet")
    for field in ("t1w", "mask"):
        assert producer(found, node, field) == producer(found, node_of(graph, "synthesize"), field)
    assert node.inputs.generator == str(beyond.generator.folder)
    assert node.inputs.uncertainty_sha256 == "2" * 64
    save = node_of(graph, "save_uncertainty")
    assert producer(found, save, "in_file") == ("predict_error", "deviation")
    assert producer(found, save, "measured") == ("predict_error", "sidecar")
    assert save.inputs.out_file == "/out/uncertainty.nii.gz"


def test_novelty_is_of_the_t1w_and_goes_into_the_sidecar_of_the_synthetic_pet(build, beyond):
    graph = build("participant", plan=beyond)._create_flat_graph()
    found, node = sources(graph), node_of(graph, "measure_novelty")
    assert producer(found, node, "t1w") == ("verdict", "image")  # not after a failed registration
    assert node.inputs.generator == str(beyond.generator.folder)
    assert node.inputs.reference_sha256 == "1" * 64
    save = node_of(graph, "save_synthetic_pet")
    assert producer(found, save, "measured") == ("measured_of_synthesis", "out")
    assert producer(found, node_of(graph, "measured_of_synthesis"), "in1") == (
        "synthesize",
        "sidecar",
    )
    assert producer(found, node_of(graph, "measured_of_synthesis"), "in2") == (
        "measure_novelty",
        "sidecar",
    )


@pytest.mark.parametrize("step", ["predict_error", "save_uncertainty"])
def test_without_a_map_of_uncertainty_a_visit_still_has_results(build, beyond, step):
    graph = build("participant", plan=beyond)._create_flat_graph()
    assert node_of(graph, step).fatal is False
    assert not hasattr(node_of(graph, "synthesize"), "fatal")  # fatal by default


def test_without_a_pet_a_visit_still_has_results(build):
    graph = build("participant", pets=2)._create_flat_graph()
    lesser = [node for node in graph if hasattr(node, "fatal")]
    assert not any(node.fatal for node in lesser)
    named = {node.fullname.split(".")[-2] for node in lesser} - {"preprocessing_wf"}
    assert named == {"pet_0_wf", "pet_1_wf", "comparison_wf", "subtraction_wf"}
    own = {node.name for node in lesser if node.fullname.split(".")[-2] == "preprocessing_wf"}
    assert own == {"pet_0_verdict", "pet_1_verdict"}
    assert all(node in lesser for node in graph if ".pet_" in node.fullname)


def test_people_are_told_of_the_steps_that_take_long(build, beyond):
    graph = build("participant", plan=beyond)._create_flat_graph()
    assert {node.name: node.step for node in graph if hasattr(node, "step")} == {
        "extract_brain": "brain extraction",
        "correct_bias": "bias field",
        "register_to_template": "T1w to template",
        "register_to_t1w": "PET to T1w",
        "synthesize": "synthetic PET",
        "predict_error": "uncertainty",
    }


def test_only_nodes_of_torch_say_so(build):
    graph = build("participant")._create_flat_graph()
    said = {node.name for node in graph if getattr(node.interface, "uses_torch", False)}
    assert said == {"extract_brain", "synthesize"}
