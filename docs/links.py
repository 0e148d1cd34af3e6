"""Links of names in docstrings that Sphinx does not find by itself.

Docstrings write short names, such as ``STRMHead.match`` in single backticks: these become links to the only documented
object whose name ends so. Names of other libraries, private names and constants become plain code. Anything else stays
unresolved, which is an error of the build.
"""

import inspect
import pkgutil
import sys
from typing import Any

from sphinx.util.nodes import make_refnode

PACKAGE = "strm_lightning"
# Names of other libraries that docstrings and types write without their module.
_OTHERS = {"Tensor", "ndarray", "Figure", "posix.DirEntry", "LightningModule.setup"}


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Return the link or the plain text of a reference to a Python name; None if the name does not exist."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    if target.startswith("strm "):
        anchor = target.replace(" ", "-")
        return make_refnode(app.builder, node["refdoc"], "commands", anchor, content, target)
    found = _documented(env, node, target) or _documented(env, node, target.rpartition(".")[0])
    member = found and not found[0].endswith(target)
    if found and (not member or _has(found[0], target.rpartition(".")[2])):
        name, entry = found
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)
    return content if target in _OTHERS or _exists(node, target) else None


def _documented(env: Any, node: Any, target: str) -> Any:
    """Return the documented object whose name ends in ``target``, if there is one or one in the module of the node."""
    if not target:
        return None
    module, cls = node.get("py:module"), node.get("py:class")
    matches = env.domains["py"].find_obj(env, module, cls, target, None, 1)
    matches = [match for match in matches if not match[1].aliased]
    if len(matches) > 1:
        matches = [match for match in matches if match[0].startswith(f"{module}.")]
    return matches[0] if len(matches) == 1 else None


def _has(name: str, member: str) -> bool:
    """Whether a documented class has an attribute, or its constructor an argument."""
    owner = pkgutil.resolve_name(name)
    if hasattr(owner, member):
        return True
    return inspect.isclass(owner) and member in inspect.signature(owner.__init__).parameters


def _exists(node: Any, target: str) -> bool:
    """Whether a name exists in another library, or in the module or class whose docstring names it."""
    module, cls = node.get("py:module"), node.get("py:class")
    prefixes = [f"{module}.{cls}.", f"{module}.", ""] if cls else [f"{module}.", ""]
    if module and "." in target:  # a module beside this one
        prefixes.append(f"{module.rpartition('.')[0]}.")
    for prefix in prefixes:
        try:
            pkgutil.resolve_name(prefix + target)
        except (ImportError, AttributeError, ValueError):
            continue
        return bool(prefix) or target.partition(".")[0] != PACKAGE or "._" in target or target in _type_variables()
    return False


def _type_variables() -> set[str]:
    own = {name: module for name, module in sys.modules.items() if name.startswith(PACKAGE)}
    return {
        f"{name}.{key}" for name, module in own.items() for key, value in vars(module).items()
        if type(value).__name__ == "TypeVar"
    }  # fmt: skip
