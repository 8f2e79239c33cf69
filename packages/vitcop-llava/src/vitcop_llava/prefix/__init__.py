"""Pruned images on their own: one for many questions, in memory and in a file, and embeddings for other engines."""
