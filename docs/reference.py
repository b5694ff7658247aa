"""Write the pages of the documentation that are generated from the code: options, errors, outputs.

Usage: ``python docs/reference.py``.
"""

import argparse
import ast
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

from bids_app import cli, errors, fetch, importing, quick, simulate
from bids_app.derivatives.description import DESCRIPTIONS, TEXTS
from bids_app.derivatives.detections import anomaly_paths, describe
from bids_app.derivatives.paths import SUBTRACTED, PetPaths, VisitPaths, visit_paths
from bids_app.derivatives.sidecars import Space, read_dictionary
from bids_app.imaging.verdict import PET_CRITERIA, T1W_CRITERIA
from bids_app.lifeline import CODE_OF_SIGNAL, STOPPING
from bids_app.settings import LEVELS, USED_BY, Settings
from bids_app.visit import Scan, Visit

DOCS = Path(__file__).parent
CODE = DOCS.parent / "bids_app"
MADE = "<!-- Written by docs/reference.py from the code: change that, and run it again. -->\n\n"
UNKNOWN = {"…": "any other message that ends with this advice"}
FEWEST_LETTERS = 8  # in a sentence; shorter ones only pass on the sentence of another error


def row(*cells: str) -> str:
    """Format a row of a table."""
    return f"| {' | '.join(cells)} |\n"


def table(*heads: str, rows: Iterable[tuple[str, ...]]) -> str:
    """Format a table."""
    return "\n" + row(*heads) + "|" + "---|" * len(heads) + "\n" + "".join(row(*r) for r in rows)


