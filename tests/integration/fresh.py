"""Comparison of cached reads with fresh ones, and the SQL that readers run."""

from __future__ import annotations

from registry import Store


def assert_fresh(store: Store) -> None:
    """Compare what *store* returns with what another store reads that has cached nothing."""
    with Store.open(store.path, reconcile=False) as fresh:
        expected = [each._entry.row for each in fresh.list(include_unknown=True)]
        assert expected == [each._entry.row for each in store.list(include_unknown=True)]
        for row in expected:
            assert row == store.get(row.id, include_unknown=True)._entry.row
            found = store._session.find_creation(row.creation, "test")
            assert found is not None
            assert row == found.row
