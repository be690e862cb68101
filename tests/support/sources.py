"""The library's files, and what they import: read from the syntax, so that lazy imports count."""

import ast
from pathlib import Path

import sj_prune

PACKAGE = Path(sj_prune.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def from_module(node, package):
    """Return the dotted names of a ``from ... import``, relative ones made absolute."""
    parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*parts, node.module] if node.module else parts)
    return [f"{base}.{alias.name}" for alias in node.names]


def dynamic(node):
    """Return the name in ``import_module("name")``, or nothing."""
    called = getattr(node.func, "attr", getattr(node.func, "id", None))
    name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
    return [name] if called in ("import_module", "__import__") and isinstance(name, str) else []


def imports(source, package="sj_prune"):
    """Return the dotted names that `source`, a module of `package`, imports anywhere."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += from_module(node, package)
        elif isinstance(node, ast.Call):
            found += dynamic(node)
    return found


def imports_of(file):
    package = ".".join(["sj_prune", *Path(file).parent.parts])
    return imports(SOURCES[file].read_text(), package)


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def module_of(file):
    """Return the dotted name of a file of the package."""
    return ".".join(["sj_prune", *Path(file).with_suffix("").parts]).removesuffix(".__init__")


def import_graph(sources):
    """Return, by module, the modules among `sources` (file: text) that it imports anywhere.

    `from package import name` counts for the module of that name, or for the package's own file.
    That a module's packages are imported before it does not count: a package's file may list it.
    """
    modules = {module_of(file): file for file in sources}
    graph = {}
    for module, file in modules.items():
        package = ".".join(["sj_prune", *Path(file).parent.parts])
        names = imports(sources[file], package)
        found = {n if n in modules else n.rpartition(".")[0] for n in names}
        graph[module] = (found & modules.keys()) - {module}
    return graph
