"""Trees of peers that lead elsewhere on the host: never the root of a container, and never deleted through."""

from pathlib import Path

import pytest

from backends import config
from backends.base import AppLayout
from backends.errors import BackendError
from backends.folders import remove_tree
from backends.lxd import volume


@pytest.fixture
def layout(tmp_path: Path) -> AppLayout:
    for name in ("base/rootfs", "app/rootfs", "state/upper/rootfs"):
        (tmp_path / name).mkdir(parents=True)
    app = config.parse('command = ["true"]')
    return AppLayout("ab" * 16, "box", tmp_path, app, base=tmp_path / "base", app=tmp_path / "app")


def replaced(folder: Path, target: Path) -> None:
    remove_tree(folder)
    folder.symlink_to(target)


def test_folders_are_accepted(layout: AppLayout) -> None:
    volume.check_layers(layout)
    volume.check_instance(layout)
    remove_tree(layout.state_dir)
    volume.check_instance(layout)


@pytest.mark.parametrize("what", ["base", "app"])
def test_a_layer_whose_root_is_a_link_is_refused(layout: AppLayout, what: str) -> None:
    replaced(layout.folder / what / "rootfs", Path("/"))
    with pytest.raises(BackendError, match=f"the {what} layer has no folder rootfs"):
        volume.check_layers(layout)


@pytest.mark.parametrize("name", ["upper", "upper/rootfs"])
def test_an_instance_that_leads_elsewhere_is_refused(layout: AppLayout, name: str) -> None:
    (elsewhere := layout.folder / "elsewhere").mkdir()
    (elsewhere / "rootfs").mkdir()
    replaced(layout.state_dir / name, elsewhere)
    with pytest.raises(BackendError, match="is not a folder"):
        volume.check_instance(layout)


def test_what_takes_the_place_of_a_folder_is_deleted_and_not_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "file").touch()
    for name in ("link", "dangling", "file", "none"):
        remove_tree(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]
