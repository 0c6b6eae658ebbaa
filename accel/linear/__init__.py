"""8-bit linear layers: which ones, what runs for a call, and whether that pays."""
