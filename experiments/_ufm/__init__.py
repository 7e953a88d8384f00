"""Unconstrained features against their closed forms: conditions, predictions, measurements and claims.

`parts` lists the groups of the history. `minima` solves the grid of `conditions`, whose decays theory places, beside
`predictions`; `minima_claims` judges it. Every other part measures and judges by itself: `constrained` (features that
are non-negative or bounded in norm), `limits` (vanishing decay), `relu` (ReLU between layers), `codes` (more classes
than dimensions), `descent` (gradient descent as published). `curves` are the lines of the figures. Claims are judged
from the stored arrays alone.
"""
