"""Maximum-weight matching of old and new clusters (Kuhn 1955), component by component.

Shape letter: E edges of the bipartite graph.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Maximum number of cells of a dense cost matrix, 8 bytes each; larger components are solved
# sparsely, which takes longer for the same answer.
_DENSE_CELLS = 2**22


def heaviest_matching(
    old_E: NDArray[np.int64], new_E: NDArray[np.int64], weight_E: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each edge is in a matching of the largest total weight, shape (edges,).

    Each connected component is solved by itself, which is exact: edges are few, so that nearly all
    components have one or a handful. A dense matrix of 100,000 clusters would take 80 GB, and the
    sparse solver takes seconds for them, because it goes over all rows for each. ``old_E`` and
    ``new_E`` are the positions of each edge's clusters; weights are > 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(old_E):
        return np.zeros(0, np.bool_)
    first_new = int(old_E.max()) + 1
    nodes = first_new + int(new_E.max()) + 1
    graph = coo_array((np.ones(len(old_E)), (old_E, first_new + new_E)), shape=(nodes, nodes))
    _, component_V = connected_components(graph, directed=False)
    _, component_E, edges = np.unique(component_V[old_E], return_inverse=True, return_counts=True)
    chosen_E: NDArray[np.bool_] = edges[component_E] == 1
    order = np.argsort(component_E, kind="stable")
    starts = np.cumsum(edges) - edges
    for component in np.flatnonzero(edges > 1):  # over components, not rows
        some = order[starts[component] : starts[component] + edges[component]]
        chosen_E[some] = _solve(old_E[some], new_E[some], weight_E[some])
    return chosen_E


def _solve(
    old_E: NDArray[np.int64], new_E: NDArray[np.int64], weight_E: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """``heaviest_matching`` of one component."""
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    olds, old_E = np.unique(old_E, return_inverse=True)
    news, new_E = np.unique(new_E, return_inverse=True)
    if len(olds) * len(news) <= _DENSE_CELLS:
        dense = np.zeros((len(olds), len(news)))
        dense[old_E, new_E] = weight_E
        rows, columns = linear_sum_assignment(dense, maximize=True)
    else:
        # The solver wants a partner for each old cluster: one of its own, of next to no weight, for
        # those that stay unmatched. An explicit 0 would not be an edge.
        own = np.arange(len(olds))
        weights = np.concatenate([weight_E + 1, np.ones(len(olds))])
        pairs = np.concatenate([old_E, own]), np.concatenate([new_E, len(news) + own])
        sparse = csr_array((weights, pairs), shape=(len(olds), len(news) + len(olds)))
        rows, columns = min_weight_full_bipartite_matching(sparse, maximize=True)
    partner = np.full(len(olds), -1)
    partner[rows] = columns
    chosen_E: NDArray[np.bool_] = partner[old_E] == new_E
    return chosen_E
