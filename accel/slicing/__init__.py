"""Exact feature slicing: denoisers and VAE decoders in slices, with the same result."""
