"""Many calls on one model at once: an engine that batches them, and a server of it over HTTP."""
