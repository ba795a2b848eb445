"""What stands between hidden states and logits is measured."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTJConfig

from sdpo.errors import ModelError
from sdpo.models.head import HeadForm, head_form_of, lm_head
from sdpo.testing import tiny_model

PLAIN = HeadForm(scale=1.0, softcap=None, has_bias=False)


def changed(change, dtype=torch.float32):
    """A model that does something to the logits that no setting of its config says."""
    model = tiny_model("llama", dtype=dtype)
    forward = model.forward

    def other(*args, **options):
        output = forward(*args, **options)
        output.logits = change(output.logits)
        return output

    model.forward = other
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_one_matrix_is_plain(family, dtype):
    assert head_form_of(tiny_model(family, dtype=dtype)) == PLAIN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "attribute", "value", "form"),
    [
        ("gemma2", "final_logit_softcapping", 30.0, {"softcap": 30.0}),
        ("granite", "logits_scaling", 3.0, {"scale": 1 / 3.0}),
        ("cohere2", "logit_scale", 0.0625, {"scale": 0.0625}),
    ],
)
def test_known_families_have_the_numbers_of_their_configs(family, attribute, value, form, dtype):
    model = tiny_model(family, dtype=dtype)
    setattr(model.config, attribute, value)
    if hasattr(model, attribute):
        setattr(model, attribute, value)
    assert head_form_of(model) == HeadForm(
        **{"scale": 1.0, "softcap": None, "has_bias": False, **form}
    )
    head = lm_head(model)
    assert (head.scale, head.softcap) == (form.get("scale", 1.0), form.get("softcap"))
    assert head.weight_VD is model.get_output_embeddings().weight


def test_a_scale_that_no_config_names_is_measured():
    form = head_form_of(changed(lambda logits: logits * 0.7310585))
    assert form.scale == pytest.approx(0.7310585, rel=1e-6)


def test_a_bias_is_seen():
    config = GPTJConfig(vocab_size=60, n_embd=32, n_layer=1, n_head=2, rotary_dim=8)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert head_form_of(model) == HeadForm(scale=1.0, softcap=None, has_bias=True)


@pytest.mark.parametrize("change", [lambda x: x.relu(), lambda x: x + 0.1 * x.roll(1, -1)])
def test_logits_of_another_head_are_refused(change):
    with pytest.raises(ModelError, match="the loss would be another model's"):
        head_form_of(changed(change))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
def test_a_head_with_adapters_is_refused():
    peft = pytest.importorskip("peft")
    model = tiny_model("llama")
    config = peft.LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    with pytest.raises(ModelError, match="no linear LM head of its own"):
        lm_head(adapted)
