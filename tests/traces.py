"""Steps, a table of words and texts that try to leave their place, for the tests of traces; what a page holds."""

import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd

HOSTILE = ["</script>", " <!--", "<script>window.harm = 1</script>", ' "&amp;', " <b>", "\u2028", " {{", " $x ${y}"]

FRAME = pd.DataFrame({
    "text_id": ["a", "a", "a", "b", "b"],
    "word_index": [1, 2, 3, 1, 2],
    "word": ["NA", "dog", ".", "null", "001"],
    "answer": ["x", "y", "z", "x", "y"],
    "rt_ms": [300.5, np.nan, 250.0, 1.0, 2.0],
    "surprisal_bits": [np.nan, 3.5, 0.25, 1.0, 2.0],
    "effort_00": [0.1, 0.2, 0.3, 0.4, 0.5],
    "effort_01": [0.5, 0.4, 0.3, 0.2, 0.1],
    "none": [np.nan] * 5,
})  # fmt: skip


def a_step(token, surprisal, **more):
    return {
        "token_id": 1, "token": token, "surprisal_bits": surprisal, "entropy_bits": 1.25, "active_fraction": 0.5,
        "load_surprisal": False, "load_entropy": True, **more,
    }  # fmt: skip


def data_of(page):
    """What a page's script of data holds, as a parser of HTML finds it."""

    class Scripts(HTMLParser):
        found, kind, style = {}, None, ""

        def handle_starttag(self, tag, attributes):
            attributes = dict(attributes)
            self.kind = {"script": attributes.get("type"), "style": "style"}.get(tag)
            if attributes.get("http-equiv") == "Content-Security-Policy":
                self.found["policy"] = attributes["content"]

        def handle_endtag(self, tag):
            self.kind = None

        def handle_data(self, data):
            if self.kind:
                self.found[self.kind] = self.found.get(self.kind, "") + data

    parser = Scripts()
    parser.found = {}
    parser.feed(page)
    return json.loads(parser.found["application/json"]), parser.found


def values_of(text):
    return {each["name"]: each["values"] for each in text["quantities"]}
