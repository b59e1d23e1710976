"""The composition of A3's super_device_id (SDID).

SDID = server index << 22 | chip << 18 | die << 16 | device id, 10/4/2/16 bits, two dies a chip.
Source: hicann/driver ef377e950a32, dcmi_network_intf.h:33-49. It gives the published ids of xLLM's table (servers
24 and 28) and of MindCluster's fault diagnosis samples (servers 27 and 40).
"""

from __future__ import annotations

SERVER_INDEX_MAX = (1 << 10) - 1
SDID_MAX = (1 << 32) - 1
_DIES = 2


def sdid(server_index: int, device_id: int) -> int:
    """Return the SDID of physical device ``device_id`` (0..15) on the server with this index in its pod (0..1023)."""
    chip, die = divmod(device_id, _DIES)
    return server_index << 22 | chip << 18 | die << 16 | device_id


def sdid_fits(value: int, device_id: int) -> bool:
    """Return True if ``value`` can be the SDID of physical device ``device_id`` on some server."""
    return value == sdid(value >> 22, device_id)
