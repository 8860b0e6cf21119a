"""TRL's GRPOTrainer on the same network, frames and lengths of prompt and answers, in a process of its own.

TRL 1.16 has no column for videos (given one, it generates with it and trains without), so the frames are pictures: the
same patches and tokens, because a picture is one temporal patch here. The tower is frozen, KL is 0 and one pass is made
over fresh answers, so there is no pass for the old policy or a reference. Everything is set to be fast: no gradient
checkpointing, all answers in one batch, frames decoded and in memory before a step begins.

A step lasts from the end of the one before it to its own: it fetches the row, makes pixels, generates, learns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, Features, Image, List, Value
from PIL.Image import fromarray
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from bench.cpu_scene import BETAS, NORM, RATE, Clock
from bench.cpu_worker import More, Tell
from bench.cpu_world import HIGH, PIXELS, TOKENS, WIDE, World, film, words
from longtake.sim import tiny

TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %} {{ c['text'] }} {% endif %}"
    "{% endfor %} <|im_end|>{% endfor %}{% if add_generation_prompt %} <|im_start|> assistant{% endif %}"
)
BATCH_TOKENS = (
    18_000  # in one forward and backward: all 8 answers at 2k; at 512, batches of 1, 2, 4 and 8 took the same
)
ENDLESS = 1_000_000  # steps: training stops when nobody asks for another
COLUMNS = Features(prompt=List({"role": Value("string"), "content": Value("string")}), images=List(Image()))


def processor() -> Any:
    """Of pictures that are one temporal patch each."""
    shared: dict[str, Any] = {
        "patch_size": PIXELS.patch,
        "temporal_patch_size": PIXELS.temporal_patch,
        "merge_size": PIXELS.merge,
    }
    shared |= {"image_mean": list(PIXELS.mean), "image_std": list(PIXELS.std)}
    size = {"shortest_edge": PIXELS.factor**2, "longest_edge": WIDE * HIGH}
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **shared),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=size, **shared),
        chat_template=TEMPLATE,
    )


def question(processor: Any, pictures: list[Any]) -> str:
    """Of as many words as fill the prompt. Raises ValueError if its tokens are not those of the other modes."""

    def length(text: str) -> int:
        parts = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": text}]
        asked = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        return int(processor(images=[pictures], text=[asked], return_tensors="pt")["input_ids"].shape[1])

    wanted = TOKENS * len(pictures)
    text = words(wanted - length(""))
    if (found := length(text)) != wanted:
        raise ValueError(f"TRL's prompt has {found} tokens, the others' {wanted}")
    return text


class Timed(GRPOTrainer):
    """Says when answers are known."""

    clock = Clock()
    answered = 0.0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        with self.clock("rollout"):
            found = super()._generate_and_score_completions(inputs)
        self.answered = time.perf_counter()
        return found


class Steps(TrainerCallback):
    """Waits for what the benchmark wants and tells it what a step took."""

    def __init__(self, more: More, tell: Tell) -> None:
        self.more, self.tell = more, tell
        self.trainer: Timed | None = None
        self.start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **other: Any) -> None:
        self._wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **other: Any) -> None:
        assert self.trainer is not None
        end = time.perf_counter()
        update = end - self.trainer.answered
        rollout = self.trainer.clock.seconds.pop("rollout")
        phases = {"fetch": end - self.start - rollout - update, "rollout": rollout, "update": update}
        self.tell({"phases": phases, "update_s": update, "norm": None})
        self._wait(control)

    def _wait(self, control: Any) -> None:
        control.should_training_stop = not self.more()
        self.start = time.perf_counter()


def trainer(world: World, frames: int, group: int, answer: int) -> Callable[[More, Tell], None]:
    """Loads the network; what is returned trains as long as it is asked to."""
    net = Qwen3VLForConditionalGeneration.from_pretrained(world.model, dtype=torch.float32)
    net.model.visual.requires_grad_(False)
    made = processor()
    together = max(count for count in range(1, group + 1) if group % count == 0 and count <= _most(frames, answer))
    never = made.tokenizer.convert_tokens_to_ids(list(tiny.SPECIAL))  # an answer with pictures' marks stops training

    def serve(more: More, tell: Tell) -> None:
        pictures = [fromarray(frame) for frame in film(frames)]
        row = {"prompt": [{"role": "user", "content": question(made, pictures)}], "images": pictures}
        steps = Steps(more, tell)
        with tempfile.TemporaryDirectory(dir=world.folder) as room:
            settings = GRPOConfig(
                output_dir=room, max_steps=ENDLESS, num_generations=group, per_device_train_batch_size=together,
                gradient_accumulation_steps=group // together, steps_per_generation=group // together,
                max_completion_length=answer, learning_rate=RATE, lr_scheduler_type="constant", adam_beta1=BETAS[0],
                adam_beta2=BETAS[1], max_grad_norm=NORM, beta=0.0, num_iterations=1, temperature=1.0,
                use_cpu=True, bf16=False, gradient_checkpointing=False, dataloader_num_workers=0,
                report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
                generation_kwargs={"min_new_tokens": answer, "suppress_tokens": never},
            )  # fmt: skip
            steps.trainer = Timed(
                model=net, processing_class=made, reward_funcs=_reward, args=settings, callbacks=[steps],
                train_dataset=Dataset.from_list([row], features=COLUMNS),
            )  # fmt: skip
            steps.trainer.train()

    return serve


def _most(frames: int, answer: int) -> int:
    """Answers whose rows fit in a batch."""
    return max(1, BATCH_TOKENS // (TOKENS * frames + answer))


def _reward(completions: list[Any], completion_ids: list[list[int]], **other: Any) -> list[float]:
    """Half of the answers are good."""
    return [float(place % 2) for place in range(len(completion_ids))]
