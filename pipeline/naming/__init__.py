"""Names for clusters from their distinctive features: by rules here, or by a language model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

MOST_NAME = 100  # characters: fits a line of `dec clusters`
# Traits in a name: two, or more only where clusters share them.
_FEWEST, _MOST = 2, 5
# In standard deviations of all rows; smaller differences are not named.
_NOTICEABLE = 0.5
_MOST_WORD = 30  # characters of a column's name or a category


@dataclass(frozen=True)
class Trait:
    """A feature in which a cluster differs from all other rows."""

    feature: str  # name of the user's column, with the index of a component
    value: str | None  # value of a category; None for other features
    difference: float  # difference of the means in standard deviations of all rows
    # Mean in the cluster, in the user's units, or share of a category's value; None: unknown.
    mean: float | None

    @property
    def words(self) -> str:
        """Text for a name."""
        feature, more = short(self.feature), self.difference > 0
        if self.value is None:
            return f"{'high' if more else 'low'} {feature}"
        what = f"{feature}={short(self.value)}"
        if more:
            return f"{'mostly' if (self.mean or 0) >= 0.5 else 'more'} {what}"
        return f"{'no' if not self.mean else 'few'} {what}"


def names_by_features(
    traits_of: Mapping[int, Sequence[Trait]], taken: Collection[str] = ()
) -> dict[int, str]:
    """A short, unique name for each cluster, such as "high amount, low age".

    Names have two traits, or more to distinguish the cluster from others; with the cluster's id
    where all traits are the same. ``traits_of`` has the traits of each cluster id, the strongest
    first; ``taken`` are names of other clusters.
    """
    found: dict[int, str] = {}
    used = set(taken)
    left = sorted(traits_of)
    for parts in range(_FEWEST, _MOST + 1):
        tried = {cluster: _joined(traits_of[cluster], parts) for cluster in left}
        times = Counter(tried.values())
        alone = {c: name for c, name in tried.items() if times[name] == 1 and name not in used}
        found |= alone
        used |= set(alone.values())
        left = [cluster for cluster in left if cluster not in alone]
    for cluster in left:
        name = f"{_joined(traits_of[cluster], _FEWEST)} ({cluster})"
        while name in used:  # another cluster has this very name
            name = f"{name} ({cluster})"
        found[cluster] = name
        used.add(name)
    return dict(sorted(found.items()))


def accepted(name: object) -> str | None:
    """A name from any source, cleaned for storage and display; None where it is not valid."""
    if not isinstance(name, str):
        return None
    name = " ".join(name.split())
    return name if name and name.isprintable() and len(name) <= MOST_NAME else None


def short(text: str) -> str:
    """A column or a category for a name: printable, in one line, cut to length."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return shown if len(shown) <= _MOST_WORD else f"{shown[: _MOST_WORD - 1]}…"


def _joined(traits: Sequence[Trait], parts: int) -> str:
    noticeable = [trait for trait in traits if abs(trait.difference) >= _NOTICEABLE]
    if not traits:
        return "unknown"
    if not noticeable:
        return "average"
    name = ""
    for trait in noticeable[:parts]:
        longer = f"{name}, {trait.words}" if name else trait.words
        if len(longer) > MOST_NAME - 20:  # leaves room for an id
            break
        name = longer
    return name
