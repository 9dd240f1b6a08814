"""The report of a run: one HTML file that needs nothing else, made of what the run has left."""
