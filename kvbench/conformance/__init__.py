"""What every compressor must hold to, as a kit and as pytest cases."""
