"""Commands of ``dec``, one module for each group."""
