"""The thirteen tasks of RULER."""
