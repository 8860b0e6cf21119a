"""What ranks keep of features: each forgets in its own way, and all agree on what is made again."""

import pytest
from tests.ranks import run
from tests.runtime.ranked import decode, features, films_of, ignore, looks_of, one_rank, rendered, same

from longtake.errors import UserError
from longtake.parallel.ranks import Ranks, mesh


@pytest.fixture
def folder(tmp_path):
    return rendered(tmp_path)


def forgetful(world, folder, quotas):
    """The last rank's memory holds nothing."""
    films = films_of(Ranks(world, sequence=world), folder, **quotas | {"ram": 0.0 if world.index else 1.0})
    decode(films, folder)
    looks = looks_of(folder)[:3]
    films.encode(looks, ignore)
    there = all(films.store.get(films.prompt(look).features) for look in looks)
    made = [features(films, looks) for _ in range(2)][-1]
    films.encode(looks, ignore)
    return made, films.store.frames, films.store.counts, there


def test_ranks_that_forgot_other_features_agree(folder) -> None:
    want, _ = one_rank(folder)
    for made, _, counts, _ in run(2, forgetful, folder, {}):
        same(made, want[:3])
        assert counts.remade > 0


def test_what_is_on_disk_is_not_made_again_by_who_forgot_it(folder) -> None:
    want, _ = one_rank(folder)
    found = run(2, forgetful, folder, {"disk": 1.0})
    for made, _, counts, there in found:
        same(made, want[:3])
        assert (counts.made, counts.remade, there) == (3, 0, True)
    assert sum(frames for _, frames, _, _ in found) == 8 + 8 + 4
    assert [counts.disk > 0 for _, _, counts, _ in found] == [False, True]


def damaged(world, folder, knows):
    """A byte changes on disk, after one of the ranks has read it or none."""
    films = films_of(Ranks(world, sequence=world), folder, disk=1.0)
    looks = looks_of(folder)
    decode(films, folder)
    films.encode(looks, ignore)
    before = features(films, looks)
    films = films_of(Ranks(world, sequence=world), folder, disk=1.0)
    handles = [films.prompt(look).features for look in looks]
    if world.index == knows:
        assert all(films.store.get(handle) for handle in handles)
    world.wait()
    if world.leads:
        (pack,) = (folder / "features").rglob("*.safetensors")
        content = bytearray(pack.read_bytes())
        content[-5] ^= 1
        pack.write_bytes(content)
    world.wait()
    after = [one.level_LNE for one in films.features(handles)]
    return before, after, films.store.counts, films.encode(looks, ignore)


@pytest.mark.parametrize("knows", [None, 0, 1])
def test_a_pack_that_is_damaged_for_one_rank_is_made_again_by_all(folder, knows) -> None:
    found = run(2, damaged, folder, knows)
    for before, after, counts, told in found:
        same(after, before)
        assert counts.remade == 6
        assert told == (6, 0)
    noticed = [counts.damaged for _, _, counts, _ in found]
    assert noticed == [knows != 0, knows != 1] or (knows is None and sum(noticed) == 1)  # moved aside by the other
    assert len(list((folder / "features").rglob("*.safetensors"))) == 1
    assert len(list((folder / "features").rglob("*.damaged"))) == 1


def apart(world, folder):
    """Two sequences of two ranks look at other films; what the memory has lost each makes for itself."""
    ranks = mesh(world, 2)
    films = films_of(ranks, folder, ram=0.0)
    decode(films, folder)
    looks = looks_of(folder)
    films.encode(looks, ignore)
    ahead = films.store.frames
    own = looks[ranks.data.index :: 2]
    made = features(films, own)
    assert sum(ranks.sequence.gather(films.store.frames - ahead)) == [8 + 4 + 8, 8 + 8 + 2][ranks.data.index]
    if ranks.data.index:
        features(films, own)  # and not equally often
    return ranks.data.index, made, ahead, films.store.frames


def test_a_sequence_makes_what_it_lost_without_the_others(folder) -> None:
    want, _ = one_rank(folder)
    found = run(4, apart, folder)
    for data, made, _, _ in found:
        same(made, want[data::2])
    assert sum(ahead for _, _, ahead, _ in found) == 8  # one set, in vain
    assert sum(frames - ahead for _, _, ahead, frames in found[2:]) == 2 * (8 + 8 + 2)


def readonly(world, folder):
    films = films_of(Ranks(world, sequence=world), folder, disk=1.0)
    decode(films, folder)
    films.store.disk.readonly = world.leads  # the folder of the rank that would write
    with pytest.raises(UserError, match="features cannot be written here"):
        films.encode(looks_of(folder), ignore)
    return films.store.frames


def test_a_folder_that_cannot_be_written_is_said_by_all(folder) -> None:
    assert run(2, readonly, folder) == [0, 0]
