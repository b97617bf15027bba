"""Vector operations that numba cannot express, emitted as LLVM."""
