"""Traces as a page of HTML that stands by itself: its numbers, its style and its script are within."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from clada.errors import InputError
from clada.system.files import as_path, check_target, is_local, replacing
from clada.trace.texts import TracedText, texts_of

SCHEMA = "clada/trace/1"

HEIGHT = 560  # pixels of an output in JupyterLab


class Trace:
    """Texts whose tokens are shaded by what they cost; shows itself in JupyterLab.

        steps = list(engine.generate("The minister said", layers=True))
        clada.Trace(steps)
        clada.Trace(word_table("The dog barked."), "words.csv").save("text.html")

    Args:
        *given: each one the steps of an engine, a result of `clada generate --json`, a table of words
            (`cladastats.word_table`), the name of a file that `cladastats words` wrote, or another trace. The first
            texts of the first two are shown side by side, or the first two texts of one; the page lets one choose.

    Attributes:
        texts: all texts, in their order.

    Raises:
        InputError: one is nothing of that kind, or has no tokens.
    """

    def __init__(self, *given: Any) -> None:
        if not given:
            raise InputError("a trace is of steps or of a table of words; give one")
        parts = [each.texts if isinstance(each, Trace) else texts_of(each) for each in given]
        self.texts: list[TracedText] = _told_apart([text for part in parts for text in part])
        self._shown = [0, len(parts[0]) if len(parts) > 1 else 1][: len(self.texts)]

    def beside(self, other: Any) -> Trace:
        """The same texts with others beside them.

        Args:
            other: what the class takes.

        Raises:
            InputError: as for the class.
        """
        return Trace(self, other)

    def data(self) -> dict[str, Any]:
        """What the page knows, as JSON can say it."""
        return {"schema": SCHEMA, "shown": self._shown, "texts": [asdict(text) for text in self.texts]}

    def html(self) -> str:
        """The page."""
        style, script, page = (_part(f"page.{kind}") for kind in ("css", "js", "html"))
        # Within a script of the page no text may end it, or begin a comment; \u003c is the same character to JSON.
        numbers = json.dumps(self.data(), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
        policy = (
            f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; "
            "form-action 'none'"
        )
        return Template(page).substitute(
            title=html.escape(self.texts[0].title), policy=policy, style=style, script=script, data=numbers
        )

    def save(self, path: str | Path) -> None:
        """Write the page to a file, whole or not at all.

        Raises:
            InputError: no file can be written under that name.
        """
        target = as_path(path)
        check_page(target)
        with replacing(target) as temporary:
            temporary.write_text(self.html(), encoding="utf-8", errors="replace")

    def __repr__(self) -> str:
        tokens = sum(len(text.tokens) for text in self.texts)
        return f"<Trace of {tokens:,} tokens in {len(self.texts):,} texts; save(FILE) writes a page>"

    def _repr_html_(self) -> str:
        # A page of its own within the notebook's: no style and no script of one reaches the other.
        return (
            f'<iframe srcdoc="{html.escape(self.html())}" title="{html.escape(repr(self))}" '
            f'sandbox="allow-scripts allow-downloads" style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
        )


def check_page(path: Path) -> None:
    """Refuse, before the work, a name that no page can be written under.

    Raises:
        InputError: it is a folder or a device, or its folder does not exist or cannot be written to.
    """
    if is_local(path) and not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it, or give another name")
    check_target(path)


def _told_apart(texts: Sequence[TracedText]) -> list[TracedText]:
    """The texts, those of one title with a number each."""
    titles, seen, found = Counter(text.title for text in texts), Counter[str](), []
    for text in texts:
        seen[text.title] += 1
        several = titles[text.title] > 1
        found.append(replace(text, title=f"{text.title}, {seen[text.title]}") if several else text)
    return found


def _part(name: str) -> str:
    return resources.files("clada.trace").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Of an inline style or script, as a policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
