"""Another set of classes as a view of labels: classes renamed, merged or dropped. Nothing that is stored changes."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import yaml

from pipeline.errors import AccessError, StoreError, UnreachableError, UserError
from pipeline.records import Category, Instances
from pipeline.store import Store, redact

_LIMIT = 16 << 20  # bytes
_ACCEPTED = (
    "accepted is YAML or JSON with a line for each class to change, as in truck: vehicle, or truck: null to drop it"
)
#: Whatever a file holds, a sentence shows a little of it.
_short = reprlib.Repr()
_short.maxlevel = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Taxonomy:
    """What becomes of classes: by name, the new name, or None for those that are dropped. The others stay as they are.

    source: where it is from, for messages.
    """

    names: Mapping[str, str | None]
    source: str

    def categories(self, categories: Sequence[Category]) -> tuple[Category, ...]:
        """The classes that there are afterwards. One that is made of several has the least of their ids.

        Raises:
            UserError: a class to change is not among them.
        """
        known = {category.name for category in categories}
        if strangers := [name for name in self.names if name not in known]:
            raise UserError(
                f"{self.source} names the class {strangers[0]!r}, which the run does not have; it has "
                f"{_some(sorted(known))}"
            )
        ids: dict[str, int] = {}
        for category in categories:
            name = self.names.get(category.name, category.name)
            if name is not None:
                ids[name] = min(category.id, ids.get(name, category.id))
        return tuple(Category(id=number, name=name) for name, number in sorted(ids.items(), key=lambda item: item[1]))

    def instances(self, instances: Instances, categories: Sequence[Category]) -> Instances:
        """Instances of the classes `categories` as instances of those that there are afterwards."""
        new = {category.name: category.id for category in self.categories(categories)}
        ids = {one.id: new.get(self.names.get(one.name, one.name) or "") for one in categories}
        mapped = [ids.get(old) for old in instances.category_ids.tolist()]
        kept = instances.where(np.array([number is not None for number in mapped], bool))
        return replace(kept, category_ids=np.array([number for number in mapped if number is not None], np.int32))


def read(uri: str, store: Store, *, key: str = "--taxonomy") -> Taxonomy:
    """Read a mapping of class names.

    Raises:
        UserError: it is not there, or no such mapping; the sentence begins with `key`.
    """
    where = f"{key} {redact(uri)}"
    try:
        text = store.get(uri, limit=_LIMIT).decode("utf-8")
        tree, found = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except (AccessError, UnreachableError):
        raise
    except StoreError as error:  # it is not there, a directory, or too large
        raise UserError(f"{key}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{where} cannot be read; {_ACCEPTED}") from error
    if not isinstance(found, dict) or not found:
        raise UserError(f"{where} holds no mapping; {_ACCEPTED}")
    for old, new in found.items():
        if not isinstance(old, str) or not (new is None or (isinstance(new, str) and new)):
            raise UserError(f"{where} maps {_short.repr(old)} to {_short.repr(new)}; {_ACCEPTED}")
    assert isinstance(tree, yaml.MappingNode)
    if twice := [name for name, times in Counter(str(old.value) for old, _ in tree.value).items() if times > 1]:
        raise UserError(f"{where} names the class {twice[0]!r} more than once; name each class once")
    return Taxonomy(names=found, source=where)


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
