"""Which adapters `model.adapter` makes, by PEFT's own names, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from sdpo.config.schema import LoraConfig
from sdpo.errors import ConfigError
from sdpo.models.adapters import (
    adapter_weights,
    continues,
    load_adapter,
    new_adapter,
    save_model,
)
from sdpo.models.packing import hidden_rows, pack, pack_item
from sdpo.models.weights import trainable
from sdpo.records import Sample
from sdpo.testing import tiny_model

pytest.importorskip("peft")

OPTIONS = [
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    {"use_rslora": True},
    {"use_dora": True},
    {"init_lora_weights": "gaussian"},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 8}},
    {"target_modules": ["up_proj"], "layers_to_transform": [0]},
]


def adapted(options, seed=0):
    wanted = LoraConfig(rank=4, alpha=8, options=options)
    return new_adapter(tiny_model(), wanted, base="tiny", seed=seed), wanted


def moved(model):
    """`model` with adapters that do something."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in trainable(model).values():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.arange(40, 60)[None]).logits


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_adapter_of_any_options_is_saved_loaded_and_merged(options, tmp_path):
    model, wanted = adapted(options)
    moved(model)
    assert (logits(model) - logits(tiny_model())).abs().max() > 1e-4
    save_model(model, tmp_path)
    again = load_adapter(tiny_model(), tmp_path, merge=False)
    assert torch.equal(logits(again), logits(model))
    merged = load_adapter(tiny_model(), tmp_path, merge=True)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=1e-4)
    assert adapter_weights(tmp_path).keys() == trainable(model).keys()
    assert continues(tmp_path, wanted)
    assert not continues(tmp_path, LoraConfig(rank=4, alpha=8, options={"target_modules": ["x"]}))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_packed_attempts_see_the_adapter(options):
    model = moved(adapted(options)[0])
    ids = tuple(range(40, 60))
    sample = Sample(
        task_id="t", index=0, prompt_ids=ids[:8], completion_ids=ids[8:], loss_mask=(True,) * 12,
        sampler_logprobs=(), teacher_prompt_ids=None, advantage=0.0, component_weights={},
    )  # fmt: skip
    (batch,) = pack([pack_item(sample, sample.prompt_ids)], budget_tokens=100)
    head = model.get_output_embeddings()
    with torch.no_grad():
        packed = head(hidden_rows(model, batch))
    torch.testing.assert_close(packed, logits(model)[0, 7:-1], atol=1e-4, rtol=1e-4)


def test_target_modules_decide_what_trains():
    few = trainable(adapted({"target_modules": ["q_proj"]})[0])
    assert few
    assert all("q_proj" in name for name in few)
    assert len(few) < len(trainable(adapted({})[0]))


def test_rslora_scales_by_the_root_of_the_rank():
    scaled = moved(adapted({"use_rslora": True})[0])
    layer = next(m for m in scaled.modules() if isinstance(getattr(m, "scaling", None), dict))
    assert layer.scaling["default"] == 8 / 4**0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_dropout": 0.1}, "'lora_dropout' is not among those"),
        ({"r": 8}, "'r' is not among those"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"target_modules": ["nothing_here"]}, "PEFT refuses it"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        adapted(options)
