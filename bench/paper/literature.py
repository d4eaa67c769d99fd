"""Table 1 of the published work, to be shown beside.

Machen, Wang, Leung, Ko, Salonidis: "Live service migration in mobile edge clouds", arXiv 1706.04118. It does not print
its link or its hardware: its absolute numbers are context, and what is compared was measured here in one run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bench.paper.plan import HIGH_RAM, LIBVIRT, LXD

SOURCE: Final = "Machen et al., Live service migration in mobile edge clouds, arXiv 1706.04118, Table 1"
PLATFORMS: Final[Mapping[str, str]] = {LXD: "LXC", LIBVIRT: "KVM"}
"""What the published table calls them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: seconds and megabytes with the application layer absent and present, and seconds without service."""

    absent_s: float
    absent_mb: float
    present_s: float
    present_mb: float
    down_s: float


TABLE_1: Final[Mapping[tuple[str, str], Row]] = {
    (LXD, "none"): Row(11.0, 1.9, 6.3, 1.4, 2.0),
    (LXD, "game"): Row(10.9, 2.7, 6.4, 1.6, 2.0),
    (LXD, HIGH_RAM): Row(27.2, 97.6, 19.8, 97.1, 15.3),
    (LXD, "video"): Row(37.3, 184.6, 8.5, 7.4, 3.3),
    (LXD, "face"): Row(70.1, 365.0, 15.5, 10.0, 3.7),
    (LIBVIRT, "none"): Row(141.8, 65.9, 79.7, 65.2, 56.1),
    (LIBVIRT, "game"): Row(142.0, 72.3, 80.9, 69.7, 58.7),
    (LIBVIRT, HIGH_RAM): Row(152.2, 178.4, 93.0, 170.4, 72.0),
    (LIBVIRT, "video"): Row(189.7, 270.5, 86.4, 87.3, 61.3),
    (LIBVIRT, "face"): Row(558.3, 1033.7, 152.3, 99.0, 107.5),
}
