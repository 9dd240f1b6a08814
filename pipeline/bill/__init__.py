"""What a run takes, on paper: before it, from a measurement, and beside what it took."""
