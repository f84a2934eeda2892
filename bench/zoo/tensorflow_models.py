"""The zoo's Keras, SavedModel and TFLite part: small models that are made on the spot, with random weights.

Runs in the tensorflow toolchain: ``.toolchains/tensorflow/bin/python bench/zoo/tensorflow_models.py FOLDER``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1", TF_ENABLE_ONEDNN_OPTS="0")

Build = Callable[[Any], Any]
SEED = 7


def _mlp(k: Any) -> Any:
    return k.Sequential([k.Input((16,)), k.layers.Dense(32, "relu"), k.layers.Dropout(0.5), k.layers.Dense(4)])


def _classifier(k: Any) -> Any:
    return k.Sequential([k.Input((20,)), k.layers.Dense(64, "gelu"), k.layers.Dense(10, "softmax")])


def _cnn(k: Any) -> Any:
    return k.Sequential(
        [
            k.Input((28, 28, 3)),
            k.layers.Conv2D(8, 3, padding="same", activation="relu"),
            k.layers.MaxPooling2D(),
            k.layers.Conv2D(16, 3, strides=2),
            k.layers.LeakyReLU(),
            k.layers.AveragePooling2D(2),
            k.layers.Flatten(),
            k.layers.Dense(10, activation="softmax"),
        ]
    )


def _cnn_any_size(k: Any) -> Any:
    return k.Sequential(
        [
            k.Input((None, None, 3)),
            k.layers.Conv2D(8, 3, padding="same", activation="relu"),
            k.layers.GlobalAveragePooling2D(),
            k.layers.Dense(5),
        ]
    )


def _depthwise(k: Any) -> Any:
    return k.Sequential(
        [
            k.Input((32, 32, 3)),
            k.layers.SeparableConv2D(16, 3, padding="same"),
            k.layers.BatchNormalization(),
            k.layers.ReLU(6.0),
            k.layers.DepthwiseConv2D(3, strides=2),
            k.layers.GlobalMaxPooling2D(),
            k.layers.Dense(3),
        ]
    )


def _batch_norm(k: Any) -> Any:
    model = k.Sequential(
        [k.Input((8, 8, 4)), k.layers.Conv2D(6, 3), k.layers.BatchNormalization(), k.layers.Activation("swish")]
    )
    import numpy as np

    rng = np.random.default_rng(SEED)
    model.layers[1].set_weights([np.abs(rng.normal(size=w.shape)) + 0.1 for w in model.layers[1].get_weights()])
    return model


def _residual(k: Any) -> Any:
    x = inputs = k.Input((16, 16, 8), name="image")
    y = k.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    y = k.layers.Conv2D(8, 3, padding="same")(y)
    x = k.layers.ReLU()(k.layers.Add()([x, y]))
    x = k.layers.Conv2DTranspose(4, 2, strides=2)(x)
    return k.Model(inputs, k.layers.UpSampling2D(interpolation="bilinear")(x))


def _mobilenet(k: Any) -> Any:
    return k.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10)


def _efficientnet(k: Any) -> Any:
    return k.applications.EfficientNetB0(input_shape=(64, 64, 3), weights=None, classes=10)


def _lstm(k: Any) -> Any:
    return k.Sequential([k.Input((None, 6)), k.layers.LSTM(12, return_sequences=True), k.layers.LSTM(8)])


def _lstm_fixed(k: Any) -> Any:
    return k.Sequential([k.Input((12, 6)), k.layers.LSTM(12), k.layers.Dense(2)])


def _gru(k: Any) -> Any:
    return k.Sequential([k.Input((None, 6)), k.layers.GRU(12), k.layers.Dense(2)])


def _bidirectional(k: Any) -> Any:
    return k.Sequential(
        [k.Input((None, 5)), k.layers.Bidirectional(k.layers.LSTM(7, return_sequences=True)), k.layers.Dense(3)]
    )


def _masked_text(k: Any) -> Any:
    return k.Sequential(
        [
            k.Input((None,), dtype="int32", name="token_ids"),
            k.layers.Embedding(50, 8, mask_zero=True),
            k.layers.LSTM(8),
            k.layers.Dense(2, activation="softmax"),
        ]
    )


def _embedding_bag(k: Any) -> Any:
    return k.Sequential(
        [
            k.Input((None,), dtype="int64", name="token_ids"),
            k.layers.Embedding(40, 8),
            k.layers.GlobalAveragePooling1D(),
            k.layers.Dense(1, activation="sigmoid"),
        ]
    )


def _attention(k: Any) -> Any:
    inputs = k.Input((None,), dtype="int32", name="token_ids")
    x = k.layers.Embedding(60, 16)(inputs)
    y = k.layers.MultiHeadAttention(4, 4)(x, x)
    x = k.layers.LayerNormalization()(x + y)
    x = k.layers.LayerNormalization()(x + k.layers.Dense(16)(k.layers.Dense(32, "gelu")(x)))
    return k.Model(inputs, k.layers.Dense(3)(x), name="encoder")


def _conv1d(k: Any) -> Any:
    return k.Sequential(
        [
            k.Input((None, 4)),
            k.layers.Conv1D(8, 3, padding="causal", dilation_rate=2, activation="tanh"),
            k.layers.GlobalMaxPooling1D(),
            k.layers.Dense(2),
        ]
    )


def _conv3d(k: Any) -> Any:
    return k.Sequential(
        [k.Input((6, 8, 8, 2)), k.layers.Conv3D(4, 3), k.layers.MaxPooling3D(), k.layers.Flatten(), k.layers.Dense(2)]
    )


def _several(k: Any) -> Any:
    """Two inputs of one shape and two outputs of one shape: whoever maps by position swaps them."""
    query, item = k.Input((8,), name="query"), k.Input((8,), name="item")
    left = k.layers.Dense(4, name="left")(query)
    right = k.layers.Dense(4, name="right")(item)
    score = k.layers.Dense(4, name="score")(k.layers.Subtract()([left, right]))
    return k.Model([query, item], {"score": score, "left_embedding": left, "right_embedding": right})


def _wide_and_deep(k: Any) -> Any:
    numbers = k.Input((5,), name="numbers")
    category = k.Input((1,), dtype="int32", name="category")
    x = k.layers.Concatenate()([numbers, k.layers.Flatten()(k.layers.Embedding(12, 4)(category))])
    x = k.layers.Normalization(mean=[0.1] * 9, variance=[2.0] * 9)(x)
    return k.Model([numbers, category], k.layers.Dense(1)(k.layers.Dense(16, "relu")(x)))


def _rescaled(k: Any) -> Any:
    return k.Sequential(
        [
            k.Input((32, 32, 3), dtype="uint8", name="pixels"),
            k.layers.Rescaling(1 / 255),
            k.layers.Conv2D(4, 3, activation="relu"),
            k.layers.GlobalAveragePooling2D(),
            k.layers.Dense(2),
        ]
    )


def _fixed_batch(k: Any) -> Any:
    return k.Sequential([k.Input(batch_shape=(4, 6)), k.layers.Dense(3, "elu")])


def _half(k: Any) -> Any:
    policy = k.dtype_policies.DTypePolicy("mixed_float16")
    return k.Sequential([k.Input((8,)), k.layers.Dense(16, "relu", dtype=policy), k.layers.Dense(2, dtype="float32")])


def _grouped(k: Any) -> Any:
    return k.Sequential([k.Input((16, 16, 4), name="image"), k.layers.Conv2D(8, 3, groups=2), k.layers.Flatten()])


def _discretised(k: Any) -> Any:
    buckets = k.layers.Discretization(bin_boundaries=[0.0, 0.5, 1.0])
    return k.Sequential([k.Input((3,), name="amounts"), buckets, k.layers.Embedding(4, 2), k.layers.Flatten()])


def _looked_up(k: Any) -> Any:
    words = k.layers.StringLookup(vocabulary=["a", "the", "is"])
    return k.Sequential([k.Input((3,), dtype="string", name="words"), words, k.layers.Embedding(4, 2)])


def _masked_gru(k: Any) -> Any:
    return k.Sequential([k.Input((None, 6)), k.layers.Masking(), k.layers.GRU(5, return_sequences=True)])


def _conv_lstm(k: Any) -> Any:
    return k.Sequential([k.Input((5, 8, 8, 2)), k.layers.ConvLSTM2D(3, 3), k.layers.GlobalMaxPooling2D()])


def _numbers_looked_up(k: Any) -> Any:
    codes = k.layers.IntegerLookup(vocabulary=[10, 2_000, 30])
    return k.Sequential([k.Input((2,), dtype="int64", name="codes"), codes, k.layers.Embedding(4, 3)])


def _unet(k: Any) -> Any:
    inputs = k.Input((None, None, 3), name="image")
    wide = k.layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    deep = k.layers.Conv2D(16, 3, padding="same", activation="relu")(k.layers.MaxPooling2D()(wide))
    joined = k.layers.Concatenate()([wide, k.layers.UpSampling2D()(deep)])
    return k.Model(inputs, k.layers.Conv2D(1, 1, activation="sigmoid")(joined))


def _translator(k: Any) -> Any:
    source, target = k.Input((None, 6), name="source"), k.Input((None, 4), name="target")
    _, h, c = k.layers.LSTM(8, return_state=True)(source)
    decoded = k.layers.LSTM(8, return_sequences=True)(target, initial_state=[h, c])
    return k.Model([source, target], k.layers.Dense(4, activation="softmax")(decoded))


def _augmented(k: Any) -> Any:
    drawn = [k.layers.RandomFlip(), k.layers.RandomRotation(0.1), k.layers.Conv2D(4, 3, activation="relu")]
    return k.Sequential([k.Input((24, 24, 3)), *drawn, k.layers.GlobalAveragePooling2D(), k.layers.Dense(3)])


def _causal(k: Any) -> Any:
    tokens = k.Input((None,), dtype="int32", name="token_ids")
    x = k.layers.Embedding(30, 16, mask_zero=True)(tokens)
    return k.Model(tokens, k.layers.Dense(30)(k.layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)))


KERAS: dict[str, Build] = {
    build.__name__[1:]: build
    for build in (
        _mlp, _classifier, _cnn, _cnn_any_size, _depthwise, _batch_norm, _residual, _mobilenet, _efficientnet,
        _lstm, _lstm_fixed, _gru, _bidirectional, _masked_text, _embedding_bag, _attention, _conv1d, _conv3d,
        _several, _wide_and_deep, _rescaled, _fixed_batch, _half, _grouped, _discretised, _looked_up,
        _masked_gru, _conv_lstm, _numbers_looked_up, _unet, _translator, _augmented, _causal,
    )
}  # fmt: skip
H5 = ("mlp", "cnn", "lstm", "several")
SAVED = ("classifier", "cnn", "gru", "attention", "several", "depthwise")
LITE = ("mlp", "cnn", "depthwise", "attention", "several", "mobilenet", "lstm_fixed")


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Make every model below ``folder`` and yield its name and path, one after the other."""
    import keras

    folder.mkdir(parents=True, exist_ok=True)
    built: dict[str, Any] = {}
    for name, build in KERAS.items():
        keras.utils.set_random_seed(SEED)
        built[name] = build(keras)
        path = folder / f"{name}.keras"
        built[name].save(path)
        yield f"keras-{name}", path
    for name in H5:
        path = folder / f"{name}.h5"
        built[name].save(path)
        yield f"h5-{name}", path
    for name in SAVED:
        path = folder / f"{name}_saved_model"
        built[name].export(path, verbose=False)
        yield f"saved-model-{name}", path
    yield from _own_saved_models(folder)
    for name in LITE:
        for mode in ("float", "dynamic", "int8"):
            content = _lite(built[name], mode)
            if content is not None:
                path = folder / f"{name}_{mode}.tflite"
                path.write_bytes(content)
                yield f"tflite-{name}-{mode}", path
    yield from _refused(keras, built, folder)


