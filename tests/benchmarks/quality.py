"""Clustering quality on public tables, measured through ``dec run`` as a user calls it.

    python -m tests.benchmarks.quality [--data FOLDER] [--rows NAME ...] [--seeds 5]
    python -m tests.benchmarks.quality --summary

Every row of ``ROWS`` is run once a seed with the default config and the few settings that the row
names. What is finished is kept in ``quality.json`` and shown in ``QUALITY.md``, so that a stopped
benchmark goes on where it was, and a row whose settings have changed since is measured anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from pydantic import BaseModel

from pipeline.artifacts.records import fingerprint_of
from pipeline.config import load_config
from pipeline.errors import ConfigError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
METRICS = ("acc", "nmi", "ari")
PACKAGES = ("dec-pipeline", "faiss-cpu", "numpy", "pyarrow", "ray", "scikit-learn", "torch")
# Enough to go the whole way, too little to cluster well.
SHORT = ("pretrain.passes=2", "pretrain.min_updates=0", "centroids.restarts=2", "refine.passes=2")


@dataclass(frozen=True)
class Row:
    """A row of the table: a dataset, a few settings, and what the result is held against.

    Attributes:
        name: What the command line calls it.
        table: The dataset, in words.
        file: Its Parquet file in the data folder; None for the digits, which the run itself writes.
        peer: A published or measured result of somebody else, ACC / NMI / ARI in %.
        reach: Least mean over the seeds, in %, by metric.
        settings: What differs from the default config, as for ``--set``.
        clusters: Number of classes.
        features: Its feature columns.
        floor: k-means on the table as it comes, best of several starts, in %, by metric, as the
            data folder has it; empty where it has none.
    """

    name: str
    table: str
    file: str | None
    peer: str
    reach: Mapping[str, float]
    settings: tuple[str, ...] = ()
    clusters: int = 10
    features: tuple[str, ...] = ("x",)
    floor: Mapping[str, float] = field(default_factory=dict)


_MNIST = "MNIST, 70,000 × 784"
_MNIST_FLOOR = {"acc": 54.2, "nmi": 48.5, "ari": 36.6}

ROWS = (
    Row(
        "mnist-15+10",
        f"{_MNIST}, no augmentation, 15 + 10 passes",
        "mnist.parquet",
        peer="ClustPy DEC 85.6 / 82.5 / 78.5",
        reach={"acc": 85.6, "nmi": 82.5, "ari": 78.5},
        settings=("pretrain.passes=15", "refine.passes=10"),
        floor=_MNIST_FLOOR,
    ),
    Row(
        "mnist",
        f"{_MNIST}, no augmentation",
        "mnist.parquet",
        peer="DEC-keras 91.2 / 86.9 / 85.6",
        reach={"acc": 95.0, "nmi": 90.5, "ari": 90.5},
        floor=_MNIST_FLOOR,
    ),
    Row(
        "mnist-augmented",
        f"{_MNIST}, rows known to be images",
        "mnist.parquet",
        peer="ConvDEC-DA 98.5 / 96.0 / –",
        reach={"acc": 98.2, "nmi": 95.3, "ari": 96.1},
        settings=("source.image_shape=[28,28]",),
        floor=_MNIST_FLOOR,
    ),
    Row(
        "pendigits",
        "Pen digits, 10,992 × 16",
        "pendigits.parquet",
        peer="k-means 66.7 / 68.2 / 53.2",
        reach={"acc": 84.0, "nmi": 82.5, "ari": 73.0},
        floor={"acc": 66.7, "nmi": 68.2, "ari": 53.2},
    ),
    Row(
        "reuters",
        "Reuters-21578, ten largest topics, 7,522 × 2,000",
        "reuters21578_top10_tfidf2000.parquet",
        peer="k-means 49.6 / 55.4 / 33.9",
        reach={"acc": 57.0, "nmi": 65.0, "ari": 46.0},
        floor={"acc": 49.6, "nmi": 55.4, "ari": 33.9},
    ),
    Row(
        "satimage",
        "Statlog satellite image, 6,435 × 36",
        "satimage.parquet",
        peer="k-means 67.9 / 61.3 / 52.9",
        reach={"acc": 78.0, "nmi": 68.0, "ari": 63.0},
        clusters=6,
        features=("b*",),
    ),
    Row(
        "drybean",
        "Dry beans, 13,611 × 16, classes of 522 to 3,546 rows",
        "drybean.parquet",
        peer="k-means 78.6 / 71.4 / 66.9",
        reach={"acc": 83.0, "nmi": 73.0, "ari": 67.0},
        clusters=7,
        features=("[A-Z]*", "roundness"),
    ),
    Row(
        "reuters-embeddings",
        "Reuters-21578, ten largest topics, embeddings of 256 float16",
        "reuters21578_top10_wordllama256.parquet",
        peer="k-means 41.4 / 52.7 / 30.3",
        reach={"acc": 48.0, "nmi": 57.0, "ari": 36.0},
    ),
    Row(
        "digits",
        "scikit-learn digits, 1,797 × 64",
        None,
        peer="ClustPy DEC 81.5 / 83.4 / 75.7",
        reach={"acc": 89.0, "nmi": 87.5, "ari": 82.0},
    ),
)


class Result(BaseModel):
    """One finished run, as the results file keeps it; nothing in it names a host or a path.

    Attributes:
        row: Name of the row.
        seed: The config's seed.
        digest: Digest of the settings that decide the result; see ``digest_of``.
        settings: Those beyond the default config.
        acc: Accuracy under the best matching, 0 to 1.
        nmi: Normalized mutual information, 0 to 1.
        ari: Adjusted Rand index, at most 1.
        passes: Passes of pretraining.
        updates: Updates of the target distribution that refinement made.
        seconds: The whole command, Ray's start included.
        stage_seconds: By stage.
        candidates: Scores of the partitions that the run compared, and the separation by which it
            ranks them without labels.
        winner: The one that it prefers.
        machine: Description of the machine.
        packages: Versions.
        date: Date of the run, UTC.
    """

    row: str
    seed: int
    digest: str
    settings: tuple[str, ...]
    acc: float
    nmi: float
    ari: float
    passes: int
    updates: int
    seconds: float
    stage_seconds: dict[str, float]
    candidates: dict[str, dict[str, float]] = {}
    winner: str | None = None
    machine: str
    packages: dict[str, str]
    date: str


class RunFailed(Exception):
    """A run that left no scores."""


class Results:
    """The results file and the table beside it, both rewritten whenever a run has finished."""

    def __init__(self, folder: Path, digests: Mapping[str, str]) -> None:
        self._file = folder / "quality.json"
        self._table = folder / "QUALITY.md"
        self._digests = digests

    def all(self) -> list[Result]:
        """Everything in the file, stale results included."""
        if not self._file.exists():
            return []
        return [Result.model_validate(entry) for entry in json.loads(self._file.read_text("utf-8"))]

    def current(self) -> list[Result]:
        """Those whose row has the same settings today."""
        return [result for result in self.all() if self._digests.get(result.row) == result.digest]

    def add(self, new: Result) -> None:
        """Take a result in; it replaces its predecessor and what is stale in its row."""
        order = [row.name for row in ROWS]
        kept = [
            old
            for old in self.all()  # read again: another process may have added to it
            if old.row != new.row or (old.seed != new.seed and old.digest == new.digest)
        ]
        kept = sorted([*kept, new], key=lambda result: (order.index(result.row), result.seed))
        entries = [result.model_dump(mode="json") for result in kept]
        _replace(self._file, json.dumps(entries, indent=1) + "\n")
        self.write_table()

    def write_table(self) -> None:
        """Show what is current."""
        _replace(self._table, render(self.current()))


def _replace(path: Path, text: str) -> None:
    """Write whole or not at all: hours of results must not be lost to a Ctrl-C."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def write_config(row: Row, data: Path | None, work: Path) -> Path:
    """Write a row's config file: the same for all rows, apart from where the table is."""
    if row.file is None:
        place = {"path": str(work / "digits"), "example": "digits"}
    else:
        place = {"path": str((data or Path("no-data")) / row.file)}
    base = {
        "source": {**place, "features": list(row.features), "keys": ["id"]},
        "output": str(work / "output"),
        "clusters": row.clusters,
        "evaluate": {"label": "label"},
        "execution": {"workers": 1},
    }
    path = work / f"{row.name}.yaml"
    path.write_text(yaml.safe_dump(base, sort_keys=False), encoding="utf-8")
    return path


