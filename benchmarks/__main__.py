"""Run every benchmark, each in a process of its own, and store the results in benchmarks/results/.

Run: python -m benchmarks
"""

import os
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
COMMANDS = (
    ("sweep_speed", "--threads", "2", "--out", str(RESULTS / "sweep_2_threads.json")),
    ("sweep_speed", "--threads", "1", "--chunk-repeats", "0", "--out", str(RESULTS / "sweep_1_thread.json")),
    ("ufm_speed", "--threads", "2", "--out", str(RESULTS / "ufm_2_threads.json")),
    ("images_speed", "--out", str(RESULTS / "images.json")),
    ("probe_speed", "--out", str(RESULTS / "probe.json")),
    ("metrics_speed", "--out", str(RESULTS / "metrics.json")),
)


def main() -> None:
    """Run the commands in turn; threads of NumPy's BLAS follow those of the sweep."""
    for name, *arguments in COMMANDS:
        threads = arguments[arguments.index("--threads") + 1] if "--threads" in arguments else "2"
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads
        )
        print(f"\n== python -m benchmarks.{name} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], env=environment, check=True)


if __name__ == "__main__":
    main()
