"""Measure what precisions and skipped steps cost, and turn the measurements into plans."""
