from __future__ import annotations

import pyarrow as pa
import pytest

from tomoray.errors import Usage
from tomoray.filters import filter_columns, parse_filter

TABLE = pa.table(
    {
        "n": pa.array([1, 2, 3, None], pa.int64()),
        "size_MB": pa.array([0.5, 1.5, 2.5, 3.5], pa.float64()),
        "Manufacturer": pa.array(["GE", "O'Hara", None, "SIEMENS"], pa.large_string()),
        "small": pa.array([1, None, 3, 4], pa.int8()),
        "sizes": pa.array([[1], [2], None, []], pa.list_(pa.int64())),
        "stored": pa.array([True, False, True, None], pa.bool_()),
    }
)


def chosen(text: str) -> list[int]:
    """The rows that a filter chooses."""
    numbered = TABLE.append_column("row", pa.array(range(4)))
    return numbered.filter(parse_filter(text, TABLE.schema))["row"].to_pylist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("n = 2", [1]),
        ("n != 2", [0, 2]),
        ("n <> 2 and n < 3", [0]),
        ("n >= 2 or size_MB > 3", [1, 2, 3]),
        ("n = 1 or n = 2 and Manufacturer = 'GE'", [0]),
        ("(n = 1 or n = 2) and Manufacturer = 'GE'", [0]),
        ("not n = 2", [0, 2]),
        ("not (n = 2 or Manufacturer is null)", [0]),
        ("Manufacturer = 'O''Hara'", [1]),
        ("Manufacturer in ('GE', 'SIEMENS')", [0, 3]),
        ("Manufacturer not in ('GE', 'SIEMENS')", [1]),
        ("not Manufacturer in ('GE')", [1, 3]),
        ("n in (1, 2.0, 2.5)", [0, 1]),
        ("small in (1, 2)", [0]),
        ("Manufacturer like '%E%'", [0, 3]),
        ("Manufacturer not like 'G_'", [1, 3]),
        ("Manufacturer is null", [2]),
        ("sizes is null", [2]),
        ("Manufacturer IS NOT NULL AND n Is Null", [3]),
        ("n between 2 and 3", [1, 2]),
        ("n not between 2 and 3", [0]),
        ("n > 1.5", [1, 2]),
        ("n = 2.0", [1]),
        ("size_MB > 2e0", [2, 3]),
        ("size_mb = -1", []),
        ('"n" = 3', [2]),
        ("stored = true", [0, 2]),
        ("not not stored = false", [1]),
    ],
)
def test_chooses_what_sql_would(text, rows):
    assert chosen(text) == rows


@pytest.mark.parametrize(
    "text",
    [
        "size_MB>1 and not (n between 2 and 3)",
        "Manufacturer not in ('GE') or n<2",
        "not (Manufacturer like 'G%' and stored=true)",
        "n in (1,3) or not (Manufacturer is null) and size_MB<=3.5",
    ],
)
def test_agrees_with_a_database(text):
    duckdb = pytest.importorskip("duckdb", reason="pip install duckdb")
    connection = duckdb.connect()
    connection.register("numbered", TABLE.append_column("row", pa.array(range(4))))
    found = connection.sql(f"select row from numbered where {text} order by row").fetchall()
    assert chosen(text) == [row for (row,) in found]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Manufactuer = 'GE'", "unknown column 'Manufactuer'; did you mean 'Manufacturer'?"),
        ("zzz = 1", "unknown column 'zzz'; known: n, size_MB"),
        ("n = 'two'", "column 'n' cannot be compared with 'two'; wanted a number"),
        ("Manufacturer = 3", "wanted 'text'"),
        ("n like '1%'", "`like` wants text"),
        ("n = 1 n = 2", "not understood at 'n = 2'; wanted and, or, or the end"),
        ("n =", "not understood at 'its end'"),
        ("(n = 1", "wanted a closing parenthesis"),
        ("n not 3", "wanted in, like or between"),
        ("small in (1000)", "column 'small' holds int8"),
        ("sizes = 1", "column 'sizes' cannot be compared with 1"),
        ("n in ()", "wanted a 'text', a number"),
        ("n = 1; drop table x", "not understood at '; drop table x'"),
        ("", "wanted a column"),
        ("(" * 500 + "n = 1" + ")" * 500, "nested more than 100 deep"),
    ],
)
def test_says_in_one_line_what_is_wrong(text, message):
    with pytest.raises(Usage) as caught:
        parse_filter(text, TABLE.schema)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_the_columns_of_a_filter_and_not_its_texts():
    assert filter_columns("Modality = 'n' and not \"n\" is null") == {"modality", "n"}
