"""Facts about MindSpore and MindFormers, and workarounds for them."""
