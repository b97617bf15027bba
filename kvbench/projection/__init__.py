"""What hardware allows a model on paper: bytes, what fits, and the least time of a decode step. No weights needed."""
