"""Files for the launcher, laid out as its own ``templates/`` are: ``chat/NAME.jinja`` is the template NAME."""
