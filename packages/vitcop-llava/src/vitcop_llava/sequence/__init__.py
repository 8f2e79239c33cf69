"""Which token stands where in a pruned sequence, and in its cache. Knows nothing of models, hooks or calls."""
