"""An engine in another process for several ranks: the first one asks it, all have its answers.

Meanwhile the others help the first with what only all can do: read features that one of them lacks, or make them again.

N questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any, Protocol, TypeVar, cast

from longtake.errors import UserError
from longtake.parallel.axis import Axis
from longtake.parallel.checkpoint import gathered
from longtake.protocols import Engine, Model
from longtake.records import Draw, Features, Group, Prompt
from longtake.runtime.rows import FeaturesOf

T = TypeVar("T")
NOBODY: list[str] | None = None  # asks for features any more


class Distant(Engine, Protocol):
    """An engine in another process."""

    def load(self, model: Model, version: str) -> None:
        """The engine answers with these weights from now on; nothing to do if it has this version."""


class OneForAll:
    """Every method is to be called by all ranks, with the same things. Raises on all what the engine raises.

    Example: with OneForAll.open(world, model, films.features, begin) as engine: engine.generate(prompts, draws, 48).
    """

    def __init__(self, world: Axis, features: FeaturesOf) -> None:
        """`features`: those of handles, asked by all ranks together."""
        self._world, self._features = world, features
        self._engine: Distant | None = None  # of the first rank

    @classmethod
    @contextmanager
    def open(
        cls,
        world: Axis,
        model: Model,
        features: FeaturesOf,
        begin: Callable[[FeaturesOf], AbstractContextManager[Distant]],
    ) -> Iterator[OneForAll]:
        """`begin`: starts the engine, on the first rank alone, with the features that it is to read."""
        made = cls(world, features)
        with ExitStack() as stack:

            def start() -> None:
                made._engine = stack.enter_context(begin(made._ask))

            with gathered(model.net):
                made._led(start)
            yield made

    def load(self, model: Model, version: str) -> None:
        """See Distant."""

        def load() -> None:
            assert self._engine is not None
            self._engine.load(model, version)

        with gathered(model.net):
            self._led(load)

    def generate(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int) -> list[Group]:
        """See protocols.Engine."""

        def answered() -> list[Any]:
            assert self._engine is not None
            return [group.answers for group in self._engine.generate(prompts, draws, max_tokens)]

        return [Group(prompt, own) for prompt, own in zip(prompts, self._led(answered), strict=True)]

    def _led(self, work: Callable[[], T]) -> T:
        """What `work` gave on the first rank; the others help it until it has ended."""
        found: T | None = None
        trouble: UserError | None = None
        if self._world.leads:
            try:
                found = work()
            except UserError as error:
                trouble = error
        while (said := self._world.first((NOBODY, found, trouble)))[0] is not None:
            with suppress(UserError):  # the first rank has met it too, and tells it when its work has ended
                self._features(said[0])
        _, found, trouble = said
        if trouble is not None:
            raise trouble
        return cast(T, found)

    def _ask(self, handles: Sequence[str]) -> list[Features]:
        """Features, for the engine of the first rank."""
        self._world.first((list(handles), None, None))
        return self._features(handles)
