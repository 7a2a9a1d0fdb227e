"""Checkpoints whose weights are integers already, read into float and with the integers that they had."""
