"""Rows of made-up benchmarks, and the stored records."""

import json
from pathlib import Path

from benchmarks import __main__ as runner
from benchmarks._table import Row

RESULTS = Path(runner.__file__).parent / "results"
STORED = {
    "sweep": "sweep_2_threads",
    "metrics": "metrics",
    "ufm": "ufm_2_threads",
    "probe": "probe",
    "images": "images",
}
RATE = Row("sweep", "seed-steps/s", 80.0, "loop", 10.0, required=8.0, roof=160.0, ours_on="gpu", peer_on="cpu")
TIME = Row("metrics", "s", 0.5, "library", 2.0, is_rate=False, required=5.0, roof=0.1)
ABSENT = Row("metrics", "s", 0.5, "library", None, is_rate=False, required=1.0, note="not installed")
FREE = Row("probe", "s", 1.0, "scikit-learn", 3.0, is_rate=False)


def stored():
    return {name: json.loads((RESULTS / f"{file}.json").read_text()) for name, file in STORED.items()}
