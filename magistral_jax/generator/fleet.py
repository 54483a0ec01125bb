"""Several engines side by side: data parallel over slots.

Each engine has devices, slots, cache and scheduler of its own; they share the weights. None waits
for another within a step, as the shards of one batch would. A token's draw is named by group, index
and position, so what is sampled does not depend on which engine samples it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from magistral_jax.generator.answers import Answers
from magistral_jax.generator.engine import Engine
from magistral_jax.generator.scheduler import Scheduler
from magistral_jax.types import Completion, Draft, InFlight, Prompt, Snapshot, Waiting


class Fleet(Answers):
    """Schedulers that look like one."""

    def __init__(self, members: Sequence[Scheduler], snapshot: Snapshot) -> None:
        """`snapshot` lies on the devices of all members, whole on each member's."""
        self._members, self.snapshot = tuple(members), snapshot
        self.num_steps = 0
        self._failure: Exception | None = None

    @property
    def version(self) -> int:
        return self.snapshot.version

    @property
    def num_active(self) -> int:
        return sum(member.num_active for member in self._members)

    @property
    def num_vacant(self) -> int:
        """Slots that would stay empty at the next step; one member's queue fills no other's."""
        return sum(max(0, member.num_vacant) for member in self._members)

    @property
    def num_sampled(self) -> int:
        return sum(member.num_sampled for member in self._members)

    @property
    def num_preempted(self) -> int:
        return sum(member.num_preempted for member in self._members)

    @property
    def cache_used(self) -> float:
        return sum(member.cache_used for member in self._members) / len(self._members)

    @property
    def placing(self) -> Prompt | None:
        return next((m.placing for m in self._members if m.placing is not None), None)

    @property
    def has_work(self) -> bool:
        return any(member.has_work for member in self._members)

    def warm_up(
        self, longest: int, tell: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        count = len(self._members)
        for number, member in enumerate(self._members):
            member.warm_up(
                longest,
                lambda done, total, number=number: tell(number * total + done, count * total),
            )

    def submit(self, prompt: Prompt, *, count: int | None = None, limit: int | None = None) -> None:
        """To the member that has most room."""
        member = max(self._members, key=lambda member: member.num_vacant)
        member.submit(prompt, count=count, limit=limit)

    def step(self) -> list[Completion]:
        """One turn of every member that has work; all are started before any is waited for.

        A member that fails costs the others nothing: what they finished is returned, and the
        failure raised by the next call, unless `restart` has mended it by then.
        """
        if self._failure is not None:
            raise self._failure
        busy = [member for member in self._members if member.has_work]
        for member in busy:
            member.launch()
        self.num_steps += self._members[0].steps_at_once
        done: list[Completion] = []
        for member in busy:
            # Here, where results are fetched, is where a device says that it has failed.
            try:
                done += member.collect()
            except Exception as failure:
                self._failure = self._failure or failure
        if self._failure is not None and not done:
            raise self._failure
        return done

    def swap(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        for member in self._members:
            member.swap(part_of(snapshot, member.engine.mesh))

    def in_flight(self, *, cache: bool) -> InFlight:
        assert not cache, "the caches of several engines are not saved"
        found = [member.in_flight(cache=False) for member in self._members]
        return InFlight(
            drafts=tuple(replace(draft, slot=-1) for each in found for draft in each.drafts),
            waiting=tuple(waiting for each in found for waiting in each.waiting),
            free=(),
            cache=None,
        )

    def restore(self, found: InFlight) -> None:
        """Spread what another generator, of one engine or several, was at."""
        shares: list[tuple[list[Draft], list[Waiting]]] = [([], []) for _ in self._members]
        for number, draft in enumerate(found.drafts):
            shares[number % len(shares)][0].append(replace(draft, slot=-1))
        for number, waiting in enumerate(found.waiting):
            shares[number % len(shares)][1].append(waiting)
        for member, (drafts, waiting) in zip(self._members, shares, strict=True):
            member.restore(
                InFlight(drafts=tuple(drafts), waiting=tuple(waiting), free=(), cache=None)
            )

    def restart(self, snapshot: Snapshot) -> None:
        self.snapshot, self._failure = snapshot, None
        for member in self._members:
            member.restart(part_of(snapshot, member.engine.mesh))

    def cancel(self, group: int) -> None:
        for member in self._members:
            member.cancel(group)


def part_of(snapshot: Snapshot, mesh: Mesh) -> Snapshot:
    """The snapshot as the devices of `mesh` have it, which is whole: nothing is moved."""
    devices = set(mesh.devices.flat)

    def part(array: Any) -> jax.Array:
        if set(array.sharding.device_set) == devices:
            return array
        shards = [shard.data for shard in array.addressable_shards if shard.device in devices]
        sharding = NamedSharding(mesh, array.sharding.spec)
        return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)

    return Snapshot(version=snapshot.version, params=jax.tree.map(part, snapshot.params))


def side_by_side(
    make: Callable[..., Scheduler], engines: Sequence[Engine], snapshot: Snapshot
) -> "Scheduler | Fleet":
    """A scheduler of the one engine, or a fleet of those of several."""
    members = [make(part_of(snapshot, engine.mesh), engine=engine) for engine in engines]
    return members[0] if len(members) == 1 else Fleet(members, snapshot)
