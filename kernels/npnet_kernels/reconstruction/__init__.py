"""From the two halves of the network to golden noise: one fused kernel and its reference."""
