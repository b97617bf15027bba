"""Accuracy tasks."""
