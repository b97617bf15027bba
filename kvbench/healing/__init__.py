"""Bases tuned so that a model through its compressed cache predicts what it predicts without."""
