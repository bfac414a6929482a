"""Collecting on Ray: an actor with a pipeline of its own for each worker."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from npnet_training.collecting.collector import Collector
from npnet_training.collecting.dispatch import Vanished, dispatch
from npnet_training.collecting.items import Item
from npnet_training.collecting.settings import CollectSettings
from npnet_training.errors import SettingsError, TrainError, TrainingError
from npnet_training.models import absolute_name
from npnet_training.pairs.info import PairInfo

AUTOSCALING_SECONDS = 600.0  # that a cluster is given to start the machines that the actors ask for


class RayPool:
    """Actors that collect; a context manager that ends them.

    A worker that dies, alone or with its machine, is started again by Ray where there is room, and its items
    are made by others meanwhile (see `dispatch`): a shard is written whole, and has the same bytes whichever
    worker makes it on the same hardware. A machine has as many workers as its cores and GPUs allow; `gpus`
    below 1 puts several on one GPU. Ray gives a worker one thread; where the model runs on the CPU, sums of
    several threads differ in the last bits.

    Raises:
        SettingsError: Ray is missing, not there, or has less than the workers ask for: at once with
            `--ray local`; any other cluster may be one that grows, and has `AUTOSCALING_SECONDS` for it.
    """

    def __init__(self, settings: CollectSettings) -> None:
        self._ray = _start(settings)
        # A worker's working folder is that of its `ray start`.
        folder, model = settings.folder, absolute_name(settings.model)
        if isinstance(folder, Path):
            settings = settings.model_copy(update={"output": folder.absolute()})
        self._actors = [_actor(self._ray, settings, model) for _ in range(settings.workers)]
        try:
            _require_room(self._ray, settings)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    def info(self) -> PairInfo:
        """What the dataset says of itself, asked of a worker: this machine may have no GPU."""
        try:
            info: PairInfo = self.result(self._actors[0].info.remote())
        except Vanished as error:
            raise TrainError(
                f"the first worker cannot be started ({error}); see whether the model fits there"
            ) from error
        return info

    def collect_all(self, todo: Iterator[Item]) -> Iterator[tuple[Item, int]]:
        """Collect items; each with its number of kept pairs, as they are done."""
        return dispatch(self, self._actors, todo, AUTOSCALING_SECONDS)

    def send(self, worker: Any, item: Item) -> Any:
        """See `Cluster.send`."""
        return worker.collect.remote(item)

    def ping(self, worker: Any) -> Any:
        """See `Cluster.ping`."""
        return worker.there.remote()

    def wait(self, references: Sequence[Any], timeout: float | None) -> Any | None:
        """See `Cluster.wait`."""
        ready, _ = self._ray.wait(list(references), num_returns=1, timeout=timeout)
        return ready[0] if ready else None

    def result(self, reference: Any) -> Any:
        """See `Cluster.result`."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TrainingError):
                raise error.cause from error
            raise
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.NodeDiedError) as error:
            raise Vanished(error) from error


class Worker:
    """What an actor runs."""

    def __init__(self, settings: CollectSettings, model: str) -> None:
        self.collector = Collector(settings, model)

    def info(self) -> PairInfo:
        """See `Collector.info`."""
        return self.collector.info()

    def there(self) -> bool:
        """Whether it is."""
        return True

    def collect(self, item: Item) -> int:
        """See `Collector.collect`."""
        return self.collector.collect(item)


def _start(settings: CollectSettings) -> Any:
    try:
        import ray
    except ImportError as error:
        raise SettingsError("--ray needs Ray: pip install 'npnet-runtime[cluster]'") from error
    if not ray.is_initialized():
        address = None if settings.ray == "local" else settings.ray
        try:
            ray.init(
                address=address, log_to_driver=False, include_dashboard=False if address is None else None
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SettingsError(
                f"--ray {settings.ray}: no Ray there ({error}); start one with: ray start"
            ) from error
    return ray


def _require_room(ray: Any, settings: CollectSettings) -> None:
    wanted = {"CPU": settings.workers, "GPU": settings.workers * settings.gpus}
    patience = 0.0 if settings.ray == "local" else AUTOSCALING_SECONDS
    began, warned = time.monotonic(), False
    while True:
        there = ray.cluster_resources()
        short = [
            f"{wanted[name]:g} {name} wanted, {there.get(name, 0):g} there"
            for name in wanted
            if there.get(name, 0) < wanted[name]
        ]
        if not short:
            return
        problem = f"--ray {settings.ray}: too little for {settings.workers} workers: {'; '.join(short)}"
        if time.monotonic() - began >= patience:
            raise SettingsError(f"{problem}; give fewer --workers or --gpus, or a cluster with more")
        if not warned:
            warnings.warn(f"{problem}; waiting {patience:g} s for the cluster to grow", stacklevel=2)
            warned = True
        time.sleep(1)


def _actor(ray: Any, settings: CollectSettings, model: str) -> Any:
    remote = ray.remote(num_gpus=settings.gpus, num_cpus=1, max_restarts=-1, max_task_retries=0)(Worker)
    return remote.remote(settings, model)
