"""Two runs on one folder of features: each set is encoded by one of them, and nothing is lost or torn."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import torch
from tests.runtime.cached import ALL, bits, encodes, open_store, packs, requests, same

from longtake.records import Features
from longtake.runtime.features import FeatureStore, Request, prepare

ROOT = Path(__file__).parents[2]
WAITS = 0.2  # seconds in which a run that need not wait would long be done


def test_two_runs_at_once_encode_every_set_once(model, tmp_path, whole):
    stores, start = [open_store(tmp_path) for _ in range(2)], Barrier(2)

    def work(store):
        start.wait()
        for _ in range(3):
            prepare(store, model, requests(), chunk=2)

    threads = [Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(store.counts.made for store in stores) == 7
    assert sum(store.counts.remade for store in stores) == 0
    assert encodes(tmp_path / "tower") == dict.fromkeys(ALL, 1)
    assert all(same(bits(store), whole) for store in stores)


def test_what_another_run_encoded_meanwhile_is_taken(model, tmp_path, whole):
    early, late = open_store(tmp_path), open_store(tmp_path)
    prepare(early, model, requests()[:4], chunk=4)
    assert "k1" not in late  # opened before; another cut of the list, another lock
    prepare(late, model, requests(), chunk=7)
    assert (early.counts.made, late.counts.made) == (4, 3)
    assert encodes(tmp_path / "tower") == dict.fromkeys(ALL, 1)


def test_what_another_run_evicted_is_encoded_again(model, tmp_path, whole):
    store = open_store(tmp_path, ram=0.0)
    prepare(store, model, requests(), chunk=2)
    for path in packs(tmp_path / "tower"):
        path.unlink()
    assert store.get("k2") is None  # found out while reading
    store.pin(ALL, lambda text: None)  # or by looking
    prepare(store, model, requests(), chunk=2)
    assert same(bits(store), whole)
    assert (store.counts.remade, store.counts.damaged) == (7, 0)


SCRIPT = """
    import sys, time
    from pathlib import Path
    import numpy as np, torch
    from longtake.records import Features
    from longtake.runtime.features import FeatureStore, Request, prepare

    class Tower:
        def encode(self, films):
            if films[0].sum() > 3:
                print("encoding", flush=True)
                time.sleep(600)
            return [Features(torch.full((1, 2, 3), float(film.sum()))) for film in films]

    store = FeatureStore(Path(sys.argv[1]), "tower", torch.float32)
    wanted = [Request(f"k{n}", 1, lambda n=n: np.full((1, 1, 1, 3), n, np.uint8)) for n in range(4)]
    prepare(store, Tower(), wanted, chunk=2)
"""


class Tower:
    def encode(self, films):
        return [Features(torch.full((1, 2, 3), float(film.sum()))) for film in films]


def test_a_process_that_is_killed_with_the_lock_in_its_hand(tmp_path):
    """Its first pack is kept, its second is encoded by the one that waited for it."""
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert other.stdout.readline() == "encoding\n"
    store = FeatureStore(tmp_path, "tower", torch.float32)
    wanted = [Request(f"k{n}", 1, lambda n=n: np.full((1, 1, 1, 3), n, np.uint8)) for n in range(4)]
    waiting = Thread(target=prepare, args=(store, Tower(), wanted, 2))
    waiting.start()
    waiting.join(WAITS)
    assert waiting.is_alive()
    other.send_signal(signal.SIGKILL)
    waiting.join()
    other.communicate()
    assert store.counts.made == 2
    assert [float(store.get(key).level_LNE.mean()) for key in ALL[:4]] == [0.0, 3.0, 6.0, 9.0]
    assert encodes(tmp_path / "tower") == dict.fromkeys(ALL[:4], 1)
