"""Size of a sweep's chunks: the search by injected costs, real measurements, memory, and what a resumed run keeps."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nctheory import _cli, simulator
from nctheory.runs import RunFolder, RunFolderError
from nctheory.simulator import _chunks, _parts, _program, _shares
from nctheory.simulator._chunks import Sizes, Trial
from nctheory.simulator._parts import ChunkChoice, PartStore
from tests.simulator import processes
from tests.simulator.closeness import assert_close
from tests.simulator.test_sweep import Toy, assert_identical, sweep, toy

ROWS = 400


class Costs:
    """Times that are known beforehand: seconds a row by the rows of a share; two shares a chunk."""

    def __init__(self, clock, seconds, *, num_rows=10_000, num_dealt=1, compile_seconds=0.0):
        self.seconds, self.num_rows, self.num_dealt = seconds, num_rows, num_dealt
        self.compile_seconds, self.clock, self.asked = compile_seconds, clock, []

    def time(self, share, so_far=None):
        """As `Timer.time`."""
        self.asked.append(share)
        seconds = self.seconds[share]
        if isinstance(seconds, list):
            seconds = seconds.pop(0)
        passed = 2 * share * seconds
        self.clock[0] += passed + (self.compile_seconds if so_far is None and len(self.asked) > 1 else 0.0)
        if so_far is None:
            return Trial(2 * share, share, seconds, self.compile_seconds, {0: share}, passed)
        return replace(so_far, seconds_per_row=min(seconds, so_far.seconds_per_row))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is told to go on."""
    now = [0.0]
    monkeypatch.setattr(_chunks, "clock", lambda: now[0])
    return now


def found(costs, share=8):
    sizes, trial = _chunks.measure(Sizes(2 * share, share, ChunkChoice("estimated")), costs)
    assert sizes.chunk == 2 * sizes.share
    return sizes, trial


@pytest.mark.parametrize(
    ("seconds", "best", "asked"),
    [
        # The estimate stays unless another size is more than 5 % faster.
        ({8: 1.0, 16: 1.1, 4: 1.2}, 8, [8, 16, 4]),
        ({8: 1.0, 16: 0.96, 4: 0.96}, 8, [8, 16, 4]),
        ({8: 1.0, 16: 0.9, 32: 0.95}, 16, [8, 16, 8, 32]),
        ({8: 1.0, 16: 0.9, 32: 0.8}, 32, [8, 16, 8, 32, 16]),
        ({8: 1.0, 16: 1.1, 4: 0.9, 2: 1.0}, 4, [8, 16, 4, 8, 2]),
        # What was slow only once is no reason to leave it.
        ({8: [1.0, 0.5], 16: 0.9, 4: 0.9}, 8, [8, 16, 8, 4]),
    ],
)
def test_the_fastest_size_by_known_costs(clock, seconds, best, asked):
    costs = Costs(clock, seconds)
    sizes, trial = found(costs)
    assert (sizes.share, costs.asked) == (best, asked)
    assert sizes.choice.way == "measured"
    assert sizes.choice.reason == ""
    assert set(sizes.choice.seconds_per_row) == {2 * share for share in asked}
    assert trial is not None
    assert trial.parts == {0: best}


def test_a_share_of_one_row_is_the_smallest(clock):
    costs = Costs(clock, {2: 1.0, 4: 1.1, 1: 0.8})
    assert found(costs, share=2)[0].share == 1
    assert costs.asked == [2, 4, 1, 2]


def test_few_rows_are_not_measured(clock):
    costs = Costs(clock, {}, num_rows=8 * 16 - 1)
    sizes, trial = found(costs)
    assert (sizes.share, costs.asked, trial) == (8, [], None)
    assert sizes.choice == ChunkChoice(
        "estimated", "not measured: 127 rows are fewer than 128, 8 chunks of the estimate"
    )
    # Chunks of several processes run at a time.
    costs = Costs(clock, {}, num_rows=255, num_dealt=2)
    assert "255 rows are fewer than 256" in found(costs)[0].choice.reason


def test_a_sweep_that_measuring_would_prolong_is_not_measured(clock):
    # 160 rows: a chunk of twice the estimate is a fifth of them.
    costs = Costs(clock, {8: 1.0}, num_rows=160)
    sizes, trial = found(costs)
    assert costs.asked == [8]
    assert sizes.choice.way == "estimated"
    assert sizes.choice.reason == "not measured: timing other sizes would cost 32 s of 1.6e+02 s"
    assert sizes.choice.seconds_per_row == {16: 1.0}
    # What ran is kept all the same.
    assert trial is not None
    assert trial.parts == {0: 8}
    assert sizes.choice.measure_seconds == 0
    # As for rows, so for a compiler that takes long.
    slow = Costs(clock, {8: 0.01}, compile_seconds=6.0)
    assert "would cost 6.3 s of 1e+02 s" in found(slow)[0].choice.reason


