"""What a platform is and where its numbers come from, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_neuralpower.platform import AnyPlatform

__all__ = ["platform_facts"]


def platform_facts(platform: AnyPlatform) -> dict[str, str]:
    """Device, data type, mode, how each quantity is known, and the sources of its rows."""
    facts = {"device": platform.device, "dtype": platform.dtype, "mode": platform.mode}
    facts |= {f"{quantity} is": tier for quantity, tier in platform.tiers.items()}
    sources = getattr(platform, "provenance", {}).get("sources", ())
    titles = [str(each.get("title", "")) for each in sources]
    if any(titles):
        facts["sources"] = "; ".join(filter(None, titles))
    return facts
