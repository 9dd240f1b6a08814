"""DEC's equations: by hand on two points, and against numpy in float64 written from the paper."""

import math

import numpy as np
import pytest
import torch
from paper import kl_divergence, target_distribution

from pipeline.model.dec import (
    clustering_loss,
    nearest_two,
    rows_at_a_time,
    soft_assignment,
    squared_distances,
)

# Two points and two centroids on a line, alpha = 1: z = (0, 1), μ = (0, 2).
#   ‖z−μ‖²       kernel 1/(1+d²)     q
#   0  4         1    1/5            5/6  1/6
#   1  1         1/2  1/2            1/2  1/2         f = (4/3, 2/3)
# q²/f = (25/48, 2/48) and (3/16, 6/16), hence p = (25/27, 2/27) and (1/3, 2/3).
Z = [[0.0], [1.0]]
CENTROIDS = [[0.0], [2.0]]
Q = [[5 / 6, 1 / 6], [1 / 2, 1 / 2]]
FREQUENCY = [4 / 3, 2 / 3]
P = [[25 / 27, 2 / 27], [1 / 3, 2 / 3]]
KL = (
    25 / 27 * math.log(10 / 9)  # p/q = 25/27 · 6/5
    + 2 / 27 * math.log(4 / 9)  # 2/27 · 6
    + 1 / 3 * math.log(2 / 3)
    + 2 / 3 * math.log(4 / 3)
)
# Eq. 4 for z_0: 2·[1/5·(2/27 − 1/6)·(0 − 2)] = 2/27; for z_1: 2·[½·(−1/6)·1 + ½·(1/6)·(−1)] = −1/3.
GRADIENT_Z = [[2 / 27], [-1 / 3]]
# Eq. 5 for μ_0: −2·[½·(−1/6)·1] = 1/6; for μ_1: −2·[1/5·(−5/54)·(−2) + ½·(1/6)·(−1)] = 5/54.
GRADIENT_CENTROIDS = [[1 / 6], [5 / 54]]


class Reference:
    """Xie, Girshick & Farhadi 2016, equations 1 to 5, in float64 and element by element."""

    def __init__(self, z: np.ndarray, mu: np.ndarray, alpha: float) -> None:
        difference = z[:, None, :].astype(np.float64) - mu[None, :, :].astype(np.float64)
        base = 1 + np.square(difference).sum(axis=2) / alpha
        kernel = base ** (-(alpha + 1) / 2)
        self.q = kernel / kernel.sum(axis=1, keepdims=True)
        self.frequency = self.q.sum(axis=0)
        weight = self.q**2 / self.frequency
        self.p = weight / weight.sum(axis=1, keepdims=True)
        self.kl = float((self.p * np.log(self.p / self.q)).sum())
        pull = (alpha + 1) / alpha * ((self.p - self.q) / base)[:, :, None] * difference
        self.gradient_z = pull.sum(axis=1)
        self.gradient_centroids = -pull.sum(axis=0)


