"""Texts: what exists (registry), which documents calibrate and which evaluate (splits), token windows of them."""
