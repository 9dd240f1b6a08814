"""Cost model of a run: the estimate before it, measured rates, and the comparison after it."""
