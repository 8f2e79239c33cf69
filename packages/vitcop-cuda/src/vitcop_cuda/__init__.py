"""Compiled kernels for the operators of vitcop-core.

There is none yet: importing this package changes nothing, and every operator runs on its pure-torch reference.
"""

__version__ = "0.1.0"
