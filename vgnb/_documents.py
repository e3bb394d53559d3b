"""For nbdev's documentation; `[tool.nbdev]` in pyproject.toml names what it takes from here.

`Fresh` (`doc_procs`): what a page registers is gone again when it has been processed. A worker of `nbdev-docs` runs
many pages. Each defines its room anew, and its classes would stand in the registries in the place of those that the
next page imports.

`shown` (`renderer`): a name with its signature and document. The project has no public address, so no link to a
source is written. A page defines its names in `__main__`, which says nothing to a reader.
"""
import functools
import importlib
import pkgutil
import sys

import vgnb
from vgnb.core import Registry


def registries() -> list[Registry]:
    "Every registry of the package, and those that stand in its dictionaries (`vgnb.kinds.shelves`)."
    for module in pkgutil.walk_packages(vgnb.__path__, "vgnb."):
        if not module.name.split(".")[-1].startswith("_"): importlib.import_module(module.name)
    held = [value for name, module in list(sys.modules.items()) if name.startswith("vgnb.")
            for value in vars(module).values()]
    held += [inner for value in held if type(value) is dict for inner in value.values()]
    return list({id(value): value for value in held if isinstance(value, Registry)}.values())


@functools.cache
def registry_contents() -> list[tuple[Registry, dict]]:
    "The registries and what the package fills them with; asked for before the first page."
    return [(registry, dict(registry)) for registry in registries()]


class Fresh:
    "A processor of nbdev's: puts the registries back."
    def __init__(self, nb): registry_contents()
    def __call__(self, cell): return None    # as it is

    def end(self):
        for registry, content in registry_contents():
            registry.clear()
            registry.update(content)


def shown(sym, name=None, title_level=3):
    "What `show_doc` writes for a name."
    from nbdev.showdoc import BasicMarkdownRenderer    # not at the top: the package does without nbdev
    # Below a decorator of its own, a method that `patch` adds has forgotten its class, and links would miss it.
    if name is None and hasattr(sym, "__wrapped__"): name = sym.__qualname__
    made = BasicMarkdownRenderer(sym, name=name, title_level=title_level)
    made.dm = str(made.dm).replace("__main__.", "")
    made.fn = ""    # the name whose source nbdev would link to: none
    return made
