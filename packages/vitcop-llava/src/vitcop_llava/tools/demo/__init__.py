"""The demo model: scenes that the project renders, questions about them, training and evaluation."""
