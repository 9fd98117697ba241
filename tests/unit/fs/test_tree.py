"""The tree: nodeids, names."""

from __future__ import annotations

import pytest

from zcfs.fs.tree import COMPUTED, Directory, File, Tree


async def nothing() -> bytes:
    return b""


def make_tree() -> Tree:
    inner = Directory(COMPUTED + 3, {b"leaf": File(COMPUTED + 4, nothing)})
    return Tree(Directory(COMPUTED + 1, {b"file": File(COMPUTED + 2, nothing), b"inner": inner}))


def test_every_node_is_found_by_its_nodeid() -> None:
    tree = make_tree()
    assert len(tree) == 4
    for nodeid in range(COMPUTED + 1, COMPUTED + 5):
        node = tree.get(nodeid)
        assert node is not None
        assert node.nodeid == nodeid
    assert tree.get(COMPUTED) is None


def test_lookup() -> None:
    tree = make_tree()
    inner = tree.lookup(tree.root, b"inner")
    assert isinstance(inner, Directory)
    assert tree.lookup(inner, b"leaf") is tree.get(COMPUTED + 4)
    assert tree.lookup(inner, b"absent") is None
    assert tree.lookup(inner, b".") is inner
    assert tree.lookup(inner, b"..") is tree.root
    assert tree.lookup(tree.root, b"..") is tree.root


@pytest.mark.parametrize("nodeid", [0, 1, COMPUTED - 1, 2 * COMPUTED, COMPUTED + 1])
def test_bad_and_double_nodeids_are_refused(nodeid: int) -> None:
    with pytest.raises(ValueError, match="nodeid"):
        Tree(Directory(COMPUTED + 1, {b"file": File(nodeid, nothing)}))
