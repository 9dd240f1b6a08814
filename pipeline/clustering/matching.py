"""Match the clusters of a new model to known ones: permanent ids by membership.

Both models label two samples. The old model's frozen reference sample shows where its clusters
went: a new cluster is an old one where each holds most of the other's rows. Tonight's sample shows
which of these matches are real: without it, a class that vanished would look merged into the
cluster that its old rows are now nearest to, and a new class would look split off.

The kinds of transition are those of MONIC (Spiliopoulou et al. 2006, "MONIC: modeling and
monitoring cluster transitions", section 3.2), with thresholds in both directions, so that a new
cluster that took in an old one does not get its id. Shape letters: N rows of the reference sample,
M of tonight's, J old clusters, K new ones, C cells of their contingency table with rows, T
transitions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.clustering.bipartite import heaviest_matching
from pipeline.config import Matching
from pipeline.errors import PipelineError

SURVIVAL, SPLIT, MERGE, BIRTH, DEATH = KINDS = ("survival", "split", "merge", "birth", "death")

# No cluster, in arrays of ids.
NONE = -1
# Tolerance in float64, so that a share equal to the threshold reaches it.
_ROUNDING = 1e-9
_MOST_IDS = 2**31


@dataclass(frozen=True)
class Labels:
    """The same rows, labelled by both models: positions of their clusters, shape (rows,)."""

    old: NDArray[np.int64]
    new: NDArray[np.int64]


@dataclass(frozen=True)
class Transitions:
    """Transitions from old to new clusters, as arrays; see ``TRANSITION_SCHEMA``.

    Every old cluster is in exactly one survival, merge or death, every new one in exactly one
    survival, split or birth. A death or birth may have both ids: then the other one is the cluster
    that took or gave most of its rows, below the thresholds.

    ``from`` is the old cluster, ``to`` the new one. Rows are of the reference sample, ``now`` of
    tonight's.
    """

    kind: NDArray[np.int8]  # index into KINDS
    from_id: NDArray[np.int32]  # NONE for a birth out of nothing
    to_id: NDArray[np.int32]  # NONE for a death into nothing
    rows: NDArray[np.int64]  # in both clusters
    from_rows: NDArray[np.int64]
    to_rows: NDArray[np.int64]
    from_rows_now: NDArray[np.int64]
    to_rows_now: NDArray[np.int64]

    def of(self, kind: str) -> NDArray[np.bool_]:
        """Mask of the transitions of a kind."""
        chosen: NDArray[np.bool_] = self.kind == KINDS.index(kind)
        return chosen


@dataclass(frozen=True)
class Matched:
    """The new clusters, by permanent id."""

    # Permanent id of each new cluster, shape (n_new,), int32, all different.
    ids_K: NDArray[np.int32]
    born_K: NDArray[np.bool_]  # whether that id is new
    # Pairs (new id, old id), shape (pairs, 2), int32, sorted, where a born cluster has at least
    # ``matching.splits`` of its rows of the reference sample from the old one.
    parents: NDArray[np.int32]
    transitions: Transitions
    churn: float  # share of the reference sample whose permanent id changes


class _Contingency:
    """Rows of the reference sample counted by the clusters of both models; ``now``: of tonight's.

    Only cells with rows, whose clusters ``old_C`` and ``new_C`` ascend.
    """

    def __init__(
        self, reference: Labels, tonight: Labels, old: int, new: int, thresholds: Matching
    ) -> None:
        self.thresholds, samples = thresholds, (reference, tonight)
        keys = [labels.old * new + labels.new for labels in samples]
        cells, cell = np.unique(np.concatenate(keys), return_inverse=True)
        self.old_C, self.new_C = cells // new, cells % new
        self.rows_C, self.now_C = (
            np.bincount(part, minlength=len(cells)) for part in np.split(cell, [len(keys[0])])
        )
        self.old_J, self.old_now_J = (np.bincount(of.old, minlength=old) for of in samples)
        self.new_K, self.new_now_K = (np.bincount(of.new, minlength=new) for of in samples)
        # Old clusters with next to no rows tonight, and new ones with next to none in the reference
        # sample, by their shares of both samples. Strictly less, so that 0 turns the rule off.
        share_J, now_J = (n / max(1, n.sum()) for n in (self.old_J, self.old_now_J))
        share_K, now_K = (n / max(1, n.sum()) for n in (self.new_K, self.new_now_K))
        self.gone_J = now_J < thresholds.dies * share_J
        self.fresh_K = share_K < thresholds.dies * now_K
        self.weight_C = self._evidence()
        # Total weight of each cell's old cluster, and of its new cluster.
        self.old_total_C = _sums(self.old_C, self.weight_C, old)[self.old_C]
        self.new_total_C = _sums(self.new_C, self.weight_C, new)[self.new_C]
        # Cells whose new cluster is a part of the old one: most of its rows come from it.
        self.part_C = (
            (self.weight_C > 0)
            & _reaches(self.weight_C, thresholds.splits, self.old_total_C)
            & _reaches(self.weight_C, thresholds.survives, self.new_total_C)
            & ~self.fresh_K[self.new_C]
        )

    def _evidence(self) -> NDArray[np.int64]:
        """Weight of each cell for the matching, in rows, shape (cells,).

        The new model assigns the reference rows of a vanished cluster to some other cluster, where
        they would outvote those of existing ones. They count only where the new cluster's rows of
        tonight are the old one's too, or where it has none: there both models know the same
        cluster. Clusters without rows of the reference sample are matched by tonight's rows alone.
        """
        same_C = _reaches(self.now_C, self.thresholds.survives, self.new_now_K[self.new_C])
        weight_C = np.where(self.gone_J[self.old_C] & ~same_C, 0, self.rows_C)
        unseen_C = (self.old_J[self.old_C] == 0) & (self.new_K[self.new_C] == 0)
        return np.where(unseen_C, self.now_C, weight_C)

    def candidates(self) -> NDArray[np.bool_]:
        """Cells whose new cluster may keep the id of the old one.

        Either the old cluster went into the new one, whose rows are mostly of such old clusters
        (survival or merge), or the new one is a part of the old, most of whose rows are in such
        parts (split).
        """
        weight_C, survives = self.weight_C, self.thresholds.survives
        goes_C = (weight_C > 0) & _reaches(weight_C, survives, self.old_total_C)
        gathered_K = _sums(self.new_C[goes_C], weight_C[goes_C], len(self.new_K))
        merged_C = goes_C & _reaches(gathered_K[self.new_C], survives, self.new_total_C)
        kept_J = _sums(self.old_C[self.part_C], weight_C[self.part_C], len(self.old_J))
        split_C = self.part_C & _reaches(kept_J[self.old_C], survives, self.old_total_C)
        found_C: NDArray[np.bool_] = merged_C | split_C
        return found_C


def match(
    reference: Labels,
    tonight: Labels,
    old_ids_J: NDArray[np.int32],
    clusters: int,
    next_id: int,
    thresholds: Matching,
) -> Matched:
    """Give the clusters of a new model permanent ids.

    The weight of a pair of clusters is the number of rows of the reference sample in both, without
    old clusters that vanished tonight. Among pairs that may be the same cluster
    (``_Contingency.candidates``), a maximum-weight matching decides which keep the id. New ids
    follow the order in which clusters first occur in the samples, so that the order of a model's
    clusters does not matter.

    ``old_ids_J`` are the permanent ids of the old clusters, shape (n_old,); ``clusters`` is K, with
    empty ones; ``next_id`` is the first unused id.

    Raises:
        PipelineError: More ids than an int32 has.
    """
    place_K = np.argsort(_order_of_occurrence(reference.new, tonight.new, clusters))
    # From here on, old clusters are ordered by id, new ones by occurrence.
    by_id_J = np.argsort(old_ids_J)
    place_J = np.argsort(by_id_J)
    reference, tonight = (
        Labels(place_J[labels.old], place_K[labels.new]) for labels in (reference, tonight)
    )
    counts = _Contingency(reference, tonight, len(by_id_J), clusters, thresholds)
    old_ids_J = old_ids_J[by_id_J]

    may_C = counts.candidates()
    keeps_C = np.zeros_like(may_C)
    keeps_C[may_C] = heaviest_matching(
        counts.old_C[may_C], counts.new_C[may_C], counts.weight_C[may_C]
    )

    ids_K = np.full(clusters, NONE, np.int32)
    ids_K[counts.new_C[keeps_C]] = old_ids_J[counts.old_C[keeps_C]]
    born_K = ids_K == NONE
    ids_K[born_K] = new_ids(next_id, int(born_K.sum()))

    changed_N = old_ids_J[reference.old] != ids_K[reference.new]
    return Matched(
        ids_K=ids_K[place_K],
        born_K=born_K[place_K],
        parents=_parents(counts, born_K & ~counts.fresh_K, old_ids_J, ids_K),
        transitions=_transitions(counts, keeps_C, old_ids_J, ids_K),
        churn=float(changed_N.mean()) if len(changed_N) else 0.0,
    )


def unchanged(reference: Labels, tonight: Labels, ids_K: NDArray[np.int32]) -> Matched:
    """The result of matching a model to itself; clusters without rows survive too."""
    size = len(ids_K)
    rows_K = np.bincount(reference.new, minlength=size)
    now_K = np.bincount(tonight.new, minlength=size)
    same = np.argsort(ids_K)
    ids = ids_K[same]
    return Matched(
        ids_K=ids_K,
        born_K=np.zeros(size, np.bool_),
        parents=np.zeros((0, 2), np.int32),
        transitions=Transitions(
            np.full(size, KINDS.index(SURVIVAL), np.int8),
            *(ids, ids),
            *(rows_K[same],) * 3,
            *(now_K[same],) * 2,
        ),
        churn=0.0,
    )


def unmatched(
    old_ids_J: NDArray[np.int32],
    old_rows_J: NDArray[np.int64],
    new_now_K: NDArray[np.int64],
    next_id: int,
) -> Matched:
    """The result where models cannot be compared: all new clusters are born, all old ones die.

    ``old_rows_J`` and ``new_now_K`` are the rows of the reference sample in each old cluster, and
    of tonight's sample in each new one. On the first night, no ids are in use.
    """
    ids_K = new_ids(next_id, len(new_now_K))
    kinds = [KINDS.index(BIRTH), KINDS.index(DEATH)]
    no_new_J, no_old_K = np.zeros_like(old_rows_J), np.zeros_like(new_now_K)
    columns = {
        "kind": np.repeat(kinds, [len(ids_K), len(old_ids_J)]).astype(np.int8),
        "from_id": np.concatenate([np.full_like(ids_K, NONE), old_ids_J]),
        "to_id": np.concatenate([ids_K, np.full_like(old_ids_J, NONE)]),
        "from_rows": np.concatenate([no_old_K, old_rows_J]),
        "to_rows_now": np.concatenate([new_now_K, no_new_J]),
    }
    nothing = np.zeros_like(columns["from_rows"])
    return Matched(
        ids_K=ids_K,
        born_K=np.ones(len(ids_K), np.bool_),
        parents=np.zeros((0, 2), np.int32),
        transitions=Transitions(**columns, rows=nothing, to_rows=nothing, from_rows_now=nothing),
        churn=1.0 if len(old_ids_J) else 0.0,
    )


def new_ids(next_id: int, number: int) -> NDArray[np.int32]:
    """That many unused ids.

    Raises:
        PipelineError: More ids than an int32 has.
    """
    if next_id + number > _MOST_IDS:
        raise PipelineError(
            f"identify: {number:,} ids from {next_id:,} on do not fit the int32 of cluster_id; "
            "use a new output, where ids begin at 0"
        )
    return np.arange(next_id, next_id + number, dtype=np.int32)


def _order_of_occurrence(
    first_N: NDArray[np.int64], second_M: NDArray[np.int64], clusters: int
) -> NDArray[np.int64]:
    """Clusters by their first row in two concatenated samples; then those without rows."""
    seen, first = np.unique(np.concatenate([first_N, second_M]), return_index=True)
    place_K = np.full(clusters, len(first_N) + len(second_M))
    place_K[seen] = first
    return np.argsort(place_K, kind="stable")


def _reaches(
    part: NDArray[np.number], share: float, whole: NDArray[np.number]
) -> NDArray[np.bool_]:
    reached: NDArray[np.bool_] = part >= share * whole - _ROUNDING
    return reached


def _sums(groups: NDArray[np.int64], values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    # float64 sums of integers are exact below 2⁵³.
    return np.bincount(groups, weights=values, minlength=size).astype(np.int64)


def _heaviest(
    groups: NDArray[np.int64], values: NDArray[np.int64], allowed: NDArray[np.bool_], size: int
) -> NDArray[np.int64]:
    """Index of each group's largest allowed value, the first of equals; ``NONE`` without any."""
    found = np.full(size, NONE)
    places = np.flatnonzero(allowed)
    order = places[np.lexsort((-places, values[places]))]
    found[groups[order]] = order  # the last write of a group stays
    return found


