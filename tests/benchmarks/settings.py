"""What each setting of the two trainings is worth: before and after, on the same seeds.

    python -m tests.benchmarks.settings [--data FOLDER] [--tables digits pendigits] [--seeds 5]

The trainings run as in a night, but in memory and without Ray. A setting of refinement is tried
from the very autoencoder and centroids that the defaults start from. Labels score the result and
choose nothing. Writes ``SETTINGS.md`` when all is done.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from pipeline.clustering.agreement import Agreement, agreement
from pipeline.clustering.kmeans import kmeans, nearest_centroid
from pipeline.clustering.quality import contingency_of
from pipeline.config import Model, Pretrain, Refine
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.pretraining import Pretraining
from pipeline.model.refinement import ClusterModel, Refinement, embedding_factor
from pipeline.model.scaling import Moments, Scaler
from tests.benchmarks.frequency import Rows
from tests.benchmarks.quality import ROOT, machine

CLUSTERS = 10
METRICS = ("acc", "nmi", "ari")
FILES = {
    "pendigits": "pendigits.parquet",
    "reuters": "reuters21578_top10_tfidf2000.parquet",
    "mnist": "mnist.parquet",
}


@dataclass(frozen=True)
class Variant:
    """The defaults but for a few settings."""

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    pretrain: Mapping[str, Any] = field(default_factory=dict)
    refine: Mapping[str, Any] = field(default_factory=dict)


DEFAULTS = Variant("the defaults")
VARIANTS = (
    DEFAULTS,
    Variant("model.precision=float32", model={"precision": "float32"}),
    Variant("model.precision=bfloat16", model={"precision": "bfloat16"}),
    Variant("pretrain.noise=0", pretrain={"noise": 0.0}),
    Variant("pretrain.noise=0.2", pretrain={"noise": 0.2}),
    Variant("pretrain.schedule=constant", pretrain={"schedule": "constant"}),
    Variant("pretrain.weight_decay=0.1", pretrain={"weight_decay": 0.1}),
    Variant("pretrain.max_gradient_norm=1", pretrain={"max_gradient_norm": 1.0}),
    Variant("pretrain.min_updates=0", pretrain={"min_updates": 0}),
    Variant("pretrain.passes=60", pretrain={"passes": 60}),
    Variant("refine.target=frozen", refine={"target": "frozen"}),
    Variant("refine.start_spread=null", refine={"start_spread": None}),
    Variant("refine.min_updates=0", refine={"min_updates": 0}),
    Variant("refine.noise=0.2", refine={"noise": 0.2}),
    Variant("refine.reconstruction_weight=0.1", refine={"reconstruction_weight": 0.1}),
    Variant("refine.max_gradient_norm=1", refine={"max_gradient_norm": 1.0}),
    Variant("refine.schedule=cosine", refine={"schedule": "cosine"}),
    Variant("refine.learning_rate=0.001", refine={"learning_rate": 1e-3}),
)


@dataclass(frozen=True)
class Table:
    """Rows to cluster, and what they truly are."""

    x: Tensor
    classes: NDArray[np.int64]
    scaler: Scaler


def load(name: str, data: Path) -> Table:
    """A table in memory."""
    if name == "digits":
        x, classes = load_digits(return_X_y=True)
    else:
        columns = pq.read_table(data / FILES[name], columns=["x", "label"]).combine_chunks()
        flat = columns["x"].chunk(0).flatten().to_numpy(zero_copy_only=False)
        x, classes = flat.reshape(len(columns), -1), columns["label"].to_numpy()
    x = np.array(x, dtype=np.float32)
    scaler = Scaler.fit("standard", Moments.of(x), [x.shape[1]])
    return Table(torch.from_numpy(x), classes.astype(np.int64), scaler)


def pretrained(table: Table, variant: Variant, seed: int) -> Autoencoder:
    """The autoencoder of a seed."""
    model = Model(**variant.model)
    autoencoder = Autoencoder(
        table.x.shape[1], model.hidden, model.embedding, seed, precision=model.precision
    )
    training = Pretraining(autoencoder, table.scaler, Pretrain(**variant.pretrain), seed)
    for _ in training.run(Rows(table.x, seed)):
        pass
    return autoencoder


def refined(
    table: Table, variant: Variant, seed: int, autoencoder: Autoencoder
) -> tuple[Agreement, Agreement]:
    """Scores of k-means on the embeddings, and of DEC from there."""
    settings = Refine(**variant.refine)
    autoencoder = copy.deepcopy(autoencoder)
    with torch.no_grad():
        z = autoencoder.encoder(table.scaler(table.x)).numpy()
    found = kmeans(z, CLUSTERS, restarts=20, iterations=50, seed=seed)
    before = nearest_centroid(z, found.centroids_KD)
    factor = embedding_factor(settings.start_spread, found.objective / len(z), z.shape[1])
    autoencoder.rescale_embedding(factor)
    centroids_KD = torch.from_numpy(found.centroids_KD) * factor
    training = Refinement(
        ClusterModel(autoencoder.encoder, centroids_KD, settings.alpha),
        table.scaler,
        settings,
        decoder=autoencoder.decoder,
        reference=lambda: table.x,
        seed=seed,
    )
    for _ in training.run(Rows(table.x, seed)):
        pass
    with torch.no_grad():
        after = training.model(table.scaler(table.x)).argmax(dim=1).numpy()
    first, last = (agreement(contingency_of(labels, table.classes)) for labels in (before, after))
    return first, last


def measure(name: str, data: Path, seeds: int) -> list[str]:
    """One table's comparison, as lines of Markdown."""
    table = load(name, data)
    kept: dict[int, Autoencoder] = {}
    lines = [
        "",
        f"## {name}, {len(table.x):,} rows, seeds 0 to {seeds - 1}",
        "",
        "| setting | autoencoder + k-means: ACC / NMI / ARI | DEC: ACC / NMI / ARI "
        "| gain over the defaults, NMI by seed |",
        "|---|---|---|---|",
    ]
    baseline: list[Agreement] = []
    for variant in VARIANTS:
        firsts, lasts = [], []
        for seed in range(seeds):
            if variant.model or variant.pretrain or seed not in kept:
                autoencoder = pretrained(table, variant, seed)
                kept.setdefault(seed, autoencoder)
            else:
                autoencoder = kept[seed]
            first, last = refined(table, variant, seed, autoencoder)
            firsts.append(first)
            lasts.append(last)
        baseline = baseline or lasts
        gains = [100 * (a.nmi - b.nmi) for a, b in zip(lasts, baseline, strict=True)]
        gain = f"{fmean(gains):+.1f} ± {stdev(gains) if len(gains) > 1 else 0:.1f}"
        lines.append(f"| `{variant.name}` | {means(firsts)} | {means(lasts)} | {gain} |")
        print(lines[-1], flush=True)
    return lines


def means(scores: list[Agreement]) -> str:
    return " / ".join(f"{100 * fmean(getattr(s, m) for s in scores):.1f}" for m in METRICS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.settings")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    tables = ["digits", *FILES]
    parser.add_argument("--tables", nargs="+", choices=tables, default=["digits", "pendigits"])
    parser.add_argument("--seeds", type=int, default=5)
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
        lines += measure(name, options.data, options.seeds)
    lines += ["", f"{time.monotonic() - start:,.0f} s on {machine()}."]
    Path(__file__).with_name("SETTINGS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
