"""Which networks are recorded, how torch is asked to, and that the tests' stand-in is like a graph."""

from __future__ import annotations

import gc
import inspect
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tests.engines.tape import Tape

from longtake.engines import graph


def test_who_is_recorded(monkeypatch):
    class Net(torch.nn.Module):
        device = torch.device("cuda", 1)

    monkeypatch.setattr(graph, "Cuda", lambda device: device)
    one, other = SimpleNamespace(net=Net()), SimpleNamespace(net=Net())
    graph._plain.add(other.net)
    assert graph.recorder_for(one) == Net.device
    assert graph.recorder_for(other) is None
    one.net.device = torch.device("cpu")
    assert graph.recorder_for(one) is None
    del other
    gc.collect()
    assert not graph._plain  # nobody is kept alive


class Streams:
    """As much of torch.cuda as recordings use; writes down what happens."""

    def __init__(self, monkeypatch, mode=0):
        self.log, self.mode, self.on = [], mode, "main"
        side = SimpleNamespace(device=torch.device("cuda", 0), wait_stream=lambda other: self.log.append("side waits"))
        main = SimpleNamespace(wait_stream=lambda other: self.log.append("main waits"))
        for name, it in {
            "Stream": lambda device: side,
            "current_stream": lambda device: main,
            "stream": lambda it: self._while("side"),
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "mode", mode),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.log.append("replay")),
            "graph": self._graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, it)
        graph._side_stream.cache_clear()
        self.side = side

    def _while(self, name):
        streams = self

        class While:
            def __enter__(self):
                self.before, streams.on = streams.on, name

            def __exit__(self, *_):
                streams.on = self.before

        return While()

    def _graph(self, made, **how):
        assert how == {"stream": self.side, "capture_error_mode": "thread_local"}
        self.log.append("record")
        return nullcontext()


def test_the_cuda_recorder_follows_torchs_practice(monkeypatch):
    cuda = Streams(monkeypatch)
    recorder = graph.Cuda(torch.device("cuda", 0))
    seen = []
    assert recorder.rehearse(lambda: seen.append((cuda.on, cuda.mode)) or "out") == "out"
    assert seen == [("side", "error")]
    assert (cuda.on, cuda.mode, cuda.log) == ("main", 0, ["side waits", "main waits"])
    replay = recorder.record(lambda: seen.append((cuda.on, cuda.mode)) or "out")
    assert seen[1:] == [("side", 0)]
    assert (replay(), replay()) == ("out", "out")
    assert (cuda.on, cuda.log[2:]) == ("main", ["record", "replay", "replay"])
    with pytest.raises(RuntimeError, match="waits"):
        recorder.rehearse(lambda: (_ for _ in ()).throw(RuntimeError("waits")))
    assert (cuda.on, cuda.mode) == ("main", 0)
    graph._side_stream.cache_clear()


def test_torch_has_what_the_cuda_recorder_calls():
    assert {"cuda_graph", "stream", "capture_error_mode"} <= set(inspect.signature(torch.cuda.graph).parameters)
    assert list(inspect.signature(torch.cuda.CUDAGraph.replay).parameters) == ["self"]
    assert set(inspect.signature(torch.cuda.set_sync_debug_mode).parameters) == {"debug_mode"}
    assert issubclass(torch.OutOfMemoryError, RuntimeError)


@torch.no_grad()
def test_the_tape_is_like_a_graph():
    """It replays on the same tensors, in place too; host numbers are the recording's; nothing runs as it records."""
    x, n, seven = torch.tensor([1.0, 2.0]), torch.zeros(1, dtype=torch.int64), [7.0]

    def run():
        y = torch.cat([x, x[n] * seven[0]]).view(3, 1)
        n.add_(1)
        return y + 1

    replay = Tape().record(run)
    assert n.tolist() == [0]
    seven[0] = 9.0
    assert replay().flatten().tolist() == [2.0, 3.0, 8.0]
    x.copy_(torch.tensor([4.0, 3.0]))
    assert replay().flatten().tolist() == [5.0, 4.0, 22.0]
    assert n.tolist() == [2]
    with pytest.raises(RuntimeError, match="synchronizing"):
        Tape().rehearse(lambda: x * float(x[0]))
