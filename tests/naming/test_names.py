"""Names from traits: short, telling, and never twice."""

from __future__ import annotations

import pytest

from pipeline.naming import MOST_NAME, Trait, accepted, names_by_features


def number(feature: str, difference: float) -> Trait:
    return Trait(feature, None, difference, 1.0)


def test_names_say_what_is_peculiar() -> None:
    names = names_by_features(
        {
            3: [number("amount", 2.1), number("age", -0.9), number("noise", 0.1)],
            1: [Trait("colour", "red", 1.5, 0.8), number("amount", -0.6)],
            7: [Trait("colour", "red", 0.8, 0.2), Trait("paid", "true", -2.0, 0.0)],
            9: [Trait("paid", "true", -0.7, 0.1), number("x[17]", 0.5)],
            4: [number("amount", 0.2)],
            5: [],
        }
    )
    assert names == {
        1: "mostly colour=red, low amount",
        3: "high amount, low age",
        4: "average",
        5: "unknown",
        7: "more colour=red, no paid=true",
        9: "few paid=true, high x[17]",
    }


def test_clusters_that_share_the_strongest_get_longer_names() -> None:
    shared = [number("a", 3), number("b", 2)]
    names = names_by_features({0: [*shared, number("c", 1)], 1: [*shared, number("c", -1)]})
    assert names == {0: "high a, high b, high c", 1: "high a, high b, low c"}


def test_clusters_that_are_the_same_get_their_id() -> None:
    same = [number("a", 3)]
    names = names_by_features({4: same, 6: same, 8: same}, taken=["high a (6)", "high a"])
    assert names == {4: "high a (4)", 6: "high a (6) (6)", 8: "high a (8)"}


def test_ten_thousand_names() -> None:
    traits = {
        i: [number(f"f{i % 7}", 3), number(f"g{i % 11}", -2), number(f"h{i % 13}", 1)]
        for i in range(10_000)
    }
    names = names_by_features(traits)
    assert len(set(names.values())) == 10_000
    assert names == names_by_features(dict(reversed(traits.items())))


def test_columns_and_categories_of_any_kind_make_printable_names() -> None:
    wild = [Trait("<script>\x1b[31m\n" * 20, "a\u202eb" * 50, 3, 0.9), number("x" * 500, 2)]
    (name,) = names_by_features({0: wild}).values()
    assert accepted(name) == name
    assert len(name) <= MOST_NAME
    assert name.startswith("mostly <script>")  # whoever shows it escapes it


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Big  spenders\n", "Big spenders"),
        ("x" * 100, "x" * 100),
        ("x" * 101, None),
        (" ", None),
        ("red \x1b[31m", None),
        ("a\u202eb", None),
        (None, None),
        (["a"], None),
    ],
)
def test_what_is_a_name(name: object, expected: str | None) -> None:
    assert accepted(name) == expected
