"""Errors: one tree, with the operands as documented attributes."""

from __future__ import annotations

import ast
import inspect
import itertools
import pickle
import sqlite3

import pytest

import registry
from registry import Store, errors
from registry.engine.sqlite_errors import translate

TREE = {
    "NotFoundError": "RegistryError",
    "AlreadyExistsError": "RegistryError",
    "NameReservedError": "AlreadyExistsError",
    "InvalidArgumentError": "RegistryError",
    "AmbiguousPrefixError": "InvalidArgumentError",
    "MetadataError": "InvalidArgumentError",
    "FailedPreconditionError": "RegistryError",
    "StoreClosedError": "FailedPreconditionError",
    "SchemaVersionError": "FailedPreconditionError",
    "ReadOnlyError": "FailedPreconditionError",
    "ClosedNetNSError": "FailedPreconditionError",
    "CompactedError": "FailedPreconditionError",
    "UnavailableError": "RegistryError",
    "ResourceExhaustedError": "RegistryError",
    "DataLossError": "RegistryError",
    "CommitUnknownError": "DataLossError",
    "NetNSError": "RegistryError",
}


@pytest.mark.parametrize("name", TREE)
def test_each_error_has_the_parent_of_the_contract(name: str) -> None:
    """By its parent a shim maps it to a gRPC code."""
    error = getattr(errors, name)
    assert (TREE[name],) == tuple(base.__name__ for base in error.__bases__)
    assert error is getattr(registry, name)


def test_errors_module_defines_no_other_class() -> None:
    """Every error can be caught by a documented class."""
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {*TREE, "RegistryError"} == classes


def test_operands_are_attributes() -> None:
    """An operand that is not declared is refused."""
    error = errors.NameReservedError("m", id="a", name="n", holder="b")
    assert ("m", "a", "n", "b") == (str(error), error.id, error.name, error.holder)
    with pytest.raises(TypeError):
        errors.NotFoundError("m", nonsense=1)


def test_each_operand_is_documented() -> None:
    """A docstring follows each attribute, which has a type."""
    undocumented = []
    for node in ast.walk(ast.parse(inspect.getsource(errors))):
        if isinstance(node, ast.ClassDef):
            for attribute, after in itertools.pairwise([*node.body, None]):
                if isinstance(attribute, ast.AnnAssign) and not (
                    isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                ):
                    undocumented.append(f"{node.name}.{ast.unparse(attribute.target)}")
                assert not isinstance(attribute, ast.Assign)
    assert [] == undocumented


@pytest.mark.parametrize("name", TREE)
def test_an_error_can_be_sent_to_another_process(name: str) -> None:
    """Its operands survive pickling, as multiprocessing does it."""
    error = getattr(errors, name)("message")
    error.sqlite_code = 5
    copy = pickle.loads(pickle.dumps(error))
    assert (type(error), "message", 5) == (type(copy), str(copy), copy.sqlite_code)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_BUSY, "UnavailableError"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "UnavailableError"),
        (sqlite3.SQLITE_LOCKED, "UnavailableError"),
        (sqlite3.SQLITE_FULL, "ResourceExhaustedError"),
        (sqlite3.SQLITE_IOERR_SHMSIZE, "ResourceExhaustedError"),
        (sqlite3.SQLITE_NOMEM, "ResourceExhaustedError"),
        (sqlite3.SQLITE_TOOBIG, "ResourceExhaustedError"),
        (sqlite3.SQLITE_READONLY, "ReadOnlyError"),
        (sqlite3.SQLITE_READONLY_DBMOVED, "DataLossError"),
        (sqlite3.SQLITE_CORRUPT, "DataLossError"),
        (sqlite3.SQLITE_CORRUPT_INDEX, "DataLossError"),
        (sqlite3.SQLITE_NOTADB, "DataLossError"),
        (sqlite3.SQLITE_CANTOPEN, "FailedPreconditionError"),
        (sqlite3.SQLITE_PERM, "FailedPreconditionError"),
        (sqlite3.SQLITE_CONSTRAINT_CHECK, "FailedPreconditionError"),
        (sqlite3.SQLITE_IOERR_FSYNC, "RegistryError"),
        (sqlite3.SQLITE_MISUSE, "RegistryError"),
        (None, "RegistryError"),
    ],
    ids=str,
)
def test_driver_errors_are_mapped_by_code(code: int | None, expected: str, path: str) -> None:
    """The text decides nothing; the message has the operation and the path.

    The file exists, and the system refuses nothing: see tests/integration/test_refusals.py.
    """
    Store.open(path).close()
    raw = sqlite3.OperationalError("database is locked or full or corrupt")
    if code is not None:
        raw.sqlite_errorcode, raw.sqlite_errorname = code, f"CODE_{code}"
    error = translate(raw, "add sandbox 'a'", path)
    assert expected == type(error).__name__
    assert code == error.sqlite_code
    assert str(error).startswith("add sandbox 'a': ")
    assert repr(path) in str(error)
    assert path == getattr(error, "path", path)
