"""Names and types of the columns that we publish. Other jobs rely on them."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

# Identifies a row when the config names no key: the shard's path below the source and the row's
# position in that shard.
SHARD_KEY_COLUMNS = ("shard", "row_number")
SHARD_KEY_FIELDS = (pa.field("shard", pa.string()), pa.field("row_number", pa.int64()))

# One value in all rows of a file: a dictionary stores it once.
_CONSTANT = pa.dictionary(pa.int32(), pa.string())

ASSIGNMENT_FIELDS = (
    pa.field("cluster_id", pa.int32(), nullable=False),  # -1: an outlier
    pa.field("confidence", pa.float32(), nullable=False),  # q of the nearest
    pa.field("cluster_id_2", pa.int32(), nullable=False),  # the runner-up
    pa.field("confidence_2", pa.float32(), nullable=False),
    pa.field("distance", pa.float32(), nullable=False),  # ‖z − μ‖ in the embedding
    pa.field("is_outlier", pa.bool_(), nullable=False),
    pa.field("model_id", _CONSTANT, nullable=False),
    # The run that labelled the row, and its ds. Rows of an input that did not change are carried
    # from night to night with those of the night that labelled them; which rows a ds consists of
    # is said by the snapshot alone.
    pa.field("run_id", _CONSTANT, nullable=False),
    pa.field("ds", _CONSTANT, nullable=False),
)

RESERVED_COLUMNS = tuple(field.name for field in ASSIGNMENT_FIELDS)

# The ds of a run that was given no logical date: the table as a whole, not one night of it.
UNDATED = "undated"


def assignment_schema(carried: pa.Schema, keys: Sequence[str]) -> pa.Schema:
    """Schema of the assignments table: the keys, unchanged, then what DEC found.

    Args:
        carried: Has a field for each key; more do no harm.
        keys: Names of the key columns; none: shard name and row number stand in.
    """
    key_fields = [carried.field(name) for name in keys] or SHARD_KEY_FIELDS
    return pa.schema([*key_fields, *ASSIGNMENT_FIELDS])


# What a run id, a ds or a model id may be: safe as a folder's name, in SQL and in HTML.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
