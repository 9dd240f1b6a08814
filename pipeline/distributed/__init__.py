"""Ray as this pipeline uses it: resources, training on many workers, tasks over slices."""
