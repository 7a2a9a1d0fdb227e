"""Keras files and SavedModel folders, by way of TensorFlow's own converter to TFLite."""
