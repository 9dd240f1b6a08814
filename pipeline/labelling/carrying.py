"""Carried parts: part files of earlier nights, published again where their slice is the same.

A part's name is derived from its slice, the model, the ids of its clusters, the schema and the
settings, so that tonight's slices find theirs among the files of published partitions.
"""

from __future__ import annotations

import logging

from pipeline.artifacts.assignments import PartFile
from pipeline.errors import InputError
from pipeline.lake.snapshots import latest_snapshot, read_file_list
from pipeline.storage import Store

log = logging.getLogger(__name__)

# Each night lists all its parts, carried ones too. So the newest have nearly all that there is;
# the lists of a year would be large.
_MOST_LISTS = 8


def published_parts(lake: Store, model_id: str, ds: str) -> dict[str, PartFile]:
    """Published part files of a model, by name: first those of ``ds``, then of the newest dates."""
    latest = latest_snapshot(lake)
    if latest is None:
        return {}
    dates = sorted(latest.partitions, key=lambda date: (date == ds, date), reverse=True)
    partitions = [latest.partitions[date] for date in dates]
    of_model = [partition for partition in partitions if partition.model_id == model_id]
    found: dict[str, PartFile] = {}
    for partition in of_model[:_MOST_LISTS]:
        try:
            listed = read_file_list(lake, partition.files).files
        except (FileNotFoundError, InputError) as error:
            log.warning("no parts are carried of run %s: %s", partition.run_id, error)
            continue
        for file in listed:
            found.setdefault(file.path.rpartition("/")[2], file)
    return found
