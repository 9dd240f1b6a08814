"""How often ``dec tune`` is right: its recommendation against the labels that it does not see.

    python -m tests.benchmarks.tune [--data FOLDER] [--tables digits …] [--seeds 2 3] [--trials 16]

Every table is tuned once a seed by the command itself, on a sample and with a small network: the
budget is part of the result. Labels score each trial and decide nothing. What is finished is kept
in ``tune.json`` and shown in ``TUNE.md``, so that a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel
from scipy.stats import spearmanr

from .quality import ROOT, machine

HERE = Path(__file__).parent
CLASSES = 10  # of every table here
CLOSE = 0.03  # NMI
CLUSTERS = "5:50"
# (rows of the sample, hidden layers, file)
TABLES: dict[str, tuple[int, list[int], str | None]] = {
    "digits": (1797, [128, 64], None),
    "pendigits": (3000, [128, 64], "pendigits.parquet"),
    "mnist": (3000, [256, 128], "mnist.parquet"),
    "reuters": (3000, [256, 128], "reuters21578_top10_tfidf2000.parquet"),
    # The same again, to see what more rows are worth.
    "mnist, more rows": (10_000, [256, 128], "mnist.parquet"),
}
BUDGET = {
    "pretrain": {"passes": 15, "min_updates": 400},
    "refine": {"passes": 10, "min_updates": 300},
    "centroids": {"restarts": 5, "iterations": 30},
}


class Tried(BaseModel):
    """A trial: what the rule saw of it, and what it did not."""

    clusters: int
    width: float
    embedding: int
    scaling: str
    refine_passes: int
    stability: float
    modularity: float
    silhouette: float
    score: float | None
    nmi: float


class Result(BaseModel):
    """One tuning."""

    table: str
    seed: int
    rows: int
    trials: list[Tried]
    failed: int
    recommended: int
    error: float
    seconds: float
    machine: str
    budget: dict[str, Any]

    @property
    def chosen(self) -> Tried:
        return self.trials[self.recommended]

    @property
    def best(self) -> float:
        return max(trial.nmi for trial in self.trials)

    @property
    def gap(self) -> float:
        return self.best - self.chosen.nmi


def tuned(table: str, seed: int, data: Path, trials: int) -> Result:
    """Run ``dec tune`` on a table, and read what it left."""
    rows, hidden, file = TABLES[table]
    work = Path(tempfile.mkdtemp(prefix="tune-"))
    place = {"path": str(data / file)} if file else {"path": str(work / "in"), "example": "digits"}
    config = {
        "source": {**place, "features": ["x"], "keys": ["id"]},
        "output": str(work / "lake"),
        "clusters": 25,  # the first trial is the config as it is, and 10 would be a hint
        "evaluate": {"label": "label"},
        "model": {"hidden": hidden},
        **BUDGET,
        "execution": {"workers": 1},
        "seed": seed,
    }
    path = work / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ["tune", str(path), "--run-id", "t", "--clusters", CLUSTERS, "--rows", str(rows)]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words, "--trials", str(trials), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{table}, seed {seed}: exit code {done.returncode}: {done.stderr}")
    found = json.loads(done.stdout)
    entries = pq.read_table(work / "lake/tuning/t/trials.parquet").to_pylist()
    sound = [entry for entry in entries if entry["failure"] is None]
    shutil.rmtree(work)
    return Result(
        table=table,
        seed=seed,
        rows=found["rows"],
        trials=[Tried.model_validate(entry) for entry in sound],
        failed=len(entries) - len(sound),
        recommended=next(i for i, entry in enumerate(sound) if entry["recommended"]),
        error=found["standard_error"],
        seconds=round(time.monotonic() - began, 1),
        machine=machine(),
        budget={"trials": trials, "hidden": hidden, **BUDGET},
    )


# Other rules, on the same trials: what the label-free choice would have been by one measure alone.
RULES: dict[str, Callable[[Tried], float]] = {
    "score, the highest": lambda t: t.score if t.score is not None else -1.0,
    "modularity alone": lambda t: t.modularity,
    "silhouette alone": lambda t: t.silhouette,
    "stability alone": lambda t: t.stability,
}


def by_rule(results: Sequence[Result], rule: str) -> list[tuple[Tried, float]]:
    """The choice of a rule in each tuning, and how far below the best trial its NMI is."""
    if rule == "recommended":
        return [(result.chosen, result.gap) for result in results]
    chosen = []
    for result in results:
        allowed = [trial for trial in result.trials if trial.score is not None]
        choice = max(allowed, key=RULES[rule])
        chosen.append((choice, result.best - choice.nmi))
    return chosen


def render(results: Sequence[Result]) -> str:
    """``TUNE.md``."""
    lines = [
        "# How often `dec tune` is right",
        "",
        "Written by `python -m tests.benchmarks.tune`; do not edit. Every line is one `dec tune",
        f"--clusters {CLUSTERS}` on a sample of a table with ten true classes; its config has 25",
        "clusters. NMI in %: mean of the two fits of a trial, each on half of the sample; labels",
        "are used for scoring only. *Right*: the NMI is at most 3 points below that of the best",
        "trial of the same tuning.",
        "",
        "| table | rows | seed | trials | K | NMI | best trial: K, NMI | short by | right "
        "| network | seconds |",
        "|---|--:|--:|--:|--:|--:|---|--:|---|---|--:|",
    ]
    for r in results:
        best = max(r.trials, key=lambda trial: trial.nmi)
        c = r.chosen
        lines.append(
            f"| {r.table} | {r.rows:,} | {r.seed} | {len(r.trials) + r.failed} | {c.clusters} "
            f"| {100 * c.nmi:.1f} | {best.clusters}, {100 * best.nmi:.1f} | {100 * r.gap:.1f} "
            f"| {'yes' if r.gap <= CLOSE else '**no**'} | ×{c.width:g}, {c.embedding} wide, "
            f"{c.scaling}, {c.refine_passes} passes | {r.seconds:,.0f} |"
        )
    hits = sum(r.gap <= CLOSE for r in results)
    if results:
        lines += [
            "",
            f"Right in {hits} of {len(results)} tunings; K between "
            f"{min(r.chosen.clusters for r in results)} and "
            f"{max(r.chosen.clusters for r in results)} where 10 is true, off by "
            f"{fmean(abs(r.chosen.clusters - CLASSES) for r in results):.1f} on average.",
            *_rules(results),
            *_tables(results),
            *_failures(results),
            *_budget(results),
        ]
    return "\n".join(lines) + "\n"


def _rules(results: Sequence[Result]) -> list[str]:
    lines = [
        "",
        "## Choices of other rules from the same trials",
        "",
        "| rule | right | NMI short of the best trial, mean (most) | K off by, mean | K |",
        "|---|--:|--:|--:|---|",
    ]
    for rule in ("recommended", *RULES):
        chosen = by_rule(results, rule)
        gaps, counts = [gap for _, gap in chosen], [t.clusters for t, _ in chosen]
        lines.append(
            f"| {rule} | {sum(gap <= CLOSE for gap in gaps)} of {len(gaps)} "
            f"| {100 * fmean(gaps):.1f} ({100 * max(gaps):.1f}) "
            f"| {fmean(abs(k - CLASSES) for k in counts):.1f} "
            f"| {', '.join(map(str, counts))} |"
        )
    return lines


def _tables(results: Sequence[Result]) -> list[str]:
    lines = [
        "",
        "## By table",
        "",
        "Order: Spearman's rank correlation of score and NMI over the trials of a tuning; 1 means",
        "that the score ranks the trials as the labels do.",
        "",
        "| table | right | K by seed | NMI short by, mean | order, by seed |",
        "|---|--:|---|--:|---|",
    ]
    for table in TABLES:
        its = [r for r in results if r.table == table]
        if not its:
            lines.append(f"| {table} | not measured | | | |")
            continue
        counts = ", ".join(str(r.chosen.clusters) for r in its)
        hits = f"{sum(r.gap <= CLOSE for r in its)} of {len(its)}"
        gap = f"{100 * fmean(r.gap for r in its):.1f}"
        orders = ", ".join(f"{order(r):.2f}" for r in its)
        lines.append(f"| {table} | {hits} | {counts} | {gap} | {orders} |")
    return lines


def order(result: Result) -> float:
    """Spearman's correlation of score and NMI over the trials that break no limit."""
    allowed = [trial for trial in result.trials if trial.score is not None]
    found = spearmanr([trial.score for trial in allowed], [trial.nmi for trial in allowed])
    return float(found.statistic)


