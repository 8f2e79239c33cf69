"""Pictures of what survives."""
