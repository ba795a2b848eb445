"""The fast path's decode loop: admit, step, retire.

A prompt is prefilled without its last token; that token is the first input of each of its
completions, so a step treats all rows alike, new or old: feed one token at column `length` of the
row's suffix, sample token number `length`. Rows stay dense: when completions end, the last rows
move into the holes, because every step costs what its highest row costs. Waiting completions enter
when a quarter of the rows is free and not one by one: each entry means a prefill, during which no
row advances. On a CPU a step runs on exactly the live rows and columns; on CUDA it is a captured
graph of the next larger size (`graphs.py`).

Shapes: R rows, G prompt slots, S completions per prompt, P prompt columns, C suffix columns, T
tokens, V vocabulary.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import torch

from sdpo.engines.base import Sampling
from sdpo.engines.completions import OpenCompletion
from sdpo.engines.decode_state import DecodeState, decode_step
from sdpo.engines.graphs import StepGraphs
from sdpo.engines.sampling import uniforms
from sdpo.kernels.plan import Observed, Scores, paths
from sdpo.kernels.tree import tree_plan
from sdpo.models.packing import MicroBatch, PackItem, pack
from sdpo.models.qualify import FastPath
from sdpo.progress import tell


class Decoder:
    """One call of `generate` on the fast path."""

    def __init__(
        self,
        fast: FastPath,
        state: DecodeState,
        prompts: Sequence[tuple[int, ...]],
        completions: Sequence[OpenCompletion],
        sampling: Sampling,
        max_prefill_tokens: int,
        graphs: StepGraphs | None = None,
    ) -> None:
        self._fast = fast
        self._state = state
        self._graphs = graphs
        self._prompts = prompts
        self._sampling = sampling
        self._max_prefill_tokens = max_prefill_tokens
        self._waiting = deque(completions)
        self._rows: list[OpenCompletion] = []
        self._slots: dict[int, int] = {}
        """Prompt to its slot in the cache, while anyone needs it."""
        self._needed = Counter(completion.prompt for completion in completions)
        """Unfinished completions per prompt."""
        self._size = (1, 1, 1)
        """Prompt slots, completions per prompt and prompt columns in use."""
        self._is_dense = False
        """Whether rows stand in the order of their places and no place is empty: attention can then
        reshape rows into (prompt, completion) instead of gathering them."""

    def run(self) -> None:
        """Fills every completion."""
        state = self._state
        # On CUDA the state is the last call's, for the sake of its captured steps.
        state.live_R.zero_()
        state.lengths_R.zero_()
        total, sampled_tokens = len(self._waiting), 0
        tell("sample", 0, total)
        while self._waiting or self._rows:
            if self._waiting and len(self._rows) <= state.num_rows * 3 // 4:
                self._admit()
            tokens_R, logprobs_R = self._step()
            sampled = zip(self._rows, tokens_R.tolist(), logprobs_R.tolist(), strict=True)
            for completion, token, logprob in sampled:
                completion.append(token, logprob, self._sampling)
            sampled_tokens += len(self._rows)
            if any(completion.is_finished for completion in self._rows):
                self._retire()
            left = len(self._waiting) + len(self._rows)
            tell("sample", total - left, total, tokens=sampled_tokens)

    def _step(self) -> tuple[torch.Tensor, torch.Tensor]:
        state, num_live = self._state, len(self._rows)
        lengths = [len(completion.token_ids) for completion in self._rows]
        columns = max(lengths) + 1
        if self._graphs is not None:
            tokens_R, logprobs_R = self._graphs.step(
                self._fast, state, self._sampling, num_live, columns
            )
            return tokens_R[:num_live], logprobs_R[:num_live]
        num_prompts, num_slots, prompt_columns = self._size
        plan = state.plan(
            num_live,
            columns,
            num_prompts=num_prompts,
            num_slots=num_slots,
            prompt_columns=prompt_columns,
        )
        # What a plan need not mask it need not add to all scores of all layers either. The counts
        # are Python's: asking the tensors would wait for the device.
        plan.is_dense = self._is_dense
        plan.mask_prompt = any(
            max(1, len(self._prompts[prompt]) - 1) != prompt_columns or prompt_columns == 1
            for prompt in self._slots
        )
        plan.mask_suffix = min(lengths) != max(lengths)
        plan.max_position = max(
            len(self._prompts[row.prompt]) + len(row.token_ids) for row in self._rows
        )
        # A step is thousands of small calls: without autograd's bookkeeping it takes 0.95 of the
        # time. `fallback.py` cannot do so: its models may keep tensors that they make on the way
        # (dynamic rotary scaling), and training cannot use inference tensors.
        with torch.inference_mode():
            return decode_step(self._fast, state, plan, self._sampling)

    def _admit(self) -> None:
        """Lets waiting completions in, in order, while rows and prompt slots last; prefills new
        prompts. In order, so that what belongs to one prompt is open at the same time.
        """
        state, first = self._state, len(self._rows)
        free = sorted(set(range(len(state.prompt_lengths_G))) - set(self._slots.values()))
        new_prompts = []
        while self._waiting and len(self._rows) < state.num_rows:
            prompt = self._waiting[0].prompt
            if prompt not in self._slots:
                if not free:
                    break
                self._slots[prompt] = free.pop(0)
                new_prompts.append(prompt)
            self._rows.append(self._waiting.popleft())
        self._prefill(new_prompts)
        entered = self._rows[first:]
        device, rows = state.tokens_R.device, slice(first, len(self._rows))
        state.tokens_R[rows] = torch.tensor(
            [self._prompts[completion.prompt][-1] for completion in entered], device=device
        )
        state.slots_R[rows] = torch.tensor(
            [self._slots[completion.prompt] for completion in entered], device=device
        )
        num_tokens = self._sampling.max_new_tokens
        # All numbers of a completion at once: drawn step by step they would be a copy to the device
        # in every step.
        numbers = uniforms([completion.seed for completion in entered], num_tokens)
        state.uniforms_RT[rows, :num_tokens] = numbers.to(device)
        state.lengths_R[rows] = 0
        self._place()

    def _prefill(self, new_prompts: Sequence[int]) -> None:
        """Computes the keys and values of prompts, several in one row of about `max_prefill_tokens`
        tokens.
        """
        cached = []
        for prompt in new_prompts:
            length = len(self._prompts[prompt]) - 1
            self._state.prompt_lengths_G[self._slots[prompt]] = length
            if length:
                cached.append(prompt)
        # As training lays sequences out: what is read of an item ends before its last token.
        items = [
            PackItem(
                prompt_ids=self._prompts[prompt][:-1],
                completion_ids=self._prompts[prompt][-1:],
                loss_mask=(True,),
            )
            for prompt in cached
        ]
        for batch in pack(items, budget_tokens=self._max_prefill_tokens, share_prefixes=True):
            self._prefill_batch(batch, [self._slots[cached[i]] for i in batch.item_indices])

    def _prefill_batch(self, batch: MicroBatch, slots: Sequence[int]) -> None:
        """One pass; `slots` of the cache are those of the batch's items, in order."""
        path_to = {path[-1].stop: path for path in paths(batch.segments)}
        # The last token that is read of an item is the last one on its path.
        own = [path_to[place + 1] for place in batch.row_index.tolist()]

        def keep(
            layer: int, keys_1KTD: torch.Tensor, values_1KTD: torch.Tensor, scores: Scores
        ) -> None:
            for slot, path in zip(slots, own, strict=True):
                self._state.cache.store_prompt(layer, slot, keys_1KTD[0], values_1KTD[0], path)

        device = self._state.tokens_R.device
        self._fast.backbone(
            input_ids=batch.token_ids[None].to(device),
            position_ids=batch.position_ids[None].to(device),
            use_cache=False,
            sdpo_plan=Observed(plan=tree_plan(batch.segments, device), see=keep),
        )

    def _retire(self) -> None:
        """Drops finished rows, moves the last rows into the holes, frees prompt slots that nobody
        needs."""
        state = self._state
        for completion in self._rows:
            if completion.is_finished:
                self._needed[completion.prompt] -= 1
                if not self._needed[completion.prompt]:
                    del self._slots[completion.prompt]
        num_live = sum(not completion.is_finished for completion in self._rows)
        targets = [row for row in range(num_live) if self._rows[row].is_finished]
        sources = [
            row for row in range(num_live, len(self._rows)) if not self._rows[row].is_finished
        ]
        if sources:
            columns = max(len(self._rows[row].token_ids) for row in sources)
            state.cache.move_rows(sources, targets, columns)
            for rows in (state.tokens_R, state.lengths_R, state.slots_R, state.uniforms_RT):
                rows[targets] = rows[sources]
        for source, target in zip(sources, targets, strict=True):
            self._rows[target] = self._rows[source]
        del self._rows[num_live:]
        # A captured step also computes rows that are not live; theirs must stay in the cache.
        state.lengths_R[num_live:] = 0
        if self._rows:
            self._place()

    def _place(self) -> None:
        """Notes which row stands where beside its prompt, after rows came, moved or went."""
        state = self._state
        members: dict[int, list[int]] = {}
        for row, completion in enumerate(self._rows):
            members.setdefault(self._slots[completion.prompt], []).append(row)
        if self._graphs is None:
            num_prompts, num_slots = max(members) + 1, max(map(len, members.values()))
        else:  # captured steps have fixed shapes
            num_prompts, num_slots = state.rows_GS.shape
        table = [[0] * num_slots for _ in range(num_prompts)]
        places = [0] * len(self._rows)
        for slot, rows in members.items():
            for place, row in enumerate(rows):
                table[slot][place] = row
                places[row] = slot * num_slots + place
        self._is_dense = places == list(range(num_prompts * num_slots))
        device = state.rows_GS.device
        state.rows_GS[:num_prompts, :num_slots] = torch.tensor(table, device=device)
        state.places_R[: len(places)] = torch.tensor(places, device=device)
        state.live_R.zero_()
        state.live_R[: len(places)] = 1
        prompt_columns = max(len(self._prompts[completion.prompt]) for completion in self._rows) - 1
        self._size = (num_prompts, num_slots, max(1, prompt_columns))
