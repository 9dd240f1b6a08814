"""Names and types of the columns that we publish. Other jobs rely on them."""

from __future__ import annotations

import pyarrow as pa

# Identifies a row when the config names no key: the shard's path below the source and the row's
# position in that shard.
SHARD_KEY_COLUMNS = ("shard", "row_number")
SHARD_KEY_FIELDS = (pa.field("shard", pa.string()), pa.field("row_number", pa.int64()))

# One value in all rows of a file: a dictionary stores it once.
_CONSTANT = pa.dictionary(pa.int32(), pa.string())

ASSIGNMENT_FIELDS = (
    pa.field("cluster_id", pa.int32(), nullable=False),
    pa.field("confidence", pa.float32(), nullable=False),  # q of cluster_id
    pa.field("cluster_id_2", pa.int32(), nullable=False),  # the runner-up
    pa.field("confidence_2", pa.float32(), nullable=False),
    pa.field("distance", pa.float32(), nullable=False),  # ‖z − μ‖ in the embedding
    pa.field("is_outlier", pa.bool_(), nullable=False),
    pa.field("model_id", _CONSTANT, nullable=False),
    pa.field("run_id", _CONSTANT, nullable=False),
    pa.field("ds", _CONSTANT, nullable=False),
)

RESERVED_COLUMNS = tuple(field.name for field in ASSIGNMENT_FIELDS)

# The ds of a run that was given no logical date: the table as a whole, not one night of it.
UNDATED = "undated"


def assignment_schema(key_fields: tuple[pa.Field, ...]) -> pa.Schema:
    """Schema of the assignments table: the keys, unchanged, then what DEC found."""
    return pa.schema([*key_fields, *ASSIGNMENT_FIELDS])
