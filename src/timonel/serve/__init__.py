"""Many calls on one model at once: an engine that batches them, and what serves it to others."""
