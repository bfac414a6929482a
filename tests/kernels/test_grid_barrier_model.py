"""The protocol of `persistent_kernel`, explored: every order in which few programs can take their steps.

A program runs iterations of two phases. In a phase it stores to a cell of its own, comes to the barrier,
waits, and reads the cells of all, which must hold what this phase stored. Program 0 also decides, in the
first phase, whether this is the last iteration; all read the decision after the last barrier. Then the graph
is replayed.

Memory is as weak as it may be: a store stays in its program until the next release, or is seen at once; a
load may return whatever its program loaded before since its last acquire. Each fault that the protocol guards
against is put in on its own, and has to be found.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest

PHASES, ITERATIONS, LAUNCHES = 2, 2, 2


@dataclass(frozen=True)
class Protocol:
    """The kernel's, unless something is changed."""

    programs: int
    resident: int = 9  # programs that run at once; another begins when one has ended
    release: bool = True
    acquire: bool = True
    reset: bool = True  # the counter is zero when a launch begins
    counts_on: bool = True  # each barrier expects `programs` arrivals more than the last
    row_for_each_iteration: bool = True  # a decision is stored where nobody reads an earlier one


Memory = tuple[tuple[str, int], ...]


class Program(NamedTuple):
    step: str = "store"
    iteration: int = 0
    phase: int = 0
    expected: int = 0
    stores: Memory = ()
    loaded: Memory = ()


class State(NamedTuple):
    launch: int
    counter: int
    memory: Memory
    programs: tuple[Program, ...]


class Broken(Exception):
    """A program read what it should not, or nobody can go on."""


def put(memory: Memory, address: str, value: int) -> Memory:
    return tuple(sorted({**dict(memory), address: value}.items()))


def explore(protocol: Protocol) -> int:
    """Visit all states; returns how many.

    Raises:
        Broken: one of them is wrong.
    """
    start = State(0, 0, (), (Program(),) * protocol.programs)
    seen, waiting = {start}, [start]
    while waiting:
        state = waiting.pop()
        following = list(successors(protocol, state))
        if not following and state.launch < LAUNCHES:
            raise Broken(f"deadlock: {state}")
        for successor in following:
            if successor not in seen:
                seen.add(successor)
                waiting.append(successor)
    return len(seen)


def successors(protocol: Protocol, state: State) -> Iterator[State]:
    if state.launch == LAUNCHES:
        return
    if all(program.step == "end" for program in state.programs):
        counter = 0 if protocol.reset else state.counter
        yield State(state.launch + 1, counter, state.memory, (Program(),) * protocol.programs)
        return
    running = 0
    for i, program in enumerate(state.programs):
        if program.step == "end":
            continue
        running += 1
        if running > protocol.resident:
            return
        for counter, memory, after in steps(protocol, state, i, program):
            # A program that has not moved (it polls) is no new state.
            if (counter, memory, after) != (state.counter, state.memory, program):
                programs = (*state.programs[:i], after, *state.programs[i + 1 :])
                yield State(state.launch, counter, memory, programs)


def steps(protocol: Protocol, state: State, i: int, at: Program) -> Iterator[tuple[int, Memory, Program]]:
    stamp = 1 + at.phase + PHASES * (at.iteration + ITERATIONS * state.launch)
    counter, memory = state.counter, state.memory
    if at.step == "store":
        row = at.iteration if protocol.row_for_each_iteration else 0
        decides = i == 0 and at.phase == 0
        for last in (0, 1) if decides else (0,):
            values = {f"cell {at.phase} {i}": stamp} | ({f"last {row}": last} if decides else {})
            seen_at_once, kept = memory, at.stores
            for address, value in values.items():
                seen_at_once, kept = put(seen_at_once, address, value), put(kept, address, value)
            mine = at.loaded
            for address, value in values.items():
                mine = put(mine, address, value)
            yield counter, seen_at_once, at._replace(step="arrive", loaded=mine)
            yield counter, memory, at._replace(step="arrive", stores=kept, loaded=mine)
    elif at.step == "arrive":
        for address, value in at.stores if protocol.release else ():
            memory = put(memory, address, value)
        kept = () if protocol.release else at.stores
        more = protocol.programs if protocol.counts_on else 0
        expected = at.expected + more if at.expected else protocol.programs
        yield counter + 1, memory, at._replace(step="poll", stores=kept, expected=expected)
    elif at.step == "poll" and counter >= at.expected:
        yield counter, memory, at._replace(step="load", loaded=() if protocol.acquire else at.loaded)
    elif at.step == "load":
        known = {**dict(memory), **dict(at.loaded)}
        loaded = at.loaded
        for other in range(protocol.programs):
            address = f"cell {at.phase} {other}"
            if known.get(address) != stamp:
                raise Broken(f"program {i} reads {known.get(address)} from {address!r}, not {stamp}: {state}")
            loaded = put(loaded, address, stamp)
        if at.phase + 1 < PHASES:
            yield counter, memory, at._replace(step="store", phase=at.phase + 1, loaded=loaded)
        else:
            yield counter, memory, at._replace(step="decide", loaded=loaded)
    elif at.step == "decide":
        row = at.iteration if protocol.row_for_each_iteration else 0
        last = {**dict(memory), **dict(at.loaded)}[f"last {row}"]
        if last or at.iteration + 1 == ITERATIONS:
            for address, value in at.stores:
                memory = put(memory, address, value)
            yield counter, memory, Program(step="end")
        else:
            loaded = put(at.loaded, f"last {row}", last)
            yield (
                counter, memory,
                at._replace(step="store", iteration=at.iteration + 1, phase=0, loaded=loaded),
            )  # fmt: skip


@pytest.mark.parametrize("programs", [1, 2, 3])
def test_no_order_is_wrong(programs: int) -> None:
    assert explore(Protocol(programs)) > 20 * programs


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ({"release": False}, "reads"),
        ({"acquire": False}, "reads"),
        ({"reset": False}, "reads"),
        ({"counts_on": False}, "reads"),
        ({"row_for_each_iteration": False}, "reads|deadlock"),
        ({"resident": 1}, "deadlock"),
    ],
)
def test_every_fault_is_found(fault: dict[str, bool], found: str) -> None:
    with pytest.raises(Broken, match=found):
        explore(replace(Protocol(2), **fault))  # type: ignore[arg-type]
