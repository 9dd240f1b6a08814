"""A profile of some rows, and how several are merged: what their clusters look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clustering.profile import GroupMoments, Points, first_of_each
from pipeline.insight.profiles.layout import Layout
from pipeline.schema import EXEMPLAR_KINDS

# A merged profile stands for more rows: it keeps more points and values than that of one part.
_MERGED = 4


@dataclass(frozen=True)
class Profile:
    """Statistics and exemplars of the clusters among some rows."""

    layout: Layout
    moments: GroupMoments  # moments of the measured columns
    points: Points  # quantile points of the number columns; none where there are no quantiles
    categories: pa.Table  # rows per cluster, category column and value, of ``CATEGORY_SCHEMA``
    exemplars: pa.Table  # exemplars with their keys, of ``profiled_exemplar_schema``


def merged(profiles: Sequence[Profile]) -> Profile:
    """Merge the profiles of several sets of rows; the last bits depend on their order."""
    layout, moments = profiles[0].layout, profiles[0].moments
    for profile in profiles[1:]:
        moments = moments.merge(profile.moments)
    points, scalars = Points.none(0), layout.scalars
    if layout.points and scalars:
        pieces = [(profile.points, profile.moments) for profile in profiles]
        points = Points.merged(pieces, scalars, _MERGED * layout.points)
    return Profile(
        layout=layout,
        moments=moments,
        points=points,
        categories=counted([profile.categories for profile in profiles], _MERGED * layout.values),
        exemplars=first_exemplars([p.exemplars for p in profiles], layout),
    )


def counted(tables: Sequence[pa.Table], most: int) -> pa.Table:
    """Add up counts of ``CATEGORY_SCHEMA``; keep the ``most`` frequent values of each column.

    Ties go by their text. Rarer values of a column are counted together.
    """
    names = ["dec_cluster_id", "dec_column", "dec_value"]
    table = _summed(pa.concat_tables(tables), names)
    totals = _summed(table.filter(table["dec_value"].is_valid()), names[1:])
    if len(totals) > most:
        directions = ("ascending", "descending", "ascending")
        order = zip(("dec_column", "dec_rows", "dec_value"), directions, strict=True)
        totals = totals.sort_by(list(order))
        column = totals["dec_column"].to_numpy()
        turn = np.arange(len(column)) - np.searchsorted(column, column)
        if (turn >= most).any():
            rare = totals.filter(pa.array(turn >= most)).select(names[1:])
            rare = rare.append_column("rare", pa.repeat(True, len(rare)))
            table = table.join(rare, names[1:], join_type="left outer")
            nothing = pa.scalar(None, pa.string())
            value = pc.if_else(table["rare"].is_valid(), nothing, table[names[2]])
            table = table.drop_columns(["rare", names[2]]).append_column(names[2], value)
            table = _summed(table, names)
    return table.sort_by([(name, "ascending") for name in names])


def _summed(table: pa.Table, by: list[str]) -> pa.Table:
    groups = table.group_by(by, use_threads=False).aggregate([("dec_rows", "sum")])
    return groups.rename_columns([*by, "dec_rows"])


def first_exemplars(tables: Sequence[pa.Table], layout: Layout) -> pa.Table:
    """The first exemplars of each cluster and kind, in order; features only of the first ones."""
    table = pa.concat_tables(tables).combine_chunks()
    names = table["dec_shard"].combine_chunks().dictionary_encode()
    by_name = np.argsort(np.argsort(np.array(names.dictionary.to_pylist(), dtype="U")))
    place_B = by_name[names.indices.to_numpy()] if len(by_name) else np.zeros(0, np.int64)
    group_B = table["dec_cluster_id"].to_numpy().astype(np.int64) * len(EXEMPLAR_KINDS)
    group_B += table["dec_kind"].to_numpy()
    order_B = table["dec_order"].to_numpy()
    row_B = table["dec_row_number"].to_numpy()
    chosen = first_of_each(group_B, layout.exemplars, order_B, place_B, row_B)
    group_B = group_B[chosen]
    turn_B = np.arange(len(chosen)) - np.searchsorted(group_B, group_B)
    with_features = pa.array(chosen, mask=turn_B >= layout.features)
    place = table.schema.get_field_index("dec_features")
    features = table["dec_features"].take(with_features)
    table = table.drop_columns(["dec_features"]).take(pa.array(chosen))
    return table.add_column(place, tables[0].schema.field(place), features)
