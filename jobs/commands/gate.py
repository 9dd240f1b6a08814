"""``dec gate``, ``dec promote`` and ``dec rollback``: a verdict, overruling it, going back."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from rich.console import Console

from jobs.arguments import checked_run_id
from jobs.console import gate_table
from jobs.session import configured, keep_to_this_machine, login, own_screen, start_ray, stop_ray
from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.nights import Champion, Identity, NightDecision
from pipeline.config import Config
from pipeline.engine import Context
from pipeline.errors import ConfigError
from pipeline.registry.champions import Judged, judged, promote_challenger, roll_back
from pipeline.registry.entries import Entry
from pipeline.storage import Store


def explain(config_path: str, overrides: Sequence[str], run_id: str, *, as_json: bool) -> None:
    """Show each rule of the gate, its value, and the verdict."""
    lake = Store(configured(config_path, overrides).output)
    checked_run_id(run_id)
    found = judged(lake, run_id)
    if as_json:
        content = {"run_id": run_id, "serves": found.serves, "sentence": _sentence(found)}
        print(json.dumps(content | found.verdict.model_dump(mode="json"), indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)
    if found.verdict.rules:
        console.print(gate_table(found.verdict))
    console.print(_sentence(found), markup=False)


def promote(
    config_path: str, overrides: Sequence[str], run_id: str, why: str, *, as_json: bool
) -> None:
    """Make a run's challenger the champion."""
    if not why.strip():
        raise ConfigError("--why is empty; say in a few words why this model should serve")
    config = configured(config_path, overrides)
    checked_run_id(run_id)
    lake, rematch = Store(config.output), functools.partial(_matched_again, config)
    _show(promote_challenger(lake, run_id, who=login(), why=why, rematch=rematch), as_json)


def rollback(
    config_path: str, overrides: Sequence[str], why: str | None, *, again: bool, as_json: bool
) -> None:
    """Restore the previous champion."""
    lake = Store(configured(config_path, overrides).output)
    _show(roll_back(lake, who=login(), why=why or "no reason given", again=again), as_json)


def _matched_again(
    config: Config, decision: NightDecision, manifest: Manifest, challenger: Champion
) -> Identity:
    """Run the stage identify again with today's champion, on Ray; no marker changes."""
    keep_to_this_machine()  # before anything imports Ray
    from pipeline.registry.models import settings_of
    from pipeline.stages.fit.identify import identify

    lake = Store(config.output)
    context = Context(challenger.run_id, challenger.ds, lake)
    # The network is as it was fitted; thresholds and hardware are those of today.
    today = {name: getattr(config, name) for name in ("execution", "matching", "assign")}
    settings = settings_of(lake, challenger.model).model_copy(update=today)
    sample = challenger.reference.sample
    with own_screen() as screen:
        screen.say("note: the champion has changed since that run; its clusters are matched again")
        try:
            start_ray(config, on_wait=lambda line: screen.say(f"note: {line}"))
            return identify.run(settings, context, decision, manifest, sample, challenger.model)
        finally:
            stop_ray()


def _show(entry: Entry, as_json: bool) -> None:
    if as_json:
        print(json.dumps(entry.model_dump(mode="json"), indent=2))
        return
    champion = entry.champion
    print(
        f"{champion.model.model_id} of run {champion.run_id} serves from the next night on: entry "
        f"{entry.number} of the registry, {entry.action} by {entry.who} at {entry.at}: {entry.why}"
    )


def _sentence(found: Judged) -> str:
    verdict, run = found.verdict, f"run {found.run_id}"
    serves = "; it serves" if found.serves else ""
    if verdict.passed:
        return f"{run} passed the gate: every rule holds{serves}"
    if verdict.reason:
        return f"{run} was refused, because no model could be fitted: {verdict.reason}"
    broken = "; ".join(
        f"{rule.name} is {'not a number' if rule.value is None else f'{rule.value:.4g}'}, over "
        f"{rule.limit:.4g} ({rule.detail})"
        for rule in verdict.rules
        if not rule.passed
    )
    if found.serves:
        return f"{run} was refused: {broken}; it serves nevertheless"
    return f"{run} was refused: {broken}; dec promote overrules that"
