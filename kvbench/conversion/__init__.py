"""Checkpoints with multi-head latent attention, made out of models that were trained without it."""