def plain(text: str) -> str:
    r"""Escape the special characters of Markdown in a text.

    Examples
    --------
    >>> plain("a|b of <set>, *.tsv, _x_")
    'a\\|b of &lt;set&gt;, \\*.tsv, \\_x\\_'
    """
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([|*_`\[\]\\])", r"\\\1", escaped)


def code(text: str) -> str:
    """Format text as code for a cell of a table."""
    return "`" + text.replace("|", "\\|") + "`"


# --- options


def values_of(action: argparse.Action) -> str:
    """Describe how the values of an argument are written."""
    named = action.metavar
    if action.choices is not None and named is None:
        named = "{" + ",".join(map(str, action.choices)) + "}"
    if named is None:
        named = action.dest.upper()
    if isinstance(named, tuple):
        return " ".join(named)
    if isinstance(action.nargs, int):
        return " ".join([named] * action.nargs)
    return {"+": f"{named} …", "?": f"[{named}]"}.get(str(action.nargs), named)


def spelling_of(action: argparse.Action) -> str:
    """Describe how an argument is written, without its spelling with ``_``."""
    flags = [flag for flag in action.option_strings if "_" not in flag]
    if not flags:
        return code(str(action.metavar or action.dest.upper()))
    *others, last = flags
    values = "" if action.nargs == 0 else f" {values_of(action)}"
    return ", ".join([*map(code, others), code(f"{last}{values}")])


def levels_of(action: argparse.Action) -> str:
    """List the levels that use an option."""
    using = [levels for levels, names in USED_BY.items() if action.dest in names.split()]
    return ", ".join(using[0].split()) if using else "all"


def meaning_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return the help of an argument, with its choices if its spelling does not show them."""
    text = plain(parser._get_formatter()._expand_help(action))
    if action.choices is not None and action.metavar is not None and action.option_strings:
        text += "; one of " + ", ".join(code(str(choice)) for choice in action.choices)
    return text


def options_of(parser: argparse.ArgumentParser, *, levels: bool) -> str:
    """Format the tables of a parser, one for each group of its arguments."""
    text = ""
    for group in parser._action_groups:
        actions = [one for one in group._group_actions if one.help != argparse.SUPPRESS]
        if not actions:
            continue
        title = {"options": "general"}.get(str(group.title), str(group.title))
        text += f"\n### {parser.prog}: {title}\n"
        told = levels and any(one.option_strings for one in actions) and title != "general"
        heads = ("option", "levels", "what it does") if told else ("option", "what it does")
        text += table(
            *heads,
            rows=[
                (spelling_of(one), *([levels_of(one)] if told else []), meaning_of(parser, one))
                for one in actions
            ],
        )
    return text


def program(parser: argparse.ArgumentParser, *, levels: bool = False) -> str:
    """Format the section of a program."""
    usage = parser.usage or f"{parser.prog} {' '.join(p for p in places(parser))} [options]"
    text = f"\n## {parser.prog}\n\n    {re.sub(' +', ' ', usage)}\n\n{plain(parser.description)}\n"
    return text + options_of(parser, levels=levels)


def places(parser: argparse.ArgumentParser) -> Iterator[str]:
    """List the positional arguments, and the options that have to be given."""
    for one in parser._actions:
        if not one.option_strings:
            yield str(one.metavar or one.dest.upper())
        elif one.required:
            yield f"{one.option_strings[0]} {values_of(one)}"


def options() -> str:
    """Return the text of docs/options.md."""
    return (
        f"{MADE}# Options\n\nAll options of all programs, as `mri2pet --help-all` and the `--help` "
        "of the other programs print them. [Usage](usage.md) says which of them you need for what. "
        f"The column *levels* says which of the levels {', '.join(LEVELS)} use an option; other "
        "levels ignore it, with a warning. Underscores in options are accepted, too "
        "(`--participant_label`). [Exit codes](errors.md) are the same for all programs.\n"
        + program(cli.build_parser(), levels=True)
        + program(quick.build_parser())
        + "\nIts options are those of `mri2pet`, above, that the level participant uses.\n"
        + program(simulate.build_parser())
        + program(importing.build_parser())
        + program(fetch.build_parser())
    )


# --- errors


ENDED = (
    "Give the same command again: mri2pet resumes where it stopped; mri2pet-simulate needs its "
    "folder emptied first."
)


def exit_codes() -> list[tuple[str, str, str]]:
    """List the exit codes, with their meaning and what to do."""
    codes = {0: ("Done.", "Look at the reports.")}
    for one in error_classes():
        meaning, _, remedy = (one.__doc__ or "").partition("\n")
        codes[one.exit_code] = meaning, in_markdown(remedy)
    codes[cli.UNKNOWN_LEVEL] = (
        "There is no such level.",
        f"The levels are {', '.join(map(code, LEVELS[:-1]))} and {code(LEVELS[-1])}.",
    )
    for one in STOPPING:
        key = "Ctrl-C (SIGINT)" if one == signal.SIGINT else one.name
        codes[CODE_OF_SIGNAL + one] = f"Ended by {key}.", ENDED
    return [(str(number), *told) for number, told in sorted(codes.items())]


def error_classes() -> list[type[errors.Mri2petError]]:
    """List all classes of errors by exit code."""
    found = [errors.Mri2petError, *errors.Mri2petError.__subclasses__()]
    return sorted(found, key=lambda one: one.exit_code)


def in_markdown(text: str) -> str:
    """Convert the text of a docstring to one line of Markdown."""
    line = " ".join(text.split()).replace("``", "`")
    return re.sub(r"docs/([\w-]+)\.md", r"[how](\1.md)", line)


def sentences() -> dict[str, set[str]]:
    """Find all sentences of errors in the code, by the name of the error class."""
    names = {one.__name__ for one in error_classes()}
    found: dict[str, set[str]] = {name: set() for name in names}
    for path in sorted(CODE.rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        outer = strings_in(module.body)
        for scope, call in calls_in(module):
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))  # errors.UsageError
            if name in names and call.args:
                told = spell(call.args[0], outer | strings_in(ast.walk(scope)))
                if len(re.sub(r"[^A-Za-z]", "", told)) >= FEWEST_LETTERS:
                    found[name].add(re.sub(r"…([:,]? ?…)+", "…", told))
    return found


def calls_in(module: ast.Module) -> Iterator[tuple[ast.AST, ast.Call]]:
    """Yield each call with the function of the module, or of a class, that contains it."""
    scopes: list[ast.AST] = []
    for node in module.body:
        scopes += node.body if isinstance(node, ast.ClassDef) else [node]
    for scope in scopes:
        yield from ((scope, node) for node in ast.walk(scope) if isinstance(node, ast.Call))


def strings_in(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """Find the names that are assigned a single text, which may be an f-string."""
    told: dict[str, list[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant | ast.JoinedStr):
                told.setdefault(target.id, []).append(spell(value, {}))
    return {name: texts[0] for name, texts in told.items() if len(texts) == 1}


def spell(node: ast.AST, known: Mapping[str, str]) -> str:
    """Return the text of an expression, with ``…`` for parts that are known only at run time."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(spell(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return spell(node.value, known)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return spell(node.left, known) + spell(node.right, known)
    if isinstance(node, ast.Name):
        return known.get(node.id, "…")
    return "…"


def parted(sentence: str) -> tuple[str, str]:
    """Split a sentence into what to do, which follows the last semicolon, and what is wrong.

    Examples
    --------
    >>> parted("…: no such file; check its path")
    ('check its path', '…: no such file')
    """
    wrong, semicolon, remedy = sentence.rpartition("; ")
    return (remedy, wrong) if semicolon else ("", sentence)


def messages(found: Iterable[str]) -> str:
    """Format the sentences of an error class, grouped by what to do."""
    pairs = sorted(map(parted, found), key=lambda pair: (not pair[0], pair))
    return table(
        "the message",
        "what to do",
        rows=[
            ("<br>".join(UNKNOWN.get(wrong, plain(wrong)) for _, wrong in group), plain(remedy))
            for remedy, group in groupby(pairs, lambda pair: pair[0])
        ],
    )


def explained_errors() -> str:
    """Return the text of docs/errors.md."""
    text = (
        f"{MADE}# Exit codes and messages\n\n"
        "Every program ends with one of these codes (those of BEP027 for BIDS Apps). Every message "
        "names the file or the option, says what is wrong with it and, after the last semicolon, "
        "what to do. Those that come up most are explained in [Questions and "
        "errors](faq.md#errors-that-come-up-most).\n"
        + table("code", "meaning", "what to do", rows=exit_codes())
        + "\nBelow are the messages of each code, grouped by what they tell you to do; … stands "
        "for what differs from run to run. A participant who fails does not end a run: the "
        "exit code of the run is then 1, or that of the message if nobody is left.\n"
    )
    found = sentences()
    for one in error_classes():
        if found[one.__name__]:
            meaning = (one.__doc__ or "").partition("\n")[0]
            text += f"\n## {one.exit_code}: {meaning.rstrip('.')}\n" + messages(found[one.__name__])
    return text


# --- outputs


SUBJECT = "sub-X[_ses-Y]"


def fields_of(record: type) -> list[tuple[str, str]]:
    """Read the descriptions of fields from the docstring of a dataclass."""
    _, _, body = (record.__doc__ or "").partition("----------\n")
    found = re.findall(r"^    (\w+) : .*\n((?:        .*\n?)+)", body, re.MULTILINE)
    return [(name, in_markdown(text)) for name, text in found]


def name_of(path: Path) -> str:
    """Format a path as folder and file name, with ``…`` for the participant."""
    return code(f"{path.parent.name}/{path.name.replace('sub-X_', '…_')}")


def example() -> VisitPaths:
    """Return the paths of the results of an example visit with a PET."""
    scan = Scan(Path("sub-X_pet.nii.gz"), "X", None, ())
    return visit_paths(Path("OUT"), Visit("X", None, scan, (scan,)), Settings.template, 1.0)


def files_of_visit() -> list[tuple[str, str]]:
    """List the images of a visit with their descriptions."""
    visit = example()
    (pet,) = visit.pets
    rows = [
        (name_of(getattr(visit, name)), text)
        for name, text in fields_of(VisitPaths)
        if name != "pets"
    ]
    rows += [(name_of(getattr(pet, name)), text) for name, text in fields_of(PetPaths)]
    for name in ("coverage_in_template", "coverage_in_t1w"):
        rows.append((name_of(getattr(pet, name)), in_markdown(getattr(PetPaths, name).__doc__)))
    subtracted = zip(pet.subtracted, SUBTRACTED, strict=True)
    return rows + [(name_of(path), f"{DESCRIPTIONS[of]}.") for path, of in subtracted]


def files_of_detector() -> list[tuple[str, str]]:
    """List the results of a detector for a PET with their descriptions."""
    (pet,) = example().pets
    space = Space(Settings.template, 1.0, reference="")
    made = anomaly_paths(Path("OUT"), pet.in_template, "DETECTOR", space)
    told = {
        "statmap": "Anomaly map: a score for each voxel; higher is more abnormal",
        "labels": "Clusters as labels: a voxel's value is the rank of its cluster",
        "table": "Table of the clusters",
    }
    grids = {"": "the template", "_in_t1w": "the T1w"}
    return [
        (
            name_of(path).replace("DETECTOR", "<detector>"),
            f"{told[name.removesuffix('_in_t1w')]}; grid of "
            f"{grids['_in_t1w' if name.endswith('_in_t1w') else '']}.",
        )
        for name, path in made.items()
    ]


TABLES = {  # file → names of its dictionaries, or its key in ``detections``
    "desc-registration_metrics.tsv": ("registration_metrics",),
    "pet/…_desc-regions_pet.tsv": ("regions",),
    "table1.tsv": ("table1",),
    "table1_subjects.tsv": ("table1_subjects",),
    "table1_tests.tsv": ("table1_tests",),
    "clusters.tsv": "all_clusters",
    "pet/…_desc-<detector>_clusters.tsv": "clusters",
    "pet/…_space-T1w_desc-<detector>_clusters.tsv": "clusters_in_t1w",
    "detection_curve.tsv": "detection_curve",
    "detection_tests.tsv": "detection_tests",
    "detection_froc.tsv": "detection_froc",
    "synthetic_controls.tsv": "synthetic_controls",
    "detectors/<set>/control_clusters.tsv": "control_clusters",
    "detectors/<set>/control_maps.tsv": "control_maps",
    "logs/…_resources.tsv": ("resources",),
    "participants.tsv of mri2pet-simulate": ("simulated_participants",),
    "derivatives/truth/lesions.tsv of mri2pet-simulate": ("simulated_lesions",),
}


def columns_of(told: str | tuple[str, ...]) -> list[tuple[str, str, str]]:
    """List the columns of a table: name, unit and description."""
    dictionary = describe(told) if isinstance(told, str) else read_dictionary(*told)
    rows = []
    for name, entry in dictionary.items():
        levels = entry.get("Levels", {})
        text = plain(str(entry["Description"]))
        for level, meaning in levels.items() if isinstance(levels, dict) else ():
            text += f"<br>{code(level)}: {plain(str(meaning))}"
        rows.append((code(name), plain(str(entry.get("Units", ""))), text))
    return rows


FIELDS = {
    "Registration": "T1w and real PET: how the image was registered, or whose registration was "
    "taken; similarity before and after; `Verdict`, its `VerdictReasons`, and the measures below",
    "BrainCoverage": "real PET: share of the brain that it covers, 0 to 1; `BrainNotCovered` "
    "says which part is missing, if one is",
    "FramesUsed": "real PET: the frames that were averaged, from 0; `FrameDurationsUsed` has their "
    "durations in s",
    "WindowAfterInjection": "real PET: when the first of these frames begins and the last ends, in "
    "s after injection; absent if the raw sidecar lacks `FrameTimesStart`, `FrameDuration` or "
    "`InjectionStart`",
    "ReadingNotes": "what was unusual in the file that was read, and how it was dealt with",
    "SourceSHA256": "T1w and real PET in the space of the template: SHA-256 of the raw file, by "
    "which copies of somebody else's image are recognised",
    "Sloppy": "true for results of `--sloppy`, which are for testing only; otherwise absent",
    "TakenFrom": "the app whose result was used instead of computing it (`-d`)",
}


def measures() -> str:
    """Return the table of what the verdicts on registrations rest on."""
    return table(
        "measure",
        "of",
        "`doubt` below",
        "`fail` below",
        "the reason given",
        rows=[
            (code(one.measure), kind, f"{one.doubt:g}", f"{one.fail:g}", plain(said))
            for kind, criteria in (("T1w", T1W_CRITERIA), ("PET", PET_CRITERIA))
            for one in criteria
            for said in [re.sub(r"{.*?}", "…", one.sentence)]
        ],
    )


def outputs() -> str:
    """Return the text of docs/outputs.md."""
    about = (TEXTS / "README.md").read_text(encoding="utf-8")
    bullets = about[about.index("\n- `") : about.index("\n\nImages on the grid")]
    scales = " ".join(about[about.index("Images on the grid") :].split())
    text = (
        f"{MADE}# What is written\n\nThe output folder is a BIDS derivative dataset. Besides the "
        f"images in the participants' folders, it holds:\n{bullets}\n\n{scales}\n\n"
        "`participants.tsv` repeats that of the raw dataset "
        "([Usage](usage.md#which-images-are-used)); "
        "`dataset_description.json` and `README.md` say what the dataset is and what made it. "
        "`.work/` holds intermediate files, unless `-w` names another place; it may be deleted.\n"
        "\n## Images of a participant\n\n"
        f"In `sub-X/` or, with sessions, `sub-X/ses-Y/`; … is `{SUBJECT}`. `space-` names the "
        "template and `res-` the size of voxels in mm. The names of real PET keep `rec-` and "
        "`run-` of the original. Each image has a sidecar (`.json`).\n"
        + table("file", "what it is", rows=files_of_visit())
        + "\n## Anomaly maps of a patient\n\nOne of each per detector, for every PET that "
        "`group` maps; and for the lesions that are known, `anat/…_label-L_mask.nii.gz` on the "
        "same two grids. Each label image has a table of its labels beside it (`_dseg.tsv`). "
        "Controls have maps and label images on the grid of the template only.\n"
        + table("file", "what it is", rows=files_of_detector())
        + "\n## What desc- means\n\nThe same table is in `descriptions.tsv` of the output.\n"
        + table(
            "label",
            "what it is",
            rows=[(code(f"desc-{name}"), plain(told)) for name, told in DESCRIPTIONS.items()],
        )
        + "\n## Fields of sidecars\n\nBesides those of BIDS, sidecars have these fields.\n"
        + table("field", "what it says", rows=[(code(name), told) for name, told in FIELDS.items()])
        + "\nA registration is in doubt, or has failed, if one of its measures is below a bound.\n"
        + measures()
        + "\n## Columns of tables\n\nEach table (`.tsv`) has its data dictionary beside it "
        "(`.json`), with the same words.\n"
    )
    for name, told in TABLES.items():
        text += f"\n### {plain(name)}\n" + table(
            "column", "unit", "what it is", rows=columns_of(told)
        )
    return text


PAGES = {"options.md": options, "errors.md": explained_errors, "outputs.md": outputs}

if __name__ == "__main__":
    for name, write in PAGES.items():
        (DOCS / name).write_text(write(), encoding="utf-8")
