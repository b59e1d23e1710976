"""Model families: one module each, with its configs, tensors and layers behind one Protocol (``base``)."""
