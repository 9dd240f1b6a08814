"""``source.where``: which files of a lake table may hold matching rows, and which rows match.

A condition compares columns with values, in the words of SQL: ``=, !=, <, <=, >, >=, IN, BETWEEN,
IS NULL, AND, OR, NOT`` and parentheses. As in SQL, a comparison with a missing value never holds.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.schema import decoded, value_type

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*') | (?P<quoted>"(?:[^"]|"")+"|`[^`]+`)
    | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])) | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|<>|!=|=|<|>|\(|\)|,))""",
    re.X,
)
_NEGATED = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_COMPARE: dict[str, Callable[..., Any]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_KINDS = (
    *(pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_date, pa.types.is_timestamp),
)


@dataclass(frozen=True)
class ColumnStatistics:
    """What a table knows of a column in one file; None where it does not."""

    least: Any = None
    most: Any = None  # at least as large as any value
    nulls: float | None = None  # infinite: all values
    exact: bool = False  # whether all values are equal to both, those of a partition


@dataclass(frozen=True)
class Comparison:
    """A column compared with values: ``=``, ``<`` … with one, ``in``, ``not in`` with several."""

    column: str
    sign: str
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Both:
    """AND, or OR, of two conditions."""

    sign: str  # and, or
    left: Condition
    right: Condition


Condition = Comparison | Both


def parse(text: str, schema: pa.Schema) -> Condition:
    """Parse a condition on a table's columns; values get the types of their columns.

    Raises:
        InputError: It is not a condition, or names what the table lacks.
    """
    return _Parser(text, schema).whole()


def columns_of(condition: Condition) -> tuple[str, ...]:
    """The columns that a condition reads, each once."""
    if isinstance(condition, Comparison):
        return (condition.column,)
    return tuple(dict.fromkeys(columns_of(condition.left) + columns_of(condition.right)))


def matching(condition: Condition, rows: pa.Table) -> pa.ChunkedArray:
    """Whether each row matches; never null."""
    if isinstance(condition, Both):
        sides = matching(condition.left, rows), matching(condition.right, rows)
        return pc.and_(*sides) if condition.sign == "and" else pc.or_(*sides)
    column = decoded(rows[condition.column])
    if condition.sign == "is null":
        return pc.is_null(column)
    if condition.sign == "is not null":
        return pc.is_valid(column)
    if condition.sign in ("in", "not in"):
        found = pc.is_in(column, value_set=pa.array(condition.values, column.type))
        if condition.sign == "not in":
            found = pc.and_(pc.invert(found), pc.is_valid(column))
        return found
    return pc.fill_null(
        _COMPARE[condition.sign](column, pa.scalar(condition.values[0], column.type)), False
    )


def decided(
    condition: Condition, statistics: Callable[[str], ColumnStatistics], rows: int | None
) -> tuple[bool, bool]:
    """Whether any row of a file may match, and whether all its rows certainly do.

    ``statistics`` gives those of a column; ``rows`` are those in the file, None where unknown.
    """
    if isinstance(condition, Both):
        left = decided(condition.left, statistics, rows)
        right = decided(condition.right, statistics, rows)
        joined = all if condition.sign == "and" else any
        return joined((left[0], right[0])), joined((left[1], right[1]))
    found = statistics(condition.column)
    nulls, sign, values = found.nulls, condition.sign, condition.values
    all_null = nulls is not None and nulls >= (math.inf if rows is None else rows)
    if sign == "is null":
        return nulls != 0, all_null
    if sign == "is not null":
        return not all_null, nulls == 0
    if all_null:
        return False, False
    least, most = found.least, found.most
    if least is None or most is None:
        return True, False
    one = least == most
    among = [least <= value <= most for value in values]
    may, must = {
        "=": (among[0], one and among[0]),
        "in": (any(among), one and any(among)),
        "!=": (not (one and among[0]), not among[0]),
        "not in": (not (one and any(among)), not any(among)),
        "<": (least < values[0], most < values[0]),
        "<=": (least <= values[0], most <= values[0]),
        ">": (most > values[0], least > values[0]),
        ">=": (most >= values[0], least >= values[0]),
    }[sign]
    if found.exact:
        return may, must
    if isinstance(least, float):
        # NaN is in no statistics: it equals nothing, and is in no order.
        return may or sign in ("!=", "not in"), False
    if isinstance(least, str) and sign in ("=", "in", "!=", "not in"):
        # Long texts are cut in statistics, so that two of them may look like one.
        differ = sign in ("!=", "not in")
        return may or differ, must and differ and nulls == 0
    return may, must and nulls == 0


class _Parser:
    """Recursive descent; NOT is resolved into the comparisons below it."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text, self._schema = text, schema
        self._tokens = list(self._split(text))
        self._place = 0

    def whole(self) -> Condition:
        found = self._any(negated=False)
        if self._place < len(self._tokens):
            raise self._wrong(f"it goes on with {self._tokens[self._place][1]!r}")
        return found

    def _split(self, text: str) -> Iterator[tuple[str, str]]:
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                raise self._wrong(f"{text[place:].strip()[:20]!r} cannot be understood")
            kind = match.lastgroup
            assert kind is not None
            yield kind, match[kind]
            place = match.end()

    def _any(self, *, negated: bool) -> Condition:
        found = self._all(negated=negated)
        while self._word("or"):
            found = Both("and" if negated else "or", found, self._all(negated=negated))
        return found

    def _all(self, *, negated: bool) -> Condition:
        found = self._one(negated=negated)
        while self._word("and"):
            found = Both("or" if negated else "and", found, self._one(negated=negated))
        return found

    def _one(self, *, negated: bool) -> Condition:
        if self._word("not"):
            return self._one(negated=not negated)
        if self._sign("("):
            found = self._any(negated=negated)
            self._expect(")")
            return found
        return self._comparison(negated=negated)

    def _comparison(self, *, negated: bool) -> Condition:
        column = self._column()
        if self._word("is"):
            null = self._word("not") == negated
            if not self._word("null"):
                raise self._wrong("IS is followed by NULL or NOT NULL")
            return Comparison(column, "is null" if null else "is not null")
        negated ^= self._word("not")
        if self._word("in"):
            self._expect("(")
            values = [self._value(column)]
            while self._sign(","):
                values.append(self._value(column))
            self._expect(")")
            return Comparison(column, "not in" if negated else "in", tuple(values))
        if self._word("between"):
            low, high = (">=", "<=") if not negated else ("<", ">")
            first = Comparison(column, low, (self._value(column),))
            if not self._word("and"):
                raise self._wrong("BETWEEN has two values with AND between them")
            second = Comparison(column, high, (self._value(column),))
            return Both("or" if negated else "and", first, second)
        kind, sign = self._next()
        sign = "!=" if sign == "<>" else sign
        if kind != "sign" or sign not in _NEGATED:
            raise self._wrong(f"{column} is followed by {sign!r}, not by a comparison")
        return Comparison(column, _NEGATED[sign] if negated else sign, (self._value(column),))

    def _column(self) -> str:
        kind, text = self._next()
        if kind == "quoted":
            text = text[1:-1].replace('""', '"')
        elif kind != "word":
            raise self._wrong(f"expected a column, got {text!r}")
        if text not in self._schema.names:
            names = ", ".join(self._schema.names[:20])
            raise self._wrong(f"the table has no column {text}; its columns are {names}")
        type_ = value_type(self._schema.field(text).type)
        if not any(is_kind(type_) for is_kind in _KINDS):
            raise self._wrong(f"column {text} is {type_}, which cannot be compared here")
        return text

    def _value(self, column: str) -> Any:
        kind, text = self._next()
        if kind == "word" and text.lower() in ("date", "timestamp"):
            kind, text = self._next()
        type_ = value_type(self._schema.field(column).type)
        quoted = kind == "text"
        word = kind == "word" and text.lower() in ("true", "false")
        if not (quoted or word or kind == "number"):
            raise self._wrong(f"expected a value for {column}, got {text!r}")
        text = text[1:-1].replace("''", "'") if quoted else text.lower() if word else text
        is_text = pa.types.is_string(type_) or pa.types.is_large_string(type_)
        is_time = pa.types.is_timestamp(type_) or pa.types.is_date(type_)
        fits = quoted if is_text or is_time else word if pa.types.is_boolean(type_) else not word
        try:
            if not fits:
                raise pa.ArrowInvalid
            return constant(text, type_).as_py()
        except (pa.ArrowException, ValueError):
            raise self._wrong(f"{text!r} is not a value of {column}, which is {type_}") from None

    def _word(self, word: str) -> bool:
        return self._takes("word", word)

    def _sign(self, sign: str) -> bool:
        return self._takes("sign", sign)

    def _takes(self, kind: str, text: str) -> bool:
        there = self._place < len(self._tokens)
        found = there and self._tokens[self._place][0] == kind
        found = found and self._tokens[self._place][1].lower() == text
        self._place += found
        return found

    def _expect(self, sign: str) -> None:
        if not self._sign(sign):
            raise self._wrong(f"a {sign!r} is missing")

    def _next(self) -> tuple[str, str]:
        if self._place == len(self._tokens):
            raise self._wrong("it ends too early")
        self._place += 1
        return self._tokens[self._place - 1]

    def _wrong(self, reason: str) -> InputError:
        return InputError(
            f"source.where={self._text!r} is not a condition: {reason}. Expected comparisons of "
            "columns with values, such as country = 'nl' AND day >= '2026-01-01'"
        )


@functools.lru_cache(maxsize=4096)
def constant(text: str, kind: pa.DataType) -> pa.Scalar:
    """A value of a column from its text; points in time without a zone are in UTC.

    Raises:
        pa.ArrowException: It is no value of this type.
    """
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        if re.search(r"(Z|[+-]\d\d:?\d\d)$", text):
            return pa.scalar(text).cast(pa.timestamp(kind.unit, "UTC")).cast(kind)
        return (
            pa.scalar(text)
            .cast(pa.timestamp(kind.unit))
            .cast(pa.timestamp(kind.unit, "UTC"))
            .cast(kind)
        )
    return pa.scalar(text).cast(kind)
