"""Detectors: from outputs to boxes, and their mean average precision."""
