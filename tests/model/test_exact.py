"""Exactness: what is learnt is what the paper says, whatever the batches and the workers.

The reference is Xie, Girshick & Farhadi 2016, equations 1 to 5, written out below in float64 and by
differences of every pair. What runs on several workers runs in real processes that talk over gloo;
one set of four processes forms groups of two, three and four in turn.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from conftest import blobs, write_shards
from gloo import run_workers
from paper import target_distribution
from safetensors.torch import load_file, save_file
from sklearn.metrics import adjusted_rand_score
from test_training import MemoryRows
from torch import Tensor, nn

from pipeline.clustering.kmeans import kmeans
from pipeline.config import Config, Pretrain, Refine
from pipeline.input.feed import WorkerRows
from pipeline.input.pinning import list_shards, pin
from pipeline.input.reading import Reader, pieces_of_shards
from pipeline.input.slices import training_share
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.clusters import Cells, ClusterModel
from pipeline.model.dec import clustering_loss, soft_assignment
from pipeline.model.pretraining import Pretraining
from pipeline.model.refinement import Refinement
from pipeline.model.scaling import Scaler
from pipeline.model.training import TrainingRows
from pipeline.model.updates import RefineUpdate

# ---------------------------------------------------------------------------------- the paper


def paper_q(z_BD: Tensor, mu_KD: Tensor, alpha: float) -> Tensor:
    """Eq. 1."""
    kernel_BK = paper_base(z_BD, mu_KD, alpha) ** (-(alpha + 1) / 2)
    return kernel_BK / kernel_BK.sum(dim=1, keepdim=True)


def paper_base(z_BD: Tensor, mu_KD: Tensor, alpha: float) -> Tensor:
    """1 + ‖z_i − μ_j‖²/α, which eqs. 1, 4 and 5 share."""
    return 1 + (z_BD[:, None, :] - mu_KD[None, :, :]).square().sum(dim=2) / alpha


def paper_kl(p_BK: Tensor, q_BK: Tensor) -> Tensor:
    """Eq. 2."""
    return (p_BK * (p_BK / q_BK).log()).sum()


def paper_p(q_BK: Tensor, frequency_K: Tensor, size_balance: float = 1.0) -> Tensor:
    """Eq. 3 with f^γ; f_j = Σ_i q_ij over all rows, of which these may be some."""
    weight_BK = q_BK**2 / frequency_K**size_balance
    return weight_BK / weight_BK.sum(dim=1, keepdim=True)


def paper_gradients(
    z_BD: Tensor, mu_KD: Tensor, p_BK: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """Eqs. 4 and 5: the gradients of eq. 2 in z and in μ, for a target that stands still."""
    difference_BKD = z_BD[:, None, :] - mu_KD[None, :, :]
    gap_BK = p_BK - paper_q(z_BD, mu_KD, alpha)
    pull_BK = (alpha + 1) / alpha * gap_BK / paper_base(z_BD, mu_KD, alpha)
    pull_BKD = pull_BK[:, :, None] * difference_BKD
    return pull_BKD.sum(dim=1), -pull_BKD.sum(dim=0)


@pytest.mark.parametrize("size_balance", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_equations_and_gradients_are_those_of_the_paper(alpha: float, size_balance: float) -> None:
    random = torch.Generator().manual_seed(11)
    all_z = torch.randn((200, 5), generator=random, dtype=torch.float64) * 2
    mu_KD = torch.randn((6, 5), generator=random, dtype=torch.float64) * 2
    frequency_K = paper_q(all_z, mu_KD, alpha).sum(dim=0)
    z_BD = all_z[:40]  # a batch: f is that of all rows, so p is not what the batch alone would give
    q_BK = paper_q(z_BD, mu_KD, alpha)
    p_BK = paper_p(q_BK, frequency_K, size_balance)
    gradient_z, gradient_mu = paper_gradients(z_BD, mu_KD, p_BK, alpha)

    our_z, our_mu = z_BD.clone().requires_grad_(), mu_KD.clone().requires_grad_()
    our_q = soft_assignment(our_z, our_mu, alpha)
    our_p = target_distribution(our_q, frequency_K, size_balance)
    our_kl = clustering_loss(our_z, our_mu, frequency_K, alpha, size_balance=size_balance)[0]
    our_kl.backward()

    for name, ours, theirs in (
        ("q", our_q.detach(), q_BK),
        ("p", our_p, p_BK),
        ("KL", our_kl.detach(), paper_kl(p_BK, q_BK)),
        ("gradient in z, eq. 4", our_z.grad, gradient_z),
        ("gradient in the centroids, eq. 5", our_mu.grad, gradient_mu),
    ):
        # Float64 leaves about 1e-13; 1e-6 is what the equations are held to.
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9, err_msg=name)
    # And there is something to agree on: the batch's own f would give another target.
    batch_p_BK = paper_p(q_BK, q_BK.sum(dim=0), size_balance)
    assert not size_balance or (batch_p_BK - p_BK).abs().max() > 1e-3


# ------------------------------------------------------------------------------- the training


class Unscaled(Scaler):
    """Rows as they are, in the dtype of the model: the shipped scaler always ends in float32."""

    def __init__(self, features: int, dtype: torch.dtype) -> None:
        nothing_F = np.zeros(features)
        super().__init__("none", nothing_F, nothing_F, nothing_F + 1)
        self.dtype = dtype

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF.to(self.dtype)


def refinement_of(x_BF: Tensor, clusters: int, dtype: torch.dtype, **settings: Any) -> Refinement:
    """A refinement that has a way to go: its centroids are the embeddings of the first rows."""
    features = x_BF.shape[1]
    autoencoder = Autoencoder(features, hidden=(16,), embedding=3, seed=1).to(dtype)
    _, centroids_KD = first_parts(x_BF, clusters, dtype)
    model = ClusterModel(autoencoder.encoder, centroids_KD, settings.get("alpha", 1.0))
    augmentation = stretched if settings.pop("augmented", False) else None
    cells = settings.pop("cells", None)
    # Every row's own step: no early stop, and one learning rate for all steps.
    refine = Refine.model_validate(
        {"tol": 0, "alpha": 1.0, "min_updates": 0, "size_balance": 1.0, **settings}
    )
    return Refinement(
        model,
        Unscaled(features, dtype),
        refine,
        cells=cells,
        decoder=autoencoder.decoder,
        augmentation=augmentation,
    )


@torch.no_grad()
def first_parts(x_BF: Tensor, clusters: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """An encoder, and the embeddings of the first rows as centroids."""
    encoder = Autoencoder(x_BF.shape[1], hidden=(16,), embedding=3, seed=1).to(dtype).encoder
    return encoder, encoder(x_BF[:clusters].to(dtype))


def cells_of(x_BF: Tensor, dtype: torch.dtype, clusters: int) -> Cells:
    """The embeddings of three rows for each cluster as cells; not those of the centroids."""
    cells_CD = first_parts(x_BF[clusters:], 3 * clusters, dtype)[1]
    return Cells(cells_CD, torch.arange(3 * clusters) % clusters)


def overlapping_rows(count: int, features: int, clusters: int) -> Tensor:
    """Rows between clusters as well as in them, so that labels do change."""
    random = np.random.default_rng(22)
    centers = random.normal(scale=1.5, size=(clusters, features))
    x = centers[random.integers(clusters, size=count)] + random.normal(size=(count, features))
    return torch.from_numpy(x.astype(np.float32))


def gradients_of(night: Refinement) -> list[list[Tensor]]:
    """Fills up, while it trains, with what the optimizer is given in each step."""
    steps: list[list[Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = optimizer.param_groups[0]["params"]
        steps.append([parameter.grad.clone() for parameter in parameters])

    night.optimizer.register_step_pre_hook(keep)
    return steps


def stretched(x_BF: Tensor, _: torch.Generator | None = None) -> Tensor:
    """An augmentation that needs no randomness: columns drift apart."""
    return x_BF * torch.linspace(0.8, 1.2, x_BF.shape[1], dtype=x_BF.dtype)


# None: an update of the target after each pass of 10 steps; 224: after every 7, also within passes.
@pytest.mark.parametrize("interval_rows", [None, 224])
@pytest.mark.parametrize("target", ["frozen", "live"])
# IDEC's loss on augmented rows: clean rows give the target, other versions of them are learnt from.
@pytest.mark.parametrize("idec_weight", [0.0, 0.1])
def test_fifty_steps_follow_the_paper_in_float64(
    target: str, interval_rows: int | None, idec_weight: float
) -> None:
    rows, clusters, batch_rows, learning_rate, alpha = 320, 4, 32, 3e-3, 1.0
    x = overlapping_rows(rows, features=6, clusters=clusters)
    night = refinement_of(
        x,
        clusters,
        torch.float32,
        passes=5,
        batch_rows=batch_rows,
        update_interval_rows=interval_rows,
        target=target,
        learning_rate=learning_rate,
        alpha=alpha,
        reconstruction_weight=idec_weight,
        augmented=bool(idec_weight),
    )
    autoencoder = Autoencoder(6, hidden=(16,), embedding=3, seed=1).double()
    encoder = autoencoder.encoder
    mu_KD = nn.Parameter(night.model.centroids_KD.detach().double())
    learnt = autoencoder.parameters() if idec_weight else encoder.parameters()
    optimizer = torch.optim.Adam([*learnt, mu_KD], lr=learning_rate)
    x64 = x.double()
    given64 = stretched(x64) if idec_weight else x64
    # The same batches in the same order, of row numbers.
    numbers = MemoryRows(torch.arange(rows)[:, None])
    batches = [b[:, 0] for n in range(5) for b in numbers.batches(n, batch_rows, shuffled=True)]
    steps = gradients_of(night)

    updates = night.run(MemoryRows(x, features=6))
    next(updates)
    with torch.no_grad():
        start_NK = paper_q(encoder(x64), mu_KD, alpha)
    until_updates = every((interval_rows or rows) // batch_rows, batches)
    for _, until_update in zip(updates, until_updates, strict=True):
        with torch.no_grad():
            q_NK = paper_q(encoder(x64), mu_KD, alpha)
            f_K = q_NK.sum(dim=0)
            # The paper's way: p of all rows, held in memory until the next update.
            p_NK = paper_p(q_NK, f_K)
        for mine in until_update:
            z_BD = encoder(given64[mine])
            with torch.no_grad():
                p_BK = p_NK[mine]
                if target == "live":
                    q_BK = paper_q(encoder(x64[mine]), mu_KD, alpha)
                    p_BK = paper_p(q_BK, f_K)
                    f_K = f_K * (1 - len(mine) / rows) + q_BK.sum(dim=0)
                gradient_z, gradient_mu = paper_gradients(z_BD, mu_KD, p_BK, alpha)
            optimizer.zero_grad()
            error = (autoencoder.decoder(z_BD) - given64[mine]).square().mean(dim=1).sum()
            (idec_weight * error + (z_BD * gradient_z).sum()).div(len(mine)).backward()
            mu_KD.grad = gradient_mu / len(mine)
            optimizer.step()
        with torch.no_grad():
            theirs_NK = paper_q(encoder(x64), mu_KD, alpha)
            ours_NK = night.model(x).double()
        assert (ours_NK - theirs_NK).abs().max() <= 1e-4
        assert torch.equal(ours_NK.argmax(dim=1), theirs_NK.argmax(dim=1))

    assert len(steps) == len(batches) == 50
    assert {group["lr"] for group in night.optimizer.param_groups} == {learning_rate}
    # And there was a way to go: soft assignments moved far, and labels changed.
    assert (theirs_NK - start_NK).abs().max() > 0.3
    assert (theirs_NK.argmax(dim=1) != start_NK.argmax(dim=1)).sum() >= 10


@pytest.mark.parametrize("embedded", [True, False], ids=["of embeddings", "of scaled rows"])
def test_taught_steps_follow_the_cross_entropy_in_float64(embedded: bool) -> None:
    rows, clusters, batch_rows, learning_rate, alpha = 320, 4, 32, 3e-3, 1.0
    x = overlapping_rows(rows, features=6, clusters=clusters)
    cells = cells_of(x, torch.float32, clusters)
    if not embedded:
        cells = Cells(x[clusters : 4 * clusters].clone(), cells.cluster_C, embedded=False)
    night = refinement_of(
        x,
        clusters,
        torch.float32,
        cells=cells,
        teaching_passes=3,
        passes=0,
        batch_rows=batch_rows,
        learning_rate=learning_rate / 3,  # teaching learns three times as fast
        alpha=alpha,
    )
    encoder = Autoencoder(6, hidden=(16,), embedding=3, seed=1).double().encoder
    mu_KD = nn.Parameter(night.model.centroids_KD.detach().double())
    optimizer = torch.optim.Adam([*encoder.parameters(), mu_KD], lr=learning_rate)
    x64 = x.double()
    with torch.no_grad():  # the group of each row is that of its nearest cell, once and for all
        points = encoder(x64) if embedded else x64
        distance_NC = torch.cdist(points, cells.centroids_CD.double())
        group_NK = nn.functional.one_hot(cells.cluster_C[distance_NC.argmin(dim=1)], clusters)
    numbers = MemoryRows(torch.arange(rows)[:, None])
    updates = night.run(MemoryRows(x, features=6))
    for number in range(3):
        right = 0
        for some in numbers.batches(number, batch_rows, shuffled=True):
            mine = some[:, 0]
            z_BD = encoder(x64[mine])
            with torch.no_grad():
                q_BK = paper_q(z_BD, mu_KD, alpha)
                right += int((q_BK.argmax(dim=1) == group_NK[mine].argmax(dim=1)).sum())
                # Cross-entropy is KL(P‖Q) where p is 1 for the group: eqs. 4 and 5 hold for it.
                gradient_z, gradient_mu = paper_gradients(z_BD, mu_KD, group_NK[mine], alpha)
            optimizer.zero_grad()
            (z_BD * gradient_z).sum().div(len(mine)).backward()
            mu_KD.grad = gradient_mu / len(mine)
            optimizer.step()
        update = next(updates)
        assert (update.number, update.kl, update.finished) == (number, None, None)
        assert update.taught == pytest.approx(right / rows, abs=2 / rows)
        assert sum(update.cluster_rows) == rows
        with torch.no_grad():
            theirs_NK, ours_NK = paper_q(encoder(x64), mu_KD, alpha), night.model(x).double()
        assert (ours_NK - theirs_NK).abs().max() <= 1e-4
    last = next(updates)  # nothing is refined: what was taught is measured
    assert (last.number, last.taught, last.finished) == (3, None, "passes")
    for name, tensor in night.model.state_dict().items():
        assert torch.equal(night.taught["model"].state_dict()[name], tensor)
    # And there was something to learn.
    with torch.no_grad():
        first = ClusterModel(*first_parts(x, clusters, torch.float32), alpha)(x).argmax(dim=1)
    groups = group_NK.argmax(dim=1)
    assert (ours_NK.argmax(dim=1) == groups).sum() > (first == groups).sum() + 10


def every(steps: int, batches: list[Tensor]) -> Iterator[list[Tensor]]:
    for start in range(0, len(batches), steps):
        yield batches[start : start + steps]


# ------------------------------------------------------------------------ one against several

# 213 = 3 · 64 + 21: in the last global batch the four workers hold 16, 5, 0 and 0 rows.
SHARED_ROWS, SHARED_BATCH, SHARED_CLUSTERS = 213, 64, 3
DTYPES = (torch.float64, torch.float32)
TARGETS = ("live", "frozen", "taught")


@dataclass
class Compared:
    """What must not depend on how many workers there are.

    Attributes:
        frequencies: f at every update.
        gradients: What the optimizer was given, step by step.
        labels: Of every row, at the end.
    """

    frequencies: list[Tensor]
    gradients: list[list[Tensor]]
    labels: Tensor


def train_on_shared_batches(rank: int, size: int, dtype: torch.dtype, target: str) -> Compared:
    """Three passes over the same global batches, whatever the number of workers."""
    x = overlapping_rows(SHARED_ROWS, features=4, clusters=SHARED_CLUSTERS)
    settings: dict[str, Any] = {"passes": 3, "batch_rows": SHARED_BATCH, "learning_rate": 1e-3}
    if target == "taught":  # and then refined towards a target that leaves sizes alone
        cells = cells_of(x, dtype, SHARED_CLUSTERS)
        settings |= {"cells": cells, "teaching_passes": 2, "passes": 1, "size_balance": 0.0}
    else:
        settings["target"] = target
    night = refinement_of(x, SHARED_CLUSTERS, dtype, **settings)
    frequencies: list[Tensor] = []
    measure = night._measure

    def kept(rows: TrainingRows) -> Any:
        measured = measure(rows)
        frequencies.append(measured.frequency_K.clone())
        return measured

    night._measure = kept  # type: ignore[method-assign]
    gradients = gradients_of(night)
    for _ in night.run(MemoryRows(x, rank, size)):
        pass
    with torch.no_grad():
        labels = night.model(x.to(dtype)).argmax(dim=1)
    return Compared(frequencies, gradients, labels)


# --------------------------------------------------------------------- from a table of Parquet

# 1,003 = 3 · 334 + 1 = 15 · 64 + 43: rows divide neither by workers nor by batches.
TABLE_ROWS, TABLE_BATCH, TABLE_CLUSTERS = 1003, 64, 3
# A row's number travels in its first feature as a share of 1,024, which float32 holds exactly.
NUMBER_UNIT = 1024


def write_numbered_table(folder: Path) -> None:
    table = blobs(TABLE_ROWS)
    number = pa.array(np.arange(TABLE_ROWS) / NUMBER_UNIT, pa.float32())
    # 97: shards of 334 rows in row groups of 97, 97, 97 and 43, so shares begin inside of one.
    write_shards(folder, table.append_column("number", number), shards=3, row_group_size=97)


def rows_of_worker(folder: Path, rank: int, size: int, cache_bytes: int) -> WorkerRows:
    """A worker's share as a run feeds it."""
    settings = Config.model_validate(
        {
            "source": {"path": str(folder), "features": ["number", "x"]},
            "output": "unused",
            "clusters": TABLE_CLUSTERS,
        }
    )
    pinned = pin(settings, list_shards(settings))
    pieces = pieces_of_shards(pinned.shards, 1)
    return WorkerRows(
        Reader(
            features=pinned.features,
            dtype=pinned.dtype,
            nulls="error",
            carried=pinned.carried,
            shard_keys=True,
        ),
        training_share(pieces, rank, size, fit_rows=None, seed=4),
        total_rows=TABLE_ROWS,
        cache_bytes=cache_bytes,
        parallel_reads=1,
        seed=4,
    )


