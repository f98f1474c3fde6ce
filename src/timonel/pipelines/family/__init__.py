"""Which family a pipeline belongs to, and what is recommended for it."""
