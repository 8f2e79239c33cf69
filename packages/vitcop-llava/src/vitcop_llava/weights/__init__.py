"""The weights that a model computes with: where they are, and how to tell one set from another."""
