"""Window attention of the Swin Transformer with the norm and the product before it."""
