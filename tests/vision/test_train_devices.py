"""One network or several on several devices: batches or seeds are spread over them."""

import jax
import numpy as np
import pytest

from nctheory.vision.train import train_networks
from tests.vision.test_train_checkpoints import CONFIG, in_process
from tests.vision.tiny_networks import DENSE, splits


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(tmp_path):
    script = """
        import dataclasses, os
        import jax, numpy as np
        from tests.vision import test_train_checkpoints as t
        from nctheory.vision.train import collapse_of, extract_features

        assert jax.device_count() == 8
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
        # 45 images: five full batches and one of 5, which does not divide and so is not spread.
        data = t.splits(45, 21)
        config = dataclasses.replace(t.CONFIG, num_epochs=2, drop_last=False, checkpoint_epochs=(0, 1))
        folder = os.environ["FOLDER"]
        for form in ("host", "scan"):
            named = dict(spec=t.TinySpec(), config=config, data=data, form=form, on_checkpoint=None)
            one = t.run(**named)
            many = t.run(f"{folder}/{form}", mesh=mesh, **named)
            leaf = jax.tree.leaves(t.nnx.state(many.network))[0]
            assert len(leaf.sharding.device_set) == 8 and leaf.sharding.is_fully_replicated
            for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
                # Sums over devices round in another order.
                np.testing.assert_allclose(
                    getattr(many.history, name), getattr(one.history, name), rtol=1e-4, err_msg=name
                )
            for mine, other in zip(t.leaves(many.network), t.leaves(one.network), strict=True):
                np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-5)
            spread = extract_features(many.network, data[1], batch_size=10)
            np.testing.assert_allclose(spread, extract_features(one.network, data[1]), rtol=1e-3, atol=1e-5)
            assert np.isfinite(collapse_of(many.network, data[1]).nc1)
            # Resumed with another number of devices.
            t.shutil.rmtree(f"{folder}/{form}/epoch_000002")
            fewer = t.run(f"{folder}/{form}", resume=True, **named)
            assert fewer.resumed_epochs == 1
            np.testing.assert_allclose(fewer.history.test_loss, one.history.test_loss, rtol=1e-4)
        try:
            t.run(spec=t.DENSE, config=dataclasses.replace(config, batch_size=12), mesh=mesh)
        except ValueError as error:
            assert "`batch_size` must be a multiple of the 8 devices" in str(error), error
            print("equal")
    """
    done = in_process(script, devices=8, FOLDER=str(tmp_path))
    assert done.stdout == "equal\n", done.stderr


def test_seeds_spread_over_devices_equal_those_of_one(tmp_path):
    script = """
        import dataclasses, os, shutil
        import jax, numpy as np
        from flax import nnx
        from nctheory.vision.train import train_networks
        from tests.vision import test_train_checkpoints as t

        assert jax.device_count() == 8
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("seeds",))
        data = t.splits(45, 21)
        config = dataclasses.replace(t.CONFIG, num_epochs=2, drop_last=False, checkpoint_epochs=(0, 1))
        folder = os.environ["FOLDER"]
        seen = []

        def at_checkpoint(epoch, networks):
            seen.append(len(networks))
            return {"accuracy": [t.evaluate(each, data[1]).accuracy for each in networks]}

        six, four = [5, 1, 9, 2, 3, 7], [5, 1, 9, 2]
        for form, spec, seeds in (("host", t.DENSE, six), ("scan", t.TinySpec(), four)):
            named = dict(seeds=seeds, form=form, progress=False, on_checkpoint=at_checkpoint)
            one = train_networks(spec, config, *data, **named)
            here = f"{folder}/{form}-{len(seeds)}"
            many = train_networks(spec, config, *data, folder=here, mesh=mesh, **named)
            assert seen[-1] == len(seeds)
            for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
                # Fewer seeds a device are batched otherwise, and round so.
                mine, other = (getattr(each.history, name) for each in (many, one))
                np.testing.assert_allclose(mine, other, rtol=1e-4, err_msg=name)
            for mine, other in zip(many.networks, one.networks, strict=True):
                for left, right in zip(t.leaves(mine), t.leaves(other), strict=True):
                    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5)
                leaf = jax.tree.leaves(nnx.state(mine))[0]
                assert len(leaf.sharding.device_set) == 1
            # The newest checkpoint is lost; one device finishes what six or four began.
            shutil.rmtree(f"{here}/epoch_000002")
            again = train_networks(spec, config, *data, folder=here, resume=True, **named)
            assert again.resumed_epochs == 1
            np.testing.assert_allclose(again.history.test_loss, one.history.test_loss, rtol=1e-4)
            np.testing.assert_array_equal(
                again.checkpoints[1]["accuracy"], many.checkpoints[1]["accuracy"]
            )
        print("equal")
    """
    done = in_process(script, devices=8, FOLDER=str(tmp_path))
    assert done.stdout == "equal\n", done.stderr


def test_the_state_lies_where_its_seed_is_trained():
    script = """
        import jax, numpy as np
        from nctheory.vision import _run, train
        from tests.vision import test_train_checkpoints as t

        devices = np.asarray(jax.devices())
        for num_seeds, used in ((1, 1), (2, 2), (3, 3), (5, 1), (6, 3), (8, 4)):
            mesh = train._seed_mesh(jax.sharding.Mesh(devices, ("seeds",)), num_seeds)
            assert mesh.devices.size == used, (num_seeds, mesh)
            seeds = tuple(range(num_seeds))
            data = t.splits(45, 21)
            program = train._checked_program(t.DENSE, t.CONFIG, *data, seeds, mesh=mesh, vmapped=True)
            job = _run.Job(program, t.CONFIG, *data, seeds, form="host")
            state = job.first_state()
            stepped, _, _ = job.epoch(state, 1, lambda *_: None)
            for leaf in jax.tree.leaves(stepped):
                assert leaf.addressable_shards[0].data.shape[0] == num_seeds // used
                assert len(leaf.sharding.device_set) == used
        print("spread")
    """
    done = in_process(script, devices=4)
    assert done.stdout == "spread\n", done.stderr


def test_a_mesh_must_be_one_of_seeds():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
    with pytest.raises(ValueError, match=r"`mesh` must have the axis 'seeds' alone, but has \('data',\)"):
        train_networks(DENSE, CONFIG, *splits(45, 21), seeds=[1, 2], mesh=mesh, progress=False)
