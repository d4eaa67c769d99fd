"""Move running applications between nodes; see `service` for a map of this package."""

from p2player.migration.parts import Parts
from p2player.migration.service import Migrations

__all__ = ["Migrations", "Parts"]
