"""Cheap nights: what did not change is neither read nor labelled again, and says the same.

The stages are the real ones, on real files; the pool of actors is this process, so that what is
read can be counted.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable, write_deltalake

from pipeline import counts
from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.nights import Champion, Reference, Serving
from pipeline.clustering.drift import bin_counts, bin_edges
from pipeline.config import Config
from pipeline.distributed.resources import Claim, Resources
from pipeline.engine import Context
from pipeline.errors import TransientError
from pipeline.input import pinning
from pipeline.lake.parts import BinnedRows, PartStatistics
from pipeline.lake.receipts import withdrawn_parts
from pipeline.lake.snapshots import assignment_files, latest_snapshot, read_file_list
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.scaling import Scaler
from pipeline.operations.forgetting import forget
from pipeline.operations.forgotten_keys import KeySet
from pipeline.registry.models import centroids_bytes, scaler_bytes, store_model, weights_bytes
from pipeline.registry.reference import bins_bytes
from pipeline.stages.assign import assign
from pipeline.stages.pin import pin
from pipeline.stages.publish import publish
from pipeline.storage import FoundFile, Store, parquet_bytes
from pipeline.storage.finding import Found

WIDTH = 8
SHARD_ROWS = 7_500  # about 30 bytes each, keys or not: five shards are a slice of 1 MiB
IDS = (7, 3, 12)


def write(folder: Path, name: str, seed: int, *, shift: float = 0.0) -> None:
    """A shard around three points; its keys follow from the seed."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 3, SHARD_ROWS)
    x = (random.normal(size=(SHARD_ROWS, WIDTH)) + 5.0 * label[:, None]).astype(np.float32)
    x[:, 2] += np.float32(shift)
    table = {
        "id": seed * SHARD_ROWS + np.arange(SHARD_ROWS),
        "x": pa.FixedSizeListArray.from_arrays(x.ravel(), WIDTH),
        "label": label,
    }
    pq.write_table(
        pa.table(table),
        folder / f"{name}.parquet",
        compression="zstd",
        use_dictionary=False,
        column_encoding={"id": "DELTA_BINARY_PACKED"},
    )


def serving(champion: Champion) -> Serving:
    return Serving(champion=champion, entry=0, refused=False)