def test_measuring_stops_when_it_has_cost_enough(clock):
    costs = Costs(clock, {8: 1.0, 16: 1.1}, num_rows=800)
    sizes, _ = found(costs)
    assert costs.asked == [8, 16]
    assert sizes.choice.way == "measured"
    assert sizes.choice.reason == "stopped: timing other sizes would cost 43 s of 8e+02 s"
    assert sizes.choice.measure_seconds == pytest.approx(32 * 1.1)


@pytest.mark.parametrize(("num_rows", "best"), [(176, 8), (192, 16)])
def test_filled_up_rows_count(clock, monkeypatch, num_rows, best):
    monkeypatch.setattr(_chunks, "COST_SHARE", 10.0)
    # 6 % faster a row; but 176 rows are 11 chunks of 16, and 6 chunks of 32 that end with 16 repetitions.
    costs = Costs(clock, {8: 1.0, 16: 0.94, 32: 0.94, 4: 1.0}, num_rows=num_rows)
    assert found(costs)[0].share == best


def test_rounds_of_several_processes_count_once(clock):
    for num_dealt, seconds in ((1, 192), (2, 128), (3, 64)):
        assert (
            _chunks._whole_seconds(Trial(64, 32, 1.0), Costs(clock, {}, num_rows=129, num_dealt=num_dealt)) == seconds
        )


@pytest.fixture
def known_rates(clock, monkeypatch):
    """Two cores, an estimate of 4 rows a share, and rows that take as long as the test says."""
    seconds, starts = {4: 1.0, 8: 0.5, 16: 0.6, 2: 2.0}, []
    usual = _shares.ShareRunner.run

    def run(self, first_rows, num_workers):
        clock[0] += seconds[self._share] * self._share * len(first_rows)
        starts.append((self._share, list(first_rows)))
        return usual(self, first_rows, num_workers)

    monkeypatch.setattr(_shares.ShareRunner, "run", run)
    monkeypatch.setattr(_program, "num_cores", lambda: 2)
    monkeypatch.setattr(_program, "auto_chunk_size", lambda *_: 8)
    # The compiler's time is real, and must not count beside these.
    monkeypatch.setattr(_chunks, "COST_SHARE", 0.5)
    return seconds, starts


def test_a_measured_sweep_has_the_numbers_of_any_other(known_rates):
    result = sweep(toy, Toy(), ROWS, chunk_size="measured")
    assert (result.chunk_size, result.share, result.chunk_choice.way) == (16, 8, "measured")
    assert result.chunk_choice.seconds_per_row == pytest.approx({8: 1.0, 16: 0.5, 32: 0.6})
    assert result.chunk_choice.measure_seconds > 0
    # What was timed of this size is not run again.
    rows = [row for share, listed in known_rates[1] if share == 8 for row in listed]
    assert sorted(rows) == list(range(0, ROWS, 8))
    given = sweep(toy, Toy(), ROWS, chunk_size=16)
    assert given.chunk_choice == ChunkChoice("given")
    assert_identical(result.history, given.history)
    estimated = sweep(toy, Toy(), ROWS)
    assert (estimated.chunk_size, estimated.chunk_choice) == (8, ChunkChoice("estimated"))
    assert_close(result.history, estimated.history)


def test_the_measured_size_is_remembered(known_rates, tmp_path):
    first = sweep(toy, Toy(), ROWS, chunk_size="measured", checkpoint=tmp_path)
    header = json.loads((tmp_path / "sweep.json").read_text())
    assert (header["chunk_size"], header["share"], header["asked"]) == (16, 8, None)
    assert header["choice"]["way"] == "measured"
    for index in (0, 7):
        (tmp_path / f"chunk-{index:05d}.npz").unlink()
    # Measured again, the estimate would win.
    known_rates[0][8] = 9.0
    for size in ("measured", "auto", 16):
        again = sweep(toy, Toy(), ROWS, chunk_size=size, checkpoint=tmp_path)
        assert (again.chunk_size, again.share, again.chunk_choice.way) == (16, 8, "stored")
        assert again.chunk_choice.reason == "measured by the run that began"
        assert again.chunk_choice.seconds_per_row == first.chunk_choice.seconds_per_row
        assert again.num_resumed == (ROWS - 32 if size == "measured" else ROWS)
        assert_identical(again.history, first.history)
    with pytest.raises(RunFolderError, match="has chunks of 16 rows, not 8"):
        sweep(toy, Toy(), ROWS, chunk_size=8, checkpoint=tmp_path)


@pytest.mark.slow
def test_a_prepared_sweep_measures_when_it_runs_and_only_once(known_rates, tmp_path):
    ready = simulator.prepare(toy, Toy(), ROWS, chunk_size="measured", checkpoint=tmp_path)
    assert known_rates[1] == []
    assert not (tmp_path / "sweep.json").exists()
    first = ready.run(progress=False)
    known_rates[1].clear()
    assert ready.chunk_size == 16
    again = ready.run(progress=False)
    assert known_rates[1] == []
    assert_identical(again.history, first.history)


