"""Where kvbench gets hold of a model: attention calls, geometry, RoPE."""
