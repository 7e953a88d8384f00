"""Parts of the deep-linear-head experiment: data, training, prediction, record and claims."""
