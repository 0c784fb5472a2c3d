"""Whether AWS would allow a request, by the policies it is asked with. Wildcards and the conditions that we use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Statement = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call. `context` holds condition keys by name; `principal` is who calls."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)
    principal: Mapping[str, str] = field(default_factory=dict)


def allowed(request: Request, *, identity: Iterable[str] = (), resource: Iterable[str] = ()) -> bool:
    """Whether policies of the caller or of the resource (JSON texts) allow a request, and none of them denies it."""
    effects = [
        statement["Effect"]
        for policies, of_resource in ((identity, False), (resource, True))
        for policy in policies
        for statement in json.loads(policy)["Statement"]
        if _matches(statement, request, of_resource=of_resource)
    ]
    return "Allow" in effects and "Deny" not in effects


def actions(policy: str) -> set[str]:
    """Every action that a policy names."""
    return {action for statement in json.loads(policy)["Statement"] for action in _list(statement["Action"])}


def _matches(statement: Statement, request: Request, *, of_resource: bool) -> bool:
    return (
        any(_like(action.lower(), request.action.lower()) for action in _list(statement["Action"]))
        and any(_like(each, request.resource) for each in _list(statement.get("Resource", "*")))
        and (not of_resource or _is_principal(statement["Principal"], request.principal))
        and all(
            _holds(operator, _list(wanted), request.context.get(key))
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _is_principal(named: Any, principal: Mapping[str, str]) -> bool:
    if named == "*":
        return True
    return any(principal.get(kind) in _list(names) for kind, names in named.items())


def _holds(operator: str, wanted: list[str], found: str | None) -> bool:
    """A condition; one that negates, or says IfExists, holds where the request lacks the key."""
    if operator == "Null":
        return (found is None) == (wanted[0] == "true")
    name = operator.removesuffix("IfExists")
    negated = "Not" in name
    if found is None:
        return negated or operator.endswith("IfExists")
    match name.replace("Not", ""):
        case "StringEquals":
            holds = found in wanted
        case "Bool":
            holds = found.lower() == wanted[0].lower()
        case "StringLike" | "ArnLike" | "ArnEquals":
            holds = any(_like(each, found) for each in wanted)
        case "NumericLessThan":
            holds = float(found) < float(wanted[0])
        case _:
            raise NotImplementedError(operator)
    return holds != negated


def _like(pattern: str, text: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), text) is not None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
