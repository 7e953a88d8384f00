"""Figures of the experiments, drawn from stored records only; each module has `draw(history) -> Figure`."""