def _own_saved_models(folder: Path) -> Iterator[tuple[str, Path]]:
    import tensorflow as tf

    class Several(tf.Module):  # type: ignore[misc]
        """Two signatures, of which serving_default is served."""

        def __init__(self) -> None:
            super().__init__()
            self.table = tf.Variable(tf.random.stateless_normal((6, 3), (1, 2)))

        @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="features")])  # type: ignore[untyped-decorator]
        def score(self, features: Any) -> dict[str, Any]:
            logits = tf.matmul(features, self.table)
            return {"logits": logits, "label": tf.argmax(logits, axis=-1)}

        @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.float32, name="features")])  # type: ignore[untyped-decorator]
        def embed(self, features: Any) -> dict[str, Any]:
            return {"embedding": tf.nn.l2_normalize(features, axis=-1)}

    module = Several()
    path = folder / "two_signatures"
    signatures = {"serving_default": module.score, "embed": module.embed}
    tf.saved_model.save(module, str(path), signatures=signatures)
    yield "saved-model-two-signatures", path

    class Loop(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, name="x")])  # type: ignore[untyped-decorator]
        def step(self, x: Any) -> dict[str, Any]:
            for _ in tf.range(5):
                x = tf.where(tf.reduce_sum(x, axis=-1, keepdims=True) > 0, x * 0.5, x + 1.0)
            return {"y": x}

    loop = Loop()
    path = folder / "while_loop"
    tf.saved_model.save(loop, str(path), signatures={"serving_default": loop.step})
    yield "saved-model-while-loop", path

    class Signals(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None, 256), tf.float32, name="wave")])  # type: ignore[untyped-decorator]
        def spectrum(self, wave: Any) -> dict[str, Any]:
            return {"spectrum": tf.abs(tf.signal.stft(wave, 64, 32))}

        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec((None, 4), tf.float32, name="boxes"), tf.TensorSpec((None,), name="scores")]
        )
        def pick(self, boxes: Any, scores: Any) -> dict[str, Any]:
            return {"kept": tf.gather(boxes, tf.image.non_max_suppression(boxes, scores, 5))}

    signals = Signals()
    for name, function in (("spectrum", signals.spectrum), ("boxes", signals.pick)):
        path = folder / name
        tf.saved_model.save(signals, str(path), signatures={"serving_default": function})
        yield f"saved-model-{name}", path


