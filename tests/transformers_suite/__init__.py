"""Transformers' own tests with every model that they construct pruned: `python -m transformers_suite FOLDER`."""
