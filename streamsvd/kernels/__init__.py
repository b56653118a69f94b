"""Loops that BLAS cannot express: Numba on the CPU, CuPy on a GPU, each beside its array-API twin."""