@pytest.mark.slow
def test_a_run_killed_while_it_measures_leaves_an_empty_folder(known_rates, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_shares.ShareRunner, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sweep(toy, Toy(), ROWS, chunk_size="measured", checkpoint=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert sweep(toy, Toy(), ROWS, chunk_size="measured", checkpoint=tmp_path).chunk_size == 16


def test_a_small_sweep_says_that_it_was_not_measured(tmp_path):
    result = sweep(toy, Toy(), 5, chunk_size="measured", checkpoint=tmp_path)
    assert result.chunk_choice.way == "estimated"
    assert result.chunk_choice.reason.startswith("not measured: 5 rows are fewer than")
    assert result.chunk_size == sweep(toy, Toy(), 5).chunk_size
    reason = sweep(toy, Toy(), 5, checkpoint=tmp_path).chunk_choice.reason
    assert reason == f"estimated by the run that began; {result.chunk_choice.reason}"


@pytest.mark.slow
def test_process_0_measures_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(_program, "num_cores", lambda: 2)
    alone = processes.lone()
    ended = processes.together(2, "measure_together", tmp_path)
    assert [each.code for each in ended] == [0, 0], ended
    expected = ["measured"] * 3 + ["estimated not measured: the mesh spans processes"]
    assert [[line.strip() for line in each.out.splitlines()][-4:] for each in ended] == [expected] * 2
    for index in range(2):
        for how in ("none", "shared", "own", "mesh"):
            history, told = processes.read(tmp_path / f"{how}-{index}.npz")
            assert told["chunk_size"] == (2 if how == "mesh" else processes.CHUNK)
            if how == "mesh":
                np.testing.assert_allclose(history["x"], alone.history["x"], rtol=1e-6)
            else:
                assert_identical(history, alone.history)
    assert json.loads((tmp_path / "shared" / "sweep.json").read_text())["choice"]["way"] == "measured"


def test_a_damaged_choice_is_refused(tmp_path):
    store = PartStore.open(tmp_path, {})
    store.begin(4, 2, None, ChunkChoice("measured", "why", {4: 0.5}, {2: 7}, 1.0))
    assert PartStore.open(tmp_path, {}).choice == store.choice
    header = tmp_path / _parts.HEADER
    stored = json.loads(header.read_text())
    for damaged in (3, {}, {"way": "guessed"}, {**store.choice.to_json(), "share_bytes": {"x": 1}}):
        header.write_text(json.dumps({**stored, "choice": damaged}))
        with pytest.raises(RunFolderError, match="is damaged"):
            PartStore.open(tmp_path, {})


@pytest.mark.slow
def test_a_header_without_a_choice_is_read(tmp_path):
    sweep(toy, Toy(), 6, chunk_size=3, checkpoint=tmp_path)
    header = tmp_path / _parts.HEADER
    stored = json.loads(header.read_text())
    del stored["choice"]
    header.write_text(json.dumps(stored))
    result = sweep(toy, Toy(), 6, checkpoint=tmp_path)
    assert (result.chunk_choice.way, result.chunk_choice.reason) == ("stored", "given by the run that began")


@pytest.mark.parametrize("given", ["fast", "0", "-3", "1.5", "True", ""])
def test_the_option_is_checked_before_anything_runs(capsys, given):
    assert _cli.run_main(_cli.RunOptions, lambda _: 0, [f"--chunk-size={given}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith('error: Argument `chunk_size` must be an integer >= 1, "auto" or "measured", but is ')
    assert message.count("\n") == 1


def test_the_option_takes_a_number_or_a_word():
    seen = []
    for given in ("64", "measured", "auto"):
        assert (
            _cli.run_main(_cli.RunOptions, lambda config: seen.append(config.chunk_size) or 0, ["--chunk-size", given])
            == 0
        )
    assert seen == [64, "measured", "auto"]


def test_the_option_reaches_sweep_and_manifest_and_is_no_other_run(tmp_path):
    from _bench import Bench

    def run(chunk_size, resume):
        config = _cli.RunOptions(chunk_size=chunk_size)
        with RunFolder.create(tmp_path / "run", config, experiment="trial", resume=resume) as folder:
            with Bench(None, [0, 1, 2, 3, 4], folder.parts, progress=False, chunk_size=chunk_size) as bench:
                bench.prepare("one", Toy(), train=toy)
                bench.sweep("one")
        told = json.loads(json.dumps(bench.log["one"]))
        return told["chunk_size"], told["chunk_choice"]["way"], told["resumed_rows"]

    assert run(2, False) == (2, "given", 0)
    for size in (2, 3, "auto", "measured"):
        assert run(size, True) == (2, "stored", 5)
