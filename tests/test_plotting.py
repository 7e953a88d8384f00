"""The shared figure style: colours, files, and that nothing leaks into the caller's Matplotlib settings."""

import matplotlib as mpl
import numpy as np
import pytest

from nctheory import plotting
from nctheory.runs import RunFolderError


def _draw():
    with plotting.use_style():
        figure = plotting.new_figure(3.0, 2.0)
        figure.add_subplot().plot([0, 1], [0, 1])
    return figure


def test_files_are_written_and_reproducible(tmp_path):
    first = plotting.save_figure(_draw(), tmp_path / "sub" / "figure_q0.5")
    assert [path.name for path in first] == ["figure_q0.5.pdf", "figure_q0.5.png"]
    content = first[0].read_bytes()
    assert content.startswith(b"%PDF")
    assert first[1].read_bytes().startswith(b"\x89PNG")
    again = plotting.save_figure(_draw(), tmp_path / "sub" / "figure_q0.5")
    assert again[0].read_bytes() == content
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["figure_q0.5.pdf", "figure_q0.5.png"]


def test_style_is_local():
    before = dict(mpl.rcParams)
    with plotting.use_style():
        assert mpl.rcParams["pdf.fonttype"] == 42
    assert dict(mpl.rcParams) == before


def test_colours_are_distinct_and_from_the_palette():
    assert len(set(plotting.LINE_COLORS)) == len(plotting.LINE_COLORS) == 7
    assert set(plotting.LINE_COLORS) < set(plotting.OKABE_ITO.values())


def test_failed_write_keeps_the_earlier_file(tmp_path, monkeypatch):
    pdf, _ = plotting.save_figure(_draw(), tmp_path / "figure")
    content = pdf.read_bytes()
    figure = _draw()

    def full_disk(path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(RunFolderError, match="No space"):
        plotting.save_figure(figure, tmp_path / "figure")
    assert pdf.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.pdf", "figure.png"]


@pytest.mark.parametrize("size", [{"width": 0.0}, {"height": -1.0}])
def test_sizes_must_be_positive(size, own_errors):
    with pytest.raises(ValueError, match=r"Argument `(width|height)` must be finite and > 0"):
        plotting.new_figure(**size)


def test_a_logarithmic_axis_without_positive_numbers_is_drawn_as_a_linear_one(tmp_path):
    figure = plotting.new_figure()
    empty, filled = figure.subplots(1, 2)
    empty.plot([1, 2], [np.nan, np.nan])
    filled.plot([1, 2], [1.0, 100.0])
    for axes in (empty, filled):
        axes.set_yscale("log")
    assert all(path.stat().st_size > 1000 for path in plotting.save_figure(figure, tmp_path / "panels"))
    assert (empty.get_yscale(), filled.get_yscale()) == ("linear", "log")
