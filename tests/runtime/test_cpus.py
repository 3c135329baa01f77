"""CPUs as the container allows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from limner.runtime.cpus import cpu_count


@pytest.fixture(autouse=True)
def sixteen_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_without_a_cgroup_the_affinity_counts(tmp_path):
    assert cpu_count(tmp_path) == 16


def test_the_quota_of_the_container_is_rounded_up(tmp_path):
    write(tmp_path, "sys/fs/cgroup/cpu.max", "250000 100000\n")
    assert cpu_count(tmp_path) == 3


def test_no_quota_and_more_than_there_is_change_nothing(tmp_path):
    write(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    assert cpu_count(tmp_path) == 16
    write(tmp_path, "sys/fs/cgroup/cpu.max", "9900000 100000\n")
    assert cpu_count(tmp_path) == 16


def test_the_tightest_cgroup_above_counts(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/kube/pod/me\n")
    write(tmp_path, "sys/fs/cgroup/kube/pod/cpu.max", "50000 100000\n")
    write(tmp_path, "sys/fs/cgroup/kube/pod/me/cpu.max", "400000 100000\n")
    assert cpu_count(tmp_path) == 1


def test_version_1_is_understood(tmp_path):
    write(tmp_path, "proc/self/cgroup", "7:memory:/a\n4:cpu,cpuacct:/docker/x\n")
    write(tmp_path, "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "200000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000\n")
    assert cpu_count(tmp_path) == 2
