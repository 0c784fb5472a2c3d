"""A Terraform provider with a real schema and no cloud behind it. Terraform starts it (plugin protocol 6).

Plans say "known after apply" where the real provider would. Data sources answer what DATA holds. An apply makes up
the values that a cloud would have chosen, alike for the same resource; it reaches nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import tf.provider
import tf.runner
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc as rpc

NESTING = {"single": 1, "list": 2, "set": 3, "map": 4}
UNKNOWN = msgpack.ExtType(0, b"\x00")
ACCOUNT, REGION = "123456789012", "us-east-1"
DATA = {
    "aws_caller_identity": {"account_id": ACCOUNT, "arn": f"arn:aws:iam::{ACCOUNT}:root", "user_id": "AIDASTUB"},
    "aws_partition": {"partition": "aws", "dns_suffix": "amazonaws.com", "reverse_dns_prefix": "com.amazonaws"},
    "aws_region": {"region": REGION, "name": REGION},
    "aws_availability_zones": {"names": [f"{REGION}{zone}" for zone in "abcd"]},
    "aws_eks_addon_version": {"version": "v1.0.0-eksbuild.1"},
}
# What a cloud answers where a made-up value would mean something: no rule, and no other target of a route.
ANSWERS = {
    "aws_default_security_group": {"ingress": [], "egress": []},
    "aws_route": {"instance_id": "", "instance_owner_id": "", "network_interface_id": "", "origin": "CreateRoute"},
}


class Stub(rpc.ProviderServicer):
    """Answers from a schema as `provider_schema.read_schema` gives it."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema

    def GetProviderSchema(self, request, context):
        response = pb.GetProviderSchema.Response(provider=_schema(self.schema["provider"]))
        for name, resource in self.schema["resource_schemas"].items():
            response.resource_schemas[name].CopyFrom(_schema(resource))
        for name, source in self.schema["data_source_schemas"].items():
            response.data_source_schemas[name].CopyFrom(_schema(source))
        return response

    def GetMetadata(self, request, context):
        resources = [pb.GetMetadata.ResourceMetadata(type_name=name) for name in self.schema["resource_schemas"]]
        sources = [pb.GetMetadata.DataSourceMetadata(type_name=name) for name in self.schema["data_source_schemas"]]
        return pb.GetMetadata.Response(resources=resources, data_sources=sources)

    def ValidateProviderConfig(self, request, context):
        return pb.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request, context):
        return pb.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, request, context):
        return pb.ValidateDataResourceConfig.Response()

    def ConfigureProvider(self, request, context):
        return pb.ConfigureProvider.Response()

    def GetFunctions(self, request, context):
        return pb.GetFunctions.Response()

    def StopProvider(self, request, context):
        return pb.StopProvider.Response()

    def UpgradeResourceState(self, request, context):
        return pb.UpgradeResourceState.Response(upgraded_state=pb.DynamicValue(json=request.raw_state.json))

    def ReadResource(self, request, context):
        return pb.ReadResource.Response(new_state=request.current_state, private=request.private)

    def ReadDataSource(self, request, context):
        state = _unpack(request.config)
        answers = DATA.get(request.type_name, {})
        answered = {name: answers.get(name, value) for name, value in state.items()}
        return pb.ReadDataSource.Response(state=_pack(answered))

    def PlanResourceChange(self, request, context):
        planned = _unpack(request.proposed_new_state)
        if planned is not None and _unpack(request.prior_state) is None:
            _leave_open(self.schema["resource_schemas"][request.type_name]["block"], planned)
        return pb.PlanResourceChange.Response(planned_state=_pack(planned))

    def ApplyResourceChange(self, request, context):
        state = _unpack(request.planned_state)
        if state is not None:
            about = hashlib.sha256(msgpack.packb(state, default=str)).hexdigest()[:12]
            _make_up(self.schema["resource_schemas"][request.type_name]["block"], state, request.type_name, about)
        return pb.ApplyResourceChange.Response(new_state=_pack(state))


