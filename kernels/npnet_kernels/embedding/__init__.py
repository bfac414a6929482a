"""Patch embedding of noise under the text affine, with the norm behind it."""
