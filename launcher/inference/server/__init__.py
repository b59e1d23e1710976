"""A small HTTP server that answers as OpenAI's chat completions do, for trying a model out.

protocol     parses requests and formats answers
queue        requests on their way to the one model, several in a batch
http         size limits, and responses (starlette)
server       from a socket to answers, until a signal

Who may ask, and how long a connection lasts, is in ``launcher.common.http``.
"""
