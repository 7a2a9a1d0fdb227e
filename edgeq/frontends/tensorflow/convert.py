"""`python -m edgeq.frontends.tensorflow.convert SOURCE TARGET TRUST`: TensorFlow's converter, in a process of its own.

In float32 and with TFLite's own operators alone: what is quantized, and how, is decided later.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from edgeq.frontends.tensorflow.graph_vet import refusal

CARRIES_CODE = 77
"""The exit code where loading would do more than compute; what, is printed."""


def main(source: str, target: str, trust: str) -> None:
    """
    Args:
        source: a Keras file, or the folder of a SavedModel.
        target: where the TFLite file goes.
        trust: `1` where code from the file may run.
    """
    import tensorflow as tf

    if Path(source).is_dir() and trust != "1":
        found = refusal(Path(source))
        if found:
            print(found)
            sys.exit(CARRIES_CODE)
    if Path(source).is_dir():
        converter = tf.lite.TFLiteConverter.from_saved_model(source)
    else:
        converter = tf.lite.TFLiteConverter.from_keras_model(_model(source, trust == "1"))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    Path(target).write_bytes(converter.convert())


def _model(source: str, trust: bool) -> Any:
    """By Keras 3; files of Keras 2 that it does not read, by that."""
    import keras

    try:
        return keras.models.load_model(source, compile=False, safe_mode=not trust)
    except Exception:
        if source.endswith(".keras"):
            raise
        import tf_keras

        return tf_keras.models.load_model(source, compile=False)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    main(*sys.argv[1:])
