"""A rank that fails tells the others, however soon it leaves."""

from __future__ import annotations

from torch.distributed import PrefixStore, TCPStore

from transact.distributed.watchdog import VERDICT, Watchdog


def test_what_is_reported_just_before_the_end_is_not_lost() -> None:
    server = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    for turn in range(50):
        store = PrefixStore(f"turn_{turn}", server.clone())
        watchdog = Watchdog(store, rank=1, world_size=2, stall_seconds=60)
        watchdog.start()
        watchdog.report("the disk is full")
        watchdog.end()
        assert server.check([f"turn_{turn}/{VERDICT}"]), turn
