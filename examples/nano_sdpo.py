"""SDPO in one file: the executable specification of this project, equal to the package by
tests/parity/test_nano.py.

    python examples/nano_sdpo.py [steps]     # the demo model on two cores: 40 seconds a step

No packing, no fused head, no resume: dense logits, autograd and plain loops, so that each equation
of the paper (arXiv 2601.20802) is one or two lines. Legend: T completion tokens, V vocabulary, K
support.
"""

from __future__ import annotations

import contextlib
import io
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

MAX_NEW_TOKENS, GROUP_SIZE, TASKS_PER_STEP = 24, 8, 2
TOP_K, BETA, EMA_RATE, LR, GRAD_CLIP = 20, 0.5, 0.05, 3e-5, 1.0


# --- records


@dataclass
class Task:
    prompt: str
    judge: Callable[[str], tuple[bool, str]]
    """Text of an attempt -> solved, feedback about this attempt."""


@dataclass
class Attempt:
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str
    solved: bool = False
    feedback: str = ""
    teacher_ids: list[int] | None = None
    """The teacher's context as tokens; None when there is nothing to tell it."""


# --- the teacher's context (Table 2)


def teacher_prompt(task: Task, group: list[Attempt], index: int, order: list[int]) -> str | None:
    """The question, then a solved sibling with another text, else this attempt's feedback, then
    the instruction. The attempt is not shown."""
    sections = [task.prompt]
    texts = [attempt.text.strip() for attempt in group]
    solved_siblings = [i for i in order if texts[i] not in ("", texts[index])]
    if solved_siblings:
        sections.append(f"Here is a correct solution:\n\n{texts[solved_siblings[0]]}")
    elif not group[index].solved and group[index].feedback:
        said = group[index].feedback
        sections.append(
            f"An earlier attempt failed. This is what the environment said about it:\n\n{said}"
        )
    else:
        return None
    return "\n\n".join([*sections, "Now solve the original task yourself."])


# --- the objective (Eq. 1, Eq. 11)


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [T, V], in float32 at least."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def buckets(log_p: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
    """Log-masses [T, K+1]: the support's tokens, then one tail bucket with all the rest (A.3)."""
    top = log_p.gather(1, support)
    tail = torch.log((1 - top.exp().sum(1, keepdim=True)).clamp_min(1e-12))
    return torch.cat([top, tail], dim=1)


def divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence [T] over the student's top-K plus tail; no gradient reaches the
    teacher."""
    log_p, log_q = log_probs(student_logits), log_probs(teacher_logits.detach())
    support = log_p.detach().topk(min(TOP_K, log_p.shape[-1]), dim=-1).indices
    p, q = buckets(log_p, support), buckets(log_q, support)
    m = torch.logaddexp(p + math.log(1 - BETA), q + math.log(BETA))
    return (1 - BETA) * (p.exp() * (p - m)).sum(-1) + BETA * (q.exp() * (q - m)).sum(-1)


def completion_logits(model, prompt_ids: list[int], completion_ids: list[int]) -> torch.Tensor:
    """Logits [T, V] that predict each completion token after `prompt_ids`."""
    ids = torch.tensor([prompt_ids + completion_ids], device=model.device)
    return model(ids).logits[0, len(prompt_ids) - 1 : -1]


def sdpo_loss(model, teacher, attempts: list[Attempt]) -> torch.Tensor:
    """Sum of divergences over every distilled token, divided once by their number in the whole
    batch."""
    distilled = [a for a in attempts if a.teacher_ids is not None]
    total = sum(len(a.completion_ids) for a in distilled)
    loss = torch.zeros(())
    for attempt in distilled:
        with torch.no_grad(), teacher.weights_in(model):
            teacher_logits = completion_logits(model, attempt.teacher_ids, attempt.completion_ids)
        student_logits = completion_logits(model, attempt.prompt_ids, attempt.completion_ids)
        loss = loss + divergence(student_logits, teacher_logits).sum() / total
    return loss


def grpo_loss(model, groups: list[list[Attempt]]) -> torch.Tensor:
    """The baseline on-policy (Eq. 12 at ratio 1): reward minus group mean, no std, one
    denominator."""
    total = sum(len(a.completion_ids) for group in groups for a in group)
    loss = torch.zeros(())
    for group in groups:
        mean = sum(a.solved for a in group) / len(group)
        for attempt in group:
            logits = completion_logits(model, attempt.prompt_ids, attempt.completion_ids)
            ids = torch.tensor(attempt.completion_ids)[:, None]
            logp = log_probs(logits).gather(1, ids)
            loss = loss - (float(attempt.solved) - mean) * logp.sum() / total
    return loss


class EmaTeacher:
    """theta' <- (1 - rate) theta' + rate theta (A.2), lent to the one model by swapping storage."""

    def __init__(self, model) -> None:
        self.weights = {n: p.detach().clone() for n, p in model.named_parameters()}

    @contextlib.contextmanager
    def weights_in(self, model) -> Iterator[None]:
        own = {n: p.data for n, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.data = self.weights[name]
        yield
        for name, parameter in model.named_parameters():
            parameter.data = own[name]

    @torch.no_grad()
    def follow(self, model) -> None:
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter, EMA_RATE)


# --- Algorithm 1


@torch.no_grad()
def sample(model, tokenizer, task: Task, count: int, stop_id: int) -> list[Attempt]:
    """`count` attempts at temperature 1."""
    prompt = encode(tokenizer, task.prompt)
    ids = torch.tensor([prompt] * count, device=model.device)
    cache, tokens = None, ids
    done = torch.zeros(count, dtype=torch.bool)
    for _ in range(MAX_NEW_TOKENS):
        out = model(tokens, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        tokens = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1)
        ids = torch.cat([ids, tokens], dim=1)
        done |= tokens[:, 0] == stop_id
        if done.all():
            break
    attempts = []
    for row in ids[:, len(prompt) :].tolist():
        end = row.index(stop_id) + 1 if stop_id in row else len(row)
        text = tokenizer.decode([t for t in row[:end] if t != stop_id])
        attempts.append(Attempt(prompt_ids=prompt, completion_ids=row[:end], text=text))
    return attempts


def encode(tokenizer, prompt: str) -> list[int]:
    """A user turn as tokens, up to where the assistant's begins."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer.encode(text, add_special_tokens=False)


