"""Execute the Python code of a config file, detect changes of this code, and decide whether to trust it.

If metajax defines the types of all settings of a run, reading the settings needs no code. If the config file defines
some types, reading the settings executes the copy of the config file in the work directory. metajax executes the copy
only if the current user began the run, or passes `--trust`.

For this check metajax records each config file with which the user begins a run. The records are in the user's home
folder. They are not in the data folder, because several users may share a data folder.
"""

import ast
import contextlib
import copy
import dataclasses
import functools
import hashlib
import importlib
import importlib.machinery
import logging
import os
import site
import stat
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from metajax.errors import UserError
from metajax.system import files

CONFIG_MODULE = "metajax_config"
"""Name of the Python module under which a config file is executed."""

_LOG = logging.getLogger("metajax")
_MOST_FOLDERS = 100
"""Largest number of folders in the record of a config file. The oldest folders are removed first."""


def load_module(path: Path, folder: Path | None = None) -> ModuleType:
    """Execute a config file as a module, with its folder first on `sys.path`.

    Modules in this folder are imported again, because two config files may each have a `my_model.py`. Afterwards the
    folder stays at the end of `sys.path`, for imports inside functions.

    Args:
        path: The file.
        folder: The folder in which Python searches the modules that the file imports. Default: the folder of the file.

    Returns:
        The module. It is also in `sys.modules` under the name `CONFIG_MODULE`.

    Raises:
        UserError: If the file cannot be read, or raises an exception other than `KeyboardInterrupt`. The message names
            the line that raised the exception.
    """
    folder = (path.parent if folder is None else folder).absolute()
    source = files.read_bytes(path)
    module = ModuleType(CONFIG_MODULE)
    module.__file__ = os.path.abspath(path)
    sys.modules[CONFIG_MODULE] = module  # the dataclass decorator looks up the module of a class here
    try:
        code = compile(source, os.path.abspath(path), "exec", dont_inherit=True)
        with _first_on_path(folder):
            _forget(_local_modules(ast.parse(source)), folder)
            exec(code, module.__dict__)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit: a config file must not end the program without a message
        reason = f"{path}{line_of(error, path)}: {type(error).__name__}{_message(error)}"
        if isinstance(error, ModuleNotFoundError):
            gone = f"the folder of the config, {folder}, is gone: put its modules on PYTHONPATH"
            reason += f" (searched in {folder} and on PYTHONPATH)" if folder.is_dir() else f" ({gone})"
        reason += _renamed(error, module)
        raise UserError(reason) from error
    return module


def _forget(modules: dict[str, Path], folder: Path) -> None:
    """Remove modules of a folder from `sys.modules`: those in `modules`, and those whose files no longer exist."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")
        if file and Path(file).absolute().is_relative_to(folder) and not os.path.isfile(file):
            del sys.modules[name]
    for name, file in modules.items():
        if file.is_relative_to(folder):
            sys.modules.pop(name, None)


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    entry = str(folder)
    importlib.invalidate_caches()  # Python would not find files that were written after it listed their folder
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)
        if entry not in sys.path and folder.is_dir():
            sys.path.append(entry)


def line_of(error: BaseException, path: Path) -> str:
    """Return `:LINE`, the last line of a file that an exception passed; empty if the exception passed no line of it."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}" if error.lineno else ""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == os.path.abspath(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f":{lines[-1]}" if lines else ""


def _renamed(error: BaseException, module: ModuleType) -> str:
    """Return advice if a config uses a name of metajax 0.1, where settings had the names of their components."""
    name = f"{error.name}Config" if isinstance(error, NameError) else ""
    return f": metajax calls these settings {name} since version 0.2" if name in vars(module) else ""


def _message(error: BaseException) -> str:
    """Return a colon and the message of an exception; empty if the message is empty or `__str__` fails."""
    try:
        text = str(error)
    except Exception:
        return ""
    return f": {text}" if text else ""


def read_source(path: Path) -> str:
    """Read a Python file in the encoding that it declares.

    Raises:
        UserError: If the file cannot be read or decoded.
    """
    content = files.read_bytes(path)
    try:
        lines = iter(content.splitlines(keepends=True))
        encoding, _ = tokenize.detect_encoding(lambda: next(lines, b""))
        return content.decode(encoding)
    except (SyntaxError, ValueError, LookupError) as error:
        raise UserError(f"{path} is not Python text: {error}") from error


def same_code(one: Path, other: Path) -> bool:
    """Return whether two config files have the same code, apart from comments, docstrings and the value of `config`.

    `workdir.differences` compares the values of `config`.
    """
    try:
        return _without_config(one) == _without_config(other)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"{one} or {other} is damaged: {error}") from error


