"""Small chat templates of well-known shapes, with the special tokens that their tokenizers would have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sft_lab.training.tiny_random import TOKENIZER_FOLDER


@dataclass(frozen=True)
class Shape:
    """A template.

    Attributes:
        jinja: its text.
        special: tokens of its tokenizer; the first is EOS.
        added: tokens that are not special.
        bos: whether the template writes ``<s>`` first.
    """

    jinja: str
    special: tuple[str, ...]
    added: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Any:
        """A tokenizer that knows the tokens."""
        return _tokenizer(self.special, self.added)


@cache
def _tokenizer(special: tuple[str, ...], added: tuple[str, ...]) -> Any:
    tiny = AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)
    backend = Tokenizer.from_str(tiny.backend_tokenizer.to_str())
    backend.add_special_tokens([*special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[0], pad_token="<|endoftext|>")


_IM = ("<|im_end|>", "<|im_start|>")
_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

CHATML = Shape(
    """{%- for m in messages -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}""",
    _IM,
)

LLAMA3 = Shape(
    """{%- if tools -%}<|start_header_id|>system<|end_header_id|>

{{ tools | tojson }}<|eot_id|>{%- endif -%}
{%- for m in messages -%}
{%- if m.tool_calls -%}
{%- if m.tool_calls | length != 1 -%}{{ raise_exception('only single tool calls') }}{%- endif -%}
{%- set call = m.tool_calls[0].function -%}
<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>
{%- elif m.role == 'tool' -%}
<|start_header_id|>ipython<|end_header_id|>

{{ m.content | tojson }}<|eot_id|>
{%- else -%}
<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif -%}""",
    ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
)

_HERMES_CALLS = """{%- for c in m.tool_calls or [] %}{{ '\\n' if m.content or not loop.first }}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor -%}"""
_HERMES_RESULT = """{%- if m.role == 'tool' -%}
{%- if loop.previtem.role != 'tool' -%}<|im_start|>user{%- endif %}
<tool_response>
{{ m.content }}
</tool_response>
{%- if loop.last or loop.nextitem.role != 'tool' -%}<|im_end|>
{% endif -%}"""
_HERMES_TOOLS = """{%- if tools -%}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif -%}"""

QWEN25 = Shape(
    f"""{_HERMES_TOOLS}{{%- for m in messages -%}}
{_HERMES_RESULT}
{{%- else -%}}
<|im_start|>{{{{ m.role }}}}
{{{{ m.content }}}}{_HERMES_CALLS}<|im_end|>
{{% endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}<|im_start|>assistant
{{% endif -%}}""",
    _IM,
    _TAGS[:4],
)

QWEN3 = Shape(
    f"""{_HERMES_TOOLS}{{%- set ns = namespace(last=-1) -%}}
{{%- for m in messages -%}}
{{%- if m.role == 'user' -%}}{{%- set ns.last = loop.index0 -%}}{{%- endif -%}}
{{%- endfor -%}}
{{%- for m in messages -%}}
{{%- set content = m.content.split('</think>')[-1].lstrip('\\n') -%}}
{{%- set thought = m.reasoning_content or '' -%}}
{{%- if not thought and '</think>' in m.content -%}}
{{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}}{{%- endif -%}}
{_HERMES_RESULT}
{{%- elif m.role == 'assistant' -%}}
<|im_start|>assistant
{{% if loop.index0 > ns.last and (loop.last or thought) -%}}
<think>
{{{{ thought.strip('\\n') }}}}
</think>

{{% endif -%}}
{{{{ content }}}}{_HERMES_CALLS}<|im_end|>
{{% else -%}}
<|im_start|>{{{{ m.role }}}}
{{{{ m.content }}}}<|im_end|>
{{% endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}<|im_start|>assistant
{{% endif -%}}""",
    _IM,
    _TAGS,
)

MISTRAL = Shape(
    """{%- if messages[0].role == 'system' -%}{{ raise_exception('no system role here') }}{%- endif -%}
{%- set asked = messages | selectattr('role', 'equalto', 'user') | list -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{%- if tools and m == asked[-1] -%}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif -%}
[INST] {{ m.content }}[/INST]
{%- elif m.role == 'tool' -%}
[TOOL_RESULTS] {"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]
{%- elif m.tool_calls -%}
[TOOL_CALLS] [
{%- for c in m.tool_calls -%}
{%- if c.id | length != 9 -%}{{ raise_exception('ids have nine characters') }}{%- endif -%}
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}
{{- ', ' if not loop.last -}}
{%- endfor -%}]</s>
{%- else %} {{ m.content }}</s>
{%- endif -%}
{%- endfor -%}""",
    ("</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
     "[/TOOL_RESULTS]"),
)  # fmt: skip

GEMMA = Shape(
    """{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant') }}{%- endif -%}
<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}<start_of_turn>model
{% endif -%}""",
    ("<end_of_turn>", "<start_of_turn>"),
)

PHI = Shape(
    """{%- for m in messages -%}
<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|assistant|>
{% else -%}<|endoftext|>{%- endif -%}""",
    ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
)

DEEPSEEK = Shape(
    """{%- for m in messages -%}
{%- if m.role == 'user' -%}<｜User｜>{{ m.content }}
{%- elif m.role == 'system' -%}{{ m.content }}
{%- elif m.role == 'tool' -%}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>
{%- elif m.tool_calls -%}<｜Assistant｜>{{ m.content }}
{%- for c in m.tool_calls -%}
<｜tool▁call▁begin｜>{{ c.function.name }}
{{ '```json\\n' + c.function.arguments + '\\n```' }}<｜tool▁call▁end｜>
{%- endfor -%}<｜end▁of▁sentence｜>
{%- else -%}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>
{%- endif -%}
{%- endfor -%}
{{- tools | tojson if tools -}}
{%- if add_generation_prompt -%}<｜Assistant｜><think>
{% endif -%}""",
    ("<｜end▁of▁sentence｜>",),
    ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
     "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
)  # fmt: skip

CHANNELS = Shape(
    """{%- if tools -%}<|start|>developer<|message|>{{ tools | tojson }}<|end|>{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}<|start|>functions to=assistant<|message|>{{ m.content | tojson }}<|end|>
{%- elif m.role != 'assistant' -%}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>
{%- else -%}
{%- set answers = messages[loop.index:] | selectattr('role', 'equalto', 'assistant') | list | length -%}
{%- if m.thinking and not answers and not add_generation_prompt or m.thinking and m.tool_calls and not answers -%}
<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>
{%- endif -%}
{%- if m.tool_calls -%}
{%- set call = m.tool_calls[0].function -%}
<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary<|message|>{{ call.arguments | tojson }}<|call|>
{%- elif loop.last and not add_generation_prompt -%}
<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>
{%- else -%}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}""",
    ("<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"),
)
