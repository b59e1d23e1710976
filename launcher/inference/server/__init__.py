"""A small HTTP server that answers as OpenAI's chat completions do, for trying a model out.

protocol     what a request may say, and how answers are put
queue        requests on their way to the one model, several in a batch
http         who may ask, how much, and what goes back (starlette)
connections  how many there may be, and how long each may take (uvicorn)
server       from a socket to answers, until a signal
"""
