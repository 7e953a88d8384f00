"""Files written whole or not at all, and numbers as JSON."""

import errno
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from nctheory.runs import RunFolderError, atomic_write, read_json, write_json
from tests.run_folders import create


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_full_disk_leaves_the_earlier_file(tmp_path, number):
    path = tmp_path / "claims.json"
    write_json(path, {"a": 1})

    def writer(temporary):
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(
        RunFolderError, match=f"Cannot write {path}: {os.strerror(number)}. The earlier file is unchang"
    ):
        atomic_write(path, writer)
    assert read_json(path) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["claims.json"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TypeError])
def test_other_faults_pass_and_leave_nothing(tmp_path, kind):
    def writer(temporary):
        temporary.write_text("half")
        raise kind("stop")

    with pytest.raises(kind, match="stop"):
        atomic_write(tmp_path / "a", writer)
    assert list(tmp_path.iterdir()) == []


def test_temporary_name_keeps_folder_and_suffix(tmp_path):
    seen = []

    def writer(temporary):
        seen.append(temporary)
        temporary.write_text("whole")
        assert not (tmp_path / "new" / "fig.pdf").exists()

    atomic_write(tmp_path / "new" / "fig.pdf", writer)
    assert seen[0].parent == tmp_path / "new"
    assert seen[0].suffix == ".pdf"
    assert (tmp_path / "new" / "fig.pdf").read_text() == "whole"


def test_json_values(tmp_path):
    path = tmp_path / "a.json"
    values = {
        "nan": math.nan,
        "inf": np.float32(math.inf),
        "minus": -math.inf,
        "array": np.array([[1, 2], [3, 4]]),
        "jax": jnp.array([1.5, math.nan]),
        "bool": np.bool_(True),
        "set": {3, 1},
        4: None,
    }
    write_json(path, values)
    assert read_json(path) == {
        "nan": None,
        "inf": "inf",
        "minus": "-inf",
        "array": [[1, 2], [3, 4]],
        "jax": [1.5, None],
        "bool": True,
        "set": [1, 3],
        "4": None,
    }
    for bad, message in (
        ({"a": [1j]}, r"Argument `obj.a\[0\]` must be rep.*complex"),
        ({"f": len}, "Argument `obj.f`"),
    ):
        with pytest.raises(ValueError, match=message):
            write_json(path, bad)
    with pytest.raises(ValueError, match="Argument `config` must be a mapping or a dataclass record"):
        create(tmp_path / "new", [1, 2])
