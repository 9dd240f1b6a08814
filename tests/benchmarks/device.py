"""How fast the model alone is, on a GPU where there is one: no Ray, no lake.

    python -m tests.benchmarks.device [--device cuda] [--features 768] [--clusters 1000] [--write]

Needs torch, numpy and pyarrow. Pretraining and refinement steps on rows that are where the model
is; assignment of rows that are there, that come from the host's memory, and that come from Parquet.
``--compile`` measures training steps under ``torch.compile`` as well. ``--write`` writes
``DEVICE.md``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from pipeline.model.autoencoder import Autoencoder, fastest_precision, freeze
from pipeline.model.dec import clustering_loss, nearest_two
from pipeline.model.devices import device_of, embeddings
from pipeline.model.scaling import Scaler
from pipeline.model.training import optimizer_of
from pipeline.model.workers import global_update

HIDDEN, EMBEDDING = (500, 500, 2000), 10
# Dense bfloat16 TFLOP/s that the makers state, by what torch calls the card.
STATED_PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10G": 70}


@dataclass(frozen=True)
class Line:
    """One measure: rows/s, and what arithmetic that is."""

    measure: str
    rows_per_second: float
    flops_per_second: float


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call, everything it started on the device included."""
    times = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])  # the first ones load kernels and fill caches


def weights(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


@dataclass(frozen=True)
class Bench:
    """The network, and what it is fed with.

    Attributes:
        x_NF: Raw rows in the host's memory, shape (rows, features), float32.
        device: Device of the model.
        clusters: K.
        repeats: Number of repeats of every measure.
        compiled: Whether training steps are measured under torch.compile too.
    """

    x_NF: Tensor
    device: torch.device
    clusters: int
    repeats: int
    compiled: bool

    @property
    def features(self) -> int:
        return self.x_NF.shape[1]

    def network(self) -> tuple[Autoencoder, Scaler]:
        features = self.features
        mean_F = np.zeros(features)
        scaler = Scaler("standard", mean_F, mean_F, np.ones(features)).to(self.device)
        network = Autoencoder(features, HIDDEN, EMBEDDING, 0, precision="auto").to(self.device)
        return network, scaler

    def centroids(self, network: Autoencoder, scaler: Scaler) -> Tensor:
        with torch.no_grad():
            return embeddings(network.encoder, scaler, self.x_NF[: self.clusters]).clone()

    def rate(self, name: str, work: Callable[[], object], rows: int, flops: float) -> Line:
        per_second = rows / seconds_of(work, self.device, self.repeats)
        return Line(name, per_second, per_second * flops)

    # --------------------------------------------------------------------------------- training

    def training(self, batch_rows: int) -> Iterator[Line]:
        x_BF = self.x_NF[:batch_rows].to(self.device)
        rows = len(x_BF)
        network, scaler = self.network()
        mu_KD = nn.Parameter(self.centroids(network, scaler))
        frequency_K = torch.ones(self.clusters, dtype=torch.float64, device=self.device)
        # No gradient flows into the rows, so the first layer is multiplied twice, not three times.
        first = 2 * self.features * HIDDEN[0]
        both, encoder = 6 * weights(network) - first, 6 * weights(network.encoder) - first

        def reconstruction() -> Tensor:
            scaled_BF = scaler(x_BF)
            error: Tensor = (network(scaled_BF) - scaled_BF).square().sum() / self.features
            return error

        def clustering() -> Tensor:
            return clustering_loss(network.encoder(scaler(x_BF)), mu_KD, frequency_K)[0]

        for name, loss, learnt, flops in (
            ("pretraining step", reconstruction, list(network.parameters()), both),
            ("refinement step", clustering, [*network.encoder.parameters(), mu_KD], encoder),
        ):
            settings = SimpleNamespace(optimizer="adamw", learning_rate=1e-6, weight_decay=0.0)
            optimizer = optimizer_of(learnt, settings)  # type: ignore[arg-type]
            variants = {"": loss}
            if self.compiled:
                variants[", compiled"] = torch.compile(loss)
            for variant, given in variants.items():
                yield self.rate(
                    f"{name}, batch of {rows:,}{variant}",
                    lambda given=given, optimizer=optimizer, learnt=learnt: global_update(  # type: ignore[misc]
                        optimizer, learnt, [(given(),) * 2], rows
                    ),
                    rows,
                    flops,
                )

    # ------------------------------------------------------------------------------- assignment

    def assignment(self) -> Iterator[Line]:
        network, scaler = self.network()
        mu_KD = self.centroids(network, scaler)
        freeze(network)
        rows = len(self.x_NF)
        flops = 2 * weights(network.encoder) + 2 * self.clusters * (EMBEDDING + 2)

        @torch.inference_mode()
        def assign(x_NF: Tensor) -> Tensor:
            return nearest_two(embeddings(network.encoder, scaler, x_NF), mu_KD).clusters_B2.cpu()

        assert device_of(network) == mu_KD.device
        there_NF = self.x_NF.to(self.device)
        yield self.rate("assignment, rows on the device", lambda: assign(there_NF), rows, flops)
        yield self.rate("assignment, rows on the host", lambda: assign(self.x_NF), rows, flops)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.parquet"
            flat = pa.array(self.x_NF.numpy().ravel())
            vectors = pa.FixedSizeListArray.from_arrays(flat, self.features)
            pq.write_table(pa.table({"x": vectors}), file, row_group_size=65_536)

            def from_parquet() -> None:
                for batch in pq.ParquetFile(file).iter_batches(65_536):
                    x_BF = batch.column("x").flatten().to_numpy().reshape(len(batch), -1)
                    assign(torch.from_numpy(x_BF.copy()))

            yield self.rate("assignment, rows from Parquet", from_parquet, rows, flops)


def square_product(device: torch.device, side: int, repeats: int) -> float:
    """FLOP/s of the device's largest matrix product in its fastest precision."""
    dtype = fastest_precision(device)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device, repeats)