def _without_config(path: Path) -> str:
    tree = ast.parse(read_source(path))
    tree.body = [node for node in tree.body if not _sets(node, "config")]
    return _normalised(tree)


def _sets(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name == name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _normalised(tree: ast.Module) -> str:
    """Return code in a normal form, without comments and docstrings."""
    tree = copy.deepcopy(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kept = [each for each in node.body if not _is_string(each)]
            node.body = kept or [ast.Pass()]
    return ast.unparse(tree)


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def fingerprints(path: Path, folder: Path) -> dict[str, list[str]]:
    """Return fingerprints of the modules that a config file imports, directly or indirectly.

    Modules of metajax, of Python and of installed packages are left out.

    Args:
        path: The config file.
        folder: The folder in which Python searches the modules that the file imports.

    Returns:
        Two checksums for each module name: one of the file, and one of the code without comments and docstrings. The
        second checksum depends on the version of Python.
    """
    try:
        with _first_on_path(folder.absolute()):
            modules = _local_modules(ast.parse(read_source(path)))
    except (SyntaxError, ValueError, RecursionError):
        return {}
    return {name: _fingerprint(file) for name, file in sorted(modules.items())}


def changed_modules(began: Any, now: dict[str, list[str]]) -> list[str]:
    """Return the names of the modules whose code has changed between two results of `fingerprints`.

    Args:
        began: The fingerprints of the modules when the run began, from its work directory.
        now: The fingerprints of the modules as they are now.
    """
    if not isinstance(began, dict):  # older runs have no fingerprints
        return []
    return sorted(name for name in {*began, *now} if not _checksums(began, name) & _checksums(now, name))


def _checksums(fingerprints: dict[str, Any], name: str) -> set[str]:
    entry = fingerprints.get(name)
    return {each for each in entry if isinstance(each, str)} if isinstance(entry, list) else set()


def _fingerprint(file: Path) -> list[str]:
    content = files.read_bytes(file)
    try:
        code = _normalised(ast.parse(content)).encode()
    except (
        SyntaxError,
        ValueError,
        RecursionError,
    ):  # the file is no Python source, but for example a compiled extension
        code = content
    return [hashlib.sha256(each).hexdigest()[:32] for each in (content, code)]


def _local_modules(tree: ast.Module) -> dict[str, Path]:
    """Return the file of each local module that parsed code imports, directly or indirectly, by the module's name.

    Modules of metajax, of Python and of installed packages are left out. The function inspects the source code and
    imports nothing.
    """
    modules: dict[str, Path] = {}
    waiting = sorted(_imported(tree, ""))
    while waiting:
        name = waiting.pop()
        file = None if name in modules else _local_file(name)
        if file is None:
            continue
        modules[name] = file
        if file.suffix == ".py":
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            with contextlib.suppress(SyntaxError, ValueError, RecursionError, UserError):
                waiting += sorted(_imported(ast.parse(files.read_bytes(file)), package))
    return modules


def _imported(tree: ast.Module, package: str) -> set[str]:
    """Return the names of the modules that code may import, and of the packages that contain these modules."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".") if package else []
                if node.level > len(parents):
                    continue
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names if name]
    return {".".join(each[:length]) for each in parts for length in range(1, len(each) + 1)}


def _local_file(name: str) -> Path | None:
    """Return the file of a module, unless it is part of metajax, of Python or of an installed package."""
    top = name.partition(".")[0]
    if top == "metajax" or top in sys.stdlib_module_names:
        return None
    file, _ = _find(name)
    if file is None or any(file.is_relative_to(folder) for folder in _installed_folders()):
        return None
    return file


def _find(name: str) -> tuple[Path | None, list[Path]]:
    """Return the file of a module, and the folders of its submodules.

    The function does not use `importlib.util.find_spec`, which would execute the parent packages of the module.
    """
    parent, _, last = name.rpartition(".")
    folders = []
    for place in _find(parent)[1] if parent else map(Path, sys.path):
        base = place.absolute() / last
        if (base / "__init__.py").is_file():
            return base / "__init__.py", [base]
        for suffix in importlib.machinery.all_suffixes():
            if base.with_name(last + suffix).is_file():
                return base.with_name(last + suffix), []
        if base.is_dir():
            folders.append(base)
    loaded = vars(sys.modules[name]) if name in sys.modules else {}  # an editable installation has its own finder
    if not folders and os.path.isfile(loaded.get("__file__") or ""):
        return Path(loaded["__file__"]).absolute(), [Path(each) for each in loaded.get("__path__", [])]
    return None, folders


@functools.cache
def _installed_folders() -> list[Path]:
    """Return the folders of Python's own modules and of installed packages."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages()]
    return [Path(path).absolute() for path in paths if path]


def remember(config: Path, folder: Path) -> None:
    """Record in the user's state folder that this user began a run with a config file.

    Args:
        config: The copy of the config file in the work directory.
        folder: The folder in which Python searched the modules that the config file imports.
    """
    path = _record(config)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(path.parent):
            raise UserError(f"{path.parent} belongs to another user, or other users can write to it")
        folders = [each for each in _remembered(path) if each != str(folder.absolute())]
        files.write_json(path, {"folders": [*folders, str(folder.absolute())][-_MOST_FOLDERS:]}, mode=0o600)
    except (OSError, UserError) as error:
        _LOG.warning(
            "%s cannot be written (%s): metajax evaluate and plot will ask for --trust", path, _message(error)[2:]
        )


def trusted_folder(config: Path, folder: Path | None) -> Path | None:
    """Return the folder of a config file's imports if this user began a run with this file, else `None`.

    Args:
        config: The copy of the config file in the work directory.
        folder: The folder of the imports that the work directory records, or `None` if there is no such record. A
            folder that the user's own record does not have gives `None`.
    """
    folders = _remembered(_record(config))
    if folder is None:
        return Path(folders[-1]) if folders else None
    return folder if str(folder.absolute()) in folders else None


def _record(config: Path) -> Path:
    checksum = hashlib.sha256(files.read_bytes(config)).hexdigest()
    return _state_folder() / f"{checksum}.json"


def _state_folder() -> Path:
    """Return the folder of the records: `metajax/begun` in the user's state folder (XDG base directories)."""
    state_home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state_home) if os.path.isabs(state_home) else Path(os.path.expanduser("~")) / ".local" / "state"
    return base / "metajax" / "begun"


def _remembered(path: Path) -> list[str]:
    """Return the folders in a record file; an empty list if another user may have written the file."""
    if not (_is_private(path.parent) and _is_private(path)):
        return []
    try:
        return [str(folder) for folder in files.read_json(path)["folders"]]
    except (UserError, KeyError, TypeError):
        return []


def _is_private(path: Path) -> bool:
    """Return whether only this user can write a file or folder. A symbolic link does not count as private."""
    try:
        status = path.lstat()
    except OSError:
        return False
    if stat.S_ISLNK(status.st_mode):
        return False
    return not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)


