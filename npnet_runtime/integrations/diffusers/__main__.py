"""`python -m npnet_runtime.integrations.diffusers`: pipelines that golden noise can be attached to."""

from __future__ import annotations

from npnet_runtime.integrations.diffusers.loading import quiet_loading
from npnet_runtime.integrations.diffusers.survey import table

if __name__ == "__main__":
    quiet_loading()
    print(table(), end="")
