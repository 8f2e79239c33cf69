"""Reading frames from files: one index of a file, and several decoders of its frames."""
