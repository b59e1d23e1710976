"""A small HTTP server that answers as OpenAI's chat completions and completions do, for trying models out.

protocol     parses requests
formats      formats answers, whole and in chunks
served       a model under its name
queue        requests on their way to the models, and the batches that they join
figures      counts for Prometheus
page         the chat page
http         size limits, and responses (starlette)
server       from a socket to answers, until a signal

Who may ask, and how long a connection lasts, is in ``launcher.common.http``.
"""
