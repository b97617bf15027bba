"""Attention over stored tokens: the reference in plain torch, and kernels where a device has them."""