@dataclass
class Lake:
    """A source, an output, and the champion that labels its nights."""

    folder: Path
    settings: dict[str, Any]
    rows_read: int = 0
    champion: Champion | None = None

    @property
    def store(self) -> Store:
        return Store(self.settings["output"])

    def context(self, ds: str, run_id: str = "") -> Context:
        return Context(run_id or f"night-{ds}", ds, self.store, by_schedule=True)

    def pin(self, context: Context) -> Manifest:
        return pin.run(Config.model_validate(self.settings), context)

    def fit(self, *, seed: int = 0, most_distance: float = np.inf) -> Champion:
        """A model of the shards that are there; random weights are as good as any."""
        config, context = Config.model_validate(self.settings), self.context("fit")
        manifest = self.pin(replace(context, lake=Store(f"{self.settings['output']}-fit")))
        x_NF = np.concatenate([features(path) for path in sorted(self.folder.glob("*.parquet"))])
        autoencoder = Autoencoder(WIDTH, config.model.hidden, config.model.embedding, seed)
        with torch.inference_mode():
            points = torch.full((3, WIDTH), 5.0) * torch.arange(3)[:, None]
            centroids = autoencoder.encoder(points).numpy()
        scaler = Scaler("none", np.zeros(WIDTH), np.zeros(WIDTH), np.ones(WIDTH))
        model = store_model(
            config,
            context,
            "dec",
            weights=weights_bytes(autoencoder),
            centroids=centroids_bytes(centroids),
            scaler=scaler_bytes(scaler, manifest.features),
            scaling="none",
        )
        edges_FB = bin_edges(x_NF)
        self.champion = Champion(
            model=model,
            run_id="fit",
            ds="2026-01-01",
            refit_ds="2026-01-01",
            ids=self.ids(dict(enumerate(IDS)), most_distance),
            reference=Reference(
                sample=Sample(
                    parts=(),
                    rows=len(x_NF),
                    scanned_rows=len(x_NF),
                    missing_values=0,
                    scaler=model.scaler,
                    scaling="none",
                ),
                features=manifest.features,
                bins=context.store(
                    "registry/bins.parquet", bins_bytes(edges_FB, bin_counts(x_NF, edges_FB))
                ),
            ),
            settings="s",
        )
        return self.champion

    def ids(self, names: dict[int, int], most_distance: float = np.inf) -> Any:
        table = {
            "position": pa.array(names.keys(), pa.int32()),
            "cluster_id": pa.array(names.values(), pa.int32()),
            "most_distance": pa.array([most_distance] * len(names), pa.float32()),
        }
        name = "-".join(map(str, (*names.values(), most_distance)))
        return self.context("fit").store(f"registry/{name}.parquet", parquet_bytes(pa.table(table)))

    def night(self, ds: str, run_id: str = "", **settings: Any) -> Assignments:
        """Pin, assign and publish; counts what is read."""
        config = Config.model_validate(self.settings | settings)
        context, champion = self.context(ds, run_id), self.champion
        assert champion is not None
        self.rows_read = 0
        counts.send_to(self._count)
        try:
            manifest = pin.run(config, context)
            found = assign.run(config, context, manifest, champion)
        finally:
            counts.send_to(None)
        if config.lake.format == "parquet":
            publish.run(config, context, serving(champion), found)
        assert found.rows == found.carried_rows + found.labelled_rows
        assert found.rows + found.rows_quarantined == manifest.rows
        assert sum(found.cluster_rows) + found.outliers == found.rows
        return found

    def _count(self, what: str, amount: float, kind: str) -> None:
        self.rows_read += int(amount) if what == "rows_read" else 0

    def files(self, found: Assignments) -> list[str]:
        return [file.path for file in read_file_list(self.store, found.files.path).files]

    def rows(self, ds: str) -> pa.Table:
        """What readers of the ds see, by key."""
        table = pa.concat_tables(map(pq.read_table, assignment_files(self.store, ds)))
        return table.sort_by([(table.column_names[0], "ascending")])

    def keys(self) -> list[int]:
        paths = self.folder.glob("*.parquet")
        return sorted(itertools.chain(*(pq.read_table(p)["id"].to_pylist() for p in paths)))


def features(path: Path) -> np.ndarray:
    return pq.read_table(path)["x"].combine_chunks().flatten().to_numpy().reshape(-1, WIDTH)


