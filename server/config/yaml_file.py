"""A strict YAML reader: a file holds one mapping, and no key is given twice.

PyYAML keeps the last of two equal keys without a word, which would drop a policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from prefmix.mixing.shown_value import shown

_MAX_CHARS = 16 * 2**20

_PLAIN = {
    "found character '\\t'": "a tab stands here; YAML is indented by blanks",
    "expected <block end>": "this line is indented otherwise than those that it belongs to",
    "mapping values are not allowed here": "a colon too many, or a line that is indented too far",
}
"""Beginning of a sentence of PyYAML -> the same for someone who does not know its parser."""


class YamlError(ValueError):
    """A file that is missing, unreadable, not YAML or not one mapping. One sentence."""


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # PyYAML raises these for a value that its tag or form does not allow: 2020-13-45.
            raise yaml.constructor.ConstructorError(
                None, None, f"no value can be made of this: {error}", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            # "<<" is no key of its own: it merges another mapping in.
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)):
                continue  # unhashable: the base class reports it
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _in_plain_words(problem: str) -> str:
    return next((plain for begin, plain in _PLAIN.items() if problem.startswith(begin)), problem)


def read_yaml(path: Path) -> dict[Any, Any]:
    """Reads a file that holds one mapping; an empty file gives an empty mapping.

    Raises: YamlError naming the file and, where known, the line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARS + 1)
    except FileNotFoundError:
        raise YamlError(f"the configuration file {path} does not exist") from None
    except UnicodeDecodeError:
        raise YamlError(f"{path} is not a text file in UTF-8") from None
    except OSError as error:
        raise YamlError(f"cannot read {path}: {error.strerror}") from None
    if len(text) > _MAX_CHARS:
        raise YamlError(f"{path} has more than {_MAX_CHARS} characters; it is no configuration")
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)
    except RecursionError:
        raise YamlError(f"{path}: mappings and lists are nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark is not None else ""
        raise YamlError(f"{path}{line}: {_in_plain_words(error.problem or '')}") from None
    except yaml.YAMLError as error:
        raise YamlError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # PyYAML's scanner raises this for a broken %YAML line
        raise YamlError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise YamlError(
            f"{path} holds {shown(data)}, expected a mapping with keys such as policies"
        )
    return data
