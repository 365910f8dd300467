"""A conversation with a model whose memory goes on learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nlft.adapter import adapter_folder, read_config, recipe_of
from nlft.base import load_base
from nlft.config import BaseConfig
from nlft.errors import NlftError
from nlft.pathways.hope.config import HopePeftConfig
from nlft.rescore import load_weights
from nlft.sessions import Session, session

COMMANDS = "/changed shows what the memory has learned; /off TEXT answers without it; /reset forgets; /quit ends."


class Chat:
    """Answers line after line; what is said and answered stays in the key-value cache, and moves the memory.

    When the conversation is longer than the model's context, a new one begins: what the memory has learned is what is
    left of it.
    """

    def __init__(self, model: Any, tokenizer: Any, context: int, session: Session, length: int) -> None:
        self.model, self.tokenizer, self.context = model, tokenizer, context
        self.session, self.length = session, length
        self.begin()

    def begin(self) -> None:
        """Starts a new conversation."""
        self.ids: list[int] = []
        self.messages: list[dict[str, str]] = []
        self.past: Any = None

    def answer(self, line: str) -> str:
        """Answers one line with the memory, which learns from both.

        Raises:
            NlftError: the line is too long for the model.
        """
        said = self.said(line)
        if len(self.ids) + len(said) + self.length > self.context:
            self.begin()
            said = self.said(line)
        ids, past = self.generate([*self.ids, *said], self.past)
        text = self.text(ids[len(self.ids) + len(said) :])
        self.ids, self.past = ids, past
        self.messages += [{"role": "user", "content": line}, {"role": "assistant", "content": text}]
        return text

    def answer_without(self, line: str) -> str:
        """Answers one line by the base alone; neither the conversation nor the memory notices.

        Raises:
            NlftError: the line is too long for the model.
        """
        said = self.said(line)
        if len(self.ids) + len(said) + self.length <= self.context:
            said = [*self.ids, *said]
        with self.model.disable_adapter():
            ids, _ = self.generate(said, None)
        return self.text(ids[len(said) :])

    def reset(self) -> None:
        """Forgets everything."""
        self.session.reset()
        self.begin()

    def said(self, line: str) -> list[int]:
        """The tokens by which a line continues the conversation."""
        if not getattr(self.tokenizer, "chat_template", None):
            text = f"\n{line}" if self.ids else line
            return list(self.tokenizer(text, add_special_tokens=not self.ids)["input_ids"])
        new = [{"role": "user", "content": line}]
        before = self.tokenizer.apply_chat_template(self.messages, tokenize=False) if self.messages else ""
        whole = self.tokenizer.apply_chat_template([*self.messages, *new], tokenize=False, add_generation_prompt=True)
        if not whole.startswith(before):  # the template rewrites earlier turns
            whole, before = self.tokenizer.apply_chat_template(new, tokenize=False, add_generation_prompt=True), ""
        return list(self.tokenizer(whole[len(before) :], add_special_tokens=False)["input_ids"])

    def generate(self, ids: list[int], past: Any) -> tuple[list[int], Any]:
        """Greedy continuation: all tokens, and the cache, which holds all but the last.

        Raises:
            NlftError: there is no room for an answer.
        """
        if len(ids) + self.length > self.context:
            raise NlftError(
                f"The line has {len(ids)} tokens, and with {self.length} of an answer the model takes {self.context}.",
                "Write less at a time, or lower --length.",
            )
        inputs = torch.tensor([ids], device=next(self.model.parameters()).device)
        pad = self.tokenizer.pad_token_id
        with torch.no_grad():
            made = self.model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                past_key_values=past,
                max_new_tokens=self.length,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
                return_dict_in_generate=True,
            )
        return made.sequences[0].tolist(), made.past_key_values

    def text(self, ids: list[int]) -> str:
        """Tokens as text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def open_chat(adapter: str, file: Path, base: str | None, length: int, console: Any = None) -> Chat:
    """A chat with an adapter, whose session goes on from a file if it is there.

    Args:
        adapter: an adapter's folder, or a result folder of `nlft train`.
        file: of the session; need not exist.
        base: the base; that of the adapter's run, else the one that the adapter names, when None.
        length: longest answer, in tokens.

    Raises:
        NlftError: the adapter has no memory that learns while it reads, its base is not named, or the session is one of
            another adapter.
    """
    folder = adapter_folder(adapter)
    config = read_config(folder)
    if not isinstance(config, HopePeftConfig):
        raise NlftError(f"{folder} has no memory that learns while it reads.", "Train one with `kind: hope`.")
    if not file.expanduser().parent.is_dir():
        raise NlftError(f"--session: there is no folder {file.parent}.", "Make it first, or name another.")
    frozen = load_base(base_of(folder, config, base, console))
    model: Any = load_weights(folder, frozen)
    opened = session(model.eval())
    if file.expanduser().exists():
        opened.load(file)
    return Chat(model, frozen.tokenizer, frozen.context, opened, length)


def base_of(folder: Path, config: Any, name: str | None, console: Any = None) -> BaseConfig:
    """The base that is named, else the one of the adapter's run, else the one that the adapter names.

    Raises:
        NlftError: nothing names one.
    """
    if name is not None:
        return BaseConfig(model=name)
    recipe = recipe_of(folder, None, console)
    if recipe is not None:
        return recipe.base
    if not config.base_model_name_or_path:
        raise NlftError(f"{folder} does not name its base.", "Name it with --base.")
    return BaseConfig(model=config.base_model_name_or_path)
