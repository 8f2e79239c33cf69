"""One pruned image for many questions, in memory and in a file."""
