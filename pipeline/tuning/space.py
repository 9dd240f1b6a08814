"""Search space of a tuning: settings of a trial, their allowed values, and the first trials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.artifacts.records import Record, fingerprint_of
from pipeline.config import Config
from pipeline.errors import ConfigError

# Range where --clusters is not given.
DEFAULT_CLUSTERS = (5, 50)
# Per cluster in a half of the sample: with fewer, k-means finds noise, and two fits never agree.
MIN_ROWS_PER_CLUSTER = 10
# Factors of the config's own values.
_WIDTHS = (0.25, 0.5, 1.0)
_EMBEDDINGS = (0.5, 1.0, 2.0)
_STRENGTHS = (0.0, 0.5, 1.0, 1.5)
_LENGTHS = (0.25, 0.5, 1.0)
_SCALINGS = ("standard", "minmax", "unit_norm")
_LEAST_WIDTH = 8


class TrialSettings(Record):
    """Settings that differ between trials; all others are the config's."""

    clusters: int
    embedding: int
    width: float  # factor of the widths in ``model.hidden``
    scaling: str
    # Factor of ``augment.shift``, ``rotation_degrees`` and ``zoom``; None where rows are not
    # images.
    augmentation: float | None
    refine_passes: int

    @property
    def key(self) -> str:
        """Name of the trial's file: the same settings are tried once."""
        return fingerprint_of(self.model_dump(mode="json"))[:16]

    def applied(self, config: Config) -> Config:
        """The config with these settings, without cross-field checks."""
        source = config.source.model_copy(update={"scaling": self.scaling})
        shape = {"embedding": self.embedding, "hidden": hidden_of(config, self.width)}
        changed: dict[str, Any] = {
            "clusters": self.clusters,
            "source": source,
            "model": config.model.model_copy(update=shape),
            "refine": config.refine.model_copy(update={"passes": self.refine_passes}),
        }
        if self.augmentation is not None:
            own = config.augment
            strength = {
                "shift": min(0.99, own.shift * self.augmentation),
                "rotation_degrees": min(180.0, own.rotation_degrees * self.augmentation),
                "zoom": min(1.0, own.zoom * self.augmentation),
            }
            changed["augment"] = own.model_copy(update=strength)
        return config.model_copy(update=changed)


def hidden_of(config: Config, width: float) -> list[int]:
    """Widths of the hidden layers; never narrower than 8, unless the config's are."""
    return [max(min(n, _LEAST_WIDTH), round(n * width)) for n in config.model.widths]


def cluster_range(text: str | None, rows: int) -> tuple[int, int]:
    """Minimum and maximum number of clusters to try on a sample of this many rows.

    The text is "5:50" or one number; None is the default, as far as the sample allows it.

    Raises:
        ConfigError: The text is not a range, or the sample is too small for it.
    """
    most = rows // (2 * MIN_ROWS_PER_CLUSTER)
    allowed = (
        f"{MIN_ROWS_PER_CLUSTER} rows per cluster in each half of the sample's {rows:,} rows allow "
        f"at most {most}"
    )
    if text is None:
        low, high = DEFAULT_CLUSTERS[0], min(DEFAULT_CLUSTERS[1], most)
        if high < low:
            raise ConfigError(f"--clusters {low}:{DEFAULT_CLUSTERS[1]}: {allowed}; give more rows")
        return low, high
    low, high = parsed_range(text)
    if high > most:
        raise ConfigError(
            f"--clusters {text}: {allowed}; lower it, or raise --rows where the table has more"
        )
    return low, high


def parsed_range(text: str) -> tuple[int, int]:
    """The two numbers of "5:50".

    Raises:
        ConfigError: The text is not a range.
    """
    match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 2 <= low <= high:
        raise ConfigError(f"--clusters {text!r} must be MIN:MAX with 2 <= MIN <= MAX, such as 5:50")
    return low, high


def choices(config: Config, *, typed: bool = False) -> dict[str, list[Any]]:
    """Values to try for each setting except the number of clusters.

    Settings with a single value are not searched. With ``typed`` columns, each has a scaling of its
    own.
    """
    embedding, passes = config.model.embedding, config.refine.passes
    # The widest of equals.
    by_hidden = {tuple(hidden_of(config, width)): width for width in _WIDTHS}
    found: dict[str, list[Any]] = {
        "embedding": sorted({max(2, round(embedding * share)) for share in _EMBEDDINGS}),
        "width": sorted(by_hidden.values()),
        "scaling": list(dict.fromkeys([config.source.scaling, *(() if typed else _SCALINGS)])),
        "refine_passes": sorted({max(min(1, passes), round(passes * n)) for n in _LENGTHS}),
    }
    if config.source.image_shape and not config.augment.function:
        found["augmentation"] = list(_STRENGTHS)
    return found


def start_of(config: Config, clusters: int) -> TrialSettings:
    """The config itself, with this number of clusters."""
    images = config.source.image_shape and not config.augment.function
    return TrialSettings(
        clusters=clusters,
        embedding=max(2, config.model.embedding),
        width=1.0,
        scaling=config.source.scaling,
        augmentation=1.0 if images else None,
        refine_passes=config.refine.passes,
    )


def first_trials(config: Config, low: int, high: int, trials: int) -> list[TrialSettings]:
    """The trials that do not depend on others: the config's own K, then K over the whole range.

    Half of all trials: with everything else as in the config they make the curve over K. In the
    other half the search may change everything.
    """
    wanted = max(1, -(-trials // 2))
    walk = {round(k) for k in np.geomspace(low, high, max(1, wanted))}
    own = config.clusters if isinstance(config.clusters, int) else 0
    # Neighbours last: a walk that is cut short has still covered the whole range.
    order = sorted(walk, key=lambda k: f"{sorted(walk).index(k):016b}"[::-1])
    counts = ([own] if low <= own <= high else []) + order
    return [start_of(config, k) for k in list(dict.fromkeys(counts))[:wanted]]


def from_parameters(parameters: Mapping[str, Any], config: Config) -> TrialSettings:
    """Settings from suggested parameters; the config's where none is suggested."""
    own = start_of(config, int(parameters["clusters"])).model_dump()
    return TrialSettings.model_validate(own | dict(parameters))
