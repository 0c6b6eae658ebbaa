"""What every technique may use: checks, structure, run state, diffusers bridge."""
