"""One module a stage: ``run(config, context, *inputs) -> artifact``. None imports another."""
