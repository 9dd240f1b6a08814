"""What the frequency f over the whole pass changes, against f of each minibatch.

    python -m tests.benchmarks.frequency [--seeds 5] [--tables balanced imbalanced sorted]

DEC's target divides by f_j = Σ_i q_ij over all rows (Xie et al. 2016, eq. 3). Summed over the
minibatch instead, it needs no pass over the rows, and p then depends on which rows meet in a batch.
Both are refined here from the same autoencoder and the same centroids, over the same batches, with
q from the same frozen model: f is all that differs. Prints the tables of decision 0001.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from pipeline.clustering.agreement import Agreement, agreement
from pipeline.clustering.kmeans import kmeans
from pipeline.config import Pretrain, Refine
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.clusters import ClusterModel
from pipeline.model.pretraining import Pretraining
from pipeline.model.refinement import Refinement
from pipeline.model.scaling import Moments, Scaler
from tests.paper import target_distribution

CLUSTERS = 10
BATCHES_ROWS = (64, 256)
TABLES = ("balanced", "imbalanced", "sorted")
# A tenth of the parameters of the default network: the same effect, in minutes.
HIDDEN, EMBEDDING = (128, 128, 512), 10
REFINE_PASSES = 20


class Rows:
    """All rows in memory, in a seeded order a pass (a ``TrainingRows``).

    Args:
        x: Raw rows, shape (rows, features).
        seed: With the pass, decides the order.
        whole: Shuffle whole batches and not the rows, as where neighbours in a large table meet in
            the same batch however its files are shuffled.
    """

    def __init__(self, x: Tensor, seed: int, *, whole: bool = False) -> None:
        self.x, self.seed, self.whole = x, seed, whole
        self.total_rows, self.features = x.shape

    def batches(self, pass_number: int, batch_rows: int, *, shuffled: bool) -> Iterator[Tensor]:
        order = np.arange(len(self.x))
        starts = np.arange(0, len(order), batch_rows)
        if shuffled:
            random = np.random.default_rng([self.seed, pass_number])
            if self.whole:
                starts = random.permutation(starts)
            else:
                order = random.permutation(order)
        for start in starts:
            yield self.x[order[start : start + batch_rows]]


class MinibatchRefinement(Refinement):
    """The same but for f, which is that of the rows at hand."""

    def _losses(
        self, raw_BF: Tensor, frequency_K: Tensor, random: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        del frequency_K
        q_BK = self.frozen(self.scaler(raw_BF))
        return super()._losses(raw_BF, q_BK.sum(dim=0, dtype=torch.float64), random)


@dataclass(frozen=True)
class Outcome:
    """A partition, scored.

    Attributes:
        scores: Against the true digits.
        effective_clusters: exp of the entropy of the cluster sizes; K when all are of one size.
        smallest_rows: Rows of the smallest cluster.
    """

    scores: Agreement
    effective_clusters: float
    smallest_rows: int


@dataclass(frozen=True)
class Difference:
    """The target at the first update by the batch's f, against that by the exact f.

    Attributes:
        mean: Mean |Δp_ij| over rows and clusters.
        moved: Mean Σ_j |Δp_ij|/2 a row: share of the target that goes to other clusters.
        argmax: Share of rows whose most likely cluster differs.
    """

    mean: float
    moved: float
    argmax: float


def digits(table: str, seed: int) -> tuple[Tensor, NDArray[np.int64]]:
    """All 1,797 digits; without 90 % of half of the classes, drawn by the seed; or by class."""
    x, label = load_digits(return_X_y=True)
    if table == "sorted":
        order = np.argsort(label, kind="stable")
        x, label = x[order], label[order]
    kept = np.ones(len(x), dtype=bool)
    if table == "imbalanced":
        random = np.random.default_rng(seed)
        for rare in random.permutation(CLUSTERS)[: CLUSTERS // 2]:
            members = np.flatnonzero(label == rare)
            kept[random.permutation(members)[len(members) // 10 :]] = False
    return torch.from_numpy(x[kept].astype(np.float32)), label[kept]


def first_model(x: Tensor, scaler: Scaler, seed: int) -> ClusterModel:
    """A pretrained encoder, and k-means on its embeddings."""
    autoencoder = Autoencoder(x.shape[1], HIDDEN, EMBEDDING, seed=seed)
    for _ in Pretraining(autoencoder, scaler, Pretrain(), seed=seed).run(Rows(x, seed)):
        pass
    with torch.no_grad():
        z = autoencoder.encoder(scaler(x)).numpy()
    found = kmeans(z, CLUSTERS, restarts=20, iterations=50, seed=seed)
    return ClusterModel(autoencoder.encoder, torch.from_numpy(found.centroids_KD), alpha=1.0)


@torch.no_grad()
def outcome(model: ClusterModel, scaler: Scaler, x: Tensor, label: NDArray[np.int64]) -> Outcome:
    cluster = model(scaler(x)).argmax(dim=1).numpy()
    contingency = np.zeros((CLUSTERS, CLUSTERS), dtype=np.int64)
    np.add.at(contingency, (cluster, label), 1)
    sizes = contingency.sum(axis=1)
    return Outcome(agreement(contingency), effective(sizes), int(sizes.min()))


def effective(sizes: NDArray[np.int64]) -> float:
    share = sizes[sizes > 0] / sizes.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


@torch.no_grad()
def difference(model: ClusterModel, scaler: Scaler, rows: Rows, batch_rows: int) -> Difference:
    frequency_K = model(scaler(rows.x)).sum(dim=0, dtype=torch.float64)
    deltas, others = [], []
    for x_BF in rows.batches(0, batch_rows, shuffled=True):
        q_BK = model(scaler(x_BF))
        exact_BK = target_distribution(q_BK, frequency_K)
        batch_BK = target_distribution(q_BK, q_BK.sum(dim=0, dtype=torch.float64))
        deltas.append((exact_BK - batch_BK).abs())
        others.append(exact_BK.argmax(dim=1) != batch_BK.argmax(dim=1))
    delta_NK = torch.cat(deltas)
    return Difference(
        mean=delta_NK.mean().item(),
        moved=delta_NK.sum(dim=1).mean().item() / 2,
        argmax=torch.cat(others).double().mean().item(),
    )


def refined(
    kind: type[Refinement], model: ClusterModel, scaler: Scaler, rows: Rows, batch_rows: int
) -> ClusterModel:
    # All passes: stopping earlier by one rule or the other would be a second difference.
    settings = Refine(
        passes=REFINE_PASSES, batch_rows=batch_rows, min_updates=0, tol=0, target="frozen"
    )
    training = kind(copy.deepcopy(model), scaler, settings)
    for _ in training.run(rows):
        pass
    return training.model


def line(name: str, results: list[Outcome]) -> str:
    scores = (
        f"{100 * fmean(getattr(r.scores, metric) for r in results):.1f}"
        for metric in ("acc", "nmi", "ari")
    )
    effective_clusters = fmean(r.effective_clusters for r in results)
    smallest = fmean(r.smallest_rows for r in results)
    return f"| {name} | {' | '.join(scores)} | {effective_clusters:.2f} | {smallest:.0f} |"


def paired(exact: list[Outcome], batch: list[Outcome]) -> str:
    """ACC, NMI and ARI of the first minus the second, seed by seed: mean ± standard deviation."""
    texts = []
    for metric in ("acc", "nmi", "ari"):
        pairs = zip(exact, batch, strict=True)
        gaps = [100 * (getattr(a.scores, metric) - getattr(b.scores, metric)) for a, b in pairs]
        texts.append(f"{fmean(gaps):+.1f} ± {stdev(gaps) if len(gaps) > 1 else 0:.1f}")
    return " | ".join(texts)


def measure(table: str, seeds: int) -> None:
    """Run one table's comparison and print it."""
    outcomes: dict[str, list[Outcome]] = {}
    differences: dict[int, list[Difference]] = {}
    classes = []
    for seed in range(seeds):
        x, label = digits(table, seed)
        classes.append(np.bincount(label, minlength=CLUSTERS))
        scaler = Scaler.fit("standard", Moments.of(x.numpy()), [x.shape[1]])
        rows, model = Rows(x, seed, whole=table == "sorted"), first_model(x, scaler, seed)
        outcomes.setdefault("k-means", []).append(outcome(model, scaler, x, label))
        for batch_rows in BATCHES_ROWS:
            found = difference(model, scaler, rows, batch_rows)
            differences.setdefault(batch_rows, []).append(found)
            for name, kind in (("pass", Refinement), ("batch", MinibatchRefinement)):
                result = outcome(refined(kind, model, scaler, rows, batch_rows), scaler, x, label)
                outcomes.setdefault(f"{batch_rows} rows, f of the {name}", []).append(result)
    true_clusters = fmean(effective(sizes) for sizes in classes)
    smallest = fmean(sizes.min() for sizes in classes)
    rows_text = f"{fmean(sizes.sum() for sizes in classes):,.0f}"
    print(f"\n{table}, {rows_text} rows, seeds 0 to {seeds - 1}\n")
    print("| | ACC | NMI | ARI | effective clusters | smallest cluster |")
    print("|---|---|---|---|---|---|")
    print(f"| true classes | | | | {true_clusters:.2f} | {smallest:.0f} |")
    for name, results in outcomes.items():
        print(line(name, results))
    print("\n| pass − batch | ACC | NMI | ARI | mean \\|Δp\\| | p moved | argmax p differs |")
    print("|---|---|---|---|---|---|---|")
    for batch_rows, of_seeds in differences.items():
        gaps = paired(
            *(outcomes[f"{batch_rows} rows, f of the {name}"] for name in ("pass", "batch"))
        )
        mean, moved, argmax = (
            fmean(getattr(d, name) for d in of_seeds) for name in ("mean", "moved", "argmax")
        )
        print(f"| {batch_rows} rows | {gaps} | {mean:.4f} | {moved:.1%} | {argmax:.2%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    options = parser.parse_args()
    start = time.monotonic()
    for table in options.tables:
        measure(table, options.seeds)
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
