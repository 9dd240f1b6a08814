"""What a person reads at the end of a run."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.console import verdict
from pipeline.artifacts import Candidate, Comparison, ModelKind, Standing, StoredFile


def compared(
    ranks: dict[ModelKind, tuple[float, float]],
    *,
    empty: dict[ModelKind, int] | None = None,
    generalisation: float | None = None,
) -> Comparison:
    """A comparison with these (mean rank, silhouette), best first."""
    silhouettes = [silhouette for _, silhouette in ranks.values()]
    rest: dict[str, Any] = {"spaces": (), "balance": 1.0, "stability": None, "scores": None}
    return Comparison(
        candidates=tuple(
            Candidate(
                kind=kind, silhouette=silhouette, empty_clusters=(empty or {}).get(kind, 0), **rest
            )
            for kind, (_, silhouette) in ranks.items()
        ),
        judges=("features", "pretrained"),
        standings=tuple(Standing(kind=k, mean_rank=rank) for k, (rank, _) in ranks.items()),
        winner=next(iter(ranks)),
        margin=silhouettes[0] - silhouettes[1],
        rows=600,
        held_out_rows=12,
        generalisation=generalisation,
        centroids=StoredFile(path="c", sha256="0", bytes=1),
        restarts=20,
    )


SPACES = "(silhouettes on scaled features and the autoencoder's embedding)."


def test_dec_won() -> None:
    result = compared({"dec": (1, 0.213), "autoencoder": (2.5, 0.207), "kmeans": (2.5, 0.204)})
    assert verdict(result, "dec") == [
        "DEC won: mean rank 1 against 2.5 of autoencoder + k-means, silhouette 0.213 against "
        "0.207 " + SPACES,
        "Shipped: DEC.",
    ]


@pytest.mark.parametrize(
    ("shipped", "line"),
    [
        ("dec", "Shipped all the same: DEC, by refine.select: dec; auto ships the winner."),
        ("kmeans", "Shipped, by refine.select: auto: k-means, not DEC."),
    ],
)
def test_kmeans_won(shipped: str, line: str) -> None:
    result = compared({"kmeans": (1, 0.4), "dec": (2, 0.3), "autoencoder": (3, 0.2)})
    won, then = verdict(result, shipped)
    assert won.startswith(
        "k-means won: mean rank 1 against 2 of DEC, silhouette 0.400 against 0.300 "
    )
    assert then == line


def test_a_tie_goes_to_the_simpler_one() -> None:
    result = compared({"kmeans": (2, 0.4), "autoencoder": (2, 0.4), "dec": (2, 0.4)})
    won = verdict(result, "dec")[0]
    assert won == "k-means won: it is as good as autoencoder + k-means, and simpler " + SPACES


def test_empty_clusters_are_the_reason() -> None:
    ranks: dict[ModelKind, tuple[float, float]] = {
        "autoencoder": (2, 0.2),
        "kmeans": (3, 0.1),
        "dec": (1, 0.9),
    }
    result = compared(ranks, empty={"kmeans": 3, "dec": 4})
    won = verdict(result, "dec")[0]
    assert won == "autoencoder + k-means won: 0 empty clusters, k-means has 3 " + SPACES


def test_generalisation() -> None:
    result = compared({"dec": (1, 0.2), "kmeans": (2, 0.1)}, generalisation=0.934)
    assert verdict(result, "dec")[-1] == (
        "DEC's KL on the rows that it learnt from is 0.93 times that on 12 sampled rows that it "
        "did not see."
    )