def _leave_open(block: dict[str, Any], values: dict[str, Any]) -> None:
    """Mark as unknown what the cloud chooses, here and in the blocks inside."""
    for name, attribute in block["attributes"].items():
        if attribute.get("computed") and values.get(name) is None:
            values[name] = UNKNOWN
    for inner, each in _inside(block, values):
        _leave_open(inner, each)


def _make_up(block: dict[str, Any], values: dict[str, Any], resource: str, about: str) -> None:
    """Put something in every such place."""
    for name in [name for name, value in values.items() if value == UNKNOWN]:
        made_up = _made_up(resource, name, block["attributes"][name].get("type"), about)
        values[name] = ANSWERS.get(resource, {}).get(name, made_up)
    for inner, each in _inside(block, values):
        _make_up(inner, each, resource, about)


def _inside(block: dict[str, Any], values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Blocks within, with their values; those of sets are left alone, as terraform tells them apart by their values."""
    for name, nested in block["block_types"].items():
        if nested["nesting_mode"] == "list":
            for each in values.get(name) or []:
                yield nested["block"], each


def _made_up(resource: str, name: str, kind: Any, about: str) -> Any:
    """What a cloud might have answered."""
    if kind == "string":
        service, _, rest = resource.removeprefix("aws_").partition("_")
        if name == "arn" or name.endswith("_arn"):
            return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{rest}/{about}"
        return "c3R1Yg==" if name == "data" else f"{name}-{about}"  # a certificate is base64
    if kind == "number":
        return 0
    if kind == "bool":
        return False
    if isinstance(kind, list) and kind[0] in ("list", "set"):
        return [_made_up(resource, name, kind[1], about)] if kind[1] != "dynamic" else []
    if isinstance(kind, list) and kind[0] == "object":
        return {field: _made_up(resource, field, inner, about) for field, inner in kind[1].items()}
    return {} if isinstance(kind, list) and kind[0] == "map" else None


def _unpack(value: pb.DynamicValue) -> Any:
    return msgpack.unpackb(value.msgpack, strict_map_key=False) if value.msgpack else None


def _pack(value: Any) -> pb.DynamicValue:
    return pb.DynamicValue(msgpack=msgpack.packb(value))


def _schema(schema: dict[str, Any]) -> pb.Schema:
    return pb.Schema(version=schema["version"], block=_block(schema["block"]))


def _block(block: dict[str, Any]) -> pb.Schema.Block:
    nested = [
        pb.Schema.NestedBlock(
            type_name=name,
            block=_block(each["block"]),
            nesting=NESTING[each["nesting_mode"]],
            min_items=each.get("min_items", 0),
            max_items=each.get("max_items", 0),
        )
        for name, each in block["block_types"].items()
    ]
    attributes = [_attribute(name, each) for name, each in block["attributes"].items()]
    return pb.Schema.Block(attributes=attributes, block_types=nested)


def _attribute(name: str, attribute: dict[str, Any]) -> pb.Schema.Attribute:
    use = {flag: attribute.get(flag, False) for flag in ("required", "optional", "computed")}
    made = pb.Schema.Attribute(name=name, **use)
    if nested := attribute.get("nested_type"):
        made.nested_type.nesting = NESTING[nested["nesting_mode"]]
        made.nested_type.attributes.extend(_attribute(inner, each) for inner, each in nested["attributes"].items())
    else:
        made.type = json.dumps(attribute["type"]).encode()
    return made


class _Named:
    def full_name(self) -> str:
        return "stub"


if __name__ == "__main__":
    stub = Stub(json.loads(Path(f"{Path(sys.argv[0]).resolve()}.json").read_text(encoding="utf-8")))
    tf.provider.ProviderServicer = lambda _provider: stub
    tf.runner.run_provider(_Named(), sys.argv)
