"""How tokens are encoded: codecs, transforms, quantizers, packing, and the kernels' view of them."""
