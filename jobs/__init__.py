"""Entry points: the ``dec`` command, and the modules that a Ray job runs. Thin on purpose."""
