"""Exact strips in VAE decoders."""
