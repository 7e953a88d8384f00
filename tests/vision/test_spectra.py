"""Spectra of named layers against the metrics of their stored activations; wide layers, divergence, errors."""

import jax
import numpy as np
import pytest
from flax import nnx

from nctheory import metrics
from nctheory.vision.evaluation import extract_features
from nctheory.vision.images import normalise
from nctheory.vision.spectra import layer_spectra
from tests.vision.test_layers import small


@pytest.mark.parametrize("pool", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_layer_agrees_with_its_stored_activations(pool):
    network, train, _ = small("resnet")
    found = layer_spectra(network, train, pool=pool, batch_size=7)
    assert found.names == ("input", *network.layer_names)
    pixels = np.asarray(normalise(np.asarray(train.images), train.mean, train.std)).reshape(train.num_samples, -1)
    for at, (name, dim) in enumerate(zip(found.names, found.dims, strict=True)):
        rows = pixels if name == "input" else extract_features(network, train, layer=name, pool=pool)
        assert rows.shape[1] == dim
        wanted = metrics.feature_spectrum(rows, train.labels, num_classes=3)
        # Activations of other batches differ in their last digit, which the smallest singular values see.
        for field in ("effective_rank", "variability_collapse_index"):
            np.testing.assert_allclose(
                getattr(found.spectrum, field)[at], getattr(wanted, field), rtol=1e-3, err_msg=f"{name} {field}"
            )
    assert np.isfinite(found.spectrum.effective_rank).all()


def test_wide_layers_are_left_out_and_the_others_stay():
    network, train, _ = small("mlp")
    every = layer_spectra(network, train)
    limit = sorted(every.dims)[-2]
    some = layer_spectra(network, train, max_dim=limit)
    assert some.dims == every.dims
    wide = np.array(every.dims) > limit
    assert 0 < wide.sum() < len(wide)
    for found, wanted in zip(jax.tree.leaves(some.spectrum), jax.tree.leaves(every.spectrum), strict=True):
        assert np.isnan(found[wide]).all()
        np.testing.assert_array_equal(found[~wide], wanted[~wide])
    assert layer_spectra(network, train, layers=["layer2"], include_input=False).names == ("layer2",)


def test_activations_that_are_not_finite_give_nan_at_their_layers():
    network, train, _ = small("mlp")
    network.blocks[1].linear.kernel[...] = network.blocks[1].linear.kernel[...] * np.float32(np.inf)
    found = layer_spectra(network, train)
    for leaf in jax.tree.leaves(found.spectrum):
        assert np.isnan(leaf[2:]).all()
    assert np.isfinite(found.spectrum.effective_rank[:2]).all()


def test_errors(own_errors):
    network, train, _ = small("mlp")
    with pytest.raises(ValueError, match="`max_dim` must be an integer >= 1, but is 0"):
        layer_spectra(network, train, max_dim=0)
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1"):
        layer_spectra(network, train, batch_size=0)
    with pytest.raises(ValueError, match=r"`layers` must hold different names .* but holds 'layer9'"):
        layer_spectra(network, train, layers=["layer9"])
    with pytest.raises(ValueError, match=r"`images.labels` must contain every class .* no sample of \[3\]"):
        layer_spectra(network, train, num_classes=4)
    with pytest.raises(ValueError, match=r"`network` must have named layers .* Linear has no `layer_features`"):
        layer_spectra(nnx.Linear(12, 3, rngs=nnx.Rngs(0)), train)
