"""The training step, the loop around it, and everything they are built from."""
