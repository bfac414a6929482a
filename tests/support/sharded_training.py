"""`npnet-train` under FSDP2 on the CPU, for the tests: `torchrun -m support.sharded_training ...`.

accelerate shards on GPUs only, though both it and torch can on the CPU; this tells it to.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType

from npnet_training.training import loop
from npnet_training.training.cli import main


class ShardedAccelerator(Accelerator):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # The state is shared by all that read it.
        shared = self.state._shared_state
        shared["distributed_type"] = DistributedType.FSDP
        shared["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2, cpu_ram_efficient_loading=False
        )


if __name__ == "__main__":
    loop.Accelerator = ShardedAccelerator  # type: ignore[misc]
    sys.exit(main())
