"""Trainings on eight devices beside the same ones on one, to be run in a process that has eight."""

import dataclasses
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from nctheory.vision.train import collapse_of, evaluate, extract_features, train_networks
from tests.vision.test_train_checkpoints import CONFIG, leaves, run
from tests.vision.tiny_networks import DENSE, TinySpec, splits

# 45 images: five full batches and one of 5, which does not divide and so is not spread.
DATA = splits(45, 21)
SHORT = dataclasses.replace(CONFIG, num_epochs=2, drop_last=False, checkpoint_epochs=(0, 1))


def mesh_of_eight(axis):
    assert jax.device_count() == 8
    return jax.sharding.Mesh(np.asarray(jax.devices()), (axis,))


def assert_close(many, one):
    """Sums over devices round in another order, and fewer seeds a device are batched otherwise and round so."""
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
        mine, other = (getattr(each.history, name) for each in (many, one))
        np.testing.assert_allclose(mine, other, rtol=1e-4, err_msg=name)


def assert_close_parameters(network, other):
    for mine, theirs in zip(leaves(network), leaves(other), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


def spread_batches(folder):
    """One network, its batches over eight devices."""
    mesh = mesh_of_eight("data")
    for form in ("host", "scan"):
        named: dict[str, Any] = dict(spec=TinySpec(), config=SHORT, data=DATA, form=form, on_checkpoint=None)
        one = run(**named)
        many = run(f"{folder}/{form}", mesh=mesh, **named)
        leaf = jax.tree.leaves(nnx.state(many.network))[0]
        assert len(leaf.sharding.device_set) == 8
        assert leaf.sharding.is_fully_replicated
        assert_close(many, one)
        assert_close_parameters(many.network, one.network)
        spread = extract_features(many.network, DATA[1], batch_size=10)
        np.testing.assert_allclose(spread, extract_features(one.network, DATA[1]), rtol=1e-3, atol=1e-5)
        assert np.isfinite(collapse_of(many.network, DATA[1]).nc1)
        # Resumed with another number of devices.
        shutil.rmtree(f"{folder}/{form}/epoch_000002")
        fewer = run(f"{folder}/{form}", resume=True, **named)
        assert fewer.resumed_epochs == 1
        np.testing.assert_allclose(fewer.history.test_loss, one.history.test_loss, rtol=1e-4)
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of the 8 devices"):
        run(spec=DENSE, config=dataclasses.replace(SHORT, batch_size=12), mesh=mesh)


def spread_seeds(folder):
    """Several networks, their seeds over devices: nine on five of eight, one place empty."""
    spread_these(folder, "host", DENSE, [5, 1, 9, 2, 3, 7, 4, 8, 6])


def spread_convolutions(folder):
    """Four networks with convolutions, an epoch one program, on four of eight devices."""
    spread_these(folder, "scan", TinySpec(), [5, 1, 9, 2])


def spread_these(folder, form, spec, seeds):
    """These seeds spread and alone, then finished by one device and by many."""
    mesh, seen = mesh_of_eight("seeds"), []

    def at_checkpoint(epoch, networks):
        seen.append(len(networks))
        return {"accuracy": [evaluate(each, DATA[1]).accuracy for each in networks]}

    named: dict[str, Any] = dict(seeds=seeds, form=form, progress=False, on_checkpoint=at_checkpoint)
    one = train_networks(spec, SHORT, *DATA, **named)
    here = f"{folder}/{form}-{len(seeds)}"
    many = train_networks(spec, SHORT, *DATA, folder=here, mesh=mesh, **named)
    assert seen[-1] == len(seeds)
    assert_close(many, one)
    for mine, other in zip(many.networks, one.networks, strict=True):
        assert_close_parameters(mine, other)
        leaf = jax.tree.leaves(nnx.state(mine))[0]
        assert len(leaf.sharding.device_set) == 1
    # The newest checkpoint is lost; one device finishes what five or four began.
    shutil.rmtree(f"{here}/epoch_000002")
    again = train_networks(spec, SHORT, *DATA, folder=here, resume=True, **named)
    assert again.resumed_epochs == 1
    np.testing.assert_allclose(again.history.test_loss, one.history.test_loss, rtol=1e-4)
    np.testing.assert_array_equal(again.checkpoints[1]["accuracy"], many.checkpoints[1]["accuracy"])
    # And the other way round.
    shutil.rmtree(f"{here}/epoch_000002")
    more = train_networks(spec, SHORT, *DATA, folder=here, resume=True, mesh=mesh, **named)
    assert more.resumed_epochs == 1
    np.testing.assert_array_equal(more.history.test_loss, many.history.test_loss)
