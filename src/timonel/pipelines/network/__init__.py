"""Who calls a network, and what it remembers between two calls."""
