"""Generated pages of the documentation agree with the code."""

import doctest
import importlib.util
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from bids_app import cli, errors, fetch, importing, quick, simulate
from bids_app.derivatives.description import DESCRIPTIONS
from bids_app.derivatives.paths import PetPaths, VisitPaths
from bids_app.derivatives.sidecars import DICTIONARIES, read_dictionary
from bids_app.lifeline import CODE_OF_SIGNAL, STOPPING
from bids_app.settings import LEVELS

DOCS = Path(__file__).parents[1] / "docs"
PROGRAMS = (cli, quick, simulate, importing, fetch)


def loaded():
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = loaded()
CODES = {0, cli.UNKNOWN_LEVEL, errors.Mri2petError.exit_code} | {
    *(one.exit_code for one in errors.Mri2petError.__subclasses__()),
    *(CODE_OF_SIGNAL + one for one in STOPPING),
}


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_what_the_code_gives(name):
    assert page(name) == reference.PAGES[name](), "run python docs/reference.py"


def test_its_examples_are_true():
    tried = doctest.testmod(reference)
    assert tried.attempted >= 2
    assert not tried.failed


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.__name__)
def test_every_option_has_a_row(program):
    parser = program.build_parser()
    _, _, told = page("options.md").partition(f"\n## {parser.prog}\n")
    rows = [line for line in told.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    assert len(rows) == len(parser._actions)
    flags = {flag for one in parser._actions for flag in one.option_strings if "_" not in flag}
    assert flags == {flag for line in rows for flag in re.findall(r"`(--?[a-z][a-z0-9-]*)", line)}


def test_an_option_more_changes_the_page():
    parser = simulate.build_parser()
    parser.add_argument("--brand-new", type=float, metavar="A|B", help="100%% new <one>")
    told = reference.options_of(parser, levels=False)
    assert "| `--brand-new A\\|B` | 100% new &lt;one&gt; |" in told


def test_levels_are_those_that_use_an_option():
    assert re.search(r"^\| `--epochs N` \| train \|", page("options.md"), re.MULTILINE)
    assert re.search(r"^\| `--folds N` \| train, group \|", page("options.md"), re.MULTILINE)
    assert re.search(r"^\| `--resolution MM` \| all \|", page("options.md"), re.MULTILINE)


def test_every_exit_code_has_a_row_with_what_to_do():
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", page("errors.md"), re.MULTILINE)
    assert {int(code) for code, _, _ in rows} == CODES
    assert len(rows) == len(CODES)


@pytest.mark.parametrize("program", [cli, simulate, importing, fetch], ids=lambda one: one.__name__)
def test_help_tells_no_other_exit_codes(program):
    told = program.build_parser().epilog.lower().partition("exit codes:")[2]
    codes = {int(number) for number in re.findall(r"(?<![\w-])(\d+)(?=[ ,])", told)}
    assert codes == CODES if program is cli else {0, 64, 65, 66, 74} <= codes < CODES


def test_sentences_of_errors_are_found_and_spelled(tmp_path, monkeypatch):
    (tmp_path / "module.py").write_text(
        'AGAIN = "run it again"\n'
        "def check(path, words):\n"
        '    advice = f"correct {path}"\n'
        '    raise UsageError(f"{path}: {words}: is wrong; {advice}") from None\n'
        "class Reader:\n"
        "    def read(self, path):\n"
        '        return UsageError(f"{path}: is " + f"gone; {AGAIN}")\n'
        '        raise errors.UsageError(f"{path}: came too late")\n'
        "    def pass_on(self, error):\n"
        '        raise UsageError(f"{error}")\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(reference, "CODE", tmp_path)
    assert reference.sentences()["UsageError"] == {
        "…: is wrong; correct …",
        "…: is gone; run it again",
        "…: came too late",
    }


def test_sentences_stand_below_the_code_of_their_class():
    told = re.split(r"\n## (\d+): ", page("errors.md"))[1:]
    sections = dict(zip(map(int, told[::2]), told[1::2], strict=True))
    assert "no such folder | check the path of the BIDS dataset" in sections[66]
    assert "another run is working on" in sections[73]
    assert set(sections) < CODES


@pytest.mark.parametrize("record", [VisitPaths, PetPaths])
def test_every_image_of_a_visit_is_explained(record):
    told = dict(reference.fields_of(record))
    assert list(told) == [field.name for field in fields(record)]
    assert all(text.endswith(".") for text in told.values())


def test_every_file_that_a_visit_may_have_is_on_the_page():
    visit = reference.example()
    paths = [getattr(visit, field.name) for field in fields(VisitPaths) if field.name != "pets"]
    for pet in visit.pets:
        paths += [*pet.files, *pet.subtracted]
    assert len(paths) == 17
    assert all(reference.name_of(path) in page("outputs.md") for path in paths)


def test_every_label_and_every_column_is_on_the_page():
    told = page("outputs.md")
    assert all(f"| `desc-{name}` |" in told for name in DESCRIPTIONS)
    for dictionary in DICTIONARIES.glob("*.json"):
        columns = read_dictionary(dictionary.stem)
        tables = re.findall(r"(?:^\| `.+\n)+", told, re.MULTILINE)
        assert any(all(f"| `{name}` |" in one for name in columns) for one in tables), dictionary


PAGES = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
CALL = re.compile(r"(?:.*[\s/])?(mri2pet(?:-[a-z]+)?)(?:\.sif)? ([^[{>]+)")
OTHERS = re.compile(r"apptainer (build|test)|datalad|docker build|git clone")


def commands_in(text):
    """List the calls of our programs in a page; those with [ or { are only about usage."""
    lines = re.findall(r"^ {4}(\S.*)$", text.replace("\\\n", " "), re.MULTILINE)
    lines += [" ".join(code.split()) for code in re.findall(r"`(mri2pet[^`]+)`", text)]
    lines = [re.sub(r"\$\{.*?\}", "semi3d-gan", line).partition("#")[0] for line in lines]
    lines = [re.sub('--wrap "(.*)"', r"\1", line).strip() for line in lines]
    lines = [line.replace("--entrypoint mri2pet-fetch mri2pet", "mri2pet-fetch") for line in lines]
    calls = [CALL.fullmatch(line) for line in lines if not OTHERS.search(line)]
    called = [(call[1], shlex.split(call[2])) for call in calls if call]
    return [(name, words) for name, words in called if words[0][0] != "-" or "fetch" in name]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.relative_to(DOCS.parent)}")
def test_command_lines_are_understood(path):
    programs = {program.build_parser().prog: program.build_parser() for program in PROGRAMS}
    for name, words in commands_in(path.read_text(encoding="utf-8")):
        first = next((i for i, word in enumerate(words) if word[0] == "-"), len(words))
        paths = ["BIDS", "OUT", "participant"] if words[0] == "quick" else words[:first]
        told = programs[name].parse_args([*paths, *words[first:]])
        assert getattr(told, "level", "group") in LEVELS, words


def test_command_lines_are_found():
    assert sum(len(commands_in(path.read_text(encoding="utf-8"))) for path in PAGES) > 50
