"""Ray Data, set up as every use of it here needs it."""

from __future__ import annotations

import ray


def quiet_ray_data() -> ray.data.DataContext:
    """Settings of Ray Data in this process: no bars of its own, our errors as we raised them."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Otherwise it wraps them in an exception whose cause does not survive the way to the driver.
    context.raise_original_map_exception = True
    return context