def computed(z: torch.Tensor, mu: torch.Tensor, alpha: float) -> dict[str, torch.Tensor]:
    z, mu = z.clone().requires_grad_(), mu.clone().requires_grad_()
    q = soft_assignment(z, mu, alpha).detach()
    frequency = q.sum(dim=0, dtype=torch.float64)
    kl, sharpened = clustering_loss(z, mu, frequency, alpha)
    torch.testing.assert_close(sharpened, q)
    kl.backward()
    gradients = {"gradient_z": z.grad, "gradient_centroids": mu.grad}
    return {"q": q, "p": target_distribution(q, frequency), "kl": kl.detach(), **gradients}


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1e3])
@pytest.mark.parametrize("own_target", [True, False])
def test_loss_in_closed_form_is_the_one_step_by_step(own_target: bool, alpha: float) -> None:
    random = torch.Generator().manual_seed(3)
    z, mu, others = (torch.randn((n, 4), generator=random).double() for n in (30, 6, 30))
    frequency = torch.rand(6, generator=random).double() + 0.1
    frequency[2] = 0  # a cluster that attracts nothing
    results = []
    for closed in (True, False):
        leaves = [z.clone().requires_grad_(), mu.clone().requires_grad_()]
        q = soft_assignment(*leaves, alpha)
        target = q.detach() if own_target else soft_assignment(others, mu, alpha)
        if closed:
            given = None if own_target else target
            kl, sharpened = clustering_loss(*leaves, frequency, alpha, given)
            torch.testing.assert_close(sharpened, target, rtol=1e-12, atol=0)
            assert not sharpened.requires_grad
        else:
            kl = kl_divergence(target_distribution(target, frequency), q)
        (3 * kl).backward()
        results.append((kl.detach(), *(leaf.grad for leaf in leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("q", Q),
        ("p", P),
        ("kl", KL),
        ("gradient_z", GRADIENT_Z),
        ("gradient_centroids", GRADIENT_CENTROIDS),
    ],
)
def test_two_points_by_hand(name: str, expected: object) -> None:
    found = computed(torch.tensor(Z), torch.tensor(CENTROIDS), alpha=1.0)
    torch.testing.assert_close(found[name], torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_reference_agrees_with_the_hand_worked_points() -> None:
    reference = Reference(np.array(Z), np.array(CENTROIDS), alpha=1.0)
    np.testing.assert_allclose(reference.p, P)
    np.testing.assert_allclose(reference.gradient_z, GRADIENT_Z)
    np.testing.assert_allclose(reference.gradient_centroids, GRADIENT_CENTROIDS)


# 1e4 from the origin ‖z‖² is 5e8, where float32 steps by 32: naive products lose every digit.
@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_matches_float64_reference(alpha: float, shift: float) -> None:
    random = np.random.default_rng(7)
    # Multiples of 1/64 stay exact in float32 at 1e4, so both sides see the same points.
    z = (np.round(random.normal(size=(40, 5)) * 128) / 64 + shift).astype(np.float32)
    mu = (np.round(random.normal(size=(6, 5)) * 128) / 64 + shift).astype(np.float32)
    found = computed(torch.from_numpy(z), torch.from_numpy(mu), alpha)
    reference = Reference(z, mu, alpha)
    for name, value in found.items():
        np.testing.assert_allclose(
            value.numpy(), getattr(reference, name), rtol=5e-3, atol=2e-5, err_msg=name
        )


@pytest.mark.parametrize("alpha", [0.1, 1.0, 1e6])
def test_rows_sum_to_one(alpha: float) -> None:
    random = torch.Generator().manual_seed(0)
    z = torch.randn((50, 3), generator=random) * 10
    found = computed(z, torch.randn((7, 3), generator=random), alpha)
    for name in ("q", "p"):
        assert torch.isfinite(found[name]).all()
        torch.testing.assert_close(found[name].sum(dim=1), torch.ones(50), atol=1e-5, rtol=0)


def test_alpha_weighs_the_tails() -> None:
    # d² = (0, 4). alpha = 3: kernel = (1 + 4/3)^−2 = 9/49, so q = 49/58; alpha = 1 gives 5/6.
    q = soft_assignment(torch.tensor([[0.0]]), torch.tensor(CENTROIDS), alpha=3.0)
    torch.testing.assert_close(q, torch.tensor([[49 / 58, 9 / 58]]))


def test_target_uses_the_frequency_that_it_is_given() -> None:
    # f of the whole pass, (1, 4), not of this row: q²/f = (1/4, 1/16), hence p = (4/5, 1/5).
    p = target_distribution(torch.tensor([[0.5, 0.5]]), torch.tensor([1.0, 4.0]).double())
    torch.testing.assert_close(p, torch.tensor([[0.8, 0.2]]))


@pytest.mark.parametrize("rows", [1.0, 1e12])
def test_target_does_not_depend_on_the_number_of_rows(rows: float) -> None:
    frequency = torch.tensor(FREQUENCY, dtype=torch.float64) * rows
    p = target_distribution(torch.tensor(Q), frequency)
    torch.testing.assert_close(p, torch.tensor(P))


def test_cluster_of_zero_frequency_attracts_nothing() -> None:
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    p = target_distribution(q, torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert p.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    kl = kl_divergence(p, q)
    kl.backward()
    assert kl.item() == 0
    assert torch.isfinite(q.grad).all()


def test_target_is_detached_and_keeps_the_dtype() -> None:
    q = soft_assignment(torch.tensor(Z, requires_grad=True), torch.tensor(CENTROIDS))
    p = target_distribution(q, torch.tensor(FREQUENCY, dtype=torch.float64))
    assert q.requires_grad
    assert not p.requires_grad
    assert p.dtype == torch.float32


def test_kl_is_a_sum_over_rows() -> None:
    # Batches and workers add up only if nothing is averaged in between.
    p, q = torch.tensor(P), torch.tensor(Q)
    one_by_one = kl_divergence(p[:1], q[:1]) + kl_divergence(p[1:], q[1:])
    torch.testing.assert_close(one_by_one, torch.tensor(KL))
    assert kl_divergence(q, q).item() == pytest.approx(0, abs=1e-7)
    assert kl_divergence(p[:0], q[:0]).item() == 0


def test_distances_are_never_negative() -> None:
    point = torch.tensor([[0.1, 0.2, 0.3]])
    centroids = torch.cat([point, point + 3])
    assert squared_distances(point, centroids)[0, 0] >= 0
    # The second is 3 further in each of 3 dimensions: 27.
    assert squared_distances(point, centroids)[0, 1].item() == pytest.approx(27, rel=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 3.0, 1e6])
@pytest.mark.parametrize("clusters", [2, 9, 100_000])
def test_nearest_two_of_all_assignments(clusters: int, alpha: float) -> None:
    random = torch.Generator().manual_seed(1)
    z = 2 * torch.randn((5, 10), generator=random)
    centroids = 2 * torch.randn((clusters, 10), generator=random)
    found = nearest_two(z, centroids, alpha)
    q = soft_assignment(z.double(), centroids.double(), alpha)
    expected = q.topk(2, dim=1)
    assert torch.equal(found.clusters_B2, expected.indices)
    torch.testing.assert_close(found.q_B2.double(), expected.values, rtol=1e-4, atol=1e-7)
    distances = (z - centroids[expected.indices[:, 0]]).norm(dim=1)
    torch.testing.assert_close(found.distance_B, distances)


@pytest.mark.parametrize(("clusters", "rows"), [(2, 2_048), (100_000, 167), (10**9, 1)])
def test_soft_assignments_held_together_are_bounded(clusters: int, rows: int) -> None:
    assert rows_at_a_time(clusters, 2_048) == rows


def test_two_centroids_in_one_place_are_two_clusters() -> None:
    found = nearest_two(torch.tensor([[1.0]]), torch.tensor([[1.0], [5.0], [1.0]]))
    assert sorted(found.clusters_B2[0].tolist()) == [0, 2]
    assert found.q_B2[0, 0] == found.q_B2[0, 1]
    assert found.distance_B.item() == 0


# Close together 1/(1 + d²) is 1 for all clusters; far apart the kernel of a large alpha is 0.
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("alpha", [1.0, 100.0])
def test_nearest_two_at_any_scale(scale: float, alpha: float) -> None:
    random = torch.Generator().manual_seed(2)
    z = scale * torch.randn((300, 10), generator=random)
    centroids = scale * torch.randn((20, 10), generator=random)
    found = nearest_two(z, centroids, alpha)
    expected = torch.cdist(z.double(), centroids.double()).topk(2, dim=1, largest=False)
    assert torch.equal(found.clusters_B2, expected.indices)
    assert (found.q_B2[:, 0] >= found.q_B2[:, 1]).all()
