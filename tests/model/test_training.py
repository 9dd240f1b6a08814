"""Training on one process and on two: the same updates, every row, and a state that resumes."""

import datetime
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gloo import run_workers
from paper import kl_divergence, target_distribution
from safetensors.torch import load, save
from torch import Tensor

from pipeline.config import Pretrain, Refine
from pipeline.errors import NumericalError
from pipeline.model import devices
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.clusters import ClusterModel
from pipeline.model.pretraining import Pretraining, PretrainPass, noise_of
from pipeline.model.refinement import Refinement
from pipeline.model.scaling import Moments, Scaler
from pipeline.model.training import cosine_with_warmup, update_rows
from pipeline.model.updates import RefineUpdate
from pipeline.model.workers import share_of

WORKERS = 2
# 20 = 8 + 8 + 4 leaves the second worker without rows in the last global batch; 21 = 8 + 8 + 5
# gives it one row beside the first worker's four.
ROW_COUNTS = (20, 21)
FEATURES, CLUSTERS = 4, 3


@dataclass
class MemoryRows:
    """Rows in memory; each worker takes its part of every global batch."""

    x: Tensor
    rank: int = 0
    size: int = 1
    features: int = FEATURES

    @property
    def total_rows(self) -> int:
        return len(self.x)

    def batches(self, pass_number: int, batch_rows: int, *, shuffled: bool) -> Iterator[Tensor]:
        if not shuffled:  # measured, by every worker its share
            mine = self.x[self.rank :: self.size]
            yield from (batch for batch in mine.split(batch_rows) if len(batch))
            return
        order = np.random.default_rng([3, pass_number]).permutation(len(self.x))
        for start in range(0, len(order), batch_rows * self.size):
            begin = start + self.rank * batch_rows
            if len(chosen := order[begin : begin + batch_rows]):
                yield self.x[chosen]


def some_rows(count: int) -> Tensor:
    random = np.random.default_rng(count)
    blobs = random.normal(scale=3, size=(CLUSTERS, FEATURES))
    x = blobs[random.integers(CLUSTERS, size=count)] + random.normal(size=(count, FEATURES))
    return torch.from_numpy(x.astype(np.float32))


def autoencoder() -> Autoencoder:
    return Autoencoder(FEATURES, hidden=(8,), embedding=2, seed=1)


def no_scaling() -> Scaler:
    nothing = np.zeros(FEATURES)
    return Scaler("none", nothing, nothing, nothing + 1)


def pretraining(**settings: Any) -> Pretraining:
    settings = {"passes": 3, "batch_rows": 8, "min_updates": 0, "noise": 0.0, **settings}
    return Pretraining(autoencoder(), no_scaling(), Pretrain(**settings), seed=5)


def refinement(x: Tensor, **settings: Any) -> Refinement:
    encoder = autoencoder().encoder
    with torch.no_grad():
        centroids = encoder(x[:CLUSTERS])
    settings = {"passes": 3, "batch_rows": 8, "learning_rate": 1e-3, "tol": 0, **settings}
    alpha = settings.get("alpha", 1.0)
    return Refinement(
        ClusterModel(encoder, centroids, alpha),
        no_scaling(),
        Refine(**{"size_balance": 1.0} | settings),
    )


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@dataclass
class Trained:
    passes: list[PretrainPass]
    autoencoder: dict[str, Tensor]
    updates: list[RefineUpdate]
    clusters: dict[str, Tensor]


def train(rows: MemoryRows) -> Trained:
    first, second = pretraining(), refinement(rows.x)
    passes, updates = list(first.run(rows)), list(second.run(rows))
    return Trained(passes, weights(first.autoencoder), updates, weights(second.model))


# ---------------------------------------------------------------------------- one against two


def _on_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=WORKERS,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {n: vars(train(MemoryRows(some_rows(n), rank, WORKERS))) for n in ROW_COUNTS}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, Trained]]:
    """What each of two processes ends with, for each number of rows."""
    folder = Path(tmp_path_factory.mktemp("gloo"))
    run_workers(_on_worker, folder, WORKERS)
    loaded = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORKERS)]
    return [{n: Trained(**results[n]) for n in ROW_COUNTS} for results in loaded]


