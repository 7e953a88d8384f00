"""Histories on disk: arrays come back as they were, and a fault leaves the earlier file."""

import subprocess
import sys

import numpy as np
import xarray as xr

from tests.run_folders import create, dataset

LIMITED = """
import resource, signal, sys
import numpy as np, xarray as xr
from nctheory.runs import RunFolder, RunFolderError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with RunFolder.create(sys.argv[1], {}, experiment="laws") as folder:
    folder.write_history(xr.Dataset({"a": ("x", np.arange(3.0))}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        folder.write_history(xr.Dataset({"a": ("x", np.random.default_rng(0).normal(size=100_000))}))
    except RunFolderError as error:
        print(error)
    print(folder.read_history().a.values.tolist(), flush=True)
"""


def test_history_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    """A real refusal by the operating system, in the middle of the file."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert f"Cannot write {tmp_path / 'history.nc'}: " in done.stdout, done.stderr
    assert "The earlier file is unchanged." in done.stdout
    assert "[0.0, 1.0, 2.0]" in done.stdout
    assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", "config.json", "history.nc"]


def test_history_comes_back_identical(tmp_path):
    with create(tmp_path) as folder:
        folder.write_history(dataset())
        again = folder.read_history()
        folder.write_history(again)  # And once more from what was read.
        again = folder.read_history()
    want = dataset()
    for name, variable in want.variables.items():
        got = again.variables[name]
        if variable.dtype.kind != "U":
            assert got.dtype == variable.dtype, name
        assert got.dims == variable.dims
        assert got.attrs == variable.attrs
        np.testing.assert_array_equal(got.values, variable.values, strict=variable.dtype.kind != "U")
    assert set(again.coords) == set(want.coords)
    assert again.sel(seed=5).condition.item() == ""
    attrs = dict(again.attrs)
    np.testing.assert_array_equal(attrs.pop("rates"), [0.1, 0.2])
    assert attrs == {"units": "none", "width": 64}


def test_tree_comes_back_identical(tmp_path):
    tree = xr.DataTree.from_dict(
        {"/": xr.Dataset(attrs={"title": "laws"}), "/l1": dataset(), "/l2/deep": dataset().isel(seed=slice(2))}
    )
    with create(tmp_path) as folder:
        folder.write_history(tree)
        again = folder.read_history()
    assert isinstance(again, xr.DataTree)
    assert again.attrs == {"title": "laws"}
    for path in ("l1", "l2/deep"):
        want, got = tree[path].to_dataset(), again[path].to_dataset()
        for name, variable in want.variables.items():
            np.testing.assert_array_equal(got[name].values, variable.values)
            assert got[name].attrs == variable.attrs


def test_coordinates_of_a_parent_stay_with_the_parent(tmp_path):
    parent = xr.Dataset(coords={"seed": [1, 2], "root": ("seed", np.array([1j, 2.0]))})
    child = xr.Dataset({"loss": ("seed", np.array([0.5, 0.25]))})
    with create(tmp_path) as folder:
        folder.write_history(xr.DataTree.from_dict({"/": parent, "/child": child}))
        again = folder.read_history()
    np.testing.assert_array_equal(again["child"].sel(seed=2)["loss"], 0.25)
    np.testing.assert_array_equal(again["root"], [1j, 2.0])


def test_boolean_and_empty_attributes(tmp_path):
    with create(tmp_path) as folder:
        folder.write_history(xr.Dataset({"a": ("x", [1.0], {"frozen": True})}, attrs={"note": None}))
        again = folder.read_history()
    assert again.a.attrs == {"frozen": 1}
    assert again.attrs == {"note": ""}
