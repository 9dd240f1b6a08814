"""``cluster_profile`` and ``cluster_exemplars``, against what numpy makes of the published rows.

The stages are the real ones, on real files; the pool of actors and the tasks are this process.
"""

from __future__ import annotations

import datetime
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

from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.explanations import Explanation
from pipeline.artifacts.inputs import FeatureColumn, Sample
from pipeline.artifacts.nights import Champion, Reference, Serving
from pipeline.clustering.drift import bin_counts, bin_edges
from pipeline.config import Config, Retention
from pipeline.distributed.resources import Claim, Resources
from pipeline.engine import Context
from pipeline.errors import InputError
from pipeline.insight.profiles import layout as profile_layout
from pipeline.insight.profiles.files import (
    as_it_is_now,
    profile_path,
    read_profile,
    withdraw_copies,
)
from pipeline.insight.profiles.layout import Layout
from pipeline.lake.snapshots import assignment_files, read_file_list
from pipeline.model.scaling import Scaler
from pipeline.operations.forgetting import forget
from pipeline.operations.forgotten_keys import KeySet
from pipeline.operations.garbage import collect
from pipeline.registry.models import centroids_bytes, scaler_bytes, store_model
from pipeline.registry.reference import bins_bytes
from pipeline.schema import PROFILE_SCHEMA
from pipeline.stages.assign import assign
from pipeline.stages.explain import explain
from pipeline.stages.pin import pin
from pipeline.stages.publish import publish
from pipeline.storage import Store, parquet_bytes

IDS = (7, 3, 12, 5)  # the last cluster is far away, and has no rows
CENTROIDS = np.array([[-4, -4, -4, -4], [0, 0, 0, 0], [4, 4, 4, 4], [99, 99, 99, 99]], np.float32)
EXPLAINED = ["colour", "vip", "seen", "day", "price", "town", "born"]


def shard(seed: int, rows: int) -> pa.Table:
    """Rows around three points, with columns of every type; some values are missing."""
    random = np.random.default_rng(seed)
    place = random.integers(0, 3, rows)
    values = (4 * (place[:, None] - 1) + random.normal(size=(rows, 4))).astype(np.float32)
    values[random.random((rows, 4)) < 0.05] = np.nan
    colour = np.array(["red", "green", "blue"])[(place + (random.random(rows) < 0.2)) % 3]
    seen = 1_700_000_000_000_000 + place * 86_400_000_000 + random.integers(0, 10**9, rows)
    some = [random.random(rows) < 0.1 for _ in range(4)]
    return pa.table(
        {
            "id": [f"row-{seed}-{n}" for n in range(rows)],
            "x": pa.FixedSizeListArray.from_arrays(values[:, :3].ravel(), 3),
            "a": pa.array(values[:, 3].astype(np.float64), from_pandas=True),
            "colour": pa.array(colour, mask=some[0]).dictionary_encode(),
            "vip": pa.array(place == 2, mask=some[1]),
            "seen": pa.array(seen, pa.timestamp("us", "UTC"), mask=some[2]),
            "day": pa.array((19_000 + place).astype(np.int32), pa.int32()).cast(pa.date32()),
            "price": pa.array((100 * random.random(rows)).astype(int)).cast(pa.decimal128(21, 2)),
            "town": pa.array([f"town {n}" for n in random.integers(0, 500, rows)]),
            "born": pa.array(1950 + random.integers(0, 50, rows), mask=some[3]),
        }
    )


