"""One network or several on several devices: batches or seeds are spread over them."""

import jax
import numpy as np
import pytest

from nctheory.vision.train import train_networks
from tests.vision.test_train_checkpoints import CONFIG, in_process
from tests.vision.tiny_networks import DENSE, splits


def on_eight(training, folder):
    script = f"""
        from tests.vision import training_devices

        training_devices.{training}({str(folder)!r})
        print("equal")
    """
    return in_process(script, devices=8)


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(tmp_path):
    done = on_eight("spread_batches", tmp_path)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("what", ["spread_seeds", pytest.param("spread_convolutions", marks=pytest.mark.slow)])
def test_seeds_spread_over_devices_equal_those_of_one(tmp_path, what):
    done = on_eight(what, tmp_path)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.slow
def test_the_state_lies_where_its_seed_is_trained():
    script = """
        import jax, numpy as np
        from nctheory.vision import _run, train
        from tests.vision import test_train_checkpoints as t

        devices = np.asarray(jax.devices())
        for num_seeds, used in ((1, 1), (2, 2), (3, 3), (5, 3), (6, 3), (8, 4)):
            mesh = train._seed_mesh(jax.sharding.Mesh(devices, ("seeds",)), num_seeds)
            assert mesh.devices.size == used, (num_seeds, mesh)
            seeds = tuple(range(num_seeds))
            data = t.splits(45, 21)
            program = train._checked_program(t.DENSE, t.CONFIG, *data, seeds, mesh=mesh, vmapped=True)
            job = _run.Job(program, t.CONFIG, *data, seeds, form="host")
            state = job.first_state()
            stepped, _, _ = job.epoch(state, 1, lambda *_: None)
            for leaf in jax.tree.leaves(stepped):
                assert leaf.addressable_shards[0].data.shape[0] == -(-num_seeds // used)
                assert len(leaf.sharding.device_set) == used
        print("spread")
    """
    done = in_process(script, devices=4)
    assert done.stdout == "spread\n", done.stderr


def test_a_mesh_must_be_one_of_seeds():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
    with pytest.raises(ValueError, match=r"`mesh` must have the axis 'seeds' alone, but has \('data',\)"):
        train_networks(DENSE, CONFIG, *splits(45, 21), seeds=[1, 2], mesh=mesh, progress=False)
