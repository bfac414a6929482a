"""Collecting on Ray: an actor with a pipeline of its own for each worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from npnet_training.collecting.items import Item
from npnet_training.collecting.settings import CollectSettings
from npnet_training.errors import SettingsError, TrainingError
from npnet_training.pairs.info import PairInfo

IN_FLIGHT = 2  # items an actor has been given: one it works on, one that waits
RETRIES = 3  # of an item whose worker died


class RayPool:
    """Actors that collect; a context manager that ends them.

    A worker that dies is started again by Ray, and its items are made again: a shard is written whole, and
    is the same whoever makes it.

    Raises:
        SettingsError: Ray is missing, or not there.
    """

    def __init__(self, settings: CollectSettings) -> None:
        self._ray = _start(settings)
        self._actors = [_actor(self._ray, settings) for _ in range(settings.workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    def info(self) -> PairInfo:
        """What the dataset says of itself, asked of a worker: this machine may have no GPU."""
        info: PairInfo = _result(self._ray, self._actors[0].info.remote())
        return info

    def collect_all(self, todo: Iterator[Item]) -> Iterator[tuple[Item, int]]:
        """Collect items; each with its number of kept pairs, as they are done."""
        running: dict[Any, tuple[Item, Any]] = {}

        def give(actor: Any) -> None:
            item = next(todo, None)
            if item is not None:
                running[actor.collect.remote(item)] = item, actor

        for _ in range(IN_FLIGHT):
            for actor in self._actors:
                give(actor)
        while running:
            (ready, *_), _ = self._ray.wait(list(running), num_returns=1)
            item, actor = running.pop(ready)
            yield item, _result(self._ray, ready)
            give(actor)


class Worker:
    """What an actor runs."""

    def __init__(self, settings: CollectSettings) -> None:
        from npnet_training.collecting.collector import Collector

        self.collector = Collector(settings)

    def info(self) -> PairInfo:
        """See `Collector.info`."""
        return self.collector.info()

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


def _actor(ray: Any, settings: CollectSettings) -> Any:
    remote = ray.remote(num_gpus=settings.gpus, num_cpus=1, max_restarts=RETRIES, max_task_retries=RETRIES)(
        Worker
    )
    return remote.remote(settings)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TrainingError):
            raise error.cause from error
        raise
    except ray.exceptions.RayActorError as error:
        raise TrainingError(
            f"a worker died more than {RETRIES} times ({error}); go on with --resume, perhaps with a smaller "
            "--batch"
        ) from error