@dataclass
class Night:
    """One training from table to labels, on one worker.

    Attributes:
        pretrain_batches: Numbers of the rows learnt from, by pass and batch.
        refine_batches: The same of refinement.
        pretrain_rows: Rows of all workers, as each pass reports them.
        updates: What refinement reports.
        state: Weights and moments at the end.
        labels: Of every row of the table, by its number.
    """

    pretrain_batches: list[list[list[int]]] = field(default_factory=list)
    refine_batches: list[list[list[int]]] = field(default_factory=list)
    pretrain_rows: list[int] = field(default_factory=list)
    updates: list[RefineUpdate] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)


def numbers_learnt_from(network: nn.Module) -> list[list[int]]:
    """Fills up with the numbers of the rows that pass through to be learnt from, by batch."""
    batches: list[list[int]] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():  # neither while measuring nor while assigning
            batches.append((inputs[0][:, 0] * NUMBER_UNIT).round().int().tolist())

    network.register_forward_pre_hook(note)
    return batches


def emptied(batches: list[list[int]]) -> list[list[int]]:
    """What was noted since the last call, without batches of no rows at the end of a share."""
    noted = [batch for batch in batches if batch]
    batches.clear()
    return noted


def raw_table() -> Tensor:
    """Every row in the order of its number."""
    width = 8
    x = blobs(TABLE_ROWS)["x"].combine_chunks().flatten().to_numpy().reshape(-1, width)
    number = np.arange(TABLE_ROWS)[:, None] / NUMBER_UNIT
    return torch.from_numpy(np.concatenate([number, x], axis=1).astype(np.float32))


