"""What every technique may use: checks, structure, run state, and the bridge to diffusers."""
