"""Writing a model as a GGUF file, with its vocabulary and chat template, for llama.cpp and what builds on it.

Tensors are read one at a time from a folder as Transformers saves it. Llama, Mistral, Qwen2 and Qwen3 models are
written whose tokenizer llama.cpp splits texts like; its own script converts the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_lab.tools.gguf_vocab import CannotWrite, Vocabulary

if TYPE_CHECKING:
    import gguf
    import numpy as np

# Transformers' name of a kind of model: llama.cpp's, and whether its rotary halves are interleaved there.
ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
_ROTATED = re.compile(r"self_attn\.(q|k)_proj\.(weight|bias)$")
_GENERATION = re.compile(r"{%(-?)\s*(?:end)?generation\s*(-?)%}")  # a statement of Transformers' own


def write_gguf(folder: Path, file: Path, name: str, *, end_ids: list[int], prompt: list[int]) -> None:
    """Write the model in a folder as one file, its matrices in the data type they were saved in.

    Args:
        folder: config, weights in safetensors, tokenizer and chat template.
        file: to write.
        name: of the model, for the file's metadata.
        end_ids: tokens that end an answer.
        prompt: the tokens of any prompt, which shows how they begin.

    Raises:
        CannotWrite: for another kind of model, tokenizer or position encoding.
    """
    import gguf
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type not in ARCHITECTURES:
        raise CannotWrite(f"models of type {config.model_type}")
    architecture, _ = ARCHITECTURES[config.model_type]
    vocabulary = Vocabulary.of(folder, config.vocab_size)
    tensors = _Tensors(folder, config, architecture)

    writer = gguf.GGUFWriter(file, architecture)
    _add_shape(writer, config, name, tensors.main_type)
    _add_vocabulary(writer, vocabulary, end_ids, prompt[0])
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for info in tensors.infos():
        writer.add_tensor_info(*info)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for data in tensors.values():
        writer.write_tensor_data(data)
    writer.close()


class _Tensors:
    """The weights of a folder under llama.cpp's names."""

    def __init__(self, folder: Path, config: Any, architecture: str) -> None:
        import gguf
        from safetensors import safe_open

        self._config = config
        self._interleaves = ARCHITECTURES[config.model_type][1]
        names = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        mapped = gguf.get_tensor_name_map(names[architecture], config.num_hidden_layers)
        self._files: list[Any] = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
        self._names: dict[str, tuple[str, Any]] = {}
        for file in self._files:
            for name in file.keys():  # noqa: SIM118 - no mapping
                new_name = mapped.get_name(name, try_suffixes=(".weight", ".bias"))
                if new_name is None:
                    raise CannotWrite(f"models with a tensor {name}")
                self._names[name] = new_name, file

    @property
    def main_type(self) -> str:
        """The data type of the embedding, and so of the matrices."""
        return next(self._kind(name) for name, (new_name, _) in self._names.items() if new_name == "token_embd.weight")

    def infos(self) -> Iterator[tuple[Any, ...]]:
        """Yield name, shape, data type here, bytes and data type in the file of each tensor, from the headers alone."""
        import gguf
        import numpy as np

        for name, (new_name, file) in self._names.items():
            shape, kind = file.get_slice(name).get_shape(), self._kind(name)
            size = math.prod(shape) * (4 if kind == "F32" else 2)
            yield new_name, shape, np.dtype(np.float32), size, gguf.GGMLQuantizationType[kind]

    def values(self) -> Iterator[np.ndarray]:
        """Yield each tensor's data, in the same order."""
        import gguf

        for name, (_, file) in self._names.items():
            data = self._ordered(name, file.get_tensor(name).float().numpy())
            yield gguf.quants.quantize(data, gguf.GGMLQuantizationType[self._kind(name)])

    def _kind(self, name: str) -> str:
        """Return a tensor's data type in the file; what is no matrix, such as a norm's scale, is kept precisely."""
        header = self._names[name][1].get_slice(name)
        kind = str(header.get_dtype())
        if kind not in ("F32", "F16", "BF16"):
            raise CannotWrite(f"models with weights of type {kind}")
        return kind if len(header.get_shape()) > 1 else "F32"

    def _ordered(self, name: str, data: np.ndarray) -> np.ndarray:
        """Return the rows of a projection in the order in which llama.cpp rotates them."""
        rotated = _ROTATED.search(name)
        if not rotated or not self._interleaves:
            return data
        heads = self._config.num_attention_heads if rotated[1] == "q" else self._config.num_key_value_heads
        halves = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:])
        return halves.swapaxes(1, 2).reshape(data.shape)


def _add_shape(writer: gguf.GGUFWriter, config: Any, name: str, kind: str) -> None:
    import gguf

    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", False):
        raise CannotWrite(f"models with sliding-window attention (use_sliding_window, {window} tokens)")
    # llama.cpp attends to all tokens of a Mistral model: the same within its window.
    limits = [config.max_position_embeddings, *([window] if window and config.model_type == "mistral" else [])]
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(min(limits))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _rope_factors(config: Any) -> np.ndarray | None:
    """Return what divides each rotary frequency, as Llama 3.1 has it; None where nothing does."""
    import numpy as np

    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind != "llama3":
        raise CannotWrite(f"models with scaled positions (rope_type {kind})")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    lengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head, 2) / head)  # of a turn, in tokens
    turns = rope["original_max_position_embeddings"] / lengths
    share = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - share) / rope["factor"] + share), np.float32)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary, end_ids: list[int], first_id: int) -> None:
    import gguf

    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "llama":
        # A space goes before a text's first word alone, and a prompt begins with a control token instead; llama.cpp
        # would put one behind each control token too.
        if vocabulary.types[first_id] != gguf.TokenType.CONTROL.value:
            raise CannotWrite("models with a SentencePiece tokenizer whose prompts do not begin with a control token")
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(value=False)
    else:
        writer.add_token_merges(vocabulary.merges)
    for kind, token_id in vocabulary.special.items():
        if token_id is not None:
            getattr(writer, f"add_{kind}_token_id")(token_id)
    # Two keys end an answer there: the end of text, and the end of a turn.
    writer.add_eos_token_id(vocabulary.eos_id if vocabulary.eos_id in end_ids else end_ids[0])
    writer.add_eot_token_id(next((token_id for token_id in end_ids if token_id != vocabulary.eos_id), end_ids[0]))
    writer.add_add_bos_token(first_id == vocabulary.special["bos"])
    writer.add_chat_template(plain_jinja(vocabulary.chat_template))


def plain_jinja(template: str) -> str:
    """Return a chat template without Transformers' ``generation`` tags, which other engines may not know.

    A comment with the same dashes takes the place of each: the white space around it is stripped as before.
    """
    return _GENERATION.sub(r"{#\1 \2#}", template)
