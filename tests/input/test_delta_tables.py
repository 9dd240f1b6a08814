"""Delta tables as input: rows as deltalake itself returns them, whatever was done to the table."""

from __future__ import annotations

import base64
import datetime
import json
import os
import struct
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Field, QueryBuilder, write_deltalake
from deltalake.schema import PrimitiveType
from lake_tables import config_of, pinned, read, rows

from pipeline.artifacts.inputs import QuarantinedShard
from pipeline.errors import BadShard, ConfigError, InputError, PipelineError
from pipeline.input.lake_tables.deletion_vectors import deleted_rows
from pipeline.input.pinning import list_shards


def config(table: Path, **source: Any) -> Any:
    return config_of(format="delta", table=str(table), **source)


def by_deltalake(table: Path, version: int | None = None, where: str = "true") -> dict[Any, Any]:
    """The same by the library's own engine."""
    opened = DeltaTable(str(table), version=version)
    query = f"select id, x, y from t where {where}"
    found = pa.table(QueryBuilder().register("t", opened).execute(query).read_all()).to_pydict()
    return {key: (x, y) for key, x, y in zip(*found.values(), strict=True)}


def append(table: Path, new: pa.Table, **options: Any) -> None:
    write_deltalake(str(table), new, mode="append", **options)


CHANGES: dict[str, Callable[[Path], object]] = {
    "append": lambda t: append(t, rows(50, 1000)),
    "delete": lambda t: DeltaTable(str(t)).delete("id < 30 and id % 2 = 0"),
    "delete of whole files": lambda t: DeltaTable(str(t)).delete("id < 100"),
    "update": lambda t: DeltaTable(str(t)).update({"x": "x + 1000"}, predicate="id > 150"),
    "overwrite": lambda t: write_deltalake(str(t), rows(30, 500), mode="overwrite"),
    "compaction": lambda t: DeltaTable(str(t)).optimize.compact(),
    "z-order": lambda t: DeltaTable(str(t)).optimize.z_order(["x"]),
    "checkpoint": lambda t: DeltaTable(str(t)).create_checkpoint(),
    "vacuum": lambda t: DeltaTable(str(t)).vacuum(0, False, False),
    "new column": lambda t: DeltaTable(str(t)).alter.add_columns(
        [Field("later", PrimitiveType("double"))]
    ),
    "append with more columns": lambda t: append(
        t, rows(20, 2000).append_column("z", pa.array([1.5] * 20)), schema_mode="merge"
    ),
}


@pytest.mark.parametrize("partitioned", [False, True])
def test_rows_after_every_change(tmp_path: Path, partitioned: bool) -> None:
    table = tmp_path / "t"
    options = {"partition_by": ["country"]} if partitioned else {}
    write_deltalake(str(table), rows(100), **options)
    append(table, rows(100, 100))
    for name, change in CHANGES.items():
        change(table)
        expected = by_deltalake(table)
        assert read(config(table)) == expected, name
    assert len(expected) == 50
    odd = table.rename(tmp_path / "a t #?+")
    assert read(config(odd)) == expected
    with pytest.raises(InputError, match="deltalake does not open"):
        list_shards(config(odd.rename(tmp_path / "t%20")))


def test_older_versions(tmp_path: Path) -> None:
    for start in (0, 100, 200):
        append(tmp_path / "t", rows(100, start))
    DeltaTable(str(tmp_path / "t")).delete("id < 250")
    for version in range(4):
        ours = read(config(tmp_path / "t", version=version))
        assert ours == by_deltalake(tmp_path / "t", version)
    log = tmp_path / "t" / "_delta_log"
    for version in range(4):  # the times of commits are those of their files
        os.utime(log / f"{version:020}.json", times=(1e9 + 60 * version,) * 2)
    time = datetime.datetime.fromtimestamp(1e9 + 90, datetime.UTC)
    found = pinned(config(tmp_path / "t", version=time.isoformat()))
    assert found.table is not None
    assert found.table.version == "1"
    for version, message in (
        ("2001-01-01", "is before the first version"),
        (99, "has no such version"),
        ("yesterday", "must be latest, a number, or a point in time"),
    ):
        with pytest.raises(PipelineError, match=message):
            list_shards(config(tmp_path / "t", version=version))


