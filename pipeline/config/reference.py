"""``python -m pipeline.config.reference > configs/README.md``: the settings, as a document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from pipeline.config.sections import Affects, Section, sections_in, settings_in
from pipeline.config.settings import Config

_CHANGES = {
    Affects.MODEL: "what a model learns. A run gets another id, and the next night refits",
    Affects.RESULT: "which rows are read, and how they are labelled and scored. A run gets "
    "another id",
    Affects.PROFILES: "what is written about the rows of a cluster while they are labelled. A "
    "published run keeps its own; the next run or night uses the new value",
    Affects.DESCRIPTIONS: "rules and names of clusters, which are made after publishing",
    Affects.NIGHTS: "what `dec nightly` decides, from the next night on",
    Affects.PUBLICATION: "the format of the published table. The same result is published again",
    Affects.EXECUTION: "where and with which hardware the same result is computed, for how long it "
    "is kept, and what that costs",
}
_INTRODUCTION = """\
# Settings

A config is one YAML file that lists only what differs from the defaults; `source.path` (or
`source.table`), `source.features`, `output` and `clusters` have none. `--set refine.alpha=2`
overrides a setting, `dec plan CONFIG` prints the resolved config, and every run keeps its own in
`config.yaml`. `quickstart.yaml`, `mnist.yaml` and `nightly.yaml` in this folder are examples.

This page is generated: `python -m pipeline.config.reference > configs/README.md`.

What a setting affects decides what happens when you change it:

"""


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_TYPES = {"string": "text", "object": "mapping", "boolean": "true or false"}


def reference() -> str:
    """All settings in Markdown, a table for each section."""
    affects = [f"- **{affects.value}**: {text}." for affects, text in _CHANGES.items()]
    return _INTRODUCTION + "\n".join([*affects, *_tables(Config, "")]) + "\n"


def _tables(section: type[Section], path: str) -> Iterator[str]:
    """The settings of a section itself, then its sections."""
    properties = section.model_json_schema()["properties"]
    rows = []
    for name, field, affects in ((s.path, s.field, s.affects) for s in settings_in(section)):
        if name in properties:  # of this section, not of one in it
            default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
            description = " ".join((field.description or "").split())
            cells = (f"`{name}`", _type(properties[name]), default, affects.value, description)
            rows.append(f"| {' | '.join(cells)} |")
    about = (section.__doc__ or "").partition("\n")[0]
    yield f"\n## `{path}`\n\n{about}\n" if path else "\n## Top level\n"
    if rows:
        yield "| Setting | Type | Default | Affects | Description |\n|---|---|---|---|---|"
        yield from rows
    for name, field in section.model_fields.items():
        for inner in sections_in(field.annotation):
            yield from _tables(inner, f"{path}.{name}" if path else name)


def _type(of: dict[str, Any]) -> str:
    """A type of JSON Schema in words."""
    if kinds := of.get("anyOf") or of.get("oneOf"):
        return " or ".join(_type(kind) for kind in kinds)
    if values := of.get("enum") or ([of["const"]] if "const" in of else None):
        return ", ".join(f"`{value}`" for value in values)
    if of.get("type") == "array":
        return f"list of {_type(of['items'])}"
    bounds = [f"{sign} {of[name]}" for name, sign in _BOUNDS.items() if name in of]
    kind = of.get("type", "object")
    return " ".join([_TYPES.get(kind, kind), ", ".join(bounds)]).strip()


if __name__ == "__main__":
    sys.stdout.write(reference())
