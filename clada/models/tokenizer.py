"""A model's tokenizer without transformers: the same ids and the same text, by the library below it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import tokenizers
from tokenizers.models import BPE

# What a tokenizer is tried with before it takes the place of transformers': spaces, line breaks, scripts, an emoji of
# several characters, special tokens spelled out, digits.
TRIED = (
    "The minister said, on 12 May 2024: 'it  is\n\n\tdone' .",
    " größe naïve Ελληνικά русский العربية हिन्दी 日本語 한국어 👩‍🔬 e\u0301",
    "<s> </s> <bos> <|im_start|>user <|endoftext|> <unk>",
    "a",
)


@dataclass(frozen=True)
class Tokenizer:
    """What the engine uses of a tokenizer of transformers, under the same names.

    Attributes:
        backend: of the library `tokenizers`.
        chat_template: in jinja; None where the model has none.
        special: names of special tokens that a chat template may use, such as `bos_token`.
    """

    backend: tokenizers.Tokenizer
    chat_template: str | None = None
    special: Mapping[str, Any] = field(default_factory=dict)

    is_fast = True

    @classmethod
    def of(cls, tokenizer: Any) -> Tokenizer | None:
        """The same as a tokenizer of transformers; None where it does more than the library below it.

        Args:
            tokenizer: of transformers.
        """
        if not tokenizer.is_fast:
            return None
        if tokenizer.clean_up_tokenization_spaces and not isinstance(tokenizer.backend_tokenizer.model, BPE):
            return None  # transformers takes spaces out of what the library decodes
        try:
            template = None if tokenizer.chat_template is None else tokenizer.get_chat_template()
        except ValueError:  # several, and none to be taken where none is named
            return None
        own = cls.read(tokenizer.backend_tokenizer.to_str(), template, dict(tokenizer.special_tokens_map))
        return own if own._does_as(tokenizer) else None

    @classmethod
    def read(cls, definition: str, chat_template: str | None, special: Mapping[str, Any]) -> Tokenizer:
        """From what was written of one: `backend.to_str()` and the other attributes."""
        return cls(_plain(definition), chat_template, special)

    def _does_as(self, other: Any) -> bool:
        """Whether some texts have the same ids here and in a tokenizer of transformers, and ids the same text."""
        for text in TRIED:
            ids = other(text, verbose=False)["input_ids"]
            if self(text)["input_ids"] != ids:
                return False
            for skip in (True, False):
                if self.decode(ids, skip_special_tokens=skip) != other.decode(ids, skip_special_tokens=skip):
                    return False
        if self.chat_template is None:
            return True
        import jinja2

        turns, options = [{"role": "user", "content": TRIED[0]}], {"add_generation_prompt": True, "return_dict": True}
        try:
            return self.apply_chat_template(turns, **options) == {
                "input_ids": other.apply_chat_template(turns, **options)["input_ids"]
            }
        except jinja2.TemplateError:  # a template that wants other turns
            return False

    def __call__(self, text: str, *, add_special_tokens: bool = True, **_unused: Any) -> dict[str, list[int]]:
        """The ids of a text, as `input_ids`."""
        return {"input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def convert_ids_to_tokens(self, token: int) -> str | None:
        """The name of a token; None where there is none of this number."""
        return self.backend.id_to_token(token)

    @cached_property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        """Tokens beside those of the vocabulary's own model, special ones among them."""
        return dict(self.backend.get_added_tokens_decoder())

    def apply_chat_template(
        self, turns: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, **_unused: Any
    ) -> dict[str, list[int]]:
        """The ids of a conversation, as `input_ids`; as transformers renders the model's chat template.

        Args:
            turns: with `role` and `content`.
            add_generation_prompt: end with the beginning of the model's turn.

        Raises:
            jinja2.TemplateError: the template is no template, or refuses the turns.
        """
        assert self.chat_template is not None
        rendered = _compiled(self.chat_template).render(
            messages=[dict(turn) for turn in turns],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.special,
        )
        return self(rendered, add_special_tokens=False)


def _plain(definition: str) -> tokenizers.Tokenizer:
    """A tokenizer that neither cuts nor fills up texts, whatever its file says; so transformers calls it."""
    backend = tokenizers.Tokenizer.from_str(definition)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _compiled(template: str) -> Any:
    """A chat template in the environment that transformers gives it: a sandbox, since templates come with models."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks the model's turns for training and changes nothing of the text."""

        tags = frozenset({"generation"})  # type: ignore[assignment]  # which jinja declares as a set

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

        def _as_it_is(self, caller: Any) -> Any:
            return caller()

    class Namespace(jinja2.utils.Namespace):
        """Takes no names that lead to Python's own attributes."""

        def __init__(*args: Any, **values: Any) -> None:  # a value may be called `self`
            namespace, *mappings = args
            checked = dict(*mappings, **values)
            for name in checked:
                Namespace._check(name)
            jinja2.utils.Namespace.__init__(namespace, checked)

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace._check(name)  # by the class: attributes of a namespace are what a template stored in it
            jinja2.utils.Namespace.__setitem__(self, name, value)

        @staticmethod
        def _check(name: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a chat template stores {name!r} in a namespace")

    class Dictionary:
        """`dict` without its attributes."""

        def __call__(self, *mappings: Any, **values: Any) -> dict[Any, Any]:
            return dict(*mappings, **values)

        def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
            return dict.fromkeys(*arguments)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson  # jinja's own is for HTML
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=Dictionary(),
        namespace=Namespace,
    )
    return environment.from_string(template)
