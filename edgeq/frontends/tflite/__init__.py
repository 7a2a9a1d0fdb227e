"""TFLite files as networks that PyTorch can trace."""
