"""Memory, speed and quality, measured from one real cache."""