def first_model(encoder: nn.Module) -> ClusterModel:
    """k-means on the embeddings; every worker starts from rank 0's."""
    with torch.no_grad():
        z = encoder(raw_table()).numpy()
    found = kmeans(z, TABLE_CLUSTERS, restarts=5, iterations=20, seed=4)
    centroids_KD = torch.from_numpy(found.centroids_KD)
    if dist.is_initialized():
        dist.broadcast(centroids_KD, src=0)
    return ClusterModel(encoder, centroids_KD, alpha=1.0)


def refinement_of_table(model: ClusterModel, **settings: Any) -> Refinement:
    cells = settings.pop("cells", None)
    defaults = {"passes": 4, "batch_rows": TABLE_BATCH, "min_updates": 0, "tol": 0}
    settings = {**defaults, "learning_rate": 1e-3, **settings}
    refine = Refine.model_validate(settings)
    return Refinement(model, Unscaled(9, torch.float32), refine, cells=cells)


def pretrained(night: Night, rows: TrainingRows) -> Autoencoder:
    autoencoder = Autoencoder(9, hidden=(16,), embedding=3, seed=4)
    # Without noise, which would hide row numbers.
    settings = Pretrain.model_validate(
        {
            "passes": 4,
            "batch_rows": TABLE_BATCH,
            "min_updates": 0,
            "noise": 0,
            "learning_rate": 0.01,
        }
    )
    training = Pretraining(autoencoder, Unscaled(9, torch.float32), settings, seed=4)
    batches = numbers_learnt_from(autoencoder)
    for done in training.run(rows):
        night.pretrain_rows.append(done.rows)
        night.pretrain_batches.append(emptied(batches))
    return autoencoder


