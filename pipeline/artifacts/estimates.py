"""The cost estimate of a run."""

from __future__ import annotations

from pydantic import Field

from pipeline.artifacts.records import Record


class StageEstimate(Record):
    """What a stage takes, on paper; see ``pipeline.bill.estimate``.

    Attributes:
        stage: Its name; "run" for what belongs to none: Ray's start, the lease.
        at_most: Whether it may stop sooner, as refinement does.
        rows: Rows looked at, in all passes.
        passes: Over the training rows, learning.
        measuring_passes: The same without learning.
        read_bytes: From the input.
        written_bytes: To the output.
        gets: Requests to an object store that cost as a GET does, HEAD too; 0 for local paths.
        puts: Those that cost as a PUT does, LIST too.
        fixed_seconds: Until it works, and whatever does not grow with rows.
        work_seconds: The rest.
        busy_core_hours: Of cores at work.
        core_hours: Of the whole cluster meanwhile: what is paid.
        gpu_hours: The same of its GPUs.
        memory_mib: Of its largest process.
    """

    stage: str
    at_most: bool = False
    rows: int = 0
    passes: int = 0
    measuring_passes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    gets: int = 0
    puts: int = 0
    fixed_seconds: float = 0.0
    work_seconds: float = 0.0
    busy_core_hours: float = 0.0
    core_hours: float = 0.0
    gpu_hours: float = 0.0
    memory_mib: int = 0

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.fixed_seconds + self.work_seconds


class StageFactor(Record):
    """How a stage was found to differ from the default rates: took over planned."""

    fixed: float = 1.0
    work: float = 1.0


class Money(Record):
    """What it costs, by the config's ``prices``."""

    currency: str
    compute: float
    requests: float
    transfer: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.requests + self.transfer


class Estimate(Record):
    """What a run takes, on paper.

    Attributes:
        stages: In their order.
        nodes: Of the cluster that it is for.
        cpus_per_node: Of each.
        gpus_per_node: Of each.
        workers: That train and assign.
        threads: Of each.
        products: Precision of the matrix products, "float32" or "bfloat16".
        rates: Where the rates come from, in words.
        on_gpus: Whether anything computes on one.
        factors: On the default rates, by stage.
        money: None where the config has no prices.
    """

    stages: tuple[StageEstimate, ...]
    nodes: int
    cpus_per_node: float
    gpus_per_node: float
    workers: int
    threads: int
    products: str
    rates: str
    on_gpus: bool = False
    factors: dict[str, StageFactor] = Field(default={})
    money: Money | None = None

    @property
    def seconds(self) -> float:
        """Wall time of all."""
        return sum(stage.seconds for stage in self.stages)
