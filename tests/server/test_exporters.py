"""What exporters read of ``stats`` is there, as a number where they want one.

Names are those that Prometheus's memcached_exporter 0.15, Datadog's ``mcache`` check and Telegraf's
memcached plugin look up; they leave out, or stumble over, what is missing.
"""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from kvproto.config import Mode
from tests.server.support import Link

PROMETHEUS = """
accepting_conns bytes bytes_read bytes_written cas_badval cas_hits cas_misses cmd_flush cmd_set
conn_yields crawler_items_checked crawler_reclaimed curr_connections curr_items decr_hits
decr_misses delete_hits delete_misses direct_reclaims evictions get_hits get_misses incr_hits
incr_misses limit_maxbytes listen_disabled_num lru_crawler_starts moves_to_cold moves_to_warm
moves_within_lru reclaimed rejected_connections round_robin_fallback rusage_system rusage_user
store_no_memory store_too_large time total_connections total_items touch_hits touch_misses
unexpected_napi_ids uptime
"""
DATADOG = """
total_items curr_items limit_maxbytes uptime bytes curr_connections max_connections
connection_structures threads pointer_size rusage_user rusage_system cmd_get cmd_set cmd_flush
get_hits get_misses delete_misses delete_hits evictions bytes_read bytes_written cas_misses cas_hits
cas_badval total_connections listen_disabled_num
"""
TELEGRAF = """
accepting_conns auth_cmds auth_errors bytes bytes_read bytes_written cas_badval cas_hits cas_misses
cmd_flush cmd_get cmd_set cmd_touch conn_yields connection_structures curr_connections curr_items
decr_hits decr_misses delete_hits delete_misses evicted_active evicted_unfetched evictions
expired_unfetched get_expired get_flushed get_hits get_misses hash_bytes hash_is_expanding
hash_power_level incr_hits incr_misses limit_maxbytes listen_disabled_num max_connections reclaimed
rejected_connections store_no_memory store_too_large threads total_connections total_items
touch_hits touch_misses uptime
"""
# All that a memcached 1.6.45 answers to ``stats`` with default options.
MEMCACHED = """
auth_cmds auth_errors cmd_get cmd_meta cmd_touch connection_structures evicted_active
evicted_unfetched expired_unfetched get_expired get_flushed hash_bytes hash_is_expanding
hash_power_level log_watcher_sent log_watcher_skipped log_watchers log_worker_dropped
log_worker_written lru_bumps_dropped lru_crawler_running lru_maintainer_juggles lrutail_reflocked
malloc_fails max_connections pid pointer_size read_buf_bytes read_buf_bytes_free read_buf_count
read_buf_oom reserved_fds response_obj_bytes response_obj_count response_obj_oom
slab_global_page_pool slab_reassign_busy_deletes slab_reassign_busy_items slab_reassign_busy_nomem
slab_reassign_chunk_rescues slab_reassign_inline_reclaim slab_reassign_rescues
slab_reassign_running slabs_moved threads time_in_listen_disabled_us
"""
ITEMS = """
age crawler_reclaimed direct_reclaims evicted evicted_nonzero evicted_time evicted_unfetched
expired_unfetched hits_to_cold hits_to_hot hits_to_temp hits_to_warm lrutail_reflocked moves_to_cold
moves_to_warm moves_within_lru number number_cold number_hot number_warm outofmemory reclaimed
tailrepairs age_hot age_warm crawler_items_checked mem_requested
"""
SLABS = """
cas_badval cas_hits chunk_size chunks_per_page cmd_set decr_hits delete_hits free_chunks
free_chunks_end get_hits incr_hits mem_requested total_chunks total_pages touch_hits used_chunks
"""
SETTINGS = """
hot_lru_pct hot_max_factor lru_crawler_sleep lru_crawler_tocrawl maxconns warm_lru_pct
warm_max_factor item_size_max maxbytes num_threads reqs_per_event idle_timeout tcpport
"""
WORDS = "lru_crawler lru_maintainer_thread cas_enabled flush_enabled"
NUMBER = re.compile(r"\d+(\.\d+)?\Z")


class ExporterTests(SynchronousTestCase):
    """A server that has served a little."""

    def setUp(self) -> None:
        self.link = Link(mode=Mode.MEMCACHED)
        self.link.ask(b"set k 0 0 1\r\nx\r\nget k\r\nget none\r\n")

    def stats(self, group: str = "") -> dict[str, str]:
        lines = self.link.ask(f"stats {group}\r\n".encode()).decode().splitlines()
        self.assertEqual(lines.pop(), "END")
        pairs = [line.split(" ", 2) for line in lines]
        self.assertEqual({word for word, *_ in pairs}, {"STAT"})
        return {name: value for _, name, value in pairs}

    def check(self, found: dict[str, str], names: str) -> None:
        for name in names.split():
            self.assertIn(name, found)
            self.assertRegex(found[name], NUMBER, name)

    def test_general(self) -> None:
        """``stats`` has all names of exporters and of memcached itself."""
        found = self.stats()
        self.check(found, PROMETHEUS + DATADOG + TELEGRAF + MEMCACHED)
        # gomemcache takes the version for its own label; Prometheus's times have six decimals.
        self.assertRegex(found["version"], r"\d+\.\d+\.\d+\Z")
        self.assertRegex(found["rusage_user"], r"\d+\.\d{6}\Z")
        self.assertEqual(found["slab_reassign_last_busy_status"], "none")
        self.assertIn("libevent", found)

    def test_items_and_slabs(self) -> None:
        """A class has all its numbers, and names are cut as exporters cut them."""
        items = self.stats("items")
        self.check({name.removeprefix("items:1:"): value for name, value in items.items()}, ITEMS)
        slabs = self.stats("slabs")
        self.check({name.removeprefix("1:"): value for name, value in slabs.items()}, SLABS)
        self.check(slabs, "active_slabs total_malloced")
        self.assertEqual({name.count(":") for name in items}, {2})

    def test_settings(self) -> None:
        """Numbers are numbers, switches are yes or no."""
        found = self.stats("settings")
        self.check(found, SETTINGS)
        for name in WORDS.split():
            self.assertIn(found[name], {"yes", "no"}, name)
