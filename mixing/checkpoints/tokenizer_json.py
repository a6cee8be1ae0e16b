"""The tokens of a tokenizer.json, read beside requests.

transformers and tokenizers take seconds for a vocabulary of 128,000 tokens, and keep all threads
waiting meanwhile. What they would make of the file apart from its tokens is of no interest here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class TokenizerJson:
    """The part of a tokenizer of transformers that prefmix.mixing.checkpoints.vocabularies needs
    for the comparison of tokens."""

    def __init__(self, path: Path) -> None:
        """Raises: OSError, ValueError for a file that is no tokenizer's."""
        state = json.loads(path.read_bytes())
        try:
            model: Any = state["model"]["vocab"]
            self._added = {each["content"]: int(each["id"]) for each in state["added_tokens"]}
            if isinstance(model, list):  # of pairs: token, score
                model = {token: index for index, (token, _) in enumerate(model)}
            self._tokens = {token: int(index) for token, index in model.items()} | self._added
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it has no vocabulary ({type(error).__name__})") from None
        if not self._tokens:
            raise ValueError("its vocabulary is empty")

    def get_vocab(self) -> dict[str, int]:
        """The id of each token, added ones included."""
        return self._tokens

    def get_added_vocab(self) -> dict[str, int]:
        """The id of each token that was added to the trained ones."""
        return self._added
