"""The README's library example runs as printed."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


def run_example(number):
    """Run one of the README's library examples; return its names."""
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(examples) == 2
    assert len([line for line in examples[number].splitlines() if line.strip()]) <= 12
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(examples[number], str(README), "exec"), names)
    return names


def test_the_sweep_runs_and_says_something_sensible(capsys):
    q = run_example(0)["q"]
    assert q.shape == (2, 32)
    # Clusters at cosine 0.1 have merged part of the way from their untrained 1 towards 0.
    assert np.all((q > 0) & (q < 0.5))
    assert "diverged: [0 0]" in capsys.readouterr().out


def test_the_search_finds_the_predicted_minimum(capsys):
    names = run_example(1)
    assert float(names["found"].loss.min()) == pytest.approx(float(names["minimum"].loss), rel=1e-12)
    assert bool(names["found"].converged.all())
    assert "True" in capsys.readouterr().out


def test_both_commands_are_the_ones_that_ci_runs():
    text = README.read_text(encoding="utf-8")
    script = (README.parent / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"```bash\n(.*?)\n```", text, flags=re.DOTALL)
    assert any("experiments/synthetic.py" in command for command in commands)
    (test_command,) = [command for command in commands if command.endswith("-m pytest")]
    assert test_command in script
