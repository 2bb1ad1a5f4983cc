"""The table of docs/gpu.md: which trainer fits which memory, from sft_lab's own estimate. No weights, no GPU.

python benchmarks/memory.py
"""

from __future__ import annotations

import torch
import transformers

from sft_lab.training.config import Full, Lora, Quantization
from sft_lab.training.memory import footprint_of

# Shapes of published models: parameters, hidden size, inner size, layers, heads, groups of keys, vocabulary, tied head.
SHAPES = {
    "0.1 billion (SmolLM2-135M)": (576, 1536, 30, 9, 3, 49_152, True),
    "0.5 billion (Qwen2.5-0.5B)": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5 billion (Qwen2.5-1.5B)": (1536, 8960, 28, 12, 2, 151_936, True),
    "3 billion (Llama-3.2-3B)": (3072, 8192, 28, 24, 8, 128_256, True),
    "7 billion (Mistral-7B)": (4096, 14_336, 32, 32, 8, 32_000, False),
    "8 billion (Llama-3.1-8B)": (4096, 14_336, 32, 32, 8, 128_256, False),
    "14 billion (Qwen2.5-14B)": (5120, 13_824, 48, 40, 8, 152_064, False),
}
TRAINERS = {
    "qlora": lambda **knobs: Lora(quantization=Quantization.nf4, optim="paged_adamw_8bit", **knobs),
    "lora": Lora,
    "full": Full,
}
BATCH = {"per_device_train_batch_size": 4, "max_length": 1280}  # the default
OVERHEAD = 1e9  # bytes of CUDA, its libraries and what the allocator cannot use
CARDS = (16, 24, 40, 80)


def main() -> None:
    # As on an A100: the estimate asks for the type of weights and of arithmetic.
    torch.cuda.is_available = lambda: True
    torch.cuda.is_bf16_supported = lambda **_: True
    headings = (
        "model",
        "trainer",
        "weights, gradients, optimizer",
        "activations",
        "with checkpointing",
        "fits",
        "fits with",
    )
    print(f"| {' | '.join(headings)} |\n{'|---' * len(headings)}|")
    for name, (hidden, inner, layers, heads, groups, vocabulary, tied) in SHAPES.items():
        config = transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=groups, tie_word_embeddings=tied,
        )  # fmt: skip
        for trainer, kind in TRAINERS.items():
            sizes = []
            for checkpointing in (False, True):
                options = kind(activation_checkpointing=checkpointing, **BATCH)
                footprint = footprint_of(config, "float32" if trainer == "full" else "bfloat16", options)
                held = footprint.weights + footprint.gradients + (footprint.optimizer or 0)
                sizes.append((held, footprint.activations or 0))
            fits = [
                next((f"{card} GB" for card in CARDS if (held + kept + OVERHEAD) * 1.1 <= card * 1e9), "none")
                for held, kept in sizes
            ]
            cells = [
                name,
                trainer,
                *(f"{size / 1e9:.1f} GB" for size in (sizes[0][0], sizes[0][1], sizes[1][1])),
                *fits,
            ]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