def reread(tokenizer, task: Task, group: list[Attempt], rng: random.Random) -> None:
    """Give every attempt its teacher context; solved siblings are drawn at random, never the
    attempt itself."""
    order = [i for i, a in enumerate(group) if a.solved]
    rng.shuffle(order)
    for index, attempt in enumerate(group):
        prompt = teacher_prompt(task, group, index, order)
        attempt.teacher_ids = None if prompt is None else encode(tokenizer, prompt)


def train(
    model, tokenizer, tasks: list[Task], steps: int, stop_id: int, seed: int = 0
) -> list[float]:
    """Solved rate of each step."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    teacher = EmaTeacher(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    history = []
    for _ in range(steps):
        attempts = []
        for task in rng.sample(tasks, min(TASKS_PER_STEP, len(tasks))):
            group = sample(model, tokenizer, task, GROUP_SIZE, stop_id)
            for attempt in group:
                attempt.solved, attempt.feedback = task.judge(attempt.text)
            reread(tokenizer, task, group, rng)
            attempts += group
        loss = sdpo_loss(model, teacher, attempts)
        if loss.requires_grad:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
            optimizer.step()
            optimizer.zero_grad()
            teacher.follow(model)
        history.append(sum(a.solved for a in attempts) / len(attempts))
        print(f"solved {history[-1]:.2f}  loss {loss.item():.4f}  {attempts[0].text[:60]!r}")
    return history


# --- an environment: say a number; the judge says what is wrong


def sum_task(a: int, b: int) -> Task:
    """Adding two numbers; plain text is judged, no code is run here (see sdpo.sandbox for that)."""

    def judge(text: str) -> tuple[bool, str]:
        numbers = "".join(c if c.isdigit() else " " for c in text).split()
        if not numbers:
            return False, "There is no number in the answer."
        said = f"The answer ends with {numbers[-1]}; {a} + {b} is {a + b}."
        return numbers[-1] == str(a + b), said

    return Task(prompt=f"What is {a} + {b}? Answer with the number only.", judge=judge)


def main() -> None:
    from sdpo.models.policy import load_policy

    with contextlib.redirect_stderr(io.StringIO()):
        policy = load_policy("smollm2-135m-instruct")
    stop_id = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    tasks = [sum_task(a, b) for a in range(2, 9) for b in range(2, 9)]
    train(policy.model, policy.tokenizer, tasks, int(sys.argv[1]) if sys.argv[1:] else 10, stop_id)


if __name__ == "__main__":
    main()
