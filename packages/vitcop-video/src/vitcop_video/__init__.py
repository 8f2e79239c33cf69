"""Video for vitcop: reading and sampling frames, and LLaVA-NeXT-Video.

Nothing of it is there yet: this release reserves the name and its place above vitcop-llava.
"""

__version__ = "0.1.0"