# Sections that change no score; the size of slices, of `execution`, decides what a pass sees.
_WITHOUT_EFFECT = {"seed", "output", "lake", "execution", "retention", "storage", "prices", "track"}
_WITHOUT_EFFECT |= {"schedule", "matching", "gate", "assign", "explain"}


def digest_of(config: Path, settings: Sequence[str]) -> str:
    """Identifies the settings that decide the result, all defaults filled in.

    A setting that is null is off and counts as absent: a new one that is off by default makes no
    old result stale. Neither do those for bad shards and lake tables, of which there are none here.

    Raises:
        ConfigError: There is no such setting.
    """
    loaded = load_config(str(config), settings)
    resolved = loaded.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    resolved["target_slice_mib"] = loaded.execution.target_slice_mib
    del resolved["source"]["path"]
    for name in ("on_bad_shard", "max_bad_share", "format", "table", "version", "where"):
        resolved["source"].pop(name, None)
    return fingerprint_of(_without_nulls(resolved))[:16]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return value


def measure(row: Row, seed: int, config: Path, settings: Sequence[str], digest: str) -> Result:
    """Run a row through ``dec run`` and read its ``metrics.json``.

    What the run wrote is deleted, unless it failed: then its log is there to be read.

    Raises:
        RunFailed: It ended otherwise than well, or without scores.
    """
    output = tempfile.mkdtemp(prefix=f"{row.name}-", dir=config.parent)
    words = ["run", str(config), "--run-id", "quality"]
    for setting in (*settings, f"seed={seed}", f"output={output}"):
        words += ["--set", setting]
    began = time.monotonic()
    try:
        _dec(words)
    except KeyboardInterrupt:
        shutil.rmtree(output)
        raise
    seconds = time.monotonic() - began
    path = Path(output, "runs/quality/metrics.json")
    try:
        metrics = json.loads(path.read_text("utf-8"))
        result = _result_of(metrics, row, seed, settings, digest, seconds)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunFailed(f"{path} cannot be read: {error!r}") from error
    shutil.rmtree(output)
    return result


