"""Coordinates in which keys and values are compressed: pure tensor maths."""
