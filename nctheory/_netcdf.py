"""Labelled arrays to NetCDF-4 and back without loss.

NetCDF has no complex numbers and no boolean attributes, and reads a variable whose unit is "seconds" as a time span.
Complex variables are stored with a last axis of two (real, imag) and a mark; boolean attributes become 0 or 1 and empty
ones the empty string; times are never decoded. Numbers are compressed without loss.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nctheory._files import RunFolderError, atomic_write

if TYPE_CHECKING:
    import xarray as xr

_PARTS = "complex_parts"
_MARK = "nctheory_complex"


def _attributes(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        name: int(value) if isinstance(value, bool) else "" if value is None else value for name, value in attrs.items()
    }


def _encode(dataset: "xr.Dataset") -> "xr.Dataset":
    import numpy as np
    import xarray as xr

    def variable(name: Hashable) -> "xr.Variable":
        old = dataset.variables[name]
        if old.dtype.kind != "c":
            packed = {"zlib": True} if old.ndim and old.dtype.kind in "biuf" else {}
            return xr.Variable(old.dims, old.data, _attributes(old.attrs), packed)
        parts = np.stack([np.real(old.values), np.imag(old.values)], axis=-1)
        return xr.Variable((*old.dims, _PARTS), parts, {**_attributes(old.attrs), _MARK: 1}, {"zlib": True})

    coordinates = {name: variable(name) for name in dataset.coords}
    return xr.Dataset({name: variable(name) for name in dataset.data_vars}, coordinates, _attributes(dataset.attrs))


def _decode(dataset: "xr.Dataset") -> "xr.Dataset":
    import numpy as np
    import xarray as xr

    replaced = {}
    for name, old in dataset.variables.items():
        if _MARK in old.attrs:
            attrs = {key: value for key, value in old.attrs.items() if key != _MARK}
            # Filled part by part: real + 1j * imag turns an infinite part into NaN.
            values = np.empty(old.shape[:-1], np.result_type(old.dtype, np.complex64))
            values.real, values.imag = old.values[..., 0], old.values[..., 1]
            replaced[name] = xr.Variable(old.dims[:-1], values, attrs)
    coordinates = [name for name in replaced if name in dataset.coords]
    return dataset.assign(replaced).set_coords(coordinates)


def write_netcdf(path: Path, history: "xr.Dataset | xr.DataTree") -> None:
    """Write a Dataset or DataTree through a temporary name."""
    import xarray as xr

    tree = isinstance(history, xr.DataTree)
    encoded = history.map_over_datasets(_encode) if tree else _encode(history)
    # Built in memory first: on a full disk HDF5 fails while closing, with errors of several kinds, and keeps the file
    # open until the process ends; a plain write fails once and cleanly.
    content = encoded.to_netcdf(engine="h5netcdf")
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def read_netcdf(path: Path) -> "xr.Dataset | xr.DataTree":
    """Read everything into memory; a file with groups comes back as a DataTree, else as a Dataset."""
    import xarray as xr

    if not path.is_file():
        raise RunFolderError(f"{path} is missing.")
    try:
        with xr.open_datatree(path, engine="h5netcdf", decode_times=False, decode_timedelta=False) as opened:
            tree = opened.load()
    # h5py reports damage as OSError, KeyError, ValueError or RuntimeError, by where in the file it lies.
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise RunFolderError(f"{path} is corrupted and cannot be read as NetCDF-4: {error}.") from error
    if tree.children:
        return tree.map_over_datasets(_decode)
    return _decode(tree.to_dataset())
