"""What a pipeline reads of its scheduler and its timesteps, driven by a run."""
