"""Refinement: DEC sharpens encoder and centroids together (Xie et al. 2016, section 3.1).

Exact at any size: the target p of a batch is computed on the fly, so that nothing grows with
rows × clusters, and its frequency f is summed over the whole pass and all workers. The paper's
target stands still between two updates (``target: frozen``): a frozen copy of encoder and centroids
gives it. A moving one (``target: live``) sharpens what the model says now; decision 0008.

Where the first centroids come from merged cells, the encoder is taught that partition before: a
few passes of cross-entropy of q against the group of each row, which is that of its nearest cell in
the first embedding. Groups of any shape become round ones, which K centroids can tell apart.

A partition collapses when a cluster loses all its rows, when one takes most of them, or when the
loss is not finite. Refinement then goes back to the frozen copy, the last sound state.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.errors import NumericalError
from pipeline.model.augmentation import Augmentation, hide, randomness
from pipeline.model.clusters import Cells, ClusterModel
from pipeline.model.dec import (
    clustering_loss,
    rows_at_a_time,
    squared_distances,
)
from pipeline.model.devices import device_of, embeddings, learnt_at_a_time, to_device
from pipeline.model.scaling import Scaler
from pipeline.model.training import (
    TrainingRows,
    in_step,
    learning_rate_at,
    optimizer_of,
    restore,
    set_learning_rate,
    state_of,
    update_rows,
)
from pipeline.model.updates import Measured, RefineUpdate, tiny_clusters
from pipeline.model.workers import global_update, rank_and_size, sum_over_workers

if TYPE_CHECKING:  # torch and numpy are all that this package needs to run
    from pipeline.config import Refine

# Rows per batch of a pass without learning: products at full speed, activations in the cache.
_MEASURE_BATCH_ROWS = 2048
# Maximum number of rows whose labels are kept from one update to the next, a byte each for up to
# 256 clusters and three while they are compared. Of more rows the frozen model computes them again:
# memory must not grow with the table.
_REMEMBERED_ROWS = 2**24
# Steps between two checks of the loss: each waits for a GPU to finish its queue.
_LOOK_EVERY = 32
# Clusters that keep losing all rows, or a loss that keeps exploding, will not stop at one more try.
_MAX_RECOVERIES = 3
# Factor of the learning rate in teaching: a narrow network does not reach the partition without.
_TEACHING = 3
# Factor of the learning rate after each collapse.
_CAUTION = 0.1


class Refinement:
    """Resumable refinement with the same result on one worker and on many.

    Args:
        model: Encoder and first centroids.
        scaler: Scales raw rows.
        settings: The section ``refine`` of the config.
        cells: Merged cells that the encoder is taught first; None: refinement begins at once.
        decoder: Trained too where ``reconstruction_weight`` is not 0 (Guo et al. 2017, IDEC).
        augmentation: Augmentation of the rows learnt from; the target always uses the row itself.
        reference: Fetches raw rows of the reference sample, the same on every worker, from which
            clusters without rows are seeded again.
        seed: Seed of noise, augmentation and new centroids.
    """

    def __init__(
        self,
        model: ClusterModel,
        scaler: Scaler,
        settings: Refine,
        *,
        cells: Cells | None = None,
        decoder: nn.Module | None = None,
        augmentation: Augmentation | None = None,
        reference: Callable[[], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        learnt: dict[str, nn.Module] = {"model": model}
        if settings.reconstruction_weight and decoder is not None:
            learnt["decoder"] = decoder
        self.live = nn.ModuleDict(learnt)
        self.kept = copy.deepcopy(self.live).requires_grad_(False)
        self.cells = cells
        self.teaching_passes = settings.teaching_passes if cells else 0
        self._last_pass = self.teaching_passes + settings.passes
        # What teaching ended with: a candidate of its own.
        self.taught = copy.deepcopy(self.kept) if self.teaching_passes else nn.ModuleDict()
        self.device = device_of(model)
        self.scaler = scaler.to(self.device)
        self.settings = settings
        self.augmentation = augmentation
        self.reference = reference
        self.seed = seed
        self.optimizer = optimizer_of(list(self.live.parameters()), settings)
        clusters = len(model.centroids_KD)
        self._portion_rows = rows_at_a_time(clusters, learnt_at_a_time(self.live))
        self.updates_done = 0
        self.passes_done = 0
        self.steps_done, self.rows_done = 0, 0  # of the pass that is under way
        self.recoveries = 0
        self.first_share = 1.0
        self.kl, self.loss = math.nan, math.nan
        self._batches: Iterator[Tensor] | None = None
        self._kept_labels_N: Tensor | None = None

    @property
    def model(self) -> ClusterModel:
        """The model that is trained."""
        return self.live["model"]  # type: ignore[return-value]

    @property
    def frozen(self) -> ClusterModel:
        """The model as it stood at the last update, which gives the target."""
        return self.kept["model"]  # type: ignore[return-value]

    def run(self, rows: TrainingRows) -> Iterator[RefineUpdate]:
        """Alternate updates of the target with learning, yielding at each update.

        Raises:
            NumericalError: The first partition is unusable: embeddings are not finite, clusters
                stay without rows, or there is no row to learn from.
        """
        yield from self._teach(rows)
        begins = self.updates_done == self.teaching_passes
        measured, event = self._revived(rows, self._measure(rows))
        if begins and self.teaching_passes and (problem := self._problem(measured)):
            self.live.load_state_dict(self.kept.state_dict())
            measured, revived = self._revived(rows, self._measure(rows))
            back = f"{problem} after teaching: back to the first partition"
            event = "; ".join(filter(None, (back, revived)))
        if begins:
            self.kept.load_state_dict(self.live.state_dict())
            if self.teaching_passes:
                self.taught.load_state_dict(self.live.state_dict())
        if problem := self._problem(measured):
            raise NumericalError(
                f"refine: {problem} before the first update, and no seed from the sample helps. "
                f"Lower clusters={len(self.model.centroids_KD)}, or look for extreme values"
            )
        if begins:
            self.first_share = measured.largest_share
        collapsed = False
        while True:
            yield (update := self._update(measured, event, collapsed=collapsed))
            if update.finished:
                return
            self.kept.load_state_dict(self.live.state_dict())
            self._kept_labels_N = measured.labels_N
            measured, event, collapsed = self._advance(rows, measured)
            self.updates_done += 1

    def _update(self, measured: Measured, event: str | None, *, collapsed: bool) -> RefineUpdate:
        begun = self.updates_done > self.teaching_passes
        learnt = begun and not collapsed and math.isfinite(self.kl)
        change = measured.changed / measured.rows if learnt else None
        finished = None
        if collapsed:
            finished = "collapse"
        elif change is not None and change < self.settings.tol:
            finished = "tol"
        elif self.passes_done >= self._last_pass:
            finished = "passes"
        if finished:
            tiny = tiny_clusters(measured.cluster_rows_K)
            event = "; ".join(filter(None, (event, tiny))) or None
        return RefineUpdate(
            number=self.updates_done,
            taught=None,
            label_change=change,
            kl=self.kl if learnt else None,
            loss=self.loss if learnt else None,
            learning_rate=self._learning_rate(0.0),
            cluster_rows=tuple(int(n) for n in measured.cluster_rows_K),
            event=event,
            finished=finished,
        )

    # ------------------------------------------------------------------------------- teaching

    def _teach(self, rows: TrainingRows) -> Iterator[RefineUpdate]:
        """Teach the encoder the groups of the cells, pass by pass, yielding after each.

        Meanwhile the frozen copy is the model as it was first, which says the cell of a row. If the
        loss is not finite, refinement starts from that model, with a lower learning rate.
        """
        settings, clusters = self.settings, len(self.model.centroids_KD)
        learning_rate = _TEACHING * settings.learning_rate
        batch_rows = update_rows(settings, rows.total_rows)
        while self.passes_done < self.teaching_passes:
            rank = rank_and_size()[0]
            loss = torch.zeros((), dtype=torch.float64, device=self.device)
            right, seen, event = torch.zeros_like(loss), 0, None
            cluster_rows_K = torch.zeros(clusters, dtype=torch.float64, device=self.device)
            set_learning_rate(self.optimizer, learning_rate)
            for step, batch_BF in enumerate(in_step(rows, self.passes_done, batch_rows)):
                random = randomness(self.seed, self.passes_done, step, rank)
                loss_sum, global_rows, right_sum = global_update(
                    self.optimizer,
                    list(self.live.parameters()),
                    self._lessons(batch_BF, cluster_rows_K, random),
                    len(batch_BF),
                    max_norm=settings.max_gradient_norm,
                )
                if not global_rows:
                    break
                loss, right, seen = loss.add_(loss_sum), right.add_(right_sum), seen + global_rows
            self.passes_done += 1
            finite = bool(torch.isfinite(loss))
            if not finite:
                self.live.load_state_dict(self.kept.state_dict())
                self.recoveries, self.passes_done = self.recoveries + 1, self.teaching_passes
                event = (
                    "the loss is not finite in teaching: back to the first partition, learning "
                    f"rate x {_CAUTION**self.recoveries:g}"
                )
            if self.passes_done == self.teaching_passes:
                self.optimizer.state.clear()
            self.updates_done = self.passes_done
            yield RefineUpdate(
                number=self.updates_done - 1,
                taught=right.item() / max(1, seen) if finite else None,
                label_change=None,
                kl=None,
                loss=loss.item() / max(1, seen) if finite else None,
                learning_rate=learning_rate,
                cluster_rows=tuple(map(int, sum_over_workers(cluster_rows_K))),
                event=event,
                finished=None,
            )

    def _lessons(
        self, batch_BF: Tensor, cluster_rows_K: Tensor, random: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Cross-entropy −log q_ig of each row's group g, and rows nearest to its centroid, summed.

        Args:
            batch_BF: Raw rows of a batch, shape (batch, features).
            cluster_rows_K: Accumulates the rows that are nearest to each centroid.
            random: Randomness of augmentation and noise.
        """
        assert self.cells is not None
        for some_BF in batch_BF.split(self._portion_rows):  # type: ignore[no-untyped-call]
            clean_BF, given_BF, _ = self._given(some_BF, random)
            with torch.no_grad():
                group_B = self.cells.cluster_of(clean_BF, self.frozen.encoder)
            log_q_BK = self.model.log_q(given_BF)
            nearest_B = log_q_BK.argmax(dim=1)
            cluster_rows_K += torch.bincount(nearest_B, minlength=len(cluster_rows_K))
            loss = nn.functional.nll_loss(log_q_BK, group_B, reduction="sum")
            yield loss, (nearest_B == group_B).sum().to(loss.dtype)

    def _given(self, raw_BF: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled rows as they are, as the encoder is given them, and as it should rebuild them."""
        raw_BF = to_device(raw_BF, self.device)
        clean_BF = x_BF = self.scaler(raw_BF)
        if self.augmentation:
            x_BF = self.scaler(self.augmentation(raw_BF, random))
        return clean_BF, hide(x_BF, self.settings.noise, random), x_BF

    # ------------------------------------------------------------------------------- learning

    def _advance(self, rows: TrainingRows, sound: Measured) -> tuple[Measured, str | None, bool]:
        """Learn until the next update; after a collapse try again with a lower learning rate.

        Returns:
            The live model's measurement, the events on the way, and whether refinement gave up and
            went back to the last update.
        """
        events: list[str] = []
        while True:
            place = self.passes_done, self.steps_done, self.rows_done
            if self._learn(rows, sound.frequency_K):
                measured, revived = self._revived(rows, self._measure(rows))
                problem = self._problem(measured)
                events += [revived] if revived else []
            else:
                problem = "the loss is not finite"
                self.passes_done, self.steps_done, self.rows_done = place  # nothing was learnt
                self._batches = None
            if not problem:
                return measured, "; ".join(events) or None, False
            self.live.load_state_dict(self.kept.state_dict())
            self.optimizer.state.clear()
            self.recoveries += 1
            back = f"{problem}: back to update {self.updates_done}"
            if self.recoveries > _MAX_RECOVERIES:
                return sound, "; ".join([*events, f"{back}, which is the result"]), True
            events.append(f"{back}, learning rate x {_CAUTION**self.recoveries:g}")

    def _learn(self, rows: TrainingRows, frequency_K: Tensor) -> bool:
        """Gradient steps on KL(P‖Q) until the next update; whether the loss stayed finite."""
        settings = self.settings
        parameters = list(self.live.parameters())
        rank = rank_and_size()[0]
        interval = settings.update_interval_rows or math.inf
        # With a live target f is a sum over about this many rows, older ones weighing less.
        batch_rows = update_rows(settings, rows.total_rows)
        window = max(batch_rows, min(settings.frequency_rows, rows.total_rows))
        frequency_K = frequency_K * (window / max(1, rows.total_rows))
        totals, seen = torch.zeros(2, dtype=torch.float64, device=self.device), 0
        while seen < interval and self.passes_done < self._last_pass:
            if self._batches is None:
                batches = in_step(rows, self.passes_done, batch_rows)
                self._batches = itertools.islice(batches, self.steps_done, None)
            batch_BF = next(self._batches)
            random = randomness(self.seed, self.passes_done, self.steps_done, rank, self.recoveries)
            batch_K = torch.zeros_like(frequency_K)
            done = self.rows_done / max(1, rows.total_rows)
            set_learning_rate(self.optimizer, self._learning_rate(done))
            loss_sum, global_rows, kl_sum = global_update(
                self.optimizer,
                parameters,
                self._losses(batch_BF, frequency_K, batch_K, random),
                len(batch_BF),
                max_norm=settings.max_gradient_norm,
            )
            totals.add_(torch.stack([kl_sum, loss_sum]))
            if self.steps_done % _LOOK_EVERY == 0 and not torch.isfinite(totals).all():
                return False
            if settings.target == "live":
                frequency_K = frequency_K * (1 - global_rows / window) + sum_over_workers(batch_K)
            self.steps_done, self.rows_done = self.steps_done + 1, self.rows_done + global_rows
            seen += global_rows
            # An empty batch ends a pass from which source.nulls dropped rows.
            if not global_rows or self.rows_done >= rows.total_rows:
                self.passes_done, self.steps_done, self.rows_done = self.passes_done + 1, 0, 0
                self._batches = None
                if settings.update_interval_rows is None:
                    break
        # NaN where no row was left: the interval before ended with the very last one.
        self.kl, self.loss = (totals / seen).tolist() if seen else (math.nan, math.nan)
        return math.isfinite(self.loss) or not seen

    def _losses(
        self, batch_BF: Tensor, frequency_K: Tensor, batch_K: Tensor, random: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The loss, and KL(P‖Q) alone, both summed over the rows of each portion of a batch.

        Args:
            batch_BF: Raw rows of a batch, shape (batch, features).
            frequency_K: See ``clustering_loss``.
            batch_K: Accumulates the soft assignments that were sharpened into P, summed over rows.
            random: Randomness of augmentation and noise.
        """
        weight = self.settings.reconstruction_weight
        for some_BF in batch_BF.split(self._portion_rows):  # type: ignore[no-untyped-call]
            clean_BF, given_BF, x_BF = self._given(some_BF, random)
            z_BD = self.model.encoder(given_BF)
            target_q_BK = None
            if self.settings.target == "frozen" or given_BF is not clean_BF:
                with torch.no_grad():
                    target = self.model if self.settings.target == "live" else self.frozen
                    target_q_BK = target(clean_BF)
            kl, target_q_BK = clustering_loss(
                z_BD,
                self.model.centroids_KD,
                frequency_K,
                self.model.alpha,
                target_q_BK,
                size_balance=self.settings.size_balance,
            )
            batch_K += target_q_BK.sum(dim=0, dtype=torch.float64)
            loss = kl
            if "decoder" in self.live:
                error = self.scaler.error(self.live["decoder"](z_BD), x_BF)
                loss = kl + weight * error / x_BF.shape[1]
            yield loss, kl

    def _learning_rate(self, pass_fraction: float) -> float:
        passes_done = self.passes_done - self.teaching_passes
        done = (passes_done + pass_fraction) / max(1, self.settings.passes)
        return learning_rate_at(self.settings, done) * _CAUTION**self.recoveries

    # ------------------------------------------------------------------------------ measuring

    @torch.no_grad()
    def _measure(self, rows: TrainingRows) -> Measured:
        """Frequency, cluster sizes and label changes over all rows of all workers."""
        clusters = len(self.model.centroids_KD)
        frequency_K = torch.zeros(clusters, dtype=torch.float64, device=self.device)
        cluster_rows_K, changed = torch.zeros_like(frequency_K), torch.zeros_like(frequency_K[:1])
        kept_N = self._kept_labels_N
        begun = self.passes_done > self.teaching_passes or self.steps_done > 0
        ask_frozen = kept_N is None and begun
        labels: list[Tensor] = []
        seen = 0
        batch_rows = rows_at_a_time(clusters, _MEASURE_BATCH_ROWS)
        for x_BF in rows.batches(self.passes_done, batch_rows, shuffled=False):
            x_BF = self.scaler(to_device(x_BF, self.device))
            q_BK = self.model(x_BF)
            labels_B = q_BK.argmax(dim=1)
            frequency_K += q_BK.sum(dim=0, dtype=torch.float64)
            cluster_rows_K += torch.bincount(labels_B, minlength=clusters)
            if ask_frozen:
                changed += (labels_B != self.frozen(x_BF).argmax(dim=1)).sum()
            elif kept_N is not None:
                changed += (labels_B != kept_N[seen : seen + len(labels_B)]).sum()
            seen += len(labels_B)
            if seen <= _REMEMBERED_ROWS:
                labels.append(labels_B.to(torch.uint8 if clusters <= 256 else torch.int32))
        totals = sum_over_workers(torch.cat([frequency_K, cluster_rows_K, changed]))
        frequency_K, cluster_rows_K = totals[:-1].view(2, clusters)
        labels_N = torch.cat(labels) if labels and seen <= _REMEMBERED_ROWS else None
        measured = Measured(frequency_K, cluster_rows_K, int(totals[-1]), labels_N)
        if not measured.rows:
            raise NumericalError("refine: no training row is left; expected at least one")
        return measured

    # ------------------------------------------------------------------------------- collapse

    def _problem(self, measured: Measured) -> str | None:
        """Why this is not a partition into K clusters; None when it is one."""
        if not torch.isfinite(measured.frequency_K).all():
            return "embeddings are not finite"
        if dead := measured.dead:
            return f"{len(dead)} of {len(measured.cluster_rows_K)} clusters have no rows"
        # A cluster that k-means already found that large may be in the table.
        begun = self.updates_done > self.teaching_passes
        limit = max(self.settings.max_share, self.first_share if begun else 1.0)
        if measured.largest_share > limit:
            return f"one cluster has {measured.largest_share:.1%} of the rows"
        return None

    def _revived(self, rows: TrainingRows, measured: Measured) -> tuple[Measured, str | None]:
        """Seed clusters without rows again from the reference sample, where that is possible."""
        dead = measured.dead if torch.isfinite(measured.frequency_K).all() else []
        if not dead or not self._seed_again(dead):
            return measured, None
        clusters = ", ".join(map(str, dead[:5])) + (", ..." if len(dead) > 5 else "")
        event = f"{len(dead)} clusters without rows ({clusters}) seeded again from the sample"
        return self._measure(rows), event

    @torch.no_grad()
    def _seed_again(self, dead: list[int]) -> bool:
        """Move centroids onto rows of the reference sample that are far from all other centroids.

        Rows are drawn as in k-means++ (Arthur & Vassilvitskii 2007), with a probability
        proportional to the squared distance to the nearest centroid. Returns whether there were
        such rows.
        """
        if self.reference is None or len(dead) == len(self.model.centroids_KD):
            return False
        model = self.model
        z_BD = embeddings(model.encoder, self.scaler, self.reference())
        alive = [j for j in range(len(model.centroids_KD)) if j not in set(dead)]
        nearest_B = squared_distances(z_BD, model.centroids_KD[alive]).amin(dim=1)
        random = randomness(self.seed, self.updates_done, self.recoveries)
        for cluster in dead:
            if not nearest_B.sum() > 0:
                return False
            chosen = int(torch.multinomial(nearest_B.double().cpu(), 1, generator=random))
            model.centroids_KD[cluster] = z_BD[chosen]
            nearest_B = torch.minimum(nearest_B, (z_BD - z_BD[chosen]).square().sum(dim=1))
        self.optimizer.state.pop(model.centroids_KD, None)  # its momentum belongs to the old place
        return True

    # ------------------------------------------------------------------------------- resuming

    def _modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"live": self.live, "kept": self.kept, "taught": self.taught})

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed refinement needs."""
        progress = [
            self.updates_done, self.passes_done, self.steps_done, self.rows_done, self.recoveries,
            self.first_share, self.kl, self.loss,
        ]  # fmt: skip
        return state_of(self._modules(), self.optimizer) | {
            "progress": torch.tensor(progress, dtype=torch.float64)
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``."""
        restore(state, self._modules(), self.optimizer)
        *counts, self.first_share, self.kl, self.loss = state["progress"].tolist()
        (
            self.updates_done, self.passes_done, self.steps_done, self.rows_done, self.recoveries,
        ) = map(int, counts)  # fmt: skip
        self._batches = None
        self._kept_labels_N = None
