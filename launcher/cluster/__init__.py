"""Hardware and its addresses: devices, inventories, discovery of a host's cards, rank tables."""
