from fp64 import fp64, no_grad, one_thread

__all__ = ["fp64", "no_grad", "one_thread"]
