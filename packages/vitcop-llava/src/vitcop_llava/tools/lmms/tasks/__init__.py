"""Tasks for lmms-eval, and the functions that they call."""
