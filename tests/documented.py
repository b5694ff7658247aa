"""Comparison of the docstrings of workflow factories with their parameters."""

import inspect
import re


def check_parameters(factory):
    """Check that the docstring lists all parameters, in order, except the workflow's name."""
    body = re.search(r"^Parameters\n-+\n(.*?)(?:\n\n|\Z)", inspect.getdoc(factory), re.S | re.M)
    lines = re.findall(r"^(\w.*?)(?: : .*)?$", body[1], re.M) if body else []
    documented = [parameter for line in lines for parameter in line.split(", ")]
    assert documented == [p for p in inspect.signature(factory).parameters if p != "name"]