def _failures(results: Sequence[Result]) -> list[str]:
    lines = ["", "## Where it fails", ""]
    for r in results:
        if r.gap > CLOSE:
            best, c = max(r.trials, key=lambda trial: trial.nmi), r.chosen
            lines.append(
                f"- {r.table}, seed {r.seed}: K = {c.clusters} with NMI {100 * c.nmi:.1f}, where "
                f"K = {best.clusters} has {100 * best.nmi:.1f}. Order {order(r):.2f}."
            )
    lines += [
        "- Where the fits are poor, the score says little: fits on 1,500 rows of MNIST have an NMI",
        "  near 50, which then rises with K whatever the clusters are, while modularity does not.",
        "- K is not exact on pen digits, nor half of the time on digits: the measures prefer 13,",
        "  and so does NMI, whose best trials have 13, too. The cause was not examined; digits",
        "  that are written in two ways would explain it.",
        "- The walk tries 5, 7, 10, 13, 19, 26 and 36 clusters, and 10 is among them by chance: a",
        "  recommended 10 means 9 to 11.",
    ]
    return lines


def _budget(results: Sequence[Result]) -> list[str]:
    some = results[0].budget
    lines = [
        "",
        "## Budget and how to read it",
        "",
        f"- {some['trials']} trials per tuning, half of them a walk over K with the config's own",
        "  network, half Optuna's; two at a time, one core each. Pretraining of 15 passes or 400",
        "  updates, refinement of at most 10 passes or 300 updates, 5 restarts of k-means; hidden",
        "  layers as below; every fit sees half of the sample. That is far less than a run of the",
        "  default config, and NMI is far below that of QUALITY.md; only the differences between",
        "  trials matter here.",
        *(f"- {table}: hidden layers {hidden}." for table, (_, hidden, _) in TABLES.items()),
        "- The weights of the rule (decision 0030) were chosen on digits and pendigits, seeds 0",
        "  and 1, K from 5 to 40 with one network. The seeds here are others, the rows of digits",
        "  are the same; MNIST and Reuters were not used.",
        "- Seconds: on a machine that did other work, too. Seeds 2 and 3 of the first four tables",
        "  were measured when the rule took the mean of squared errors for its standard",
        "  error, and not their median; in all of them the highest score was recommended.",
        "- NMI itself favours more clusters than there are classes: the best trial often has 12 to",
        "  20. For that reason alone, a recommendation of K = 10 can be a point or two lower.",
        *sorted({f"- {r.machine}" for r in results}),
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.tune")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--tables", nargs="+", choices=[*TABLES], default=[*TABLES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--trials", type=int, default=16)
    options = parser.parse_args()
    file = HERE / "tune.json"
    results: list[Result] = []
    if file.exists():
        results = [Result.model_validate(entry) for entry in json.loads(file.read_text("utf-8"))]
    known = {(r.table, r.seed) for r in results}
    for seed in options.seeds:  # all tables of a seed first: a cut leaves a whole picture
        for table in options.tables:
            source = TABLES[table][2]
            if source and not (options.data / source).exists():
                print(f"{table}: skipped, {source} is not in the data folder")
                continue
            if (table, seed) in known:
                continue
            result = tuned(table, seed, options.data, options.trials)
            results = sorted([*results, result], key=lambda r: ([*TABLES].index(r.table), r.seed))
            entries = [entry.model_dump(mode="json") for entry in results]
            file.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
            (HERE / "TUNE.md").write_text(render(results), encoding="utf-8")
            print(
                f"{table}, seed {seed}: K {result.chosen.clusters}, NMI {result.chosen.nmi:.3f}, "
                f"best {result.best:.3f} ({result.seconds:.0f} s)",
                flush=True,
            )
    (HERE / "TUNE.md").write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
