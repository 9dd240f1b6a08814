"""Runs made by hand, with everything that a report shows: real files, a real model, any names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artifacts.assignments import Assignments, PartFile, Snapshot
from pipeline.artifacts.explanations import Description, Explanation
from pipeline.artifacts.inputs import (
    FeatureColumn,
    Manifest,
    QuarantinedShard,
    Sample,
    encode_schema,
)
from pipeline.artifacts.models import (
    Candidate,
    ClusteringModel,
    Comparison,
    InitialCentroids,
    MergedCells,
    PretrainedAutoencoder,
    RefinedModel,
    RefineRecord,
    Scores,
    SpaceQuality,
)
from pipeline.artifacts.nights import (
    Champion,
    GateRule,
    Identity,
    NightDecision,
    Reference,
    Serving,
    Verdict,
)
from pipeline.artifacts.records import Artifact, StoredFile
from pipeline.artifacts.summaries import StageTime, Summary
from pipeline.bill.records import Cluster, Estimate, StageEstimate
from pipeline.config import Config
from pipeline.engine import Context
from pipeline.input.samples import FEATURES, HELD_OUT
from pipeline.lake.snapshots import FileList
from pipeline.model.scaling import Scaler
from pipeline.registry.entries import CLUSTER_SCHEMA, TRANSITION_SCHEMA, append
from pipeline.registry.models import centroids_bytes, feature_names, scaler_bytes, store_model
from pipeline.runs import Marker
from pipeline.schema import (
    DESCRIBED_SCHEMA,
    EXEMPLAR_KINDS,
    PROFILE_SCHEMA,
    RULE_SCHEMA,
    exemplar_schema,
)
from pipeline.storage import Store, parquet_bytes

STAGES = ("pin", "sample", "pretrain", "init_centroids", "refine", "evaluate", "select", "assign")
CANDIDATES = (("dec", 0.859), ("autoencoder", 0.82), ("kmeans", 0.813))


@dataclass
class Made:
    """A run of ``per_cluster`` rows in each of ``clusters`` groups, complete but for its report.

    Attributes:
        lake: The output folder.
        clusters: K.
        per_cluster: Rows of the sample, and of the table, in each.
        columns: The feature columns; one that ends in ``[n]`` is a vector of n.
        key: The key column.
        keys: Its values; None: numbers.
        image_shape: See ``source``.
        run_id: Of the run.
        ds: Its date.
        ids: Permanent ids, of a night; empty: positions, of a run that no gate judged.
    """

    lake: Store
    clusters: int = 4
    per_cluster: int = 30
    columns: tuple[str, ...] = ("width", "height", "weight")
    key: str = "id"
    keys: Sequence[str] | None = None
    image_shape: list[int] | None = None
    run_id: str = "made"
    ds: str = "2026-01-31"
    ids: tuple[int, ...] = ()
    names: dict[int, str] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------ the table

    @cached_property
    def context(self) -> Context:
        return Context(self.run_id, self.ds, self.lake)

    @cached_property
    def features(self) -> tuple[FeatureColumn, ...]:
        found = []
        for column in self.columns:
            name, bracket, width = column.partition("[")
            vector = bracket != "" and width.endswith("]")
            size = int(width[:-1]) if vector else 1
            found.append(FeatureColumn(name=name if vector else column, width=size, vector=vector))
        return tuple(found)

    @property
    def width(self) -> int:
        return sum(column.width for column in self.features)

    @cached_property
    def config(self) -> Config:
        return Config.model_validate(
            {
                "source": {
                    "path": "input",
                    "features": [column.name for column in self.features],
                    "keys": [self.key],
                    "scaling": "none",
                    "image_shape": self.image_shape,
                },
                "output": self.lake.url,
                "clusters": max(2, self.clusters),
                "centroids": {"sample_rows": max(1000, 40 * self.clusters)},
                "prices": {"cpu_core_hour": 0.05},
            }
        )

    @cached_property
    def centers_KF(self) -> NDArray[np.float32]:
        random = np.random.default_rng(self.clusters)
        return random.uniform(-20, 20, (self.clusters, self.width)).astype(np.float32)

    @cached_property
    def labels_N(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(self.clusters), self.per_cluster)

    @cached_property
    def x_NF(self) -> NDArray[np.float32]:
        random = np.random.default_rng(0)
        noise = random.normal(size=(len(self.labels_N), self.width))
        return (self.centers_KF[self.labels_N] + noise).astype(np.float32)

    @cached_property
    def key_column(self) -> pa.Array:
        rows = len(self.labels_N)
        if self.keys is None:
            return pa.array(np.arange(rows))
        return pa.array([f"{self.keys[n % len(self.keys)]}{n or ''}" for n in range(rows)])

    @property
    def permanent(self) -> tuple[int, ...]:
        return self.ids or tuple(range(self.clusters))

    def id_of(self, position: int) -> int:
        return self.permanent[position]

    # ---------------------------------------------------------------------------------- writing it

    def store(self, name: str, content: bytes | pa.Buffer) -> StoredFile:
        return self.context.store(f"{self.context.run_path}/stages/{name}", bytes(content))

    def mark(self, stage: str, artifact: Artifact) -> None:
        marker = Marker(
            stage=stage,
            fingerprint="0",
            seconds=1.5,
            finished_at="2026-01-31T02:03:04+00:00",
            artifact=artifact.model_dump(mode="json"),
        )
        path = self.context.stage_path(stage, "done.json")
        self.lake.write_json(path, marker.model_dump(mode="json"))

    def write(self, *, explained: bool = True) -> Made:
        """A run that fitted a model; a night where there are ids."""
        run = {"run_id": self.run_id, "ds": self.ds, "version": "0.1.0"}
        self.lake.write_json(f"{self.context.run_path}/run.json", run)
        self.lake.write_bytes(
            f"{self.context.run_path}/config.yaml", self.config.to_yaml().encode()
        )
        self.mark("pin", self.manifest)
        self.mark("sample", self.sample)
        self.mark("pretrain", self._autoencoder())
        self.mark("init_centroids", self._initial())
        self.mark("refine", self._refined())
        self.mark("evaluate", self.comparison)
        self.mark("select", self.model)
        self.mark("assign", self.assignments)
        self.mark("publish", Snapshot(number=1, path="snapshots/1.json"))
        if explained:
            self.mark("explain", self.explanation)
            self.mark("describe", self.description)
        if self.ids:
            self._write_night()
        else:
            self._write_run()
        return self

    @cached_property
    def manifest(self) -> Manifest:
        rows = len(self.labels_N)
        return Manifest(
            shards=self.store("pin/shards.parquet", b""),
            rows=rows,
            bytes=rows * self.width * 4,
            wanted_bytes=rows * self.width * 4,
            shard_count=3,
            row_groups=3,
            slice_count=1,
            target_slice_mib=64,
            features=self.features,
            dtype="float32",
            carried=encode_schema(pa.schema([(self.key, self.key_column.type)])),
            nulls="error",
            keys=(self.key,),
            label=None,
        )

    @cached_property
    def scaler_bytes(self) -> bytes:
        flat = np.zeros(self.width)
        return bytes(scaler_bytes(Scaler("none", flat, flat, np.ones(self.width)), self.features))

    @cached_property
    def sample(self) -> Sample:
        table = pa.table(
            {
                self.key: self.key_column,
                FEATURES: pa.FixedSizeListArray.from_arrays(self.x_NF.ravel(), self.width),
                HELD_OUT: np.zeros(len(self.x_NF), bool),
            }
        )
        return Sample(
            parts=(self.store("sample/reference/part-000000.parquet", parquet_bytes(table)),),
            rows=len(table),
            scanned_rows=len(table),
            missing_values=0,
            scaler=self.store("sample/scaler.parquet", self.scaler_bytes),
            scaling="none",
        )

    @cached_property
    def model(self) -> ClusteringModel:
        return store_model(
            self.config,
            self.context,
            "kmeans",
            weights=None,
            centroids=bytes(centroids_bytes(self.centers_KF)),
            scaler=self.scaler_bytes,
            scaling="none",
        )

    def _autoencoder(self) -> PretrainedAutoencoder:
        none = StoredFile(path="none", sha256="0", bytes=0)
        losses = tuple(float(0.8 / (1 + n) + 0.1) for n in range(30))
        return PretrainedAutoencoder(weights=none, losses=losses, rows=100)

    def _initial(self) -> InitialCentroids:
        none = StoredFile(path="none", sha256="0", bytes=0)
        return InitialCentroids(
            weights=none,
            centroids=none,
            kmeans=none,
            objectives=(1.0,),
            objective=1.0,
            sample_rows=100,
            cluster_rows=(1, 1),
            merged=MergedCells(
                cells=none,
                count=200,
                space="features",
                starts=9,
                rule="density",
                agreement={"modularity": 0.71, "density": 0.83},
                firmness=(1.0, 0.9),
            ),
        )

    def _refined(self) -> RefinedModel:
        none = StoredFile(path="none", sha256="0", bytes=0)
        updates = tuple(
            RefineRecord(
                number=n,
                label_change=None if n == 0 else 0.05 / 2**n,
                kl=0.5 - 0.02 * n,
                loss=0.4,
                learning_rate=1e-4,
                cluster_rows=(1, 1),
                event="cluster 1 was about to swallow the others" if n == 3 else None,
            )
            for n in range(8)
        )
        return RefinedModel(
            model_id="m-0",
            weights=none,
            centroids=none,
            scaler=none,
            scaling="none",
            updates=updates,
            stopped_by="tol",
            rows=100,
        )

    @cached_property
    def comparison(self) -> Comparison:
        candidates = tuple(
            Candidate(
                kind=kind,
                separation=separation,
                spaces=(SpaceQuality(space="features", silhouette=0.2, objective_ratio=0.5),),
                balance=0.98,
                empty_clusters=0,
                stability=0.8,
                scores=Scores(acc=0.8, nmi=0.7, ari=0.6, rows=100),
            )
            for kind, separation in CANDIDATES
        )
        return Comparison(
            candidates=candidates,
            winner="dec",
            margin=0.039,
            rows=len(self.labels_N),
            held_out_rows=38,
            generalisation=0.97,
            centroids=StoredFile(path="none", sha256="0", bytes=0),
            restarts=1,
        )

    @cached_property
    def confidence_N(self) -> NDArray[np.float32]:
        random = np.random.default_rng(1)
        return random.beta(6, 2, len(self.labels_N)).astype(np.float32)

    @cached_property
    def assignments(self) -> Assignments:
        ids = np.array([self.id_of(k) for k in range(self.clusters)], np.int32)
        part = pa.table(
            {
                self.key: self.key_column,
                "cluster_id": ids[self.labels_N],
                "confidence": self.confidence_N,
            }
        )
        path = f"{self.context.run_path}/assignments/part-0.parquet"
        content = parquet_bytes(part)
        self.lake.write_bytes(path, content)
        listed = FileList(
            rows=len(part), files=(PartFile(path=path, rows=len(part), bytes=len(content)),)
        )
        return Assignments(
            files=self.store("assign/files.json", listed.model_dump_json().encode()),
            file_count=1,
            rows_in=len(part),
            rows_dropped=0,
            rows=len(part),
            cluster_rows=self.cluster_rows,
            mean_confidence=float(self.confidence_N.mean()),
            scores=None,
            cluster_ids=self.permanent,
        )

    @property
    def cluster_rows(self) -> tuple[int, ...]:
        return (self.per_cluster,) * self.clusters

    def _times(self) -> tuple[StageTime, ...]:
        return tuple(StageTime(stage=s, seconds=1.5 * n) for n, s in enumerate(STAGES))

    @property
    def quarantined(self) -> tuple[QuarantinedShard, ...]:
        return (
            QuarantinedShard(
                name="shard-7.parquet",
                url="input/shard-7.parquet",
                version="1",
                bytes=10,
                rows=None,
                stage="pin",
                reason="it is truncated",
            ),
        )

    def estimate(self, *stages: str) -> Estimate:
        return Estimate(
            stages=tuple(StageEstimate(stage=stage, fixed_seconds=1.0) for stage in stages),
            cluster=Cluster(
                nodes=3,
                cpus_per_node=4,
                gpus_per_node=0,
                workers=2,
                threads=4,
                actors=2,
                actor_threads=4,
            ),
            products="float32",
            rates="defaults",
        )

    def _metrics(self, summary: Summary) -> None:
        path = f"{self.context.run_path}/metrics.json"
        self.lake.write_json(path, summary.model_dump(mode="json"))

    # ---------------------------------------------------------------------------------- explained

    @cached_property
    def explanation(self) -> Explanation:
        folder = "explain"
        profile = pa.Table.from_pylist(self._profile(), PROFILE_SCHEMA)
        return Explanation(
            profile=self.store(f"{folder}/profile.parquet", parquet_bytes(profile)),
            exemplars=self.store(f"{folder}/exemplars.parquet", parquet_bytes(self._exemplars())),
            clusters=self.clusters,
            rows=len(self.labels_N),
            columns=(),
            exemplars_kept=5,
            quantile_points=0,
        )

    def _constant(self, position: int) -> dict[str, Any]:
        return {
            "ds": self.ds,
            "run_id": self.run_id,
            "model_id": self.model.model_id,
            "cluster_id": self.id_of(position),
        }

    def _profile(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        x_KNF = self.x_NF.reshape(self.clusters, self.per_cluster, self.width).astype(np.float64)
        mean_KF, std_KF = x_KNF.mean(1), x_KNF.std(1)
        mean_F, std_F = self.x_NF.mean(0), self.x_NF.std(0) + 1e-9
        others = max(1, self.clusters - 1)
        difference_KF = (mean_KF - (mean_F * self.clusters - mean_KF) / others) / std_F
        for k in range(self.clusters):
            rows: list[dict[str, Any]] = []
            start = 0
            for column in self.features:
                places = slice(start, start + column.width)
                start += column.width
                if not column.vector:
                    rows.append(self._row(k, column.name, "number", None, places.start, x_KNF[k]))
                    rows[-1]["difference"] = float(difference_KF[k, places.start])
                    continue
                length = float(np.linalg.norm(difference_KF[k, places]))
                rows.append(
                    self._constant(k)
                    | {
                        "rows": self.per_cluster,
                        "feature": column.name,
                        "kind": "vector",
                        "null_share": 0.0,
                        "difference": length,
                        "mean_vector": mean_KF[k, places].tolist(),
                    }
                )
                strongest = np.argsort(-np.abs(difference_KF[k, places]))[:10]
                for at in strongest.tolist():
                    rows.append(
                        self._row(k, column.name, "component", at, places.start + at, x_KNF[k])
                    )
                    rows[-1]["difference"] = float(difference_KF[k, places.start + at])
            for part in (True, False):  # components are ranked by themselves
                ranked = [row for row in rows if (row["kind"] == "component") == part]
                ranked.sort(key=lambda row: -abs(row["difference"]))
                for rank, row in enumerate(ranked, 1):
                    row["rank"] = rank
            found += rows
        assert std_KF.shape == mean_KF.shape
        return found

    def _row(
        self, k: int, name: str, kind: str, component: int | None, at: int, x_NF: NDArray[Any]
    ) -> dict[str, Any]:
        values = x_NF[:, at]
        quantiles = dict(
            zip(
                ("p05", "p25", "p50", "p75", "p95"),
                np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist(),
                strict=True,
            )
        )
        return (
            self._constant(k)
            | {
                "rows": self.per_cluster,
                "feature": name,
                "kind": kind,
                "component": component,
                "mean": float(values.mean()),
                "std": float(values.std()),
                "min": float(values.min()),
                "max": float(values.max()),
                "null_share": 0.0,
            }
            | (quantiles if kind == "number" else {})
        )

    def _exemplars(self) -> pa.Table:
        schema = exemplar_schema(self.manifest.carried_schema, [self.key])
        keys = self.key_column.to_pylist()
        rows = []
        for k in range(self.clusters):
            first = k * self.per_cluster
            for number, kind in enumerate(EXEMPLAR_KINDS):
                for rank in range(min(5, self.per_cluster)):
                    row = first + (number * 5 + rank) % self.per_cluster
                    rows.append(
                        self._constant(k)
                        | {
                            "kind": kind,
                            "rank": rank + 1,
                            self.key: keys[row],
                            "cluster_id_2": self.id_of((k + 1) % self.clusters),
                            "confidence": 0.9,
                            "confidence_2": 0.05,
                            "distance": 1.0,
                            "features": self.x_NF[row].tolist(),
                        }
                    )
        return pa.Table.from_pylist(rows, schema)

    @cached_property
    def description(self) -> Description:
        first = feature_names(self.features)[0]
        rules = [
            {
                "cluster_id": self.id_of(k),
                "rule": f"{first} > {float(self.centers_KF[k, 0]) - 1:.2f}",
                "conditions": [],
                "rows": self.per_cluster,
                "share": 1 / self.clusters,
                "held_out": 10,
                "correct": 9,
                "precision": 0.9,
            }
            for k in range(min(self.clusters, 64))
        ]
        described = [
            {"cluster_id": self.id_of(k), "name": self.names.get(k), "named_by": None}
            for k in range(self.clusters)
        ]
        return Description(
            clusters=self.store(
                "describe/clusters.parquet",
                parquet_bytes(pa.Table.from_pylist(described, DESCRIBED_SCHEMA)),
            ),
            rules=self.store(
                "describe/rules.parquet", parquet_bytes(pa.Table.from_pylist(rules, RULE_SCHEMA))
            ),
            fidelity=0.91,
            baseline=0.25,
            fitted_rows=80,
            held_out_rows=40,
            considered_features=self.width,
            depth=5,
            no_rules_reason="",
            named=0,
            entry=0,
            model=self.model,
            features=self.features,
            sample=self.sample,
            ids=self.champion.ids,
        )

    # ---------------------------------------------------------------------------------- of nights

    @cached_property
    def champion(self) -> Champion:
        table = pa.table(
            {
                "position": np.arange(self.clusters, dtype=np.int32),
                "cluster_id": np.array(self.permanent, np.int32),
                "most_distance": np.full(self.clusters, np.inf, np.float32),
            }
        )
        return Champion(
            model=self.model,
            run_id=self.run_id,
            ds=self.ds,
            refit_ds=self.ds,
            ids=self.store("identify/ids.parquet", parquet_bytes(table)),
            reference=Reference(
                sample=self.sample,
                features=self.features,
                bins=self.store("identify/bins.parquet", b""),
            ),
            settings="0",
        )

    @cached_property
    def identity(self) -> Identity:
        moves = [
            ("survival", self.ids[0], self.ids[0], 80),
            ("split", self.ids[1], self.ids[1], 30),
            ("split", self.ids[1], self.ids[2], 25),
            ("merge", 90, self.ids[0], 12),
            ("birth", None, self.ids[-1], 20),
            ("death", 91, None, 9),
        ]
        table = pa.Table.from_pylist(
            [
                {
                    "ds": self.ds,
                    "run_id": self.run_id,
                    "kind": kind,
                    "from_id": before,
                    "to_id": after,
                    "rows": rows,
                    "from_rows": rows,
                    "to_rows": rows,
                    "from_rows_now": rows,
                    "to_rows_now": rows,
                }
                for kind, before, after, rows in moves
            ],
            TRANSITION_SCHEMA,
        )
        known = [
            {
                "cluster_id": cluster,
                "name": self.names.get(position),
                "born": self.ds,
                "died": None,
                "parents": [],
                "size": self.per_cluster,
                "model_id": self.model.model_id,
                "centroid": [0.0],
                "exemplars": [],
            }
            for position, cluster in enumerate(self.ids)
        ]
        return Identity(
            challenger=self.champion,
            clusters=self.store(
                "identify/clusters.parquet",
                parquet_bytes(pa.Table.from_pylist(known, CLUSTER_SCHEMA)),
            ),
            transitions=self.store("identify/transitions.parquet", parquet_bytes(table)),
            survived=2,
            split=1,
            merged=1,
            born=1,
            died=1,
            churn=0.257,
        )

    @property
    def verdict(self) -> Verdict:
        rules = (
            GateRule(name="max_churn", value=0.257, limit=0.5, passed=True, detail="of the sample"),
            GateRule(name="max_psi", value=0.61, limit=0.25, passed=False, detail="of weight"),
            GateRule(name="max_bad_shards", value=0.0, limit=None, passed=True),
            GateRule(
                name="max_row_change", value=None, limit=0.5, passed=True, detail="first night"
            ),
        )
        return Verdict(passed=False, rules=rules)

    def _write_run(self) -> None:
        """As ``dec run`` leaves it: no rule of the gate was applied."""
        passed = Verdict(passed=True, rules=(), reason="dec run applies no rule of the gate")
        self.mark("gate", passed)
        self.mark("promote", Serving(champion=self.champion, entry=1, refused=False))
        self._metrics(self.night("refit", verdict=passed, comparison=self.comparison))

    def _write_night(self) -> None:
        decision = NightDecision(action="refit", why="first", entry=0, champion=None, usable=False)
        self.mark("decide", decision)
        self.mark("identify", self.identity)
        self.mark("gate", self.verdict)
        entry = append(
            self.lake,
            0,
            action="promote",
            commit_id=self.run_id,
            who=f"run {self.run_id}",
            reason="for the test",
            champion=self.champion,
            clusters=self.identity.clusters,
            transitions=(self.identity.transitions,),
        )
        self.mark("promote", Serving(champion=self.champion, entry=entry.number, refused=True))
        self._metrics(self.night("refit", verdict=self.verdict, comparison=self.comparison))

    def night(
        self,
        action: Any,
        *,
        verdict: Verdict | None = None,
        comparison: Comparison | None = None,
    ) -> Summary:
        fitted = comparison is not None
        return Summary(
            run_id=self.run_id,
            ds=self.ds,
            action=action,
            why="the last refit was 7 days before",
            refused=verdict is not None and not verdict.passed,
            champion=self.model.model_id,
            challenger=("m-1" if self.ids else self.model.model_id) if verdict else None,
            entry=1,
            snapshot=1,
            table=None,
            model_id=self.model.model_id,
            shipped="dec",
            rows_in=len(self.labels_N),
            rows_out=len(self.labels_N),
            rows_dropped=0,
            rows_labelled=len(self.labels_N),
            rows_carried=0,
            rows_quarantined=0,
            outliers=0,
            shards=3,
            features=self.width,
            clusters=self.clusters,
            cluster_ids=self.permanent,
            cluster_rows=self.cluster_rows,
            mean_confidence=0.75,
            survived=2,
            split=1,
            merged=1,
            born=1,
            died=1,
            churn=0.257 if self.ids and verdict else None,
            max_psi=0.61 if self.ids else None,
            max_psi_feature="weight",
            scores=None,
            verdict=verdict,
            comparison=comparison,
            products="float32" if fitted else None,
            pretrain_passes=30 if fitted else None,
            pretrain_loss=0.1 if fitted else None,
            kmeans_objective=1.0 if fitted else None,
            refine_updates=7 if fitted else None,
            refine_stopped_by="tol" if fitted else None,
            refine_events=(),
            kl=0.3 if fitted else None,
            label_change=0.0004 if fitted else None,
            choice=None,
            start=self._initial().merged if fitted else None,
            firmness=tuple(1.0 - 0.1 * (n % 8) for n in self.permanent) if fitted else (),
            quarantined=() if self.ids else self.quarantined,
            stages=self._times(),
            # None: it could not be made.
            estimate=None if self.ids and verdict else self.estimate("pin", "assign"),
            output=self.lake.url,
            assignments=f"{self.context.run_path}/assignments",
            model=f"models/{self.model.model_id}",
        )

    def write_quiet_night(self, run_id: str, ds: str) -> Made:
        """A night after this one, whose champion labels the rows."""
        quiet = Made(**{n: getattr(self, n) for n in ("lake", "clusters", "per_cluster", "ids")})
        quiet.columns, quiet.key, quiet.run_id, quiet.ds = self.columns, self.key, run_id, ds
        quiet.mark("pin", quiet.manifest)
        quiet.mark(
            "decide",
            NightDecision(
                action="assign",
                why="a refit is not due",
                entry=1,
                champion=self.champion,
                usable=True,
            ),
        )
        quiet.mark("assign", quiet.assignments)
        quiet._metrics(quiet.night("assign"))
        return quiet
