"""Makes the files beside it; runs in the tensorflow toolchain, and where jax is installed instead makes that one."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")

HERE = Path(__file__).parent


def two_towers(k: Any) -> Any:
    """Two inputs of one shape, three outputs of one shape."""
    query, item = k.Input((8,), name="query"), k.Input((8,), name="item")
    left = k.layers.Dense(4, name="left")(query)
    right = k.layers.Dense(4, name="right")(item)
    score = k.layers.Dense(4, name="score")(k.layers.Subtract()([left, right]))
    return k.Model([query, item], [score, left, right], name="two_towers")


def main() -> None:
    """Write every file."""
    import keras
    import numpy as np
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = two_towers(keras)
    model.save(HERE / "two_towers.h5")
    model.save_weights(HERE / "only.weights.h5")
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    (HERE / "two_towers.tflite").write_bytes(converter.convert())
    rng = np.random.default_rng(0)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([rng.normal(size=(1, 8)).astype("f4")] * 2 for _ in range(16))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (HERE / "two_towers_int8.tflite").write_bytes(converter.convert())

    class Scores(tf.Module):  # type: ignore[misc]
        """Two signatures."""

        def __init__(self) -> None:
            super().__init__()
            self.table = tf.Variable(rng.normal(size=(6, 3)).astype("f4"))

        @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="features")])  # type: ignore[untyped-decorator]
        def score(self, features: Any) -> dict[str, Any]:
            """Return logits and labels."""
            logits = tf.matmul(features, self.table)
            return {"logits": logits, "label": tf.argmax(logits, axis=-1)}

        @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="features")])  # type: ignore[untyped-decorator]
        def scale(self, features: Any) -> dict[str, Any]:
            """Return the features doubled."""
            return {"doubled": features * 2.0}

    class Writes(tf.Module):  # type: ignore[misc]
        """Writes a file on the way."""

        @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="features")])  # type: ignore[untyped-decorator]
        def write(self, features: Any) -> dict[str, Any]:
            """Return the features."""
            tf.io.write_file("/tmp/modelium-was-here", "x")
            return {"same": tf.identity(features)}

    scores, writes = Scores(), Writes()
    for name, module, signatures in (
        ("scores", scores, {"serving_default": scores.score, "scale": scores.scale}),
        ("writes", writes, {"serving_default": writes.write}),
    ):
        tf.saved_model.save(module, str(HERE / name), signatures=signatures)
        (HERE / name / "fingerprint.pb").unlink()
        (HERE / name / "assets").rmdir()


def half() -> None:
    """Write ``half.keras``, a model of float32 weights that computes in float16."""
    import keras

    keras.utils.set_random_seed(0)
    policy = keras.dtype_policies.DTypePolicy("mixed_float16")
    layers = [keras.Input((8,)), keras.layers.Dense(16, "relu", dtype=policy), keras.layers.Dense(2, dtype="float32")]
    keras.Sequential(layers).save(HERE / "half.keras")


def lookup() -> None:
    """Write ``lookup.keras``: numbers from a vocabulary to rows of a table."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.Input((1,), dtype="int64", name="code"), keras.layers.IntegerLookup(vocabulary=[10, 2_000, 30])]
    keras.Sequential([*layers, keras.layers.Embedding(4, 3), keras.layers.Flatten()]).save(HERE / "lookup.keras")


def signals() -> None:
    """Write ``spectrum``, which takes a Fourier transform, and ``boxes``, whose rows depend on each other."""
    import tensorflow as tf

    class Spectrum(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None, 64), tf.float32, name="wave")])  # type: ignore[untyped-decorator]
        def measure(self, wave: Any) -> dict[str, Any]:
            return {"spectrum": tf.abs(tf.signal.stft(wave, 16, 8))}

    class Boxes(tf.Module):  # type: ignore[misc]
        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec((None, 4), tf.float32, name="boxes"), tf.TensorSpec((None,), name="scores")]
        )
        def pick(self, boxes: Any, scores: Any) -> dict[str, Any]:
            return {"kept": tf.gather(boxes, tf.image.non_max_suppression(boxes, scores, 5))}

    spectrum, boxes = Spectrum(), Boxes()
    for name, module, function in (("spectrum", spectrum, spectrum.measure), ("boxes", boxes, boxes.pick)):
        tf.saved_model.save(module, str(HERE / name), signatures={"serving_default": function})
        (HERE / name / "fingerprint.pb").unlink()
        (HERE / name / "assets").rmdir()


def jax_function() -> None:
    """Write ``function.jax``; needs jax and flatbuffers, which no toolchain has."""
    import jax
    import jax.numpy as jnp

    (rows,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(jax.jit(lambda x: jnp.tanh(x @ jnp.ones((6, 3)))))(
        jax.ShapeDtypeStruct((rows, 6), jnp.float32)
    )
    (HERE / "function.jax").write_bytes(exported.serialize())


if __name__ == "__main__":
    if find_spec("jax"):
        jax_function()
    else:
        main()
        half()
        lookup()
        signals()
