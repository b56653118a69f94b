"""Sources become batches, batches become a state, a state becomes a file."""
