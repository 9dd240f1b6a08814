"""Default rates of the estimate: of one core, one GPU, the network, and Ray's start.

They were measured on two cores with AVX512-BF16 (tests/benchmarks/THROUGHPUT.md, decision 0022).
For another machine, factors correct them, from ``--measure`` or the last run; nobody edits them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Rates of a core or a GPU; the defaults are a core's."""

    train_gflop_s: float = 480.0  # bfloat16 products of a training step: 2,048 × 784 in 88 ms
    encode_gflop_s: float = 440.0  # and of an encoder alone: 3.3 MFLOP in 7.5 µs
    update_s: float = 0.0008  # Python, small kernels and the scheduler, an update
    # Gradients, Adam's moments and the weight, each parameter and update: 256 rows of 784 features
    # take 10.8 ms on two cores, 5 of them products.
    update_ns: float = 1.5
    # Student's t, its target and both gradients, each row and cluster: 0.9 s for 256 rows of
    # 100,000 clusters on two cores; then soft assignment alone.
    learn_ns: float = 70.0
    measure_ns: float = 15.0
    nearest_ns: float = 4.0  # the nearest two, each row and cluster: 236,000 rows/s of 1,000
    augment_ns: float = 20.0  # shifting, turning and zooming, each pixel


@dataclass(frozen=True)
class Rates:
    """All default rates."""

    core: Device = Device()
    # None was measured: 30 % of an H100's stated 989 TFLOP/s, 60 kernels an update, and its
    # memory's stated 3 TB/s (decision 0011).
    gpu: Device = Device(300_000.0, 300_000.0, 0.0012, 0.01, 0.05, 0.05, 0.05, 0.05)
    float32_share: float = 0.26  # rate of float32 products over that of bfloat16, on a core
    value_ns: float = 8.0  # reading a value of Parquet; 3 decodes it, the sample takes 13
    write_ns: float = 600.0  # sorting and writing an assignment
    kmeans_gflop_s: float = 16.0  # FAISS with few clusters
    point_ns: float = 100.0  # FAISS, each point and iteration, however few the clusters
    distance_gflop_s: float = 80.0  # distances of many points to many, in float32
    network_mb_s: float = 1_500.0  # of a node, 12.5 Gbit/s, and between two of its processes
    request_s: float = 0.05  # until the first byte from an object store
    ray_s: float = 6.0  # starting Ray on this machine
    start_s: float = 1.8  # starting a stage's first tasks or actors, or training in the run itself
    workers_s: float = 13.0  # starting Ray Train's workers


DEFAULT_RATES = Rates()
