"""Parts of experiments/coarse_merges.py."""
