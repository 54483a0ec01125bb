"""Where the trainer leaves its newest weights and the generator finds them. Newest wins."""

import threading

from magistral_jax.types import Snapshot


class Mailbox:
    """Holds at most one snapshot. Versions only go up. Neither side ever waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._newest = -1

    def put(self, snapshot: Snapshot) -> None:
        """Replace whatever has not been taken yet."""
        with self._lock:
            assert snapshot.version > self._newest, (snapshot.version, self._newest)
            self._newest = snapshot.version
            self._snapshot = snapshot

    def take(self) -> Snapshot | None:
        """The newest snapshot not taken yet, or None."""
        with self._lock:
            snapshot, self._snapshot = self._snapshot, None
            return snapshot
