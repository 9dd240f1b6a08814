"""Records of a cost estimate; summaries keep them, so they import nothing of the pipeline."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, computed_field

_Rounded = Annotated[int, BeforeValidator(round)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)  # sums are ignored when a record is read back


class _Costs(_Record):
    """Figures that a stage declares and its estimate shows."""

    rows: int = 0  # rows read, summed over all passes
    passes: int = 0  # number of passes over the training rows that learn
    teaching_passes: int = 0  # how many of them only teach merged cells
    measuring_passes: int = 0  # number of passes that measure without learning
    at_most: bool = False
    read_bytes: _Rounded = 0
    written_bytes: _Rounded = 0
    gets: _Rounded = 0  # GET and HEAD requests to an object store
    puts: _Rounded = 0  # PUT requests, and LIST requests, which cost the same
    # Wall time that does not depend on the rows, such as starting processes.
    fixed_seconds: float = 0.0
    work_seconds: float = 0.0


class StageCosts(_Costs):
    """Work of one stage, as its module declares it; the default is next to no work.

    ``gets`` and ``puts`` go to the store of the output, and ``work_seconds`` is computation alone,
    without waiting for a store.
    """

    input_gets: float = 0  # GET and HEAD requests to the store of the input
    input_puts: float = 0
    readers: float = 1.0  # number of requests that wait at the same time
    cores: float = 1.0
    held_bytes: float = 0.0  # memory of the largest process, beyond Python and its libraries


class StageEstimate(_Costs):
    """Estimated cost of a stage, with all its requests and the time that it waits for them."""

    stage: str  # name of the stage; "run" for what belongs to none: Ray's start, the lease
    busy_core_hours: float = 0.0
    core_hours: float = 0.0  # core-hours of the whole cluster, which is paid for
    gpu_hours: float = 0.0
    memory_mib: _Rounded = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.fixed_seconds + self.work_seconds


class StageFactor(_Record):
    """Measured time of a stage divided by its time at the default rates."""

    fixed: float = 1.0
    work: float = 1.0


class Money(_Record):
    """Estimated price by the config's ``prices``."""

    currency: str
    compute: float
    requests: float
    transfer: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> float:
        """Sum of all costs."""
        return self.compute + self.requests + self.transfer


class Cluster(_Record):
    """Nodes that are alike, and the processes that compute on them."""

    nodes: int
    cpus_per_node: float
    gpus_per_node: float
    workers: int
    threads: int
    actors: int
    actor_threads: int
    worker_gpus: int = 0  # GPUs of each worker, 0 or 1
    actor_gpus: float = 0.0  # GPUs of each actor, a share of one
    started_here: bool = False  # whether ``dec run`` starts Ray on this machine

    @property
    def cores(self) -> float:
        """Cores of all nodes."""
        return self.nodes * self.cpus_per_node

    @property
    def compute(self) -> int:
        """Cores that train."""
        return self.workers * self.threads


class Estimate(_Record):
    """Estimated cost of a run."""

    stages: tuple[StageEstimate, ...]
    cluster: Cluster
    products: str
    rates: str  # origin of the rates, in words
    factors: dict[str, StageFactor] = Field(default={})
    money: Money | None = None  # price; None where the config has no prices

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(stage.seconds for stage in self.stages)
