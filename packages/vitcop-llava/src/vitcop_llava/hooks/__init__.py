"""What runs inside a model's forward while it is pruned, and what one forward pass knows."""
