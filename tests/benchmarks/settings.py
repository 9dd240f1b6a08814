"""What each setting of a fit is worth: before and after, on the same seeds.

    python -m tests.benchmarks.settings [--data FOLDER] [--tables digits satimage] [--seeds 3]

Fits run as in a night, but in memory and without Ray (``pipeline.tuning.fitting``), and DEC's
labels are scored, whatever would be shipped. Labels choose nothing. Writes ``SETTINGS.md`` when
all is done.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from pipeline.clustering.agreement import Agreement, agreement
from pipeline.clustering.kmeans import nearest_centroid
from pipeline.clustering.quality import contingency_of
from pipeline.config import load_config
from pipeline.tuning.fitting import fit
from tests.benchmarks.quality import ROOT, machine

METRICS = ("acc", "nmi", "ari")
FILES = {
    "satimage": "satimage.parquet",
    "drybean": "drybean.parquet",
    "pendigits": "pendigits.parquet",
    "reuters": "reuters21578_top10_tfidf2000.parquet",
    "mnist": "mnist.parquet",
}
# As for --set; each alone beside the defaults.
VARIANTS = (
    "embedding.metric=none",
    "embedding.spread=null",
    "centroids.start=kmeans",
    "refine.teaching_passes=0",
    "refine.teaching_passes=10",
    "refine.size_balance=0",
    "refine.size_balance=0.25",
    "refine.size_balance=1",
    "model.hidden=[500, 500, 2000]",
    "model.precision=bfloat16",
    "pretrain.noise=0",
    "pretrain.noise=0.2",
    "pretrain.schedule=constant",
    "pretrain.passes=60",
    "refine.target=frozen",
    "refine.noise=0.2",
    "refine.reconstruction_weight=0.1",
    "refine.schedule=cosine",
    "refine.learning_rate=0.001",
)


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


def score(table: Table, seed: int, variant: str | None, config_file: Path) -> Agreement:
    """Agreement of DEC's labels with the classes."""
    clusters = len(np.unique(table.classes_N))
    least = {"source": {"path": "in", "features": ["x"]}, "output": "out", "clusters": clusters}
    config_file.write_text(yaml.safe_dump(least | {"seed": seed}))
    config = load_config(str(config_file), [variant] if variant else [])
    found = fit(config, table.x_NF, table.widths)
    z_ND = found.embedded(torch.from_numpy(np.array(table.x_NF))).numpy()
    labels_N = nearest_centroid(z_ND, found.centroids_KD.numpy())
    return agreement(contingency_of(labels_N, table.classes_N))


def measure(name: str, data: Path, seeds: int, config_file: Path) -> list[str]:
    """One table's comparison, as lines of Markdown."""
    table = load(name, data)
    lines = [
        "",
        f"## {name}, {len(table.x_NF):,} rows, seeds 0 to {seeds - 1}",
        "",
        "| setting | DEC: ACC / NMI / ARI | gain over the defaults: NMI, ARI by seed |",
        "|---|---|---|",
    ]
    defaults: list[Agreement] = []
    for variant in (None, *VARIANTS):
        scores = [score(table, seed, variant, config_file) for seed in range(seeds)]
        defaults = defaults or scores
        gains = []
        for metric in ("nmi", "ari"):
            pairs = zip(scores, defaults, strict=True)
            by_seed = [100 * (getattr(a, metric) - getattr(b, metric)) for a, b in pairs]
            spread = stdev(by_seed) if len(by_seed) > 1 else 0
            gains.append(f"{fmean(by_seed):+.1f} ± {spread:.1f}")
        what = f"`{variant}`" if variant else "the defaults"
        lines.append(f"| {what} | {means(scores)} | {', '.join(gains)} |")
        print(lines[-1], flush=True)
    return lines


def means(scores: list[Agreement]) -> str:
    return " / ".join(f"{100 * fmean(getattr(s, m) for s in scores):.1f}" for m in METRICS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.settings")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    tables = ["digits", *FILES]
    parser.add_argument("--tables", nargs="+", choices=tables, default=["digits", "satimage"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    start = time.monotonic()
    lines = [
        "# Effect of each setting",
        "",
        "Written by `python -m tests.benchmarks.settings`; do not edit. Means in %; in each line",
        "one setting differs from the defaults. Labels are used for scoring only.",
    ]
    for name in options.tables:
        if name in FILES and not (options.data / FILES[name]).exists():
            print(f"{name}: skipped, {FILES[name]} is not in the data folder")
            continue
        with tempfile.TemporaryDirectory() as folder:
            config_file = Path(folder) / "config.yaml"
            lines += measure(name, options.data, options.seeds, config_file)
    lines += ["", f"{time.monotonic() - start:,.0f} s on {machine()}."]
    Path(__file__).with_name("SETTINGS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