def _result_of(
    metrics: Mapping[str, Any],
    row: Row,
    seed: int,
    settings: Sequence[str],
    digest: str,
    seconds: float,
) -> Result:
    candidates, winner = comparison_of(metrics)
    return Result(
        row=row.name,
        seed=seed,
        digest=digest,
        settings=tuple(settings),
        **{metric: metrics["scores"][metric] for metric in METRICS},
        passes=metrics["pretrain_passes"],
        updates=metrics["refine_updates"],
        seconds=round(seconds, 1),
        stage_seconds={stage["stage"]: round(stage["seconds"], 2) for stage in metrics["stages"]},
        candidates=candidates,
        winner=winner,
        machine=machine(),
        packages={name: version(name) for name in PACKAGES},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _dec(words: Sequence[str]) -> None:
    """Call this checkout's ``dec``; when we are stopped, it stops in its orderly way."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C reaches it once, through us
    )
    try:
        _, errors = process.communicate()
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    if process.returncode:
        raise RunFailed(f"exit code {process.returncode}: {errors.strip() or 'no message'}")


def comparison_of(metrics: Mapping[str, Any]) -> tuple[dict[str, dict[str, float]], str | None]:
    """Scores of the partitions that a run compared, and the one that its label-free rule prefers.

    Lenient where the report lacks something: hours of training must not be lost over this.
    """
    found = metrics.get("comparison") or metrics
    candidates = {
        candidate["kind"]: {
            **{metric: candidate["scores"][metric] for metric in METRICS},
            "separation": candidate["separation"],
        }
        for candidate in found.get("candidates") or ()
        if "kind" in candidate and candidate.get("scores")
    }
    return candidates, found.get("winner")


def machine() -> str:
    """The machine in words that tell how fast it is, and not which one it is."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{cores} core{'s' if cores != 1 else ''}, {memory:.0f} GiB memory, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def render(results: Iterable[Result]) -> str:
    """The table as Markdown."""
    results = list(results)
    by_row = {row.name: [r for r in results if r.row == row.name] for row in ROWS}
    lines = [
        "# Clustering quality",
        "",
        "Written by `python -m tests.benchmarks.quality`; do not edit. Every run is a `dec run` of",
        "the default config with as many clusters as classes, one worker and the settings named",
        "here; labels are used for scoring only. Scores of what was shipped, in %: mean over the",
        "seeds (minimum – maximum). A target is reached when the mean reaches it. Passes: those of",
        "pretraining, and updates of refinement until it stopped. Seconds: mean duration of the",
        "whole command.",
        "",
        "| row | seeds | ACC | NMI | ARI | peer: ACC / NMI / ARI | target | reached "
        "| passes | seconds | settings |",
        "|---|--:|---|---|---|---|---|---|--:|--:|---|",
        *(_line(row, by_row[row.name]) for row in ROWS),
        "",
        *(f"- {row.name}: {row.table}." for row in ROWS),
    ]
    if any(result.candidates for result in results):
        lines += [
            "",
            "## DEC and its baselines in the same runs",
            "",
            "Scores on the reference sample: means over the seeds in %. Separation needs no",
            "labels; preferred: number of runs whose own comparison ranks the candidate first.",
            "",
            "| row | candidate | seeds | ACC | NMI | ARI | separation | preferred |",
            "|---|---|--:|--:|--:|--:|--:|--:|",
            *(line for row in ROWS for line in _candidate_lines(row, by_row[row.name])),
        ]
        lines += _against_kmeans(by_row)
    lines += ["", "## Machines and versions", ""]
    lines += sorted({_circumstances(result) for result in results}) or ["Nothing is measured yet."]
    return "\n".join(lines) + "\n"


def _line(row: Row, results: Sequence[Result]) -> str:
    cells = [row.name, str(len(results))]
    cells += [_spread([100 * getattr(r, m) for r in results]) for m in METRICS]
    target = ", ".join(f"{m.upper()} ≥ {least}" for m, least in row.reach.items())
    cells += [row.peer, target, _verdict(row, results)]
    updates = sorted({result.updates for result in results})
    between = "–".join(map(str, updates if len(updates) < 2 else (updates[0], updates[-1])))
    cells += [f"{results[0].passes} + {between}" if results else "–"]
    cells += [f"{fmean(r.seconds for r in results):,.0f}" if results else "–"]
    settings = results[0].settings if results else row.settings
    cells += ["<br>".join(f"`{setting}`" for setting in settings) or "none"]
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f} ({min(values):.1f} – {max(values):.1f})" if values else "–"