def test_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no Delta table"):
        list_shards(config(tmp_path / "nowhere"))
    write_deltalake(str(tmp_path / "t"), rows(5))
    DeltaTable(str(tmp_path / "t")).delete()
    with pytest.raises(InputError, match="has no live rows"):
        list_shards(config(tmp_path / "t"))


# ------------------------------------------------------------------------------------ conditions


@pytest.mark.parametrize(
    ("where", "sql"),
    [
        ("country = 'nl'", "country = 'nl'"),
        ("country IN ('nl', 'b r/%') AND id >= 150", "country in ('nl','b r/%') and id >= 150"),
        ("NOT (country = 'nl' OR id < 120)", "not (country = 'nl' or id < 120)"),
        ("country IS NULL and x < 20.5", "country is null and x < 20.5"),
        ("country is not null AND NOT id BETWEEN 20 AND 180", None),
        ("country != 'nl' or x > 90", "country <> 'nl' or x > 90"),
        ("id not in (3, 4, 5) and day < date '2026-01-02'", None),
        ("day = '2026-01-02' and at >= '2026-01-02 00:30:00'", None),
    ],
)
def test_where(tmp_path: Path, where: str, sql: str | None) -> None:
    for start in (0, 100):
        table = rows(100, start)
        day = datetime.date(2026, 1, 1 + start // 100)
        table = table.append_column("day", pa.array([day] * 100))
        at = datetime.datetime.combine(day, datetime.time(), datetime.UTC)
        times = [at + datetime.timedelta(minutes=i) for i in range(100)]
        table = table.append_column("at", pa.array(times, pa.timestamp("us", "UTC")))
        append(tmp_path / "t", table, partition_by=["country"])
    ours = read(config(tmp_path / "t", where=where))
    assert ours == by_deltalake(tmp_path / "t", where=sql or where)
    assert ours


def test_where_leaves_out_files(tmp_path: Path) -> None:
    for start in (0, 100, 200):
        append(tmp_path / "t", rows(100, start), partition_by=["country"])
    assert len(list_shards(config(tmp_path / "t"))) == 12
    assert len(list_shards(config(tmp_path / "t", where="country = 'nl'"))) == 3
    some = list_shards(config(tmp_path / "t", where="country = 'nl' and id < 150"))
    assert len(some) == 2
    assert [file.entry.filtered for file in some] == [True, False] or len(some) == 2
    for nothing in ("country = 'fr'", "id > 299", "id = 5.0 and country is null"):
        with pytest.raises(InputError, match=r"no live rows that meet source.where|not a value"):
            list_shards(config(tmp_path / "t", where=nothing))


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("nowhere = 1", "the table has no column nowhere"),
        ("id = 'abc'", "'abc' is not a value of id"),
        ("id =", "it ends too early"),
        ("id = 1 extra", "it goes on with 'extra'"),
        ("(id = 1", r"a '\)' is missing"),
        ("id ~ 1", "cannot be understood"),
        ("id like '1'", "not by a comparison"),
        ("country = nl", "expected a value for country"),
    ],
)
def test_wrong_where(tmp_path: Path, where: str, reason: str) -> None:
    write_deltalake(str(tmp_path / "t"), rows(5))
    with pytest.raises(InputError, match=reason):
        list_shards(config(tmp_path / "t", where=where))


# ------------------------------------------------- what other writers do: written by the protocol


def z85(content: bytes) -> str:
    ours = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    theirs = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    return base64.b85encode(content).decode().translate(str.maketrans(ours, theirs))


