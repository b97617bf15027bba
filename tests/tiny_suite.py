"""The smallest suite that measures something: one random model, one compressor, one document."""

QUALITY = """
[workload.quality]
text = "pydoc"
calibration_text = "pydoc"
calibration_windows = 2
calibration_length = 64
documents = 1
length = 48
prefix = 16
"""
HEAD = """
name = "tiny"
models = ["random:llama"]
compressors = ["none"]
[[workload]]
name = "w"
"""
SUITE = HEAD + QUALITY
