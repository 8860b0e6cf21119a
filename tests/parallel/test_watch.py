"""Ranks that end in every way, watched: forked processes around a store that the test keeps, as torchrun does."""

import io
import json
import multiprocessing
import os
import re
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from longtake.errors import UserError
from longtake.log import Log
from longtake.parallel import verdict, watch
from longtake.parallel.ranks import join
from longtake.parallel.verdict import CUT_OFF, FAILED, STOPPED
from longtake.parallel.watch import Watch, ending

AGAIN = "; run the same command again to go on"
LIMIT = 60  # seconds for all ranks to end, on a machine that does much else


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A slow machine makes nobody silent: a test shortens what it waits for, and nothing else."""
    for name in ("SILENT", "LOST", "GRACE"):
        for module in (verdict, watch):
            monkeypatch.setattr(module, name, float(LIMIT), raising=False)
    monkeypatch.setattr(watch, "BEAT", 0.2)
    monkeypatch.setattr(watch, "LONG", 1.0)


def until(true):
    stop = time.monotonic() + LIMIT / 4
    while not true():
        assert time.monotonic() < stop
        time.sleep(0.01)


def stuck():
    """In C code that no Python signal handler interrupts, as a collective call whose peer is gone."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=2 * LIMIT))
    store.wait(["never"])


def rank_of(rank, size, port, folder, body):
    signal.signal(signal.SIGTERM, lambda *_: stuck())  # a rank that is not stuck yet would end by itself
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    log = Log(stream=io.StringIO(), rank=rank, ranks=size)
    log.keep(folder)

    def tell(text, code):
        (folder / f"told-{rank}").write_text(f"{code} {text}")

    watched = Watch(store, rank, size, log, tell, "stopped; to go on")
    watched.start()
    until(lambda: store.check([f"beat/{other}" for other in range(size)]))
    body(rank, watched, log)
    watched.done()
    os._exit(0)


