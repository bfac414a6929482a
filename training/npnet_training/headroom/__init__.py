"""`npnet-headroom`: what noise can do for a model, before anyone trains for it."""
