"""What a config.json is taken for, what is refused by name, and that one table names every tensor both ways."""

from __future__ import annotations

from typing import Any

import pytest
from support.oracles import HF_CONFIG

from launcher.models import base, names, registry
from launcher.models.llama import LLAMA
from launcher.models.qwen2 import QWEN2
from launcher.models.qwen3 import QWEN3
from launcher.models.registry import (
    FAMILIES,
    check_model,
    family_of_config,
    family_of_weights,
    hf_name,
    hf_names,
    inferred_shapes,
    is_hf_name,
    mindspore_name,
    model_of_config,
    shapes_of,
)
from launcher.runspec.presets import all_presets
from launcher.runspec.sections import LoraSpec, ModelSpec

CONFIG: dict[str, Any] = {**HF_CONFIG, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu"}
# config.json of the released weights, the keys that matter here: what they are must not depend on a checkpoint's name.
RELEASED: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-3.2": ("llama", {"model_type": "llama", "head_dim": 8, "attention_bias": False, "mlp_bias": False,
                            "pretraining_tp": 1, "rope_scaling": None}),
    "CodeLlama": ("llama", {"model_type": "llama", "rope_theta": 1000000, "pretraining_tp": 1}),
    "SmolLM2": ("llama", {"model_type": "llama", "is_llama_config": True, "rope_interleaved": False,
                          "tie_word_embeddings": True}),
    "Mistral-7B-v0.3": ("llama", {"model_type": "mistral", "sliding_window": None, "head_dim": 8}),
    "Qwen2.5": ("qwen2", {"model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": False,
                          "max_window_layers": 28, "use_mrope": False}),
    "DeepSeek-R1-Distill-Qwen": ("qwen2", {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}),
    "Qwen3": ("qwen3", {"model_type": "qwen3", "head_dim": 8, "sliding_window": None, "use_sliding_window": False,
                        "max_window_layers": 28, "attention_bias": False}),
    "transformers 5": ("qwen2", {"model_type": "qwen2", "layer_types": ["full_attention"] * 2, "sliding_window": None,
                                 "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_a_model_is_known_by_what_its_config_says(name: str) -> None:
    family, config = RELEASED[name]
    model = ModelSpec.model_validate(model_of_config({**CONFIG, **config}))
    assert (model.family, model.architecture.name) == (family, family)
    assert (model.kv_width, model.seq_length) == (16, 64)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', not 'silu'"),
        ({"mlp_bias": True}, "mlp_bias is True, not False"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, not 1.0"),
        ({"logits_scaling": 8.0}, "logits_scaling is 8.0, not 1.0"),
        ({"num_local_experts": 8}, "num_local_experts is 8, not 0"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, which is not supported"),
        ({"auto_map": {"AutoModelForCausalLM": "m.X"}}, "auto_map is .*, which is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling of type 'linear' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling of type 'yarn' is not supported"),
        ({"sliding_window": 16, "use_sliding_window": True}, "sliding_window is 16: attention over a window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
    ],
)
def test_what_changes_the_computation_is_refused_by_name(kind: str, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model_of_config({**CONFIG, "sliding_window": None, "model_type": kind, **config})


def test_biases_and_windows_are_each_family_s_own() -> None:
    with pytest.raises(ValueError, match="attention_bias is True, not False"):
        model_of_config({**CONFIG, "model_type": "llama", "attention_bias": True})
    with pytest.raises(ValueError, match="attention_bias is False, not True"):
        model_of_config({**CONFIG, "model_type": "qwen2", "attention_bias": False})
    with pytest.raises(ValueError, match="attention_bias is True, not False"):
        model_of_config({**CONFIG, "model_type": "qwen3", "attention_bias": True})
    with pytest.raises(ValueError, match="head_dim is 16, not 8"):
        model_of_config({**CONFIG, "model_type": "qwen2", "head_dim": 16})
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    with pytest.raises(ValueError, match="rope_scaling of type 'llama3' is not supported for qwen3"):
        model_of_config({**CONFIG, "model_type": "qwen3", "rope_scaling": llama3})
    with pytest.raises(ValueError, match="sliding_window is 4096"):  # what transformers takes for it, too
        model_of_config({**CONFIG, "model_type": "qwen3", "use_sliding_window": True})
    with pytest.raises(ValueError, match="sliding_window is 4096"):  # what transformers takes where nothing is said
        model_of_config({**CONFIG, "model_type": "mistral"})
    with pytest.raises(ValueError, match="hidden_act is 'gelu', not 'silu'; mlp_bias is True"):  # all at once
        model_of_config({**CONFIG, "model_type": "llama", "hidden_act": "gelu", "mlp_bias": True})


@pytest.mark.parametrize("kind", ["gpt2", None, "qwen3_moe", "deepseek_v3", 7])
def test_a_family_that_is_not_known_is_refused_with_those_that_are(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"llama \(model_type llama, mistral\); qwen2 \(model_type qwen2\)") as caught:
        family_of_config({**CONFIG, "model_type": kind})
    assert str(caught.value).startswith(f"model_type is {kind!r}, of no known family")
    assert ("experts" in str(caught.value)) is (kind in ("qwen3_moe", "deepseek_v3"))


def test_a_spec_of_an_unknown_family_is_refused_with_those_that_are() -> None:
    values = ModelSpec.model_validate(model_of_config({**CONFIG, "model_type": "llama"})).model_dump()
    with pytest.raises(ValueError, match="there is no model family 'qwen4'; families are llama, qwen2, qwen3"):
        ModelSpec.model_validate({**values, "family": "qwen4"})
    with pytest.raises(ValueError, match="families are llama, qwen2"):
        check_model({**values, "family": "bert"})
    del values["family"]
    assert ModelSpec.model_validate(values).family == "llama"  # what older versions wrote
    assert registry.family_of(check_model(values)) is LLAMA


SIZES = base.Sizes(hidden=8, layers=3, kv_size=6, intermediate=12, vocab=20, head=6, queries=12)
LLAMA_SIZES = base.Sizes(hidden=8, layers=3, kv_size=4, intermediate=12, vocab=20)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_every_tensor_has_names_in_transformers_and_back(family: base.Family) -> None:
    sizes = SIZES if family.config.own_head_dim else LLAMA_SIZES
    shapes = base.shapes(family, sizes)
    theirs = {name: hf_names(name) for name in shapes}
    parts = [part for found in theirs.values() for part in found]
    assert len(parts) == len(set(parts))
    assert {name: {mindspore_name(family, part) for part in found} for name, found in theirs.items()} == {
        name: {name} for name in shapes
    }
    assert {part for part in parts if not is_hf_name(part)} <= {"lm_head.weight"}
    assert not any(map(is_hf_name, shapes))
    assert {name: len(found) for name, found in theirs.items() if len(found) > 1} == {
        f"decoder.layers.{number}.{path}.weight": len(found)
        for number in range(3)
        for path, found in family.fused.items()
    }
    assert family_of_weights(shapes) is family
    assert inferred_shapes(shapes) == shapes


def test_qwen3_fuses_q_k_v_by_groups_and_gate_and_up_by_rows() -> None:
    shapes = base.shapes(QWEN3, SIZES)
    assert shapes["decoder.layers.2.self_attention.linear_qkv.weight"] == (12 + 2 * 6, 8)
    assert shapes["decoder.layers.2.self_attention.linear_proj.weight"] == (8, 12)
    assert shapes["decoder.layers.2.mlp.linear_fc1.weight"] == (24, 8)
    assert shapes["decoder.layers.2.self_attention.k_layernorm.weight"] == (6,)
    assert hf_names("decoder.layers.1.mlp.linear_fc1.weight") == (
        "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight",
    )  # fmt: skip
    assert QWEN3.runs("self_attention.linear_qkv", SIZES) == (12, 6, 6)
    assert QWEN3.runs("mlp.linear_fc1", SIZES) == (1, 1)
    with pytest.raises(KeyError):
        hf_name("decoder.layers.1.mlp.linear_fc1.weight")
    with pytest.raises(KeyError):
        mindspore_name(QWEN3, "model.layers.1.self_attn.q_proj.extra.weight")
    with pytest.raises(KeyError):
        LLAMA.runs("mlp.linear_fc1", SIZES)


def test_names_of_each_route_are_told_apart() -> None:
    weight = "decoder.layers.1.self_attention.linear_qkv.weight"
    lora = names.adapters_of(weight)
    assert lora == (weight.replace(".weight", ".lora_A.weight"), weight.replace(".weight", ".lora_B.weight"))
    assert [names.weight_of(side) for side in lora] == [weight, weight]
    assert all(map(names.is_adapter, lora))
    assert not any(map(names.is_weight, lora))
    assert names.is_weight(weight)
    assert names.owner_of_state(f"adam_m.{lora[0]}") == lora[0]
    # peft's own name of an adapter, and transformers' name of a module with such an adapter, are no names of a route.
    assert not names.is_adapter("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    assert not names.is_adapter("model.layers.0.attention.wq.lora_A.weight")


def test_qwen2_is_llama_with_three_biases_a_layer() -> None:
    sizes = base.Sizes(hidden=8, layers=2, kv_size=4, intermediate=12, vocab=20, tied=True)
    more = set(base.shapes(QWEN2, sizes).items()) - set(base.shapes(LLAMA, sizes).items())
    in_layer = (("wq", 8), ("wk", 4), ("wv", 4))
    assert more == {(f"model.layers.{n}.attention.{path}.bias", (rows,)) for n in (0, 1) for path, rows in in_layer}
    assert hf_name("model.layers.1.attention.wk.bias") == "model.layers.1.self_attn.k_proj.bias"
    with pytest.raises(KeyError):
        hf_name("model.layers.1.attention.wk.unknown.bias")


@pytest.mark.parametrize("preset", all_presets(), ids=lambda preset: preset.name)
def test_counts_are_those_of_the_shapes(preset: Any) -> None:
    model = ModelSpec.model_validate(preset.model)
    numbers = 0
    for shape in shapes_of(model.model_dump()).values():
        product = 1
        for size in shape:
            product *= size
        numbers += product
    assert base.parameter_count(model.architecture, model.sizes) == numbers


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_lora_goes_on_layers_that_the_family_has(family: base.Family) -> None:
    linear = base.linear_shapes(family, SIZES if family.config.own_head_dim else LLAMA_SIZES)
    assert set(linear) == set(family.linear_layers) == {name for readers in family.readers for name in readers}
    assert {part for name in linear for part in registry.linear_parts(family, name)} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"
    }  # fmt: skip
    assert LoraSpec(target_modules=family.lora_default).targets_in(family)
