"""The estimate: arithmetic on what each stage does (decision 0022).

A pure function of what the footers say, the settings, the cluster and the rates. Every stage has a
fixed part, which starts processes and does not grow with rows, and its work. Where the work depends
on the data, such as refinement that stops once labels stay, it is what it takes at most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.artifacts.estimates import Estimate, Money, StageEstimate, StageFactor
from pipeline.artifacts.nights import Action
from pipeline.bill.rates import Cluster, InputFacts, Rates
from pipeline.clustering.kmeans import WORK, affordable
from pipeline.clustering.merging import ITERATIONS, NEIGHBOURS, TREES, rows_and_cells
from pipeline.config import (
    MIN_SAMPLE_ROWS_PER_CLUSTER,
    AutoClusters,
    Config,
    Optimization,
    Prices,
)
from pipeline.input.slices import MAX_SAMPLED_ROW_GROUPS, held_out_share
from pipeline.model.training import update_rows
from pipeline.storage import S3_SCHEME

_MIB = 2**20
# Python, torch, pyarrow and Ray themselves, as measured in an idle worker.
_BASE_MIB = 450
# A streamed pass has two windows of this size in memory.
_WINDOW_BYTES = 2**27

# Of pipeline.stages.fit.evaluate; a test keeps them equal.
# Of a core, to cut a cluster in two and count what crosses: measured on 10,000 rows, 60 cells.
_CUT_SECONDS = 0.001
FIT_ROWS, STABILITY_RESTARTS, STABILITY_WORK, ASKED_ROWS = 20_000, 5, 10**12, 10_000
_SILHOUETTE_ROWS, _MOST_ROWS_PER_CLUSTER = 5_000, 200  # of pipeline.clustering.quality

# Requests to an object store, counted with a proxy in between (tests/bill/test_requests.py).
_VISIT_GETS = 4  # a shard opened to read rows: version before and after, size, footer
_GROUP_BYTES = 32 * _MIB  # pyarrow reads columns of a row group in one request of at most this
_FOOTER_GETS = 2  # size, footer
_FILE_GETS = 1  # a small file read back whole
_TABLE_GETS = 3  # a Parquet file: size, footer, content
_STAGE_GETS, _STAGE_PUTS = 3, 4  # the marker, and holding the lease
_LISTED = 1_000  # keys a LIST
_RENEWALS = 12  # of the lease, in the time that it lasts: a GET, a LIST and a PUT each
# Bytes of an assignment as stored, without the keys, and of a key.
_ASSIGNMENT_BYTES, _KEY_BYTES = 20, 8
# Of pipeline.insight.profiles.layout and pipeline.stages.explain; a test keeps them equal.
MOST_CELLS, TOGETHER = 2**19, 16
# A profile to be merged: a file to be understood, and each of its clusters × features.
_PROFILE_S, _CELL_S, _CELL_BYTES = 0.005, 1e-7, 40
# Of pipeline.clustering.surrogate, likewise, and a value of its rows on each level of the tree.
_TREE_ROWS, _TREE_FEATURES, _TREE_CELLS, _TREE_CELL_S = 20_000, 256, 4_000_000, 1e-7
# Of pipeline.insight.maps, likewise; t-SNE of 1,797 digits took 4 s of one core.
_MAP_ROWS, _MAP_PARTS, _MAP_ROW_S = 2_000, 64, 2.2e-3
_PAGE_GETS, _PAGE_BYTES = 60, 2_000_000  # markers, tables and parts that it reads; what it is
# What a slice's assignments take in memory while they are sorted and written, a row.
_SORTING_BYTES = 200


@dataclass(frozen=True)
class Tonight:
    """What a night does in place of a run's stages; see ``pipeline.stages.decide``.

    Attributes:
        action: Fit, go on from the champion, or let it label the rows.
        labelled: Share of the rows that are labelled; results of the others are carried over.
    """

    action: Action
    labelled: float = 1.0


def estimate(
    config: Config,
    facts: InputFacts,
    cluster: Cluster,
    *,
    products: str,
    rates: Rates | None = None,
    factors: Mapping[str, StageFactor] | None = None,
    rates_from: str = "defaults, not measured here",
    refine_passes: int | None = None,
    tonight: Tonight | None = None,
) -> Estimate:
    """What a run takes, or a night.

    Args:
        config: The settings.
        facts: What the footers say.
        cluster: Where it runs.
        products: Precision of matrix products there, "float32" or "bfloat16".
        rates: Of one core.
        factors: How stages differ from those, by name.
        rates_from: Where rates and factors come from, in words.
        refine_passes: That refinement makes; None: as many as it may.
        tonight: What the night does; None: it is a run of its own.
    """
    passes = most_passes(config, tonight) if refine_passes is None else refine_passes
    paper = _Paper(config, facts, cluster, products, rates or Rates(), passes, tonight)
    factors = dict(factors or {})
    stages = [_scaled(stage, factors.get(stage.stage), cluster) for stage in paper.stages()]
    stages.insert(0, paper.around(sum(stage.seconds for stage in stages)))
    return Estimate(
        stages=tuple(stages),
        nodes=cluster.nodes,
        cpus_per_node=cluster.cpus_per_node,
        gpus_per_node=cluster.gpus_per_node,
        workers=cluster.workers,
        threads=cluster.threads,
        on_gpus=bool(cluster.worker_gpus or cluster.actor_gpus),
        products=products,
        rates=rates_from,
        factors=factors,
        money=_money(config.prices, stages, read_from_s3=paper.from_s3),
    )


def most_passes(config: Config, tonight: Tonight | None) -> int:
    """Passes that refinement may make."""
    refreshes = tonight is not None and tonight.action == "refresh"
    return config.schedule.refresh.passes if refreshes else config.refine.passes


def kmeans_core_seconds(
    rates: Rates,
    shape: tuple[int, int, int],
    *,
    restarts: int,
    iterations: int,
    work: int = WORK,
) -> float:
    """What ``pipeline.clustering.kmeans.kmeans`` takes; shape is (rows, dimensions, clusters)."""
    rows, dimensions, clusters = shape
    multiplications = max(1, rows * dimensions * clusters)
    restarts, iterations = affordable(
        multiplications, restarts=restarts, iterations=iterations, work=work
    )
    seconds = 2 * multiplications / (rates.kmeans_gflop_s * 1e9) + rows * rates.point_ns * 1e-9
    return restarts * (iterations + 1) * seconds  # and once more to tell the objective


def _scaled(stage: StageEstimate, factor: StageFactor | None, cluster: Cluster) -> StageEstimate:
    factor = factor or StageFactor()
    fixed, work = stage.fixed_seconds * factor.fixed, stage.work_seconds * factor.work
    hours = (fixed + work) / 3600
    return stage.model_copy(
        update={
            "fixed_seconds": fixed,
            "work_seconds": work,
            "busy_core_hours": stage.busy_core_hours * factor.work,
            "core_hours": hours * cluster.cores,
            "gpu_hours": hours * cluster.gpus,
        }
    )


def _money(prices: Prices, stages: Sequence[StageEstimate], *, read_from_s3: bool) -> Money | None:
    given = prices.model_dump(exclude={"currency"})
    if all(price is None for price in given.values()):
        return None
    total = {
        name: sum(getattr(stage, name) for stage in stages)
        for name in ("core_hours", "gpu_hours", "gets", "puts", "read_bytes")
    }
    return Money(
        currency=prices.currency,
        compute=total["core_hours"] * (prices.cpu_core_hour or 0)
        + total["gpu_hours"] * (prices.gpu_hour or 0),
        requests=total["gets"] / 1000 * (prices.get_requests_per_1000 or 0)
        + total["puts"] / 1000 * (prices.put_requests_per_1000 or 0),
        transfer=read_from_s3 * total["read_bytes"] / 2**30 * (prices.read_gib or 0),
    )


@dataclass(frozen=True)
class _Network:
    """What the widths of the layers decide.

    Attributes:
        encoder: Weights of the encoder: half the FLOP that a row costs to encode.
        first: Those of its first layer, through which no gradient flows to the rows.
        encoder_parameters: With biases.
        parameters: With those of the decoder.
    """

    encoder: int
    first: int
    encoder_parameters: int
    parameters: int

    @classmethod
    def of(cls, widths: Sequence[int]) -> _Network:
        pairs = list(itertools.pairwise(widths))
        encoder = sum((a + 1) * b for a, b in pairs)
        decoder = sum((b + 1) * a for a, b in pairs)
        return cls(
            encoder=sum(a * b for a, b in pairs),
            first=widths[0] * widths[1],
            encoder_parameters=encoder,
            parameters=encoder + decoder,
        )


@dataclass(frozen=True)
class _Learner:
    """What training computes with: cores, or a card for each worker; figures of one of them."""

    units: int
    train_flops: float
    encode_flops: float
    update_s: float
    update_ns: float
    learn_ns: float
    measure_ns: float
    augment_ns: float

    @classmethod
    def of(cls, cluster: Cluster, rates: Rates, speed: float) -> _Learner:
        if cluster.worker_gpus:
            flops, each = rates.gpu_gflop_s * 1e9, rates.gpu_learn_ns
            return cls(
                cluster.workers * cluster.worker_gpus,
                flops,
                flops,
                rates.gpu_update_s,
                rates.gpu_update_ns,
                learn_ns=each,
                measure_ns=each,
                augment_ns=each,
            )
        return cls(
            cluster.compute,
            rates.train_gflop_s * speed,
            rates.encode_gflop_s * speed,
            rates.update_s,
            rates.update_ns,
            rates.learn_ns,
            rates.measure_ns,
            rates.augment_ns,
        )


class _Paper:
    """The stages of one run or night, one method each."""

    def __init__(
        self,
        config: Config,
        facts: InputFacts,
        cluster: Cluster,
        products: str,
        rates: Rates,
        refine_passes: int,
        tonight: Tonight | None = None,
    ) -> None:
        self.config, self.facts, self.cluster, self.rates = config, facts, cluster, rates
        self.refine_passes, self.tonight = refine_passes, tonight
        model = config.model
        self.net = _Network.of((facts.width, *model.hidden, model.embedding))
        speed = 1e9 * (rates.float32_share if products == "float32" else 1.0)
        self.encode_flops = speed * rates.encode_gflop_s
        self.learner = _Learner.of(cluster, rates, speed)
        source = config.source.path
        paths = [source] if isinstance(source, str) else source
        self.from_s3 = any(path.startswith(S3_SCHEME) for path in paths)
        self.to_s3 = config.output.startswith(S3_SCHEME)
        self.fit_rows = min(facts.rows, config.source.fit_rows or facts.rows)
        learnt = 1 - held_out_share(config.source.held_out, facts.rows)
        self.learnt_rows = max(1, round(self.fit_rows * learnt))
        self.fit_share = self.fit_rows / max(1, facts.rows)
        self.sample_rows = min(facts.rows, config.centroids.sample_rows)
        share_bytes = self.fit_rows * facts.row_bytes / cluster.workers
        self.cached = share_bytes <= config.execution.cache_mib * _MIB
        self.share_bytes = share_bytes

    def stages(self) -> list[StageEstimate]:
        action = self.tonight.action if self.tonight else None
        sample = self.sample()  # where none is drawn, the champion's, of the same size
        found = [self.pin(), *([self._small("decide", gets=20)] if action else [])]
        if action != "assign":
            found.append(sample)
            if action == "refresh":
                found.append(self._small("warm_start"))
            else:
                found += [self.pretrain(), self.init_centroids()]
            found += [self.refine(), self.evaluate(), self._small("select")]
            if action:
                found += [self.identify(), self.gate(), self._small("promote", gets=4, puts=2)]
        summary = "night_summary" if action else "summary"
        found += [self.assign(), self.publish(), self.explain(), self.describe()]
        return [*found, self._small(summary, puts=1), self.report()]

    # ------------------------------------------------------------------------------- the parts

    def around(self, seconds: float) -> StageEstimate:
        """What belongs to no stage: starting Ray, the lease, the run's own files."""
        fixed = self.rates.ray_s if self.cluster.started_here else 0.0
        renewals = int((fixed + seconds) / self.config.execution.lease_seconds * _RENEWALS)
        hours = fixed / 3600
        return StageEstimate(
            stage="run",
            gets=self.to_s3 * (renewals + 10),
            puts=self.to_s3 * (2 * renewals + 10),
            fixed_seconds=fixed,
            core_hours=hours * self.cluster.cores,
            gpu_hours=hours * self.cluster.gpus,
        )

    def pin(self) -> StageEstimate:
        """Footers: those of an earlier night are known, so this is what it takes at most."""
        shards = self.facts.shards
        each = _FOOTER_GETS * self.rates.request_s if self.from_s3 else 0.0005
        lists = 2 * (1 + shards // _LISTED)
        return StageEstimate(
            stage="pin",
            at_most=True,
            work_seconds=shards * each / 16,  # threads that read footers
            memory_mib=_BASE_MIB,
            **self._requests(
                self.from_s3 * _FOOTER_GETS * (shards + 1) + self.to_s3,
                self.from_s3 * lists + self.to_s3 * 3,
            ),
        )

    def sample(self) -> StageEstimate:
        """A choice of row groups, read whole; some of their rows, written."""
        facts = self.facts
        needed = math.ceil(self.sample_rows / max(1, facts.rows / max(1, facts.row_groups)))
        groups = min(facts.row_groups, max(MAX_SAMPLED_ROW_GROUPS, needed))
        share = groups / max(1, facts.row_groups)
        # Slices of which at least one row group is chosen.
        a_slice = facts.row_groups / max(1, facts.slices)
        parts = facts.slices * (1 - (1 - share) ** a_slice) if share < 1 else facts.slices
        rows = round(facts.rows * share)
        core_s = rows * facts.width * (self.rates.value_ns + self.rates.moments_ns) * 1e-9
        slots = max(1.0, min(parts, self.cluster.cores))
        gets = self._visits(groups, groups, facts.wanted_bytes * share)
        wait = self._waiting(gets, facts.wanted_bytes * share, slots)
        self.sample_parts = max(1, round(parts))
        row_group_bytes = facts.rows / max(1, facts.row_groups) * facts.row_bytes
        drawn = self.sample_rows * facts.row_bytes
        return StageEstimate(
            stage="sample",
            rows=rows,
            passes=1,
            read_bytes=round(facts.wanted_bytes * share),
            # zstd makes of the features about what they were.
            written_bytes=round(facts.wanted_bytes * self.sample_rows / max(1, facts.rows)),
            fixed_seconds=self.rates.tasks_s,
            work_seconds=max(core_s / slots, wait),
            busy_core_hours=core_s / 3600,
            memory_mib=_mib(2 * row_group_bytes + 2 * drawn / self.sample_parts),
            **self._requests(gets + self.to_s3 * _TABLE_GETS, self.to_s3 * (self.sample_parts + 1)),
        )

    def pretrain(self) -> StageEstimate:
        """Every pass learns from all training rows; an update moves all gradients."""
        settings, net = self.config.pretrain, self.net
        row_s = 2 * (3 * 2 * net.encoder - net.first) / self.learner.train_flops + self._augment_s()
        learn_s = settings.passes * self._pass_seconds(settings, row_s, net.parameters)
        reads = 1 if self.cached else settings.passes
        return self._training(
            "pretrain",
            learn_s,
            reads,
            passes=settings.passes,
            state_bytes=net.parameters * 12,
            memory=net.parameters * 16,
            files=1,
        )

    def refine(self) -> StageEstimate:
        """Passes that learn, and one that measures before each update and after the last."""
        settings, net, clusters = self.config.refine, self.net, self.config.most_clusters
        passes, by = self.refine_passes, self.learner
        every = settings.update_interval_rows or self.fit_rows
        measures = 1 + math.ceil(passes * self.fit_rows / every)
        flops = 2 * (3 * net.encoder - net.first)
        parameters = net.encoder_parameters + clusters * self.config.model.embedding
        if settings.target == "frozen" or self._augments() or settings.noise:
            flops += 2 * net.encoder  # the target sees the row as it is
        if settings.reconstruction_weight:
            flops += 6 * net.encoder
            parameters = net.parameters + clusters * self.config.model.embedding
        row_s = flops / by.train_flops + clusters * by.learn_ns * 1e-9 + self._augment_s()
        learn_s = passes * self._pass_seconds(settings, row_s, parameters)
        # Where a worker has too many rows to remember their labels, the frozen model is asked too.
        models = 2 if self.learnt_rows / self.cluster.workers > 2**24 else 1
        measure_row_s = 2 * net.encoder / by.encode_flops + clusters * by.measure_ns * 1e-9
        measure_s = measures * models * self.learnt_rows * measure_row_s / by.units
        return self._training(
            "refine",
            learn_s + measure_s,
            1 if self.cached else passes + measures,
            passes=passes,
            measuring=measures,
            state_bytes=parameters * 16,
            memory=parameters * 20,
            files=4,
        )

    def init_centroids(self) -> StageEstimate:
        """One task: it encodes the sample, and runs k-means on it with restarts.

        Where the number of clusters is found, as if it came to the most, and with the merging.
        """
        core_s = self.sample_rows * 2 * self.net.encoder / self.encode_flops
        core_s += self._kmeans_s(self.sample_rows, self.config.model.embedding)
        if isinstance(self.config.clusters, AutoClusters):
            core_s += self._merging_s(self.config.clusters.most)
        points = self.sample_rows * self.config.model.embedding * 4
        raw = self.sample_rows * self.facts.row_bytes / self.sample_parts
        return self._one_task(
            "init_centroids",
            core_s,
            2 * points + 3 * raw,
            gets=_FILE_GETS + _TABLE_GETS * (1 + self.sample_parts),
        )

    def evaluate(self) -> StageEstimate:
        """One task: k-means on scaled features, six fits for stability, and the measures."""
        rates, rows = self.rates, self.sample_rows
        width, embedding, clusters = (
            self.facts.width,
            self.config.model.embedding,
            self.config.most_clusters,
        )
        fit = min(rows, max(FIT_ROWS, MIN_SAMPLE_ROWS_PER_CLUSTER * clusters))
        core_s = 2 * rows * 2 * self.net.encoder / self.encode_flops
        core_s += self._kmeans_s(fit, width)
        restarts = min(STABILITY_RESTARTS, self.config.centroids.restarts)
        for space in (width, embedding, embedding):
            for _ in range(2):
                core_s += self._kmeans_s(fit // 2, space, restarts, STABILITY_WORK)
                core_s += 2 * rows * clusters * space / (rates.kmeans_gflop_s * 1e9)
        # Neighbours and silhouettes are large float32 products; each of three candidates has its
        # silhouette and its objective in every space.
        drawn = min(rows, _SILHOUETTE_ROWS, _MOST_ROWS_PER_CLUSTER * clusters)
        flop = 2 * min(fit, ASKED_ROWS) * fit * width
        flop += 3 * (2 * drawn**2 + 8 * rows) * (width + 2 * embedding)
        core_s += flop / (rates.distance_gflop_s * 1e9)
        read_again = 3 if self.config.evaluate.label else 2
        spaces = rows * 4 * (width + 2 * embedding)
        return self._one_task(
            "evaluate",
            core_s,
            spaces + 3 * fit * width * 4 + 128 * _MIB,
            gets=2 * _FILE_GETS + _TABLE_GETS * (3 + read_again * self.sample_parts),
        )

    def identify(self) -> StageEstimate:
        """One task: two models label two samples. Its requests are thought, not counted."""
        core_s = 4 * self.sample_rows * 2 * self.net.encoder / self.encode_flops
        core_s += 4 * self.sample_rows * self.config.most_clusters * self.rates.nearest_ns * 1e-9
        raw = self.sample_rows * self.facts.row_bytes
        gets = 2 * (_FILE_GETS + 2 * _TABLE_GETS) + 6 * _TABLE_GETS * self.sample_parts
        return self._one_task("identify", core_s, 2 * raw / self.sample_parts, gets=gets)

    def gate(self) -> StageEstimate:
        """One task: both partitions of two samples, in both embeddings. Requests as above."""
        embedding, drawn = self.config.model.embedding, min(self.sample_rows, _SILHOUETTE_ROWS)
        core_s = 4 * self.sample_rows * 2 * self.net.encoder / self.encode_flops
        flop = 8 * (2 * drawn**2 + 2 * self.sample_rows * self.config.most_clusters) * embedding
        core_s += flop / (self.rates.distance_gflop_s * 1e9)
        gets = 2 * (_FILE_GETS + 2 * _TABLE_GETS) + 4 * _TABLE_GETS * self.sample_parts
        return self._one_task("gate", core_s, 4 * self.sample_rows * embedding * 4, gets=gets)

    def assign(self) -> StageEstimate:
        """Every row of every slice, a slice a thread, into one part file a slice.

        Of a slice whose part is carried over, the part's footer is read, and that of its profile.
        """
        cluster, rates = self.cluster, self.rates
        facts, carried = _labelled(self.facts, self.tonight)
        encode_s = 2 * self.net.encoder / self.encode_flops
        near_s = self.config.most_clusters * rates.nearest_ns * 1e-9
        card_s = 0.0
        if cluster.actor_gpus:
            of_row = 2 * self.net.encoder / (rates.gpu_gflop_s * 1e9)
            of_row += self.config.most_clusters * rates.gpu_learn_ns * 1e-9
            card_s = facts.rows * of_row / (cluster.actors * cluster.actor_gpus)
            encode_s = near_s = 0.0
        beside_s = (facts.width * (rates.value_ns + rates.profile_ns) + rates.write_ns) * 1e-9
        core_s = facts.rows * (encode_s + near_s + beside_s)
        slices = max(1, facts.slices)
        slots = min(slices, cluster.actors * cluster.actor_threads)
        rounds = math.ceil(slices / slots) * slots / slices  # the last ones leave others idle
        visits = max(slices, facts.shards)
        gets = self._visits(visits, facts.row_groups, facts.wanted_bytes)
        # One slice more than threads is worked on where it would wait for a network.
        at_once = min(slices, cluster.actors * (cluster.actor_threads + 1))
        wait = self._waiting(gets, facts.wanted_bytes, at_once)
        group_bytes = facts.rows / max(1, facts.row_groups) * facts.row_bytes
        a_slice = facts.rows / slices * _SORTING_BYTES + group_bytes
        keys = len(self.config.source.keys) or 2
        of_parts = (
            5 * slices
            + 2 * _FOOTER_GETS * carried
            + cluster.actors * (_FILE_GETS + 2 * _TABLE_GETS)
        )
        if self.config.explain.columns:
            of_parts += _TABLE_GETS + _FOOTER_GETS
        return StageEstimate(
            stage="assign",
            rows=facts.rows,
            passes=1,
            read_bytes=facts.wanted_bytes,
            written_bytes=facts.rows * (_ASSIGNMENT_BYTES + _KEY_BYTES * keys),
            fixed_seconds=rates.tasks_s,
            work_seconds=max(core_s / slots * rounds, core_s / at_once + wait, card_s),
            busy_core_hours=core_s / 3600,
            memory_mib=_mib(
                self.net.encoder_parameters * 4
                + min(slices, cluster.actor_threads + self.from_s3) * a_slice
            ),
            **self._requests(
                gets + self.to_s3 * (of_parts + _TABLE_GETS), self.to_s3 * (2 * slices + 1)
            ),
        )

    def publish(self) -> StageEstimate:
        """A look at all part files, and the commit."""
        lists = 1 + self.facts.slices // _LISTED
        return StageEstimate(
            stage="publish",
            work_seconds=self.to_s3 * (lists + 10) * self.rates.request_s,
            memory_mib=_BASE_MIB,
            **self._requests(self.to_s3 * 12, self.to_s3 * (lists + 10)),
        )

    def explain(self) -> StageEstimate:
        """The profiles of all parts, put together some at a time, and two tables with a copy."""
        slices, rates = max(1, self.facts.slices), self.rates
        cells = min(MOST_CELLS, self.config.most_clusters * self.facts.width)
        profiles, tasks = slices, 0
        while slices > TOGETHER:
            slices = math.ceil(slices / TOGETHER)
            profiles, tasks = profiles + slices, tasks + slices
        core_s = profiles * (_PROFILE_S + cells * _CELL_S)
        slots = max(1.0, min(tasks, self.cluster.cores))
        wait = self.to_s3 * profiles * rates.request_s / slots
        lists = 3 + self.facts.slices // _LISTED
        return StageEstimate(
            stage="explain",
            written_bytes=tasks * cells * _CELL_BYTES,
            fixed_seconds=0.2 + (rates.tasks_s if tasks else 0.0),
            work_seconds=core_s / slots + wait,
            busy_core_hours=core_s / 3600,
            memory_mib=_mib(3 * cells * _CELL_BYTES),
            **self._requests(
                self.to_s3 * (profiles + _FILE_GETS + 1), self.to_s3 * (tasks + 4 + lists)
            ),
        )

    def describe(self) -> StageEstimate:
        """One task: the sample is labelled, and a tree fitted; then clusters are named."""
        width = min(self.facts.width, _TREE_FEATURES)
        rows = min(self.sample_rows, _TREE_ROWS, _TREE_CELLS // max(1, width))
        core_s = self.sample_rows * 2 * self.net.encoder / self.encode_flops
        core_s += rows * width * (self.config.explain.tree_depth or 0) * _TREE_CELL_S
        raw = self.sample_rows * self.facts.row_bytes
        gets = _FILE_GETS + _TABLE_GETS * (3 + self.sample_parts)
        found = self._one_task("describe", core_s, 2 * raw + rows * width * 16, gets=gets)
        return found.model_copy(update=self._requests(self.to_s3 * gets, self.to_s3 * 4))

    def report(self) -> StageEstimate:
        """The run's own process: the map of some rows of the sample, and the page."""
        rows = min(self.sample_rows, _MAP_ROWS)
        core_s = rows * (_MAP_ROW_S + 2 * self.net.encoder / self.encode_flops)
        gets = _PAGE_GETS + _TABLE_GETS * min(self.sample_parts, _MAP_PARTS)
        return StageEstimate(
            stage="report",
            rows=rows,
            written_bytes=_PAGE_BYTES,
            fixed_seconds=0.5,
            work_seconds=core_s + self.to_s3 * gets * self.rates.request_s,
            busy_core_hours=core_s / 3600,
            memory_mib=_mib(self.sample_rows * self.facts.row_bytes / max(1, self.sample_parts)),
            **self._requests(self.to_s3 * gets, self.to_s3 * 2),
        )

    # ------------------------------------------------------------------------- what they share

    def _pass_seconds(self, settings: Optimization, row_s: float, parameters: int) -> float:
        """A pass that learns: row_s is core-seconds a row."""
        rates, workers = self.rates, self.cluster.workers
        batch = update_rows(settings, self.fit_rows)
        steps = math.ceil(self.learnt_rows / batch)
        update_s = self.learner.update_s + parameters * self.learner.update_ns * 1e-9
        if workers > 1:
            speed = rates.exchange_mb_s
            if self.cluster.nodes > 1:
                speed = min(speed, rates.network_mb_s)
            # A ring: each worker sends and receives all but its own part, twice.
            moved = 2 * (workers - 1) / workers * parameters * 4
            update_s += moved / (speed * 1e6)
        return self.learnt_rows * row_s / self.learner.units + steps * update_s

    def _training(
        self,
        stage: str,
        learn_s: float,
        reads: int,
        *,
        passes: int,
        state_bytes: int,
        memory: int,
        files: int,
        measuring: int = 0,
    ) -> StageEstimate:
        facts, cluster, rates = self.facts, self.cluster, self.rates
        read_bytes = facts.wanted_bytes * self.fit_share
        groups = math.ceil(facts.row_groups * self.fit_share)
        pieces = groups + (cluster.workers - 1 if groups else 0)  # some are cut between workers
        gets = self._visits(pieces, pieces, read_bytes)
        decode_s = self.fit_rows * facts.width * rates.value_ns * 1e-9 / cluster.compute
        wait = self._waiting(gets, read_bytes, cluster.compute)
        read_s = reads * decode_s
        # What is streamed is read ahead while the rows before are learnt from.
        ahead = 0.0 if self.cached else (learn_s + read_s) / reads
        read_s += reads * max(0.0, wait - decode_s - ahead)
        work_s = learn_s + read_s
        checkpoints = 1 + int(work_s / self.config.execution.checkpoint_seconds)
        files_read = cluster.workers * (files * _TABLE_GETS + 1) + 2 * files * _TABLE_GETS
        held = self.share_bytes if self.cached else 2 * _WINDOW_BYTES
        return StageEstimate(
            stage=stage,
            at_most=stage == "refine" and passes > 0,
            rows=(passes + measuring) * self.learnt_rows,
            passes=passes,
            measuring_passes=measuring,
            read_bytes=round(reads * read_bytes),
            written_bytes=checkpoints * state_bytes + self.net.parameters * 4,
            fixed_seconds=rates.alone_s if cluster.in_place else rates.workers_s,
            work_seconds=work_s,
            busy_core_hours=work_s * cluster.compute / 3600,
            memory_mib=_mib(memory + held),
            **self._requests(
                reads * gets + self.to_s3 * (files_read + 2 * _TABLE_GETS),
                self.to_s3 * (checkpoints + files + 1),
            ),
        )

    def _one_task(self, stage: str, core_s: float, held: float, *, gets: int) -> StageEstimate:
        """A stage that is one task with one worker's threads."""
        rates, raw = self.rates, self.sample_rows * self.facts.row_bytes
        return StageEstimate(
            stage=stage,
            rows=self.sample_rows,
            fixed_seconds=0.2,
            work_seconds=core_s / self.cluster.threads
            + self.to_s3 * (raw / (rates.network_mb_s * 1e6) + gets * rates.request_s),
            busy_core_hours=core_s / 3600,
            memory_mib=_mib(held),
            **self._requests(self.to_s3 * gets, self.to_s3 * 1),
        )

    def _kmeans_s(
        self, rows: int, dimensions: int, restarts: int | None = None, work: int = WORK
    ) -> float:
        settings = self.config.centroids
        return kmeans_core_seconds(
            self.rates,
            (rows, dimensions, self.config.most_clusters),
            restarts=restarts or settings.restarts,
            iterations=settings.iterations,
            work=work,
        )

    def _merging_s(self, most: int) -> float:
        """Neighbours of every row, the starts, and a cut in two of every cluster there ever is."""
        width = self.config.model.embedding
        rows, cells = rows_and_cells(self.sample_rows, most)
        start_s = kmeans_core_seconds(
            self.rates, (rows, width, cells), restarts=1, iterations=ITERATIONS
        )
        neighbours_s = 2 * rows * rows * (width + NEIGHBOURS) / (self.rates.distance_gflop_s * 1e9)
        return TREES * (start_s + 2 * cells * _CUT_SECONDS) + neighbours_s

    def _augments(self) -> bool:
        return self.config.source.image_shape is not None or bool(self.config.augment.function)

    def _augment_s(self) -> float:
        """Seconds a row, of a core or a card."""
        return self._augments() * self.facts.width * self.learner.augment_ns * 1e-9

    def _visits(self, visits: int, groups: int, read_bytes: float) -> int:
        """Requests that open shards so often and read so many row groups."""
        if not self.from_s3:
            return 0
        return visits * _VISIT_GETS + max(groups, math.ceil(read_bytes / _GROUP_BYTES))

    def _waiting(self, gets: int, read_bytes: float, at_once: float) -> float:
        """Seconds that the network takes, when so many readers ask at once."""
        if not self.from_s3:
            return 0.0
        wire = read_bytes / (self.cluster.nodes * self.rates.network_mb_s * 1e6)
        return max(wire, gets * self.rates.request_s / max(1.0, at_once))

    def _small(self, stage: str, *, gets: int = 0, puts: int = 0) -> StageEstimate:
        """A stage that takes no time to speak of."""
        return StageEstimate(stage=stage, **self._requests(self.to_s3 * gets, self.to_s3 * puts))

    def _requests(self, gets: int, puts: int) -> dict[str, int]:
        """With those of a stage's marker and lease."""
        return {
            "gets": int(gets) + self.to_s3 * _STAGE_GETS,
            "puts": int(puts) + self.to_s3 * _STAGE_PUTS,
        }


def _labelled(facts: InputFacts, tonight: Tonight | None) -> tuple[InputFacts, int]:
    """The part of the input that a night labels, and the slices that it carries over."""
    if tonight is None or tonight.labelled >= 1:
        return facts, 0
    of = {
        name: math.ceil(getattr(facts, name) * tonight.labelled)
        for name in ("rows", "wanted_bytes", "shards", "row_groups", "slices")
    }
    return replace(facts, **of), facts.slices - of["slices"]


def _mib(held: float) -> int:
    """Memory of a process that holds so many bytes."""
    return round(_BASE_MIB + held / _MIB)
