"""`npnet-generate`: images with plain and golden noise of the same seeds. Only its command imports it."""
