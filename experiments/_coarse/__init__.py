"""Parts of the coarse-label experiment."""
