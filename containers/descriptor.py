"""Write mri2pet.boutiques.json, the Boutiques descriptor, from the parser of the command line.

python containers/descriptor.py > containers/mri2pet.boutiques.json
"""

import argparse
import json
import sys
from importlib.metadata import version

from bids_app.cli import build_parser
from bids_app.settings import LEVELS

NOT_FOR_PIPELINES = {
    "help",
    "help_all",
    "version",
    "self_test",
    "print_completion",
}  # these only print information
FOLDERS_AND_FILES = {"absolute_path", "_named_path"}


def kind_of(action: argparse.Action) -> dict[str, object]:
    """Return the type of an argument, and its constraints, as fields of Boutiques."""
    if action.nargs == 0:
        return {"type": "Flag"}
    name = getattr(action.type, "__name__", "")
    if name in FOLDERS_AND_FILES and action.dest != "derivatives":  # its values are NAME=PATH
        kind: dict[str, object] = {"type": "File"}
    elif name == "float":
        kind = {"type": "Number"}
    elif name == "int":
        kind = {"type": "Number", "integer": True}
    else:
        kind = {"type": "String"}
    if action.choices is not None:
        kind["value-choices"] = list(action.choices)
    if isinstance(action.nargs, int):
        kind |= {"list": True, "min-list-entries": action.nargs, "max-list-entries": action.nargs}
    elif action.nargs == "+":
        kind |= {"list": True, "min-list-entries": 1}
    return kind


def input_of(action: argparse.Action) -> dict[str, object]:
    """Return the Boutiques input that describes an argument."""
    flag = next((flag for flag in action.option_strings if flag.startswith("--")), "")
    name = flag.lstrip("-").replace("-", "_") or action.dest
    told = {
        "id": name,
        "name": name.replace("_", " "),
        "description": (action.help or "").replace("%%", "%"),
        "value-key": f"[{name.upper()}]",
        "optional": not action.required,
        **kind_of(action),
    }
    if action.dest == "level":
        told["value-choices"] = list(LEVELS)
    if flag:
        told["command-line-flag"] = flag
    return told


def describe(parser: argparse.ArgumentParser) -> dict[str, object]:
    """Return the descriptor of the app, in the schema of Boutiques 0.5.

    Options come after the positional arguments, so that an option with several values cannot
    consume a folder.
    """
    actions = [action for action in parser._actions if action.dest not in NOT_FOR_PIPELINES]
    ordered = [action for action in actions if action.required] + [
        action for action in actions if not action.required
    ]
    inputs = [input_of(action) for action in ordered]
    number = version("mri2pet")
    return {
        "name": "mri2pet",
        "description": parser.description,
        "tool-version": number,
        "schema-version": "0.5",
        "url": "https://github.com/mri2pet/mri2pet",
        "tags": {"domain": ["neuroinformatics", "mri", "pet"], "toolType": ["bids-app"]},
        "container-image": {"type": "docker", "image": f"mri2pet:{number}"},
        "command-line": " ".join(["mri2pet", *(str(item["value-key"]) for item in inputs)]),
        "inputs": inputs,
        "output-files": [
            {
                "id": "output",
                "name": "output",
                "description": "BIDS derivatives, reports, generators and detectors",
                "path-template": "[OUTPUT_DIR]",
            }
        ],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe(build_parser()), indent=2, ensure_ascii=False) + "\n")