@pytest.mark.parametrize("count", ROW_COUNTS)
def test_two_workers_learn_the_same_weights_as_one(
    count: int, two_workers: list[dict[int, Trained]]
) -> None:
    one = train(MemoryRows(some_rows(count)))
    for two in (worker[count] for worker in two_workers):
        for name in ("autoencoder", "clusters"):
            for key, tensor in getattr(one, name).items():
                torch.testing.assert_close(getattr(two, name)[key], tensor, atol=1e-5, rtol=0)
        for ours, theirs in zip(one.passes, two.passes, strict=True):
            assert theirs.loss == pytest.approx(ours.loss, rel=1e-5)
        for before, after in zip(one.updates, two.updates, strict=True):
            assert after.kl == (before.kl and pytest.approx(before.kl, rel=1e-4))
            assert after.cluster_rows == before.cluster_rows
            assert after.label_change == before.label_change
    # And there was something to agree on.
    start = autoencoder().encoder[0].weight
    moved = one.autoencoder["encoder.0.weight"] - start
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("count", ROW_COUNTS)
def test_every_row_counts_once_whatever_the_workers(
    count: int, two_workers: list[dict[int, Trained]]
) -> None:
    for result in (train(MemoryRows(some_rows(count))), *(w[count] for w in two_workers)):
        assert [done.rows for done in result.passes] == [count] * 3
        assert [sum(update.cluster_rows) for update in result.updates] == [count] * 4


