"""What kernels do with rows before they own a result: gather, layer norm, product."""
