"""Argument checks: what passes, what is refused with which words, and that traced values pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nctheory import ArgumentError, _checks


@pytest.mark.parametrize("value", [3, np.int32(3), np.int64(3)])
def test_integer_passes(value):
    got = _checks.integer("width", value, minimum=3)
    assert got == 3
    assert type(got) is int


def test_passes():
    _checks.real("decay", 0.0, minimum=0)
    _checks.real("decay", jnp.array([0.5, 1.0], jnp.bfloat16), minimum=0, maximum=1)
    _checks.real("decay", [1, 2.5], minimum=0, exclusive_minimum=True)
    _checks.choice("loss", "mse", ("mse", "logistic"))
    _checks.shape("features", np.ones((3, 2)), ("N", 2))
    _checks.shape("features", 1.0, ())
    _checks.finite("features", jnp.ones((3, 2)))
    _checks.finite("features", np.array([1, 2]))
    _checks.labels("labels", np.array([0, 2]), num_classes=3, length=2)
    _checks.labels("labels", jnp.array([], jnp.int32), num_classes=3)
    _checks.no_empty_class("labels", np.array([1, 0, 1]), num_classes=2)
    _checks.nested("fine_labels", np.array([2, 0, 2, 1]), jnp.array([0, 1, 0, 0]))


def test_lists_may_hold_traced_numbers():
    """Their shape is known, and so are the entries that are not traced."""

    @jax.jit
    def look(x):
        assert not _checks.is_concrete([x, 1.0])
        assert _checks.shape_of("decay", [x, 1.0]) == (2,)
        assert _checks.shape_of("decay", ([x, 1.0], [2, 3])) == (2, 2)
        _checks.real("decay", [x, 1.0], minimum=0)
        _checks.number("decay", [x, 1.0], minimum=0)
        _checks.number("decay", x, minimum=0)
        with pytest.raises(ArgumentError, match="`decay` must be finite and >= 0, but is -1"):
            _checks.real("decay", [x, -1.0], minimum=0)
        return x

    look(1.0)
    assert _checks.integers("widths", np.array([2, 3]), minimum=2) == (2, 3)


X = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _checks.integer("width", 0, minimum=1), "Argument `width` must be an integer >= 1, but is 0."),
        (lambda: _checks.integer("width", 3.0), "Argument `width` must be an integer, but is 3.0."),
        (lambda: _checks.integer("width", True), "Argument `width` must be an integer, but is True."),
        (lambda: _checks.integer("width", np.bool_(True)), "Argument `width` must be an integer, but is True."),
        (lambda: _checks.integer("width", "3"), "Argument `width` must be an integer, but is '3'."),
        (
            lambda: _checks.integer("width", X),
            "Argument `width` must be an integer, but is an array of shape (3, 2) and dtype float64.",
        ),
        (lambda: _checks.integers("w", 3), "Argument `w` must be a sequence of integers, but is 3."),
        (lambda: _checks.integers("w", "33"), "Argument `w` must be a sequence of integers, but is '33'."),
        (lambda: _checks.integers("w", [3, 2.0]), "Argument `w` must be an integer, but is 2.0."),
        (lambda: _checks.number("d", None), "Argument `d` must be a real number, but is None."),
        (lambda: _checks.number("d", [1.0, True]), "Argument `d` must be a real number, but is [1.0, True]."),
        (
            lambda: _checks.shape("d", [[1], [1, 2]], ("K",)),
            "Argument `d` must be rectangular, but has entries of shapes [(1,), (2,)].",
        ),
        (lambda: _checks.real("d", -1.0, minimum=0), "Argument `d` must be finite and >= 0, but is -1."),
        (
            lambda: _checks.real("d", 0, minimum=0, exclusive_minimum=True),
            "Argument `d` must be finite and > 0, but is 0.",
        ),
        (lambda: _checks.real("d", 2, maximum=1), "Argument `d` must be finite and <= 1, but is 2."),
        (
            lambda: _checks.real("d", 1, minimum=0, maximum=1, exclusive_maximum=True),
            "Argument `d` must be finite and >= 0 and < 1, but is 1.",
        ),
        (lambda: _checks.real("d", float("nan")), "Argument `d` must be finite, but is nan."),
        (lambda: _checks.real("d", jnp.inf), "Argument `d` must be finite, but is inf."),
        (
            lambda: _checks.real("d", np.array([1.0, -2.0]), minimum=0),
            "Argument `d` must be finite and >= 0, but is -2 in one of its 2 entries.",
        ),
        (lambda: _checks.real("d", 1j), "Argument `d` must be a real number, but is 1j."),
        (lambda: _checks.real("d", True), "Argument `d` must be a real number, but is True."),
        (lambda: _checks.real("d", "a"), "Argument `d` must be a real number, but is 'a'."),
        (
            lambda: _checks.choice("loss", "l2", ("mse", "ce")),
            "Argument `loss` must be one of ['ce', 'mse'], but is 'l2'.",
        ),
        (lambda: _checks.shape("x", X, ("N", 3)), "Argument `x` must have shape (N, 3), but has shape (3, 2)."),
        (lambda: _checks.shape("x", X, (3,)), "Argument `x` must have shape (3,), but has shape (3, 2)."),
        (lambda: _checks.shape("x", 1.0, ("N",)), "Argument `x` must have shape (N,), but has shape ()."),
        (
            lambda: _checks.labels("y", np.array([0, 3]), num_classes=3),
            "Argument `y` must lie in 0..2, but spans 0..3.",
        ),
        (
            lambda: _checks.labels("y", np.array([-1, 1]), num_classes=3),
            "Argument `y` must lie in 0..2, but spans -1..1.",
        ),
        (
            lambda: _checks.labels("y", np.array([0.0, 1.0]), num_classes=3),
            "Argument `y` must hold integers, but has dtype float64.",
        ),
        (
            lambda: _checks.labels("y", np.array([True]), num_classes=3),
            "Argument `y` must hold integers, but has dtype bool.",
        ),
        (
            lambda: _checks.labels("y", np.array([0]), num_classes=3, length=2),
            "Argument `y` must have shape (2,), but has shape (1,).",
        ),
        (
            lambda: _checks.labels("y", np.array([[0]]), num_classes=3),
            "Argument `y` must have shape (N,), but has shape (1, 1).",
        ),
        (
            lambda: _checks.no_empty_class("y", np.array([0, 3]), num_classes=4),
            "Argument `y` must contain every class 0..3, but has no sample of [1, 2].",
        ),
        (
            lambda: _checks.nested("f", np.array([0, 1, 1, 2, 2]), jnp.array([0, 0, 1, 1, 0])),
            "Argument `f` must hold classes that lie within one label each, but classes [1, 2] occur under several "
            "labels.",
        ),
    ],
)
def test_refusals_word_by_word(call, message):
    with pytest.raises(ArgumentError, match="Argument") as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 2, 3)])
@pytest.mark.parametrize("library", [np, jnp])
def test_finite_finds_every_bad_entry(library, shape):
    """The column sums taken first must not hide opposite infinities, nor refuse large numbers whose sum overflows."""
    for bad in ([np.nan], [np.inf], [np.inf, -np.inf], [-np.inf]):
        values = np.ones(shape)
        values.reshape(-1)[: len(bad)] = bad
        message = f"must be finite, but has {len(bad)} NaN or infinite of {values.size} entries"
        with pytest.raises(ValueError, match=message):
            _checks.finite("x", library.asarray(values))
        if values.ndim > 1:  # Both in one column, so that they meet in a sum.
            column = np.ones(shape)
            column[: len(bad), ..., 0] = np.reshape(bad, (-1, *[1] * (values.ndim - 2)))
            with pytest.raises(ValueError, match="must be finite"):
                _checks.finite("x", library.asarray(column))
    _checks.finite("x", library.full(shape, np.finfo(np.float64 if library is np else np.float32).max))


def test_traced_values_pass_and_their_shapes_do_not():
    @jax.jit
    def function(x, y):
        _checks.real("x", x, minimum=0)
        _checks.finite("x", x)
        _checks.labels("y", y, num_classes=2)
        _checks.no_empty_class("y", y, num_classes=2)
        _checks.nested("y", np.array([0, 0]), y)
        return x

    got = function(jnp.array([-1.0, jnp.nan]), jnp.array([5, 7]))
    np.testing.assert_array_equal(got, [-1.0, np.nan])
    got = jax.vmap(function)(jnp.array([[-1.0], [jnp.inf]]), jnp.array([[5], [7]]))
    np.testing.assert_array_equal(got, [[-1.0], [np.inf]])
    with pytest.raises(ValueError, match="Argument `y` must hold integers, but has dtype float"):
        function(jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"Argument `y` must have shape \(N,\), but has shape \(1, 2\)"):
        function(jnp.ones(2), jnp.ones((1, 2), int))


def test_is_concrete():
    assert all(_checks.is_concrete(value) for value in (1, 1.0, np.ones(2), np.float32(1), jnp.ones(2), [1, 2]))
    assert not _checks.is_concrete(object())
    assert not _checks.is_concrete(None)
    seen = []
    jax.jit(lambda x: seen.append(_checks.is_concrete(x)) or x)(1.0)
    assert seen == [False]
