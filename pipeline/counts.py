"""Counts of what happens deep below the stages; whoever exports them says where they go."""

from __future__ import annotations

from collections.abc import Callable

# rows_read, bytes_read: by the one reader, Parquet bytes of the wanted columns. bytes_written: by
# the one store. retries: kind says what was tried again.
Receiver = Callable[[str, float, str], None]

_receiver: Receiver | None = None


def count(what: str, amount: float = 1, kind: str = "") -> None:
    """So much more of it has happened; nobody may be listening."""
    if _receiver is not None and amount > 0:
        _receiver(what, amount, kind)


def send_to(receiver: Receiver | None) -> None:
    """Who is told in this process from now on."""
    global _receiver
    _receiver = receiver
