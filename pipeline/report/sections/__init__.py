"""Sections of the report: what each shows, as values for the template and the charts."""
