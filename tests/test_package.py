"""The package as a whole: light to import, nothing global set, layers kept apart, documents in step with the code."""

import ast
import contextlib
import doctest
import importlib
import importlib.util
import io
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import nctheory
from nctheory._cli import run_main

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "nctheory").rglob("*.py"))
SCRIPTS = sorted(
    each for folder in ("experiments", "paper_figs", "benchmarks") for each in (ROOT / folder).glob("*.py")
)
EXPERIMENTS = sorted((ROOT / "experiments").glob("[!_]*.py"))


def python(*arguments: str) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done


def seconds(*arguments: str) -> float:
    start = time.perf_counter()
    python(*arguments)
    return time.perf_counter() - start


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it."""
    package = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{name.name}" for name in node.names}
    return found


def within(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def test_import_finds_relative_and_absolute_forms():
    """The scan below sees every way to write an import."""
    sample = ROOT / "nctheory" / "theory" / "memory.py"
    text = "from .. import simulator\nfrom nctheory import simulator as s\nimport nctheory.simulator.train\n"

    class Fake(type(sample)):
        def read_text(self, *_args, **_named):
            return text

    found = within(imported(Fake(sample)), "nctheory.simulator")
    assert found == {"nctheory.simulator", "nctheory.simulator.train"}


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("theory", ["simulator", "vision", "claims", "runs", "plotting"]),
        ("simulator", ["theory", "vision", "claims", "plotting"]),
        ("metrics", ["theory", "simulator", "vision", "claims", "runs", "plotting"]),
    ],
)
def test_layers_are_kept_apart(folder, forbidden):
    files = sorted((ROOT / "nctheory" / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in forbidden:
            assert not within(imported(path), f"nctheory.{name}"), f"{path} imports nctheory.{name}"


def test_package_imports_no_script():
    for path in MODULES:
        for folder in ("experiments", "paper_figs", "benchmarks", "tests"):
            assert not within(imported(path), folder), f"{path} imports from {folder}/"


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short_and_without_pickles(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    assert not {name for name in imported(path) if name.split(".")[0] in {"pickle", "cloudpickle", "dill"}}
    # orbax and joblib could pickle too, but are not used for results.
    assert not re.search(r"allow_pickle\s*=\s*True", text)


def test_examples_in_docstrings_run():
    attempted = 0
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        failed, run = doctest.testmod(importlib.import_module(name), verbose=False)
        assert failed == 0, f"example in {name}"
        attempted += run
    assert attempted > 3


def test_every_public_name_resolves():
    assert issubclass(nctheory.ArgumentError, ValueError)
    assert issubclass(nctheory.DatasetError, RuntimeError)
    for name in set(nctheory.__all__) - {"ArgumentError", "DatasetError"}:
        module = getattr(nctheory, name)
        assert module is importlib.import_module(f"nctheory.{name}")
        for public in getattr(module, "__all__", []):
            assert hasattr(module, public), f"nctheory.{name}.{public}"
    assert set(nctheory.__all__) <= set(dir(nctheory))
    with pytest.raises(AttributeError, match="module 'nctheory' has no attribute 'collapse'"):
        nctheory.collapse  # noqa: B018


GLOBALS = """
import pkgutil, importlib, os, warnings
import jax, matplotlib, numpy
def state():
    return (dict(jax.config.values), dict(matplotlib.rcParams), numpy.geterr(), numpy.get_printoptions(),
            {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_", "TF_", "OMP_"))})
before = state()
import nctheory
for module in pkgutil.walk_packages(nctheory.__path__, "nctheory."):
    importlib.import_module(module.name)
after = state()
assert before[0] == after[0], {k: (v, after[0][k]) for k, v in before[0].items() if after[0][k] != v}
assert before[1:] == after[1:]
"""


def test_import_sets_nothing_global():
    python("-c", GLOBALS)


LIGHT = """
import sys
import nctheory, nctheory.runs, nctheory.claims, nctheory._cli
heavy = {"jax", "numpy", "scipy", "xarray", "matplotlib", "flax", "optax", "sklearn", "tyro"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_run_folders_and_claims_import_nothing_heavy():
    python("-c", LIGHT)


def test_import_is_fast():
    assert min(seconds("-c", "import nctheory") for _ in range(3)) < 2


@pytest.mark.parametrize("script", EXPERIMENTS, ids=lambda script: script.stem)
def test_help_names_the_common_flags(script):
    spec = importlib.util.spec_from_file_location(f"_help_{script.stem}", script)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        run_main(module.Config, module.run, ["--help"])
    for flag in ("--out", "--smoke", "--resume", "--plot-only", "--num-seeds", "--seed"):
        assert flag in shown.getvalue(), f"{script.name} has no {flag}"


def test_help_of_every_experiment_is_fast():
    """`--help` within 1.2 x `import jax`: best of at most five rounds each, as other work only slows."""
    assert EXPERIMENTS
    imports = [seconds("-c", "import jax") for _ in range(3)]
    for script in EXPERIMENTS:
        helps = []
        for _ in range(5):
            helps.append(seconds(str(script), "--help"))
            if min(helps) <= 1.2 * min(imports):
                break
            # The machine may have become faster since, never slower than its best.
            imports.append(seconds("-c", "import jax"))
        assert min(helps) <= 1.2 * min(imports), f"{script.name}: {min(helps):.2f} s, jax {min(imports):.2f} s"


def test_ci_runs_what_the_readme_says():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python3 -m venv .*$", readme, re.MULTILINE)
    assert len(commands) >= 2
    tests = next(command for command in commands if command.endswith("-m pytest"))
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {nctheory.__version__}\n" in citation
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cuda", "tpu", "test", "dev"} <= project["optional-dependencies"].keys()
    assert all(">=" in each for each in project["dependencies"])
    assert (ROOT / "nctheory" / "py.typed").is_file()


def test_readme_speaks_of_folders_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("## Where things are")[2].partition("\n## ")[0]
    named = re.findall(r"`((?:nctheory|experiments|paper_figs|benchmarks|tests)/[\w/.]*)`", table)
    assert len(named) >= 8
    for name in named:
        assert (ROOT / name).exists(), name
