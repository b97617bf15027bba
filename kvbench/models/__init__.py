"""Models: what exists (registry), how it comes here (fetching, conversion), how it is loaded."""
