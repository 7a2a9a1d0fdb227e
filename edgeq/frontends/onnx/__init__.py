"""ONNX files, of opset 9 and later, as networks that PyTorch can trace."""