def ended(size, folder, body, then=lambda forks: None):
    """[size] exit codes, and the texts that were told by rank."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    multiprocessing.current_process().daemon = False  # a mutant's is, and could have no children
    forks = [context.Process(target=rank_of, args=(r, size, store.port, folder, body)) for r in range(size)]
    for fork in forks:
        fork.start()
    try:
        then(forks)
        stop = time.monotonic() + LIMIT
        for fork in forks:
            fork.join(max(0.0, stop - time.monotonic()))
        codes = [fork.exitcode for fork in forks]
    finally:
        for fork in forks:
            fork.kill()
    return codes, {int(file.name[5:]): file.read_text() for file in folder.glob("told-*")}


def test_all_is_well(tmp_path) -> None:
    def body(rank, watched, log):
        time.sleep(rank)  # done is not dead

    assert ended(2, tmp_path, body) == ([0, 0], {})


def test_one_rank_fails_while_another_is_stuck(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(verdict, "GRACE", 0.7)

    def body(rank, watched, log):
        if rank == 0:
            stuck()
        log.at("question cups-7")
        watched.end(FAILED, "no film\n  where: a.mp4", 2)

    codes, told = ended(2, tmp_path, body)
    assert codes == [2, 2]
    log = tmp_path / "ranks" / "1.log"
    assert told == {0: f"2 rank 1 failed, at question cups-7: no film\n  where: a.mp4\n  its log: {log}"}
    assert "the end: rank 1 failed" in log.read_text()


def test_what_all_meet_is_told_once(tmp_path) -> None:
    def body(rank, watched, log):
        time.sleep(rank / 10)
        watched.end(FAILED, "bad rows", 1)

    assert ended(3, tmp_path, body) == ([1, 1, 1], {0: "1 bad rows"})


def test_the_first_of_two_failures_is_told(tmp_path) -> None:
    def body(rank, watched, log):
        store = watched.store.clone()
        until(lambda: rank == 1 or store.check(["first"]))
        watched.end(FAILED, f"failure of {rank}", 1)

    codes, told = ended(2, tmp_path, body)
    assert (codes, told[0].startswith("1 rank 1 failed: failure of 1"), len(told)) == ([1, 1], True, 1)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_rank_is_named_by_the_lowest_that_lives(tmp_path, monkeypatch, dead) -> None:
    monkeypatch.setattr(watch, "BEAT", float(LIMIT))  # too long for the last place, were it not told at once
    monkeypatch.setattr(verdict, "LOST", 3.0)

    def body(rank, watched, log):
        store = watched.store.clone()
        with log.phase("rollout"):
            for row in ("question cups-6", "question cups-7"):
                log.at(row)
                until(lambda row=row: json.loads(store.get(f"beat/{rank}"))["row"] == row)
            if rank == dead:
                os.kill(os.getpid(), signal.SIGKILL)
            watched.end(CUT_OFF, "connection closed", 1)

    codes, told = ended(3, tmp_path, body)
    assert codes == [-9 if rank == dead else 1 for rank in range(3)]
    where = f"rank {dead} died in phase rollout, at question cups-7; its log: {tmp_path / 'ranks' / f'{dead}.log'}"
    assert told == {int(dead == 0): f"1 {where}{AGAIN}"}


def test_a_rank_that_says_nothing_is_given_up(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(verdict, "SILENT", 3.0)

    def body(rank, watched, log):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        stuck()

    def then(forks):
        forks[0].join(LIMIT)
        forks[1].kill()

    codes, told = ended(2, tmp_path, body, then)
    assert codes == [1, -9]
    assert re.match(r"1 rank 1 has not been heard of for ([3-9]|\d\d) s", told[0])


def meet(rank, watched):
    store = dist.PrefixStore("ranks", watched.store.clone())
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=LIMIT))


def test_ranks_that_wait_for_one_another_say_so(tmp_path) -> None:
    def body(rank, watched, log):
        meet(rank, watched)
        dist.recv(torch.zeros(1), 1 - rank)

    def then(forks):
        said = tmp_path / "ranks" / "0.log"
        until(lambda: said.exists() and "has waited 1 s for one that waits as well" in said.read_text())
        for fork in forks:
            fork.kill()

    assert ended(2, tmp_path, body, then) == ([-9, -9], {})


def test_a_slow_rank_lives_and_is_named(tmp_path) -> None:
    def body(rank, watched, log):
        meet(rank, watched)
        with log.phase("rollout"):
            watch.LONG = float(LIMIT)
            time.sleep(rank * 0.5)
            dist.barrier()
            assert log.stream.getvalue() == ""
            watch.LONG = 1.0
            log.at("question cups-7")
            until(lambda: rank == 0 or "alive, but slow" in (tmp_path / "ranks" / "0.log").read_text())
            time.sleep(rank * 1.5)  # long enough for it to be said again
            dist.barrier()
        if rank == 0:
            watched.tell(log.stream.getvalue(), 0)

    codes, told = ended(2, tmp_path, body)
    assert codes == [0, 0]
    said = "rank 0 has waited 1 s for rank 1 in phase rollout, at question cups-7: alive, but slow"
    assert [json.loads(line) for line in told[0][2:].splitlines()] == [{"note": said}]


def test_a_signal_ends_ranks_that_are_stuck_and_says_so_once(tmp_path) -> None:
    def body(rank, watched, log):
        (tmp_path / f"ready-{rank}").touch()
        stuck()

    def then(forks):
        until(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        for fork in forks:
            fork.terminate()

    assert ended(2, tmp_path, body, then) == ([143, 143], {0: "143 stopped; to go on"})


def test_a_signal_that_came_because_another_died_is_not_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(verdict, "LOST", 1.0)

    def body(rank, watched, log):
        (tmp_path / f"ready-{rank}").touch()
        stuck()

    def then(forks):
        until(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        forks[1].kill()
        forks[0].terminate()

    codes, told = ended(2, tmp_path, body, then)
    assert codes == [1, -9]
    assert told[0].startswith("1 rank 1 died")


def test_a_store_that_is_gone_is_said(tmp_path) -> None:
    def gone():
        raise dist.DistNetworkError("Broken pipe")

    def body(rank, watched, log):
        watched._say = gone
        stuck()

    codes, told = ended(1, tmp_path, body)
    assert codes == [1]
    assert told[0].startswith("1 torchrun is gone")


def test_a_child_of_a_rank_has_signals_of_its_own(tmp_path) -> None:
    def body(rank, watched, log):
        signal.signal(signal.SIGTERM, lambda *_: None)
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.5)

    assert ended(1, tmp_path, body) == ([0], {})


def test_what_an_exception_means() -> None:
    assert ending(KeyboardInterrupt()) == ending(BrokenPipeError()) == STOPPED
    assert ending(ValueError("x")) == ending(RuntimeError("shapes")) == FAILED
    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer")
    wrapped = ValueError("crash")
    wrapped.__cause__ = gloo
    assert ending(gloo) == ending(wrapped) == ending(dist.DistBackendError("NCCL")) == CUT_OFF


@pytest.mark.parametrize(("near", "refused"), [(1, False), (2, True)])
def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch, near, refused) -> None:
    taken = []
    monkeypatch.setenv("LOCAL_RANK", str(near))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: taken.append(backend))
    if not refused:
        join(dist.HashStore(), 5, 8)
        assert taken == [1, "cpu:gloo,cuda:nccl"]
        return
    with pytest.raises(UserError) as error:
        join(dist.HashStore(), 5, 8)
    assert str(error.value).splitlines() == [
        "rank 5 has no GPU of its own",
        "  why: it is number 3 on a machine with 2",
        "  do: torchrun --nproc-per-node 2 …",
    ]
