"""Answers, line by line, what Meta's own tokenizer and chat format make of a text. Runs where `llama-models` is installed."""

import json
import sys
from pathlib import Path

import llama_models.llama3
from llama_models.datatypes import RawMessage
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer

META = Tokenizer.get_instance()

ANSWERS = {
    "file": lambda: str(Path(llama_models.llama3.__file__).parent / "tokenizer.model"),
    "special": lambda: META.special_tokens,
    "stop_ids": lambda: META.stop_tokens,
    "encode": lambda text: META.encode(text, bos=True, eos=False),
    "encode_special": lambda text: META.encode(text, bos=False, eos=False, allowed_special="all"),
    "decode": META.decode,
    "chat": lambda messages: ChatFormat(META).encode_dialog_prompt([RawMessage(**message) for message in messages]).tokens,
}

for line in sys.stdin:
    question, *arguments = json.loads(line)
    print(json.dumps(ANSWERS[question](*arguments)), flush=True)