def own_types(value: Any) -> dict[str, type]:
    """Return the user-defined types of settings and nested settings, by their names `module:name`."""
    types: dict[str, type] = {}
    if isinstance(value, list | tuple):
        for each in value:
            types |= own_types(each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if not is_shipped(type(value).__module__):
            types[type_name(type(value))] = type(value)
        for field in dataclasses.fields(value):
            types |= own_types(getattr(value, field.name))
    return types


def is_shipped(module: str) -> bool:
    """Return whether a module is part of metajax."""
    return module == "metajax" or module.startswith("metajax.")


def type_name(kind: type) -> str:
    """Return the name of a type in `config.json`: `module:name`."""
    return f"{kind.__module__}:{kind.__qualname__}"


def find_type(name: str, module: ModuleType | None) -> type:
    """Find the dataclass that has a given type name in `config.json`.

    The function imports only modules of metajax.

    Args:
        name: A name from `type_name`, `module:name`.
        module: The config file's module. User-defined types are looked up in this module and in the modules that it
            has imported.

    Raises:
        ImportError: If the module of the type is not found.
        AttributeError: If the module has no attribute with the name of the type.
        TypeError: If the type is not a dataclass that the module defines.
    """
    module_name, _, qualified = name.partition(":")
    if is_shipped(module_name):
        place = importlib.import_module(module_name)
    elif module_name == CONFIG_MODULE:
        place = module
    else:
        place = sys.modules.get(module_name)
    if place is None:
        raise ImportError(f"no module of the config is called {module_name!r}")
    kind = functools.reduce(getattr, qualified.split("."), place)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module_name):
        raise TypeError(f"{name} is not a type of settings")
    return kind
