"""Five applications as layers for containers and virtual machines, made by script from Debian's packages.

    with workshop.opened(work, {}) as place:
        base = base_layer(place, "container")
        app = app_layer(place, "game", "container")

Theory of operation
-------------------
Every application is the base, a minimal Debian with a small Python, and a layer over it: packages with what they depend
on, data, and a file that says which programs to run. The first process is the same everywhere (`inside/main.py`): pid 1
of a container, and started by the base's init in a virtual machine. It runs the programs and is probed from outside.
Nothing is downloaded or generated when an application starts.

catalog    Application and APPLICATIONS: what is installed and run
layers     base_layer, app_layer: the folders, made once and kept
roots      the base's tree, by debootstrap
packages   what packages add to a tree, by dpkg in an overlay
guest      kernel and initramfs of the virtual machines
disks      their disks, by mke2fs and debugfs
inside/    the programs that run in the applications
"""

from bench.paper.apps.catalog import APPLICATIONS, Application, Platform
from bench.paper.apps.guest import COMMAND_LINE
from bench.paper.apps.layers import app_layer, base_layer

__all__ = ["APPLICATIONS", "COMMAND_LINE", "Application", "Platform", "app_layer", "base_layer"]
