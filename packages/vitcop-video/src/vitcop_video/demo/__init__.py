"""The demo video model: clips that the project renders, questions about them, training and evaluation."""

from pathlib import Path

DEMO_FOLDER = Path(__file__).parent / "weights"
"""The weights that come with the package: `LlavaNextVideoForConditionalGeneration` and `ClipProcessor` load them."""
