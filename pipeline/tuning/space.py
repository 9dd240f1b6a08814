"""What a tuning may try: settings of a trial, the space that they come from, the first of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.artifacts.records import Record, fingerprint_of
from pipeline.config import Config
from pipeline.errors import ConfigError

# Where nobody says how many clusters there may be.
DEFAULT_CLUSTERS = (5, 50)
# Of a half of the sample, a cluster: with fewer, k-means finds noise, and two fits never agree.
MIN_ROWS_PER_CLUSTER = 10
# Shares of the config's own: half and twice, as far as that makes another network.
_WIDTHS = (0.25, 0.5, 1.0)
_EMBEDDINGS = (0.5, 1.0, 2.0)
_STRENGTHS = (0.0, 0.5, 1.0, 1.5)
_LENGTHS = (0.25, 0.5, 1.0)
_SCALINGS = ("standard", "minmax", "unit_norm")
_LEAST_WIDTH = 8


class TrialSettings(Record):
    """What differs between trials; all else is the config's.

    Attributes:
        clusters: K.
        embedding: ``model.embedding``.
        width: Of the hidden layers, as a share of ``model.hidden``.
        scaling: ``source.scaling``.
        augmentation: Strength, as a share of ``augment.shift``, ``rotation_degrees`` and ``zoom``;
            None where the rows are no images.
        refine_passes: ``refine.passes``.
    """

    clusters: int
    embedding: int
    width: float
    scaling: str
    augmentation: float | None
    refine_passes: int

    @property
    def key(self) -> str:
        """The same for the same settings: a trial is done once."""
        return fingerprint_of(self.model_dump(mode="json"))[:16]

    def applied(self, config: Config) -> Config:
        """The config with these settings; what it holds together with others is not checked."""
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
    """Widths of the hidden layers; a layer is never narrower than 8, unless it was."""
    return [max(min(n, _LEAST_WIDTH), round(n * width)) for n in config.model.hidden]


def cluster_range(text: str | None, rows: int) -> tuple[int, int]:
    """The fewest and the most clusters to try.

    Args:
        text: "5:50" or one number; None for the default, as far as the sample allows it.
        rows: Of the sample.

    Raises:
        ConfigError: It is no range, or the sample is too small for it.
    """
    most = rows // (2 * MIN_ROWS_PER_CLUSTER)
    allowed = (
        f"{MIN_ROWS_PER_CLUSTER} rows a cluster in each half of the sample's {rows:,} rows allow "
        f"{most} at most"
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
        ConfigError: They are no range.
    """
    match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 2 <= low <= high:
        raise ConfigError(
            f"--clusters {text!r} must be FEWEST:MOST with 2 <= FEWEST <= MOST, such as 5:50"
        )
    return low, high


def choices(config: Config, *, typed: bool = False) -> dict[str, list[Any]]:
    """What may be tried of each setting but the number of clusters, ascending; the config's first.

    Settings with one value that is left are not searched.

    Args:
        config: Of the run.
        typed: Whether columns have types, each of which has a scaling of its own.
    """
    model, passes = config.model, config.refine.passes
    by_hidden = {
        tuple(hidden_of(config, width)): width for width in _WIDTHS
    }  # the widest of equals
    found: dict[str, list[Any]] = {
        "embedding": sorted({max(2, round(model.embedding * share)) for share in _EMBEDDINGS}),
        "width": sorted(by_hidden.values()),
        "scaling": list(dict.fromkeys([config.source.scaling, *(() if typed else _SCALINGS)])),
        "refine_passes": sorted({max(1, round(passes * share)) for share in _LENGTHS})
        if passes
        else [0],
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
    """The trials that do not depend on others: the config's own K, then a walk over the range.

    Half of all trials. With everything else as in the config they make the curve over K; the other
    half is the searcher's, who may change everything.
    """
    wanted = max(1, -(-trials // 2))
    walk = {round(k) for k in np.geomspace(low, high, max(1, wanted))}
    own = config.clusters if isinstance(config.clusters, int) else 0
    # Those next to one another last: a walk that is cut short has still seen the whole range.
    order = sorted(walk, key=lambda k: _bit_reversed(sorted(walk).index(k)))
    counts = ([own] if low <= own <= high else []) + order
    return [start_of(config, k) for k in list(dict.fromkeys(counts))[:wanted]]


def _bit_reversed(number: int) -> int:
    return int(f"{number:016b}"[::-1], 2)


def from_parameters(parameters: Mapping[str, Any], config: Config) -> TrialSettings:
    """What a searcher suggests, as settings; what it leaves out is the config's."""
    own = start_of(config, int(parameters["clusters"])).model_dump()
    return TrialSettings.model_validate(own | dict(parameters))
