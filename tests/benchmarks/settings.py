"""What each setting of a fit is worth: before and after, on the same seeds.

    python -m tests.benchmarks.settings [--data FOLDER] [--tables digits satimage] [--seeds 2]
    python -m tests.benchmarks.settings --summary

Fits run as in a night, but in memory, in one thread and without Ray (``pipeline.tuning``), and
DEC's labels are scored, whatever would be shipped. Labels choose nothing. What is finished is kept
in ``settings.jsonl`` and shown in ``SETTINGS.md``, so that a stopped benchmark goes on where it
was; delete the file to measure anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from pipeline.clustering.agreement import agreement
from pipeline.clustering.first_clusters import FirstClusters
from pipeline.clustering.kmeans import nearest_centroid
from pipeline.clustering.quality import contingency_of
from pipeline.config import Config, load_config
from pipeline.model.pretraining import Pretraining
from pipeline.tuning import fitting
from tests.benchmarks.quality import ROOT, machine

METRICS = ("acc", "nmi", "ari")
FILES = {
    "satimage": "satimage.parquet",
    "drybean": "drybean.parquet",
    "pendigits": "pendigits.parquet",
    "reuters": "reuters21578_top10_tfidf2000.parquet",
    "mnist": "mnist.parquet",
}
# As for --set, more than one by spaces; each beside the defaults.
VARIANTS = (
    "",
    # All that 0.1.0 had otherwise.
    "embedding.metric=none centroids.start=kmeans refine.size_balance=1 "
    "model.hidden=[500,500,2000]",
    "embedding.metric=none",
    "embedding.spread=null",
    "centroids.start=kmeans",
    "centroids.restarts=5",
    "refine.teaching_passes=0",
    "refine.size_balance=0",
    "refine.size_balance=1",
    "model.hidden=[500,500,2000]",
    "pretrain.min_updates=400",
    "pretrain.passes=15 pretrain.min_updates=400",
    "pretrain.min_updates=400 refine.min_updates=400",
    "pretrain.noise=0",
    "pretrain.schedule=constant",
    "refine.target=frozen",
    "refine.reconstruction_weight=0.1",
)
RESULTS = Path(__file__).with_name("settings.jsonl")


@dataclass(frozen=True)
class Table:
    """Rows to cluster, shape (rows, features), the widths of their columns, and true classes."""

    x_NF: NDArray[np.generic]
    widths: list[int]
    classes_N: NDArray[np.int64]


def load(name: str, data: Path) -> Table:
    """A table in memory."""
    if name == "digits":
        x_NF, classes_N = load_digits(return_X_y=True)
        return Table(x_NF.astype(np.float32), [x_NF.shape[1]], classes_N)
    table = pq.read_table(data / FILES[name]).combine_chunks()
    classes_N = np.unique(table["label"].to_numpy(), return_inverse=True)[1]
    if "x" in table.column_names:
        flat = table["x"].chunk(0).flatten().to_numpy(zero_copy_only=False)
        x_NF = flat.reshape(len(table), -1)
        return Table(x_NF, [x_NF.shape[1]], classes_N)
    columns = [n for n in table.column_names if n not in ("id", "label")]
    x_NF = np.stack([table[n].to_numpy() for n in columns], axis=1)
    return Table(x_NF, [1] * len(columns), classes_N)


class SharedWork:
    """Keeps what fits of one table and seed have in common: pretraining, and first clusters.

    ``seconds`` are the CPU seconds that this saved so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._pretrained: dict[str, tuple[dict[str, torch.Tensor], float]] = {}
        self._first: dict[str, tuple[FirstClusters, float]] = {}
        self._pretraining = ""  # key of the latest one
        self._run, self._find = Pretraining.run, fitting.find_first_clusters

    def __enter__(self) -> SharedWork:
        shared = self

        def run(training: Pretraining, rows: Any) -> Iterator[Any]:
            network = training.autoencoder
            key = shared._pretraining = f"{network} {training.settings!r} {training.seed}"
            if key not in shared._pretrained:
                begun = time.process_time()
                yield from shared._run(training, rows)
                state = copy.deepcopy(network.state_dict())
                shared._pretrained[key] = state, time.process_time() - begun
                return
            state, seconds = shared._pretrained[key]
            network.load_state_dict(state)
            shared.seconds += seconds

        def find(config: Config, *points: Any) -> FirstClusters:
            key = f"{shared._pretraining} {config.embedding!r} {config.centroids!r}"
            if key not in shared._first:
                begun = time.process_time()
                found = shared._find(config, *points)
                shared._first[key] = found, time.process_time() - begun
            else:
                shared.seconds += shared._first[key][1]
            return shared._first[key][0]

        setattr(Pretraining, "run", run)  # noqa: B010  mypy allows no other way
        setattr(fitting, "find_first_clusters", find)  # noqa: B010
        return self

    def __exit__(self, *_: object) -> None:
        setattr(Pretraining, "run", self._run)  # noqa: B010
        setattr(fitting, "find_first_clusters", self._find)  # noqa: B010


