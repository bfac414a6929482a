"""diffusers: `golden.attach(pipe)`, and golden noise is in every call of the pipeline."""

from npnet_runtime.integrations.diffusers.attachment import attach, detach

__all__ = ["attach", "detach"]