@dataclass
class Lake:
    """A source, an output, and what labels it."""

    folder: Path
    settings: dict[str, Any]

    @property
    def store(self) -> Store:
        return Store(self.settings["output"])

    def write(self, name: str, seed: int, rows: int = 700) -> None:
        table = shard(seed, rows)
        pq.write_table(table, self.folder / f"{name}.parquet", row_group_size=250)

    def config(self, **settings: Any) -> Config:
        return Config.model_validate(self.settings | settings)

    def champion(self, most_distance: float) -> Champion:
        """k-means on the features themselves."""
        config, context = self.config(explain={}), Context("fit", "2026-01-01", self.store)
        manifest = pin.run(config, replace(context, lake=Store(f"{self.settings['output']}-fit")))
        scaler = Scaler("none", np.zeros(4), np.zeros(4), np.ones(4))
        model = store_model(
            config,
            context,
            "kmeans",
            weights=None,
            centroids=centroids_bytes(CENTROIDS),
            scaler=scaler_bytes(scaler, manifest.features),
            scaling="none",
        )
        ids = {
            "position": pa.array(range(4), pa.int32()),
            "cluster_id": pa.array(IDS, pa.int32()),
            "most_distance": pa.array([most_distance] * 4, pa.float32()),
        }
        edges = bin_edges(np.linspace(-5, 5, 40).reshape(10, 4))
        bins = bins_bytes(edges, bin_counts(np.zeros((1, 4)), edges))
        sample = {"parts": (), "rows": 1, "scanned_rows": 1, "missing_values": 0}
        return Champion(
            model=model,
            run_id="fit",
            ds="2026-01-01",
            refit_ds="2026-01-01",
            ids=context.store("registry/ids.parquet", parquet_bytes(pa.table(ids))),
            reference=Reference(
                sample=Sample(**sample, scaler=model.scaler, scaling="none"),
                features=manifest.features,
                bins=context.store("registry/bins.parquet", bins),
            ),
            settings="s",
        )

    def night(
        self,
        ds: str,
        run_id: str = "",
        *,
        most_distance: float = np.inf,
        explained: bool = True,
        **settings: Any,
    ) -> Night:
        config = self.config(**settings)
        context = Context(run_id or f"night-{ds}", ds, self.store, by_schedule=True)
        champion = self.champion(most_distance)
        manifest = pin.run(config, context)
        assigned = assign.run(config, context, manifest, champion)
        if config.lake.format == "parquet":
            serving = Serving(champion=champion, entry=1, refused=False)
            publish.run(config, context, serving, assigned)
        found = Night(self, config, context, champion, assigned)
        if explained:
            found.explain()
        return found


