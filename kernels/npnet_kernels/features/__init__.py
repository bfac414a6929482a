"""From the last rows of the Swin Transformer to the compact residual of NPNet."""
