from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from limner.engine import machine, memory

MIB = 1 << 20

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from Linux's /proc")


@pytest.fixture
def root(tmp_path):
    """A root of files as on a machine with 8000 MiB available, in no cgroup."""
    write(tmp_path, "proc/meminfo", f"MemTotal: 16000000 kB\nMemAvailable: {8000 << 10} kB\n")
    return tmp_path


def write(root, path, content):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)


def test_without_a_cgroup_the_machine_counts(root):
    assert memory.free(root=root) == 8000 * MIB


def test_the_tightest_cgroup_of_version_2_counts_and_its_cached_files_as_free(root):
    write(root, "proc/self/cgroup", "0::/pod/container\n")
    write(root, "sys/fs/cgroup/pod/container/memory.max", "max\n")
    write(root, "sys/fs/cgroup/pod/memory.max", f"{1000 * MIB}\n")
    write(root, "sys/fs/cgroup/pod/memory.current", f"{600 * MIB}\n")
    write(root, "sys/fs/cgroup/pod/memory.stat", f"anon 1\ninactive_file {50 * MIB}\n")
    assert memory.free(root=root) == 450 * MIB


def test_files_that_were_read_count_as_free_and_those_that_are_mapped_do_not(root):
    statistics = f"inactive_file {50 * MIB}\nactive_file {200 * MIB}\nfile_mapped {120 * MIB}\n"
    write(root, "proc/self/cgroup", "0::/pod\n")
    write(root, "sys/fs/cgroup/pod/memory.max", f"{1000 * MIB}\n")
    write(root, "sys/fs/cgroup/pod/memory.current", f"{600 * MIB}\n")
    write(root, "sys/fs/cgroup/pod/memory.stat", statistics)
    assert memory.free(root=root) == 530 * MIB
    write(root, "sys/fs/cgroup/pod/memory.stat", statistics.replace(f"{120 * MIB}", f"{300 * MIB}"))
    assert memory.free(root=root) == 450 * MIB


def test_the_cgroup_of_version_1_counts(root):
    write(root, "proc/self/cgroup", "5:cpu,cpuacct:/elsewhere\n4:memory:/pod\n")
    write(root, "sys/fs/cgroup/memory/pod/memory.limit_in_bytes", f"{1000 * MIB}\n")
    write(root, "sys/fs/cgroup/memory/pod/memory.usage_in_bytes", f"{300 * MIB}\n")
    write(root, "sys/fs/cgroup/memory/pod/memory.stat", f"total_inactive_file {100 * MIB}\n")
    assert memory.free(root=root) == 800 * MIB


def test_a_cgroup_that_leaves_more_than_the_machine_has_does_not_count(root):
    write(root, "proc/self/cgroup", "4:memory:/\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "5\n")
    write(root, "sys/fs/cgroup/memory/memory.stat", "total_inactive_file 0\n")
    assert memory.free(root=root) == 8000 * MIB


def test_a_system_that_says_nothing_leaves_it_open(tmp_path):
    assert memory.free(root=tmp_path) is None
    assert memory.in_use(root=tmp_path) == 0


def test_the_process_s_own_limit_counts():
    script = (
        "import resource\nfrom limner.engine import memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, resource.RLIM_INFINITY))\nprint(memory.free())\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 1 << 30 < int(result.stdout) < 3 << 30


def test_memory_in_use_follows_what_is_allocated_and_freed():
    memory.collect()
    before = memory.in_use()
    pieces = [np.ones(100_000, np.uint8) for _ in range(1000)]  # small ones, which glibc would keep
    held = memory.in_use() - before
    pieces.clear()
    memory.collect()
    assert 80 * MIB < held < 140 * MIB
    assert memory.in_use() - before < 30 * MIB


@pytest.mark.parametrize("kept_by_the_system", [True, False])
def test_the_peak_is_that_of_the_function_and_not_of_the_past(kept_by_the_system, monkeypatch):
    if not kept_by_the_system:
        monkeypatch.setattr(memory, "_reset_peak", lambda: False)
    np.ones(300 * MIB, np.uint8).sum()  # a higher peak, before
    memory.collect()
    before = memory.in_use()

    def work():
        array = np.ones(100 * MIB, np.uint8)
        time.sleep(0.05)
        return int(array[0])

    result, peak = memory.peak_of(work)
    assert result == 1
    assert 90 * MIB < peak - before < 150 * MIB


def test_a_cuda_device_that_is_not_there_leaves_it_open():
    if machine.this_machine().cuda_device_count:
        pytest.skip("there is one")
    assert memory.free("cuda:0") is None
