"""The laws of fine structure, one file each: claims fixed beforehand, measurement, judgement.

Each module has `CLAIMS` (specifications written before any run), `measure(bench)`, which trains over seeds, computes
the predictions and returns one labelled dataset, and `judge(tree)`, which needs the stored datasets alone.
"""