def train_on_table(
    folder: Path, rank: int, size: int, cache_bytes: int = 2**30, **settings: Any
) -> Night:
    """Pretraining, k-means and refinement."""
    night = Night()
    rows = rows_of_worker(folder, rank, size, cache_bytes)
    training = refinement_of_table(first_model(pretrained(night, rows).encoder), **settings)
    refined(night, training, training.run(rows))
    return night


def train_with_interruption(
    folder: Path, rank: int, size: int, updates: int = 3, **settings: Any
) -> Night:
    """The same, but killed after some updates of refinement; fresh objects go on."""
    night = Night()
    rows = rows_of_worker(folder, rank, size, 2**30)
    killed = refinement_of_table(first_model(pretrained(night, rows).encoder), **settings)
    attempt = killed.run(rows)
    refined(night, killed, (next(attempt) for _ in range(updates)))
    file = folder / f"state-{size}.safetensors"
    if rank == 0:  # as in a run: rank 0 writes, every worker reads its file
        save_file({name: tensor.contiguous() for name, tensor in killed.state().items()}, file)
    if size > 1:
        dist.barrier()
    other = Autoencoder(9, hidden=(16,), embedding=3, seed=99).encoder
    resumed = refinement_of_table(
        ClusterModel(other, torch.zeros(TABLE_CLUSTERS, 3), alpha=1.0), **settings
    )
    resumed.restore(load_file(file))
    again = resumed.run(rows_of_worker(folder, rank, size, 2**30))
    if night.updates[-1].taught is None:  # it measures anew where it was killed
        assert next(again) == night.updates[-1]
    refined(night, resumed, again)
    return night


