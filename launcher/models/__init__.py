"""Model families: one module each, what it knows of configs, tensors and layers behind one Protocol (``base``)."""
