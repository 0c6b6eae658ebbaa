"""Measures what precisions and skipped steps cost, and turns the measurements into plans."""