def refined(night: Night, training: Refinement, updates: Iterator[RefineUpdate]) -> None:
    batches = numbers_learnt_from(training.model.encoder)
    for update in updates:
        night.updates.append(update)
        night.refine_batches.append(emptied(batches))
    night.state = training.state()
    with torch.no_grad():
        night.labels = training.model(raw_table()).argmax(dim=1).tolist()


# ------------------------------------------------------------------------------- the processes


@contextlib.contextmanager
def group(folder: Path, name: str, rank: int, size: int) -> Iterator[None]:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet-{name}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _on_worker(rank: int, place: str) -> None:
    torch.set_num_threads(1)
    folder, table = Path(place), Path(place) / "table"
    found: dict[str, Any] = {}
    for size in (2, 4):
        if rank < size:
            with group(folder, f"shared-{size}", rank, size):
                for dtype, target in itertools.product(DTYPES, TARGETS):
                    result = train_on_shared_batches(rank, size, dtype, target)
                    found[f"shared {size} {dtype} {target}"] = vars(result)
    if rank < 2:
        for attempt in ("first", "again"):
            with group(folder, attempt, rank, 2):
                found[f"two, {attempt}"] = vars(train_on_table(table, rank, 2))
        with group(folder, "resumed", rank, 2):
            found["two, resumed"] = vars(train_with_interruption(table, rank, 2))
    if rank < 3:
        for name, cache_bytes in (("cached", 2**30), ("streamed", 0)):
            with group(folder, name, rank, 3):
                found[f"three, {name}"] = vars(train_on_table(table, rank, 3, cache_bytes))
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("exact"))
    write_numbered_table(folder / "table")
    return folder / "table"


