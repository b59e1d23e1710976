"""Hardware and its address book: devices, inventories, what a host has, rank tables."""
