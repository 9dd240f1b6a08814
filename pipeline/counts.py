"""Counters for code far below the stages; an exporter receives them."""

from __future__ import annotations

from collections.abc import Callable

# Name, amount, kind. rows_read and bytes_read (Parquet bytes of the columns read), bytes_written,
# and retries, whose kind is what was retried.
Receiver = Callable[[str, float, str], None]

_receiver: Receiver | None = None


def count(what: str, amount: float = 1, kind: str = "") -> None:
    """Add to a counter; does nothing without a receiver."""
    if _receiver is not None and amount > 0:
        _receiver(what, amount, kind)


def send_to(receiver: Receiver | None) -> None:
    """Set the receiver of this process."""
    global _receiver
    _receiver = receiver