@dataclass
class Night:
    """What became of a night."""

    lake: Lake
    config: Config
    context: Context
    champion: Champion
    assigned: Assignments
    explanation: Explanation | None = None

    def explain(self) -> Explanation:
        manifest = pin.run(self.config, self.context)
        self.explanation = explain.run(
            self.config, self.context, manifest, self.champion, self.assigned
        )
        return self.explanation

    @property
    def profile(self) -> pa.Table:
        assert self.explanation is not None
        return self.lake.store.read_table(self.explanation.profile.path)

    @property
    def exemplars(self) -> pa.Table:
        assert self.explanation is not None
        store = self.lake.store
        return store.read_table(as_it_is_now(store, self.explanation.exemplars.path))

    @property
    def parts(self) -> list[str]:
        return [f.path for f in read_file_list(self.lake.store, self.assigned.files.path).files]

    def published(self) -> tuple[pa.Table, pa.Table]:
        """All rows as they were labelled, and as they are in the source; by key."""
        store = self.lake.store
        rows = pa.concat_tables([pq.read_table(store.locate(path)) for path in self.parts])
        paths = sorted(self.lake.folder.glob("*.parquet"))
        source = pa.concat_tables([pq.read_table(path) for path in paths])
        return rows.sort_by("id").combine_chunks(), source.sort_by("id").combine_chunks()


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    def map_slices(_: Any, slices: list[pa.Table], work: Any, **more: Any) -> Iterator[pa.Table]:
        yield from map(work(*more["arguments"]) if "arguments" in more else work, slices)

    def run_task(
        _: Any, memory: str, work: Callable[..., Any], *arguments: Any, **named: Any
    ) -> Any:
        assert "explain.exemplars" in memory
        return work(*arguments, **named)

    resources = Resources(workers=1, claim=Claim(cpus=1), threads=1)
    monkeypatch.setattr("pipeline.stages.assign.map_slices", map_slices)
    monkeypatch.setattr("pipeline.stages.explain.map_slices", map_slices)
    monkeypatch.setattr("pipeline.stages.explain.run_task", run_task)
    monkeypatch.setattr("pipeline.stages.assign.share_out_what_is_left", lambda *_, **__: resources)
    monkeypatch.setattr("pipeline.input.slices.MOST_PIECES", 2)  # row groups in a slice


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Five shards of three row groups each, in eight slices."""
    folder = tmp_path / "in"
    folder.mkdir()
    found = Lake(
        folder,
        {
            "source": {
                "path": str(folder),
                "features": ["x", "a"],
                "keys": ["id"],
                "nulls": "mean",
            },
            "output": str(tmp_path / "lake"),
            "clusters": 4,
            "explain": {"columns": EXPLAINED, "exemplars": 3},
            "execution": {"workers": 1, "target_slice_mib": 1},
        },
    )
    for number in range(5):
        found.write(f"{number:02}", number)
    return found


def entry(table: pa.Table, cluster: int, feature: str, **of: Any) -> dict[str, Any]:
    """The one row of a cluster and feature."""
    mask = pc.and_(pc.equal(table["cluster_id"], cluster), pc.equal(table["feature"], feature))
    rows = table.filter(mask).to_pylist()
    rows = [row for row in rows if all(row[name] == value for name, value in of.items())]
    assert len(rows) == 1, (cluster, feature, of, rows)
    return rows[0]


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of the source in the units of the profile."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64()).cast(pa.float64())
        return column.fill_null(np.nan).to_numpy() / 1e6
    if pa.types.is_date(column.type):
        return column.cast(pa.int32()).to_numpy() * 86_400.0
    return column.cast(pa.float64()).fill_null(np.nan).to_numpy()


@pytest.mark.parametrize("most_distance", [np.inf, 2.0])  # with outliers
def test_profiles_are_those_of_all_rows(lake: Lake, most_distance: float) -> None:
    night = lake.night("2026-01-01", most_distance=most_distance)
    rows, source = night.published()
    assert night.assigned.file_count == 8
    assert (night.assigned.outliers > 0) == (most_distance < np.inf)
    table = night.profile
    assert table.schema.equals(PROFILE_SCHEMA)
    cluster = rows["cluster_id"].to_numpy()
    assert rows["id"].equals(source["id"])
    assert night.explanation is not None
    assert night.explanation.clusters == len(np.unique(cluster))
    assert night.explanation.rows == len(cluster) == 3_500
    assert set(table["cluster_id"].to_pylist()) == set(cluster.tolist())
    assert 5 not in table["cluster_id"].to_pylist()  # no rows, nothing to say
    x = source["x"].combine_chunks().flatten().to_numpy().reshape(-1, 3).astype(np.float64)
    for k in np.unique(cluster):
        own = cluster == k
        for name in ("a", "seen", "day", "price", "born"):
            values = numbers(source[name])
            inside = values[own & ~np.isnan(values)]
            outside = values[~own & ~np.isnan(values)]
            found = entry(table, k, name)
            assert (found["kind"], found["rows"]) == ("number", own.sum())
            expected = [inside.mean(), inside.std(), inside.min(), inside.max()]
            got = [found[n] for n in ("mean", "std", "min", "max")]
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-6)
            share = 1 - len(inside) / own.sum()
            np.testing.assert_allclose(found["null_share"], share, atol=1e-12)
            away = (inside.mean() - outside.mean()) / np.nanstd(values)
            np.testing.assert_allclose(found["difference"], away, rtol=1e-6, atol=1e-9)
            for name_q, q in (("p05", 0.05), ("p50", 0.5), ("p95", 0.95)):
                rank = [(inside < found[name_q]).mean(), (inside <= found[name_q]).mean()]
                assert rank[0] - 0.02 <= q <= rank[1] + 0.02
        for name, value in (("colour", "green"), ("vip", "true"), ("town", "town 3")):
            texts = np.array(source[name].cast(pa.string()).to_pylist(), dtype=object)
            known = np.array([text is not None for text in texts])
            is_it = texts == value
            if name == "town":  # too many for a row each
                assert found_other(table, k, name) > 0.5
                continue
            found = entry(table, k, name, value=value)
            assert found["kind"] == "category"
            mean, rest = is_it[own & known].mean(), is_it[~own & known].mean()
            np.testing.assert_allclose(found["mean"], mean, atol=1e-12)
            np.testing.assert_allclose(found["std"], np.sqrt(mean * (1 - mean)), atol=1e-12)
            np.testing.assert_allclose(found["null_share"], 1 - known[own].mean(), atol=1e-12)
            away = (mean - rest) / is_it[known].std()
            np.testing.assert_allclose(found["difference"], away, rtol=1e-9)
        vector = entry(table, k, "x", kind="vector")
        inside, outside = np.nanmean(x[own], axis=0), np.nanmean(x[~own], axis=0)
        np.testing.assert_allclose(vector["mean_vector"], inside, rtol=1e-6)
        np.testing.assert_allclose(vector["difference_vector"], inside - outside, rtol=1e-6)
        spread = np.sqrt(np.nanvar(x, axis=0).sum())
        length = np.linalg.norm(inside - outside) / spread
        np.testing.assert_allclose(vector["difference"], length, rtol=1e-6)
        for component in range(3):
            found = entry(table, k, "x", kind="component", component=component)
            np.testing.assert_allclose(found["mean"], inside[component], rtol=1e-6)
            away = (inside - outside)[component] / np.nanstd(x[:, component])
            np.testing.assert_allclose(found["difference"], away, rtol=1e-6)
        of_cluster = table.filter(pc.equal(table["cluster_id"], int(k)))
        component = pc.equal(of_cluster["kind"], "component")
        for some in (of_cluster.filter(component), of_cluster.filter(pc.invert(component))):
            assert some["rank"].to_pylist() == list(range(1, len(some) + 1))
            size = np.abs(some["difference"].to_numpy())
            assert (np.diff(size) <= 0).all()


def found_other(table: pa.Table, cluster: int, feature: str) -> float:
    """Share of the values that have no row of their own; all shares make a whole."""
    mask = pc.and_(pc.equal(table["cluster_id"], cluster), pc.equal(table["feature"], feature))
    rows = table.filter(mask)
    assert len(rows) == 33
    np.testing.assert_allclose(pc.sum(rows["mean"]).as_py(), 1, atol=1e-9)
    return float(rows.filter(rows["value"].is_null())["mean"][0].as_py())


@pytest.mark.parametrize("together", [2, 16])  # a tree of three rounds, or all at once
def test_exemplars_are_the_first_of_all_rows(
    lake: Lake, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.explain._TOGETHER", together)
    night = lake.night("2026-01-01")
    rows, source = night.published()
    table = night.exemplars
    cluster = rows["cluster_id"].to_numpy()
    orders = {
        "central": rows["distance"].to_numpy(),
        "typical": -rows["confidence"].to_numpy(),
        "ambiguous": rows["confidence"].to_numpy() - rows["confidence_2"].to_numpy(),
    }
    vectors = np.concatenate(
        [
            source["x"].combine_chunks().flatten().to_numpy().reshape(-1, 3),
            numbers(source["a"])[:, None].astype(np.float32),
        ],
        axis=1,
    )
    place = {key: n for n, key in enumerate(rows["id"].to_pylist())}
    assert len(table) == 3 * 3 * 3
    for row in table.to_pylist():
        order = orders[row["kind"]]
        own = np.flatnonzero(cluster == row["cluster_id"])
        best = np.sort(order[own])
        here = place[row["id"]]
        assert order[here] == best[row["rank"] - 1]
        np.testing.assert_array_equal(np.array(row["features"], np.float32), vectors[here])
        assert row["confidence"] == rows["confidence"][here].as_py()
        assert row["cluster_id_2"] == rows["cluster_id_2"][here].as_py()
        assert (row["ds"], row["run_id"]) == ("2026-01-01", "night-2026-01-01")
    store = lake.store
    assert [f.name for f in store.walk("runs/night-2026-01-01/stages/explain")]
    assert not store.walk("runs/night-2026-01-01/stages/explain/merged")
    for name in ("profile", "exemplars"):
        copied = store.read_table(f"cluster_{name}/ds=2026-01-01/{name}.parquet")
        assert copied.equals(getattr(night, name))


def test_columns_without_values_say_so(lake: Lake) -> None:
    for path in lake.folder.glob("*.parquet"):
        table = pq.read_table(path)
        x = table["x"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, 3)
        x = np.array(x)
        x[:, 1] = np.nan
        x[path.name == "00.parquet" :, 2] = np.nan  # but of one row
        index = table.schema.get_field_index("x")
        table = table.set_column(index, "x", pa.FixedSizeListArray.from_arrays(x.ravel(), 3))
        for name in ("colour", "vip", "born"):
            index = table.schema.get_field_index(name)
            nothing = pa.array([None] * len(table), table.schema.field(name).type)
            table = table.set_column(index, name, nothing)
        pq.write_table(table, path, row_group_size=250)
    table = lake.night("2026-01-01").profile
    clusters = sorted(set(table["cluster_id"].to_pylist()))
    assert len(clusters) == 3
    for k in clusters:
        for name in ("colour", "vip", "born"):
            found = entry(table, k, name)
            assert found["kind"] == ("number" if name == "born" else "category")
            assert (found["value"], found["null_share"], found["difference"]) == (None, 1, 0)
            assert all(found[n] is None for n in ("mean", "std", "min", "max"))
        vector = entry(table, k, "x", kind="vector")
        assert (vector["mean_vector"][1], vector["difference_vector"][1]) == (None, None)
        assert vector["difference_vector"][2] is None  # there is nothing to differ from
    means = [entry(table, k, "x", kind="vector")["mean_vector"][2] for k in clusters]
    assert sum(mean is not None for mean in means) == 1
    assert found_other(table, clusters[0], "town") > 0.5


def test_of_equals_the_first_by_shard_and_place(lake: Lake) -> None:
    for path in lake.folder.glob("*.parquet"):
        path.unlink()
    for name in ("b", "a", "c"):
        same = {"id": [f"{name}-{n}" for n in range(400)], "x": [[0.0, 0.0, 0.0]] * 400}
        same |= {"a": [0.0] * 400}
        types = [("id", pa.string()), ("x", pa.list_(pa.float32(), 3)), ("a", pa.float64())]
        path = lake.folder / f"{name}.parquet"
        pq.write_table(pa.table(same, schema=pa.schema(types)), path, row_group_size=150)
    night = lake.night("2026-01-01", explain={"exemplars": 2})
    assert night.exemplars["id"].to_pylist() == ["a-0", "a-1"] * 3


def test_slices_of_fewer_rows_than_clusters(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.input.slices.MOST_PIECES", 1)
    for path in lake.folder.glob("*.parquet"):
        path.unlink()
    pq.write_table(shard(3, 9), lake.folder / "a.parquet", row_group_size=1)
    night = lake.night("2026-01-01")
    assert night.assigned.file_count == 9
    rows, source = night.published()
    cluster = rows["cluster_id"].to_numpy()
    for k in np.unique(cluster):
        born = numbers(source["born"])[cluster == k]
        found = entry(night.profile, k, "born")
        born = born[~np.isnan(born)]
        np.testing.assert_allclose(found["mean"], born.mean())
        np.testing.assert_allclose(found["std"], born.std(), atol=1e-9)
        quantiles = [found[name] for name in ("p05", "p25", "p50", "p75", "p95")]
        np.testing.assert_allclose(quantiles, np.quantile(born, [0.05, 0.25, 0.5, 0.75, 0.95]))


def test_nights_with_carried_parts_say_what_one_night_would(lake: Lake) -> None:
    first = lake.night("2026-01-01")
    lake.write("77", 77)
    second = lake.night("2026-01-02")
    assert second.assigned.carried_files == first.assigned.file_count
    alone = lake.night("2026-01-02", "alone", assign={"incremental": False})
    assert alone.assigned.carried_files == 0
    for name in ("profile", "exemplars"):
        carried, anew = (getattr(n, name).drop_columns(["run_id"]) for n in (second, alone))
        if name == "profile":  # sums were added in another order
            for column in carried.column_names:
                kind = carried.schema.field(column).type
                if pa.types.is_floating(kind):
                    pairs = [t[column].fill_null(-1).to_numpy() for t in (carried, anew)]
                    if column in ("p05", "p25", "p50", "p75", "p95"):
                        continue
                    np.testing.assert_allclose(*pairs, rtol=1e-8, atol=1e-8)
        else:
            assert carried.equals(anew)


@pytest.mark.parametrize("damage", ["gone", "half", "of another part"])
def test_without_its_profile_a_slice_is_labelled_again(lake: Lake, damage: str) -> None:
    first = lake.night("2026-01-01")
    paths = [lake.store.locate(profile_path(path)) for path in first.parts]
    content = Path(paths[0]).read_bytes()
    match damage:
        case "gone":
            Path(paths[0]).unlink()
        case "half":
            Path(paths[0]).write_bytes(content[: len(content) // 2])
        case "of another part":
            Path(paths[0]).write_bytes(Path(paths[1]).read_bytes())
    second = lake.night("2026-01-02")
    assert second.assigned.carried_files == first.assigned.file_count - 1
    again = lake.night("2026-01-01")  # the same run: its other parts are done
    assert Path(paths[0]).read_bytes() == content
    assert again.profile.equals(first.profile)


@pytest.mark.parametrize("damage", ["gone", "half", "bytes"])
def test_a_profile_that_is_not_there_when_it_is_needed(lake: Lake, damage: str) -> None:
    before = lake.night("2026-01-01", "before")
    night = lake.night("2026-01-01", assign={"incremental": False}, explained=False)
    store = lake.store
    path = Path(store.locate(profile_path(night.parts[3])))
    content = path.read_bytes()
    match damage:
        case "gone":
            path.unlink()
        case "half":
            path.write_bytes(content[: len(content) // 2])
        case "bytes":
            path.write_bytes(b"PAR1" + b"\x17" * (len(content) - 8) + b"PAR1")
    store.write_bytes("runs/night-2026-01-01/stages/assign/done.json", b"{}")
    files = {p: p.read_bytes() for p in Path(store.url).rglob("*.*") if p.is_file()}
    with pytest.raises(InputError, match=f"{path} ?.*A new run id.* profiles those rows again"):
        night.explain()
    assert {p: p.read_bytes() for p in files} == files
    # Nobody takes what the run before said for what this one found.
    for name in ("profile", "exemplars"):
        copy = store.read_table(f"cluster_{name}/ds=2026-01-01/{name}.parquet")
        assert len(copy) == 0
        assert copy.schema.equals(getattr(before, name).schema)
    # Another run labels that slice again, whether it carries the others or not.
    after = lake.night("2026-01-01", "after", assign={"incremental": False})
    copy = store.read_table("cluster_profile/ds=2026-01-01/profile.parquet")
    assert copy.equals(after.profile)
    # A publish that is done again leaves its own, and that of who serves by now.
    withdraw_copies(store, "2026-01-01", "after", lambda: True)
    withdraw_copies(store, "2026-01-01", "night-2026-01-01", lambda: False)
    assert store.read_table("cluster_profile/ds=2026-01-01/profile.parquet").equals(copy)


def test_a_publish_that_is_done_again_leaves_what_serves_by_now(lake: Lake) -> None:
    first = lake.night("2026-01-01", "first")
    later = lake.night("2026-01-01", "later")
    serving = Serving(champion=first.champion, entry=1, refused=False)
    publish.run(first.config, first.context, serving, first.assigned)
    copy = lake.store.read_table("cluster_profile/ds=2026-01-01/profile.parquet")
    assert copy.equals(later.profile)


def test_a_damaged_copy_is_no_reason_not_to_publish(
    lake: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    lake.store.write_bytes("cluster_profile/ds=2026-01-01/profile.parquet", b"PAR1 no PAR1")
    night = lake.night("2026-01-01", explained=False)
    assert "cluster_profile/ds=2026-01-01/profile.parquet could not be emptied" in caplog.text
    night.explain()
    copy = lake.store.read_table("cluster_profile/ds=2026-01-01/profile.parquet")
    assert copy.equals(night.profile)


def test_done_again_it_is_the_same_bytes(lake: Lake) -> None:
    night = lake.night("2026-01-01")
    assert night.explanation is not None
    before = night.explanation
    profiles_before = [lake.store.read_bytes(profile_path(path)) for path in night.parts]
    for path in night.parts:
        Path(lake.store.locate(path)).unlink()
    again = lake.night("2026-01-01")
    assert again.explanation == before
    assert [lake.store.read_bytes(profile_path(path)) for path in again.parts] == profiles_before


def test_settings_of_profiles_are_part_of_what_is_carried(lake: Lake) -> None:
    lake.night("2026-01-01")
    more = lake.night("2026-01-02", explain={"columns": EXPLAINED, "exemplars": 4})
    assert more.assigned.carried_files == 0
    fewer = lake.night("2026-01-03", explain={"columns": ["born"], "exemplars": 4})
    assert fewer.assigned.carried_files == 0
    assert set(fewer.profile["feature"].to_pylist()) == {"x", "a", "born"}
    none = lake.night("2026-01-04", explain={"exemplars": 0})
    assert len(none.exemplars) == 0


def test_a_key_may_have_the_name_of_a_column_of_ours(lake: Lake) -> None:
    for path in lake.folder.glob("*.parquet"):
        table = pq.read_table(path)
        names = ["kind" if name == "id" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names), path)
    lake.settings["source"] |= {"keys": ["kind"]}
    night = lake.night("2026-01-01")
    assert set(night.exemplars["kind"].to_pylist()) == {"central", "typical", "ambiguous"}
    assert all(key.startswith("row-") for key in night.exemplars["key_kind"].to_pylist())


def test_without_keys_shard_and_row_number_stand_in(lake: Lake) -> None:
    lake.settings["source"] |= {"keys": []}
    night = lake.night("2026-01-01")
    assert set(night.exemplars["shard"].to_pylist()) <= {f"{n:02}.parquet" for n in range(5)}
    row = night.exemplars.to_pylist()[0]
    source = pq.read_table(lake.folder / row["shard"])
    assert source["x"][row["row_number"]].as_py() == row["features"][:3]


def test_a_shard_that_lacks_an_explained_column(lake: Lake) -> None:
    table = shard(9, 100).drop_columns(["born", "colour"])
    pq.write_table(table, lake.folder / "99.parquet")
    night = lake.night("2026-01-01")
    shares = {
        row["cluster_id"]: row["null_share"]
        for row in night.profile.to_pylist()
        if row["feature"] == "born"
    }
    assert min(shares.values()) > 0.1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["colou"], r"explain.columns: shard 00.parquet has no column colou; did you mean colour"),
        (["nothing"], r"has no column nothing; its columns are id, x, a, colour"),
        (["x", "list"], r"column list: type list<.*> cannot be profiled"),
    ],
)
def test_wrong_columns(lake: Lake, columns: list[str], message: str) -> None:
    path = lake.folder / "00.parquet"
    table = pq.read_table(path)
    if "list" in columns:
        columns = ["list"]
        table = table.append_column("list", pa.array([["a"]] * len(table)))
        pq.write_table(table, path)
    context = Context("r", "2026-01-01", lake.store)
    with pytest.raises(InputError, match=message):
        pin.run(lake.config(explain={"columns": columns}), context)


def test_what_there_is_no_room_for_is_left_out(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_layout, "MOST_CELLS", 4 * 6)  # the numbers, and no vector
    monkeypatch.setattr(profile_layout, "_MOST_POINTS", 4 * 5 * 7)
    monkeypatch.setattr(profile_layout, "_MOST_EXEMPLARS", 4 * 3 * 2)
    monkeypatch.setattr(profile_layout, "_MOST_EXEMPLAR_VALUES", 4 * 3 * 4)
    night = lake.night("2026-01-01")
    assert night.explanation is not None
    assert night.explanation.left_out == (
        "profiles of x: too wide for 4 clusters",
        "quantiles of 5 columns in 4 clusters",
        "more than 2 exemplars of each kind in each of 4 clusters",
        "features of exemplars except the first 1 of each kind",
    )
    assert set(night.profile["kind"].to_pylist()) == {"number", "category"}
    assert night.profile["p50"].null_count == len(night.profile)
    assert len(night.exemplars) == 3 * 3 * 2
    bare = [row["rank"] for row in night.exemplars.to_pylist() if row["features"] is None]
    assert bare == [2] * 3 * 3


def test_a_hundred_thousand_clusters_have_a_layout() -> None:
    features = [FeatureColumn(name=f"f{n}", width=1, vector=False) for n in range(30)]
    features += [FeatureColumn(name="v", width=784, vector=True)]
    layout = Layout.of(100_000, features, (), 5)
    assert len(layout.kept) == 5
    assert (layout.points, layout.exemplars, layout.features) == (0, 3, 0)
    assert len(layout.left_out) == 4
    small = Layout.of(10, features, (), 5)
    assert small.left_out == ()
    assert Layout.model_validate(small.model_dump(mode="json")) == small


def test_parts_and_profiles_lie_apart() -> None:
    assert profile_path("runs/r/assignments/part-a.parquet") == "runs/r/profiles/part-a.parquet"
    again = "runs/r/assignments/again-1/part-a.parquet"
    assert profile_path(again) == "runs/r/profiles/again-1/part-a.parquet"
    assert profile_path("delta/r/part-a.parquet") == "runs/r/profiles/part-a.parquet"


def test_delta_parts_have_profiles(lake: Lake) -> None:
    night = lake.night("2026-01-01", lake={"format": "delta"})
    assert all(path.startswith("delta/") for path in night.parts)
    names = [file.name.rpartition("/")[2] for file in lake.store.walk("delta")]
    assert all(name.startswith("part-") for name in names)
    assert len(night.profile)


# ------------------------------------------------------------------- what is removed, what is kept


def _age(lake: Lake) -> None:
    old = (datetime.datetime.now() - datetime.timedelta(days=400)).timestamp()
    for path in Path(lake.settings["output"]).rglob("*"):
        if path.is_file():
            os.utime(path, (old, old))


def test_gc_keeps_profiles_of_parts_that_are_needed(lake: Lake) -> None:
    first = lake.night("2026-01-01")
    lake.write("77", 77)
    second = lake.night("2026-01-01", "second")  # replaces it, with its parts
    orphan = f"runs/{first.context.run_id}/profiles/part-orphan.parquet"
    lake.store.write_bytes(orphan, b"x")
    for run in (first, second):
        lake.store.write_json(f"runs/{run.context.run_id}/metrics.json", {})
        lake.store.write_json(f"runs/{run.context.run_id}/stages/publish/done.json", {})
    _age(lake)
    retention = Retention(snapshots=1, days=0, unpublished_days=1)
    collect(lake.store, retention, dry_run=False)
    assert second.assigned.carried_files == 8
    for path in second.parts:
        read_profile(lake.store, profile_path(path))
    assert not lake.store.exists(orphan)
    assert lake.night("2026-01-02").assigned.labelled_rows == 0


def test_forgotten_keys_are_no_exemplars(lake: Lake) -> None:
    night = lake.night("2026-01-01")
    lake.store.write_json(f"{night.context.run_path}/metrics.json", {})
    lake.store.write_json(f"{night.context.run_path}/run.json", {"ds": "2026-01-01"})
    gone = sorted(set(night.exemplars["id"].to_pylist()))[::5]
    profile = night.profile
    keys = KeySet(pa.table({"id": gone}), "test")
    assert forget(lake.store, keys, who="me", dry_run=True).files > 4
    forget(lake.store, keys, who="me")
    named = set(assignment_files(lake.store))
    looked_at = 0
    for path in Path(lake.settings["output"]).rglob("*.parquet"):
        table = pq.read_table(path)
        # Old parts wait for `dec gc`.
        if "id" in table.column_names and ("assignments" not in str(path) or str(path) in named):
            assert not set(gone) & set(table["id"].to_pylist()), path
            looked_at += 1
    assert looked_at >= 8 + 8 + 2  # parts, their profiles, the table and its copy
    left = night.exemplars
    assert len(left) < 27
    copy = lake.store.read_table("cluster_exemplars/ds=2026-01-01/exemplars.parquet")
    assert copy.equals(left)
    assert night.profile.equals(profile)  # sums stay
    # Nothing is left to be forgotten, and what is explained again does not bring it back.
    assert forget(lake.store, keys, who="me").files == 0
    night.explain()
    assert not set(gone) & set(night.exemplars["id"].to_pylist())
    assert night.profile["rows"].equals(profile["rows"])


def test_forgetting_in_a_run_that_is_not_complete(lake: Lake) -> None:
    night = lake.night("2026-01-01")
    lake.store.write_json(f"{night.context.run_path}/run.json", {"ds": "2026-01-01"})
    marker = f"{night.context.run_path}/stages/explain/done.json"
    assert night.explanation is not None
    lake.store.write_json(marker, night.explanation.model_dump(mode="json"))
    gone = night.exemplars["id"].to_pylist()[:1]
    forget(lake.store, KeySet(pa.table({"id": gone}), "test"), who="me")
    assert lake.store.read_bytes(marker) == b""
    assert not lake.store.exists(night.explanation.exemplars.path)
    night.explain()
    assert not set(gone) & set(night.exemplars["id"].to_pylist())
    assert lake.store.exists("cluster_exemplars/ds=2026-01-01/exemplars.parquet")
