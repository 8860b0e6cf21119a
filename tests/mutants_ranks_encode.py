"""Breaks of how ranks share the films of a run: who decodes, who encodes, who writes. See mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

ENCODE, FILMS, KEPT = ("runtime/test_encode_ranks.py", "runtime/test_films_ranks.py", "runtime/test_features_ranks.py")
TESTS = {  # runtime/features.py, runtime/films.py: in mutants_prefix and mutants_context
    "data/quarantine.py": ("data/test_quarantine.py",),
    "runtime/encode.py": (ENCODE, FILMS),
}

SHARES = breaks(
    "runtime/encode.py",
    ("+ (2 * n + 1) * film.pixels", "+ (2 * n) * film.pixels", "a temporal patch goes where it begins"),
    ("2 * patches * starts[number]", "2 * starts[number]", "films of many patches begin too early"),
    ("own[-1].film == number else", "own[-1].film >= 0 else", "two films become one"),
    ("min((n + 1) * patch, film.count)", "(n + 1) * patch", "a picture has a temporal patch's frames"),
    ("accumulate(film.pixels for", "accumulate(film.count for", "shares of frames, not of pixels"),
    ("pieces[part.film].append(piece)", "pieces[part.film] = [piece]", "a film's last part for all of it"),
    ("frames(part.start, part.stop)", "frames()", "every rank reads whole films"),
    ("requires_grad=learns)", "requires_grad=False)", "a rank with nothing stays out of the backward"),
    ("part.stop - part.start for part in own", "part.stop for part in own", "frames that others encoded are counted"),
    ("[sum(rows) for rows, _ in told], axis)", "[sum(rows) for rows, _ in told], axis).detach()", "no gradient"),
    ("        if trouble:", "        if False:", "a failure stays with its rank"),
)

DECODED = breaks(
    "runtime/encode.py",
    ("films[axis.index :: axis.size]}", "films}", "every rank decodes all"),
    ("            quarantine.release(path)", "            pass", "a film that was mended stays out elsewhere"),
    ("quarantine.add(*failed[path])", "pass", "a film failed where it was decoded alone"),
    ("    tier.recall()", "    pass", "films that others opened are opened again"),
    ("quarantine.written = axis.leads", "pass", "every rank writes the list"),
    ("    progress(len(films), len(films))", "    pass", "the count never ends"),
)

WRITTEN = breaks(
    "data/quarantine.py",
    ("if known is None and self.written:", "if known is None:", "every rank appends"),
    ("        if self.written:\n            write", "        if True:\n            write", "every rank writes anew"),
)

AGREED = breaks(
    "runtime/features.py",
    ("axis.first(axis.leads and self", "axis.first(self", "every rank writes"),
    ("axis.first(axis.leads and self", "(axis.leads and self", "what the first wrote is not known to others"),
    ("if missing and self.disk and axis.first(self.disk.readonly):", "if False:", "nobody says that it is read-only"),
    ("store.frames += frames", "store.frames = frames", "the last call's frames alone"),
    ("    if not missed:", "    if False:", "what all have is gone through"),
)

LOOKED = breaks(
    "runtime/films.py",
    ("axis = self.ranks.sequence\n", "axis = self.ranks.world\n", "other sequences wait for this one"),
    ("order[start:stop])", "order)", "a part is the whole"),
    ("progress=progress, axis=self.ranks.world)", "progress=progress)", "every rank encodes all"),
    ("requests, self.ranks.sequence)[0]", "requests, Ranks().sequence)[0]", "the tower in training is not shared"),
    ("shape[1:] if still else shape", "shape", "a picture is a film"),
)

MUTANTS = SHARES + DECODED + WRITTEN + AGREED + LOOKED