def name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} processor threads"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.device")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 4_096, 65_536])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    fast = device.type == "cuda"
    rows = options.rows or (2**20 if fast else 2**14)
    random = torch.Generator().manual_seed(0)
    x_NF = torch.randn((rows, options.features), generator=random)
    bench = Bench(x_NF, device, options.clusters, options.repeats, options.compile)
    peak = square_product(device, 8192 if fast else 2048, options.repeats)
    stated = next((t * 1e12 for card, t in STATED_PEAKS.items() if card in name_of(device)), None)
    lines = [line for batch in options.batches if batch <= rows for line in bench.training(batch)]
    lines += bench.assignment()
    text = [
        "# The model alone",
        "",
        "Written by `python -m tests.benchmarks.device --write`; do not edit.",
        f"{name_of(device)}, torch {torch.__version__}, "
        f"products in {str(fastest_precision(device)).removeprefix('torch.')}; "
        f"d = {options.features}, network {'-'.join(map(str, HIDDEN))}-{EMBEDDING}, "
        f"K = {options.clusters:,}, {rows:,} rows. Largest square product measured: "
        f"{peak / 1e12:,.1f} TFLOP/s" + (f"; stated peak {stated / 1e12:,.0f}." if stated else "."),
        "",
        "| measure | rows/s | TFLOP/s | of the product measured | of the stated peak |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in lines:
        of_stated = f"{row.flops_per_second / stated:.1%}" if stated else "–"
        text.append(
            f"| {row.measure} | {row.rows_per_second:,.0f} | {row.flops_per_second / 1e12:,.2f} "
            f"| {row.flops_per_second / peak:.0%} | {of_stated} |"
        )
    print("\n".join(text))
    if options.write:
        Path(__file__).with_name("DEVICE.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
