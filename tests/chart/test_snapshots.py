"""What a change to the chart changes: `make snapshots` writes these files anew, and git shows the difference."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SNAPSHOTS = Path(__file__).parent / "snapshots"
SHIPPED = ("values.yaml", "values-laptop.yaml", "values-eks-gpu.yaml", "values-airgapped.yaml")
Render = Callable[..., list[dict[str, Any]]]


def names_of_everything(render: Render) -> str:
    """The objects of each values file, by kind."""
    lines = []
    for values in (*SHIPPED, "everything.yaml", "once.yaml"):
        lines.append(f"{values}:")
        lines += sorted(f"  {each['kind']} {each['metadata']['name']}" for each in render(values))
    return "\n".join(lines) + "\n"


def the_laptop_in_full(render: Render) -> str:
    """The smallest release, every line of it."""
    return yaml.safe_dump_all(render("values-laptop.yaml"), sort_keys=False, width=120)


@pytest.mark.parametrize(("name", "made"), [("objects.txt", names_of_everything), ("laptop.yaml", the_laptop_in_full)])
def test_is_as_it_was(name: str, made: Callable[[Render], str], render: Render) -> None:
    now = made(render)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        (SNAPSHOTS / name).write_text(now, encoding="utf-8")
    assert (SNAPSHOTS / name).read_text(encoding="utf-8") == now, "if that is as it should be: make snapshots"
