"""The quality benchmark: a short one through ``dec run``, and how it keeps and shows results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from . import quality
from .quality import ROWS, Result, Results, digest_of, main, render, write_config


def result_of(row: str = "digits", seed: int = 0, **changed: Any) -> Result:
    values = {
        "digest": "today",
        "settings": ("a.b=1",),
        "acc": 0.8,
        "nmi": 0.7,
        "ari": 0.6,
        "passes": 30,
        "updates": 12,
        "seconds": 10.0,
        "stage_seconds": {"pin": 1.0},
        "machine": "2 cores",
        "packages": {"torch": "2.6.0"},
        "date": "2026-01-31",
    }
    return Result.model_validate({"row": row, "seed": seed, **values, **changed})


def line_of(table: str, row: str) -> str:
    return next(line for line in table.splitlines() if line.startswith(f"| {row} |"))


@pytest.mark.slow
def test_the_short_benchmark_measures_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(quality, "HERE", tmp_path / "repository")  # must stay as it is
    assert main(["--short", "--work", str(tmp_path)]) == 0
    (entry,) = json.loads((tmp_path / "quality.json").read_text("utf-8"))
    assert (entry["row"], entry["seed"]) == ("digits", 0)
    assert (entry["passes"], entry["updates"]) == (2, 2)
    assert all(0 < entry[metric] <= 1 for metric in quality.METRICS)
    assert {"pretrain", "refine"} <= entry["stage_seconds"].keys()
    assert str(tmp_path) not in json.dumps(entry)
    assert f"{100 * entry['acc']:.1f} (" in line_of(
        (tmp_path / "QUALITY.md").read_text("utf-8"), "digits"
    )
    assert not list(tmp_path.glob("*/runs"))  # its output is gone
    assert not quality.HERE.exists()

    monkeypatch.setattr(quality, "measure", None)
    assert main(["--short", "--work", str(tmp_path)]) == 0
    assert "digits seed 0: already measured" in capsys.readouterr().out


def test_a_failed_run_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(row: quality.Row, seed: int, *rest: Any) -> Result:
        if seed == 0:
            raise quality.RunFailed("exit code 4: error: the loss is not finite")
        return result_of(row.name, seed, digest=rest[-1])

    monkeypatch.setattr(quality, "measure", measure)
    words = ["--rows", "digits", "mnist", "--seeds", "2", "--set", "refine.alpha=2"]
    assert main([*words, "--work", str(tmp_path), "--data", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "failed: digits seed 0: exit code 4" in told.err
    assert "mnist: skipped, mnist.parquet is not in the data folder" in told.out
    (entry,) = json.loads((tmp_path / "quality.json").read_text("utf-8"))
    assert entry["seed"] == 1


def test_a_real_failure_carries_what_dec_said(tmp_path: Path) -> None:
    digits = ROWS[-1]
    config = write_config(digits, None, tmp_path)
    with pytest.raises(quality.RunFailed, match=r"exit code 2: error: .*no_such"):
        quality.measure(digits, 0, config, ["refine.no_such=1"], "today")


def test_a_report_without_scores_is_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dec(words: list[str]) -> None:
        run = Path(words[-1].removeprefix("output="), "runs/quality")
        run.mkdir(parents=True)
        (run / "metrics.json").write_text('{"scores": null}')

    monkeypatch.setattr(quality, "_dec", dec)
    config = write_config(ROWS[-1], None, tmp_path)
    with pytest.raises(quality.RunFailed, match=r"metrics\.json cannot be read"):
        quality.measure(ROWS[-1], 0, config, [], "today")
    assert list(tmp_path.glob("digits-*/runs"))  # kept, to see why


def test_the_digest_changes_with_what_changes_the_result(tmp_path: Path) -> None:
    digits, mnist = ROWS[-1], ROWS[1]
    config = write_config(digits, None, tmp_path)
    digest = digest_of(config, [])
    for other in ("seed=3", "source.path=elsewhere", "execution.workers=2", "output=elsewhere"):
        assert digest_of(config, [other]) == digest
    assert digest_of(config, ["refine.alpha=2"]) != digest
    assert digest_of(write_config(mnist, tmp_path, tmp_path), []) != digest


def test_a_new_result_replaces_its_predecessor_and_what_is_stale(tmp_path: Path) -> None:
    results = Results(tmp_path, {"digits": "today", "mnist": "today"})
    for result in (
        result_of(seed=0, digest="yesterday"),
        result_of("mnist", digest="yesterday"),
        result_of(seed=1),
        result_of(seed=0),
        result_of(seed=1, acc=0.9),
    ):
        results.add(result)
    assert [(r.row, r.seed, r.digest) for r in results.all()] == [
        ("mnist", 0, "yesterday"),
        ("digits", 0, "today"),
        ("digits", 1, "today"),
    ]
    assert [r.acc for r in results.current()] == [0.8, 0.9]
    assert "not run" in line_of((tmp_path / "QUALITY.md").read_text("utf-8"), "mnist")


def test_the_table() -> None:
    table = render(
        [
            result_of(seed=0, acc=0.84),
            result_of(seed=1, acc=0.87, updates=15, seconds=2000.0),
            result_of("mnist", acc=0.94, nmi=0.91, ari=0.9046, settings=()),
            result_of("mnist-augmented", acc=0.983, nmi=0.954, ari=0.97),
        ]
    )
    digits = line_of(table, "digits")
    assert "| digits | 2 | 85.5 (84.0 – 87.0) | 70.0 (70.0 – 70.0) |" in digits
    assert "| 30 + 12–15 | 1,005 | `a.b=1` |" in digits
    assert "| no, short by ACC 1.00, ARI 0.04 | 30 + 12 | 10 | none |" in line_of(table, "mnist")
    assert "| yes |" in line_of(table, "mnist-augmented")
    assert "| reuters | 0 | – |" in table
    assert table.count("2 cores; torch 2.6.0") == 1
    widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_the_table_shows_what_the_runs_compared() -> None:
    kmeans = {"acc": 0.5, "nmi": 0.4, "ari": 0.3, "separation": 0.812}
    compared = result_of(candidates={"kmeans": kmeans}, winner="kmeans")
    assert "| digits | kmeans | 1 | 50.0 | 40.0 | 30.0 | 0.81 | 1 of 1 |" in render([compared])
    assert "candidate" not in render([result_of()])


def test_the_table_against_plain_kmeans() -> None:
    kmeans = {"acc": 0.5, "nmi": 0.75, "ari": 0.6, "separation": 0.8}
    table = render(
        [
            result_of("reuters", seed, settings=(), acc=acc, candidates={"kmeans": kmeans})
            for seed, acc in enumerate((0.45, 0.6))
        ]
    )
    same, as_it_comes = [line for line in table.splitlines() if "| reuters | none | 2 |" in line]
    assert "| same run | +2.5 (-5.0 – +10.0) | -5.0 (-5.0 – -5.0) |" in same
    assert same.endswith("| 1, 0, 0 of 2 |")
    assert "| unscaled | +2.9 (-4.6 – +10.4) |" in as_it_comes
    assert as_it_comes.endswith("| 1, 2, 2 of 2 |")


def test_the_summary_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "HERE", tmp_path)
    monkeypatch.setattr(quality, "measure", None)
    assert main(["--summary", "--work", str(tmp_path / "work")]) == 0
    assert "Nothing is measured yet." in (tmp_path / "QUALITY.md").read_text("utf-8")


def test_what_is_kept_was_measured_with_the_settings_of_today(tmp_path: Path) -> None:
    digests = {
        row.name: digest_of(write_config(row, tmp_path, tmp_path), row.settings) for row in ROWS
    }
    kept = Results(quality.HERE, digests)
    assert kept.current() == kept.all()


def test_a_comparison_is_read_where_there_is_one() -> None:
    scores = {"acc": 0.5, "nmi": 0.4, "ari": 0.3}
    candidates = [
        {"kind": "kmeans", "separation": 0.2, "scores": {**scores, "rows": 9}},
        {"kind": "dec", "separation": 0.3, "scores": None},
    ]
    report = {"candidates": candidates, "winner": "dec"}
    for metrics in (report, {"comparison": report}):
        assert quality.comparison_of(metrics) == ({"kmeans": {**scores, "separation": 0.2}}, "dec")
    assert quality.comparison_of({"comparison": None}) == ({}, None)


def test_an_empty_table_renders() -> None:
    assert "Nothing is measured yet." in render([])
