"""A checkpoint of a real model's shape, whose weights take no room: they are holes in the file."""

import json
from pathlib import Path

HIDDEN, WIDTH, SHARED, VOCABULARY = 2048, 1408, 5632, 151936
LAYERS, EXPERTS = 24, 60
CONFIG = {
    "model_type": "qwen2_moe",
    "dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "intermediate_size": SHARED,
    "moe_intermediate_size": WIDTH,
    "shared_expert_intermediate_size": SHARED,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8192,
}


def save_qwen15_moe(folder: Path) -> Path:
    """Write the shape of Qwen1.5-MoE-A2.7B, in bf16: 28.6 GB, all zeros. Returns `folder`."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = {
        "model.embed_tokens.weight": [VOCABULARY, HIDDEN],
        "model.norm.weight": [HIDDEN],
        "lm_head.weight": [VOCABULARY, HIDDEN],
    }
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer().items()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return folder


def _layer() -> dict[str, list[int]]:
    shapes = {"input_layernorm.weight": [HIDDEN], "post_attention_layernorm.weight": [HIDDEN]}
    shapes |= {f"self_attn.{part}_proj.weight": [HIDDEN, HIDDEN] for part in "qkvo"}
    shapes |= {f"self_attn.{part}_proj.bias": [HIDDEN] for part in "qkv"}
    shapes |= {"mlp.gate.weight": [EXPERTS, HIDDEN], "mlp.shared_expert_gate.weight": [1, HIDDEN]}
    ffns = {"shared_expert": SHARED, **{f"experts.{expert}": WIDTH for expert in range(EXPERTS)}}
    for name, width in ffns.items():
        shapes |= {f"mlp.{name}.{part}_proj.weight": [width, HIDDEN] for part in ("gate", "up")}
        shapes[f"mlp.{name}.down_proj.weight"] = [HIDDEN, width]
    return shapes
