"""Text whose encoding was mangled on its way, mended."""

from __future__ import annotations

import ftfy
from ftfy.fixes import fix_surrogates


def repair_encoding(text: str) -> str:
    """Mend text that was decoded with the wrong encoding (`cafÃ©`), and nothing else of it.

    Curly quotes, ligatures, full-width characters, HTML entities and the normal form may be the author's, so they stay.
    Half a surrogate pair, which cannot be encoded at all, becomes U+FFFD.

    Args:
        text: of any length; its lines are mended one by one, so that a mangled one is found among others.

    Returns:
        the text, itself where nothing was mangled.
    """
    return fix_surrogates("\n".join(map(ftfy.fix_encoding, text.split("\n"))))