@pytest.fixture(autouse=True)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices are worked on in this process, but in the test of the real pool."""
    if "ray_address" in request.fixturenames:
        return

    def map_slices(_: Any, slices: list[pa.Table], work: Any, **more: Any) -> Iterator[pa.Table]:
        actor = work(*more["arguments"])
        yield from map(actor, slices)

    monkeypatch.setattr("pipeline.stages.assign.map_slices", map_slices)
    monkeypatch.setattr(
        "pipeline.stages.assign.share_out_what_is_left",
        lambda *_, **__: Resources(workers=1, claim=Claim(cpus=1), threads=1),
    )


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Twelve shards, 00 to 22 in steps of two, in three slices: five, five and two of them."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        write(folder, f"{2 * number:02}", number)
    lake = Lake(
        folder,
        {
            "source": {"path": str(folder), "features": ["x"], "keys": ["id"]},
            "output": str(tmp_path / "lake"),
            "clusters": 3,
            "model": {"hidden": [6], "embedding": 2, "precision": "float32"},
            "evaluate": {"label": "label"},
            "execution": {"workers": 1, "target_slice_mib": 1},
        },
    )
    lake.fit()
    return lake


# ------------------------------------------------------------------------------ what is carried


def test_unchanged_data_is_the_very_same_files(lake: Lake) -> None:
    first = lake.night("2026-01-01")
    assert (first.file_count, first.carried_files, lake.rows_read) == (3, 0, 12 * SHARD_ROWS)
    before = lake.rows("2026-01-01")
    second = lake.night("2026-01-02")
    assert (second.carried_files, second.labelled_rows, lake.rows_read) == (3, 0, 0)
    assert lake.files(second) == lake.files(first)
    assert lake.rows("2026-01-02").equals(before)
    assert set(before["run_id"].to_pylist()) == {"night-2026-01-01"}  # who labelled them
    # What is known of the parts is known of the night.
    same = {"files", "carried_files", "carried_rows", "labelled_rows"}
    assert second.model_dump(exclude=same) == first.model_dump(exclude=same)
    assert second.scores == first.scores
    assert second.scores is not None
    assert second.scores.rows == 12 * SHARD_ROWS


Change = Callable[[Path], None]


def _replace(folder: Path) -> None:
    write(folder, "04", 102)


def _touch(folder: Path) -> None:
    os.utime(folder / "04.parquet", (1, 1))


@pytest.mark.parametrize(
    ("change", "carried", "read"),
    [
        pytest.param(lambda f: write(f, "99", 99), 3, 1, id="one more"),
        pytest.param(lambda f: write(f, "05", 99), 3, 1, id="late, in the middle"),
        pytest.param(lambda f: write(f, "005", 99), 3, 1, id="late, near the start"),
        pytest.param(lambda f: (f / "04.parquet").unlink(), 2, 4, id="one is gone"),
        pytest.param(_replace, 2, 5, id="one is another"),
        pytest.param(_touch, 2, 5, id="one may be another"),
        pytest.param(
            lambda f: [(f / f"{n:02}.parquet").unlink() for n in range(0, 10, 2)],
            2,
            0,
            id="a slice is gone",
        ),
    ],
)
@pytest.mark.parametrize("keys", [["id"], []])
def test_only_what_changed_is_read(
    lake: Lake, change: Change, carried: int, read: int, keys: list[str]
) -> None:
    lake.settings["source"] |= {"keys": keys}
    first = lake.night("2026-01-01")
    change(lake.folder)
    second = lake.night("2026-01-02")
    assert second.carried_files == carried
    assert lake.rows_read == second.labelled_rows == read * SHARD_ROWS
    assert len(set(lake.files(first)) & set(lake.files(second))) == carried
    # The same as if all had been labelled tonight.
    found = lake.rows("2026-01-02")
    if keys:
        assert found["id"].to_pylist() == lake.keys()
    anew = lake.night("2026-01-02", "anew", assign={"incremental": False})
    assert (anew.carried_files, anew.rows) == (0, second.rows)
    assert anew.cluster_rows == second.cluster_rows
    order = [(name, "ascending") for name in found.column_names[: 1 if keys else 2]]
    names = [name for name in found.column_names if name not in ("run_id", "ds")]
    expected = lake.rows("2026-01-02").select(names).sort_by(order)
    assert found.select(names).sort_by(order).equals(expected)


def test_a_shard_that_comes_back_finds_its_part_while_a_night_lists_it(lake: Lake) -> None:
    write(lake.folder, "99", 99)
    lake.night("2026-01-01")
    write(lake.folder, "98", 98)
    lake.night("2026-01-02")  # 98 has a slice of its own
    (lake.folder / "98.parquet").rename(lake.folder / "_98.parquet")
    lake.night("2026-01-03")
    (lake.folder / "_98.parquet").rename(lake.folder / "98.parquet")
    assert lake.night("2026-01-04").labelled_rows == 0


def test_a_late_night_takes_from_newer_ones(lake: Lake) -> None:
    lake.night("2026-01-05")
    assert lake.night("2026-01-03").labelled_rows == 0
    # Done again, with what came late, a date takes what it had itself.
    write(lake.folder, "05", 99)
    assert lake.night("2026-01-03", "again").labelled_rows == SHARD_ROWS
    assert lake.night("2026-01-05", "again-too").labelled_rows == 0


def test_shards_of_another_folder_are_others_however_much_alike(lake: Lake, tmp_path: Path) -> None:
    """As folders by date have them: one name, one size, one time, other rows."""
    lake.settings["source"] |= {"keys": []}
    lake.night("2026-01-01")
    other = tmp_path / "other"
    other.mkdir()
    for path in lake.folder.glob("*.parquet"):
        shard = pq.read_table(path)
        moved = shard.set_column(1, "x", shard["x"].combine_chunks()[::-1])
        pq.write_table(
            *(moved, other / path.name),
            compression="zstd",
            use_dictionary=False,
            column_encoding={"id": "DELTA_BINARY_PACKED"},
        )
        for folder in (lake.folder, other):
            os.utime(folder / path.name, (1, 1))
    again = lake.night("2026-01-02")
    version = {f.name: f.version for f in pinning.find_parquet(str(lake.folder)).files}
    lake.settings["source"] |= {"path": str(other)}
    with pytest.MonkeyPatch.context() as patch:
        listed = pinning.find_parquet
        patch.setattr(
            pinning,
            "find_parquet",
            lambda path: versioned(listed(path), lambda file: version[file.name]),
        )
        patch.setattr("pipeline.input.bad_shards.version_of", lambda url: version[Path(url).name])
        elsewhere = lake.night("2026-01-03")
    assert again.file_count == elsewhere.file_count
    assert (elsewhere.carried_files, lake.rows_read) == (0, 12 * SHARD_ROWS)


def versioned(found: Found, version: Callable[[FoundFile], str]) -> Found:
    return replace(found, files=[replace(file, version=version(file)) for file in found.files])


def test_without_versions_all_is_labelled_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = pinning.find_parquet
    monkeypatch.setattr(pinning, "find_parquet", lambda path: versioned(listed(path), lambda _: ""))
    monkeypatch.setattr("pipeline.input.bad_shards.version_of", lambda _: "")
    lake.night("2026-01-01")
    assert lake.night("2026-01-02").carried_files == 0
    assert lake.rows_read == 12 * SHARD_ROWS


def test_tables_by_ds_are_labelled_again(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    lake.night("2026-01-01")
    found = lake.night("2026-01-02", lake={"format": "delta"})
    assert (found.carried_files, found.labelled_rows) == (0, 12 * SHARD_ROWS)
    assert "lake.format=delta: every row is labelled again" in caplog.text


def test_a_table_takes_no_marker_of_parts_that_were_carried(lake: Lake) -> None:
    """The same run again, into another format: its rows have the ds of another night."""
    names = ("parquet", "iceberg", "delta")
    formats = [Config.model_validate(lake.settings | {"lake": {"format": f}}) for f in names]
    assert len({assign.fingerprint(config, ()) for config in formats}) == 3


def test_a_run_carries_what_a_night_wrote_by_the_same_model(lake: Lake) -> None:
    """``dec run`` on the same rows, as settings and seed lead to the same model again."""
    lake.night("2026-01-01")
    config, context = Config.model_validate(lake.settings), replace(lake.context("undated"))
    assert lake.champion is not None
    manifest = pin.run(config, context)
    found = assign.run(config, replace(context, by_schedule=False), manifest, lake.champion)
    assert found.carried_rows == found.rows


# ------------------------------------------------------------------------ another model, other ids


def test_another_model_labels_all_again(lake: Lake) -> None:
    first = lake.night("2026-01-01")
    lake.fit(seed=1)
    second = lake.night("2026-01-02")
    assert (second.carried_files, lake.rows_read) == (0, 12 * SHARD_ROWS)
    assert not set(lake.files(first)) & set(lake.files(second))


def test_other_ids_are_other_parts(lake: Lake) -> None:
    lake.night("2026-01-01")
    before = lake.rows("2026-01-01")
    assert set(before["cluster_id"].to_pylist()) == set(IDS)
    assert lake.champion is not None
    other = {7: 100, 3: 3, 12: 5}
    names = {place: other[cluster] for place, cluster in enumerate(IDS)}
    lake.champion = lake.champion.model_copy(update={"ids": lake.ids(names)})
    found = lake.night("2026-01-02")
    assert (found.carried_files, found.cluster_ids) == (0, (100, 3, 5))
    after = lake.rows("2026-01-02")
    for name in ("cluster_id", "cluster_id_2"):
        renamed = [other[cluster] for cluster in before[name].to_pylist()]
        assert after[name].to_pylist() == renamed
    counted = dict(zip(found.cluster_ids, found.cluster_rows, strict=True))
    ids, rows = np.unique(after["cluster_id"].to_numpy(), return_counts=True)
    assert counted == dict(zip(ids.tolist(), rows.tolist(), strict=True))


def test_outliers_belong_to_no_cluster(lake: Lake) -> None:
    lake.night("2026-01-01")
    inside = lake.rows("2026-01-01")
    assert not any(inside["is_outlier"].to_pylist())
    limit = float(np.quantile(inside["distance"].to_numpy(), 0.9))
    lake.fit(most_distance=limit)
    found = lake.night("2026-01-02")
    table = lake.rows("2026-01-02")
    far = inside["distance"].to_numpy() > np.float32(limit)
    assert found.outliers == far.sum() > 0
    np.testing.assert_array_equal(table["is_outlier"].to_numpy(), far)
    expected = np.where(far, -1, inside["cluster_id"].to_numpy())
    np.testing.assert_array_equal(table["cluster_id"].to_numpy(), expected)
    assert table["distance"].equals(inside["distance"])
    assert table["cluster_id_2"].equals(inside["cluster_id_2"])
    assert lake.night("2026-01-03").outliers == found.outliers  # carried


def test_the_champion_has_its_own_layers(lake: Lake) -> None:
    first = lake.night("2026-01-01")
    lake.settings |= {"model": {"hidden": [9, 4], "embedding": 3}, "refine": {"alpha": 5.0}}
    second = lake.night("2026-01-02", assign={"incremental": False})
    assert second.cluster_rows == first.cluster_rows
    assert second.mean_confidence == first.mean_confidence
    assert lake.night("2026-01-03").labelled_rows == 0


# -------------------------------------------------------------------------- damage and other ends


@pytest.mark.usefixtures("ray_address")
def test_a_pool_of_actors_carries_and_labels(lake: Lake) -> None:
    lake.settings["execution"] |= {"workers": 2}
    first = lake.night("2026-01-01")
    write(lake.folder, "05", 99)
    second = lake.night("2026-01-02")
    assert (second.carried_files, second.labelled_rows) == (3, SHARD_ROWS)
    assert set(lake.files(first)) < set(lake.files(second))
    assert lake.rows("2026-01-02")["id"].to_pylist() == lake.keys()


def test_killed_in_the_middle(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.night("2026-01-01")
    for number in range(5):  # a slice of their own
        write(lake.folder, f"30-{number}", 50 + number)
    write(lake.folder, "31", 55)  # and another
    writes = Store.write_bytes

    def dies(store: Store, path: str, content: bytes) -> None:
        if "/assignments/" in path and store.list("runs/night-2026-01-02/assignments"):
            raise KeyboardInterrupt
        writes(store, path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_bytes", dies)
        with pytest.raises(KeyboardInterrupt):
            lake.night("2026-01-02")
    (done,) = lake.store.list("runs/night-2026-01-02/assignments")
    found = lake.night("2026-01-02")
    # The part that was written counts as this run's own, and its rows are not read again.
    assert (found.carried_files, found.labelled_rows) == (3, 6 * SHARD_ROWS)
    assert lake.rows_read == SHARD_ROWS
    assert any(path.endswith(done.name) for path in lake.files(found))
    assert lake.rows("2026-01-02")["id"].to_pylist() == lake.keys()


def test_a_damaged_part_is_written_anew(lake: Lake) -> None:
    first = lake.night("2026-01-01")
    path = Path(lake.store.locate(lake.files(first)[0]))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    second = lake.night("2026-01-02")
    assert second.carried_files == 2
    (new,) = set(lake.files(second)) - set(lake.files(first))
    assert new.startswith("runs/night-2026-01-02/assignments/")
    assert new.rpartition("/")[2] == path.name  # the same name, wherever it lies
    assert lake.rows("2026-01-02")["id"].to_pylist() == lake.keys()


def test_a_carried_part_that_is_gone_is_not_published(lake: Lake) -> None:
    first = lake.files(lake.night("2026-01-01"))
    config, context = Config.model_validate(lake.settings), lake.context("2026-01-02")
    assert lake.champion is not None
    manifest = pin.run(config, context)
    found = assign.run(config, context, manifest, lake.champion)
    Path(lake.store.locate(first[0])).unlink()
    with pytest.raises(TransientError, match=r"1 of 3 part files are gone .*night-2026-01-01"):
        publish.run(config, context, serving(lake.champion), found)
    assert lake.night("2026-01-02").carried_files == 2


def test_a_bad_shard_costs_its_slice_once(lake: Lake) -> None:
    bad = lake.folder / "04.parquet"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:50_000] + bytes(50_000) + whole[100_000:])
    lake.settings["source"] |= {"on_bad_shard": "quarantine", "max_bad_share": 0.2}
    first = lake.night("2026-01-01")
    assert [shard.name for shard in first.quarantined] == ["04.parquet"]
    # It is tried again, in case it was the storage; its neighbours' part is that of the night
    # before.
    second = lake.night("2026-01-02")
    assert lake.files(second) == lake.files(first)
    assert (second.labelled_rows, second.rows_quarantined) == (0, SHARD_ROWS)
    bad.write_bytes(whole)
    third = lake.night("2026-01-03")
    assert (third.carried_files, third.labelled_rows) == (3, SHARD_ROWS)
    assert lake.rows("2026-01-03")["id"].to_pylist() == lake.keys()


# ------------------------------------------------------------------------------------------ drift


def test_no_drift_on_the_rows_that_the_champion_knows(lake: Lake) -> None:
    found = lake.night("2026-01-01")
    assert found.max_psi is not None
    assert found.max_psi < 0.01
    assert lake.night("2026-01-02").max_psi == found.max_psi  # from footers alone


def test_the_feature_that_drifts_is_named(lake: Lake) -> None:
    lake.night("2026-01-01")
    for number in range(6):
        write(lake.folder, f"99-{number}", 90 + number, shift=20.0)
    found = lake.night("2026-01-02")
    assert lake.rows_read == 6 * SHARD_ROWS
    assert found.max_psi_feature == "x[2]"
    assert found.max_psi is not None
    assert found.max_psi > 0.25


def test_statistics_of_slices_count_by_their_rows() -> None:
    def part(rows: int, bins: list[int]) -> PartStatistics:
        return PartStatistics("i", rows, rows, [], 0.0, [], [bins], sum(bins))

    binned = BinnedRows()
    assert binned.counts() is None
    binned.add(part(5, []))  # of an old night
    assert binned.counts() is None
    binned.add(part(900, [10, 0]))
    binned.add(part(100, [0, 10]))
    found = binned.counts()
    assert found is not None
    # 900 and 100 rows of 1,000; 20 were looked at.
    assert found.tolist() == [[18, 2]]


def test_every_slice_is_looked_at_evenly(lake: Lake) -> None:
    found = lake.night("2026-01-01")
    for path in lake.files(found):
        metadata = pq.read_schema(lake.store.locate(path)).metadata
        statistics = json.loads(metadata[b"dec_pipeline"])
        assert 1_500 < statistics["binned_rows"] <= 2_000
        assert [sum(row) for row in statistics["bins"]] == [statistics["binned_rows"]] * WIDTH


# ------------------------------------------------------------------------------ what was forgotten


def forget_key(lake: Lake, key: int) -> None:
    keys = KeySet(pa.table({"id": [key]}), "keys")
    assert forget(lake.store, keys, who="me").counts[0].rows == 1
    assert key not in lake.rows("2026-01-01")["id"].to_pylist()


def test_no_night_takes_up_a_part_that_held_what_was_forgotten(lake: Lake) -> None:
    lake.night("2026-01-01")
    lake.night("2026-01-02")
    key = 5 * SHARD_ROWS + 17  # in shard 10, of the second slice
    forget_key(lake, key)
    old = withdrawn_parts(lake.store)
    path = lake.folder / "10.parquet"
    table = pq.read_table(path)
    pq.write_table(table.filter(pc.not_equal(table["id"], key)), path)
    for ds in ("2026-01-03", "2026-01-01"):
        found = lake.night(ds)
        assert found.carried_files >= 2
        assert not old & {*lake.files(found)}
        assert lake.rows(ds)["id"].to_pylist() == lake.keys()
        assert key not in lake.keys()


def test_a_row_that_is_still_in_the_source_is_labelled_again(lake: Lake) -> None:
    lake.night("2026-01-01")
    key = 17
    forget_key(lake, key)
    for ds in ("2026-01-01", "2026-01-02"):  # the first once more: its folder has the old part
        found = lake.night(ds)
        assert found.carried_files >= 2
        assert not withdrawn_parts(lake.store) & {*lake.files(found)}
        assert lake.rows(ds)["id"].to_pylist() == lake.keys()
    assert key in lake.keys()


# ------------------------------------------------------------------------------ lake tables


def test_nights_follow_a_delta_table(lake: Lake, tmp_path: Path) -> None:
    table = str(tmp_path / "table")
    for path in sorted(lake.folder.glob("*.parquet")):
        write_deltalake(table, pq.read_table(path), mode="append")
    columns = {"features": ["x"], "keys": ["id"]}
    lake.settings["source"] = {"format": "delta", "table": table} | columns
    first = lake.night("2026-01-01")
    assert (first.labelled_rows, lake.rows_read) == (12 * SHARD_ROWS, 12 * SHARD_ROWS)
    assert lake.night("2026-01-02").labelled_rows == 0

    write(tmp_path, "new", 40)
    write_deltalake(table, pq.read_table(tmp_path / "new.parquet"), mode="append")
    appended = lake.night("2026-01-03")
    assert (appended.labelled_rows, lake.rows_read) == (SHARD_ROWS, SHARD_ROWS)

    DeltaTable(table).delete("id < 100")  # in the first shard
    deleted = lake.night("2026-01-04")
    assert 0 < deleted.labelled_rows < 6 * SHARD_ROWS  # the slice that it was in, and its rest
    assert deleted.rows == 13 * SHARD_ROWS - 100

    DeltaTable(table).update({"label": "2"}, predicate="id >= 300000")  # the appended shard
    updated = lake.night("2026-01-05")
    assert updated.labelled_rows == SHARD_ROWS
    live = pa.table(DeltaTable(table).to_pyarrow_table(columns=["id"]))["id"].to_pylist()
    assert lake.rows("2026-01-05")["id"].to_pylist() == sorted(live)
    versions = [p.source_version for p in latest_snapshot(lake.store).partitions.values()]
    assert versions == ["delta 11", "delta 11", "delta 12", "delta 13", "delta 14"]
