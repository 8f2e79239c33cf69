"""Everything that a user can hand in, damaged in every way, and what must not happen: `python -m ordeal --help`."""
