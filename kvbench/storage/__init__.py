"""Files that are whole or absent: the cache folder, downloads, kept tensors."""
