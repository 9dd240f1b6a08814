"""Rows in the report: map of the sample, confidence of assignments, and changes of clusters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.nights import Identity
from pipeline.artifacts.records import StoredFile
from pipeline.errors import PipelineError
from pipeline.input.samples import FEATURES
from pipeline.insight.explained_runs import key_text
from pipeline.insight.maps import X, Y, about
from pipeline.lake.snapshots import read_file_list, read_snapshot
from pipeline.registry.cluster_ids import OUTLIER
from pipeline.report.pictures import data_uri, drawable, pixels, sheet
from pipeline.report.run_files import RunFiles
from pipeline.report.sections.clusters import Clusters, short
from pipeline.schema import matrix_of

# Bars of a histogram, 0.05 wide.
_BINS = 20
# Maximum number of rows in histograms, and of files that they are read from.
_ROWS = 500_000
_FILES = 32
_HISTOGRAMS = 20
# Maximum size of the image with all rows of the map; a larger one is left out.
_SHEET_CHARACTERS = 1_600_000
_SHEET_COLUMNS = 50
# Bands of the flow; the others are only counted.
_BANDS = 40
_LISTED_CHANGES = 40


def map_of(run: RunFiles, file: StoredFile | None, clusters: Clusters) -> dict[str, Any]:
    """Points of the map, and their clusters, the largest first; empty where there is no map."""
    table = run.table(file)
    if table is None or not len(table) or not (facts := about(table)):
        return {}
    ids = table["cluster_id"].to_numpy()
    by_id = {cluster.id: cluster for cluster in clusters.all}
    order = [c.id for c in clusters.all if c.id in set(ids.tolist())]
    order += sorted({*ids.tolist()} - {*order})  # outliers
    place = {cluster: number for number, cluster in enumerate(order)}
    keys = clusters.key_columns()
    shown = [name for name in keys if name in table.column_names]
    rows = table.select(shown).to_pylist()
    found: dict[str, Any] = {
        "x": _rounded(table[X]),
        "y": _rounded(table[Y]),
        "cluster": [place[cluster] for cluster in ids.tolist()],
        "runner_up": table["cluster_id_2"].to_pylist(),
        "confidence": _rounded(table["confidence"]),
        "key": [short(key_text(row)) for row in rows],
        "clusters": [
            {
                "id": cluster,
                "title": by_id[cluster].title
                if cluster in by_id
                else ("No cluster: outliers" if cluster == OUTLIER else f"Cluster {cluster}"),
                "rows": by_id[cluster].rows if cluster in by_id else None,
            }
            for cluster in order
        ],
        "profile": {str(c): lines for c, lines in clusters.hover(order[:100]).items()},
        "about": facts,
    }
    return found | _sheet(run, table)


def _sheet(run: RunFiles, table: pa.Table) -> dict[str, Any]:
    shape = run.config.source.image_shape if run.config else None
    if shape is None or FEATURES not in table.column_names:
        return {}
    values = matrix_of(table[FEATURES])
    if not drawable(shape, values.shape[1]):
        return {}
    tiles = pixels(values)
    image = data_uri(sheet(tiles, shape, _SHEET_COLUMNS))
    if len(image) > _SHEET_CHARACTERS:
        return {}
    facts = {"image": image, "columns": _SHEET_COLUMNS, "rows": -(-len(table) // _SHEET_COLUMNS)}
    return {"sheet": facts | {"height": shape[0], "width": shape[1]}}


def confidence(run: RunFiles, clusters: Clusters) -> dict[str, Any]:
    """Histograms of the confidence of published rows; empty where none can be read."""
    assignments = run.found("assign", Assignments)
    if assignments is None:
        return {}
    try:
        listed = [f for f in read_file_list(run.lake, assignments.files.path).files if f.rows]
    except (FileNotFoundError, PipelineError):
        return {}
    random = np.random.default_rng(0)
    chosen = listed
    if len(listed) > _FILES:
        chosen = [listed[n] for n in np.sort(random.choice(len(listed), _FILES, replace=False))]
    ids = [cluster.id for cluster in clusters.used[:_HISTOGRAMS]]
    known = pa.array(ids, pa.int32())
    all_B, by_cluster_KB = np.zeros(_BINS, np.int64), np.zeros((len(ids) + 1, _BINS), np.int64)
    rows = files = 0
    for part in chosen:
        # Whole files: they are sorted by cluster, and their first rows have low ids only.
        if rows and rows + part.rows > _ROWS:
            continue
        file = StoredFile(path=part.path, sha256="", bytes=part.bytes)
        table = run.table(file, ["cluster_id", "confidence"])
        if table is None:
            continue
        bins = np.clip(table["confidence"].to_numpy() * _BINS, 0, _BINS - 1).astype(np.int64)
        all_B += np.bincount(bins, minlength=_BINS)
        place = pc.fill_null(pc.index_in(table["cluster_id"], known), len(ids)).to_numpy()
        np.add.at(by_cluster_KB, (place, bins), 1)
        rows, files = rows + len(table), files + 1
    if not rows:
        return {}
    return {
        "bins": _BINS,
        "all": all_B.tolist(),
        "clusters": ids,
        "by_cluster": by_cluster_KB[:-1].tolist(),
        "rows": rows,
        "files": files,
        "all_files": len(listed),
    }


def flow(run: RunFiles) -> dict[str, Any]:
    """Rows shared by the previous champion's clusters and a new model's; empty without one."""
    identity = run.found("identify", Identity)
    table = run.table(identity.transitions) if identity else None
    if table is None or not len(table):
        return {}
    rows = sorted(table.to_pylist(), key=lambda row: -row["rows"])
    moved = [row for row in rows if row["from_id"] is not None and row["to_id"] is not None]
    shown = [row for row in moved if row["rows"]][:_BANDS]
    return {
        "bands": [[row["from_id"], row["to_id"], row["rows"], row["kind"]] for row in shown],
        "all_bands": len(moved),
        "kinds": Counter(row["kind"] for row in rows),
        # A refused model that labels the rows, because no other could, is the champion, too.
        "refused": run.summary.refused and run.summary.challenger != run.summary.champion,
    }


def since_last_night(run: RunFiles, clusters: Clusters) -> dict[str, Any]:
    """Sizes tonight beside those of the night before, by permanent id; empty without one."""
    summary = run.summary
    try:
        snapshot = read_snapshot(run.lake, summary.snapshot)
        ds = snapshot.before(summary.ds)
        if ds is None:
            return {}
        before = RunFiles(run.lake, snapshot.partitions[ds].run_id).summary
    except (OSError, PipelineError):
        return {}
    old = dict(zip(before.cluster_ids, before.cluster_rows, strict=True))
    new = {cluster.id: cluster.rows for cluster in clusters.all}
    changes = [
        {"id": cluster, "before": old.get(cluster), "now": new.get(cluster)}
        for cluster in {*old, *new}
        if old.get(cluster) or new.get(cluster)
    ]
    changes.sort(key=lambda c: (-abs((c["now"] or 0) - (c["before"] or 0)), c["id"]))
    return {
        "ds": before.ds,
        "run_id": before.run_id,
        "rows": before.rows_out,
        "changes": changes[:_LISTED_CHANGES],
        "all_changes": len(changes),
    }


def _rounded(column: pa.ChunkedArray) -> list[float]:
    found: list[float] = np.round(column.to_numpy().astype(np.float64), 4).tolist()
    return found
