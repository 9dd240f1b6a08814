"""A model on a GPU does what it does on the processor; skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import Pretrain, Refine
from pipeline.model.augmentation import ImageAugmentation
from pipeline.model.autoencoder import Autoencoder, freeze
from pipeline.model.clusters import ClusterModel
from pipeline.model.dec import nearest_two
from pipeline.model.devices import device_of, embeddings, to_device
from pipeline.model.pretraining import Pretraining
from pipeline.model.refinement import Refinement
from pipeline.model.scaling import Scaler
from pipeline.model.updates import RefineUpdate

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FEATURES, CLUSTERS = 16, 3


class Rows:
    """Rows in the host's memory, in order."""

    def __init__(self, x_NF: Tensor) -> None:
        self.x_NF = x_NF
        self.total_rows, self.features = x_NF.shape

    def batches(self, pass_number: int, batch_rows: int, *, shuffled: bool) -> Iterator[Tensor]:
        yield from self.x_NF.split(batch_rows)


def some_rows(count: int = 600) -> Tensor:
    random = np.random.default_rng(0)
    blobs = random.normal(scale=60, size=(CLUSTERS, FEATURES))
    x = 128 + blobs[random.integers(CLUSTERS, size=count)] + random.normal(size=(count, FEATURES))
    return torch.from_numpy(x.clip(0, 255).astype(np.uint8))


def scaler() -> Scaler:
    middle = np.full(FEATURES, 128.0)
    return Scaler("standard", middle, middle, np.full(FEATURES, 1 / 64))


def network(device: torch.device) -> Autoencoder:
    return Autoencoder(FEATURES, (32,), 4, 0, precision="float32").to(device)


def trained(device: torch.device) -> tuple[list[float], list[RefineUpdate], dict[str, Tensor]]:
    rows = Rows(some_rows())
    autoencoder = network(device)
    settings = Pretrain(passes=3, batch_rows=64, min_updates=0, noise=0.2)
    shift = ImageAugmentation((4, 4), shift=0.1, rotation_degrees=5, zoom=0.1)
    night = Pretraining(autoencoder, scaler(), settings, augmentation=shift)
    losses = [done.loss for done in night.run(rows)]
    with torch.no_grad():
        centroids_KD = embeddings(autoencoder.encoder, night.scaler, rows.x_NF[:CLUSTERS])
    refinement = Refinement(
        ClusterModel(autoencoder.encoder, centroids_KD, 1.0).to(device),
        scaler(),
        Refine(passes=3, batch_rows=64, min_updates=0, tol=0, reconstruction_weight=0.1),
        decoder=autoencoder.decoder,
        reference=lambda: rows.x_NF,
    )
    updates = list(refinement.run(rows))
    return losses, updates, refinement.state()


@gpu
def test_training_follows_the_processor() -> None:
    (losses, updates, state), (gpu_losses, gpu_updates, gpu_state) = map(trained, (CPU, CUDA))
    assert gpu_losses == pytest.approx(losses, rel=1e-3)
    for ours, theirs in zip(gpu_updates, updates, strict=True):
        assert ours.cluster_rows == theirs.cluster_rows
        assert ours.kl == pytest.approx(theirs.kl, rel=1e-2)
    for name, tensor in state.items():
        torch.testing.assert_close(gpu_state[name].cpu(), tensor, rtol=1e-2, atol=1e-3)


@gpu
@pytest.mark.parametrize("clusters", [2, 100_000])
def test_nearest_two_are_those_of_the_processor(clusters: int) -> None:
    random = torch.Generator().manual_seed(1)
    z, mu = torch.randn((2_000, 4), generator=random), torch.randn((clusters, 4), generator=random)
    ours, theirs = nearest_two(z.cuda(), mu.cuda()), nearest_two(z, mu)
    same = (ours.clusters_B2.cpu() == theirs.clusters_B2).float().mean()
    assert same >= 0.999  # products are rounded in another order
    torch.testing.assert_close(ours.distance_B.cpu(), theirs.distance_B, rtol=1e-3, atol=1e-5)


@gpu
def test_labels_in_bfloat16_are_those_of_float32() -> None:
    x_NF, centroids_KD = some_rows(10_000), torch.randn(CLUSTERS, 4).cuda()
    reduced = Autoencoder(FEATURES, (32,), 4, 0, precision="bfloat16").to(CUDA)
    freeze(reduced)
    with torch.no_grad():
        labels = [
            nearest_two(embeddings(net.encoder, scaler().cuda(), x_NF), centroids_KD).clusters_B2
            for net in (network(CUDA), reduced)
        ]
    assert (labels[0][:, 0] == labels[1][:, 0]).float().mean() >= 0.999


def test_embeddings_do_not_depend_on_how_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x_NF, encoder = some_rows(), network(CPU).encoder
    with torch.no_grad():
        whole_ND = embeddings(encoder, scaler(), x_NF)
        monkeypatch.setattr("pipeline.model.devices._ENCODED_ROWS", {"cpu": 7})
        torch.testing.assert_close(embeddings(encoder, scaler(), x_NF), whole_ND)
    assert whole_ND.shape == (600, 4)
    assert device_of(encoder) == CPU
    assert device_of(torch.nn.Sequential()) == CPU
    assert to_device(x_NF, CPU) is x_NF
