"""Preference pairs in the forms that data sets of the hub have, brought to one form.

  no prompt                         the longest common beginning of both answers is the prompt, as
                                    TRL's `extract_prompt` takes it
  a text, and chats as answers      if the answers begin with the assistant's message, the text is
                                    the user's; else the prompt is within the answers, as in TRL
  messages that both answers repeat the answers lose them

Source: trl.data_utils.maybe_extract_prompt (TRL 1.16); the assistant's case and the last one are
not TRL's, which would train on an empty prompt, or on a repeated one.
"""

from __future__ import annotations

from itertools import takewhile

from prefmix.policies.errors import TrainError

Content = str | list[dict[str, str]]
"""A text, or messages of a chat."""

Row = dict[str, Content]


def with_prompt(name: str, row: Row) -> Row:
    """A pair with its prompt by itself.

    Args:
      name: of the row, for messages.
      row: `chosen`, `rejected` and maybe `prompt`.
    Returns: the same row if its prompt is explicit, or if its forms do not fit together.
    Raises: TrainError if there is neither a prompt nor a common beginning.
    """
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if chosen == rejected or isinstance(chosen, str) != isinstance(rejected, str):
        if prompt is not None:
            return row  # which is refused for that
        raise TrainError(
            f"{name} has no 'prompt', and 'chosen' and 'rejected' have no common beginning that "
            "could be one: they are equal, or a text and a chat"
        )
    if prompt is None:
        return _extracted(name, chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        return row
    if isinstance(prompt, str):
        if chosen[0]["role"] == rejected[0]["role"] == "assistant":
            return {**row, "prompt": [{"role": "user", "content": prompt}]}
        return _extracted(name, chosen, rejected)
    size = len(prompt)
    if chosen[:size] == prompt == rejected[:size] and size < min(len(chosen), len(rejected)):
        return {"prompt": prompt, "chosen": chosen[size:], "rejected": rejected[size:]}
    return row


def _extracted(name: str, chosen: Content, rejected: Content) -> Row:
    pairs = zip(chosen, rejected, strict=False)
    same = takewhile(lambda pair: pair[0] == pair[1], pairs)
    size = sum(1 for _ in same)
    if size == min(len(chosen), len(rejected)):
        size -= 1  # an answer that begins the other one keeps its end
    elif isinstance(chosen, str) and size and chosen[size - 1] == " ":
        size -= 1  # the blank belongs to the answers
    if size == 0 or (isinstance(chosen, str) and not chosen[:size].strip()):
        raise TrainError(
            f"{name} has no 'prompt', and 'chosen' and 'rejected' have no common beginning that "
            "could be one"
        )
    row: Row = {"prompt": chosen[:size], "chosen": chosen[size:], "rejected": rejected[size:]}
    for field in ("chosen", "rejected"):
        rest = row[field]
        if isinstance(rest, str):
            if not rest.strip():
                raise TrainError(f"{name}: {field!r} is empty after the beginning that is common")
        elif rest[0]["role"] != "assistant":
            raise TrainError(
                f"{name}: after the common beginning {field!r} goes on with a message of "
                f"{rest[0]['role']!r}; expected one of 'assistant'"
            )
    return row
