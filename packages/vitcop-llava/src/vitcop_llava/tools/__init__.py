"""The command line and what it is made of: nothing here is needed to prune. Needs the extra ``tools``."""
