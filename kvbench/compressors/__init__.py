"""One file per named method."""
