"""Small tokenizers whose chat templates have the shapes of real families: how a turn begins, thinks, calls and ends."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast


class Shape(NamedTuple):
    name: str
    tokenizer: PreTrainedTokenizerFast
    plain: str
    """What is taught of the response "It is 4." to "2+2?", thinking off; empty where a plain answer has to be refused."""
    ends: tuple[str, ...]
    """Control tokens at which a turn is over."""


GEMMA = """{{ bos_token }}{%- if messages[0].role == 'system' -%}
{%- set first = messages[0].content + '\n\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
{%- set role = 'model' if message.role == 'assistant' else message.role -%}
{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message.content | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""

LLAMA3 = """{{ bos_token }}{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"""

# As the first Llama 3 configurations have it: a generation prompt behind every conversation, asked for or not.
LLAMA3_ALWAYS = LLAMA3.replace("{%- if add_generation_prompt -%}", "{%- if true -%}")

LLAMA32 = """{%- if date_string is not defined -%}{%- set date_string = strftime_now("%d %b %Y") -%}{%- endif -%}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content | trim -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- endif -%}
{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}
{%- if tools -%}{%- for tool in tools -%}{{ tool | tojson + '\n\n' }}{%- endfor -%}{%- endif -%}
{{ system + '<|eot_id|>' }}
{%- for message in messages -%}
{%- if message.tool_calls -%}
{%- set call = message.tool_calls[0].function -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name }}
{{- '", "parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}
{%- elif message.role == 'tool' -%}
{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + message.content | tojson + '<|eot_id|>' }}
{%- else -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"""

CHATML = """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""

QWEN = """{%- if tools -%}
{{ '<|im_start|>system\n' + (messages[0].content + '\n\n' if messages[0].role == 'system' else '') + '<tools>' }}
{%- for tool in tools -%}{{ '\n' + tool | tojson }}{%- endfor -%}{{ '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' -%}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif -%}
{%- set ns = namespace(last=messages | length - 1, seeking=true) -%}
{%- for message in messages[::-1] -%}
{%- if ns.seeking and message.role == 'user' and not (message.content.startswith('<tool_response>')
    and message.content.endswith('</tool_response>')) -%}
{%- set ns.seeking = false -%}{%- set ns.last = loop.revindex0 -%}
{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- set content = message.content if message.content is string else '' -%}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}
{{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- elif message.role == 'tool' -%}
{{ ('' if loop.previtem.role == 'tool' else '<|im_start|>user') + '\n<tool_response>\n' + content + '\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{ '<|im_end|>\n' }}{%- endif -%}
{%- elif message.role == 'assistant' -%}
{%- set thought = '' -%}
{%- if message.reasoning_content is string -%}{%- set thought = message.reasoning_content -%}
{%- elif '</think>' in content -%}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{ '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) -%}
{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else -%}{{ content }}{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- if content or not loop.first -%}{{ '\n' }}{%- endif -%}
{%- set call = call.function or call -%}
{%- set arguments = call.arguments if call.arguments is string else call.arguments | tojson -%}
{{ '<tool_call>\n{"name": "' + call.name + '", "arguments": ' + arguments + '}\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}GENERATION{%- endif -%}"""
HYBRID = (
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
)
OPENING = HYBRID.replace("{%- endif -%}", "{%- else -%}{{ '<think>\n' }}{%- endif -%}")

R1 = """{{ bos_token }}{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content }}
{%- elif message.role == 'user' -%}{{ '<｜User｜>' + message.content }}
{%- else -%}
{%- set content = message.content.split('</think>')[-1] if '</think>' in message.content else message.content -%}
{{ '<｜Assistant｜>' + content + eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<｜Assistant｜>GENERATION' }}{%- endif -%}"""

PHI3 = """{%- for message in messages -%}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- else -%}{{ eos_token }}{%- endif -%}"""

COHERE2 = """{{ bos_token }}{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' + message.content + '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}
{%- else -%}
{{ '<|START_OF_TURN_TOKEN|>' + ('<|USER_TOKEN|>' if message.role == 'user' else '<|SYSTEM_TOKEN|>') }}
{{- message.content + '<|END_OF_TURN_TOKEN|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif -%}"""

GLM4 = """{{ '[gMASK]<sop>' }}{%- for message in messages -%}
{%- if message.role == 'assistant' -%}{{ '<|assistant|>\n<think></think>\n' + message.content | trim }}
{%- elif message.role == 'tool' -%}
{{ ('' if loop.previtem.role == 'tool' else '<|observation|>') + '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- else -%}{{ '<|' + message.role + '|>\n' + message.content }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|assistant|>' + ('\n<think></think>' if enable_thinking is defined and not enable_thinking else '') }}{%- endif -%}"""

GPT_OSS = """{{ '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}
{%- if tools -%}
{{ '<|start|>developer<|message|>' }}{%- for tool in tools -%}{{ tool | tojson }}{%- endfor -%}{{ '<|end|>' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{ '<|start|>functions.tool to=assistant<|channel|>commentary<|message|>' + message.content + '<|end|>' }}
{%- elif message.role != 'assistant' -%}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- elif message.tool_calls -%}
{%- set call = message.tool_calls[0].function -%}
{{ '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
{{- call.arguments | tojson + '<|call|>' }}
{%- elif loop.last -%}
{%- if message.thinking -%}{{ '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{%- endif -%}
{{ '<|start|>assistant<|channel|>final<|message|>' + message.content + ('<|end|>' if add_generation_prompt else '<|return|>') }}
{%- else -%}{{ '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start|>assistant' }}{%- endif -%}"""

# Marks of thoughts of its own: an empty one in the prompt, none in a whole conversation but beside a call.
GEMMA4 = """{{ bos_token }}{%- for message in messages -%}
{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
{%- if message.tool_calls -%}
{%- if message.reasoning_content -%}{{ '<|channel>thought\n' + message.reasoning_content + '\n<channel|>' }}{%- endif -%}
{%- for call in message.tool_calls -%}
{{ '<|tool_call>' + call.function.name + call.function.arguments | tojson + '<tool_call|>' }}
{%- endfor -%}
{%- endif -%}
{{ message.content + '<turn|>\n' }}
{%- endfor -%}
{%- if tools -%}{{ tools | tojson }}{%- endif -%}
{%- if add_generation_prompt -%}{{ '<|turn>model\n' }}
{%- if not enable_thinking -%}{{ '<|channel>thought\n<channel|>' }}{%- endif -%}
{%- endif -%}"""

# An empty thought before a plain answer, and thoughts that it reads from a field alone.
KIMI = """{%- for message in messages -%}
{{ '<|im_' + message.role + '|>' }}
{%- if message.role == 'assistant' -%}{{ '<think>' + (message.reasoning_content or '') + '</think>' }}{%- endif -%}
{{ message.content + '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_assistant|>' }}{%- endif -%}"""

LLAMA2 = """{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}
{%- else -%}{{ ' ' + message.content | trim + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}"""

DEEPSEEK_END = "<｜end▁of▁sentence｜>"
DEEPSEEK = ("<｜begin▁of▁sentence｜>", DEEPSEEK_END, "<｜User｜>", "<｜Assistant｜>")
HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def byte_level(special: tuple[str, ...], eos: str, bos: str | None, template: str) -> PreTrainedTokenizerFast:
    """256 bytes, control tokens, and the tags of thoughts and calls, which real tokenizers have as tokens that are text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, *special, *TAGS])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in special])
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in TAGS])
    words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token=special[0], bos_token=bos)
    words.chat_template = template
    return words


def llama2() -> PreTrainedTokenizerFast:
    """Begins every text with a space, as Llama 2's does: a response alone is not encoded as behind its prompt."""
    characters = [chr(code) for code in range(33, 127)] + ["▁"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *fallback, *characters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>")])
    words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", pad_token="</s>")
    words.chat_template = LLAMA2
    return words


@cache
def shapes() -> dict[str, Shape]:
    """All of them by name."""
    gemma = byte_level(("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", GEMMA)
    end, turn = (
        "<|END_OF_TURN_TOKEN|>",
        ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>"),
    )
    cohere = ("<PAD>", "<BOS_TOKEN>", end, *turn, "<|START_RESPONSE|>", "<|END_RESPONSE|>")
    glm = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
    phi = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    harmony = ("<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>")
    answer, im, eot = "It is 4.", ("<|im_end|>",), ("<|eot_id|>",)
    found = [
        Shape("gemma3", gemma, f"{answer}<end_of_turn>\n", ("<end_of_turn>",)),
        Shape("llama3", byte_level(HEADERS, HEADERS[1], HEADERS[0], LLAMA3), f"{answer}<|eot_id|>", eot),
        Shape("llama3_always", byte_level(HEADERS, HEADERS[1], HEADERS[0], LLAMA3_ALWAYS), f"{answer}<|eot_id|>", eot),
        Shape("llama32", byte_level(HEADERS, "<|eot_id|>", HEADERS[0], LLAMA32), f"{answer}<|eot_id|>", eot),
        Shape("chatml_base", byte_level(IM, "<|endoftext|>", None, CHATML), f"{answer}<|im_end|>\n", im),
        Shape("qwen3", byte_level(IM, IM[2], None, QWEN.replace("GENERATION", HYBRID)), f"{answer}<|im_end|>\n", im),
        Shape("qwen35", byte_level(IM, IM[2], None, QWEN.replace("GENERATION", OPENING)), f"{answer}<|im_end|>\n", im),
        Shape(
            "qwen3_thinking", byte_level(IM, IM[2], None, QWEN.replace("GENERATION", "{{ '<think>\n' }}")),
            f"\n</think>\n\n{answer}<|im_end|>\n", im,
        ),
        # The prompt opens a thought that a plain answer never closes: it has to be refused.
        Shape("r1", byte_level(DEEPSEEK, DEEPSEEK_END, DEEPSEEK[0], R1.replace("GENERATION", "<think>\n")), "", (DEEPSEEK_END,)),
        Shape(
            "deepseek_v3", byte_level(DEEPSEEK, DEEPSEEK_END, DEEPSEEK[0], R1.replace("GENERATION", "")),
            f"{answer}{DEEPSEEK_END}", (DEEPSEEK_END,),
        ),
        Shape("phi3", byte_level(phi, "<|endoftext|>", None, PHI3), f"{answer}<|end|>\n<|endoftext|>", ("<|end|>",)),
        Shape(
            "cohere2", byte_level(cohere, end, "<BOS_TOKEN>", COHERE2), f"<|START_RESPONSE|>{answer}<|END_RESPONSE|>{end}",
            ("<|END_RESPONSE|>", end),
        ),
        Shape("glm4_moe", byte_level(glm, "<|endoftext|>", None, GLM4), f"\n{answer}<|user|>", ("<|user|>",)),
        Shape(
            "gptoss", byte_level(harmony, "<|return|>", None, GPT_OSS), f"<|channel|>final<|message|>{answer}<|return|>",
            ("<|return|>",),
        ),
        Shape(
            "gemma4",
            byte_level(("<pad>", "<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"), "<turn|>", "<bos>", GEMMA4),
            f"{answer}<turn|>\n", ("<turn|>",),
        ),
        Shape(
            "kimi", byte_level(("[EOS]", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_end|>"), "[EOS]", None, KIMI),
            f"<think></think>{answer}<|im_end|>", im,
        ),
        Shape("llama2", llama2(), f"{answer} </s>", ("</s>",)),
    ]  # fmt: skip
    return {shape.name: shape for shape in found}
