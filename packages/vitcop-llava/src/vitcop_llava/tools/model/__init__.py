"""A model with its processor: loaded, asked, and measured from outside."""
