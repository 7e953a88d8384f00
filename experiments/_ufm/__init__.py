"""Unconstrained features against their closed forms: conditions, predictions, measurements and claims.

`conditions` lists what is solved and chooses the decays by theory, `predictions` evaluates theory (and formulas with
one thing wrong), `minima` and `descent` measure, `claims` judges from the stored arrays alone.
"""
