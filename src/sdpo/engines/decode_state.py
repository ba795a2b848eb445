"""What a decode step reads and writes, and the step: one new token per open completion."""

from __future__ import annotations

import torch

from sdpo.engines.base import Sampling
from sdpo.engines.sampling import sample_tokens
from sdpo.kernels.cache import KvCache
from sdpo.kernels.decode import DecodePlan
from sdpo.models.qualify import FastPath


class DecodeState:
    """Tensors of the rows and the cache behind them.

    Everything that changes between steps is in here and is written in place: a captured step reads
    the addresses it was captured with.
    """

    def __init__(
        self,
        fast: FastPath,
        *,
        num_prompts: int,
        prompt_columns: int,
        num_rows: int,
        suffix_columns: int,
        max_group: int,
    ) -> None:
        device = fast.cache.device
        self.cache = KvCache(
            fast.cache,
            num_prompts=num_prompts,
            prompt_columns=prompt_columns,
            num_rows=num_rows,
            suffix_columns=suffix_columns,
        )
        self.max_group = max_group
        self.tokens_R = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.lengths_R = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.slots_R = torch.zeros(num_rows, dtype=torch.long, device=device)
        self.live_R = torch.zeros(num_rows, dtype=torch.long, device=device)
        """1 for a row in use, 0 for one that pads a captured step: its length then stays 0."""
        self.uniforms_RT = torch.zeros(num_rows, suffix_columns, device=device)
        self.prompt_lengths_G = torch.zeros(num_prompts, dtype=torch.long, device=device)
        """Tokens in the prompt slot: all of the prompt but its last."""
        self.rows_GS = torch.zeros(num_prompts, max_group, dtype=torch.long, device=device)
        self.places_R = torch.zeros(num_rows, dtype=torch.long, device=device)

    @property
    def num_rows(self) -> int:
        return self.tokens_R.shape[0]

    def plan(
        self, rows: int, columns: int, *, num_prompts: int, num_slots: int, prompt_columns: int
    ) -> DecodePlan:
        """A plan over the first rows, columns and prompt slots; masks everywhere unless told
        otherwise.
        """
        cache = self.cache
        return DecodePlan(
            prompt_keys=[k[:num_prompts, :, :prompt_columns] for k in cache.prompt_keys],
            prompt_values=[v[:num_prompts, :, :prompt_columns] for v in cache.prompt_values],
            suffix_keys=[k[:rows, :, :columns] for k in cache.suffix_keys],
            suffix_values=[v[:rows, :, :columns] for v in cache.suffix_values],
            prompt_lengths_R=self.prompt_lengths_G[self.slots_R[:rows]],
            lengths_R=self.lengths_R[:rows],
            rows_GS=self.rows_GS[:num_prompts, :num_slots],
            places_R=self.places_R[:rows],
            is_dense=False,
            mask_prompt=True,
            mask_suffix=True,
            max_position=prompt_columns + columns,
        )


def decode_step(
    fast: FastPath, state: DecodeState, plan: DecodePlan, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row of the plan: ids [R] and log-probs [R]; the state moves on.

    Never waits for the device, so that a graph can capture it: nothing here depends on a value.
    """
    rows = plan.lengths_R.shape[0]
    logits_RV = fast.model(
        input_ids=state.tokens_R[None, :rows],
        position_ids=plan.positions_R[None],
        use_cache=False,
        sdpo_plan=plan,
    ).logits[0]
    numbers_R = state.uniforms_RT[:rows].gather(1, plan.lengths_R[:, None])[:, 0]
    tokens_R, logprobs_R = sample_tokens(logits_RV, numbers_R, sampling)
    state.tokens_R[:rows] = tokens_R
    # Rows that only pad a captured step stay at length 0: they would run out of their columns.
    state.lengths_R[:rows] += state.live_R[:rows]
    return tokens_R, logprobs_R
