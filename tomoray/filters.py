"""Filters over tables in a small part of SQL: what stands after `where`.

Comparisons (`= == != <> < <= > >=`), `and`, `or`, `not`, `in (…)`, `like`, `between … and …`, `is null`, parentheses;
`'text'` with a doubled quote inside, numbers, `true` and `false`; columns plain or in double quotes. As in SQL, a
comparison with a missing value is neither true nor false, and chooses nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tomoray.errors import Usage

_TOKENS = re.compile(
    r"""\s*(?:
        (?P<text>'(?:[^']|'')*')
      | (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
      | "(?P<quoted>(?:[^"]|"")+)"
      | (?P<word>[^\W\d]\w*)
      | (?P<sign><=|>=|<>|!=|==|[=<>(),])
    )""",
    re.VERBOSE,
)
_KEYWORDS = {"and", "or", "not", "in", "like", "between", "is", "null", "true", "false"}
_COMPARE: dict[str, Callable[[pc.Expression, pa.Scalar], pc.Expression]] = {
    "=": lambda column, value: column == value,
    "==": lambda column, value: column == value,
    "!=": lambda column, value: column != value,
    "<>": lambda column, value: column != value,
    "<": lambda column, value: column < value,
    "<=": lambda column, value: column <= value,
    ">": lambda column, value: column > value,
    ">=": lambda column, value: column >= value,
}
_MAX_DEPTH = 100


def parse_filter(text: str, schema: pa.Schema) -> pc.Expression:
    """The filter as an Arrow expression, for `Table.filter` and `Dataset.scanner`.

    Raises:
        Usage: not a filter, an unknown column (the nearest is named), or a value that its column cannot hold.

    Example:
        >>> schema = pa.schema({"Manufacturer": pa.string(), "instanceCount": pa.int64()})
        >>> parse_filter("Manufacturer = 'GE' and instanceCount > 100", schema)
        <pyarrow.compute.Expression ((Manufacturer == "GE") and (instanceCount > 100))>
    """
    parser = _Parser(text, schema)
    expression = parser.either(0)
    parser.end()
    return expression


def filter_columns(text: str) -> set[str]:
    """The words in a filter that may be names of columns, in lower case."""
    return {token.value.lower() for token in _tokens(text) if token.kind == "column"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Token:
    kind: str  # text, number, column, a keyword, a sign, or end
    value: str
    at: int


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKENS.match(text, at)
        if match is None:
            rest = text[at:].strip()
            raise Usage(
                f"the filter is not understood at {rest[:30]!r}; wanted such as: Manufacturer = 'GE' and n > 100"
            )
        kind, value = str(match.lastgroup), match[str(match.lastgroup)]
        if kind == "word":
            kind = value.lower() if value.lower() in _KEYWORDS else "column"
        elif kind == "quoted":
            kind, value = "column", value.replace('""', '"')
        elif kind == "sign":
            kind = value
        tokens.append(_Token(kind=kind, value=value, at=match.start() + len(match[0]) - len(match[0].lstrip())))
        at = match.end()
    return [*tokens, _Token(kind="end", value="", at=len(text))]


class _Parser:
    """Recursive descent: `either` (or) of `both` (and) of `one` (not, parentheses, a test of a column)."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text, self._schema = text, schema
        self._tokens = _tokens(text)

    def either(self, depth: int) -> pc.Expression:
        if depth > _MAX_DEPTH:
            raise Usage(f"the filter is nested more than {_MAX_DEPTH} deep")
        found = self._both(depth)
        while self._take("or"):
            found = found | self._both(depth)
        return found

    def end(self) -> None:
        self._want("end", "and, or, or the end")

    def _both(self, depth: int) -> pc.Expression:
        found = self._one(depth)
        while self._take("and"):
            found = found & self._one(depth)
        return found

    def _one(self, depth: int) -> pc.Expression:
        negated = False
        while self._take("not"):
            negated = not negated
        if self._take("("):
            found = self.either(depth + 1)
            self._want(")", "a closing parenthesis")
        else:
            found = self._test()
        return ~found if negated else found

    def _test(self) -> pc.Expression:
        name = self._column(self._want("column", "a column").value)
        column, kind = pc.field(name), self._schema.field(name).type
        if self._take("is"):
            negated = self._take("not")
            self._want("null", "null")
            return column.is_valid() if negated else column.is_null()
        negated = self._take("not")
        if self._take("in"):
            inside = column.isin(self._list(name, kind))
            found = pc.if_else(column.is_valid(), inside, pa.scalar(None, pa.bool_()))
        elif self._take("like"):
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise Usage(f"column {name!r} holds {kind}; `like` wants text")
            found = pc.match_like(column, self._text_of(self._want("text", "'text'")))
        elif self._take("between"):
            low = self._value(name, kind)
            self._want("and", "and")
            found = (column >= low) & (column <= self._value(name, kind))
        elif negated:
            raise self._wrong("in, like or between")
        else:
            sign = self._want("|".join(_COMPARE), "a comparison")
            return _COMPARE[sign.kind](column, self._value(name, kind))
        return ~found if negated else found

    def _list(self, name: str, kind: pa.DataType) -> pa.Array:
        self._want("(", "a list in parentheses")
        values = [self._value(name, kind).as_py()]
        while self._take(","):
            values.append(self._value(name, kind).as_py())
        self._want(")", "a comma or a closing parenthesis")
        if pa.types.is_integer(kind):
            values = [value for value in values if float(value).is_integer()]  # a fraction equals none
        try:
            return pa.array(values, type=kind)
        except pa.ArrowException as error:
            raise Usage(f"column {name!r} holds {kind}, and a value of the list is no such") from error

    def _value(self, name: str, kind: pa.DataType) -> pa.Scalar:
        """A literal as the column's type; numbers keep their fraction where the column holds integers."""
        token = self._want("text|number|true|false", "a 'text', a number, true or false")
        textual = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if token.kind == "text" and not numeric and not pa.types.is_boolean(kind):
            try:
                return pa.scalar(self._text_of(token)).cast(kind)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                pass
        elif token.kind == "number" and numeric:
            whole = re.fullmatch(r"[+-]?\d{1,18}", token.value)
            if whole or pa.types.is_floating(kind) or not float(token.value).is_integer():
                return pa.scalar(int(token.value) if whole and pa.types.is_integer(kind) else float(token.value))
            return pa.scalar(int(float(token.value)))
        elif token.kind in ("true", "false") and pa.types.is_boolean(kind):
            return pa.scalar(token.kind == "true")
        wanted = "'text'" if textual else "a number" if numeric else str(kind)
        raise Usage(f"column {name!r} cannot be compared with {token.value[:40]}; wanted {wanted}")

    def _column(self, name: str) -> str:
        names: list[str] = self._schema.names
        alike = [known for known in names if known.lower() == name.lower()]
        if name in names or len(alike) == 1:
            return name if name in names else alike[0]
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(names)}"
        raise Usage(f"the filter names an unknown column {name!r}; {hint}")

    def _text_of(self, token: _Token) -> str:
        return token.value[1:-1].replace("''", "'")

    def _take(self, kind: str) -> bool:
        if self._tokens[0].kind == kind:
            del self._tokens[0]
            return True
        return False

    def _want(self, kinds: str, wanted: str) -> _Token:
        if self._tokens[0].kind not in kinds.split("|"):
            raise self._wrong(wanted)
        return self._tokens.pop(0)

    def _wrong(self, wanted: str) -> Usage:
        rest = self._text[self._tokens[0].at :].strip()
        return Usage(f"the filter is not understood at {rest[:30] or 'its end'!r}; wanted {wanted}")
