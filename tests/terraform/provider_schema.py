"""A provider's schema, read out of the Python package that a generator made from it.

The packages `cdktn-provider-*` hold a JavaScript file for each resource and data source, with every attribute's type,
its nesting, and whether it is required, optional or computed. What comes out has the shape of
`terraform providers schema -json`, for the resources that are asked for.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Block = dict[str, Any]
PRIMITIVES = {"string": "string", "boolean": "bool", "number": "number", "any": "dynamic"}
GETTERS = {
    "String": "string",
    "Boolean": "bool",
    "Number": "number",
    "List": ["list", "string"],
    "NumberList": ["list", "number"],
    "StringMap": ["map", "string"],
    "NumberMap": ["map", "number"],
    "BooleanMap": ["map", "bool"],
}
ATTRIBUTE = re.compile(
    r"^    // (\w+) - computed: (true|false), optional: (true|false), required: (true|false)\n"
    r"(.*?)(?=^    // \w+ - computed:|^    // =====|^}|\Z)",
    re.MULTILINE | re.DOTALL,
)
SYNTAX = re.compile(
    r'^        (?:    )?(\w+): \{\n\s+value: (.*?),\n\s+isBlock: (true|false),\n\s+type: "(\w+)",\n'
    r'\s+storageClassType: "(\w+)",',
    re.MULTILINE | re.DOTALL,
)


def read_schema(package: Path, types: Iterable[str]) -> dict[str, Any]:
    """The schema of a provider with the resources and data sources `types` (`aws_s3_bucket`, `data.aws_region`).

    A type that the provider lacks is left out: terraform then says so.
    """
    wanted = {f"package/lib/{_folder(name)}/index.js" for name in types} | {"package/lib/provider/index.js"}
    (archive,) = (package / "_jsii").glob("*.tgz")
    schema: dict[str, Any] = {"provider": {}, "resource_schemas": {}, "data_source_schemas": {}, "version": ""}
    with tarfile.open(archive) as files:
        for member in files:
            if member.name in wanted:
                _Source(files.extractfile(member).read().decode(), nested="helm" in archive.name).read_into(schema)
    return schema


def _folder(name: str) -> str:
    provider, _, resource = name.removeprefix("data.").partition("_")
    return (f"data-{provider}-{resource}" if name.startswith("data.") else resource).replace("_", "-")


class _Source:
    """One generated file. `nested`: the provider speaks of nested attributes where others have blocks."""

    def __init__(self, text: str, *, nested: bool) -> None:
        self.text, self.nested = text, nested
        classes = re.finditer(r"^class (\w+) extends cdktn\.(\w+) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
        self.classes = {found[1]: (found[2], found[3]) for found in classes}
        functions = re.finditer(r"^function (\w+)ToHclTerraform\(struct\) \{(.*?)^\}", text, re.MULTILINE | re.DOTALL)
        self.functions = {found[1].lower(): found[2] for found in functions}

    def read_into(self, schema: dict[str, Any]) -> None:
        """Add the resource, data source or provider of this file."""
        for kind, body in self.classes.values():
            if kind not in ("TerraformResource", "TerraformDataSource", "TerraformProvider"):
                continue
            syntax = re.search(r"synthesizeHclAttributes\(\) \{(.*?)\n    \}", body, re.DOTALL)[1]
            if kind == "TerraformProvider":
                schema["provider"] = {"version": 0, "block": self.settings(syntax)}
                continue
            name = re.search(r'static tfResourceType = "(\w+)"', body)[1]
            schema["version"] = re.search(r"providerVersion: '([\d.]+)'", body)[1]
            group = "data_source_schemas" if kind == "TerraformDataSource" else "resource_schemas"
            schema[group][name] = {"version": 0, "block": self.block(body, syntax, top=True)}

    def settings(self, syntax: str) -> Block:
        """The block of a provider itself; the generator says of it only what may be written, so all is optional."""
        attributes, blocks = {}, {}
        for name, value, is_block, kind, storage in SYNTAX.findall(syntax):
            if is_block == "false":
                attributes[name] = {"type": _written(kind, storage), "optional": True}
                continue
            inner = self.settings(self.functions[re.search(r"(\w+)ToHclTerraform", value)[1].lower()])
            if self.nested:
                nested_type = {"attributes": inner["attributes"], "nesting_mode": _nesting(kind)}
                attributes[name] = {"nested_type": nested_type, "optional": True}
            else:
                blocks[name] = {"nesting_mode": _nesting(kind), "block": inner}
        return {"attributes": attributes, "block_types": blocks}

    def block(self, body: str, syntax: str, *, top: bool = False) -> Block:
        """A block from its class and the function that writes it."""
        written = {name: (block == "true", kind, storage) for name, _, block, kind, storage in SYNTAX.findall(syntax)}
        attributes: dict[str, Any] = {}
        blocks: dict[str, Any] = {}
        for name, *flags, rest in ATTRIBUTE.findall(body):
            computed, optional, required = (flag == "true" for flag in flags)
            if top and name == "id":
                computed = optional = True
            use = _use(computed=computed, optional=optional, required=required)
            inside = re.search(r'new (\w+)\(this, "', rest)
            is_block, kind, storage = written.get(name, (False, "", ""))
            if not inside or inside[1].startswith("cdktn") or (name in written and not is_block):
                attributes[name] = {"type": _written(kind, storage) if name in written else _gotten(rest), **use}
                continue
            inner = self.inner(inside[1])
            if is_block and self.nested:
                nested_type = {"attributes": inner["attributes"], "nesting_mode": _nesting(kind)}
                attributes[name] = {"nested_type": nested_type, **use}
            elif is_block and not (computed and not required):
                blocks[name] = {"nesting_mode": _nesting(kind), "block": inner}
                if required and kind != "struct":
                    blocks[name]["min_items"] = 1
                if inside[1].endswith("OutputReference") and kind != "struct":
                    blocks[name]["max_items"] = 1
            else:  # written as a block, but a value to terraform
                kind = kind or _container(inside[1], rest)
                attributes[name] = {"type": _of(kind, _as_object(inner)), **use}
        return {"attributes": attributes, "block_types": blocks}

    def inner(self, reference: str) -> Block:
        base = re.sub(r"(List|Map|OutputReference)$", "", reference)
        _, body = self.classes.get(f"{base}OutputReference", ("", ""))
        return self.block(body, self.functions.get(base.lower(), ""))


def _use(*, computed: bool, optional: bool, required: bool) -> dict[str, bool]:
    if required:
        return {"required": True}
    return {name: True for name, holds in (("optional", optional), ("computed", computed or not optional)) if holds}


def _nesting(kind: str) -> str:
    return "single" if kind == "struct" else kind


def _written(kind: str, storage: str) -> Any:
    """A type from how it is written: `list`, `stringList` is a list of strings."""
    found = re.fullmatch(r"(string|boolean|number|any)(List|Map)?(List|Map)?", storage)
    if not found:
        return "dynamic"
    primitive = PRIMITIVES[found[1]]
    if kind == "simple" or not found[2]:
        return primitive if kind == "simple" else ["map" if kind == "struct" else kind, primitive]
    if found[3]:
        return [kind if kind in ("list", "set", "map") else "list", [found[3].lower(), primitive]]
    return [kind, primitive]


def _gotten(rest: str) -> Any:
    """The type of an attribute that is only read."""
    getter = re.search(r"(tolist\()?this\.get(\w+)Attribute\(", rest)
    if getter and getter[2] in GETTERS:
        return ["set", "string"] if getter[1] and getter[2] == "List" else GETTERS[getter[2]]
    made = re.search(r'new cdktn\.(\w+)\(this, "\w+"', rest)
    return GETTERS.get(made[1], "dynamic") if made else "dynamic"


def _container(reference: str, rest: str) -> str:
    if reference.endswith("OutputReference"):
        return ""
    if reference.endswith("Map"):
        return "map"
    return "set" if re.search(r'new \w+\(this, "\w+", true\)', rest) else "list"


def _of(container: str, kind: Any) -> Any:
    if not container:
        return kind
    return [container if container in ("list", "set", "map") else "list", kind]


def _as_object(block: Block) -> Any:
    fields = {name: attribute.get("type", "dynamic") for name, attribute in block["attributes"].items()}
    for name, nested in block["block_types"].items():
        container = "" if nested["nesting_mode"] == "single" else nested["nesting_mode"]
        fields[name] = _of(container, _as_object(nested["block"]))
    return ["object", fields]