@pytest.mark.parametrize("total", [0, 1, 7, 8])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_add_up_and_differ_by_at_most_one(total: int, size: int) -> None:
    shares = [share_of(total, rank, size) for rank in range(size)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


# ------------------------------------------------------------------------------------- target


@pytest.mark.parametrize("batch_rows", [2, 64])
def test_frequency_is_that_of_the_whole_pass(batch_rows: int) -> None:
    x = some_rows(21)
    # A learning rate of almost nothing leaves q as it was, so that the KL of the pass is known.
    settings = {"batch_rows": batch_rows, "learning_rate": 1e-12, "target": "frozen"}
    night = refinement(x, passes=1, **settings)
    with torch.no_grad():
        q = night.model(x).double().numpy()
    *_, last = night.run(MemoryRows(x))

    def mean_kl(frequency: np.ndarray) -> float:
        weight = q**2 / frequency
        p = weight / weight.sum(axis=1, keepdims=True)
        return float((p * np.log(p / q)).sum() / len(q))

    assert last.kl == pytest.approx(mean_kl(q.sum(axis=0)), rel=1e-4)
    assert last.kl != pytest.approx(mean_kl(np.ones(CLUSTERS)), rel=1e-2)
    assert last.cluster_rows == tuple(np.bincount(q.argmax(axis=1), minlength=CLUSTERS))


def test_a_pass_moves_q_towards_the_target() -> None:
    x = some_rows(60)
    night = refinement(x, passes=1, learning_rate=1e-2, target="frozen")
    before = night.model(x).detach()
    p = target_distribution(before, before.sum(dim=0, dtype=torch.float64))
    list(night.run(MemoryRows(x)))
    after = night.model(x).detach()
    # The target stood still during the pass, so the divergence from it must be lower.
    assert kl_divergence(p, after) < 0.8 * kl_divergence(p, before)


def test_refinement_reports_its_updates() -> None:
    x = some_rows(20)
    updates = list(refinement(x, passes=2).run(MemoryRows(x)))
    assert updates[0].kl is None
    assert updates[0].label_change is None
    assert all(update.kl > 0 for update in updates[1:])
    assert [update.number for update in updates] == [0, 1, 2]
    assert [update.finished for update in updates] == [None, None, "passes"]


def test_refinement_stops_when_labels_stand_still() -> None:
    x = some_rows(60)
    updates = list(refinement(x, tol=0.01, learning_rate=1e-9).run(MemoryRows(x)))
    assert [update.finished for update in updates] == [None, "tol"]
    assert updates[-1].label_change == 0


def test_no_passes_keep_the_partition() -> None:
    x = some_rows(20)
    night = refinement(x, passes=0)
    before = weights(night.model)
    (only,) = night.run(MemoryRows(x))
    assert only.finished == "passes"
    assert all(torch.equal(before[k], v) for k, v in night.model.state_dict().items())


@pytest.mark.parametrize(
    ("interval", "numbers", "passes"), [(8, 9, 3), (24, 3, 3), (48, 2, 3), (1, 9, 3)]
)
def test_update_interval_in_rows(interval: int, numbers: int, passes: int) -> None:
    # 24 rows in batches of 8: three steps a pass, nine in all.
    x = some_rows(24)
    night = refinement(x, update_interval_rows=interval)
    updates = list(night.run(MemoryRows(x)))
    assert [update.number for update in updates] == list(range(numbers + 1))
    assert night.passes_done == passes
    assert updates[-1].finished == "passes"
    assert all(update.kl > 0 for update in updates[1:])


def test_learning_rate_of_every_update_is_recorded() -> None:
    rows = MemoryRows(some_rows(24))
    constant = [u.learning_rate for u in refinement(rows.x).run(rows)]
    assert constant == [1e-3] * 4
    cosine = [u.learning_rate for u in refinement(rows.x, schedule="cosine").run(rows)]
    assert cosine == [pytest.approx(1e-3 * cosine_with_warmup(n / 3)) for n in range(4)]


def test_long_gradients_are_cut() -> None:
    # One step of SGD: the weights move by the length of the gradient times the learning rate.
    x = some_rows(24)
    moved = []
    for limit in (None, 1e-3):
        night = pretraining(
            passes=1, batch_rows=24, optimizer="sgd", schedule="constant", max_gradient_norm=limit
        )
        before = weights(night.autoencoder)
        list(night.run(MemoryRows(x)))
        after = night.autoencoder.state_dict()
        moved.append(sum(((after[k] - v) ** 2).sum().item() for k, v in before.items()) ** 0.5)
    assert moved[0] > 2e-6
    assert moved[1] == pytest.approx(1e-3 * 1e-3, rel=1e-2)


def test_weight_decay_shrinks_weights() -> None:
    rows = MemoryRows(some_rows(24))
    norms = []
    for decay in (0.0, 0.9):
        night = pretraining(weight_decay=decay, learning_rate=1e-2)
        list(night.run(rows))
        norms.append(night.autoencoder.encoder[0].weight.norm().item())
    assert norms[1] < 0.97 * norms[0]


def with_decoder(x: Tensor, **settings: Any) -> Refinement:
    night = refinement(x, **settings)
    decoder = autoencoder().decoder
    return Refinement(
        night.model, night.scaler, night.settings, decoder=decoder, reference=lambda: x
    )


def test_reconstruction_keeps_the_decoder_close_to_the_rows() -> None:
    rows = MemoryRows(some_rows(60))

    def error(night: Refinement) -> float:
        return (night.live["decoder"](night.model.encoder(rows.x)) - rows.x).square().mean().item()

    night = with_decoder(rows.x, reconstruction_weight=10.0, passes=20, learning_rate=1e-2)
    before = error(night)
    list(night.run(rows))
    assert error(night) < before
    *_, last = with_decoder(rows.x, reconstruction_weight=0.5).run(rows)
    assert last.loss > last.kl
    # Without weight it is DEC: nothing of the decoder is learnt or kept.
    assert "decoder" not in with_decoder(rows.x).live
    *_, last = with_decoder(rows.x).run(rows)
    assert last.loss == pytest.approx(last.kl, rel=1e-6)


def test_target_sees_the_row_and_the_live_model_an_augmented_one() -> None:
    x = some_rows(24)
    seen: list[Tensor] = []

    def elsewhere(x_BF: Tensor, _: torch.Generator) -> Tensor:
        seen.append(x_BF)
        return x_BF + 100

    plain = refinement(x, passes=1, batch_rows=24, learning_rate=1e-12)
    night = Refinement(plain.model, plain.scaler, plain.settings, augmentation=elsewhere)
    with torch.no_grad():
        q, moved = night.model(x), night.model(x + 100)
    p = target_distribution(q, q.sum(dim=0, dtype=torch.float64))
    *_, last = night.run(MemoryRows(x))
    assert len(torch.cat(seen)) == 24
    assert last.kl == pytest.approx(kl_divergence(p, moved).item() / 24, rel=1e-4)
    assert last.kl != pytest.approx(kl_divergence(p, q).item() / 24, rel=1e-2)


# ------------------------------------------------------------------------------------ collapse


def unrelated(x: Tensor, dead: int, reference: bool, **settings: Any) -> Refinement:
    """A refinement whose last centroids lie where no row is."""
    night = refinement(x, **settings)
    centroids_KD = night.model.centroids_KD.detach().clone()
    centroids_KD[CLUSTERS - dead :] = 1e4
    return Refinement(
        ClusterModel(night.model.encoder, centroids_KD, 1.0),
        night.scaler,
        night.settings,
        reference=(lambda: x) if reference else None,
    )


@pytest.mark.parametrize("dead", [1, 2])
def test_clusters_without_rows_are_seeded_again(dead: int) -> None:
    x = some_rows(60)
    first, *_, last = unrelated(x, dead, reference=True).run(MemoryRows(x))
    assert "clusters without rows" in first.event
    assert min(first.cluster_rows) > 0
    assert last.finished == "passes"


def test_start_that_cannot_be_mended_raises() -> None:
    x = some_rows(60)
    with pytest.raises(NumericalError, match="of 3 clusters have no rows before the first"):
        next(unrelated(x, 1, reference=False).run(MemoryRows(x)))
    same = torch.ones(60, FEATURES)  # no row is far from the others
    with pytest.raises(NumericalError, match="clusters have no rows"):
        next(unrelated(same, 1, reference=True).run(MemoryRows(same)))


def test_loss_that_is_not_finite_goes_back_and_says_so() -> None:
    rows = MemoryRows(some_rows(21))
    night = refinement(rows.x, learning_rate=1e30)
    before = weights(night.model)
    first, last = night.run(rows)
    assert (first.finished, last.finished) == (None, "collapse")
    assert last.number == 1
    assert "back to update 0, which is the result" in last.event
    assert last.cluster_rows == first.cluster_rows
    for name, tensor in before.items():
        assert torch.equal(night.model.state_dict()[name], tensor)


def explodes_once(night: Refinement) -> Refinement:
    losses = night._losses
    left = [1]

    def once(*args: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for loss, kl in losses(*args):
            broken = night.updates_done == 1 and bool(left)
            left.clear() if broken else None
            yield (loss * math.nan, kl * math.nan) if broken else (loss, kl)

    night._losses = once  # type: ignore[method-assign]
    return night


def test_one_bad_step_costs_caution_and_not_the_night() -> None:
    rows = MemoryRows(some_rows(21))
    updates = list(explodes_once(refinement(rows.x)).run(rows))
    assert [u.event is None for u in updates] == [True, True, False, True][: len(updates)]
    assert "back to update 1, learning rate x 0.1" in updates[2].event
    assert updates[-1].finished == "passes"
    assert [u.learning_rate for u in updates[:3]] == [1e-3, 1e-3, pytest.approx(1e-4)]


@pytest.mark.parametrize(("few", "told"), [(4, True), (7, False)])
def test_a_cluster_left_with_next_to_no_rows_is_an_event_of_the_last_record(
    few: int, told: bool
) -> None:
    # An even share of about 2,000 rows is 668: 4 are less than 1 % of it, and 7 are more.
    x = torch.cat(
        [place * torch.ones(n, FEATURES) for place, n in ((0, 1000), (5, 1000), (50, few))]
    )
    x = x + torch.from_numpy(np.random.default_rng(0).normal(size=x.shape, scale=0.1)).float()
    centroids = torch.tensor([[0.0], [5.0], [50.0]]) * torch.ones(FEATURES)
    settings = Refine(passes=1, batch_rows=256, learning_rate=1e-6, tol=0)
    night = Refinement(ClusterModel(torch.nn.Sequential(), centroids, 1.0), no_scaling(), settings)
    first, last = night.run(MemoryRows(x))
    assert last.cluster_rows == (1000, 1000, few)
    assert first.event is None
    if told:
        assert last.event == (
            "1 of 3 clusters have less than 1% of an even share of 2,004 rows (2: 4)"
        )
    else:
        assert last.event is None


def test_a_cluster_that_swallows_the_others_is_refused() -> None:
    x = some_rows(60)
    fast = {"learning_rate": 1e-2, "target": "frozen"}
    calm = list(refinement(x, **fast).run(MemoryRows(x)))
    limit = max(max(u.cluster_rows) for u in calm) / 60
    assert all(u.event is None for u in calm)
    # A start beyond the limit is how the table is; growing beyond it is a collapse.
    start = max(calm[0].cluster_rows) / 60
    assert list(refinement(x, **fast, max_share=start / 2).run(MemoryRows(x)))
    if limit > start:
        grown = list(refinement(x, **fast, max_share=start).run(MemoryRows(x)))
        assert any("of the rows" in (u.event or "") for u in grown)
        assert max(max(u.cluster_rows) for u in grown) / 60 <= start


# ----------------------------------------------------------------------------------- portions


def test_portions_of_a_batch_learn_what_the_whole_batch_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = MemoryRows(some_rows(20))
    whole = train(rows)
    monkeypatch.setattr(devices, "_LEARNT_ACTIVATIONS", 1)
    monkeypatch.setattr(devices, "_LEAST_LEARNT_ROWS", 3)  # of batches of 8: 3, 3 and 2
    portions = train(rows)
    for name, tensor in whole.autoencoder.items():
        torch.testing.assert_close(portions.autoencoder[name], tensor, rtol=1e-5, atol=1e-6)
    for name, tensor in whole.clusters.items():
        torch.testing.assert_close(portions.clusters[name], tensor, rtol=1e-4, atol=1e-5)
    for one, other in zip(whole.updates, portions.updates, strict=True):
        assert one.cluster_rows == other.cluster_rows
        assert one.kl == (other.kl and pytest.approx(other.kl, rel=1e-4))


# ------------------------------------------------------------------------------------- resume


def stored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state as it comes back from its file."""
    return load(save({name: tensor.contiguous() for name, tensor in state.items()}))


def test_resumed_pretraining_equals_an_uninterrupted_one() -> None:
    rows = MemoryRows(some_rows(21))
    whole, killed, resumed = (pretraining(passes=4, noise=0.2) for _ in range(3))
    expected = list(whole.run(rows))
    attempt = killed.run(rows)
    first = [next(attempt), next(attempt)]
    resumed.restore(stored(killed.state()))
    assert [*first, *resumed.run(rows)] == expected
    for name, tensor in weights(whole.autoencoder).items():
        assert torch.equal(resumed.autoencoder.state_dict()[name], tensor), name


@pytest.mark.parametrize("killed_at", [0, 1, 2])
@pytest.mark.parametrize("interval", [None, 8, 32])
def test_resumed_refinement_equals_an_uninterrupted_one(
    killed_at: int, interval: int | None
) -> None:
    rows = MemoryRows(some_rows(21))
    settings = {"learning_rate": 1e-2, "update_interval_rows": interval, "noise": 0.2}
    whole, killed, resumed = (refinement(rows.x, **settings) for _ in range(3))
    expected = list(whole.run(rows))
    attempt = killed.run(rows)
    for _ in range(killed_at + 1):
        next(attempt)
    resumed.restore(stored(killed.state()))
    assert list(resumed.run(rows)) == expected[killed_at:]
    for name, tensor in weights(whole.model).items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


# ----------------------------------------------------------------------------------- the rest


def test_pretraining_loss_that_is_not_finite_raises() -> None:
    training = pretraining(learning_rate=1e30)
    with pytest.raises(NumericalError, match=r"pretrain: the loss.*pretrain\.learning_rate"):
        list(training.run(MemoryRows(some_rows(21))))


def test_refinement_without_rows_raises() -> None:
    night = refinement(some_rows(20))
    with pytest.raises(NumericalError, match="no training row"):
        next(night.run(MemoryRows(torch.empty((0, FEATURES)))))


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        (1_797, {}, 64),  # 30 · 1,797 / 800 = 67, down to a multiple of 8
        (100, {}, 32),  # 30 · 100 / 800 = 3: no fewer than 32
        (10_000_000, {}, 256),  # batch_rows is the most
        (1_797, {"min_updates": 0}, 256),
        (1_797, {"batch_rows": 16}, 16),  # fewer than 32 when asked for
        (0, {}, 32),
    ],
)
def test_update_rows(rows: int, settings: dict[str, int], expected: int) -> None:
    assert update_rows(Pretrain(**settings), rows) == expected


def test_noise_hides_inputs_and_keeps_their_mean() -> None:
    # A network that passes ones through unchanged has the loss of the noise alone: inputs become
    # 0 (share 0.2, error 1) or 1/0.8 (share 0.8, error 1/16), so 0.2 + 0.8/16 = 0.25.
    x = torch.ones((2000, FEATURES))
    training = pretraining(passes=1, noise=0.2, learning_rate=1e-12, batch_rows=2000)
    training.autoencoder.forward = lambda x_BF: x_BF + 0 * training.autoencoder.encoder[0].bias[0]
    (done,) = training.run(MemoryRows(x))
    assert done.loss == pytest.approx(0.25, abs=0.02)


def test_scaled_rows_are_what_is_learnt() -> None:
    # The loss is in scaled units: the same rows in another unit give the same losses.
    x = some_rows(20)

    def losses(x: Tensor) -> list[float]:
        training = pretraining()
        training.scaler = Scaler.fit("standard", Moments.of(x.numpy()), [1] * FEATURES)
        return [done.loss for done in training.run(MemoryRows(x))]

    assert losses(x * 1000) == pytest.approx(losses(x), rel=1e-4)


@pytest.mark.parametrize(
    ("done", "factor"), [(0.0, 0.0), (0.025, 0.5), (0.05, 1.0), (0.525, 0.5), (1.0, 0.0)]
)
def test_learning_rate_warms_up_and_decays(done: float, factor: float) -> None:
    # Half of the warm-up (0 … 0.05) and half of the cosine (0.05 … 1) are each one half.
    assert math.isclose(cosine_with_warmup(done), factor, abs_tol=1e-12)


def test_a_transformed_embedding_is_reconstructed_as_before() -> None:
    model, x = autoencoder(), some_rows(20)
    random = torch.Generator().manual_seed(0)
    matrix_DD = torch.randn(2 * (model.embedding,), generator=random)
    with torch.no_grad():
        z, reconstructed = model.encoder(x), model(x)
        model.transform_embedding(matrix_DD)
        torch.testing.assert_close(model.encoder(x), z @ matrix_DD)
        torch.testing.assert_close(model(x), reconstructed)


@pytest.mark.parametrize(
    ("features", "settings", "expected"),
    [
        (16, {}, 0.2),
        (100, {}, 0.2),
        (101, {}, 0.0),
        (784, {"noise": 0.3}, 0.3),
        (9, {"noise": 0}, 0),
    ],
)
def test_noise_is_for_embeddings_that_could_copy_a_row(
    features: int, settings: dict[str, float], expected: float
) -> None:
    assert noise_of(Pretrain(**settings), features, embedding=10) == expected


def test_bfloat16_products_leave_weights_and_labels_as_they_are() -> None:
    x = some_rows(2000)
    networks = {
        precision: Autoencoder(FEATURES, hidden=(64, 64), embedding=2, seed=1, precision=precision)
        for precision in ("float32", "bfloat16")
    }
    trained = {}
    for precision, network in networks.items():
        settings = Pretrain(passes=3, noise=0)
        passes = list(Pretraining(network, no_scaling(), settings, seed=1).run(MemoryRows(x)))
        trained[precision] = passes[-1].loss
        assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert trained["bfloat16"] == pytest.approx(trained["float32"], rel=0.05)
    # The same weights, the same centroids: hardly a row is so near a border that it matters.
    weights_of = networks["float32"].state_dict()
    with torch.inference_mode():
        centroids = networks["float32"].encoder(x[:CLUSTERS]).clone()
    labels = []
    for network in networks.values():
        network.load_state_dict(weights_of)
        with torch.inference_mode():
            labels.append(ClusterModel(network.encoder, centroids, 1.0)(x).argmax(dim=1))
    assert (labels[0] == labels[1]).float().mean() >= 0.999


def test_precision_is_that_of_the_matrix_products() -> None:
    network = Autoencoder(FEATURES, hidden=(8,), embedding=2, precision="bfloat16")
    seen: list[torch.dtype] = []
    network.encoder[0].register_forward_hook(lambda *given: seen.append(given[-1].dtype))
    assert network(some_rows(4)).dtype == torch.float32
    assert seen == [torch.bfloat16]


OPTIMIZED = """
import sys
import torch
from pipeline.config import Pretrain
from pipeline.model.training import optimizer_of

def learnt(optimizer_of):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    optimizer = optimizer_of([weight])
    for update in range(6):
        optimizer.zero_grad()
        (weight - 2).pow(2).sum().backward()
        optimizer.step()
        if update == 3:
            optimizer.load_state_dict(optimizer.state_dict())
    return weight.detach()

settings = [Pretrain(optimizer=name, learning_rate=0.1) for name in ("adamw", "sgd")]
adamw, sgd = (learnt(lambda weights: optimizer_of(weights, one)) for one in settings)
assert "torch._dynamo" not in sys.modules
decay = settings[0].weight_decay
assert adamw.equal(learnt(lambda w: torch.optim.AdamW(w, 0.1, weight_decay=decay, fused=True)))
plain = dict(momentum=0.9, weight_decay=decay, fused=True)
assert sgd.equal(learnt(lambda w: torch.optim.SGD(w, 0.1, **plain)))
"""


def test_optimizers_are_torchs_own_without_its_compiler() -> None:
    subprocess.run([sys.executable, "-c", OPTIMIZED], check=True)
