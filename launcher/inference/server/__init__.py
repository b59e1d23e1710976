"""A small HTTP server that answers as OpenAI's chat completions do, for trying a model out.

protocol     parses requests and formats answers
queue        requests on their way to the one model, several in a batch
http         access, size limits, and responses (starlette)
connections  limits of number and time (uvicorn)
server       from a socket to answers, until a signal
"""
