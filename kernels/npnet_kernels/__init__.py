"""GPU operators of NPNet, each beside its PyTorch reference. Depends on torch alone."""
