"""Who answers, who captions and who judges: one model or endpoint at a time, with the frames that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

from longtake.data.cache import FrameTier, Quarantine
from longtake.data.video import VideoError
from longtake.engines.local import LocalEngine
from longtake.engines.remote import Remote, read_key
from longtake.log import Log
from longtake.models.heads import FILE, no_head
from longtake.parallel.ranks import here
from longtake.records import FramePolicy, Question
from longtake.runtime.encode import decoded
from longtake.runtime.films import Films, Look
from longtake.runtime.load import find_folder, load_model, weights_version
from longtake.runtime.onlooker import sent
from longtake.runtime.words import unknown
from longtake.train import context_settings
from longtake.train.asking import Ask, Ledger, LocalAsker, ask
from longtake.train.distant import RemoteAsker, Schema, fit_for
from longtake.train.footage import counted, decode, open_films
from longtake.train.judge_settings import JUDGE, Context, Judge
from longtake.train.judging import judge_policy
from longtake.train.keys import keyed
from longtake.train.narrative import Clip, clips_of
from longtake.train.settings import Dtype, Video

Role = Literal["policy", "captioner", "judge"]
ROLES: tuple[Role, ...] = ("policy", "captioner", "judge")


class Judges(Protocol):
    """The config of a recipe that asks for preferences, as far as its cast goes."""

    @property
    def model(self) -> str: ...
    @property
    def out(self) -> Path: ...
    @property
    def batch(self) -> int: ...
    @property
    def dtype(self) -> Dtype: ...
    @property
    def seed(self) -> int: ...
    @property
    def video(self) -> Video: ...
    @property
    def context(self) -> Context: ...
    @property
    def judge(self) -> Judge: ...


class Cast:
    """Opened one after the other: a model that is not needed any more makes room for the next.

    Example: cast = Cast(config, rows, log, None); cast.ask("policy", asks, 256).
    """

    def __init__(self, config: Judges, rows: Sequence[Question], log: Log, schema: Schema | None) -> None:
        """Opens the policy and decodes; `looks` are the questions that can be used, as the policy sees them.

        `schema`: what an endpoint that judges is asked for. Raises UserError.
        """
        self.config, self.log, self.schema = config, log, schema
        self.tier = FrameTier(config.video.tier or config.out / "tier")
        self._clips: dict[str, tuple[Clip, ...]] = {}
        for role in ROLES:  # said now, and not after hours of sampling
            if (who := self.who(role)) is not None:
                no_head((find_folder(who) / FILE).is_file(), who)
        self._key = read_key(config.judge.key_file, "judge.key_file")
        self._who = self.who("policy")
        self._asker: LocalAsker | RemoteAsker = self._open(self._who, rows)
        self.looks = [self._look(question) for question in rows if self.films.usable(question)]

    @property
    def films(self) -> Films:
        """Those of the policy."""
        asker = self._play("policy")
        assert isinstance(asker, LocalAsker), "no endpoint samples"
        return asker.films

    def who(self, role: Role) -> str | None:
        """Hub id or folder of the model in this role, None for the endpoint."""
        own, judge = self.config.context.captioner, self.config.judge
        if role == "judge" or (role == "captioner" and own == JUDGE):
            return None if judge.url is not None else judge.model or self.config.model
        return own or self.config.model if role == "captioner" else self.config.model

    def judged(self, look: Look) -> Look:
        """How the judge looks at what was asked about."""
        return Look(look.question, judge_policy(look.policy, self.config.judge.frames))

    def clips(self, question: Question) -> tuple[Clip, ...]:
        """The parts that are captioned: none without a narrative."""
        look = self._look(question)
        if self.config.context.kind == "none" or question.video is None or look.policy.image:
            return ()
        if question.id not in self._clips:
            self._clips[question.id] = clips_of(look, self.tier.film(question.video).duration, self.config.context)
        return self._clips[question.id]

    def marks(self, role: Role) -> tuple[str, ...]:
        """Tokens that steer the chat of whoever plays this role."""
        return self._play(role).marks

    def ask(self, role: Role, asks: Sequence[Ask], max_tokens: int) -> Ledger:
        """Replies to all asks, or to as many as could be had; what an earlier sitting got is not asked again.

        Raises UserError where an endpoint refuses everybody, or a prompt does not fit the model.
        """
        path = self.config.out / "asked" / f"{role}.jsonl"
        ledger = Ledger(path, writes=self.log.leads)
        if not asks:
            return ledger
        asker = self._play(role)
        if isinstance(asker, LocalAsker):
            ask(asker, asks, max_tokens, ledger, self.log)
            return ledger
        asker.schema = self.schema if role == "judge" else None
        if self.log.leads:  # an endpoint is paid once
            ask(asker, asks, max_tokens, ledger, self.log)
        here().wait()
        return ledger if self.log.leads else Ledger(path)

    @property
    def gave_up(self) -> str:
        """Why the endpoint was not asked any more, "" if it answered."""
        return here().first(self._asker.gave_up if isinstance(self._asker, RemoteAsker) else "")

    def close(self) -> None:
        self._asker.close()

    def check_words(self, asks: Sequence[Ask]) -> None:
        """Says which words of the first of these prompts a judge in this process does not know."""
        asker = self._play("judge")
        if not asks or not isinstance(asker, LocalAsker):
            return
        if strange := unknown(asker.films.model.tokenizer, asks[0].look.question.text):
            some = f"{len(strange)} words of its prompts, such as '{strange[0]}'"
            self.log.note(f"the judge's tokenizer does not know {some}: --prompts gives it others")

    def _play(self, role: Role) -> LocalAsker | RemoteAsker:
        if (who := self.who(role)) != self._who:
            self._asker.close()
            del self._asker  # before the next one is loaded
            self._asker, self._who = self._open(who, [look.question for look in self.looks]), who
        return self._asker

    def _open(self, who: str | None, questions: Sequence[Question]) -> LocalAsker | RemoteAsker:
        if who is None:
            return self._remote(questions)
        config = self.config
        with self.log.phase("load"):
            own = config.context if who == config.model else context_settings.Context()
            model = load_model(who, config.dtype, rope=own.rope, reduce=own.reduce)
        films = open_films(model, config.video, config.out, frozen=True)
        config.context.onto(films)
        films.budget = own.budget
        decode(films, questions, config.video, self.log, lambda question: self._policies(who, question))
        engine = LocalEngine(model, films.features, weights_version(model), ranks=films.ranks, at=self.log.at)
        return LocalAsker(films, engine, config.batch, self.log)

    def _remote(self, questions: Sequence[Question]) -> RemoteAsker:
        judge, video, context = self.config.judge, self.config.video, self.config.context
        assert judge.url is not None
        assert judge.model is not None
        remote = Remote(judge.url, judge.model, self._key, retries=judge.retries, timeout=judge.timeout)
        fit = fit_for(judge.max_pixels)
        wants: dict[Path, list[FramePolicy]] = {}
        for question in questions:
            if question.video is not None:
                policies = [sent(policy, context.pick) for policy in self._policies(None, question)]
                wants.setdefault(Path(question.video), []).extend(policies)
        with self.log.phase("decode"), counted(self.log, "films", len(wants)) as progress:
            quarantine = Quarantine(self.config.out)
            decoded(self.tier, list(wants), wants.__getitem__, fit, video.workers, quarantine, progress, here())
        reads = context.subtitles == "on"
        return RemoteAsker(remote, self.tier, fit, judge.workers, judge.temperature, subtitles=reads, pick=context.pick)

    def _policies(self, who: str | None, question: Question) -> Iterable[FramePolicy]:
        """All frames of a question's film that a model must have."""
        look = self._look(question)
        found = [look.policy] * (who == self.who("policy")) + [self.judged(look).policy] * (who == self.who("judge"))
        if who == self.who("captioner"):
            with suppress(VideoError):  # whoever decodes it says why
                found += [clip.policy for clip in self.clips(question)]
        return dict.fromkeys(found or [look.policy])

    def _look(self, question: Question) -> Look:
        return Look(question, self.config.video.policy(question, keyed(self.config.seed, "frames", question.id)))
