"""PyTorch modules whose weights are packed integers in memory, made when a model is loaded."""
