"""What a Terraform plan provisions, as far as it costs money: `terraform show -json PLAN`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tomoray.errors import Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Machines of one purpose, as nodes.tf names them."""

    name: str
    spot: bool
    instance_types: tuple[str, ...]
    smallest: int
    largest: int
    gpu: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Provisioned:
    """What stands there from the first hour on.

    Attributes:
        counts: resources by type, those that cost by the hour or the month.
        endpoint_zones: interface endpoints times their zones.
        disk_gb: disks of the nodes that always run.
        cache_gb: of FSx.
        groups: node groups by name.
    """

    counts: dict[str, int] = field(default_factory=dict)
    endpoint_zones: int = 0
    disk_gb: float = 0
    cache_gb: float = 0
    groups: dict[str, Group] = field(default_factory=dict)


def read_plan(path: str) -> Provisioned:
    """What the plan in this file provisions.

    Raises:
        Usage: the file is not there, or no plan in JSON.
    """
    try:
        plan = json.loads(Path(path).read_text(encoding="utf-8"))
        planned = plan["planned_values"]
        root = planned["root_module"]
    except FileNotFoundError as error:
        raise Usage(f"no plan at {path}; make one: terraform plan -out=plan && terraform show -json plan") from error
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise Usage(f"{path} is no plan in JSON; make one: terraform show -json plan > plan.json") from error
    return provisioned(list(_resources(root)), planned.get("outputs", {}))


def provisioned(resources: list[dict[str, Any]], outputs: dict[str, Any]) -> Provisioned:
    """The same of resources and outputs of a plan."""
    by_type: dict[str, list[dict[str, Any]]] = {}
    for resource in resources:
        by_type.setdefault(resource["type"], []).append(resource.get("values", {}))
    zones = sum(_zone(subnet) for subnet in by_type.get("aws_subnet", []))
    interfaces = [each for each in by_type.get("aws_vpc_endpoint", []) if each.get("vpc_endpoint_type") == "Interface"]
    node_groups = {each["node_group_name"]: each for each in by_type.get("aws_eks_node_group", [])}
    disks = {each["name"]: _disk_gb(each) for each in by_type.get("aws_launch_template", [])}
    named = outputs.get("groups", {}).get("value") or {}
    groups = {name: _named_group(name, each) for name, each in named.items()} or {
        name: _node_group(name, each) for name, each in node_groups.items()
    }
    return Provisioned(
        counts={kind: len(found) for kind, found in by_type.items()},
        endpoint_zones=len(interfaces) * zones,
        disk_gb=sum(
            group.smallest * next((gb for template, gb in disks.items() if template.endswith(f"-{name}")), 0.0)
            for name, group in groups.items()
        ),
        cache_gb=sum(
            float(each.get("storage_capacity") or 0) for each in by_type.get("aws_fsx_lustre_file_system", [])
        ),
        groups=groups,
    )


def _resources(module: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in module.get("resources", []):
        if resource.get("mode", "managed") == "managed":
            yield resource
    for child in module.get("child_modules", []):
        yield from _resources(child)


def _zone(subnet: dict[str, Any]) -> bool:
    """Whether a subnet is a private one: there is one for each zone."""
    return "kubernetes.io/role/internal-elb" in (subnet.get("tags") or {})


def _disk_gb(template: dict[str, Any]) -> float:
    return sum(
        float(disk.get("volume_size") or 0)
        for mapping in template.get("block_device_mappings") or []
        for disk in mapping.get("ebs") or []
    )


def _named_group(name: str, group: dict[str, Any]) -> Group:
    return Group(
        name=name,
        spot=group["capacity"] == "spot",
        instance_types=tuple(group["instance_types"]),
        smallest=int(group["min"]),
        largest=int(group["max"]),
        gpu=bool(group["gpu"]),
    )


def _node_group(name: str, group: dict[str, Any]) -> Group:
    scaling = group["scaling_config"][0]
    return Group(
        name=name,
        spot=group.get("capacity_type") == "SPOT",
        instance_types=tuple(group.get("instance_types") or ()),
        smallest=int(scaling["min_size"]),
        largest=int(scaling["max_size"]),
        gpu="NVIDIA" in (group.get("ami_type") or ""),
    )
