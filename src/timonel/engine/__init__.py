"""What calls networks: one run, many runs in a batch, converged references. Knows no diffusers."""
