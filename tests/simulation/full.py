"""The fourteen nights in full: on pendigits and MNIST.

    python -m tests.simulation.full [pendigits] [mnist] [digits] [--work FOLDER]

Writes ``tests/simulation/NIGHTS.md``; ends with an error where a check does not hold.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where pytest finds dec_command
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))  # tests have one thread

from . import checks
from .living import Night, cost_table, live
from .nights import DIGITS, MNIST, PENDIGITS, Dataset

DATASETS = {dataset.name: dataset for dataset in (DIGITS, PENDIGITS, MNIST)}
NIGHTS = Path(__file__).with_name("NIGHTS.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the nights of each dataset, and write down what they did and cost."""
    import ray

    parser = argparse.ArgumentParser(prog="python -m tests.simulation.full")
    parser.add_argument("names", nargs="*", metavar="DATASET", default=["pendigits", "mnist"])
    parser.add_argument("--work", type=Path, help="keep tables and lakes in this folder")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - DATASETS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(DATASETS)}")
    lived: list[tuple[Dataset, list[Night], list[str]]] = []
    work = options.work or Path(tempfile.mkdtemp(prefix="dec-nights-"))
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        address = ray.get_runtime_context().gcs_address
        for name in options.names:
            folder = work / name
            folder.mkdir(parents=True)
            nights: list[Night] = []
            for night in live(DATASETS[name], folder, address):
                nights.append(night)
                print(cost_table([night]).splitlines()[-1], flush=True)
            failures = checks.failures(DATASETS[name].cast, nights, folder)
            for failure in failures:
                print(f"{name}: {failure}", file=sys.stderr)
            lived.append((DATASETS[name], nights, failures))
    finally:
        ray.shutdown()
    NIGHTS.write_text(render(lived), encoding="utf-8")
    print(f"{NIGHTS}; tables and lakes: {work}")
    return int(any(failures for _, _, failures in lived))


def render(lived: Sequence[tuple[Dataset, list[Night], list[str]]]) -> str:
    """NIGHTS.md."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    text = [
        "# Fourteen nights",
        "",
        "Written by `python -m tests.simulation.full`; do not edit. Labelled: rows that the",
        "champion labelled that night; carried: rows of unchanged shards, with the results of an",
        "earlier night. Passes: training passes over the training rows. Seconds: duration of the",
        f"whole command. {platform.machine()}, {os.cpu_count()} cores, {today}.",
    ]
    for dataset, nights, failures in lived:
        cast = dataset.cast
        text += [
            "",
            f"## {dataset.name}",
            "",
            f"{cast.clusters} clusters. Class {cast.vanishes} vanishes and {cast.appears} appears; "
            f"{cast.merge[0]} and {cast.merge[1]} merge, {cast.splits} splits. "
            + (f"**Fails: {'; '.join(failures)}**" if failures else "All checks hold."),
            "",
            cost_table(nights).rstrip(),
        ]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