def score(
    table: Table, seed: int, variant: str, config_file: Path, shared: SharedWork
) -> dict[str, float]:
    """Agreement of DEC's labels with the classes, in %, and CPU seconds of a fit by itself."""
    clusters = len(np.unique(table.classes_N))
    least = {"source": {"path": "in", "features": ["x"]}, "output": "out", "clusters": clusters}
    config_file.write_text(yaml.safe_dump(least | {"seed": seed}))
    config = load_config(str(config_file), variant.split())
    begun = time.process_time() + shared.seconds
    found = fitting.fit(config, table.x_NF, table.widths)
    seconds = time.process_time() + shared.seconds - begun
    z_ND = found.embedded(torch.from_numpy(np.array(table.x_NF))).numpy()
    labels_N = nearest_centroid(z_ND, found.centroids_KD.numpy())
    scores = agreement(contingency_of(labels_N, table.classes_N))
    return {m: 100 * getattr(scores, m) for m in METRICS} | {"seconds": seconds}


def stored() -> list[dict[str, Any]]:
    """Records of finished fits."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def measure(name: str, data: Path, seeds: int, variants: Sequence[str]) -> None:
    """Fit one table as often as is left, and append a record for each fit."""
    table = load(name, data)
    done = {(r["table"], r["seed"], r["variant"]) for r in stored()}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder, SharedWork() as shared:
            for variant in variants:
                if (name, seed, variant) in done:
                    continue
                scores = score(table, seed, variant, Path(folder) / "config.yaml", shared)
                record = {"table": name, "rows": len(table.x_NF), "seed": seed, "variant": variant}
                with RESULTS.open("a") as file:  # a line at once: two processes may measure
                    file.write(json.dumps(record | scores) + "\n")
                print(record | scores, flush=True)


def render(records: Sequence[dict[str, Any]]) -> str:
    """What SETTINGS.md says: in each line the seeds that both it and the defaults have."""
    lines = [
        "# Effect of each setting",
        "",
        "Written by `python -m tests.benchmarks.settings`; do not edit. Means over the seeds in %;",
        "a line differs from the defaults in the settings that it names. Gains by seed are those",
        "over the defaults on the same seed. Seconds are CPU seconds of the fit in one thread.",
        "Labels are used for scoring only.",
    ]
    for name in ("digits", *FILES):
        by_variant = {
            variant: {
                r["seed"]: r for r in records if (r["table"], r["variant"]) == (name, variant)
            }
            for variant in VARIANTS
        }
        defaults = by_variant[""]
        if not defaults:
            continue
        rows = next(iter(defaults.values()))["rows"]
        lines += [
            "",
            f"## {name}, {rows:,} rows",
            "",
            "| setting | seeds | DEC: ACC / NMI / ARI | gain in NMI, by seed | in ARI | seconds |",
            "|---|--:|---|---|---|--:|",
        ]
        for variant in VARIANTS:
            seeds = sorted(by_variant[variant].keys() & defaults.keys())
            if not seeds:
                continue
            own = [by_variant[variant][seed] for seed in seeds]
            means = " / ".join(f"{fmean(r[m] for r in own):.1f}" for m in METRICS)
            gains = [
                ", ".join(
                    f"{r[m] - defaults[seed][m]:+.1f}" for seed, r in zip(seeds, own, strict=True)
                )
                if variant
                else ""
                for m in ("nmi", "ari")
            ]
            what = f"`{variant}`" if variant else "the defaults"
            cells = [what, str(len(seeds)), means, *gains]
            lines.append(f"| {' | '.join(cells)} | {fmean(r['seconds'] for r in own):.1f} |")
    return "\n".join([*lines, "", f"On {machine()}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.settings")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    tables = ["digits", *FILES]
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables[:4])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="only write SETTINGS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in () if options.summary else options.tables:
        if name in FILES and not (options.data / FILES[name]).exists():
            print(f"{name}: skipped, {FILES[name]} is not in the data folder")
        else:
            measure(name, options.data, options.seeds, options.variants)
    text = render(stored())
    Path(__file__).with_name("SETTINGS.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
