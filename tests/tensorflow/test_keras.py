"""The layer among other Keras layers: fit, functional and subclassed models, saving, cloning, errors."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from layercompiler.errors import SolveError, StoreError
from layercompiler.tensorflow import Layer
from tests.jax.problems import exported

RNG = np.random.default_rng(0)
INPUT = RNG.normal(size=(32, 2)).astype("float32")


@pytest.fixture(scope="module")
def layer():
    return exported("exponential", "tensorflow")[0]


@pytest.fixture(scope="module")
def target(layer):
    return layer(INPUT @ RNG.normal(size=(2, 4)).astype("float32"))[0].numpy()


def functional(layer):
    inputs = keras.Input((2,))
    return keras.Model(inputs, layer(keras.layers.Dense(4)(inputs))[0])


class Subclassed(keras.Model):
    def __init__(self, layer):
        super().__init__()
        self.dense, self.solve = keras.layers.Dense(4), layer

    def call(self, x):
        return self.solve(self.dense(x))[0]


@pytest.mark.parametrize("build", [functional, Subclassed])
@pytest.mark.parametrize("settings", [{}, {"run_eagerly": True}], ids=["graph", "eager"])
def test_fit(layer, target, build, settings):
    keras.utils.set_random_seed(0)
    model = build(layer)
    model.compile(keras.optimizers.Adam(0.1), "mse", **settings)
    losses = model.fit(INPUT, target, epochs=12, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.2 * losses[0] and not model.jit_compile


def test_symbols_have_shapes_and_dtypes(layer):
    (x,) = layer(keras.Input((4,), dtype="float64"))
    assert x.shape == (None, 4) and x.dtype == "float64"
    (x,) = layer(c=keras.Input((3, 4)))
    assert x.shape == (None, 3, 4) and x.dtype == "float32"


def test_save_load_and_clone(layer, target, tmp_path):
    model = functional(layer)
    model.compile("adam", "mse")
    model.fit(INPUT, target, verbose=0)
    want = model.predict(INPUT, verbose=0)
    path = tmp_path / "model.keras"
    model.save(path)
    np.testing.assert_array_equal(keras.models.load_model(path).predict(INPUT, verbose=0), want)
    code = f"""
import sys, numpy as np, keras, layercompiler.tensorflow
x = keras.models.load_model({str(path)!r}).predict(np.load({str(tmp_path / "input.npy")!r}), verbose=0)
assert "cvxpy" not in sys.modules
np.save({str(tmp_path / "output.npy")!r}, x)
"""
    np.save(tmp_path / "input.npy", INPUT)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)
    np.testing.assert_array_equal(np.load(tmp_path / "output.npy"), want)
    clone = keras.models.clone_model(model)
    assert clone.layers[-1] is not layer and clone(INPUT).shape == (32, 4)


def test_a_damaged_configuration_is_refused(layer):
    config = layer.get_config()
    with pytest.raises(StoreError):
        Layer.from_config({**config, "compiled": config["compiled"][:400]})


def test_our_errors_pass_through_a_model():
    layer, (q, *_) = exported("qp", "tensorflow")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layer(q.astype("float32"), [[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0]], inputs)[0])
    with pytest.raises(SolveError, match=r"instance 1.*infeasible") as caught:
        model(np.array([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]]))
    assert caught.value.indices == ((1,),)
