"""Which tokens are kept: pure tensor maths."""
