"""Labelling: from slices of the input to part files of assignments."""