@pytest.fixture(scope="module")
def workers(table: Path) -> list[dict[str, Any]]:
    """What each of four processes found."""
    folder = table.parent
    run_workers(_on_worker, folder, 4)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(4)]


def nights(workers: list[dict[str, Any]], name: str) -> list[Night]:
    return [Night(**found[name]) for found in workers if name in found]


@pytest.fixture(scope="module")
def alone(table: Path) -> Night:
    return train_on_table(table, 0, 1)


# --------------------------------------------------------------------------------- what holds


# Each row's q is the same number on any worker but for the rounding of matrix products, which
# depends on how many rows are multiplied at once. In float64 that is 1e-16 a row, and sums of 213
# rows agree to 1e-12: anything more would be a row that is missing, counted twice or weighed
# differently. Float32, which is what a run uses, shows the same at its own precision.
@pytest.mark.parametrize(
    ("dtype", "frequency_rtol", "gradient_atol"),
    [(torch.float64, 1e-12, 1e-12), (torch.float32, 1e-6, 1e-5)],
)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("target", TARGETS)
def test_workers_share_frequency_gradients_and_labels(
    workers: list[dict[str, Any]],
    target: str,
    size: int,
    dtype: torch.dtype,
    frequency_rtol: float,
    gradient_atol: float,
) -> None:
    one = train_on_shared_batches(0, 1, dtype, target)
    assert len(one.frequencies) == (2 if target == "taught" else 4)
    assert len(one.gradients) == 3 * 4  # 213 rows in batches of 64
    assert max(gradient.abs().max().item() for gradient in one.gradients[0]) > 1e-2
    for found in workers[:size]:
        several = Compared(**found[f"shared {size} {dtype} {target}"])
        for ours, theirs in zip(one.frequencies, several.frequencies, strict=True):
            assert ours.sum().item() == pytest.approx(SHARED_ROWS, rel=1e-6)
            torch.testing.assert_close(theirs, ours, rtol=frequency_rtol, atol=0)
        for before, after in zip(one.gradients, several.gradients, strict=True):
            for ours, theirs in zip(before, after, strict=True):
                torch.testing.assert_close(theirs, ours, rtol=0, atol=gradient_atol)
        assert torch.equal(several.labels, one.labels)