def _verdict(row: Row, results: Sequence[Result]) -> str:
    if not results:
        return "not run"
    mean = {m: 100 * fmean(getattr(result, m) for result in results) for m in METRICS}

    gaps = {m: value - mean[m] for m, value in row.reach.items()}
    missing = ", ".join(f"{m.upper()} {gap:.2f}" for m, gap in gaps.items() if gap > 0)
    return f"no, short by {missing}" if missing else "yes"


def _candidate_lines(row: Row, results: Sequence[Result]) -> list[str]:
    lines = []
    for name in ("kmeans", "autoencoder", "merged", "dec"):
        scores = [result.candidates[name] for result in results if name in result.candidates]
        if not scores:
            continue
        means = (f"{100 * fmean(score[m] for score in scores):.1f}" for m in METRICS)
        by_rule = [r for r in results if "separation" in r.candidates.get(name, {})]
        judged = [result.candidates[name]["separation"] for result in by_rule]
        separation = f"{fmean(judged):.2f}" if judged else "–"
        wins = sum(result.winner == name for result in by_rule)
        preferred = f"{wins} of {len(judged)}" if judged else "–"
        cells = (row.name, name, str(len(scores)), *means, separation, preferred)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _against_kmeans(by_row: Mapping[str, Sequence[Result]]) -> list[str]:
    """Differences between DEC and plain k-means by row, in points, and the seeds that win."""
    lines = [
        "",
        "## The default config against plain k-means",
        "",
        "Scores of the published clusters minus those of k-means with the same number of clusters,",
        "in points: mean (minimum – maximum), and the number of seeds that win. Rows without",
        "settings are the unchanged default config. `same run`: k-means on the same scaled",
        "features in the same run, best of 20 starts; `unscaled`: k-means on the unscaled table,",
        "best of several starts.",
        "",
        "| row | settings | seeds | k-means | ACC | NMI | ARI | seeds that win: ACC, NMI, ARI |",
        "|---|---|--:|---|---|---|---|---|",
    ]
    for row in ROWS:
        compared = [result for result in by_row[row.name] if "kmeans" in result.candidates]
        if not compared:
            continue
        same = [{m: 100 * r.candidates["kmeans"][m] for m in METRICS} for r in compared]
        lines.append(_gain_line(row, "same run", compared, same))
        if row.floor:
            lines.append(_gain_line(row, "unscaled", compared, [row.floor] * len(compared)))
    return lines


