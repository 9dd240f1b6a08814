"""Registry: models, champions and the permanent ids of clusters."""
