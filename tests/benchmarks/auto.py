"""How many clusters ``clusters: auto`` finds where the truth is known, over several seeds.

    python -m tests.benchmarks.auto [--data FOLDER] [--tables digits pendigits] [--seeds 5]

Of each table and seed: the autoencoder is pretrained as in a run, but in memory and without Ray,
the embeddings of a sample are merged as ``init_centroids`` merges them, and k-means is run with the
number that was found and with the true one. Labels only score. What is known by construction is
measured beside it: groups in a plane or in ten dimensions, and single ones. Writes ``AUTO.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artifacts.records import fingerprint_of
from pipeline.clustering.agreement import agreement
from pipeline.clustering.kmeans import kmeans, nearest_centroid
from pipeline.clustering.merging import TREES, find_clusters
from pipeline.clustering.quality import contingency_of
from pipeline.config import AutoClusters, Config
from pipeline.tuning.fitting import fit
from tests.benchmarks.quality import ROOT, machine
from tests.benchmarks.settings import FILES, load

# Of MNIST, 70,000 rows, training on all takes a quarter of an hour a seed; the others are whole.
FIT_ROWS = 10_000
SAMPLE_ROWS = 20_000
TRUE = 10
MOST = AutoClusters().most

Points = tuple[NDArray[np.float32], NDArray[np.int64]]


def embedded(name: str, data: Path, seed: int, kept: Path | None) -> Points:
    """Pretrained embeddings of a table's rows, and their classes."""
    table = load(name, data)
    rows = learnt = np.arange(len(table.x_NF))
    if len(rows) > SAMPLE_ROWS:
        rows = np.random.default_rng(seed).permutation(len(rows))[:SAMPLE_ROWS]
        learnt = rows[:FIT_ROWS]
    config = Config.model_validate(
        {
            "source": {"path": "in", "features": ["x"]},
            "output": "out",
            "clusters": 2,  # of embeddings that are only trained and scaled
            "centroids": {"start": "kmeans", "restarts": 1},
            "refine": {"passes": 0},
            "seed": seed,
        }
    )
    kept_as = f"{name}-{seed}-{fingerprint_of([config.fit_settings(), FIT_ROWS])[:12]}.npz"
    file = kept / kept_as if kept else None
    if file and file.exists():
        with np.load(file) as found:
            return found["z"], found["classes"]
    trained = fit(config, table.x_NF[learnt], table.widths)
    z = trained.embedded(torch.from_numpy(np.array(table.x_NF[rows]))).numpy()
    classes = table.classes_N[rows]
    if file:
        np.savez(file, z=z, classes=classes)
    return z, classes


def constructed(seed: int) -> Iterator[tuple[str, int, NDArray[np.float32]]]:
    """Points whose number of groups is known: what they are, the number, the points."""
    random = np.random.default_rng(seed)

    def groups(sizes: list[int], dimensions: int, apart: float = 8.0) -> NDArray[np.float32]:
        centers: list[NDArray[np.float64]] = []
        side = apart
        while len(centers) < len(sizes):
            center = random.uniform(-side, side, dimensions)
            if all(np.linalg.norm(center - other) >= apart for other in centers):
                centers.append(center)
            side *= 1.01
        parts = [
            c + random.normal(size=(n, dimensions)) for c, n in zip(centers, sizes, strict=True)
        ]
        return np.concatenate(parts).astype(np.float32)

    for number in (3, 7, 20):
        yield f"{number} groups, 10 dimensions", number, groups([200] * number, 10)
    yield "5 groups, a plane", 5, groups([600] * 5, 2)
    yield "6 groups of 2,500 to 100 rows", 6, groups([2500, 1000, 750, 500, 150, 100], 10)
    yield "one gaussian, 10 dimensions", 1, random.normal(size=(5000, 10)).astype(np.float32)
    yield "one gaussian, a plane", 1, random.normal(size=(5000, 2)).astype(np.float32)
    stretched = random.normal(size=(5000, 10)) * [10, 5, 2, 1, 1, 1, 0.5, 0.5, 0.3, 0.1]
    yield "one long gaussian", 1, stretched.astype(np.float32)
    yield "a full cube, 10 dimensions", 1, random.uniform(size=(5000, 10)).astype(np.float32)


def nmi(z: NDArray[np.float32], classes: NDArray[np.int64], clusters: int, seed: int) -> float:
    """NMI of k-means with the classes, in %."""
    found = kmeans(z, clusters, restarts=10, iterations=50, seed=seed)
    return 100 * agreement(contingency_of(nearest_centroid(z, found.centroids_KD), classes)).nmi


def measure(name: str, data: Path, seeds: int, kept: Path | None) -> str:
    """One table's line."""
    numbers, scores, true_scores, spreads, boundaries, seconds = [], [], [], [], [], []
    for seed in range(seeds):
        z, classes = embedded(name, data, seed, kept)
        began = time.process_time()
        found = find_clusters(z, MOST, seed)
        seconds.append(time.process_time() - began)
        numbers.append(found.clusters)
        spreads.append(f"{found.votes[0]}–{found.votes[-1]}")
        boundaries.append(found.boundary)
        scores.append(nmi(z, classes, found.clusters, seed))
        true_scores.append(nmi(z, classes, TRUE, seed))
    inside = sum(8 <= number <= 12 for number in numbers)
    cells = (
        *(name, str(TRUE), ", ".join(map(str, numbers)), f"{inside} of {seeds}"),
        *(", ".join(spreads), f"{fmean(boundaries):.2f}"),
        *(f"{fmean(column):.1f}" for column in (scores, true_scores, seconds)),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.auto")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    tables = ["digits", *FILES]
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a folder in which embeddings are kept")
    options = parser.parse_args()
    lines = [
        "# How many clusters `clusters: auto` finds",
        "",
        "Written by `python -m tests.benchmarks.auto`; do not edit. k̂: the number found for each",
        f"seed, at most {MOST}. Starts: smallest – largest number that {TREES} starts found for a",
        "seed. Boundary: its mean. NMI in %: k-means on the same embeddings with k̂ and with the",
        "true number of clusters. The autoencoders have the default config and 30 passes; on MNIST",
        f"they learn from {FIT_ROWS:,} rows (a run learns from all 70,000), with a sample of",
        f"{SAMPLE_ROWS:,} rows. The aim is 8 to 12. The rule was chosen with these tables in view:",
        "expect less on others.",
        "",
        "| table | classes | k̂ by seed | 8 to 12 | starts | boundary | NMI, k̂ | NMI, 10 | core s |",
        "|---|--:|---|--:|---|--:|--:|--:|--:|",
    ]
    for name in options.tables:
        if name in FILES and not (options.data / FILES[name]).exists():
            print(f"{name}: skipped, {FILES[name]} is not in the data folder")
            continue
        lines.append(measure(name, options.data, options.seeds, options.keep))
        print(lines[-1], flush=True)
    lines += ["", "| synthetic data | groups | k̂ by seed |", "|---|--:|---|"]
    found: dict[tuple[str, int], list[int]] = {}
    for seed in range(options.seeds):
        for words, true, points in constructed(seed):
            found.setdefault((words, true), []).append(find_clusters(points, MOST, seed).clusters)
    for (words, true), numbers in found.items():
        lines.append(f"| {words} | {true} | {', '.join(map(str, numbers))} |")
        print(lines[-1], flush=True)
    lines += ["", "The smallest number that is ever chosen is 2.", "", f"Measured on {machine()}."]
    Path(__file__).with_name("AUTO.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
