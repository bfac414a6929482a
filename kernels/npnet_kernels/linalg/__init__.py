"""Singular value decomposition: one function, four solvers, one sign rule."""
