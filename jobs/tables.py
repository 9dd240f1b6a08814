"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Collection

from rich import box
from rich.table import Table


def table(*columns: str, numbers: Collection[str] = (), title: str | None = None) -> Table:
    """Make a table without a frame; columns of ``numbers`` are aligned right and never wrapped."""
    made = Table(box=box.SIMPLE, title=title, title_justify="left")
    for name in columns:
        number = name in numbers
        made.add_column(name, justify="right" if number else "left", no_wrap=number)
    return made


def facts_table() -> Table:
    """Make a table of two columns without a header: names in bold, and values."""
    made = Table(box=box.SIMPLE, show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    return made