def _gain_line(
    row: Row, name: str, results: Sequence[Result], against: Sequence[Mapping[str, float]]
) -> str:
    gains = {
        m: [100 * getattr(r, m) - other[m] for r, other in zip(results, against, strict=True)]
        for m in METRICS
    }
    wins = ", ".join(str(sum(gain > 0 for gain in gains[m])) for m in METRICS)
    spreads = (
        f"{fmean(gain):+.1f} ({min(gain):+.1f} – {max(gain):+.1f})" for gain in gains.values()
    )
    settings = "yes" if row.settings else "none"
    cells = (row.name, settings, str(len(results)), name, *spreads, f"{wins} of {len(results)}")
    return f"| {' | '.join(cells)} |"


def _circumstances(result: Result) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in result.packages.items())
    return f"- {result.machine}; {packages}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing of the table.

    Returns:
        1 when a run failed; the others are run all the same.
    """
    options = _options(arguments)
    extra = (*(SHORT if options.short else ()), *options.settings)
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    settings = {row.name: (*row.settings, *extra) for row in ROWS}
    configs = {row.name: write_config(row, options.data, work) for row in ROWS}
    digests, failures = {}, []
    for name, config in configs.items():
        try:
            digests[name] = digest_of(config, settings[name])
        except ConfigError as error:
            if name in options.rows:
                failures.append(f"{name}: {error}")
    # What other settings gave must never pass for the table of the repository.
    folder = work if extra else HERE
    results = Results(folder, digests)
    results.write_table()
    if options.summary:
        print(f"results: {folder / 'QUALITY.md'}")
        return 0
    for row in ROWS:
        if row.name not in options.rows or row.name not in digests:
            continue
        if row.file and not (options.data and (options.data / row.file).exists()):
            print(f"{row.name}: skipped, {row.file} is not in the data folder")
            continue
        done = {result.seed for result in results.current() if result.row == row.name}
        for seed in range(options.seeds):
            if seed in done and not options.again:
                print(f"{row.name} seed {seed}: already measured")
                continue
            print(f"{row.name} seed {seed}: running", flush=True)
            try:
                result = measure(
                    row, seed, configs[row.name], settings[row.name], digests[row.name]
                )
            except RunFailed as error:
                failures.append(f"{row.name} seed {seed}: {error}")
                print(f"{row.name} seed {seed}: failed", flush=True)
                continue
            results.add(result)
            scores = " / ".join(f"{100 * getattr(result, m):.1f}" for m in METRICS)
            print(f"{row.name} seed {seed}: {scores} in {result.seconds:.0f} s", flush=True)
    print(f"results: {folder / 'quality.json'}, {folder / 'QUALITY.md'}")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    beside = ROOT.parent / "shared/data"
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality")
    parser.add_argument(
        "--data",
        type=lambda path: Path(path).resolve(),
        default=beside if beside.is_dir() else None,
        help="folder of the Parquet files; rows whose file is not there are skipped",
    )
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="runs a row: seeds 0, 1, …")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "dec-quality",
        help="configs and outputs while they are needed; also the results of --set and --short",
    )
    parser.add_argument(
        "--summary", action="store_true", help="only write the tables anew from what is measured"
    )
    parser.add_argument("--again", action="store_true", help="repeat what is already measured")
    parser.add_argument("--short", action="store_true", help="the digits, one seed, few passes")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="another setting for all rows; the results go to --work",
    )
    options = parser.parse_args(arguments)
    if options.short:
        options.rows, options.seeds = ["digits"], 1
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
