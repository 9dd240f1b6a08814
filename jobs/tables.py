"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Collection

from rich import box
from rich.table import Table


def table(*columns: str, numbers: Collection[str] = (), title: str | None = None) -> Table:
    """A table without a frame; columns of ``numbers`` are aligned right and never wrapped."""
    made = Table(box=box.SIMPLE, title=title, title_justify="left")
    for name in columns:
        number = name in numbers
        made.add_column(name, justify="right" if number else "left", no_wrap=number)
    return made
