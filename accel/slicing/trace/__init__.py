"""Record what a block does without weights, and find the axes along which calls may be sliced."""