def _lite(model: Any, mode: str) -> bytes | None:
    """Return TFLite bytes; None where the converter itself cannot."""
    import numpy as np
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if mode != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "int8":
        rng = np.random.default_rng(SEED)
        specs = [(tuple(n or 8 for n in t.shape[1:]), t.dtype) for t in model.inputs]

        def samples() -> Iterator[list[Any]]:
            for _ in range(16):
                yield [
                    rng.integers(0, 40, (1, *shape)).astype(dtype)
                    if "int" in dtype
                    else rng.normal(size=(1, *shape)).astype(dtype)
                    for shape, dtype in specs
                ]

        converter.representative_dataset = samples
        if all("float" in t.dtype for t in model.inputs):
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras reports every export there
            content: bytes = converter.convert()
    except (RuntimeError, ValueError, ConverterError) as error:
        print(f"TFLite itself cannot write this one: {str(error)[:200]}", file=sys.stderr)
        return None
    return content


def _refused(k: Any, built: dict[str, Any], folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what may not be converted, and must be refused with a reason."""
    path = folder / "only.weights.h5"
    built["mlp"].save_weights(path)
    yield "refused-weights-only", path
    with_code = k.Sequential([k.Input((4,)), k.layers.Lambda(lambda x: x * 2.0 + 1.0), k.layers.Dense(2)])
    path = folder / "lambda.keras"
    with_code.save(path)
    yield "refused-lambda", path

    @k.saving.register_keras_serializable(package="zoo")
    class Doubled(k.layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            return x * 2.0

    path = folder / "custom_layer.keras"
    k.Sequential([k.Input((4,)), Doubled(), k.layers.Dense(2)]).save(path)
    yield "refused-custom-layer", path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: tensorflow_models.py FOLDER")
    for title, made in models(Path(sys.argv[1])):
        print(f"{title}\t{made}", flush=True)
