"""Mean and variance of whole latents, in chunks that the kernels which need them merge."""
