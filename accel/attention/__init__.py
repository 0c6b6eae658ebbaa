"""Quantized attention: the seam to torch, one record per attention module, precision by step."""