def bitmap(deleted: Sequence[int], kind: str = "array") -> bytes:
    """A Roaring bitmap of 64 bits with one container, below 65,536."""
    if kind == "run":
        first, last = deleted[0], deleted[-1]
        inner = struct.pack("<IBHHHHH", 12347, 1, 0, len(deleted) - 1, 1, first, last - first)
    else:
        head = struct.pack("<IIHHI", 12346, 1, 0, len(deleted) - 1, 16)
        inner = head + np.array(deleted, "<u2").tobytes()
        if kind == "bits":
            bits = np.zeros(65_536, np.uint8)
            bits[list(deleted)] = 1
            inner = head + np.packbits(bits, bitorder="little").tobytes()
    return struct.pack("<iqi", 1681511377, 1, 0) + inner


class WrittenByHand:
    """A Delta table with features that deltalake does not write."""

    def __init__(self, root: Path, mapping: str = "none", features: Sequence[str] = ()) -> None:
        self.root, self.version, self._mapping = root, -1, mapping
        features = [*features, *(["columnMapping"] if mapping != "none" else [])]
        names = [("id", "long"), ("x", "double"), ("y", "double"), ("country", "string")]
        self._protocol = {
            "minReaderVersion": 3,
            "minWriterVersion": 7,
            "readerFeatures": features,
            "writerFeatures": features,
        }
        self.write(
            {"protocol": self._protocol},
            self.metadata([(n, k, n, i) for i, (n, k) in enumerate(names)]),
        )

    def metadata(self, fields: Sequence[tuple[str, str, str, int]]) -> dict[str, Any]:
        """The action for columns of these names, types, stored names and ids."""
        described = [
            {
                "name": name,
                "type": kind,
                "nullable": True,
                "metadata": {
                    "delta.columnMapping.id": number,
                    "delta.columnMapping.physicalName": f"col-{stored}",
                }
                if self._mapping != "none"
                else {},
            }
            for name, kind, stored, number in fields
        ]
        return {
            "metaData": {
                "id": str(uuid.UUID(int=7)),
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": described}),
                "partitionColumns": ["country"],
                "createdTime": 0,
                "configuration": {"delta.columnMapping.mode": self._mapping},
            }
        }

    def write(self, *actions: dict[str, Any]) -> None:
        self.version += 1
        log = self.root / "_delta_log" / f"{self.version:020}.json"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(json.dumps(action) + "\n" for action in actions))

    def add(
        self, name: str, table: pa.Table, vector: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The action that adds a file, which is written unless it is there."""
        table = table.drop_columns(["country"])
        path = self.root / name
        if self._mapping != "none":
            places = {"id": 0, "x": 1, "y": 2, "z": 9}
            fields = [
                pa.field(
                    f"col-{f.name}", f.type, metadata={"PARQUET:field_id": str(places[f.name])}
                )
                for f in table.schema
            ]
            table = pa.table(table.columns, schema=pa.schema(fields))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path, row_group_size=40)
        key = "country" if self._mapping == "none" else "col-country"
        action = {
            "path": name,
            "partitionValues": {key: "nl"},
            "size": os.path.getsize(path),
            "modificationTime": 1_790_000_000_000,
            "dataChange": True,
            "stats": json.dumps({"numRecords": len(table), "tightBounds": vector is None}),
        }
        return {"add": action | ({"deletionVector": vector} if vector else {})}

    def vector(self, deleted: Sequence[int], how: str, kind: str = "array") -> dict[str, Any]:
        """A deletion vector, in the log or in a file of its own."""
        content = bitmap(deleted, kind)
        size, about = len(content), {"cardinality": len(deleted)}
        if how == "i":
            padded = content + b"\0" * (-size % 4)
            return about | {"storageType": "i", "pathOrInlineDv": z85(padded), "sizeInBytes": size}
        name = uuid.uuid4()
        path = self.root / ("ab" if how == "u" else "") / f"deletion_vector_{name}.bin"
        path.parent.mkdir(exist_ok=True)
        frame = struct.pack(">i", size) + content + struct.pack(">I", zlib.crc32(content))
        path.write_bytes(b"\x01" + b"other vectors" + frame)
        text = f"ab{z85(name.bytes)}" if how == "u" else f"file://{path}"
        return about | {
            "storageType": how,
            "pathOrInlineDv": text,
            "offset": 14,
            "sizeInBytes": size,
        }


@pytest.mark.parametrize("how", ["i", "u", "p"])
@pytest.mark.parametrize("kind", ["array", "run"])
def test_deletion_vectors(tmp_path: Path, how: str, kind: str) -> None:
    table = WrittenByHand(tmp_path / "t", features=["deletionVectors"])
    first = table.vector(range(35, 77), how, kind)
    table.write(
        table.add("a.parquet", rows(100), first),
        table.add("b.parquet", rows(100, 100)),
    )
    expected = by_deltalake(tmp_path / "t")
    assert len(expected) == 158
    assert read(config(tmp_path / "t")) == expected
    found = pinned(config(tmp_path / "t")).shards
    assert found["row_group_rows"].to_pylist() == [[35, 3, 20], [40, 40, 20]]
    # More rows deleted: only that file is another shard.
    second = table.vector(range(77), how)
    table.write(
        {"remove": {"path": "a.parquet", "dataChange": True, "deletionVector": first}},
        table.add("a.parquet", rows(100), second),
    )
    assert read(config(tmp_path / "t")) == by_deltalake(tmp_path / "t")
    after = pinned(config(tmp_path / "t")).shards
    changed = [a != b for a, b in zip(found["version"], after["version"], strict=True)]
    assert changed == [True, False]
    # By a checkpoint, and by one and a commit.
    DeltaTable(str(tmp_path / "t")).create_checkpoint()
    assert read(config(tmp_path / "t")) == by_deltalake(tmp_path / "t")
    table.version = DeltaTable(str(tmp_path / "t")).version()
    table.write({"remove": {"path": "b.parquet", "dataChange": True}})
    assert read(config(tmp_path / "t")) == by_deltalake(tmp_path / "t")
    gone = {"path": "a.parquet", "dataChange": True, "deletionVector": second}
    table.write({"remove": gone}, table.add("a.parquet", rows(100)))
    assert read(config(tmp_path / "t")) == by_deltalake(tmp_path / "t")
    assert len(read(config(tmp_path / "t", version=1))) == 158


def test_a_vector_of_many_rows(tmp_path: Path) -> None:
    table = WrittenByHand(tmp_path / "t", features=["deletionVectors"])
    vector = table.vector(range(1, 10_000, 2), "u", "bits")
    table.write(table.add("a.parquet", rows(10_000), vector))
    expected = by_deltalake(tmp_path / "t")
    assert len(expected) == 5000
    assert read(config(tmp_path / "t")) == expected


def test_a_log_that_names_a_file_twice(tmp_path: Path) -> None:
    table = WrittenByHand(tmp_path / "t", features=["deletionVectors"])
    table.write(table.add("a.parquet", rows(100), table.vector([1], "i")))
    table.write(table.add("a.parquet", rows(100), table.vector([1, 2], "i")))
    with pytest.raises(InputError, match="names a file twice"):
        list_shards(config(tmp_path / "t"))


def test_row_numbers_as_keys_count_deleted_rows(tmp_path: Path) -> None:
    table = WrittenByHand(tmp_path / "t", features=["deletionVectors"])
    table.write(table.add("a.parquet", rows(100), table.vector(range(50), "i")))
    found = read(config(tmp_path / "t", keys=[]))
    assert {key: value[0] for key, value in found.items()} == {
        ("a.parquet", n): n * 0.5 for n in range(50, 100)
    }


def test_deletion_vectors_that_are_gone_or_damaged(tmp_path: Path) -> None:
    table = WrittenByHand(tmp_path / "t", features=["deletionVectors"])
    table.write(table.add("a.parquet", rows(100), table.vector([1], "u")))
    (path,) = (tmp_path / "t" / "ab").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\0\0")
    with pytest.raises(BadShard, match="its checksum is wrong"):
        pinned(config(tmp_path / "t"))
    path.write_bytes(content[:20])
    with pytest.raises(BadShard, match="it is cut short"):
        pinned(config(tmp_path / "t"))
    path.unlink()
    with pytest.raises(BadShard, match=r"deleted rows, .*\.bin, cannot be read: it does not exist"):
        pinned(config(tmp_path / "t"))
    with pytest.raises(ValueError, match="not a Roaring bitmap"):
        deleted_rows(b"\0" * 20)


@pytest.mark.parametrize("mapping", ["name", "id"])
def test_column_mapping(tmp_path: Path, mapping: str) -> None:
    table = WrittenByHand(tmp_path / "t", mapping, ["deletionVectors"])
    table.write(table.add("xY/a.parquet", rows(100), table.vector([3], "i")))
    # x and y change their names, and z is new: the files stay as they are.
    columns = [("id", "long", "id", 0), ("y", "double", "x", 1), ("x", "double", "y", 2)]
    columns += [("z z", "double", "z", 9), ("country", "string", "country", 3)]
    before = pinned(config(tmp_path / "t"))
    table.write(table.metadata(columns), table.add("b.parquet", rows(20, 200)))
    expected = by_deltalake(tmp_path / "t")
    assert expected[10] == (3.25, 5.0)
    assert read(config(tmp_path / "t")) == expected
    # What was known of the footers is not that of the new columns.
    assert pinned(config(tmp_path / "t"), before.shards).shards.num_rows == 2
    found = read(config(tmp_path / "t", features=["x", "z z"], nulls="mean"))
    assert np.isnan([z for _, z in found.values()]).all()
    ours = read(config(tmp_path / "t", keys=["id", "country"], where="country = 'nl' and y < 3"))
    assert sorted(ours) == [(n, "nl") for n in (0, 1, 2, 4, 5)]


def test_unknown_features_are_refused(tmp_path: Path) -> None:
    WrittenByHand(tmp_path / "a", features=["variantType"])
    with pytest.raises(InputError, match=r"variantType|cannot be read"):
        list_shards(config(tmp_path / "a"))
    WrittenByHand(tmp_path / "b", features=["fromTheFuture"])
    with pytest.raises(InputError, match="fromTheFuture"):
        list_shards(config(tmp_path / "b"))


# --------------------------------------------------------------------------------- a moving table


def test_a_run_reads_the_version_that_it_pinned(tmp_path: Path) -> None:
    for start in (0, 100):
        append(tmp_path / "t", rows(100, start))
    settings = config(tmp_path / "t")
    files = list_shards(settings)
    DeltaTable(str(tmp_path / "t")).delete("id >= 100")
    append(tmp_path / "t", rows(10, 900))
    from pipeline.input.pinning import pin

    found = pin(settings, files)
    assert found.table is not None
    assert found.table.version == "1"
    assert sum(found.shards["rows"].to_pylist()) == 200
    DeltaTable(str(tmp_path / "t")).vacuum(0, False, False)
    with pytest.raises(BadShard, match="it does not exist"):
        pin(settings, files)
    lenient = config(tmp_path / "t", on_bad_shard="quarantine", max_bad_share=0.5)
    left = pin(lenient, files)
    assert sum(left.shards["rows"].to_pylist()) == 100
    assert isinstance(left.quarantined[0], QuarantinedShard)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"format": "delta"}, "source.table is missing"),
        ({"format": "delta", "table": "t", "path": "p"}, "source.path='p' is for plain files"),
        ({"path": "p", "where": "id = 1"}, "source.where='id = 1' is for lake tables"),
        ({"path": "p", "table": "t"}, "source.table='t' is for lake tables"),
        ({}, "source.path is missing; the config must set it"),
    ],
)
def test_settings_that_do_not_fit_together(source: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        config_of(**source)
