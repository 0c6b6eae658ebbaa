"""What a block does, recorded without weights, and along which axis each call may be sliced."""