@pytest.mark.parametrize("stored", ["cached", "streamed"])
def test_every_row_is_learnt_from_once_a_pass_when_rows_do_not_divide(
    workers: list[dict[str, Any]], stored: str
) -> None:
    three = nights(workers, f"three, {stored}")
    assert len(three) == 3
    everyone = list(range(TABLE_ROWS))
    for number in range(4):
        learnt = [row for night in three for b in night.pretrain_batches[number] for row in b]
        assert sorted(learnt) == everyone
    # Nothing is learnt before update 0; then there is a pass before each update.
    for number in range(1, 5):
        learnt = [row for night in three for b in night.refine_batches[number] for row in b]
        assert sorted(learnt) == everyone
    for night in three:
        assert night.pretrain_rows == [TABLE_ROWS] * 4
        assert [sum(update.cluster_rows) for update in night.updates] == [TABLE_ROWS] * 5
        assert night.refine_batches[0] == []
    # Shares differ by at most a row, and no global batch is larger than asked for.
    shares = [sum(len(batch) for batch in night.refine_batches[1]) for night in three]
    assert max(shares) - min(shares) == 1
    assert sum(max(len(b) for b in night.refine_batches[1]) for night in three) == TABLE_BATCH


def test_resumed_refinement_is_bitwise_the_uninterrupted_one_on_two_workers(
    workers: list[dict[str, Any]],
) -> None:
    whole, resumed = nights(workers, "two, first"), nights(workers, "two, resumed")
    assert len(whole) == 2
    for expected, found in zip(whole, resumed, strict=True):
        assert_same_night(found, expected)


