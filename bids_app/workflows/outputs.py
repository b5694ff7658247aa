"""Where results go, and what is told of them: given to graphs from outside."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nipype.pipeline.engine import Node

from bids_app.interfaces.derivatives import SaveDerivative


@dataclass(frozen=True)
class Output:
    """Where a result and its sidecar go, and what is known of it beforehand."""

    path: Path
    sidecar_path: Path
    sidecar: Mapping[str, object]


def save_node(output: Output, name: str) -> Node:
    """Make the node that puts a result, its ``in_file``, in its place."""
    node = SaveDerivative(
        out_file=str(output.path),
        sidecar_file=str(output.sidecar_path),
        sidecar=dict(output.sidecar),
    )
    return Node(node, name=f"save_{name}")