def _transitions(
    counts: _Contingency,
    keeps_C: NDArray[np.bool_],
    old_ids_J: NDArray[np.int32],
    ids_K: NDArray[np.int32],
) -> Transitions:
    olds, news, weight_C = len(old_ids_J), len(ids_K), counts.weight_C
    kept_J, kept_K = np.zeros(olds, np.bool_), np.zeros(news, np.bool_)
    kept_J[counts.old_C[keeps_C]] = kept_K[counts.new_C[keeps_C]] = True
    goes_C = (weight_C > 0) & kept_K[counts.new_C]  # into a survivor
    goes_C &= _reaches(weight_C, counts.thresholds.survives, counts.old_total_C)
    part_C = counts.part_C & kept_J[counts.old_C]

    # At most one cell for each cluster that did not keep its id.
    merge_J = _heaviest(counts.old_C, weight_C, goes_C, olds)
    there_C = (counts.rows_C > 0) & ~counts.gone_J[counts.old_C]
    took_J = _heaviest(counts.old_C, counts.rows_C, there_C, olds)
    split_K = _heaviest(counts.new_C, weight_C, part_C, news)
    known_C = (weight_C > 0) & ~counts.fresh_K[counts.new_C]
    gave_K = _heaviest(counts.new_C, weight_C, known_C, news)
    merged_J, parted_K = ~kept_J & (merge_J != NONE), ~kept_K & (split_K != NONE)
    dead_J, born_K = ~kept_J & ~merged_J, ~kept_K & ~parted_K

    of_cell = (counts.old_C, counts.new_C)
    parts = [  # in the order of KINDS
        [side[keeps_C] for side in of_cell],
        [side[split_K[parted_K]] for side in of_cell],
        [side[merge_J[merged_J]] for side in of_cell],
        [np.append(counts.old_C, NONE)[gave_K[born_K]], np.flatnonzero(born_K)],
        [np.flatnonzero(dead_J), np.append(counts.new_C, NONE)[took_J[dead_J]]],
    ]
    kind_T = np.repeat(np.arange(len(KINDS), dtype=np.int8), [len(old) for old, _ in parts])
    old_T, new_T = (np.concatenate(column) for column in zip(*parts, strict=True))

    # NONE is −1, the place of what is appended.
    old_rows_T, old_now_T = (np.append(n, 0)[old_T] for n in (counts.old_J, counts.old_now_J))
    new_rows_T, new_now_T = (np.append(n, 0)[new_T] for n in (counts.new_K, counts.new_now_K))
    from_id, to_id = np.append(old_ids_J, NONE)[old_T], np.append(ids_K, NONE)[new_T]
    order = np.lexsort((to_id, from_id, kind_T))
    columns = {
        "kind": kind_T,
        "from_id": from_id.astype(np.int32),
        "to_id": to_id.astype(np.int32),
        "rows": _rows_of(counts, old_T, new_T),
        "from_rows": old_rows_T,
        "to_rows": new_rows_T,
        "from_rows_now": old_now_T,
        "to_rows_now": new_now_T,
    }
    return Transitions(**{name: values[order] for name, values in columns.items()})


def _rows_of(
    counts: _Contingency, old_T: NDArray[np.int64], new_T: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rows of the reference sample in both clusters; 0 where there is only one."""
    news = len(counts.new_K)
    keys_C, keys_T = counts.old_C * news + counts.new_C, old_T * news + new_T
    found = np.minimum(np.searchsorted(keys_C, keys_T), len(keys_C) - 1)
    both_T = (old_T != NONE) & (new_T != NONE) & (keys_C[found] == keys_T)
    return np.where(both_T, counts.rows_C[found], 0)


def _parents(
    counts: _Contingency,
    children_K: NDArray[np.bool_],
    old_ids_J: NDArray[np.int32],
    ids_K: NDArray[np.int32],
) -> NDArray[np.int32]:
    """Pairs of a born cluster and an old one with at least a share ``splits`` of its rows."""
    some_C = (counts.weight_C > 0) & children_K[counts.new_C]
    some_C &= _reaches(counts.weight_C, counts.thresholds.splits, counts.new_total_C)
    pairs = np.stack([ids_K[counts.new_C[some_C]], old_ids_J[counts.old_C[some_C]]], axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].astype(np.int32)