# 300 rows: the target is updated within passes, so a training may be killed within one too. And
# three passes of teaching, killed after two of them, or after all.
TAUGHT = {
    "cells": Cells(torch.eye(9)[:, :3] * 2 - 1, torch.arange(9) % TABLE_CLUSTERS),
    "teaching_passes": 3,
    "passes": 1,
}


@pytest.mark.parametrize(
    ("settings", "updates"),
    [({}, 3), ({"update_interval_rows": 300}, 3), (TAUGHT, 2), (TAUGHT, 3)],
    ids=["pass", "300 rows", "teaching", "taught"],
)
def test_resumed_refinement_is_bitwise_the_uninterrupted_one(
    table: Path, settings: dict[str, Any], updates: int
) -> None:
    expected = train_on_table(table, 0, 1, **settings)
    assert_same_night(train_with_interruption(table, 0, 1, updates, **settings), expected)
    learnt = [row for batches in expected.refine_batches for batch in batches for row in batch]
    assert sorted(learnt) == sorted(list(range(TABLE_ROWS)) * 4)


def assert_same_night(found: Night, expected: Night) -> None:
    assert found.updates == expected.updates
    assert found.refine_batches == expected.refine_batches
    assert found.state.keys() == expected.state.keys()
    for name, tensor in expected.state.items():
        # Bytes, not values: of two NaN it is the same one, too.
        assert tensor.numpy().tobytes() == found.state[name].numpy().tobytes(), name
    assert found.labels == expected.labels


def test_same_seed_and_workers_give_the_same_batches_and_labels(
    workers: list[dict[str, Any]],
) -> None:
    first, again = nights(workers, "two, first"), nights(workers, "two, again")
    assert len(first) == 2
    for one, other in zip(first, again, strict=True):
        assert one.pretrain_batches == other.pretrain_batches
        assert_same_night(other, one)
    # Passes differ from one another, and so do the workers' shares.
    assert first[0].refine_batches[1] != first[0].refine_batches[2]
    assert first[0].refine_batches[1] != first[1].refine_batches[1]
    assert first[0].labels == first[1].labels


def test_other_numbers_of_workers_give_the_same_quality(
    workers: list[dict[str, Any]], alone: Night
) -> None:
    truth = blobs(TABLE_ROWS)["label"].to_pylist()
    two, three = nights(workers, "two, first")[0], nights(workers, "three, cached")[0]
    scores = [adjusted_rand_score(truth, night.labels) for night in (alone, two, three)]
    assert min(scores) >= 0.99
    assert max(scores) - min(scores) <= 0.01
    # Batches are others, so weights are: it is not the same training three times.
    assert any(not torch.equal(alone.state[n], three.state[n]) for n in alone.state)
